"""A task that always kills its worker, and one that never ends: the rest finishes."""

import json
from collections import Counter

import pytest

from tests.chaos.conftest import PATIENCE_S, Place
from tests.chaos.nodes.clusters import HERE, Cluster, Drivers

pytestmark = [pytest.mark.slow, pytest.mark.ray]
LIMIT_S = 5
MAX_ATTEMPTS = 3
NUM_GOOD = 20


@pytest.fixture(params=["seeing", "blind"])
def two(request, new_cluster, can_hide) -> Cluster:
    """Two workers, both on nodes that see the store, or neither."""
    if request.param == "blind" and can_hide:
        pytest.skip(can_hide)
    cluster = new_cluster()
    cluster.start_head(num_cpus=0)
    for _ in range(2):
        cluster.add(sees=request.param == "seeing")
    cluster.await_up()
    yield cluster
    cluster.close()


def test_bad_tasks_cost_only_themselves(two: Cluster) -> None:
    place, drivers = Place(two.hidden, ()), Drivers.on(two)
    marks = two.folder / "marks"
    marks.mkdir()
    arguments = [str(place.store), two.address, str(LIMIT_S), str(marks)]
    driver = drivers.call(place, [str(HERE / "drive_bad.py"), *arguments])
    code = driver.wait(PATIENCE_S)
    said = place.said()
    assert code == 0, said
    assert "Traceback" not in said
    told = json.loads(said.splitlines()[-1])
    assert set(told["failed"]) == {"poison 0", "hangs 0"}
    assert f"gave up after it cost {MAX_ATTEMPTS} workers" in told["failed"]["poison 0"]
    assert f"did not end within {LIMIT_S} s" in told["failed"]["hangs 0"]
    assert told["blocked"] == {"good 100": "poison 0", "good 101": "hangs 0"}
    assert told["ran"] == NUM_GOOD + 1, "all the good ones, and the one that hung once"
    assert told["stopped"] is None

    starts = Counter(entry.key for entry in place.journal() if entry.event == "start")
    keys = told["keys"]
    assert starts[keys["poison 0"]] == starts[keys["hangs 0"]] == MAX_ATTEMPTS
    assert starts[keys["hangs once 0"]] == 2
    pids = {e.pid for e in place.journal() if e.key == keys["poison 0"]}
    assert len(pids) == MAX_ATTEMPTS
    rows = place.tables.frame("failures").set_index("key")
    assert len(rows) == 2
    for name in ("poison 0", "hangs 0"):
        row = rows.loc[keys[name]]
        assert row["attempts"] == MAX_ATTEMPTS
        assert row["error"] == told["failed"][name]
        last = [e.pid for e in place.journal() if e.key == keys[name]][-1]
        assert f"{name} in process {last}" in row["log_tail"], row["log_tail"]
    assert not drivers.left(5)
    assert [path for node in two.nodes.values() for path in node.caches] == []
    assert not list(place.store.rglob(".draft-*"))
