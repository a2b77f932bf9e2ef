"""Drivers to be killed, the stores they leave, and what must be true of them whenever one ends."""

import json
import math
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.tables import Tables, equal

EXPERIMENT: dict[str, Any] = {
    "name": "chaos",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 32, "classes": 4, "clusters": 4},
            "split": {"members": 120, "reference": 120, "nonmembers": 120},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 6, "hidden": [32]},
    "defenses": ["none", {"name": "purifier", "epochs": 2}, ["l2", "onehot"]],
    "attacks": ["gap", {"name": "lira", "num_shadows": 4}, {"name": "nsh", "epochs": 2}],
}
PATIENCE_S = 300.0

# Forked children start with everything imported, so that kills hit the work and not the imports.
FORKER = """
import json, os, sys
import mlflow, torch
import attacks.nsh, attacks.lira, defenses.purifier, storage.tables, cluster.inline
import orchestrator.plan, orchestrator.run, orchestrator.report, orchestrator.progress
from orchestrator.cli import main

def be(argv, out):
    for file in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), file)
    sys.argv = argv
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)
    os._exit(0)

for line in sys.stdin:
    asked = json.loads(line)
    if "reap" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1]), flush=True)
    else:
        pid = os.fork()
        if pid == 0:
            be(**asked)
        print(pid, flush=True)
"""


class Forker:
    """Starts inline drivers within milliseconds."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", FORKER]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, place: "Place") -> "Driver":
        return Driver(self._ask(argv=place.argv("--inline"), out=str(place.out)), self)

    def reap(self, pid: int) -> int:
        return self._ask(reap=pid)

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, **what: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


class Driver:
    """A running driver."""

    def __init__(self, pid: int, parent: "Forker | subprocess.Popen[bytes]") -> None:
        self.pid, self._parent = pid, parent
        self._ended = os.pidfd_open(pid)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None if it goes on after so many seconds."""
        if not select.select([self._ended], [], [], seconds)[0]:
            return None
        os.close(self._ended)
        if isinstance(self._parent, Forker):
            return self._parent.reap(self.pid)
        return self._parent.wait()

    def kill(self) -> int | None:
        """Its exit code if it ended by itself a moment before, else None."""
        os.kill(self.pid, signal.SIGKILL)
        code = self.wait(PATIENCE_S)
        return None if code == -signal.SIGKILL else code


@dataclass(frozen=True)
class Entry:
    """A line of a journal."""

    pid: int
    event: str
    key: str


