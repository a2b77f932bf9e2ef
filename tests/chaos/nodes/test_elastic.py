"""A node that joins is used within seconds; one that is lost costs what ran there."""

import time
from collections.abc import Callable

import pytest

from tests.chaos.conftest import PATIENCE_S, Place
from tests.chaos.nodes.clusters import Cluster, Drivers

pytestmark = [pytest.mark.slow, pytest.mark.ray]
NUM_SEEDS = 24
PAUSE_S = 5.0  # others go on meanwhile
SOON_S = 30.0  # a process starts and imports torch there, on a machine that is busy


@pytest.mark.parametrize("kind", ["seeing", "blind"])
def test_a_node_joins_and_another_is_lost(
    kind: str,
    new_cluster: Callable[[], Cluster],
    can_hide: str,
    done_before: Callable[[int], Place],
) -> None:
    if kind == "blind" and can_hide:
        pytest.skip(can_hide)
    cluster = new_cluster()
    cluster.start_head()
    before = done_before(NUM_SEEDS)
    num_tasks = len(before.finished())
    place = Place(cluster.hidden, before.seeds)
    driver = Drivers.on(cluster).start(place)

    def at_work(node: str) -> set[int]:
        """Workers of a node that are in a task."""
        last = {entry.pid: entry.event for entry in place.journal()}
        return {p for p, event in last.items() if cluster.node_of(p) == node and event == "start"}

    def begun(node: str) -> list[str]:
        journal = place.journal()
        return [e.key for e in journal if e.event == "start" and cluster.node_of(e.pid) == node]

    def wait(done: Callable[[], object]) -> float:
        until = time.monotonic() + PATIENCE_S
        while not done():
            assert driver.wait(0.005) is None, place.said()
            assert time.monotonic() < until, place.said()
        return time.monotonic()

    wait(lambda: at_work("head"))
    added = cluster.add(sees=kind == "seeing")
    joined = wait(lambda: added.is_up)
    used = wait(lambda: at_work(added.name))
    print(f"\n{kind}: first task {used - joined:.1f} s after `ray start` returned")  # noqa: T201
    wait(lambda: len(begun(added.name)) > 5 and at_work(added.name))
    added.kill()
    left = heard = time.monotonic()
    silent, num = 0.0, len(place.journal())
    while (code := driver.wait(0.05)) is None:
        now = time.monotonic()
        assert now < left + PATIENCE_S, place.said()
        if len(place.journal()) > num:
            heard, num = now, len(place.journal())
        elif num < 2 * num_tasks:
            silent = max(silent, now - heard)
    assert code == 0, place.said()
    assert place.faults(before) == []
    journal = place.journal()
    done = {(e.pid, e.key) for e in journal if e.event == "done"}
    lost = [e for e in journal if e.event == "start" and (e.pid, e.key) not in done]
    assert {cluster.node_of(e.pid) for e in lost} <= {added.name}
    assert len(lost) <= 1, "it had one worker"
    print(  # noqa: T201
        f"{kind}: {len(begun(added.name))} tasks there, {len(lost)} lost with it of"
        f" {len(journal) // 2}; nothing began or ended for {silent:.1f} s at most,"
        f" the run ended {time.monotonic() - left:.0f} s later"
    )
    assert used - joined < SOON_S
    assert silent < PAUSE_S, "the whole run waited for the node that was lost"
    cluster.close()
