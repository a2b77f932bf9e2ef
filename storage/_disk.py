"""Writing to the store's disk: names fit for a path, bytes that stay, faults told apart."""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = re.compile(r"[0-9a-f]{64}")

_NAME = re.compile(r"[a-z0-9_.-]+")
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class StoreUnwritable(OSError):
    """The store cannot be written: disk full, read-only or not permitted."""


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Tell faults of the disk as `StoreUnwritable`; other errors pass as they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreUnwritable) or error.errno not in _UNWRITABLE:
            raise
        raise StoreUnwritable(
            error.errno,
            f"cannot write to the store at {place}: {os.strerror(error.errno)}. "
            "Free space or permit writing there, or keep the store elsewhere with --store",
        ) from error


def check_key(key: str) -> str:
    """`key` if it is a task key, before it becomes part of a path.

    Raises:
        ValueError: it is not 64 hexadecimal digits.
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a task key: expected 64 digits of 0-9 and a-f")
    return key


def check_name(name: str) -> str:
    """`name` if it can be part of a file name.

    Raises:
        ValueError: it has other characters than a-z, 0-9, "_", "-" and ".", or begins with ".".
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(
            f"{name!r} cannot name a file of the store: "
            "expected a-z, 0-9, '_', '-' and '.', not beginning with '.'"
        )
    return name


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and make its content survive a power cut."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a small file that readers see whole or not at all.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            write_synced(draft, text.encode())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
