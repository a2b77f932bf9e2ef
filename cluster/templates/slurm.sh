#!/bin/bash
#SBATCH --job-name=sfumato
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@120
# An experiment on a Ray cluster inside a Slurm job, made by `sfumato cluster template slurm`.
#   sbatch THIS-FILE        from a folder that all nodes see; the same again resumes from the store

options=(--store sfumato-store -- quickstart)
cpus=8
gpus=0
memory_mib=0
container=()
# -- what follows is the same for everyone ---------------------------------------------------------
# No `set -u`: to the bash of older systems an empty array is unset.
die() {
  echo "error: $*" >&2
  exit 1
}

job=${SLURM_JOB_ID:?this is a Slurm job: hand it to sbatch}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
((${#nodes[@]} > 0)) || die "scontrol names no nodes of '$SLURM_JOB_NODELIST'"

# The token and its folder are for this job and this user only.
folder=${SLURM_SUBMIT_DIR:-$PWD}/.sfumato-$job
(
  umask 077
  set -o pipefail
  mkdir -p -- "$folder" && chmod 700 -- "$folder" && rm -f -- "$folder/token" &&
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$folder/token"
) || die "cannot write to $folder; submit from a folder of yours that all nodes see"
unset RAY_AUTH_TOKEN RAY_ADDRESS
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
# Else Ray's nodes, told to end, wait half a minute for a head that is told so too.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

# Jobs that share a node must not share ports; all of these lie below those the kernel gives away.
port=$((20000 + 2 * (job % 6000)))
shared=(--num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block --log-color=false
  --min-worker-port=0 --max-worker-port=0)
if ((memory_mib > 0)); then
  # Ray looks at the machine, not at the job's part of it.
  shared+=(--memory=$((memory_mib * 734003)) --object-store-memory=$((memory_mib * 209715)))
fi

# Runs on every node, around `ray start`. Ray makes sockets in its folder, whose path must be short,
# and opens that folder to all: it lies in one that is ours alone.
# shellcheck disable=SC2016  # expanded on the node
on_node='
set -u
temp=/tmp/sfumato-$SLURM_JOB_ID-$1-${SLURM_PROCID:-0}
shift
mkdir -p -- "$temp" && chmod 700 -- "$temp" ||
  { echo "error: $temp on $(hostname) is not ours" >&2; exit 1; }
trap : TERM # comes to ray too; what that leaves is removed after it
"$@" --temp-dir="$temp/ray"
code=$?
rm -rf -- "$temp"
exit $code
'
# shellcheck disable=SC2016
address_of='
ip=$(getent ahostsv4 "$1" | { read -r first _; echo "${first:-}"; })
case $ip in "" | 127.*) read -r ip _ < <(hostname -I) ;; esac
echo "$ip"
'

steps=()
launch() { # ROLE NODES NUMBER COMMAND...
  local role=$1 where=$2 number=$3
  shift 3
  srun --nodes="$number" --ntasks="$number" --ntasks-per-node=1 --cpus-per-task="$cpus" \
    --cpu-bind=none --nodelist="$where" --export=ALL \
    bash -c "$on_node" on_node "$role" "${container[@]}" "$@" &
  steps+=($!)
}

run=
finish() {
  trap '' TERM INT
  local pid pids tenths=0
  pids=$(jobs -p)
  for pid in $pids; do
    kill -TERM "$pid" 2> /dev/null
  done
  for pid in $pids; do
    while kill -0 "$pid" 2> /dev/null && ((tenths++ < 300)); do sleep 0.1; done
    kill -KILL "$pid" 2> /dev/null
  done
  rm -rf -- "$folder"
}
trap finish EXIT
# Slurm sends TERM before the time limit: the run keeps what is done, and this script goes on.
stop() {
  stopping=1
  [ -z "$run" ] && exit 143
  kill -TERM "$run" 2> /dev/null
}
stopping=
trap stop TERM INT

all_up() {
  local step
  for step in "${steps[@]}"; do
    kill -0 "$step" 2> /dev/null || die "a node's \`ray start\` ended early; its reason is above"
  done
}

head=${nodes[0]}
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$address_of" address_of "$head")
[ -n "$ip" ] || die "cannot tell the address of $head"
echo "starting Ray at $ip:$port on ${#nodes[@]} nodes: ${nodes[*]}"
launch head "$head" 1 ray start --head --node-ip-address="$ip" --port="$port" \
  --ray-client-server-port=$((port + 1)) --include-dashboard=false "${shared[@]}"
for ((second = 0; ; second++)); do
  (exec 3<> "/dev/tcp/$ip/$port") 2> /dev/null && break
  ((second < 180)) || die "nothing answers at $ip:$port after three minutes"
  all_up
  sleep 1
done
if ((${#nodes[@]} > 1)); then
  others=$(IFS=,; echo "${nodes[*]:1}")
  launch worker "$others" $((${#nodes[@]} - 1)) ray start --address="$ip:$port" "${shared[@]}"
fi

"${container[@]}" python3 - "$ip:$port" "${#nodes[@]}" << 'PYTHON' &
import sys, time, ray
address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
until = time.monotonic() + 300
while (here := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > until:
        sys.exit(f"error: {here} of {wanted} nodes joined within five minutes")
    time.sleep(0.5)
PYTHON
run=$!
while kill -0 "$run" 2> /dev/null; do
  all_up
  sleep 0.5
done
[ -z "$stopping" ] || exit 143
wait "$run" || die "the nodes did not come together"
run=
echo "all ${#nodes[@]} nodes joined"

"${container[@]}" sfumato run --address "$ip:$port" "${options[@]}" &
run=$!
[ -z "$stopping" ] || kill -TERM "$run"
code=0
wait "$run" || code=$?
while kill -0 "$run" 2> /dev/null; do # a signal ended the wait, not the run
  wait "$run"
  code=$?
done
run=
exit "$code"
