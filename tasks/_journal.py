"""A file that gets a line for each start and end of a task."""

import os
from pathlib import Path

from storage.artifacts import StoreUnwritable

__all__ = ["append", "check_journal"]


def append(journal: Path | None, line: str) -> None:
    """Append a line whole: O_APPEND writes below a page do not mix with another worker's.

    Raises:
        StoreUnwritable: if it cannot be written. It ends the run, as every task would meet it.
    """
    if journal is None:
        return
    try:
        file = _open(journal)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
    except OSError as error:
        raise StoreUnwritable(
            error.errno,
            f"cannot write the journal {journal}: {error.strerror}. Free space or permit "
            "writing there, or name another file with --journal",
        ) from error


def check_journal(path: Path | None) -> None:
    """Refuse a journal that cannot be opened; raises ValueError."""
    try:
        if path is not None:
            os.close(_open(path))
    except OSError as error:
        raise ValueError(
            f"--journal {path}: {error.strerror}; name a file that can be written to"
        ) from error


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
