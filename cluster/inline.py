"""The same process, one task after another: no threads, so breakpoints work."""

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.base import Event, InputDamaged, TaskDone, TaskFailed, WorkerJoined

__all__ = ["Inline", "attempt"]

T = TypeVar("T")


def attempt(
    worker: str, key: str, call: Callable[..., Any], *args: Any
) -> TaskDone | TaskFailed | InputDamaged:
    """Run `call(*args)` and say how it ended.

    An `Exception` becomes an event; `KeyboardInterrupt` and `SystemExit` pass through, because
    they are about the process, not the task.

    Returns:
        `TaskDone` with the result, `InputDamaged` if the exception has a `damaged_key`, else
        `TaskFailed` with "Type: first line of the message" and the full traceback.
    """
    try:
        return TaskDone(worker, key, call(*args))
    except Exception as error:
        message = str(error).strip().partition("\n")[0]
        line = f"{type(error).__name__}: {message}" if message else type(error).__name__
        damaged = getattr(error, "damaged_key", None)
        if damaged is not None:
            return InputDamaged(worker, key, str(damaged), line)
        # torch's own error for a full GPU is a RuntimeError of this name.
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        return TaskFailed(worker, key, line, traceback.format_exc(), out_of_memory=memory)


class Inline:
    """An executor with one worker, `inline`, which is the calling process.

    `submit` returns when the task has ended; its event waits in `events`.
    """

    pending = 0

    def __init__(self, setup: Callable[[], object] | None = None) -> None:
        """Args: setup: called once by `start`, before the worker joins."""
        self._setup = setup
        self._events: list[Event] = []

    def start(self) -> None:
        if self._setup is not None:
            self._setup()
        self._events.append(WorkerJoined("inline"))

    def submit(self, worker: str, key: str, call: Callable[..., Any], *args: Any) -> None:
        """Run `call(*args)` now.

        Raises:
            ValueError: if `worker` is not "inline".
        """
        if worker != "inline":
            raise ValueError(f"there is no worker {worker!r}; the only one here is 'inline'")
        self._events.append(attempt(worker, key, call, *args))

    def events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call. Nothing happens in between, so it never waits."""
        happened, self._events = self._events, []
        return happened

    def drop(self, worker: str, reason: str, *, node: bool = False) -> None:
        """Never needed: what runs here ends before anybody can ask."""

    def share(self, thing: T) -> T:
        """The thing itself."""
        return thing

    def beside(self, worker: str, call: Callable[..., T], *args: Any) -> Callable[[], T | None]:
        """Run `call(*args)`."""
        result = call(*args)
        return lambda: result

    def close(self) -> None:
        """Forget events nobody asked for."""
        self._events = []
