"""What workers that do not see the store ask the driver's machine for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage import datasets
from storage.artifacts import Artifacts
from tasks._journal import append
from tasks.logs import log_path

__all__ = ["Shelf"]


@dataclass(frozen=True)
class Shelf:
    """A store and the data beside it; an `Upstream` of artifacts (storage/upstream.py).

    It is used through a stand-in (`Executor.share`), so every argument and result travels.

    Attributes:
        artifacts: the artifact folder of the store, absolute.
        logs: the folder of the tasks' logs.
        data_dir: where datasets are looked for, or None.
        journal: the file of starts and ends, or None.
    """

    artifacts: Path
    logs: Path
    data_dir: Path | None = None
    journal: Path | None = None

    def fetch(self, key: str) -> dict[str, bytes]:
        """As `Upstream.fetch`."""
        return Artifacts(self.artifacts).fetch(key)

    def keep(self, key: str, files: Mapping[str, bytes]) -> None:
        """As `Upstream.keep`."""
        Artifacts(self.artifacts).keep(key, files)

    def holds(self, key: str) -> bool:
        """As `Upstream.holds`."""
        return key in Artifacts(self.artifacts)

    def data(self, source: datasets.Source) -> tuple[str, bytes]:
        """The file of a dataset: how its name ends, and what it holds.

        Raises:
            FileNotFoundError: if it is not on this machine either.
        """
        path = datasets.in_data_dir(source.name, self.data_dir)
        if source.path is not None:
            path = Path(source.path).expanduser()
        if path is None:
            raise FileNotFoundError(f"dataset {source.name}: there is no file of it")
        return path.suffix, path.read_bytes()

    def log(self, key: str, text: bytes) -> None:
        """Append to a task's log."""
        path = log_path(self.logs, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, text)
        finally:
            os.close(file)

    def note(self, line: str) -> None:
        """Append a line to the journal."""
        append(self.journal, line)
