"""Ctrl-C twice at any moment of a run: it ends soon and in few words, and the next resumes."""

import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import PATIENCE_S, Place
from tests.chaos.nodes.clusters import Cluster, Drivers, kill

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SHARE = float(os.environ.get("SFUMATO_CHAOS_SHARE", "1"))
ROUNDS = math.ceil(SHARE * 12)
NUM_SEEDS = 2
QUICK_S = 10.0
START_S = 25.0  # about what a driver takes until its first task, on a busy machine


@pytest.fixture(params=["four nodes", "this machine"])
def drivers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drivers:
    if request.param == "four nodes":
        return Drivers.on(request.getfixturevalue("four"))
    folder = Path(request.getfixturevalue("short"))
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "SPT_NOENV": "1"}
    return Drivers(environment, ("--workers", "2"))


def test_ctrl_c_twice(
    drivers: Drivers,
    four: Cluster,
    done_before: Callable[[int], Place],
    rng: random.Random,
) -> None:
    before = done_before(NUM_SEEDS)
    place = Place(four.hidden, before.seeds)
    phases, slowest, ended = Counter[str](), 0.0, 0
    began = time.monotonic()
    while phases.total() < ROUNDS:
        driver, seen = drivers.start(place), len(place.journal())
        if rng.random() < 0.5:
            code = driver.wait(rng.uniform(0, START_S))
        else:  # once it is at work
            wanted, until = seen + rng.randint(1, 60), time.monotonic() + PATIENCE_S
            while (code := driver.wait(0.005)) is None and len(place.journal()) < wanted:
                assert time.monotonic() < until, place.said()
        if code is not None:
            assert code == 0, place.said()
            assert place.faults(before) == []
            ended += 1
            place.wipe()
            continue
        events = {entry.pid: entry.event for entry in place.journal()[seen:]}
        said = len(place.said())
        kill(driver.pid, signal.SIGINT)
        pressed = time.monotonic()
        if (code := driver.wait(rng.choice((0.0, 0.05, 0.5)))) is None:
            kill(driver.pid, signal.SIGINT)
            code = driver.wait(QUICK_S)
        took = time.monotonic() - pressed
        where = "before the first task" if not events else "at work"
        words = place.said()[said:]
        print(f"{where}: code {code} after {took:.1f} s")  # noqa: T201
        assert code == 130, f"{where}, {took:.1f} s: {place.said()}"
        assert "Traceback" not in words, words
        assert "resumes" in words or where == "before the first task", words
        assert drivers.left(QUICK_S) == set()
        until = time.monotonic() + QUICK_S  # its workers on the cluster have it no longer
        while left := {pid for pid in events if os.path.exists(f"/proc/{pid}")}:
            assert time.monotonic() < until, f"{where}: workers {left} go on"
        assert all(node.process.poll() is None for node in four.nodes.values())
        phases[where] += 1
        slowest = max(slowest, took)
    code = drivers.start(place).wait(PATIENCE_S)
    assert code == 0, place.said()
    assert place.faults(before) == []
    told = ", ".join(f"{num} {phase}" for phase, num in sorted(phases.items()))
    print(  # noqa: T201
        f"\nctrl-c twice, {drivers.options[0]}: {phases.total()} ({told}), the slowest"
        f" {slowest:.1f} s; {ended + 1} runs completed; {time.monotonic() - began:.0f} s"
    )
    place.wipe()
