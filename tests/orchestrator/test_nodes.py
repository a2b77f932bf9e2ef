"""A cluster of four nodes, two of which have a disk of their own: nothing differs from one node."""

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from orchestrator.check import load_experiment
from orchestrator.outcome import Options
from orchestrator.progress import Lines
from orchestrator.run import run
from storage.tables import equal

pytestmark = pytest.mark.ray

PATIENCE_S = 90.0
# A folder of its own, as nodes that start at once fight for the names of sockets in one.
MOUNT = (
    "mount -t tmpfs none {hidden} && exec {ray} start --address={address} --num-cpus=1 --block "
    "--temp-dir={own}"
)


@dataclass
class Nodes:
    """A head and three more nodes of a core each; two of them see an empty folder at `hidden`."""

    cluster: Cluster
    hidden: Path
    blind: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_blind(self) -> None:
        ray_program = Path(sys.executable).with_name("ray")
        own = self.hidden.parent / f"b{len(self.blind)}"
        address = self.cluster.address
        command = MOUNT.format(hidden=self.hidden, ray=ray_program, address=address, own=own)
        environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        self.blind.append(
            subprocess.Popen(
                ["unshare", "-m", "sh", "-c", command],
                stdout=(self.hidden.parent / f"node{len(self.blind)}.log").open("wb"),
                stderr=subprocess.STDOUT,
                env=environment,
            )
        )

    def close(self) -> None:
        for process in self.blind:
            process.terminate()
        for process in self.blind:
            process.wait(PATIENCE_S)
        self.cluster.shutdown()


class Told(Lines):
    """Progress that remembers where workers are."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.nodes: dict[str, str] = {}

    def joined(self, worker: str, node: str, gpu: bool) -> None:
        self.nodes[worker] = node
        super().joined(worker, node, gpu)


def may_unshare() -> bool:
    """Whether a process may have a view of the disk of its own."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {folder}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters only.
    with tempfile.TemporaryDirectory(prefix="n") as folder:
        hidden = Path(folder) / "h"
        hidden.mkdir()
        args = {"num_cpus": 1, "include_dashboard": False}
        nodes = Nodes(Cluster(initialize_head=True, head_node_args=args), hidden)
        try:
            num_blind = 2 if may_unshare() else 0
            for _ in range(3 - num_blind):
                nodes.cluster.add_node(num_cpus=1)
            for _ in range(num_blind):
                nodes.add_blind()
            wait(nodes.cluster, 4, Path(folder) / "node0.log")
            yield nodes
        finally:
            nodes.close()


def wait(cluster: Cluster, num: int, told: Path) -> None:
    """Until so many nodes are there."""
    until = time.monotonic() + PATIENCE_S
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        while sum(node["Alive"] for node in ray.nodes()) < num:
            assert time.monotonic() < until, told.read_text()
            select.select([], [], [], 0.2)
    finally:
        ray.shutdown()


SEEDS = [0, 1]  # work for some seconds after the last worker has joined


def test_four_nodes_give_the_bits_of_one(lab, nodes, tmp_path) -> None:
    one = type(lab)(tmp_path)
    before, _ = one.run(seeds=SEEDS)
    lab.root = nodes.hidden
    options = Options(
        store=lab.store.root,
        executor="ray",
        address=nodes.cluster.address,
        workers=4,
        journal=lab.journal,
    )
    told = Told()
    after = run(load_experiment(str(lab.file(seeds=SEEDS))), options, told)
    assert not after.failed
    assert after.ran == before.ran
    assert equal(one.store.tables, lab.store.tables) == []
    assert sorted(lab.store.artifacts.keys()) == sorted(one.store.artifacts.keys())
    assert lab.repeated() == []
    events = Counter(event for event, _ in lab.executions())
    assert events == {"start": before.ran, "done": before.ran}

    assert len(set(told.nodes.values())) == 4
    worked = Counter(told.nodes[worker] for worker in lab.store.tables.frame("tasks")["worker"])
    assert len(worked) == 4, worked
    assert list(lab.store.root.glob("live/*")) == []
    # What nodes kept for the run is gone with it.
    assert not [*Path(tempfile.gettempdir()).glob(f"sfumato-{os.getuid()}/*/artifacts")]
