"""What is done of what was planned, who does it where, and when it will end: a run in numbers."""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator._places import Places
from orchestrator.resume import Prepared
from tasks.base import Task

__all__ = ["Count", "Desk", "Snapshot"]

_Like = tuple[str, str]  # kind and name: what alike tasks share
_Stand = Literal["cached", "open", "finished", "failed"]


@dataclass(frozen=True)
class Desk:
    """A worker and what it does.

    Attributes:
        worker: its name.
        node: the machine it is on.
        gpu: whether it has (a share of) a GPU.
        key: the task it runs, empty if it is idle.
        what: that task in words.
        seconds: for how long it has run it.
    """

    worker: str
    node: str
    gpu: bool = False
    key: str = ""
    what: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        experiment: its name.
        host, pid: the driver's.
        updated: when this was true, UTC in ISO's way.
        total, finished, failed, cached: tasks.
        kinds: kind -> tasks ended, tasks in all.
        desks: the workers there are, by node.
        pending: workers that wait for a place in the cluster.
        utilisation: the share of the workers' time so far spent in tasks, in [0, 1].
        gone_s: since the run began.
        left_s: to its end, as alike tasks have taken so far.
    """

    experiment: str
    host: str
    pid: int
    updated: str
    total: int
    finished: int
    failed: int
    cached: int
    kinds: Mapping[str, tuple[int, int]]
    desks: tuple[Desk, ...]
    pending: int
    utilisation: float
    gone_s: float
    left_s: float

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Snapshot":
        """The other way.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is no snapshot.
        """
        if datetime.fromisoformat(plain["updated"]).utcoffset() is None or plain["pid"] + 0 < 1:
            raise ValueError("not when and where it was true")
        kinds = {kind: (int(n), int(of)) for kind, (n, of) in plain["kinds"].items()}
        desks = tuple(Desk(**desk) for desk in plain["desks"])
        return cls(**{**plain, "kinds": kinds, "desks": desks})

    @property
    def silent_s(self) -> float:
        """Seconds since it was true."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.updated)).total_seconds()

    @property
    def nodes(self) -> dict[str, list[Desk]]:
        """The workers of each machine."""
        found: dict[str, list[Desk]] = {}
        for desk in self.desks:
            found.setdefault(desk.node, []).append(desk)
        return found


