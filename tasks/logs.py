"""The log of a task: where it ran, what it printed, how it went wrong."""

import io
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["log_path", "logged", "read_log"]


def log_path(folder: Path, key: str) -> Path:
    """The log of a task in a folder of logs."""
    return folder / key[:2] / f"{key}.log"


def read_log(folder: Path, key: str, num_bytes: int) -> bytes:
    """The end of a task's log; empty if it has none."""
    try:
        with log_path(folder, key).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read()
    except OSError:
        return b""


@contextmanager
def logged(
    path: Path, what: str, *, capture: bool, send: Callable[[bytes], None] | None
) -> Iterator[None]:
    """Append to a log what happens meanwhile; one that would hold nothing is not kept.

    What is printed is in the file at once, so that it outlives a process that is killed. A log
    that cannot be written is none: it must not cost a result.

    Args:
        path: the file.
        what: what is done, for the first line.
        capture: whether everything this process prints goes there, its libraries' prints too.
        send: is given what was appended, in the end.
    """
    begin = f"{_now()} {what} on {socket.gethostname()}, process {os.getpid()}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    before = os.fstat(file).st_size
    _write(file, begin)
    try:
        with _captured(file) if capture else _nothing():
            yield
    except BaseException as error:
        _write(file, f"{_now()} {traceback.format_exc()}".encode())
        if send is not None and isinstance(error, Exception):
            _send(file, before, send)
        raise
    else:
        said = os.fstat(file).st_size - before - len(begin)
        if said > 0 or before > 0:
            _write(file, f"{_now()} done\n".encode())
            if send is not None:
                _send(file, before, send)
        elif before == 0:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(file)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _captured(file: int) -> Iterator[None]:
    """Standard output and error of this process, and of what it starts, go to the file."""
    _flush()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(line_buffering=True)  # not to be lost with the process
    kept = (os.dup(1), os.dup(2))
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        yield
    finally:
        _flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, on a full disk, or closed
            stream.flush()


def _send(file: int, start: int, send: Callable[[bytes], None]) -> None:
    with suppress(Exception):  # as in `logged`: a log must not cost a result
        send(os.pread(file, os.fstat(file).st_size - start, start))


def _write(file: int, data: bytes) -> None:
    with suppress(OSError):
        os.write(file, data)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
