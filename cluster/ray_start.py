"""Reach or start a Ray: on this machine or elsewhere, and what to say when it does not answer."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from cluster.base import ClusterUnreachable, check_address

__all__ = ["ONE_THREAD", "join", "own_sigterm", "start_local"]

# Read by the numeric libraries when they load, so they must be in a worker's environment before.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_TCP_TIMEOUT_S = 5.0
_PROBE = (
    "import sys, ray\n"
    "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
    "ray.shutdown()\n"
)
# Ray's agents outlive a driver that was killed by a minute. This process sees the driver's end of
# its pipe close and ends what carries the mark in its environment: only what this driver started.
_MARK = "SFUMATO_LOCAL_RAY"
# Else the agents' process titles are written over their environment, and over the mark.
_KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
_REAPER = """
import glob, os, signal, sys, time
sys.stdin.read()
mark, found = sys.argv[1].encode(), True
while found:
    found = False
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            if mark in open(path, "rb").read().split(bytes(1)):
                os.kill(int(path.split("/")[2]), signal.SIGKILL)
                found = True
        except OSError:
            pass
    time.sleep(0.1)
"""


def start_local(num_cpus: int | None, num_gpus: int | None) -> subprocess.Popen[bytes]:
    """Start Ray on this machine, listening on 127.0.0.1 only.

    Args:
        num_cpus: how many CPUs Ray counts; default the cores.
        num_gpus: how many GPUs; default the real ones.

    Returns:
        The process that ends what was started should this one be killed. Call its
        `communicate()` after `ray.shutdown()`: when that returns, nothing is left.

    Raises:
        ClusterUnreachable: if Ray does not start.
    """
    mark = uuid.uuid4().hex
    command = [sys.executable, "-I", "-S", "-c", _REAPER, f"{_MARK}={mark}"]
    # In a session of its own, Ctrl-C in the terminal does not reach it.
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    changes = {**ONE_THREAD, **_KEEP_ENVIRONMENT, _MARK: mark}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        with _loopback_only():
            _init("local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False)
    except BaseException:
        ray.shutdown()
        reaper.communicate()
        raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return reaper


def join(address: str, timeout_s: float) -> None:
    """Connect to the Ray that runs at `address`.

    Args:
        address: "host:port" of a cluster's head, or "auto".
        timeout_s: how long its answer may take.

    Raises:
        ClusterUnreachable: naming the address, why, and the remedy.
    """
    _probe(address, timeout_s)
    _init(address)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep the process's way of ending: Ray puts its own in place, which ends without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _init(address: str, **options: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints each worker's death on standard output, log_to_driver or not. Our events tell it.
    ray_worker._worker_logs_enabled = False
    # Ray keeps a driver's command and shows it to all who may list jobs; it may hold a password.
    told, ray_utils.get_entrypoint_name = ray_utils.get_entrypoint_name, lambda: "sfumato"
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        where = "on this machine" if address == "local" else f"at {address}"
        raise ClusterUnreachable(
            f"Ray {where} did not start or answer: {type(error).__name__}: {error}. "
            "`sfumato doctor` checks the parts; `--inline` runs without Ray."
        ) from error
    finally:
        ray_utils.get_entrypoint_name = told


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Make a local Ray listen on 127.0.0.1 only.

    Ray 2.60 on Linux turns even `_node_ip_address="127.0.0.1"` into the machine's own address
    and then listens on all interfaces. This switch is the one it uses on macOS and Windows,
    where the environment variable behind it is read when ray is imported: too early for us.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _probe(address: str, timeout_s: float) -> None:
    """Try the address in a process of its own.

    At a wrong address `ray.init` waits for minutes and then ends the process it runs in.

    Raises:
        ClusterUnreachable: naming the address, why, and the remedy.
    """
    check_address(address)
    if address != "auto":
        host, _, port = address.rpartition(":")
        if host in ("localhost", "127.0.0.1", "::1"):
            host = ray.util.get_node_ip_address()  # what ray.init makes of it
        try:
            timeout_tcp_s = min(timeout_s, _TCP_TIMEOUT_S)
            socket.create_connection((host.strip("[]"), int(port)), timeout_tcp_s).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise ClusterUnreachable(
                f"nothing answers at {address} ({host}, port {port}): {error}. Is the head running "
                "(`ray start --head`), is the port its GCS port (6379 unless chosen), and does a "
                "firewall let this machine through?"
            ) from error
    # A refused token is tried 20 times by default, once a second.
    environment = {**os.environ, "RAY_NUM_REDIS_GET_RETRIES": "2"}
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(
            command, env=environment, timeout=timeout_s, capture_output=True, text=True, check=False
        )
        failed, said = done.returncode != 0, done.stderr
    except subprocess.TimeoutExpired as error:
        failed, said = True, (error.stderr or b"").decode(errors="replace")
    if not failed:
        return
    if "Unauthenticated" in said or "AuthenticationError" in said:
        raise ClusterUnreachable(
            f"the cluster at {address} refused our token, or there is none: set "
            "RAY_AUTH_MODE=token and put the cluster's token into RAY_AUTH_TOKEN, the file that "
            "RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token (`ray get-auth-token` on the head "
            "prints it)"
        )
    last = said.strip().rpartition("\n")[2].rstrip(".") or "no answer"
    raise ClusterUnreachable(
        f"Ray at {address} did not let us join (waiting up to {timeout_s:.0f} s): {last}. Is there "
        f"a Ray head of version {ray.__version__}, and does Ray run on this machine too "
        "(`ray start --address`)?"
    )
