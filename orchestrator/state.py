"""The scheduler as a value: events in, instructions out; no clock, no threads, no I/O."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster.base import Event, InputDamaged, TaskDone, TaskFailed, WorkerJoined, WorkerLost

__all__ = ["Job", "Run", "State"]

_NEAR = 0.8  # ready jobs within this share of the first one's priority may go before it
_LOOK = 16  # and no further down the queue than this
_REMEMBERED = 32  # keys a worker is thought to hold


@dataclass(frozen=True)
class Job:
    """A task to the scheduler: what it needs, and how long it is expected to take."""

    inputs: tuple[str, ...] = ()
    seconds: float = 1.0


@dataclass(frozen=True)
class Run:
    """Instruction: run `key` on the idle `worker`."""

    worker: str
    key: str


class State:
    """What is done, running, failed and waiting; `handle` moves it on.

    Longest path first: a job's priority is the expected seconds from its start to the end of the
    plan. Among jobs of nearly the same priority a worker gets the one whose inputs it holds.
    A worker lost with a job costs the job an attempt and never counts against the worker; a job
    that costs `max_attempts` workers fails. A job that raises fails at once. What needs a failed
    job is blocked, the rest goes on.

    Attributes:
        done: keys whose artifacts exist.
        running: worker -> key.
        failed: key -> why.
        blocked: key -> the failed key it needs, perhaps through others.
        attempts: key -> workers lost, or artifacts found damaged.

    Raises:
        ValueError: for an input that is no job, or a cycle.
    """

    def __init__(
        self, jobs: Mapping[str, Job], done: Collection[str] = (), max_attempts: int = 3
    ) -> None:
        self._jobs = jobs
        self._max_attempts = max_attempts
        self.done: set[str] = set(done) & jobs.keys()
        self.running: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self._users = _users(jobs)
        self._rank = {key: i for i, key in enumerate(jobs)}
        self._priority = _priorities(jobs, self._users)
        self._missing = {
            key: sum(1 for needed in set(job.inputs) if needed not in self.done)
            for key, job in jobs.items()
        }
        self._queued: set[str] = set()
        self._ready: list[tuple[float, int, str]] = []
        for key in jobs:
            self._offer(key)
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._holds: dict[str, OrderedDict[str, None]] = {}

    @property
    def waiting(self) -> int:
        """How many jobs are neither done, running, failed nor blocked."""
        settled = len(self.done) + len(self.failed) + len(self.blocked)
        return len(self._jobs) - settled - len(set(self.running.values()) - self.done)

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing is left that could."""
        return not self.running and self.waiting == 0

    def handle(self, event: Event) -> list[Run]:
        """Take note of an event; gives what to do now. Late and repeated events do no harm."""
        match event:
            case WorkerJoined(worker):
                if worker not in self._holds:
                    self._holds[worker] = OrderedDict()
                    self._idle[worker] = None
            case WorkerLost(worker, reason):
                self._lost(worker, reason)
            case TaskDone(worker, key):
                self._leave(worker, key)
                if key in self._jobs:
                    self._finish(worker, key)
            case TaskFailed(worker, key, error):
                if self._leave(worker, key) and key not in self.done:
                    self._fail(key, error)
            case InputDamaged(worker, key, damaged, reason):
                if self._leave(worker, key):
                    self._damaged(key, damaged, reason)
        return self._assign()

    def _lost(self, worker: str, reason: str) -> None:
        self._idle.pop(worker, None)
        self._holds.pop(worker, None)
        key = self.running.pop(worker, None)
        if key is None or key in self.done or key in self.running.values():
            return
        self.attempts[key] = self.attempts.get(key, 0) + 1
        if self.attempts[key] >= self._max_attempts:
            because = f" (the last: {reason})" if reason else ""
            self._fail(key, f"gave up after it cost {self.attempts[key]} workers{because}")
        else:
            self._offer(key)

    def _leave(self, worker: str, key: str) -> bool:
        """The worker is idle again, if it was running this job."""
        if self.running.get(worker) != key:
            return False
        del self.running[worker]
        self._idle[worker] = None
        return True

    def _finish(self, worker: str, key: str) -> None:
        if key in self.done or key in self.failed:
            return
        self.done.add(key)
        self._queued.discard(key)
        self.blocked.pop(key, None)
        self._remember(worker, (*self._jobs[key].inputs, key))
        for user in self._users[key]:
            self._missing[user] -= 1
            self._offer(user)

    def _fail(self, key: str, reason: str) -> None:
        self.failed[key] = reason
        self._queued.discard(key)
        for user in self._users[key]:
            self._block(user, key)

    def _block(self, key: str, cause: str) -> None:
        """Nothing downstream of a failed job can run; what runs already is let end."""
        below = [key]
        while below:
            user = below.pop()
            settled = user in self.done or user in self.failed or user in self.blocked
            if not settled and user not in self.running.values():
                self.blocked[user] = cause
                self._queued.discard(user)
                below.extend(self._users[user])

    def _damaged(self, key: str, damaged: str, reason: str) -> None:
        """`damaged` must be made again before `key`, unless that was tried too often."""
        if damaged not in self._jobs or damaged == key:
            self._fail(key, f"cannot read {damaged[:12]}: {reason}")
            return
        if damaged in self.done:
            self.done.discard(damaged)
            self.attempts[damaged] = self.attempts.get(damaged, 0) + 1
            for user in self._users[damaged]:
                self._missing[user] += 1
                self._queued.discard(user)
            if self.attempts[damaged] >= self._max_attempts:
                times = self.attempts[damaged]
                self._fail(damaged, f"its artifact was found damaged {times} times: {reason}")
                return
            self._offer(damaged)
        self._offer(key)

    def _offer(self, key: str) -> None:
        """Queue a job that has all it needs and is not settled; block it if it never will."""
        settled = key in self.done or key in self.failed or key in self.blocked
        if settled or key in self._queued:
            return
        if self._missing[key]:
            for needed in self._jobs[key].inputs:
                if needed in self.failed or needed in self.blocked:
                    self._block(key, self.blocked.get(needed, needed))
                    return
            return
        self._queued.add(key)
        heapq.heappush(self._ready, (-self._priority[key], self._rank[key], key))

    def _assign(self) -> list[Run]:
        instructions = []
        while self._idle and self._queued:
            worker = next(iter(self._idle))
            key = self._choose(worker)
            if key is None:
                break
            del self._idle[worker]
            self.running[worker] = key
            instructions.append(Run(worker, key))
        return instructions

    def _choose(self, worker: str) -> str | None:
        """The first ready job, or a nearly equal one whose inputs the worker holds."""
        seen: list[tuple[float, int, str]] = []
        best: tuple[int, int] | None = None
        while self._ready and len(seen) < _LOOK:
            entry = heapq.heappop(self._ready)
            if entry[2] not in self._queued or entry in seen[-1:]:
                continue  # settled or requeued since it was pushed
            if seen and entry[0] > _NEAR * seen[0][0]:
                heapq.heappush(self._ready, entry)
                break
            held = sum(1 for needed in self._jobs[entry[2]].inputs if needed in self._holds[worker])
            if best is None or held > best[0]:
                best = (held, len(seen))
            seen.append(entry)
        if best is None:
            return None
        chosen = seen.pop(best[1])
        for entry in seen:
            heapq.heappush(self._ready, entry)
        self._queued.discard(chosen[2])
        return chosen[2]

    def _remember(self, worker: str, keys: Iterable[str]) -> None:
        held = self._holds.get(worker)
        if held is None:
            return
        for key in keys:
            held[key] = None
            held.move_to_end(key)
        while len(held) > _REMEMBERED:
            held.popitem(last=False)