@dataclass(frozen=True)
class Place:
    """An experiment, a store for it, and what its drivers write elsewhere."""

    root: Path
    seeds: tuple[int, ...]

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def history(self) -> Path:
        """The SQLite file of its MLflow history."""
        return self.store / "mlflow.db"

    @property
    def out(self) -> Path:
        return self.root / "out.txt"

    @property
    def tables(self) -> Tables:
        return Tables(self.store / "tables")

    def argv(self, *options: str) -> list[str]:
        file = self.root / "chaos.yaml"
        file.write_text(yaml.safe_dump({**EXPERIMENT, "seeds": list(self.seeds)}))
        journal = ("--journal", str(self.root / "journal.txt"))
        return ["sfumato", "run", str(file), "--store", str(self.store), *journal, *options]

    def journal(self) -> list[Entry]:
        try:
            lines = (self.root / "journal.txt").read_text().splitlines()
        except FileNotFoundError:
            return []
        entries = [line.split() for line in lines]
        return [Entry(int(entry[1]), entry[2], entry[4]) for entry in entries]

    def finished(self) -> set[str]:
        """The keys of all complete artifacts; present means complete."""
        return {path.name for path in self.store.glob("artifacts/[0-9a-f][0-9a-f]/*")}

    def said(self) -> str:
        return self.out.read_text() if self.out.exists() else ""

    def wipe(self) -> None:
        shutil.rmtree(self.store)
        for path in (self.out, self.root / "journal.txt"):
            path.unlink(missing_ok=True)

    def faults(self, undisturbed: "Place") -> list[str]:
        """How a store whose driver has ended well differs from what it should be."""
        tables = self.tables
        found = equal(undisturbed.tables, tables)
        if self.finished() != undisturbed.finished():
            found.append(f"{len(self.finished())} artifacts, not {len(undisturbed.finished())}")
        found += [f"left: {path}" for path in self.store.rglob(".draft-*")]
        found += [f"left: {path}" for path in self.store.glob("damaged/*")]
        rows = tables.frame("results", "chaos")
        wanted = Counter(zip(rows["task_key"], rows["label"], strict=True))
        if wanted != Counter(dict.fromkeys(wanted, 1)):
            found.append(f"rows more than once: {wanted.most_common(1)}")
        if (tracked := self.tracked()) != wanted:
            found.append(f"MLflow: {tracked - wanted} too many, {wanted - tracked} missing")
        if "Traceback" in self.said():
            found.append(self.said())
        return found

    def tracked(self) -> Counter[tuple[str, str]]:
        """How many MLflow child runs each row (task key, label) has."""
        select_ = """
            SELECT keys.value, labels.value FROM runs
            JOIN tags keys ON keys.run_uuid = runs.run_uuid AND keys.key = 'sfumato.task_key'
            JOIN tags labels ON labels.run_uuid = runs.run_uuid AND labels.key = 'sfumato.label'
            WHERE runs.lifecycle_stage = 'active' AND runs.status = 'FINISHED'
        """
        connection = sqlite3.connect(self.history)
        try:
            return Counter(connection.execute(select_).fetchall())
        finally:
            connection.close()


