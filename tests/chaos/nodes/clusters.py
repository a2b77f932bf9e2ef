"""Ray clusters of several nodes on this machine, to be broken, and drivers that work on them."""

import os
import secrets
import select
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.chaos.conftest import PATIENCE_S, Driver, Place, marked

HERE = Path(__file__).parent
STORE_BYTES = 80 * 2**20  # of each node's object store: the least that Ray takes is 75 MiB
NODE = "SFUMATO_CHAOS_NODE"


@dataclass
class Node:
    """A node: `ray start` and what it started.

    Attributes:
        name: what its processes have in their environment.
        sees: whether the store is there.
        folder: for its temporary files; no other node has it.
    """

    name: str
    sees: bool
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def out(self) -> Path:
        return self.folder / "out.txt"

    @property
    def mark(self) -> str:
        return f"{NODE}={self.name}"

    @property
    def is_up(self) -> bool:
        return "Ray runtime started" in self.out.read_text()

    @property
    def caches(self) -> list[Path]:
        """What runs have left on it."""
        return list(self.folder.glob("sfumato-*/*"))

    def kill(self) -> None:
        """All its processes at once, as when a machine loses power."""
        while found := marked(self.mark):
            for pid in found:
                kill(pid)
        self.process.wait()

    def leave(self) -> None:
        """Ask it to leave the cluster."""
        self.process.terminate()


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, how)


@dataclass
class Cluster:
    """Nodes that know each other. Everything they start can be told by its environment.

    Attributes:
        folder: short, as the paths of Ray's sockets below may have 107 characters only.
        hidden: what some nodes do not see; the stores lie there.
    """

    folder: Path
    hidden: Path
    mark: str = field(default_factory=lambda: f"SFUMATO_CHAOS={uuid.uuid4().hex}")
    nodes: dict[str, Node] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    _made: int = 0
    _homes: dict[int, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return (self.folder / "head" / "ray_current_cluster").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        """For whatever has to do with this cluster."""
        name, _, value = self.mark.partition("=")
        return {
            **os.environ,
            name: value,
            # With the tasks of bad_tasks.py.
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.getenv("PYTHONPATH")])]),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_raylet_start_wait_time_s": "90",  # nodes start together, on few cores
            "SPT_NOENV": "1",  # else processes write their titles over the mark
        }

    def start_head(self, num_cpus: int = 1) -> Node:
        head = ("--head", "--port=0", "--include-dashboard=false")
        node = self._start("head", True, [*head, f"--num-cpus={num_cpus}"])
        self.await_up()
        return node

    def add(self, *, sees: bool) -> Node:
        """Start one more; it joins some seconds later."""
        self._made += 1
        name = f"{'seeing' if sees else 'blind'}{self._made}"
        return self._start(name, sees, [f"--address={self.address}", "--num-cpus=1"])

    def await_up(self) -> None:
        """Until all that were started have joined."""
        until = time.monotonic() + PATIENCE_S
        while down := [node for node in self.nodes.values() if not node.is_up]:
            for node in down:
                assert node.process.poll() is None, node.out.read_text()
            assert time.monotonic() < until, [node.out.read_text() for node in down]
            select.select([], [], [], 0.1)

    def drop(self, node: Node) -> None:
        """Know a node no more that was made to end."""
        del self.nodes[node.name]

    def node_of(self, pid: int) -> str:
        """The name of the node a worker is or was on; empty if it was gone before it was seen."""
        if pid not in self._homes:
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                environment = []
            found = [e.decode() for e in environment if e.startswith(f"{NODE}=".encode())]
            if not found:
                return ""
            self._homes[pid] = found[0].partition("=")[2]
        return self._homes[pid]

    def close(self) -> None:
        while found := marked(self.mark):
            for pid in found:
                kill(pid)
            select.select([], [], [], 0.1)
        for node in self.nodes.values():
            node.process.wait()

    def _start(self, name: str, sees: bool, options: list[str]) -> Node:
        folder = self.folder / name
        folder.mkdir()
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
        ray += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        # In one folder, nodes that start at once may take the same names for their sockets.
        ray += [f"--temp-dir={folder}"]
        if not sees:  # a disk of its own lies over the stores
            hide = f'mount -t tmpfs none "{self.hidden}" && exec "$@"'
            ray = ["unshare", "-m", "sh", "-c", hide, "sh", *ray]
        with (folder / "out.txt").open("wb") as out:
            process = subprocess.Popen(
                ray,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**self.environment, NODE: name, "TMPDIR": str(folder)},
                start_new_session=True,
            )
        self.nodes[name] = Node(name, sees, folder, process)
        return self.nodes[name]


@dataclass
class Drivers:
    """Starts drivers that can be told from all else by their environment."""

    environment: dict[str, str]
    options: tuple[str, ...]
    mark: str = field(default_factory=lambda: f"SFUMATO_CHAOS_DRIVER={uuid.uuid4().hex}")

    @classmethod
    def on(cls, cluster: Cluster, *options: str) -> "Drivers":
        return cls(cluster.environment, ("--address", cluster.address, *options))

    def start(self, place: Place) -> Driver:
        return self.call(place, ["-m", "orchestrator", *place.argv(*self.options)[1:]])

    def call(self, place: Place, argv: list[str]) -> Driver:
        name, _, value = self.mark.partition("=")
        with place.out.open("ab") as out:
            driver = subprocess.Popen(
                [sys.executable, *argv],
                stdout=out,
                stderr=out,
                env={**self.environment, name: value, "PYTHONUNBUFFERED": "1"},
                # What a shell puts in the background ignores SIGINT, and so would this.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )
        return Driver(driver.pid, driver)

    def left(self, seconds: float) -> set[str]:
        """What goes on, so many seconds after every driver has ended."""
        until = time.monotonic() + seconds
        while (found := marked(self.mark)) and time.monotonic() < until:
            select.select([], [], [], 0.1)
        return set(found.values())
