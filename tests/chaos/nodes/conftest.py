"""A cluster of four nodes, others to be made, and stores that nothing happened to."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import PATIENCE_S, Forker, Place
from tests.chaos.nodes.clusters import Cluster


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for a Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def can_hide() -> str:
    """Why a node cannot be kept from seeing the store; empty if it can."""
    if shutil.which("unshare") is None:
        return "needs unshare"
    with tempfile.TemporaryDirectory() as folder:
        asked = ["unshare", "-m", "mount", "-t", "tmpfs", "none", folder]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return f"mounting is not permitted here: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="session")
def new_cluster(memory: Callable[[], Path]) -> Iterator[Callable[[], Cluster]]:
    """Makes clusters without a node yet; they end with the tests."""
    made: list[Cluster] = []

    def make() -> Cluster:
        made.append(Cluster(Path(tempfile.mkdtemp(prefix="ray")), memory()))
        return made[-1]

    try:
        yield make
    finally:
        for cluster in made:
            cluster.close()
            shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def four(new_cluster: Callable[[], Cluster], can_hide: str) -> Cluster:
    """Four nodes with a worker each, of which two do not see the stores where that can be."""
    cluster = new_cluster()
    cluster.start_head()
    for sees in (True, bool(can_hide), bool(can_hide)):
        cluster.add(sees=sees)
    cluster.await_up()
    return cluster


@pytest.fixture(scope="session")
def done_before(forker: Forker, memory: Callable[[], Path]) -> Callable[[int], Place]:
    """A finished store of the experiment with so many seeds."""
    made: dict[int, Place] = {}

    def make(num_seeds: int) -> Place:
        if num_seeds not in made:
            place = Place(memory(), tuple(range(num_seeds)))
            assert forker.start(place).wait(PATIENCE_S) == 0, place.said()
            assert place.faults(place) == []
            made[num_seeds] = place
        return made[num_seeds]

    return make
