"""Every part of a cluster breaks at random moments from a seed: nothing is lost or run again.

SFUMATO_CHAOS_SHARE=0.1 runs a tenth of the campaign.
"""

import math
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage._mlflow import connect
from tests.chaos.conftest import PATIENCE_S, Place
from tests.chaos.nodes.clusters import Cluster, Drivers
from tests.chaos.nodes.storm import Served, Server, Storm

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SHARE = float(os.environ.get("SFUMATO_CHAOS_SHARE", "1"))
FAULTS = math.ceil(SHARE * 42)
NUM_SEEDS = 24
DISK_BYTES = 128 * 2**20
EVERY_S = (0.5, 7.0)  # between faults


@pytest.fixture
def storm(
    four: Cluster,
    can_hide: str,
    done_before: Callable[[int], Place],
    tmp_path: Path,
    rng: random.Random,
) -> Iterator[Storm]:
    before = done_before(NUM_SEEDS)
    place = Served(four.hidden, before.seeds, tmp_path)
    place.store.mkdir()
    if not can_hide:
        disk = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(place.store)]
        subprocess.run(disk, check=True)
    new_database = tmp_path / "new.db"
    connect(f"sqlite:///{new_database}")
    server = Server(tmp_path, four.environment)
    server.start()
    drivers = Drivers.on(four, "--tracking-uri", server.uri)
    storm = Storm(four, drivers, place, before, server, new_database, rng)
    storm.begin()
    yield storm
    if storm.driver is not None:
        storm.driver.kill()
    server.kill()
    if not can_hide:
        subprocess.run(["umount", "-l", str(place.store)], check=True)


def test_every_part_breaks(storm: Storm, can_hide: str) -> None:
    kinds: dict[str, Callable[[], bool]] = {
        "worker killed": storm.kill_worker,
        "node killed": storm.kill_node,
        "node left": storm.have_node_leave,
        "driver killed": storm.kill_driver,
        "object stores full": storm.fill_objects,
        "MLflow server killed": storm.kill_server,
        "disk full": storm.fill_disk,
    }
    if can_hide:
        del kinds["disk full"]
    began = time.monotonic()
    deck: list[str] = []
    while storm.faults.total() < FAULTS:
        if (code := storm.go_on(storm.rng.uniform(*EVERY_S))) is not None:
            storm.judge(code)
            continue
        if not deck:
            deck = [*kinds, "worker killed"]
            storm.rng.shuffle(deck)
        kind = deck.pop()
        if not kinds[kind]():
            deck.insert(0, kind)  # nothing was there to break
        else:
            storm.faults[kind] += 1
            print(f"{time.monotonic() - began:4.0f} s  {kind}", flush=True)  # noqa: T201
    completed = storm.outcomes["completed"]
    while storm.outcomes["completed"] == completed:
        code = storm.go_on(PATIENCE_S)
        assert code is not None, f"it neither ends nor fails: {storm.place.said()}"
        storm.judge(code)
    assert storm.drivers.left(10) == set()
    joined = {name: num for name, num in storm.ran.items() if name != "head"}
    lines = [f"{num:5}  {kind}" for kind, num in storm.faults.items()]
    lines += [f"{num:5}  runs {what}" for what, num in sorted(storm.outcomes.items())]
    lines += [
        f"{storm.tasks:5}  tasks done, by {len(joined)} nodes beside the head: {joined}",
        f"{len(storm.again):5}  finished tasks begun again",
        f"{storm.doubles:5}  computed twice",
        *(f"{num:5}  seconds at most {what}" for what, num in storm.slowest.items()),
        f"{time.monotonic() - began:5.0f}  seconds",
    ]
    print("\n" + "\n".join(lines))  # noqa: T201
    assert storm.again == []
    later = [num for name, num in joined.items() if name and int(name.lstrip("seblindg")) > 3]
    assert not storm.faults["node killed"] or sum(later) > 0, "nodes that joined were not used"