@dataclass
class Count:
    """The numbers of a run while it goes on; may be asked from another thread than is told.

    Attributes:
        total: tasks to be done, those that ended among them.
        cached: tasks that were in the store.
        finished, failed: tasks that ended, each counted as it ended last.
        pending: workers that wait for a place in the cluster.
        kinds: kind -> tasks in all, and `left` those of them that have not ended.
    """

    total: int = 0
    cached: int = 0
    finished: int = 0
    failed: int = 0
    pending: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._experiment = ""
        self._stands: dict[str, _Stand] = {}
        self._open: Counter[_Like] = Counter()
        self._expected: dict[_Like, float] = {}
        self._measured: dict[_Like, tuple[int, float]] = {}
        self._running: dict[str, tuple[Task, float]] = {}
        self._desks: dict[str, Desk] = {}
        self._began = self._looked = time.monotonic()
        self._worked_s = self._there_s = 0.0  # in tasks that have ended; of all workers
        self._places: Places | None = None

    def add(self, prepared: Prepared) -> None:
        """Tasks to be done, the first or more of them; what is known is not counted again."""
        with self._lock:
            if self._places is None:
                self._experiment = prepared.plan.experiment.name
                self._places = Places(prepared.plan)
                self._began = self._looked = time.monotonic()
            else:
                self._places.add(prepared.plan)
            needed = set(prepared.needed)
            for key, task in prepared.plan.tasks.items():
                if key in self._stands:
                    continue
                self._expected[_like(task)] = prepared.seconds[key]
                self._stands[key] = "cached"
                self.cached += 1
                if key in needed:
                    self._open_again(task)

    def joined(self, worker: str, node: str, gpu: bool) -> None:
        """A worker is ready."""
        with self._lock:
            self._account()
            self._desks[worker] = Desk(worker, node, gpu)

    def lost(self, worker: str) -> None:
        """A worker is gone, with what it did."""
        with self._lock:
            self._account()
            self._desks.pop(worker, None)
            self._running.pop(worker, None)

    def started(self, worker: str, task: Task) -> None:
        """A worker begins a task; one that had ended may have to run once more."""
        with self._lock:
            self._account()
            self._running[worker] = (task, time.monotonic())
            self._open_again(task)

    def stopped(self, worker: str) -> None:
        """A worker has given a task back that did not end: an input of it is damaged."""
        with self._lock:
            self._account()
            self._running.pop(worker, None)

    def ended(self, worker: str, task: Task, seconds: float | None) -> None:
        """Note an end; `seconds` is None for a failure."""
        with self._lock:
            self._account()
            now = time.monotonic()
            _, since = self._running.pop(worker, (task, now))
            self._worked_s += now - since if seconds is None else seconds
            self._open_again(task)
            like = _like(task)
            self._open[like] -= 1
            self.left[task.kind] -= 1
            if seconds is None:
                self._stands[task.key] = "failed"
                self.failed += 1
                return
            self._stands[task.key] = "finished"
            self.finished += 1
            count, total = self._measured.get(like, (0, 0.0))
            self._measured[like] = (count + 1, total + seconds)

    def named(self, task: Task) -> str:
        """A task as its experiment calls it."""
        assert self._places is not None, "add() comes first"
        return self._places.named(task.key)

    @property
    def left_s(self) -> float:
        """From the durations of alike tasks measured so far, spread over the workers at work."""
        with self._lock:
            left_s = sum(count * self._each(like) for like, count in self._open.items() if count)
            now = time.monotonic()
            for task, since in self._running.values():
                left_s -= min(now - since, self._each(_like(task)))
            return max(0.0, left_s) / max(1, len(self._running))

    def snapshot(self) -> Snapshot:
        """How it stands."""
        with self._lock:
            self._account()
            now = time.monotonic()
            desks = dict(self._desks)
            for worker, (task, since) in self._running.items():
                if worker in desks:
                    desks[worker] = replace(
                        desks[worker], key=task.key, what=_words(task), seconds=now - since
                    )
            return Snapshot(
                experiment=self._experiment,
                host=socket.gethostname(),
                pid=os.getpid(),
                updated=datetime.now(UTC).isoformat(timespec="milliseconds"),
                total=self.total,
                finished=self.finished,
                failed=self.failed,
                cached=self.cached,
                kinds={kind: (num - self.left[kind], num) for kind, num in self.kinds.items()},
                desks=tuple(
                    sorted(desks.values(), key=lambda d: (d.node, len(d.worker), d.worker))
                ),
                pending=self.pending,
                utilisation=self._utilisation(now),
                gone_s=now - self._began,
                left_s=self.left_s,
            )

    def _open_again(self, task: Task) -> None:
        """Count a task as one that has not ended, whatever it was before."""
        stands = self._stands.get(task.key)
        if stands == "open":
            return
        self._stands[task.key] = "open"
        self._open[_like(task)] += 1
        self.left[task.kind] += 1
        if stands == "finished":
            self.finished -= 1
        elif stands == "failed":
            self.failed -= 1
        else:  # it was in the store, damaged as it turns out, or none of what was added
            self.cached -= stands == "cached"
            self.total += 1
            self.kinds[task.kind] += 1

    def _each(self, like: _Like) -> float:
        measured, total = self._measured.get(like, (0, 0.0))
        return total / measured if measured else self._expected.get(like, 0.0)

    def _utilisation(self, now: float) -> float:
        """The workers' time in tasks, of their time; results on their way are no work."""
        if not self._there_s:
            return 0.0
        running = self._running.keys() & self._desks.keys()
        going_s = sum(now - self._running[worker][1] for worker in running)
        return min(1.0, (self._worked_s + going_s) / self._there_s)

    def _account(self) -> None:
        """Add up the time that workers were there, and that they worked."""
        now = time.monotonic()
        gone, self._looked = now - self._looked, now
        self._there_s += gone * len(self._desks)


def _like(task: Task) -> _Like:
    return (task.kind, task.name)


def _words(task: Task) -> str:
    what = " ".join(filter(None, (task.kind, task.name, task.dataset)))
    return f"{what} seed {task.seed}"
