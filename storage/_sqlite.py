"""MLflow's SQLite file: made whole or not at all, told from others, set aside when damaged."""

import fcntl
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_TABLES = ("experiments", "runs", "params", "latest_metrics", "tags", "experiment_tags")
# SQLite's own companions of a file: left behind, an old journal would be played into a new file.
_COMPANIONS = ("-journal", "-wal", "-shm")


def sqlite_file(uri: str) -> Path | None:
    """The file behind a SQLite address."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(found[1]) if found else None


def filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def make(path: Path) -> None:
    """Make a database beside its place and move it there: killed half-way, it is not there."""
    draft = path.with_name(f".{path.name}-new")
    for stale in (draft, *(Path(f"{draft}{end}") for end in _COMPANIONS)):
        stale.unlink(missing_ok=True)
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
    with closing(sqlite3.connect(draft)) as database:
        database.execute(f"PRAGMA application_id = {secrets.randbelow(2**31)}")
    os.replace(draft, path)


def fingerprint(uri: str) -> str:
    """What tells a SQLite file from another in its place; empty for servers, or if none is there.

    It is SQLite's application id, which `connect` draws for each file it makes.
    """
    path = sqlite_file(uri)
    try:
        with open(path or os.devnull, "rb") as file:
            return file.read(72)[68:].hex()
    except OSError:
        return ""


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold off other processes while a SQLite file is made or moved: two at once would wreck it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def damage(path: Path, *, thorough: bool = False) -> str | None:
    """What is wrong with MLflow's SQLite file.

    Args:
        path: the file.
        thorough: read every text too, as MLflow would; otherwise the structure only.

    Returns:
        None if the file is sound or absent, or if it is locked or forbidden, so that nobody knows.
    """
    if path.is_dir():
        return "it is a folder"
    try:
        if not path.stat().st_size:
            return "it is empty"
        uri = f"{path.absolute().as_uri()}?mode=rw"  # a journal left by a killed driver is played
        with closing(sqlite3.connect(uri, uri=True, timeout=2)) as database:
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                return str(said).splitlines()[-1]
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if lacking := [name for name in _TABLES if name not in names]:
                return f"it has no table {lacking[0]}"
            for name in _TABLES if thorough else ():
                for _ in database.execute(f"SELECT * FROM {name}"):
                    pass
    except FileNotFoundError:
        return None
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        # Text that is no UTF-8 has no code: Python finds it, not SQLite.
        known = "Could not decode" in str(error) if code is None else code & 0xFF in _DAMAGE
        return str(error) if known else None
    return None


def set_aside(path: Path, folder: Path, *, thorough: bool = False) -> str | None:
    """Move a damaged SQLite file to `folder`/NAME-N, with what SQLite keeps beside it.

    Returns:
        What was wrong and where the file is now; None if it is not damaged.

    Raises:
        OSError: if it cannot be moved.
    """
    if damage(path, thorough=thorough) is None:
        return None
    with alone(path):
        fault = damage(path, thorough=thorough)  # another driver may have been quicker
        if fault is None:
            return None
        number = 0
        while (place := folder / f"{path.name}-{number}").exists():
            number += 1
        place.mkdir(parents=True)
        for end in (*_COMPANIONS, ""):
            beside = Path(f"{path}{end}")
            if os.path.lexists(beside):
                os.replace(beside, place / beside.name)
        (place / "reason.txt").write_text(f"{fault}\n", encoding="utf-8")
    return f"{path} was damaged ({fault}) and is now in {place}"
