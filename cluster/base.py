"""What an executor promises, and the events it reports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "ClusterUnreachable",
    "Event",
    "Executor",
    "InputDamaged",
    "TaskDone",
    "TaskFailed",
    "WorkerJoined",
    "WorkerLost",
]


@dataclass(frozen=True)
class WorkerJoined:
    """A worker is ready for work."""

    worker: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, with whatever it was running (process, node or memory lost)."""

    worker: str
    reason: str = ""


@dataclass(frozen=True)
class TaskDone:
    """A task finished; `result` is what its callable returned."""

    worker: str
    key: str
    result: Any = None


@dataclass(frozen=True)
class TaskFailed:
    """A task's own exception. `error` is one line for a person, `traceback` the rest."""

    worker: str
    key: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class InputDamaged:
    """A task could not read its input `damaged`; the worker is well."""

    worker: str
    key: str
    damaged: str
    reason: str = ""


Event = WorkerJoined | WorkerLost | TaskDone | TaskFailed | InputDamaged


class ClusterUnreachable(RuntimeError):
    """No worker could be started; the message says what to do."""


class Executor(Protocol):
    """Runs callables on workers and reports what happens to them.

    A worker runs one callable at a time. An exception with an attribute `damaged_key` is reported
    as `InputDamaged`, any other as `TaskFailed`.
    """

    def start(self) -> None:
        """Bring workers up; each is reported by a `WorkerJoined` event.

        Raises:
            ClusterUnreachable: with what was tried and what to do.
        """
        ...

    def submit(self, worker: str, key: str, call: Callable[..., Any], *args: Any) -> None:
        """Run `call(*args)` on an idle worker; returns at once (inline: when it is done)."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits up to `timeout_s` for the first event."""
        ...

    def close(self) -> None:
        """Release workers; what is running is given up. Safe to call twice."""
        ...
