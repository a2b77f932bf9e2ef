"""Processes killed at random moments from fixed seeds: nothing is lost, repeated or left behind.

SFUMATO_CHAOS_SHARE=0.1 runs a tenth of the campaign.
"""

import math
import os
import signal
import time
from collections import Counter

import pytest

pytestmark = pytest.mark.slow

SHARE = float(os.environ.get("SFUMATO_CHAOS_SHARE", "1"))
INLINE_KILLS, RAY_KILLS, WORKER_KILLS, PAIRS = (
    math.ceil(SHARE * number) for number in (150, 50, 50, 20)
)
PHASES = {"before the first task", "in a task", "between tasks", "after the last task"}
MAX_ATTEMPTS = 3  # workers that a task may cost
PATIENCE_S = 300.0


def test_inline_drivers(campaign, forker, rng):
    these = campaign(1)
    while these.kills < INLINE_KILLS:
        these.kill_somewhere(forker, rng, these.seconds)
    these.attempt(forker, PATIENCE_S)
    these.show("inline drivers")
    assert these.repeated == []
    assert these.doubles == 0
    assert SHARE < 1 or set(these.phases) == PHASES


@pytest.mark.ray
def test_ray_drivers(campaign, ray_drivers, rng):
    """Only the driver is killed: its Ray must end by itself, and not be in the way of the next."""
    these, began = campaign(1), time.monotonic()
    these.attempt(ray_drivers, PATIENCE_S)
    seconds = time.monotonic() - began
    while these.kills < RAY_KILLS:
        these.kill_somewhere(ray_drivers, rng, seconds)
    these.attempt(ray_drivers, PATIENCE_S)
    left = ray_drivers.left(30)
    these.show("ray drivers", f", {len(left)} processes left")
    assert left == set()
    assert these.repeated == []
    assert these.doubles == 0
    assert SHARE < 1 or set(these.phases) == PHASES


@pytest.mark.ray
def test_workers(campaign, ray_drivers, rng):
    these = campaign(2)
    while these.kills < WORKER_KILLS:
        driver, lost = ray_drivers.start(these.place), Counter()
        while (code := driver.wait(rng.uniform(0, 0.8))) is None:
            last = {entry.pid: entry for entry in these.place.journal()}
            alive = [pid for pid in last if os.path.exists(f"/proc/{pid}")]
            # A task that has cost two workers is left alone: a third would fail it. A worker may
            # have been given its next task without having begun it, so some are failed still.
            alive = [pid for pid in alive if lost[last[pid].key] < MAX_ATTEMPTS - 1]
            if alive and these.kills < WORKER_KILLS:
                pid = rng.choice(alive)
                os.kill(pid, signal.SIGKILL)
                these.kills += 1
                in_task = last[pid].event == "start"
                these.phases["in a task" if in_task else "between tasks"] += 1
                lost[last[pid].key] += in_task
        these.look()
        errors = these.place.tables.frame("failures")["error"]
        if code == 1 and len(errors) and all("gave up after it cost 3" in e for e in errors):
            these.phases["that made a task be given up"] += 1
            these.attempt(ray_drivers, PATIENCE_S)
        else:
            assert code == 0, these.place.said()
            these.complete()
    left = ray_drivers.left(30)
    these.show("workers", f", {len(left)} processes left")
    assert left == set()
    assert these.repeated == []
    assert these.doubles == 0


def test_two_drivers_on_one_store(campaign, forker, rng):
    """They may compute a task twice; one copy stays."""
    these = campaign(1)
    for _ in range(PAIRS):
        first = forker.start(these.place)
        code = first.wait(rng.uniform(0, these.seconds / 2))
        second = forker.start(these.place)
        codes = (first.wait(PATIENCE_S) if code is None else code, second.wait(PATIENCE_S))
        assert codes == (0, 0), these.place.said()
        assert "warning" not in these.place.said()
        these.phases["both at work"] += code is None
        these.complete()
    these.show("two drivers on one store")
    assert SHARE < 1 or these.phases["both at work"] > PAIRS // 2
