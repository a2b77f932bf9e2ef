"""Where a study's trials are kept: a journal in the store, or a database that is named."""

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

from storage._mlflow import reason
from storage.tracking import masked

__all__ = ["JOURNAL", "StudyAway", "open_storage"]

JOURNAL = "optuna.journal"

_ANSWER_S = 5
_LOCK_S = 60  # SQLite lets one write at a time; the others wait for this long
_TRIES = 10
_EXAMPLES = "postgresql://USER:PASSWORD@HOST/NAME or sqlite:////PATH/study.db"
# The name that drivers have for the longest wait for a connection.
_LIMITS = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "pg8000": "timeout",
}


class StudyAway(RuntimeError):
    """The place of a study cannot be used; the message says which, why, and what to do."""


def open_storage(uri: str | None, store: Path) -> Any:
    """Open what keeps the trials, and make it if it is not there.

    Args:
        uri: the address of a PostgreSQL, MySQL or SQLite database; None for the journal in the
            store. `postgresql:` means the driver psycopg 3, other drivers are to be named.
        store: the store's folder; made if it is not there and the journal is in it.

    Returns:
        An Optuna storage. Several drivers may use one at the same time, and each may be killed at
        any moment: no lock outlives it, and a record it was writing is dropped by the next write.

    Raises:
        StudyAway: if it cannot be used. An absent server is told after 5 s. No password is shown.
    """
    return _journal(store / JOURNAL) if uri is None else _database(uri)


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    lock = _Lock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        try:
            _check(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise StudyAway(
            f"the study's journal {path} cannot be used: {error.strerror or error}. Make it and "
            f"its folder writable, or name a database with --study-uri {_EXAMPLES}"
        ) from error
    except StudyAway:
        raise
    except Exception as error:  # whatever Optuna makes of records that are none of its own
        raise StudyAway(
            f"the study's journal {path} holds a record that Optuna {_optuna()} cannot take "
            f"({type(error).__name__}: {str(error)[:200]}). Move the file away and begin the study "
            "anew: what was trained stays in the store"
        ) from error


class _Lock:
    """Lets one process write to a journal at a time, and no longer than it lives.

    The locks of Optuna 5 are files. One that a killed holder left is waited for 30 s and then
    removed, also from a living holder that is only suspended. This one is the kernel's, which
    takes it back from a dead process at once and never from a living one.

    It is not in the journal itself, because where `flock` is made of record locks (NFS) closing
    any descriptor of a file gives up its lock; and not called `.lock`, as Optuna's would be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock, then cut off what a killed holder had half written."""
        held = os.open(f"{self._path}.flock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            _trim(self._path)
        except BaseException:
            os.close(held)
            raise
        self._held = held
        return True

    def release(self) -> None:
        """Let the next one in; raises RuntimeError if it is not held."""
        held, self._held = self._held, None
        if held is None:
            raise RuntimeError(f"the lock of {self._path} is not held")
        fcntl.flock(held, fcntl.LOCK_UN)  # now, though a forked child may still have it open
        os.close(held)


def _trim(path: Path) -> None:
    """Cut off a last line without its end: the next one would continue it, and spoil both."""
    with open(path, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _check(path: Path) -> None:
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            sound = "op_code" in json.loads(line)
        except (ValueError, TypeError):
            sound = False
        if not sound:
            raise StudyAway(
                f"the study's journal {path} is damaged in line {number}: it is no record of "
                f"Optuna's but {line[:60]!r}. Keep the {number - 1} lines before it (`head -n "
                f"{number - 1}`), or move the file away and begin the study anew: what was trained "
                "stays in the store"
            )


def _database(uri: str) -> Any:
    import sqlalchemy

    shown = f"the study's database {masked(uri)!r:.300}"
    if fault := _fault(uri):
        raise StudyAway(f"{shown} {fault}")
    # What we install; SQLAlchemy itself would want psycopg2.
    address = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", uri)
    try:
        url = sqlalchemy.make_url(address)
    except Exception:  # its text may hold a part of the password
        raise StudyAway(f"{shown} is no address; write {_EXAMPLES}") from None
    try:
        driver = url.get_driver_name()
        arguments: dict[str, Any] = {_LIMITS[driver]: _ANSWER_S} if driver in _LIMITS else {}
        if url.get_backend_name() == "sqlite":
            arguments["timeout"] = _LOCK_S
        return _made(address, {"pool_pre_ping": True, "connect_args": arguments})
    except Exception as error:
        # The chain is cut because the cause's text may hold the password.
        raise StudyAway(f"{shown} cannot be used: {_told(error, uri)}") from None


def _made(address: str, options: dict[str, Any]) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError

    # Drivers that are first at the same time all make the tables; who is late finds some made.
    for _ in range(_TRIES - 1):
        try:
            return RDBStorage(address, engine_kwargs=options)
        except DBAPIError as error:
            if not re.search(r"already exists|(?i:unique|duplicate)", str(error.orig)):
                raise
    return RDBStorage(address, engine_kwargs=options)


def _fault(uri: str) -> str:
    """What is wrong with an address and what would be right; empty if it looks right."""
    scheme, _, rest = uri.partition("://")
    kind = re.fullmatch(r"(postgres|postgresql|mysql|mariadb|sqlite)(\+\w+)?", scheme)
    if not kind or not rest.strip("/") or not uri.isprintable():
        return f"is no address of a database that can keep it; write {_EXAMPLES}"
    user, at, _ = rest.rpartition("@")
    name, _, password = user.partition(":")
    # Read otherwise than meant, a part of the password would be taken for the host and be shown.
    if kind[1] != "sqlite" and at and (odd := re.search(r"[@/?#:]", f"{name}{password}")):
        return (
            f"has a user name or password with '{odd[0]}' in it; write %{ord(odd[0]):02X} for it, "
            "as addresses want"
        )
    return ""


def _told(error: Exception, uri: str) -> str:
    """What failed, in a line without credentials, and the remedy."""
    cause: BaseException = error
    while isinstance(cause, ImportError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ImportError):
        package = f"'{cause.name}'" if cause.name else "of its driver"
        remedy = "install it, or name another driver, as in mysql+pymysql://…"
        if uri.startswith("postgres"):
            remedy = "pip install 'sfumato[postgres]'"
            if not re.match(r"postgres(ql)?(\+psycopg)?://", uri):
                remedy += ", and write postgresql://…"
        return f"it needs the Python package {package}, which is not installed: {remedy}"
    said = reason(error, uri)
    if re.search(r"(?i)password|authenti|access denied|no pg_hba|role .* does not exist", said):
        return f"{said}. Correct the user or the password in --study-uri"
    if re.search(r"(?i)database .* does not exist|unknown database", said):
        return f"{said}. Create that database, or correct its name in --study-uri"
    if uri.startswith("sqlite"):
        return f"{said}. Name a file in a folder that exists and can be written"
    if "schema" in said and "version" in said:  # of an older or a newer Optuna
        return f"{said}. This is Optuna {_optuna()}: upgrade it, or the database"
    return f"{said}. Start the server or correct --study-uri; the same command goes on from there"


def _optuna() -> str:
    from importlib.metadata import version

    return version("optuna")
