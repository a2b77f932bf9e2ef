"""A node's own folder for a run whose store it does not see, gone when nobody works there."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from storage.artifacts import StoreUnwritable

__all__ = ["cache_place", "leave_cache", "node_cache"]

_LOCK = ".lock"


def cache_place(run: str) -> Path:
    """Where the folder of a run is on this machine, made or not."""
    return Path(tempfile.gettempdir()) / f"sfumato-{os.getuid()}" / run


@cache
def node_cache(run: str) -> Path:
    """The folder that this machine's workers of a run share, made if need be.

    Each worker holds a lock on it as long as it lives, however it ends. Folders that nobody holds
    were left by runs that were killed: they are removed.

    Args:
        run: the name of a run, as no other has it.

    Raises:
        StoreUnwritable: the disk is full or forbidden, or somebody else made a folder of that name.
    """
    folder = cache_place(run)
    try:
        return _made(folder)
    except OSError as error:
        raise StoreUnwritable(
            error.errno,
            f"{folder.parent} cannot hold what this node keeps for a run: {error.strerror}. Free "
            "space or permit writing there, or set TMPDIR on this node to another folder",
        ) from error


def _made(folder: Path) -> Path:
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    found = folder.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "it is no folder that only this user may write to")
    for other in folder.parent.iterdir():
        if other != folder:
            _sweep(other)
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # swept before it was held
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.fstat(lock).st_nlink:
                return folder  # the lock stays with the process
            os.close(lock)


def leave_cache(run: str) -> None:
    """Remove the folder of a run that ends, if there is one."""
    shutil.rmtree(cache_place(run), ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove a folder that no process holds."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
