"""A driver at work on a cluster, and everything that happens to it and around it."""

import http.client
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.conftest import PATIENCE_S, Driver, Entry, Place
from tests.chaos.nodes.clusters import HERE, Cluster, Drivers, Node, kill

__all__ = ["MAX_ATTEMPTS", "Served", "Server", "Storm"]

MAX_ATTEMPTS = 3  # workers that a task may cost
HOLD_S = 6.0  # how long room is taken


@dataclass(frozen=True)
class Served(Place):
    """A store on a small disk of its own, whose history is on a server's."""

    server: Path = Path()

    @property
    def history(self) -> Path:
        return self.server / "server.db"

    def wipe(self) -> None:
        for path in self.store.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (self.out, self.root / "journal.txt"):
            path.unlink(missing_ok=True)

    def fill(self) -> Path:
        """Take all room on the disk; gives the file to delete."""
        ballast = self.store / "ballast"
        with ballast.open("wb") as file:
            while free := os.statvfs(self.store).f_bavail:
                try:
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, 2) + 4096 * free)
                except OSError:  # a task took some of it
                    continue
        return ballast


@dataclass
class Server:
    """An MLflow server on loopback, over a SQLite file."""

    folder: Path
    environment: dict[str, str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """It answers some seconds later."""
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--default-artifact-root", (self.folder / "artifacts").as_uri()]
        env = {**self.environment, "MLFLOW_DISABLE_TELEMETRY": "true"}
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # it starts in half the time so
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
            )

    def await_up(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                asked.request("GET", "/health")
                assert asked.getresponse().status == 200
                return
            except OSError:
                assert time.monotonic() < until, (self.folder / "server.log").read_text()
                select.select([], [], [], 0.1)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Storm:
    """A driver that works, and what happens to it and around it."""

    cluster: Cluster
    drivers: Drivers
    place: Served
    before: Place
    server: Server
    new_database: Path
    rng: random.Random
    driver: Driver | None = None
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)  # node -> tasks begun
    tasks: int = 0
    again: list[str] = field(default_factory=list)  # begun although they were done
    doubles: int = 0
    slowest: Counter[str] = field(default_factory=Counter)  # seconds
    _cost: Counter[str] = field(default_factory=Counter)  # key -> workers lost with it
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    _seen: int = 0
    _done: set[str] = field(default_factory=set)

    def go_on(self, seconds: float) -> int | None:
        """So many seconds pass; gives the driver's exit code if it ended."""
        if self.driver is None:
            self.driver = self.drivers.start(self.place)
        until = time.monotonic() + seconds
        code = None
        while code is None and time.monotonic() < until:
            code = self.driver.wait(0.1)
            self.look()
            now = time.monotonic()
            for due in [entry for entry in self._later if entry[0] <= now]:
                self._later.remove(due)
                due[1]()
        if code is not None:
            self.driver = None
        return code

    def look(self) -> None:
        """Take note of what was begun and done meanwhile."""
        journal = self.place.journal()
        for entry in journal[self._seen :]:
            if entry.event == "start":
                self.ran[self.cluster.node_of(entry.pid)] += 1
                self.again += [entry.key] if entry.key in self._done else []
            else:
                self.doubles += entry.key in self._done
                self.tasks += 1
                self._done.add(entry.key)
        self._seen = len(journal)

    def at_work(self) -> list[Entry]:
        """The last that was heard of every worker there is."""
        last = {entry.pid: entry for entry in self.place.journal()}
        return [entry for pid, entry in last.items() if os.path.exists(f"/proc/{pid}")]

    def spared(self, entries: list[Entry]) -> bool:
        """Whether one of these tasks has cost all workers but one that it may."""
        held = [e.key for e in entries if e.event == "start"]
        return any(self._cost[key] >= MAX_ATTEMPTS - 1 for key in held)

    def lose(self, entries: list[Entry]) -> None:
        self._cost.update(entry.key for entry in entries if entry.event == "start")

    # -- faults: each gives whether there was something to break -------------------------------

    def kill_worker(self) -> bool:
        there = [entry for entry in self.at_work() if not self.spared([entry])]
        if not there:
            return False
        victim = self.rng.choice(there)
        self.lose([victim])
        kill(victim.pid)
        return True

    def kill_node(self) -> bool:
        return self._lose_node(Node.kill)

    def have_node_leave(self) -> bool:
        return self._lose_node(Node.leave)

    def _lose_node(self, how: Callable[[Node], None]) -> bool:
        up = [n for n in self.cluster.nodes.values() if n.name != "head" and n.is_up]
        if not up:
            return False
        node = self.rng.choice(up)
        there = [e for e in self.at_work() if self.cluster.node_of(e.pid) == node.name]
        if self.spared(there):
            return False
        self.lose(there)
        how(node)
        self.cluster.drop(node)
        wait_s = self.rng.uniform(0, 4)
        self._later.append((time.monotonic() + wait_s, lambda: self.cluster.add(sees=node.sees)))
        return True

    def kill_driver(self) -> bool:
        if self.driver is None:
            return False
        code, self.driver = self.driver.kill(), None
        if code is not None:  # it had ended a moment before
            self.judge(code)
            return False
        self.outcomes["resumed after a kill"] += 1
        return True

    def fill_objects(self) -> bool:
        command = [sys.executable, str(HERE / "fill_objects.py"), self.cluster.address]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.cluster.environment,
        )
        assert process.stdout is not None
        until = time.monotonic() + 60
        while not select.select([process.stdout], [], [], 0)[0]:
            if time.monotonic() > until or self.go_on(0.1) is not None:
                break
        full = process.poll() is None and bool(select.select([process.stdout], [], [], 0)[0])

        def free() -> None:
            process.kill()
            process.communicate()

        self._later.append((time.monotonic() + HOLD_S, free))
        return full

    def kill_server(self) -> bool:
        self.server.kill()
        self._later.append((time.monotonic() + self.rng.uniform(0, HOLD_S), self.server.start))
        return True

    def fill_disk(self) -> bool:
        """The run stops and says why; with room again, the same command resumes."""
        said = len(self.place.said())
        ballast = self.place.fill()
        began = time.monotonic()
        code = self.go_on(PATIENCE_S)
        ballast.unlink()
        assert code in (0, 1, 2), self.place.said()
        if code == 0:  # it had written all
            self.judge(code)
            return False
        words = self.place.said()[said:]
        assert "cannot write to the store" in words, words
        assert "Free space" in words, words
        self.slowest["to stop at a full disk"] = max(
            self.slowest["to stop at a full disk"], round(time.monotonic() - began)
        )
        self.outcomes["stopped with its message, resumed"] += 1
        return True

    # -- what must be true ---------------------------------------------------------------------

    def judge(self, code: int) -> None:
        """A driver has ended by itself."""
        if code == 1:
            errors = self.place.tables.frame("failures")["error"]
            known = [f"gave up after it cost {MAX_ATTEMPTS}" in error for error in errors]
            assert known, self.place.said()
            assert all(known), self.place.said()
            self.outcomes["a task was given up, resumed"] += 1
            self._cost.clear()
            return
        assert code == 0, self.place.said()
        self.settle()
        for _ in range(2):  # rows that a server which was away has not got yet
            if self.place.tracked() == self.before.tracked():
                break
            assert self.go_on(PATIENCE_S) == 0, self.place.said()
            self.outcomes["its history sent later"] += 1
        assert self.place.faults(self.before) == []
        assert self.again == []
        left = {pid for e in self.place.journal() if os.path.exists(f"/proc/{(pid := e.pid)}")}
        until = time.monotonic() + 20
        while left := {pid for pid in left if os.path.exists(f"/proc/{pid}")}:
            assert time.monotonic() < until, f"workers go on: {left}"
            select.select([], [], [], 0.1)
        caches = [path for node in self.cluster.nodes.values() for path in node.caches]
        assert caches == []
        self.outcomes["completed"] += 1
        self.begin()

    def begin(self) -> None:
        """A store and a history without anything in them."""
        self.place.wipe()
        self._seen, self._done = 0, set()
        self._cost.clear()
        self.server.kill()
        shutil.copy(self.new_database, self.place.history)
        self.server.start()
        self.server.await_up()

    def settle(self) -> None:
        """Nothing that was begun is left to be done."""
        for _, then in self._later:
            then()
        self._later.clear()
        self.server.await_up()