@dataclass
class Campaign:
    """Drivers on one store, killed and started again, and what was met on the way.

    Attributes:
        place: the store; wiped whenever a driver ends well, so that later kills meet work again.
        before: the same experiment, undisturbed.
        seconds: what that took in one process.
    """

    place: Place
    before: Place
    seconds: float
    kills: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    completions: int = 0
    tasks: int = 0
    repeated: list[str] = field(default_factory=list)
    doubles: int = 0
    began: float = field(default_factory=time.monotonic)
    _kept: set[str] = field(default_factory=set)
    _seen: int = 0

    def kill_somewhere(
        self, drivers: "Forker | RayDrivers", rng: random.Random, seconds: float
    ) -> None:
        """Start a driver and kill it at a random moment, unless it has ended by then.

        Half of the moments are drawn from its duration, half from the starts and ends of tasks:
        these fill a small part of the time, and MLflow's first steps a large one.
        """
        left = len(self.before.finished() - self.place.finished())
        if left and rng.random() < 0.5:
            self.attempt(drivers, PATIENCE_S, num_lines=rng.randint(1, 2 * left))
        else:
            self.attempt(drivers, rng.uniform(0, seconds))

    def attempt(
        self, drivers: "Forker | RayDrivers", patience_s: float, num_lines: int | None = None
    ) -> None:
        """Start a driver, and kill it after so many seconds, or so many lines in its journal."""
        driver = drivers.start(self.place)
        if num_lines is None:
            code = driver.wait(patience_s)
        else:
            wanted, until = self._seen + num_lines, time.monotonic() + patience_s
            while (code := driver.wait(0.001)) is None and len(self.place.journal()) < wanted:
                assert time.monotonic() < until, self.place.said()
        if code is None and (code := driver.kill()) is None:
            self.kills += 1
            self.phases[self._phase()] += 1
        self.look()
        if code is not None:
            assert code == 0, self.place.said()
            self.complete()

    def look(self) -> None:
        """Note what was started although its artifact was there before: present means complete."""
        journal = self.place.journal()
        started = [entry.key for entry in journal[self._seen :] if entry.event == "start"]
        self.repeated += [key for key in started if key in self._kept]
        self._kept, self._seen = self.place.finished(), len(journal)

    def complete(self) -> None:
        """All drivers have ended well: judge their store, and wipe it."""
        assert self.place.faults(self.before) == []
        done = Counter(entry.key for entry in self.place.journal() if entry.event == "done")
        self.completions += 1
        self.tasks += done.total()
        self.doubles += (done - Counter(dict.fromkeys(done, 1))).total()
        self.place.wipe()
        self._kept, self._seen = set(), 0

    def show(self, name: str, left: str = "") -> None:
        phases = ", ".join(f"{num} {phase}" for phase, num in sorted(self.phases.items()))
        print(  # noqa: T201
            f"\n{name}: {self.kills} kills ({phases or 'none'}); {self.completions} runs completed,"
            f" {self.tasks} tasks, {len(self.repeated)} finished ones run again,"
            f" {self.doubles} computed twice{left}; {time.monotonic() - self.began:.0f} s"
        )

    def _phase(self) -> str:
        """Where the driver was that has just been killed."""
        if self.place.finished() == self.before.finished():
            return "after the last task"
        last = {entry.pid: entry.event for entry in self.place.journal()[self._seen :]}
        if not last:
            return "before the first task"
        return "in a task" if "start" in last.values() else "between tasks"


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture(scope="session")
def memory() -> Iterator[Callable[[], Path]]:
    """Makes folders where nobody waits for a disk; kill -9 loses nothing that was written."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield lambda: Path(tempfile.mkdtemp(dir=folder))


@pytest.fixture(scope="session")
def undisturbed(forker: Forker, memory: Callable[[], Path]) -> Callable[[int], tuple[Place, float]]:
    """For a number of seeds a finished store, and the seconds that one process took."""

    @cache
    def make(num_seeds: int) -> tuple[Place, float]:
        place, seconds = Place(memory(), tuple(range(num_seeds))), math.inf
        for _ in range(3):
            shutil.rmtree(place.store, ignore_errors=True)
            began = time.monotonic()
            assert forker.start(place).wait(PATIENCE_S) == 0, place.said()
            seconds = min(seconds, time.monotonic() - began)
        assert place.faults(place) == []
        return place, seconds

    return make


@pytest.fixture
def campaign(
    undisturbed: Callable[[int], tuple[Place, float]], memory: Callable[[], Path]
) -> Callable[[int], Campaign]:
    """A campaign on the experiment with so many seeds."""

    def make(num_seeds: int) -> Campaign:
        before, seconds = undisturbed(num_seeds)
        return Campaign(Place(memory(), before.seeds), before, seconds)

    return make


@dataclass
class RayDrivers:
    """Starts drivers that start Ray; everything they start can be told by its environment."""

    temporary: str
    mark: str = field(default_factory=lambda: f"SFUMATO_CHAOS={uuid.uuid4().hex}")

    def start(self, place: Place) -> Driver:
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, name: value, "RAY_TMPDIR": self.temporary}
        with place.out.open("ab") as out:
            driver = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *place.argv("--workers", "2")[1:]],
                stdout=out,
                stderr=out,
                env=environment,
            )
        return Driver(driver.pid, driver)

    def left(self, seconds: float) -> set[str]:
        """What goes on, so many seconds after every driver has ended."""
        until = time.monotonic() + seconds
        while (found := marked(self.mark)) and time.monotonic() < until:
            select.select([], [], [], 0.2)
        return set(found.values())


def marked(mark: str) -> dict[int, str]:
    """The processes that carry `NAME=VALUE` in their environment: ids, and both with commands."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                command = path.with_name("cmdline").read_bytes().replace(b"\0", b" ")
                pid = path.parent.name
                found[int(pid)] = f"{pid} {command.decode(errors='replace')[:100]}"
        except OSError:
            continue
    return found


@pytest.fixture
def ray_drivers() -> Iterator[RayDrivers]:
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters only.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield RayDrivers(folder)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)
