"""The loop that obeys the scheduler and records what it is told."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.base import (
    Event,
    Executor,
    InputDamaged,
    TaskDone,
    TaskFailed,
    WorkerJoined,
    WorkerLost,
)
from orchestrator.plan import Plan
from orchestrator.resume import Prepared, Store, record
from orchestrator.state import Job, Run, State
from storage.artifacts import ArtifactDamaged, ArtifactMissing, StoreUnwritable
from tasks.base import Task
from tasks.worker import Site, execute, prepare

__all__ = ["STALE_S", "Loop", "Options", "Outcome", "Progress"]

INLINE_BELOW_S = 8.0  # starting Ray costs about 4 s; below this one process is done sooner
_POLL_S = 0.5
STALE_S = 86_400.0  # a draft of another machine this old was left by a process that was killed


@dataclass(frozen=True)
class Options:
    """How to run; nothing here changes a result.

    Attributes:
        store: root of the store, absolute.
        data_dir: where datasets are looked for.
        executor: "auto" runs little work in this process and the rest on Ray.
        address: a running Ray cluster; None starts one here.
        workers: how many; None for one per core (or per GPU share).
        gpus_per_worker: the share of a GPU each worker owns.
        tracking_uri: an MLflow server; None for a SQLite file in the store.
        journal: a file that gets a line for each start and end of a task.
        max_attempts: workers a task may cost before it is given up.
    """

    store: Path
    data_dir: Path | None = None
    executor: Literal["auto", "inline", "ray"] = "auto"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 0.0
    tracking_uri: str | None = None
    journal: Path | None = None
    max_attempts: int = 3


class Progress(Protocol):
    """What the person sees while the loop runs."""

    def begin(self, prepared: Prepared) -> None: ...

    def grow(self, prepared: Prepared) -> None: ...

    def started(self, worker: str, task: Task) -> None: ...

    def finished(self, worker: str, task: Task, seconds: float) -> None: ...

    def failed(self, worker: str, task: Task, error: str) -> None: ...

    def note(self, message: str) -> None: ...

    def end(self) -> None: ...


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        plan: what was to be done.
        form: what its cells are kept as.
        failed: key -> error of tasks that failed.
        blocked: key -> the failed key it needed.
        cached: tasks whose artifacts were there before.
        ran: tasks that finished in this run.
        makespan_s: seconds from the first worker to the last event.
        task_s: seconds spent in tasks, summed over workers.
        workers: how many worked at once.
        missing: cells that are neither filled nor failed, where the run ended as if all were.
        stopped: why the run stopped early, or None.
        warnings: what the person should know although the run went on.
    """

    plan: Plan
    form: str
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    cached: int = 0
    ran: int = 0
    makespan_s: float = 0.0
    task_s: float = 0.0
    workers: int = 0
    missing: int = 0
    stopped: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def utilisation(self) -> float:
        """The share of worker time spent in tasks, in [0, 1]."""
        room = self.workers * self.makespan_s
        return self.task_s / room if room else 0.0


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
        self.executor, device = _executor(options, expected_s, store)
        self.site = Site(
            store.root / "artifacts", options.data_dir, device=device, journal=options.journal
        )
        self.present: set[str] = set()
        self.max_attempts = options.max_attempts
        self.unread: dict[str, int] = {}  # key -> times its fresh artifact could not be read

    def add(self, prepared: Prepared) -> None:
        """More to do, before `work` or from within it."""
        tasks = prepared.plan.tasks
        jobs = {
            key: Job(tuple(task.key for task in tasks[key].inputs), prepared.seconds[key])
            for key in tasks
        }
        self.tasks.update(tasks)
        self._submit(self.state.add(jobs, done=jobs.keys() - set(prepared.needed)))

    def work(self, more: Callable[[], bool] = lambda: False) -> None:
        """Until nothing can run any more, or the store takes no more.

        Args:
            more: called before anything and after every look for events; may add work, and tells
                whether more may come although nothing is left to run.
        """
        began = time.perf_counter()
        try:
            self.executor.start()
            while self.outcome.stopped is None and (more() or not self.state.finished):
                for event in self.executor.events(_POLL_S):
                    if isinstance(event, WorkerJoined) and not self.outcome.workers:
                        began = time.perf_counter()
                    if (known := self._hear(event)) is not None:
                        self._submit(self.state.handle(known))
        except StoreUnwritable as error:  # the disk filled up under the tables
            self.outcome.stopped = str(error)
        finally:
            self.outcome.makespan_s = time.perf_counter() - began
            self.outcome.failed = dict(self.state.failed)
            self.outcome.blocked = dict(self.state.blocked)
            self.executor.close()
            self.store.drop_stale_drafts(older_than_s=STALE_S)  # of workers that were lost
            self._keep_failures()

    def _hear(self, event: Event) -> Event | None:
        """Record what an event tells; gives the event the scheduler should know, if any."""
        match event:
            case WorkerJoined(worker):
                self.present.add(worker)
                self.outcome.workers = max(self.outcome.workers, len(self.present))
            case WorkerLost(worker, reason):
                self.present.discard(worker)
                self.progress.note(f"worker {worker} lost ({reason}); its task will run again")
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
            case TaskFailed(_, _, error) if error.startswith("StoreUnwritable"):
                # No fault of the task, and every other would meet it: it waits for the next run.
                self.outcome.stopped = error.partition(": ")[2]
                return None
            case TaskFailed(worker, key, error):
                self.progress.failed(worker, self.tasks[key], error)
            case InputDamaged(worker, _, damaged, reason):
                # It is not there if another task found it damaged a moment ago.
                if self.store.artifacts.set_aside(damaged, reason):
                    self.progress.note(f"artifact {damaged[:12]} is damaged ({reason}): set aside")
        return event

    def _once_more(self, worker: str, key: str, reason: str) -> Event | None:
        """What a task kept cannot be read back: run it again, unless that was tried too often."""
        self.store.artifacts.set_aside(key, reason)
        self.unread[key] = self.unread.get(key, 0) + 1
        if self.unread[key] >= self.max_attempts:
            return TaskFailed(worker, key, reason)
        self.progress.note(f"{reason} It was set aside, and its task runs again")
        self.executor.submit(worker, key, execute, self.tasks[key], self.site, worker)
        return None

    def _submit(self, instructions: Sequence[Run]) -> None:
        for instruction in instructions:
            if self.outcome.stopped is None:
                task, worker = self.tasks[instruction.key], instruction.worker
                self.progress.started(worker, task)
                self.executor.submit(worker, task.key, execute, task, self.site, worker)

    def _keep_failures(self) -> None:
        try:
            self._write_failures()
        except StoreUnwritable as error:
            self.outcome.stopped = self.outcome.stopped or str(error)

    def _write_failures(self) -> None:
        for key, reason in self.state.failed.items():
            task = self.tasks[key]
            row = {
                "key": key,
                "kind": task.kind,
                "name": task.name,
                "error": reason,
                "attempts": max(1, self.state.attempts.get(key, 0)),
                "created_at": datetime.now(UTC),
            }
            self.store.tables.write("failures", key, [row])


def _executor(options: Options, expected_s: float, store: Store) -> tuple[Executor, str]:
    """What runs the tasks, and the torch device of its workers."""
    little = expected_s < INLINE_BELOW_S and options.executor == "auto"
    device = "cuda" if options.gpus_per_worker else "cpu"
    if options.executor == "inline" or (little and not options.address and not options.workers):
        from cluster.inline import Inline

        return Inline(setup=prepare), device
    from cluster.ray_pool import RayPool

    pool = RayPool(
        workers=options.workers,
        address=options.address,
        gpus_per_worker=options.gpus_per_worker,
        setup=prepare,
        visible=store.root,
    )
    return pool, device
