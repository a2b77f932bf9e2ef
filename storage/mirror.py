"""Result rows on their way to MLflow: the thread that sends them, the file of what arrived."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.tracking import Identity, Tracker, fingerprint, masked

__all__ = ["Ledger", "Mirror"]

_BATCH = 50
_COLLECT_S = 2.0


class Mirror:
    """Sends rows from a thread of its own while the driver works; never raises into it.

    After a failure it does not try again until `close`, and then once.

    Args:
        tracker: used by this mirror only.
        experiment: our experiment's name.
        experiment_params: params of the parent run.
    """

    def __init__(
        self, tracker: Tracker, experiment: str, experiment_params: Mapping[str, Any]
    ) -> None:
        self._tracker = tracker
        self._experiment = experiment
        self._params = experiment_params
        self._waiting: list[Mapping[str, Any]] = []
        self._sent: set[Identity] = set()
        self._problem = ""
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def sent(self) -> set[Identity]:
        """(task_key, label) of the rows MLflow is known to hold."""
        with self._changed:
            return set(self._sent)

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand over rows; returns at once. The thread starts with the first of them."""
        with self._changed:
            self._waiting.extend(rows)
            if self._waiting and self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout_s: float) -> str | None:
        """Send what is left, for at most `timeout_s`.

        Returns:
            None, or one line that says how many rows wait and why.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            if not self._waiting:
                return None
            why = self._problem or f"MLflow was not done within {timeout_s:g} s"
            return f"{len(self._waiting)} result rows are not in MLflow yet: {why}"

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._problem:
                    self._changed.wait_for(lambda: self._closing)
                else:
                    self._changed.wait_for(
                        lambda: self._closing or len(self._waiting) >= _BATCH, timeout=_COLLECT_S
                    )
                if self._closing and not self._waiting:
                    return
                last_try = self._closing
                batch = self._waiting[:_BATCH]
            try:
                self._tracker.send(self._experiment, batch, experiment_params=self._params)
            except Exception as error:  # the driver's work must not end with its mirror
                with self._changed:
                    self._problem = " ".join(str(error).split())
                if last_try:
                    return
            else:
                with self._changed:
                    del self._waiting[: len(batch)]
                    self._sent.update((row["task_key"], row["label"]) for row in batch)


class Ledger:
    """Remembers what was sent where, so that a finished experiment need not ask MLflow.

    A file of JSON lines, only ever appended to, each in one write. A line that cannot be read is
    as if its rows were never sent: they are sent again, and `Tracker.send` doubles nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def waiting(self, uri: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows not yet sent to `uri`; all, if it is a SQLite file that is gone or another."""
        where, sent = _where(uri), set[Identity]()
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["uri"] == where:
                    sent.update((task_key, label) for task_key, label in entry["rows"])
            except (ValueError, TypeError, KeyError):
                continue
        return [row for row in rows if (row["task_key"], row["label"]) not in sent]

    def mark(self, uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note that `uri` holds the rows; of the address only `masked(uri)` is written.

        Raises:
            OSError: if the file cannot be written.
        """
        if not rows:
            return
        entry = {"uri": _where(uri), "rows": [[row["task_key"], row["label"]] for row in rows]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            # The newline in front keeps a line that a crash cut short from spoiling this one.
            file.write(b"\n" + json.dumps(entry).encode() + b"\n")


def _where(uri: str) -> str:
    return f"{masked(uri)} {fingerprint(uri)}".rstrip()
