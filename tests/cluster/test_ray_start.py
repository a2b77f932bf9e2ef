"""Starting and reaching Ray, by drivers in processes of their own."""

import json
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

pytestmark = pytest.mark.ray

PATIENCE_S = 60.0
Descendants = Callable[[int], set[int]]
AwaitGone = Callable[[set[int], float], set[int]]

DRIVER = """
import os, sys
from cluster.base import WorkerJoined
from cluster.ray_pool import RayPool
for _ in range(2):
    pool, num = RayPool(workers=1), 0
    pool.start()
    while num < 1:
        num += sum(isinstance(event, WorkerJoined) for event in pool.events(1))
    print("up", flush=True)
    sys.stdin.readline()
    pool.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


def drive(script: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def line_of(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    assert select.select([driver.stdout], [], [], PATIENCE_S)[0], "the driver says nothing"
    return driver.stdout.readline().strip()


def go_on(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.write("\n")
    driver.stdin.flush()


def listening_addresses(pids: set[int]) -> set[str]:
    """Addresses (hexadecimal, as the kernel writes them) on which the processes listen."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
            except OSError:
                continue
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            field = line.split()
            if field[3] == "0A" and field[9] in sockets:
                addresses.add(field[1].rpartition(":")[0])
    return addresses


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[str]]:
    driver = drive(DRIVER)
    try:
        yield driver
    finally:
        driver.kill()
        driver.communicate()


def test_a_local_ray_is_for_this_machine_only_and_dies_with_its_driver(
    driver: subprocess.Popen[str], descendants: Descendants, await_gone: AwaitGone
) -> None:
    assert line_of(driver) == "up"
    processes = descendants(driver.pid)
    assert len(processes) > 3
    ipv4, ipv4_in_6 = "0100007F", "0000000000000000FFFF00000100007F"
    ipv6 = "00000000000000000000000001000000"
    addresses = listening_addresses({driver.pid, *processes})
    assert addresses, "no listening socket found, so the next line says nothing"
    assert addresses <= {ipv4, ipv4_in_6, ipv6}
    driver.kill()
    driver.wait()
    assert not await_gone(processes, 20)


@pytest.mark.slow
def test_a_process_can_start_ray_again(
    driver: subprocess.Popen[str], descendants: Descendants, await_gone: AwaitGone
) -> None:
    for _ in range(2):
        assert line_of(driver) == "up"
        processes = descendants(driver.pid)
        go_on(driver)
        assert line_of(driver) == "closed"
        assert not await_gone(processes, 10)
        go_on(driver)


HEAD = """
import logging, sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
"""

GUEST = """
import json, os, sys, time
from cluster.base import ClusterUnreachable, TaskDone, WorkerJoined
from cluster.ray_pool import RayPool

def attempt(address, **changes):
    pool, began = RayPool(address=address, start_timeout_s=30), time.monotonic()
    before = {**os.environ}
    os.environ.update(changes)
    try:
        pool.start()
        events = []
        while not any(isinstance(event, TaskDone) for event in events):
            for event in (new := pool.events(1)):
                if isinstance(event, WorkerJoined):
                    pool.submit(event.worker, "key", divmod, 7, 2)
            events += new
        return [str(events[-1].result), time.monotonic() - began]
    except ClusterUnreachable as error:
        return [str(error), time.monotonic() - began]
    finally:
        pool.close()
        os.environ.clear()
        os.environ.update(before)

head, closed = sys.stdin.readline().split()
print(json.dumps({
    "closed": attempt(closed),
    "malformed": attempt("10.0.0.5"),
    "jobs": attempt("http://10.0.0.5:8265"),
    "refused": attempt(head, RAY_AUTH_TOKEN="0" * 40),
    "welcome": attempt(head),
}))
"""


@pytest.mark.slow
def test_other_clusters_by_address() -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1234567890" * 4}
    head, guest = drive(HEAD, **token), drive(GUEST, **token)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    try:
        assert guest.stdin is not None
        guest.stdin.write(f"{line_of(head)} 127.0.0.1:{closed}\n")
        guest.stdin.flush()
        said = json.loads(line_of(guest))
        assert head.poll() is None, "a guest leaves the cluster running"
    finally:
        for driver in (guest, head):
            driver.communicate(input="\n")
    assert f"127.0.0.1:{closed}" in said["closed"][0]
    assert "ray start --head" in said["closed"][0]
    assert said["closed"][1] < 6
    assert "'10.0.0.5' is not host:port" in said["malformed"][0]
    assert "sfumato submit" in said["jobs"][0]
    assert "refused our token" in said["refused"][0]
    assert "RAY_AUTH_TOKEN" in said["refused"][0]
    assert said["refused"][1] < 30
    assert said["welcome"][0] == "(3, 1)"


def test_something_else_listens_there() -> None:
    with socket.socket() as deaf:
        deaf.bind(("0.0.0.0", 0))
        deaf.listen()
        guest = f"""
from cluster.base import ClusterUnreachable
from cluster.ray_pool import RayPool
try:
    RayPool(address="127.0.0.1:{deaf.getsockname()[1]}", start_timeout_s=2).start()
except ClusterUnreachable as error:
    print(error)
"""
        said, _ = drive(guest).communicate(timeout=PATIENCE_S)
    assert "did not let us join (waiting up to 2 s)" in said
    assert f"version {ray.__version__}" in said