def _users(jobs: Mapping[str, Job]) -> dict[str, list[str]]:
    """Who needs each job."""
    users: dict[str, list[str]] = {key: [] for key in jobs}
    for key, job in jobs.items():
        for needed in dict.fromkeys(job.inputs):
            if needed not in users:
                raise ValueError(f"job {key!r} needs {needed!r}, which is not in the plan")
            users[needed].append(key)
    return users


def _priorities(jobs: Mapping[str, Job], users: Mapping[str, list[str]]) -> dict[str, float]:
    """Expected seconds from the start of each job to the end of the longest path through it."""
    left = {key: len(below) for key, below in users.items()}
    longest = dict.fromkeys(jobs, 0.0)
    ends = [key for key, count in left.items() if count == 0]
    priority: dict[str, float] = {}
    while ends:
        key = ends.pop()
        priority[key] = longest[key] + jobs[key].seconds
        for needed in dict.fromkeys(jobs[key].inputs):
            longest[needed] = max(longest[needed], priority[key])
            left[needed] -= 1
            if left[needed] == 0:
                ends.append(needed)
    if len(priority) < len(jobs):
        caught = [key for key in jobs if key not in priority]
        raise ValueError(f"the plan has a cycle through {', '.join(map(repr, caught[:5]))}")
    return priority
