"""The scheduler as a value: events in, instructions out; no clock, no threads, no I/O."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import dropwhile

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
    that costs `max_attempts` workers fails. A job that raises fails at once. One whose artifact is
    found damaged runs again, `max_attempts` times at most. What needs a failed job is blocked
    unless it runs already; the rest goes on.

    Attributes:
        done: keys whose artifacts exist.
        running: worker -> key. No key runs on two workers.
        failed: key -> why.
        blocked: key -> the failed key it needs, perhaps through others.
        attempts: key -> workers lost with it, plus times its artifact was found damaged.

    Raises:
        ValueError: for an input that is no job, or a cycle.
    """

    def __init__(
        self, jobs: Mapping[str, Job], done: Collection[str] = (), max_attempts: int = 3
    ) -> None:
        self._max_attempts = max_attempts
        self._inputs: dict[str, list[str]] = {}
        self._users: dict[str, list[str]] = {}
        self._seconds: dict[str, float] = {}
        self._priority: dict[str, float] = {}
        self._rank: dict[str, int] = {}
        self.done: set[str] = set()
        self.running: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self._damages: dict[str, int] = {}
        self._busy: set[str] = set()  # the values of `running`
        self._given_up: dict[str, str] = {}  # lost worker -> what it ran
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._holds: dict[str, OrderedDict[str, None]] = {}
        self._missing: dict[str, int] = {}
        self._queued: set[str] = set()
        self._ready: list[tuple[float, int, str]] = []
        self.add(jobs, done)

    def add(self, jobs: Mapping[str, Job], done: Collection[str] = ()) -> list[Run]:
        """More jobs while others run; those that are known already stay what they are.

        Only what was done and is not among `done` any more is made again.

        Args:
            jobs: key -> job, whose inputs are among them or known.
            done: keys of `jobs` whose artifacts exist.

        Returns:
            What to do now.

        Raises:
            ValueError: for an input that is no job, or a cycle.
        """
        new = {key: job for key, job in jobs.items() if key not in self._inputs}
        inputs = {key: list(dict.fromkeys(job.inputs)) for key, job in new.items()}
        users = _users(inputs, self._inputs)
        priority = _priorities(new, inputs, users)
        self._rank |= {key: len(self._rank) + i for i, key in enumerate(new)}
        self._inputs |= inputs
        self._seconds |= {key: job.seconds for key, job in new.items()}
        self._priority |= priority
        for key, below in users.items():
            self._users.setdefault(key, []).extend(below)
        self.done |= set(done) & new.keys()
        for key, needs in inputs.items():
            self._missing[key] = sum(needed not in self.done for needed in needs)
        for key in users.keys() - new.keys():
            self._raise(key, max(priority[user] for user in users[key]))
        there = set(done)
        for key in jobs:
            if key not in new and key not in there and key in self.done:
                self._unmake(key, "it is gone")
        for key in new:
            self._offer(key)
        return self._assign()

    def _raise(self, key: str, below: float) -> None:
        """A job known before is on a longer path now, and so is what it needs."""
        above = [(key, below)]
        while above:
            key, below = above.pop()
            if self._priority[key] >= below + self._seconds[key]:
                continue
            self._priority[key] = below + self._seconds[key]
            if key in self._queued:  # the entry with the lower priority is passed over later
                heapq.heappush(self._ready, (-self._priority[key], self._rank[key], key))
            above += [(needed, self._priority[key]) for needed in self._inputs[key]]

    @property
    def waiting(self) -> int:
        """How many jobs are neither done, running, failed nor blocked."""
        # A job can run although it is settled: its first worker, given up, may yet have finished.
        running = sum(key not in self.done and key not in self.failed for key in self._busy)
        settled = len(self.done) + len(self.failed) + len(self.blocked)
        return len(self._inputs) - settled - running

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
                # Given up or not: the artifact exists.
                if self._leave(worker, key) or self._given_up.get(worker) == key:
                    self._finish(worker, key)
            case TaskFailed(worker, key, error):
                if self._leave(worker, key):
                    self._fail(key, error)
            case InputDamaged(worker, key, damaged, reason):
                if self._leave(worker, key):
                    self._damaged(key, damaged, reason)
        return self._assign()

    def _lost(self, worker: str, reason: str) -> None:
        self._idle.pop(worker, None)
        self._holds.pop(worker, None)
        key = self.running.pop(worker, None)
        if key is None:
            return
        self._busy.discard(key)
        self._given_up[worker] = key
        if key in self.done or key in self.failed:
            return
        self.attempts[key] = self.attempts.get(key, 0) + 1
        cost = self.attempts[key] - self._damages.get(key, 0)
        if cost >= self._max_attempts:
            workers = "1 worker" if cost == 1 else f"{cost} workers"
            because = f" (the last: {reason})" if reason else ""
            self._fail(key, f"gave up after it cost {workers}{because}")
        else:
            self._offer(key)

    def _leave(self, worker: str, key: str) -> bool:
        """The worker is idle again, if it was running this job."""
        if self.running.get(worker) != key:
            return False
        del self.running[worker]
        self._busy.discard(key)
        self._idle[worker] = None
        return True

    def _finish(self, worker: str, key: str) -> None:
        if key in self.done or key in self.failed or key in self.blocked:
            return
        self.done.add(key)
        self._queued.discard(key)
        self._remember(worker, (*self._inputs[key], key))
        for user in self._users[key]:
            self._missing[user] -= 1
            if not self._missing[user]:
                self._offer(user)

    def _fail(self, key: str, reason: str) -> None:
        if key in self.done or key in self.failed:
            return
        self.failed[key] = reason
        for user in self._users[key]:
            self._block(user, key)

    def _block(self, key: str, cause: str) -> None:
        """Nothing downstream of a failed job can run; what runs already is let end."""
        below = [key]
        while below:
            user = below.pop()
            settled = user in self.done or user in self.failed or user in self.blocked
            if not settled and user not in self._busy:
                self.blocked[user] = cause
                below.extend(self._users[user])

    def _damaged(self, key: str, damaged: str, reason: str) -> None:
        """`damaged` must be made again before `key`, unless that was tried too often."""
        if damaged not in self._inputs[key]:
            if not self._needs(key, damaged):
                self._fail(key, f"cannot read {damaged[:12]}, which it does not need: {reason}")
                return
            # Tasks also read what their inputs were made from; from now on this one waits for it.
            self._inputs[key].append(damaged)
            self._users[damaged].append(key)
            self._missing[key] += damaged not in self.done
        if damaged in self.done:
            self._unmake(damaged, reason)
        self._offer(key)

    def _needs(self, key: str, other: str) -> bool:
        """Whether `other` is made before `key`, perhaps through others."""
        above, seen = list(self._inputs[key]), set(self._inputs[key])
        while above:
            for needed in self._inputs[above.pop()]:
                if needed not in seen:
                    seen.add(needed)
                    above.append(needed)
        return other in seen

    def _unmake(self, key: str, reason: str) -> None:
        """A finished job has to run again."""
        self.done.discard(key)
        # What a worker given up long ago has to say about it no longer holds.
        self._given_up = {w: given for w, given in self._given_up.items() if given != key}
        for user in self._users[key]:
            self._missing[user] += 1
            self._queued.discard(user)
        self.attempts[key] = self.attempts.get(key, 0) + 1
        self._damages[key] = times = self._damages.get(key, 0) + 1
        if times > self._max_attempts:
            self._fail(key, f"its artifact was found damaged {times} times: {reason}")
        else:
            self._offer(key)

    def _offer(self, key: str) -> None:
        """Queue a job that has all it needs and is not settled; block it if it never will."""
        settled = key in self.done or key in self.failed or key in self.blocked
        if settled or key in self._busy:
            return
        if not self._missing[key]:
            self._queued.add(key)
            heapq.heappush(self._ready, (-self._priority[key], self._rank[key], key))
            return
        for needed in self._inputs[key]:
            if needed in self.failed or needed in self.blocked:
                self._block(key, self.blocked.get(needed, needed))
                return

    def _assign(self) -> list[Run]:
        instructions = []
        while self._idle and self._queued:
            worker, _ = self._idle.popitem(last=False)
            key = self._choose(self._holds[worker])
            self._queued.discard(key)
            self._busy.add(key)
            self.running[worker] = key
            instructions.append(Run(worker, key))
        return instructions

    def _choose(self, holds: Collection[str]) -> str:
        """The first queued job, or a nearly equal one more of whose inputs the worker holds."""
        seen: list[tuple[float, int, str]] = []
        most, best = -1, 0
        while self._ready and len(seen) < _LOOK:
            entry = heapq.heappop(self._ready)
            key = entry[2]
            if key not in self._queued:
                continue  # taken back since it was pushed
            if seen and entry[0] > _NEAR * seen[0][0]:
                heapq.heappush(self._ready, entry)
                break
            held = sum(needed in holds for needed in self._inputs[key])
            if held > most:
                most, best = held, len(seen)
            seen.append(entry)
        chosen = seen.pop(best)
        for entry in seen:
            heapq.heappush(self._ready, entry)
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


