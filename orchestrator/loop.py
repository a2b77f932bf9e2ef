"""The loop that obeys the scheduler and records what it is told."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from cluster.base import (
    Event,
    Executor,
    InputDamaged,
    TaskDone,
    TaskFailed,
    WorkerJoined,
    WorkerLost,
)
from cluster.inline import Inline
from orchestrator.live import Live
from orchestrator.outcome import Options, Outcome, Progress
from orchestrator.resume import Prepared, Store, record
from orchestrator.state import Job, Run, State
from storage.artifacts import ArtifactDamaged, ArtifactMissing, StoreUnwritable, write_whole
from tasks.base import Task
from tasks.logs import read_log
from tasks.shelf import Shelf
from tasks.worker import Site, execute, leave, prepare, tail

__all__ = ["STALE_S", "Loop"]

INLINE_BELOW_S = 8.0  # starting Ray costs about 4 s; below this one process is done sooner
_POLL_S = 0.5
_TAIL_BYTES = 4096  # of a failed task's log, that its row keeps
# A task hangs after so many times what alike ones took, and never sooner than after a day: alike
# are tasks of one name, whatever their settings.
_PATIENCE, _LEAST_LIMIT_S = 20.0, 86_400.0
STALE_S = 86_400.0  # a draft of another machine this old was left by a process that was killed


class Loop:
    """Events in, instructions out, results recorded in between.

    Attributes:
        tasks: what was added so far, by key.
        state: the scheduler.
        present: the workers there are.
    """

    def __init__(
        self,
        options: Options,
        store: Store,
        progress: Progress,
        put: Callable[[Sequence[Mapping[str, Any]]], None],
        outcome: Outcome,
        *,
        expected_s: float,
    ) -> None:
        """Make the executor; nothing starts before `work`.

        Args:
            put: takes the result rows of a finished task.
            outcome: is told what happens.
            expected_s: seconds of work; little of it is done without Ray if the options leave
                that open.
        """
        self.tasks: dict[str, Task] = {}
        self.store, self.progress, self.put = store, progress, put
        self.outcome = outcome
        self.state = State({}, max_attempts=options.max_attempts)
        self.options = options
        self.run = uuid4().hex
        self.live = Live(store, self.run, outcome.plan.experiment.name)
        self.executor = self._make_executor(expected_s)
        on_ray = not isinstance(self.executor, Inline)
        self.site = Site(
            store.root / "artifacts",
            options.data_dir,
            journal=options.journal,
            logs=store.root / "logs",
            capture=on_ray,
            upstream=store.upstream,
        )
        self.sites: dict[bool, Site] = {}  # whether a worker sees the store -> where it is
        self.stand_in: Shelf | None = None
        self.present: dict[str, WorkerJoined] = {}
        self.blind: dict[str, str] = {}  # room that does not see the store -> a worker there
        self.since: dict[str, float] = {}  # worker -> when its task began
        self.limits: dict[str, float] = {}
        self.tails: dict[str, Callable[[], bytes | None]] = {}  # key -> its log's end, elsewhere
        self.max_attempts = options.max_attempts
        self.kept: dict[str, None] = {}  # failed keys whose rows are written, in order
        self.unread: dict[str, int] = {}  # key -> times its fresh artifact could not be read

    def add(self, prepared: Prepared) -> None:
        """More to do, before `work` or from within it."""
        tasks = prepared.plan.tasks
        gpus = bool(self.options.gpus_per_worker)
        jobs = {
            key: Job(
                tuple(needed.key for needed in task.inputs),
                prepared.seconds[key],
                gpu=gpus and task.GPU,
                memory=prepared.costs.memory(task, gpu=gpus and task.GPU),
            )
            for key, task in tasks.items()
        }
        self.tasks.update(tasks)
        self.live.add(prepared)
        self.limits |= {key: self._limit(tasks[key], prepared) for key in prepared.needed}
        self._submit(self.state.add(jobs, done=jobs.keys() - set(prepared.needed)))

    def work(self, more: Callable[[], bool] = lambda: False) -> None:
        """Until nothing can run any more, or the store takes no more.

        Args:
            more: called before anything and after every look for events; may add work, and tells
                whether more may come although nothing is left to run.
        """
        began = time.perf_counter()
        try:
            self.live.begin()
            self.executor.start()
            while self.outcome.stopped is None and (more() or not self.state.finished):
                self.progress.tick(self.executor.pending)
                self.live.tick(self.executor.pending)
                # Those lost idle first: nothing must be given to them.
                for event in sorted(self.executor.events(_POLL_S), key=self._is_late):
                    if isinstance(event, WorkerJoined) and not self.outcome.workers:
                        began = time.perf_counter()
                    if (known := self._hear(event)) is not None:
                        instructions = self.state.handle(known)
                        self._tell(known)
                        self._submit(instructions)
                self._drop_hung()  # after the events: this process may have been the one that hung
            self._leave_nodes()
        except StoreUnwritable as error:  # the disk filled up under the tables
            self.outcome.stopped = str(error)
        finally:
            self.outcome.makespan_s = time.perf_counter() - began
            self.outcome.failed = dict(self.state.failed)
            self.outcome.blocked = dict(self.state.blocked)
            self.executor.close()
            self.store.drop_stale_drafts(older_than_s=STALE_S)  # of workers that were lost
            self._end()

    def _is_late(self, event: Event) -> bool:
        return not (isinstance(event, WorkerLost) and event.worker not in self.state.running)

    def _leave_nodes(self) -> None:
        """Have nodes that do not see the store remove what they kept for this run.

        What an interrupted run leaves is removed by the next one there.
        """
        left = [self.executor.beside(worker, leave, self.run) for worker in self.blind.values()]
        for answer in left:
            answer()

    def _hear(self, event: Event) -> Event | None:
        """Record what an event tells; gives the event the scheduler should know, if any."""
        match event:
            case WorkerJoined(worker):
                self.present[worker] = event
                if not event.sees:
                    self.blind[event.room] = worker  # perhaps lost, when the run ends
                self.outcome.workers = max(self.outcome.workers, len(self.present))
                self.progress.joined(worker, event.node, event.gpu)
                self.live.count.joined(worker, event.node, event.gpu)
            case WorkerLost(worker, reason):
                self._lost(worker, reason)
            case TaskDone(worker, key, result):
                seconds = float(result["duration_s"])
                try:
                    self.put(record(self.tasks[key], self.store))
                    self.store.tables.remove("failures", key)  # of an earlier run
                except (ArtifactDamaged, ArtifactMissing) as error:
                    return self._once_more(worker, key, str(error))
                self.outcome.task_s += seconds
                self.outcome.ran += 1
                self.progress.finished(worker, self.tasks[key], seconds)
                self.live.count.ended(worker, self.tasks[key], seconds)
            case TaskFailed(worker, _, error) if error.startswith("StoreUnwritable"):
                # No fault of the task, and every other would meet it.
                if not self.present[worker].sees and self._store_takes():
                    self.executor.drop(worker, error, node=True)
                else:
                    self.outcome.stopped = error.partition(": ")[2]
                return None
            case InputDamaged(worker, _, damaged, reason):
                self.live.count.stopped(worker)
                # It is not there if another task found it damaged a moment ago.
                if self.store.artifacts.set_aside(damaged, reason):
                    self.progress.note(f"artifact {damaged[:12]} is damaged ({reason}): set aside")
        return event

    def _store_takes(self) -> bool:
        """Whether the store can be written to from here: else no node could."""
        try:
            trial = self.live.path.with_suffix(".trial")
            write_whole(trial, "")
            trial.unlink()
            if self.store.upstream is not None:
                self.store.upstream.objects.check()
        except StoreUnwritable:
            return False
        return True

    def _lost(self, worker: str, reason: str) -> None:
        joined, key = self.present.pop(worker, None), self.state.running.get(worker)
        self.since.pop(worker, None)
        self.progress.lost(worker)
        self.live.count.lost(worker)
        if key is None:
            self.progress.note(f"worker {worker} lost ({reason}); it was idle")
            return
        if joined is not None and not joined.sees:
            # Awaited only if the task fails: a node that is gone takes seconds not to answer.
            self.tails[key] = self.executor.beside(worker, tail, self.run, key, _TAIL_BYTES)
        self.progress.note(
            f"worker {worker} lost ({reason}) with {self.tasks[key].kind} "
            f"{self.tasks[key].name} {key[:12]}, which is tried again"
        )

    def _limit(self, task: Task, prepared: Prepared) -> float:
        """Seconds after which a task hangs."""
        if self.options.task_limit_s is not None:
            return self.options.task_limit_s or math.inf
        return max(_LEAST_LIMIT_S, _PATIENCE * prepared.seconds[task.key])

    def _drop_hung(self) -> None:
        now = time.monotonic()
        for worker, key in self.state.running.items():
            limit_s = self.limits.get(key, math.inf)
            if now - self.since.get(worker, now) > limit_s:
                self.since.pop(worker)  # once
                self.executor.drop(worker, f"its task did not end within {limit_s:g} s")

    def _once_more(self, worker: str, key: str, reason: str) -> Event | None:
        """What a task kept cannot be read back: run it again, unless that was tried too often."""
        self.store.artifacts.set_aside(key, reason)
        self.unread[key] = self.unread.get(key, 0) + 1
        if self.unread[key] >= self.max_attempts:
            return TaskFailed(worker, key, reason)
        self.progress.note(f"{reason} It was set aside, and its task runs again")
        self._start(worker, key)
        return None

    def _submit(self, instructions: Sequence[Run]) -> None:
        for instruction in instructions:
            if self.outcome.stopped is None:
                self.progress.started(instruction.worker, self.tasks[instruction.key])
                self.live.count.started(instruction.worker, self.tasks[instruction.key])
                self._start(instruction.worker, instruction.key)

    def _start(self, worker: str, key: str) -> None:
        task, at = self.tasks[key], self.present[worker]
        site = self._site(at.sees)
        if at.gpu and task.GPU:
            site = replace(site, device="cuda")
        self.since[worker] = time.monotonic()
        self.tails.pop(key, None)  # of an earlier attempt
        self.executor.submit(worker, key, execute, task, site, worker)

    def _site(self, sees: bool) -> Site:
        """Where a worker is: what it does not see comes through Ray."""
        if sees not in self.sites:
            here = self.site
            if sees and self.options.address is None:
                self.sites[sees] = here  # this very machine
                return here
            if self.stand_in is None:
                logs = self.store.root / "logs"
                artifacts = self.store.root / "artifacts"
                shelf = Shelf(artifacts, logs, here.data_dir, here.journal)
                self.stand_in = self.executor.share(shelf)
            data = self.stand_in
            self.sites[sees] = replace(here, data=data, run=self.run)
            if not sees:
                self.sites[sees] = replace(
                    self.sites[sees],
                    artifacts=None,
                    logs=None,
                    upstream=here.upstream or data,
                    shelf=data,
                )
        return self.sites[sees]

    def _tell(self, event: Event) -> None:
        """Tell, and keep, what the scheduler gave up after an event.

        Raises:
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        worker = "" if isinstance(event, WorkerJoined) else event.worker
        for key in list(self.state.failed)[len(self.kept) :]:
            self.progress.failed(worker, self.tasks[key], self.state.failed[key])
            self.live.failed(worker, self.tasks[key])
            self._keep_failure(key)
        if isinstance(event, TaskFailed) and event.key not in self.state.failed:
            self.live.count.stopped(worker)
            share = self.state.memory.get(event.key, 0) / 2**30
            self.progress.note(
                f"{self.tasks[event.key].kind} {event.key[:12]} ran out of memory "
                f"({event.error}); it runs again when {share:.1f} GiB are free for it"
            )

    def _end(self) -> None:
        """Keep what could not be kept before, and be seen no more."""
        try:
            for key in self.state.failed:
                if key not in self.kept:
                    self._keep_failure(key)
        except StoreUnwritable as error:
            self.outcome.stopped = self.outcome.stopped or str(error)
        self.live.end()

    def _keep_failure(self, key: str) -> None:
        task = self.tasks[key]
        row = {
            "key": key,
            "kind": task.kind,
            "name": task.name,
            "error": self.state.failed[key],
            "log_tail": self._log_tail(key),
            "attempts": max(1, self.state.attempts.get(key, 0)),
            "created_at": datetime.now(UTC),
        }
        self.store.tables.write("failures", key, [row])
        self.kept[key] = None

    def _log_tail(self, key: str) -> str:
        asked = self.tails.get(key)
        there = asked() if asked is not None else None
        told = there or read_log(self.store.root / "logs", key, _TAIL_BYTES)
        return told.decode(errors="replace")

    def _make_executor(self, expected_s: float) -> Executor:
        options = self.options
        asked = options.task_limit_s or options.gpus_per_worker  # what this process has not
        little = expected_s < INLINE_BELOW_S and options.executor == "auto" and not asked
        if options.executor == "inline" or (little and not options.address and not options.workers):
            return Inline(setup=prepare)
        from cluster.ray_pool import RayPool

        return RayPool(
            workers=options.workers,
            address=options.address,
            gpus_per_worker=options.gpus_per_worker,
            cpu_workers=options.cpu_workers,
            setup=prepare,
            visible=self.live.path,
        )
