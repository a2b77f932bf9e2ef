"""The scheduler as a value: events in, instructions out; no clock, no threads, no I/O."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster.base import Event, InputDamaged, TaskDone, TaskFailed, WorkerJoined, WorkerLost
from orchestrator._paths import priorities, users_of
from orchestrator.rooms import Room, Rooms

__all__ = ["Job", "Run", "State"]

_NEAR = 0.8  # ready jobs within this share of the first one's priority may go before it
_LOOK = 16  # and no further down the queue than this
_REMEMBERED = 32  # keys a worker is thought to hold


@dataclass(frozen=True)
class Job:
    """A task to the scheduler: what it needs, and how long it is expected to take.

    Attributes:
        inputs: keys of jobs that must be done before.
        seconds: how long it is expected to take.
        gpu: whether only a worker with a GPU may run it.
        memory: bytes it is expected to need at its peak, 0 if unknown: of the GPU's, where it
            runs on one.
    """

    inputs: tuple[str, ...] = ()
    seconds: float = 1.0
    gpu: bool = False
    memory: int = 0


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

    Jobs run beside each other in a room (a node, a GPU) while their memory is thought to suffice.
    One that does not fit and is first in line is claimed by a room, which takes nothing else until
    it does. A job that runs out of memory gets a larger share each time, at last a whole room,
    before that counts as an attempt, or as its failure. Workers with a GPU take the jobs that need
    one; others only where there is no worker without.

    Attributes:
        done: keys whose artifacts exist.
        running: worker -> key. No key runs on two workers.
        failed: key -> why.
        blocked: key -> the failed key it needs, perhaps through others.
        attempts: key -> workers lost with it, plus times its artifact was found damaged.
        memory: key -> bytes it is thought to need, where something is thought.

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
        self._gpu: dict[str, bool] = {}  # worker -> whether it has one
        self._num_without = 0  # workers
        self._idle: dict[bool, OrderedDict[str, None]] = {True: OrderedDict(), False: OrderedDict()}
        self._rooms = Rooms()
        self._holds: dict[str, OrderedDict[str, None]] = {}
        self._missing: dict[str, int] = {}
        self._on_gpu: set[str] = set()  # jobs
        self.memory: dict[str, int] = {}
        # Of the jobs that need a GPU, and of the others: those queued, and the order they go in.
        self._queued: dict[bool, set[str]] = {True: set(), False: set()}
        self._ready: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}
        self._claims: dict[str, Room] = {}  # queued no more, as a room waits to run it
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
        users = users_of(inputs, self._inputs)
        priority = priorities({key: job.seconds for key, job in new.items()}, inputs, users)
        self._rank |= {key: len(self._rank) + i for i, key in enumerate(new)}
        self._inputs |= inputs
        self._seconds |= {key: job.seconds for key, job in new.items()}
        self._on_gpu |= {key for key, job in new.items() if job.gpu}
        self.memory |= {key: job.memory for key, job in new.items() if job.memory}
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
            if key in self._queued[key in self._on_gpu]:  # the lower entry is passed over later
                self._push(key)
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
                self._join(event)
            case WorkerLost(worker, reason):
                self._lost(worker, reason, event.out_of_memory)
            case TaskDone(worker, key):
                # Given up or not: the artifact exists.
                if self._leave(worker, key) or self._given_up.get(worker) == key:
                    self._finish(worker, key)
            case TaskFailed(worker, key, error):
                if self._leave(worker, key):
                    if event.out_of_memory and self._enlarge(worker, key):
                        self._offer(key)
                    else:
                        self._fail(key, error)
            case InputDamaged(worker, key, damaged, reason):
                if self._leave(worker, key):
                    self._damaged(key, damaged, reason)
        return self._assign()

    def _join(self, joined: WorkerJoined) -> None:
        worker = joined.worker
        if worker not in self._gpu:
            self._gpu[worker] = joined.gpu
            self._num_without += not joined.gpu
            self._holds[worker] = OrderedDict()
            self._rooms.enter(worker, joined.room, joined.room_bytes)
            self._idle[joined.gpu][worker] = None

    def _lost(self, worker: str, reason: str, out_of_memory: bool) -> None:
        if worker not in self._gpu:
            return
        key = self.running.pop(worker, None)
        enlarged = key is not None and out_of_memory and self._enlarge(worker, key)
        self._awaken(self._rooms[worker])
        gpu = self._gpu.pop(worker)
        self._idle[gpu].pop(worker, None)
        self._num_without -= not gpu
        self._holds.pop(worker, None)
        claim = self._rooms.leave(worker)
        if claim is not None:
            self._withdraw(claim)
            self._offer(claim)
        if key is None:
            return
        self._busy.discard(key)
        self._given_up[worker] = key
        if key in self.done or key in self.failed:
            return
        if enlarged:
            self._offer(key)
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
        self._idle[self._gpu[worker]][worker] = None
        room = self._rooms[worker]
        room.needs.pop(worker, None)
        self._awaken(room)
        return True

    def _awaken(self, room: Room) -> None:
        """Something ended in a room: who waits there looks again."""
        for worker in room.waiting:
            self._idle[self._gpu[worker]][worker] = None
        room.waiting.clear()

    def _enlarge(self, worker: str, key: str) -> bool:
        """Have a job that ran out of memory find more next time; False if there is no more."""
        gpu, room, known = self._gpu[worker], self._rooms[worker], self.memory.get(key, 0)
        alike = (self._rooms[w].capacity for w, other in self._gpu.items() if other == gpu)
        largest = max(alike, default=0)
        if not room.capacity or known >= largest or (key in self._on_gpu) != gpu:
            return False
        self.memory[key] = min(2 * max(known, room.share), largest)
        return True

    def _finish(self, worker: str, key: str) -> None:
        if key in self.done or key in self.failed or key in self.blocked:
            return
        self.done.add(key)
        self._withdraw(key)
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
            self._withdraw(user)
        self.attempts[key] = self.attempts.get(key, 0) + 1
        self._damages[key] = times = self._damages.get(key, 0) + 1
        if times > self._max_attempts:
            self._fail(key, f"its artifact was found damaged {times} times: {reason}")
        else:
            self._offer(key)

    def _offer(self, key: str) -> None:
        """Queue a job that has all it needs and is not settled; block it if it never will."""
        settled = key in self.done or key in self.failed or key in self.blocked
        if settled or key in self._busy or key in self._claims:
            return
        if not self._missing[key]:
            self._queued[key in self._on_gpu].add(key)
            self._push(key)
            return
        for needed in self._inputs[key]:
            if needed in self.failed or needed in self.blocked:
                self._block(key, self.blocked.get(needed, needed))
                return

    def _withdraw(self, key: str) -> None:
        """Take back a job that was offered."""
        self._queued[key in self._on_gpu].discard(key)
        room = self._claims.pop(key, None)
        if room is not None:
            room.claim = None
            self._awaken(room)

    def _push(self, key: str) -> None:
        entry = (-self._priority[key], self._rank[key], key)
        heapq.heappush(self._ready[key in self._on_gpu], entry)

    def _assign(self) -> list[Run]:
        instructions = self._assign_claimed()
        for gpu, idle in self._idle.items():
            while idle:
                if self._queued[gpu]:
                    on_gpu = gpu
                elif gpu and self._queued[False] and not self._num_without:
                    on_gpu = False
                else:
                    break
                worker, _ = idle.popitem(last=False)
                room = self._rooms[worker]
                key = None if room.claim else self._choose(on_gpu, worker)
                if key is None:
                    room.waiting[worker] = None
                else:
                    self._queued[on_gpu].discard(key)
                    instructions.append(self._run(worker, key))
        return instructions

    def _assign_claimed(self) -> list[Run]:
        """The jobs that rooms waited for and that fit by now."""
        instructions = []
        for key, room in list(self._claims.items()):
            idle = self._idle[key in self._on_gpu]
            for worker in idle:  # of its room, or of another that has become free
                other = self._rooms[worker]
                large = not other.claim and other.capacity >= max(
                    room.capacity, self.memory.get(key, 0)
                )
                if (other is room or large) and other.fits(self._need(key, worker)):
                    del idle[worker]
                    self._withdraw(key)
                    instructions.append(self._run(worker, key))
                    break
        return instructions

    def _run(self, worker: str, key: str) -> Run:
        self._busy.add(key)
        self.running[worker] = key
        self._rooms[worker].needs[worker] = self._need(key, worker)
        return Run(worker, key)

    def _need(self, key: str, worker: str) -> int | None:
        """Bytes of the worker's room, None if nothing is known.

        What a job without a GPU needs is not of the GPU's memory.
        """
        if (key in self._on_gpu) != self._gpu[worker]:
            return 0
        return self.memory.get(key)

    def _choose(self, on_gpu: bool, worker: str) -> str | None:
        """The first queued job, or a nearly equal one more of whose inputs the worker holds.

        None if the first does not fit into the worker's room, which claims it and waits.
        """
        ready, queued = self._ready[on_gpu], self._queued[on_gpu]
        room, holds = self._rooms[worker], self._holds[worker]
        seen: list[tuple[float, int, str]] = []
        most, best = -1, 0
        while ready and len(seen) < _LOOK:
            entry = heapq.heappop(ready)
            key = entry[2]
            if key not in queued:
                continue  # taken back since it was pushed
            far = bool(seen) and entry[0] > _NEAR * seen[0][0]
            if far or not room.fits(self._need(key, worker)):
                if seen:
                    heapq.heappush(ready, entry)
                    break
                queued.discard(key)
                room.claim, self._claims[key] = key, room
                return None
            held = sum(needed in holds for needed in self._inputs[key])
            if held > most:
                most, best = held, len(seen)
            seen.append(entry)
        chosen = seen.pop(best)
        for entry in seen:
            heapq.heappush(ready, entry)
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
