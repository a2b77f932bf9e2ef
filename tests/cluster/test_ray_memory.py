"""A real lack of memory on real Ray: the worker is put out, its task gets a larger share."""

import sys
import time
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.base import Event, TaskDone, WorkerJoined, WorkerLost
from cluster.ray_pool import RayPool
from orchestrator.state import Job, State

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Workers cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

GIB = 2**30
PATIENCE_S = 120.0


def hog(tried: Path) -> str:
    """Takes 8 GiB, page by page, the first time."""
    if tried.exists():
        return "modest"
    tried.touch()
    held = []
    for _ in range(8 * 16):
        held.append(bytearray(b"x") * (64 * 2**20))
        time.sleep(0.03)  # Ray looks ten times a second
    return "survived"


def test_a_task_put_out_for_memory_runs_again_with_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    of = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    if of["MemAvailable"] < 6 * GIB:
        pytest.skip("less than 6 GiB of memory are free")
    limit = of["MemTotal"] - of["MemAvailable"] + 3 * GIB
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit / of['MemTotal']:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    state = State({"hog": Job(memory=GIB)}, max_attempts=1)
    pool = RayPool(workers=1)
    pool.start()
    events: list[Event] = []
    try:
        until = time.monotonic() + PATIENCE_S
        while not state.finished:
            assert time.monotonic() < until, events
            for event in pool.events(1.0):
                events.append(event)
                for run in state.handle(event):
                    pool.submit(run.worker, run.key, hog, tmp_path / "tried")
    finally:
        pool.close()
    assert [type(event) for event in events] == [WorkerJoined, WorkerLost, WorkerJoined, TaskDone]
    lost = events[1]
    assert isinstance(lost, WorkerLost)
    assert lost.out_of_memory
    assert "low on memory" in lost.reason
    assert state.done == {"hog"}
    assert state.attempts == {}, "the first time is not the task's fault"
    assert state.memory["hog"] > GIB
