"""How a run is to go, what the person sees meanwhile, and what it came to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.plan import Plan
from orchestrator.resume import Prepared
from tasks.base import Task

__all__ = ["Options", "Outcome", "Progress"]


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
        cpu_workers: workers without a GPU beside those with one; None for the cores left.
        tracking_uri: an MLflow server; None for a SQLite file in the store.
        journal: a file that gets a line for each start and end of a task.
        max_attempts: workers a task may cost before it is given up.
        task_limit_s: after which a task counts as hung, and costs its worker; 0 for never, None
            for a multiple of what alike tasks took. In this process nothing can be stopped.
    """

    store: Path
    data_dir: Path | None = None
    executor: Literal["auto", "inline", "ray"] = "auto"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 0.0
    cpu_workers: int | None = None
    tracking_uri: str | None = None
    journal: Path | None = None
    max_attempts: int = 3
    task_limit_s: float | None = None


class Progress(Protocol):
    """What the person sees while the loop runs."""

    def begin(self, prepared: Prepared) -> None: ...

    def grow(self, prepared: Prepared) -> None: ...

    def joined(self, worker: str, node: str, gpu: bool) -> None: ...

    def lost(self, worker: str) -> None: ...

    def tick(self, pending: int) -> None: ...

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
