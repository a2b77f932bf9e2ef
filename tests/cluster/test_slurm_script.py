"""The script for Slurm, run: its nodes are processes of this machine, its commands stand-ins."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.manifests import render
from cluster.wanted import Wanted

AwaitGone = Callable[[set[int], float], set[int]]
TEMPLATE = Path(__file__).parents[2] / "cluster" / "templates" / "slurm.sh"

# Commands of Slurm for a "cluster" that is this machine. A step's tasks are process groups, which
# get the signals that the step gets, as slurmstepd has it.
SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
asked = {}
while words[0].startswith("--"):
    key, _, value = words.pop(0)[2:].partition("=")
    asked[key] = value
tasks = []
def end(signum, frame):
    for task in tasks:
        try:
            os.killpg(task.pid, signum)
        except ProcessLookupError:
            pass
signal.signal(signal.SIGTERM, end)
for rank in range(int(asked["ntasks"])):
    env = {**os.environ, "SLURM_PROCID": str(rank)}
    tasks.append(subprocess.Popen(words, env=env, start_new_session=True))
with open(os.environ["STEPS"], "a") as file:
    print(asked["nodes"], asked["ntasks"], asked["nodelist"], file=file)
sys.exit(max(task.wait() & 255 for task in tasks))
"""
SCONTROL = """
import sys
assert sys.argv[1:] == ["show", "hostnames", "node[1-2]"], sys.argv
print("node1", "node2", sep="\\n")
"""
MARK = "SFUMATO_TEST_OF_SLURM"


def marked(mark: str) -> set[int]:
    """Processes with the mark in their environment."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@dataclass
class Job:
    """A script as sbatch would run it on its first node."""

    folder: Path
    mark: str
    id: int

    def start(self, script: str) -> subprocess.Popen[str]:
        path = self.folder / "job.sh"
        path.write_text(script)
        tools = self.folder / "bin"
        tools.mkdir()
        for name, code in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (tools / name).write_text(f"#!{sys.executable}\n{code}")
            (tools / name).chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STEPS": str(self.folder / "steps"),
            "SPT_NOENV": "1",  # process titles leave the environment, and so the mark, alone
            MARK: self.mark,
            "SLURM_JOB_ID": str(self.id),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "RAY_AUTH_TOKEN": "of another cluster",
        }
        return subprocess.Popen(
            ["bash", str(path)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def secrets(self) -> Path:
        return self.folder / f".sfumato-{self.id}"

    def left(self) -> list[Path]:
        return [*Path("/tmp").glob(f"sfumato-{self.id}-*"), *self.folder.glob(".sfumato-*")]


@pytest.fixture
def job(tmp_path: Path, await_gone: AwaitGone) -> Iterator[Job]:
    made = Job(tmp_path, f"{os.getpid()}-{time.monotonic_ns()}", 10_000_000 + os.getpid())
    yield made
    for pid in marked(made.mark):
        os.kill(pid, signal.SIGKILL)


EXPERIMENT = {
    "name": "tiny",
    "seeds": [0],
    "preset": "cpu",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 16, "classes": 4, "clusters": 4},
            "split": {"members": 200, "reference": 200, "nonmembers": 200},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
    "defenses": ["none"],
    "attacks": ["gap"],
}


def scripted(folder: Path) -> str:
    (folder / "my $(touch X).yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return render(
        "slurm",
        Wanted(
            experiment="my $(touch X).yaml",
            store=str(folder / "the store"),
            workers=(1, 1),
            cpus=1,
            memory_mib=2048,
            setup=("declare -i num=1", 'echo "prepared $num of job $SLURM_JOB_ID"'),
        ),
    )


def test_the_script_is_well_formed(tmp_path: Path) -> None:
    for script in (TEMPLATE.read_text(), scripted(tmp_path)):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_no_objection(tmp_path: Path) -> None:
    for script in (TEMPLATE.read_text(), scripted(tmp_path)):
        command = ["shellcheck", "--severity=warning", "-"]
        ran = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout


def refusal(address: str) -> str:
    """What someone else on the node is told, who has a token but not the job's."""
    guest = (
        "from cluster.base import ClusterUnreachable\n"
        "from cluster.ray_start import join\n"
        f"try: join('{address}', 60.0)\n"
        "except ClusterUnreachable as error: print(error)\n"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", guest]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


@pytest.mark.ray
@pytest.mark.slow
def test_the_script_runs_an_experiment_on_two_nodes(job: Job, await_gone: AwaitGone) -> None:
    running = job.start(scripted(job.folder))
    try:
        seen, said = None, ""
        assert running.stdout is not None
        for line in running.stdout:
            said += line
            if "nodes joined" in line:
                seen = (
                    job.secrets.stat().st_mode & 0o777,
                    {
                        path.name: (path.stat().st_mode & 0o777, len(path.read_text()))
                        for path in job.secrets.iterdir()
                    },
                )
                # Held here, it does not clear away what the guest is to find.
                running.send_signal(signal.SIGSTOP)
                refused = refusal(said.split("starting Ray at ")[1].split()[0])
                running.send_signal(signal.SIGCONT)
                temporary = [path.stat().st_mode & 0o777 for path in job.left()[:2]]
        assert running.wait(60) == 0, said
    finally:
        running.kill()
    assert seen == (0o700, {"token": (0o600, 64)}), said
    assert temporary == [0o700, 0o700]
    assert "refused our token" in refused
    assert "prepared 1 of job" in said
    assert "all 2 nodes joined" in said
    assert re.search(r"7 tasks run in \d+ s on [12] worker", said), said  # the first may do it all
    assert (job.folder / "the store" / "tables" / "results").is_dir()
    steps = (job.folder / "steps").read_text().splitlines()
    assert steps == ["1 1 node1", "1 1 node1", "1 1 node2"]
    assert not await_gone(marked(job.mark), 20)
    assert job.left() == []
    assert not (job.folder / "X").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_the_time_limit_ends_it_cleanly(job: Job, await_gone: AwaitGone) -> None:
    running = job.start(scripted(job.folder))
    try:
        assert running.stdout is not None
        said = ""
        for line in running.stdout:
            said += line
            if "tasks to run" in line:
                running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130, said
    finally:
        running.kill()
    assert "the same command resumes" in said
    assert not await_gone(marked(job.mark), 20)
    assert job.left() == []


@pytest.mark.ray
def test_a_node_whose_ray_does_not_start_is_told(job: Job, await_gone: AwaitGone) -> None:
    script = scripted(job.folder).replace("ray start --head", "ray start --heads")
    running = job.start(script)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 1, said
    assert "No such option" in said
    assert "`ray start` ended early; its reason is above" in said
    assert not await_gone(marked(job.mark), 20)
    assert job.left() == []
