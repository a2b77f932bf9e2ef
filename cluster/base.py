"""What an executor promises, and the events it reports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

__all__ = [
    "ClusterUnreachable",
    "Event",
    "Executor",
    "InputDamaged",
    "TaskDone",
    "TaskFailed",
    "WorkerJoined",
    "WorkerLost",
    "check_address",
]

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerJoined:
    """A worker is ready for work.

    Attributes:
        node: the machine it is on, for people.
        gpu: whether it owns (a share of) a GPU.
        room: what it shares memory with: the workers of one node, or of one GPU.
        room_bytes: how much of it there is; 0 where nobody knows.
        sees: whether it has the driver's store on a disk.
    """

    worker: str
    node: str = ""
    gpu: bool = False
    room: str = ""
    room_bytes: int = 0
    sees: bool = True


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, with whatever it was running (process or node).

    Attributes:
        out_of_memory: whether it was put out because memory ran out.
    """

    worker: str
    reason: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class TaskDone:
    """A task finished; `result` is what its callable returned."""

    worker: str
    key: str
    result: Any = None


@dataclass(frozen=True)
class TaskFailed:
    """A task's own exception. `error` is one line for a person, `traceback` the rest.

    Attributes:
        out_of_memory: whether it was a lack of memory, of the machine or of the GPU.
    """

    worker: str
    key: str
    error: str
    traceback: str = ""
    out_of_memory: bool = False


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


def check_address(address: str) -> None:
    """Refuse what can be no address of a running cluster; asks nobody.

    Raises:
        ClusterUnreachable: with what would be right.
    """
    if "://" in address:
        raise ClusterUnreachable(
            f"{address!r} is no address for `run`: give the head's host:port (often :6379) from a "
            "machine of the cluster, or send the experiment there with `sfumato submit --address`"
        )
    host, colon, port = address.rpartition(":")
    if address != "auto" and not (colon and host and port.isdigit()):
        raise ClusterUnreachable(f"{address!r} is not host:port, as in '10.0.0.5:6379', nor 'auto'")


class Executor(Protocol):
    """Runs callables on workers and reports what happens to them.

    A worker runs one callable at a time. An exception with an attribute `damaged_key` is reported
    as `InputDamaged`, any other as `TaskFailed`.
    """

    @property
    def pending(self) -> int:
        """How many workers were asked for and have no place yet."""
        ...

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

    def drop(self, worker: str, reason: str, *, node: bool = False) -> None:
        """Put out a worker that hangs; it is reported lost, and another takes its place.

        Args:
            worker: its name; nothing happens if it is unknown.
            reason: what the event says.
            node: its node is at fault: no worker is to be there any more.
        """
        ...

    def share(self, thing: T) -> T:
        """A stand-in for an object of the driver's machine whose methods workers may call."""
        ...

    def beside(self, worker: str, call: Callable[..., T], *args: Any) -> Callable[[], T | None]:
        """Begin `call(*args)` on the machine of a worker, perhaps lost, but not in its process.

        Returns:
            What waits for its result, to be called before `close`: that, or None if the machine
            is gone or does not answer within seconds.
        """
        ...

    def close(self) -> None:
        """Release workers; what is running is given up. Safe to call twice."""
        ...
