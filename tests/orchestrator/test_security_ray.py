"""What a run on Ray opens to the network, and what Ray keeps of its secrets."""

import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CANARY = "c4n4ry"
# Port 9 discards: nobody listens there, so rows wait, and what is said of that may quote the URI.
URI = f"http://ann:{CANARY}@127.0.0.1:9"
LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}
MOST_S = 300.0
# A driver as `run` is one, which tells what Ray keeps of it.
DRIVER = """
import sys
from cluster.base import WorkerJoined
from cluster.ray_pool import RayPool
import ray
pool, num = RayPool(workers=1), 0
pool.start()
while num < 1:
    num += sum(isinstance(event, WorkerJoined) for event in pool.events(1))
from ray._private.state import state
for job in state.job_table():
    print("job", job["Entrypoint"], flush=True)
pool.close()
"""


def family(pid: int) -> set[int]:
    """A process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, front = {pid}, {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front} - found
        found |= front
    return found


def listening(pids: set[int]) -> set[tuple[str, str]]:
    """Protocol and address (hexadecimal) at which any of the processes waits for others."""
    held = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                held |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            # A listening TCP socket, or one of UDP that is bound and has no other end.
            waits = words[3] == "0A" if kind.startswith("tcp") else words[2].endswith(":0000")
            if waits and words[9] in held:
                found.add((kind, words[1].rpartition(":")[0]))
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, as Ray has sockets in it."""
    made = Path(tempfile.mkdtemp(prefix="sf-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def environment(folder: Path) -> dict[str, str]:
    names = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, **dict.fromkeys(names, CANARY), "RAY_TMPDIR": str(folder / "ray")}


def quoting(folder: Path) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and CANARY.encode() in path.read_bytes():
                found.append(str(path))
    return found


def test_a_run_listens_on_loopback_only_and_leaves_no_secret(place: Any, folder: Path) -> None:
    (folder / "ray").mkdir()
    command = ["run", place.file(), "--store", str(place.store), "--workers", "1"]
    met: set[tuple[str, str]] = set()
    with (folder / "said.txt").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *command, "--tracking-uri", URI],
            env=environment(folder),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            waited = 0.0
            while run.poll() is None:
                met |= listening(family(run.pid))
                select.select([], [], [], 0.1)
                waited += 0.1
                assert waited < MOST_S
        finally:
            run.kill()
            run.wait()
    text = (folder / "said.txt").read_text()
    assert run.returncode == 0, text
    assert "not in MLflow yet" in text
    assert any(kind.startswith("tcp") for kind, _ in met), "no socket found, so this says nothing"
    assert {address for _, address in met} <= LOOPBACK
    assert list((folder / "ray").rglob("*.log")), "no log of Ray's, so the next line says nothing"
    assert quoting(folder) == []
    assert quoting(place.store) == []


def test_ray_does_not_tell_the_command_of_a_driver(folder: Path) -> None:
    """It would show it to all who may list a cluster's jobs, with the password that is in it."""
    (folder / "ray").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "--tracking-uri", URI],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^job .+$", done.stdout, re.MULTILINE) == ["job sfumato"]
    assert quoting(folder) == []
