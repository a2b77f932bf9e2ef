"""Writing to the store's disk: names fit for a path, bytes that stay, faults told apart."""

import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = re.compile(r"[0-9a-f]{64}")

_NAME = re.compile(r"[a-z0-9_.-]+")
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR}
# What a file says that is there and cannot be had; others (too many open files) are not its fault.
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP}
_DRAFT = re.compile(r"\.draft-(.+)-([0-9]+)-[0-9a-f]{32}")


class StoreUnwritable(OSError):
    """The store cannot be written: disk full, read-only or not permitted."""


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Tell faults of the disk as `StoreUnwritable`; other errors pass as they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreUnwritable) or error.errno not in _UNWRITABLE | _IN_THE_WAY:
            raise
        where = f" ({error.filename})" if error.filename else ""
        remedy = "Free space or permit writing there"
        if error.errno in _IN_THE_WAY:
            remedy = "Move away what is in the way there"
        raise StoreUnwritable(
            error.errno,
            f"cannot write to the store at {place}: {os.strerror(error.errno)}{where}. "
            f"{remedy}, or keep the store elsewhere with --store",
        ) from error


def unreadable(error: OSError) -> bool:
    """Whether a file that is there cannot be had: forbidden, a circle of links, a bad disk."""
    return error.errno in _UNREADABLE


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


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, text or bytes, that readers see whole or not at all.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(draft_name())
        try:
            write_synced(draft, content.encode() if isinstance(content, str) else content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def draft_name() -> str:
    """A name for what is being written, that says which process of which machine writes it."""
    return f".draft-{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"


def drop_drafts(folder: Path, older_than_s: float) -> int:
    """Remove the drafts in `folder` that killed processes left.

    Those of this machine go as soon as their process is gone.

    Args:
        folder: where drafts lie; it need not exist.
        older_than_s: drafts of which it cannot be known go if nobody wrote to them for so long;
            longer than any task writes.

    Returns:
        How many were removed.
    """
    num_dropped = 0
    for draft in stale_drafts(folder, older_than_s):
        try:
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink()
        except OSError:  # dropped while we looked, or another user's
            continue
        num_dropped += not os.path.lexists(draft)
    return num_dropped


def stale_drafts(folder: Path, older_than_s: float) -> Iterator[Path]:
    """The drafts that `drop_drafts` removes."""
    for draft in folder.glob(".draft-*"):
        try:
            if _writer_lives(draft.name) and _idle_s(draft) <= older_than_s:
                continue
        except OSError:  # finished or dropped while we looked
            continue
        yield draft


def _machine() -> str:
    """The host, and what tells it from its namesakes: its boot, and its space of process ids.

    Machines that share a store may share a name, and so may containers of one machine.
    """
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        told = hashlib.sha256((boot + os.readlink("/proc/self/ns/pid")).encode())
    except OSError:  # no Linux: the name must do
        return host
    return f"{host}.{told.hexdigest()[:8]}"


def _writer_lives(name: str) -> bool:
    """False if a draft's process is surely gone."""
    match = _DRAFT.fullmatch(name)
    if match is None or match[1] != _machine():
        return True
    try:
        os.kill(int(match[2]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _idle_s(draft: Path) -> float:
    inside = list(draft.iterdir()) if draft.is_dir() else []
    last: float = max(path.stat().st_mtime for path in (draft, *inside))
    return time.time() - last
