"""A run in numbers: sums that hold after any history, and the same numbers read elsewhere."""

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.check import load_experiment
from orchestrator.count import Count, Desk, Snapshot
from orchestrator.plan import make_plan
from orchestrator.progress import draw, line
from orchestrator.resume import Prepared, Store, compare

WORKERS = ("w1", "w2", "w10")
STEPS = st.tuples(
    st.sampled_from(["join", "lose", "start", "stop", "finish", "fail"]),
    st.sampled_from(WORKERS),
    st.integers(0, 99),
)


@pytest.fixture(scope="module")
def prepared(module_lab: Any) -> Prepared:
    """The small experiment beside an empty store."""
    plan = make_plan(load_experiment(str(module_lab.file())), None)
    return compare(plan, Store(module_lab.root / "none"), repair=False)


def fields(**changes: Any) -> Snapshot:
    kinds: Mapping[str, tuple[int, int]] = {"RunAttack": (2, 5)}
    desks = (Desk("w1", "n1"), Desk("w2", "n2", True, "ab" * 32, "RunAttack gap", 3.5))
    told = Snapshot(
        "tiny", "host", 7, "2026-01-02T03:04:05.678+00:00", 5, 2, 1, 3, kinds, desks, 4, 0.5, 9, 8
    )
    return replace(told, **changes)


@given(st.lists(STEPS, max_size=80), st.integers(0, 5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_hold_after_any_history(
    prepared: Prepared, steps: list[tuple[str, str, int]], num_cached: int
) -> None:
    """Workers die, tasks run twice, fail and run again, or were in the store and are damaged."""
    tasks = list(prepared.plan.tasks.values())
    count = Count()
    count.add(replace(prepared, needed=prepared.needed[num_cached:]))
    present: set[str] = set()
    running: dict[str, Any] = {}
    ended: dict[str, bool] = {}
    for what, worker, i in steps:
        if what == "join" and worker not in present:
            count.joined(worker, "node", gpu=False)
            present.add(worker)
        elif what == "lose" and worker in present:
            count.lost(worker)
            present.remove(worker)
            running.pop(worker, None)
        elif what == "start" and worker in present - running.keys():
            task = tasks[i % len(tasks)]
            if task in running.values():
                continue
            count.started(worker, task)
            running[worker] = task
            ended.pop(task.key, None)
        elif what == "stop" and worker in running:
            count.stopped(worker)
            running.pop(worker)
        elif what in ("finish", "fail") and worker in running:
            task = running.pop(worker)
            count.ended(worker, task, 0.5 if what == "finish" else None)
            ended[task.key] = what == "finish"
        told = count.snapshot()
        assert told.finished == sum(ended.values())
        assert told.failed == len(ended) - told.finished
        assert told.total + told.cached == len(tasks)
        assert sum(num for _, num in told.kinds.values()) == told.total
        assert sum(n for n, _ in told.kinds.values()) == told.finished + told.failed
        assert all(0 <= n <= num for n, num in told.kinds.values())
        assert {desk.worker for desk in told.desks} == present
        busy = {desk.worker: desk.key for desk in told.desks if desk.key}
        assert busy == {at: task.key for at, task in running.items()}
        assert [desk.worker for desk in told.desks] == [w for w in WORKERS if w in present]
        assert 0 <= told.utilisation <= 1
        assert told.left_s >= 0
        assert told.gone_s >= 0
        assert Snapshot.read(json.loads(json.dumps(told.plain()))) == told
        assert draw(told)
        assert line(told)


def test_what_comes_to_it_is_counted_once(prepared: Prepared) -> None:
    """A search adds plans that share tasks; a task that ended stays ended."""
    count = Count()
    half = replace(prepared, needed=prepared.needed[::2])
    count.add(half)
    first = prepared.plan.tasks[half.needed[0]]
    count.joined("w1", "", gpu=False)
    count.started("w1", first)
    count.ended("w1", first, 0.1)
    before = count.snapshot()
    count.add(prepared)
    after = count.snapshot()
    assert (after.total, after.finished, after.cached) == (before.total, 1, before.cached)


def test_time_left_is_what_alike_tasks_took_over_who_works(prepared: Prepared) -> None:
    count = Count()
    count.add(prepared)
    tasks = prepared.plan.tasks.values()
    assert count.left_s == pytest.approx(prepared.expected_s)
    alike = [task for task in tasks if (task.kind, task.name) == ("RunAttack", "gap")]
    rest = prepared.expected_s - sum(prepared.seconds[task.key] for task in alike)
    count.joined("w1", "", gpu=False)
    count.started("w1", alike[0])
    count.ended("w1", alike[0], 100.0)
    assert count.left_s == pytest.approx(rest + 100.0 * (len(alike) - 1))
    for worker, task in (("w1", alike[1]), ("w2", alike[2])):
        count.joined(worker, "", gpu=False)
        count.started(worker, task)
    assert count.left_s == pytest.approx((rest + 100.0 * (len(alike) - 1)) / 2, abs=2)


def test_it_may_be_asked_while_it_is_told(prepared: Prepared) -> None:
    count = Count()
    count.add(replace(prepared, needed=()))
    over = threading.Event()
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            while not over.is_set():
                told = count.snapshot()
                assert sum(num for _, num in told.kinds.values()) == told.total
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for i in range(30):
        for j, task in enumerate(prepared.plan.tasks.values()):
            count.joined(f"w{i}.{j}", f"n{j % 3}", gpu=False)
            count.started(f"w{i}.{j}", task)
            count.ended(f"w{i}.{j}", task, 0.1)
            count.lost(f"w{i}.{j}")
    over.set()
    thread.join()
    assert faults == []
    assert count.snapshot().finished == len(prepared.plan.tasks)


def test_nodes_gather_their_workers() -> None:
    told = fields()
    assert {node: [desk.worker for desk in desks] for node, desks in told.nodes.items()} == {
        "n1": ["w1"],
        "n2": ["w2"],
    }
    assert "1 of 2 workers busy on 2 nodes" in line(told)
    assert "4 workers waiting for a place" in line(told)
    assert "1 failed" in line(told)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"kinds": 3},
        {"kinds": {"a": [1]}},
        {"desks": [{"node": "n"}]},
        {"pid": "1"},
        {"pid": 0},
        {"updated": "yesterday"},
        {"updated": "2026-01-02T03:04:05"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_what_is_no_snapshot_is_refused(broken: dict[str, Any]) -> None:
    plain = {**fields().plain(), **broken} if broken else {}
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        Snapshot.read(plain)


def test_a_snapshot_of_another_store_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "told.json"
    file.write_text(json.dumps(fields().plain()))
    assert Snapshot.read(json.loads(file.read_text())) == fields()
