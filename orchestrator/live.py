"""How a run stands, kept in its store every second, for whoever looks from elsewhere."""

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.count import Count, Snapshot
from orchestrator.resume import Prepared, Store
from storage.artifacts import StoreUnwritable, drop_drafts, write_whole
from tasks.base import Task

__all__ = ["FOLDER", "Live", "drivers", "gone"]

FOLDER = "live"
_EVERY_S = 1.0
_SILENT_S = 60.0  # a driver that says nothing for so long is gone
_DRAFT_S = 3600.0


class Live:
    """Writes `live/RUN.json`, from before the first worker is asked for until the run ends.

    A thread of its own writes it: a driver without Ray is in its tasks most of the time.
    """

    def __init__(self, store: Store, run: str, experiment: str) -> None:
        self.path = store.root / FOLDER / f"{run}.json"
        self.count = Count()
        self._experiment = experiment
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None

    def begin(self) -> None:
        """Write it for the first time, and remove what drivers left that are gone.

        Raises:
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        drop_drafts(self.path.parent, _DRAFT_S)
        for path in self.path.parent.glob("*.json"):
            told = _read(path)
            if told is None or not _lives(told):
                with suppress(OSError):
                    path.unlink()
        self._write()
        self._writer = threading.Thread(target=self._work, name="live", daemon=True)
        self._writer.start()

    def tick(self, pending: int) -> None:
        """Note how many workers wait for a place in the cluster."""
        self.count.pending = pending

    def end(self) -> None:
        """Nobody works any more."""
        self._ended.set()
        if self._writer is not None:
            self._writer.join()
        with suppress(OSError):
            self.path.unlink()

    def add(self, prepared: Prepared) -> None:
        """As `Count.add`."""
        self.count.add(prepared)

    def failed(self, worker: str, task: Task) -> None:
        """A task ended badly."""
        self.count.ended(worker, task, None)

    def _work(self) -> None:
        while not self._ended.wait(_EVERY_S):
            with suppress(StoreUnwritable, OSError):  # what matters says so itself
                self._write()

    def _write(self) -> None:
        told = {**self.count.snapshot().plain(), "experiment": self._experiment}
        write_whole(self.path, json.dumps(told))


def drivers(root: Path, experiment: str | None = None) -> Sequence[Snapshot]:
    """The runs that work now: on an experiment, or on any in a store."""
    return [told for told in _all(root, experiment) if _lives(told)]


def gone(root: Path, experiment: str | None = None) -> Sequence[Snapshot]:
    """What runs said last that were killed, or whose machine was lost."""
    return [told for told in _all(root, experiment) if not _lives(told)]


def _all(root: Path, experiment: str | None) -> Iterator[Snapshot]:
    for path in sorted((root / FOLDER).glob("*.json")):
        told = _read(path)
        if told is not None and experiment in (None, told.experiment):
            yield told


def _read(path: Path) -> Snapshot | None:
    try:
        return Snapshot.read(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _lives(told: Snapshot) -> bool:
    if told.host == socket.gethostname():
        try:
            os.kill(told.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            pass
    return told.silent_s < _SILENT_S