def _users(inputs: Mapping[str, list[str]], known: Collection[str]) -> dict[str, list[str]]:
    """Who needs each job, and each of the jobs known before that somebody needs."""
    users: dict[str, list[str]] = {key: [] for key in inputs}
    for key, needs in inputs.items():
        for needed in needs:
            if needed not in users:
                if needed not in known:
                    raise ValueError(
                        f"job {key!r} needs {needed!r}, which is not in the plan: add it"
                    )
                users[needed] = []
            users[needed].append(key)
    return users


def _priorities(
    jobs: Mapping[str, Job], inputs: Mapping[str, list[str]], users: Mapping[str, list[str]]
) -> dict[str, float]:
    """Expected seconds from the start of each job to the end of the longest path through it."""
    left = {key: len(users[key]) for key in jobs}
    longest = dict.fromkeys(jobs, 0.0)
    ends = [key for key, count in left.items() if count == 0]
    priority: dict[str, float] = {}
    while ends:
        key = ends.pop()
        priority[key] = longest[key] + jobs[key].seconds
        for needed in inputs[key]:
            if needed not in jobs:
                continue
            longest[needed] = max(longest[needed], priority[key])
            left[needed] -= 1
            if left[needed] == 0:
                ends.append(needed)
    if len(priority) < len(jobs):
        caught = next(key for key in jobs if key not in priority)
        path: dict[str, None] = {}
        while caught not in path:  # what was left over has a user that was left over too
            path[caught] = None
            caught = next(user for user in users[caught] if user not in priority)
        circle = [*dropwhile(lambda key: key != caught, path), caught][::-1]
        raise ValueError(f"these jobs need each other: {' needs '.join(map(repr, circle))}")
    return priority
