"""Checks of `sfumato doctor`: the store, its database, the data folder, the tracking server."""

import os
import shutil
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from orchestrator._finding import GIB, Check, Finding, Place, size

__all__ = ["STORE"]

_SHARED_DISKS = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "beegfs", "gpfs", "ceph")
_LITTLE_DISK, _NO_DISK = 2 * GIB, GIB // 10
_DRAFT_AGE_S = 86_400.0
_AGAIN = "`sfumato run` of the experiment that needs it computes it again"
_EVERY = 200
_RUNS = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"  # not those deleted


def _writable(place: Place) -> Iterator[Finding]:
    from storage.artifacts import StoreUnwritable
    from storage.census import is_store
    from storage.working import upstream_of

    store = place.store
    if not store.exists():
        parent = next(folder for folder in store.parents if folder.exists())
        if os.access(parent, os.W_OK):
            yield Finding("store", "note", f"{store} is not there yet", "the first run makes it")
        else:
            found = f"{store} is not there, and {parent} cannot be written to"
            yield Finding("store", "FAIL", found, "name another with --store")
        return
    trial = store / f".doctor-{uuid.uuid4().hex}"
    try:
        trial.write_bytes(b"written by sfumato doctor")
        trial.rename(trial.with_suffix(".renamed"))
        trial.with_suffix(".renamed").unlink()
    except OSError as error:
        found = f"{store} cannot be written to: {error.strerror}"
        remedy = "permit writing there, or name another with --store; reading still works"
        yield Finding("store", "FAIL", found, remedy)
        return
    upstream = upstream_of(store)
    if upstream is not None:
        name = f".doctor-{uuid.uuid4().hex}"
        try:
            upstream.objects.write(name, b"written by sfumato doctor")
            upstream.objects.remove(name)
        except StoreUnwritable as error:
            yield Finding("store", "FAIL", f"{upstream.uri}: {error}", "reading may still work")
            return
        yield Finding("store", "ok", f"{upstream.uri}, writable, through {store}")
    elif is_store(store):
        yield Finding("store", "ok", f"{store}, writable")
    elif any(store.iterdir()):
        found = f"{store} is no store: it holds other things, and nothing of a store"
        yield Finding("store", "FAIL", found, "name the store with --store; a run would begin one")
    else:
        yield Finding("store", "note", f"{store} is empty", "the first run makes a store of it")


def _disk(place: Place) -> Iterator[Finding]:
    there = next(folder for folder in (place.store, *place.store.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    kind = _filesystem(there)
    found = f"{size(free)} free" + (f", {kind}" if kind else "")
    if free < _LITTLE_DISK:
        remedy = "free some (`sfumato gc` finds what no experiment needs), or use another --store"
        yield Finding("disk", "FAIL" if free < _NO_DISK else "note", found, remedy)
    elif kind.startswith(_SHARED_DISKS):
        remedy = "SQLite may not lock here: send the history to a server with --tracking-uri"
        yield Finding("disk", "note", found, remedy)
    else:
        yield Finding("disk", "ok", found)


def _filesystem(folder: Path) -> str:
    """The type of the file system, or an empty string where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    real = folder.resolve()
    mounts = {line.split()[1].replace("\\040", " "): line.split()[2] for line in lines}
    return next((mounts[str(up)] for up in (real, *real.parents) if str(up) in mounts), "")


def _artifacts(place: Place) -> Iterator[Finding]:
    """Every artifact by names and sizes; `deep`, by checksums too, setting aside the damaged."""
    from storage.artifacts import ArtifactDamaged, Artifacts
    from storage.census import is_store, pieces

    if not is_store(place.store):
        return
    artifacts = Artifacts(place.store / "artifacts")
    held = list(pieces(place.store, _DRAFT_AGE_S))
    all_keys = [piece.key for piece in held if piece.what == "artifact"]
    # Of a store at an URI this machine has what it needed; the others are checked when fetched.
    keys = [key for key in all_keys if artifacts.state(key) != "absent"]
    faults: dict[str, str] = {}
    for number, key in enumerate(keys):
        if place.deep and number % _EVERY == 0:
            place.told(f"artifact {number} of {len(keys)}")
        try:
            artifact = artifacts.open(key)
            if place.deep:
                artifact.verify()
        except ArtifactDamaged as damage:
            faults[key] = damage.fault
            if place.deep:
                artifacts.set_aside(key, str(damage))
    nbytes = sum(piece.nbytes for piece in held if piece.what == "artifact")
    away = (
        f", {len(all_keys) - len(keys)} more at the URI only" if len(all_keys) > len(keys) else ""
    )
    how = "every checksum right" if place.deep else "sizes right, contents not read (--deep does)"
    whole = f"{len(keys) - len(faults)} artifacts whole{away}, {size(nbytes)}, {how}"
    if faults:
        key, fault = next(iter(faults.items()))
        then = f"set aside; {_AGAIN}" if place.deep else _AGAIN
        found = f"{len(faults)} damaged, the first {key[:12]}: {fault}; {whole}"
        yield Finding("artifacts", "FAIL", found, then)
    else:
        yield Finding("artifacts", "ok", whole)
    left = Counter(piece.what for piece in held)
    if left["draft"]:
        found = f"{left['draft']} left by processes that were killed"
        yield Finding("drafts", "note", found, "the next run, or `sfumato gc --delete`, drops them")
    if left["damaged"]:
        found = f"{left['damaged']} things set aside as damaged, in damaged/ and tables/"
        remedy = "look at reason.txt if it happens again (disk?); `sfumato gc --delete --damaged`"
        yield Finding("set aside", "note", found, remedy)


def _tables(place: Place) -> Iterator[Finding]:
    """With `deep`, every part of every table is read."""
    from storage.census import find_keys
    from storage.tables import SCHEMAS, Tables

    root = place.store / "tables"
    if not root.is_dir():
        return
    parts = sum(1 for table in SCHEMAS for _ in (root / table).glob("*.parquet"))
    if not place.deep:
        yield Finding("tables", "ok", f"{parts} parts, not read (--deep does)")
        return
    tables = Tables(root)
    keys = find_keys(place.store, "")
    for table in SCHEMAS:
        place.told(f"table {table}")
        if table == "cells":
            tables.frame("cells")
        else:
            tables.lacking(table, keys)
    if tables.problems:
        found = f"{len(tables.problems)} of {parts} parts damaged, the first: {tables.problems[0]}"
        yield Finding("tables", "FAIL", found, _AGAIN)
    else:
        yield Finding("tables", "ok", f"{parts} parts, every checksum right")


def _history(place: Place) -> Iterator[Finding]:
    from storage.census import is_store

    database = place.store / "mlflow.db"
    if not database.exists():
        if is_store(place.store):
            yield Finding("MLflow", "ok", "no mlflow.db yet; the first run makes it")
        return
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            (runs,) = connection.execute(_RUNS).fetchone()
            check = connection.execute("PRAGMA quick_check").fetchone() if place.deep else ("ok",)
        if check[0] != "ok":
            raise sqlite3.DatabaseError(check[0])
    except sqlite3.Error as error:
        remedy = f"move {database} away; `sfumato history --rebuild` makes it from the tables"
        yield Finding("MLflow", "FAIL", f"mlflow.db cannot be read: {error}", remedy)
        return
    yield Finding("MLflow", "ok", f"mlflow.db holds {runs} runs")


def _server(place: Place) -> Iterator[Finding]:
    """An address in the environment is MLflow's own way; ours is the option."""
    from storage.tracking import masked

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        found = f"MLFLOW_TRACKING_URI={masked(uri)} is set, and is not read"
        yield Finding("MLflow server", "note", found, "use --tracking-uri")


def _data(place: Place) -> Iterator[Finding]:
    """Which of the known sets are here; `deep`, whether each can be loaded."""
    from storage import datasets

    if place.data_dir is None:
        remedy = "for real data: SFUMATO_DATA or --data-dir; `sfumato list datasets` says what"
        yield Finding("data", "note", "no folder named; sets that need no file work", remedy)
        return
    if not place.data_dir.is_dir():
        found = f"the data folder {place.data_dir} does not exist"
        yield Finding("data", "FAIL", found, "check --data-dir or SFUMATO_DATA")
        return
    here = {info.name for info in datasets.names(place.data_dir) if info.available}
    here -= {info.name for info in datasets.names(None) if info.available}
    if not here:
        found = f"{place.data_dir} holds none of the known sets"
        yield Finding("data", "note", found, "`sfumato list datasets` says which files are known")
        return
    faults: dict[str, str] = {}
    for name in sorted(here):
        place.told(f"dataset {name}")
        try:
            _touch(place, name)
        except (OSError, ValueError, MemoryError) as error:
            faults[name] = str(error) or type(error).__name__
    sound = ", ".join(sorted(here - faults.keys())) or "none"
    how = "can be loaded" if place.deep else "can be opened (--deep loads them)"
    for name, fault in faults.items():
        yield Finding(f"data {name}", "FAIL", fault, "fetch the file again (data/MANIFEST.md)")
    yield Finding("data", "ok", f"{place.data_dir}, {how}: {sound}")


def _touch(place: Place, name: str) -> None:
    from storage import datasets

    if place.deep:
        datasets.load(datasets.Source(name), place.data_dir)
        return
    for suffix, mark in ((".parquet", b"PAR1"), (".npz", b"PK")):
        path = (place.data_dir or Path()) / f"{name}{suffix}"
        if path.exists():
            with path.open("rb") as file:
                if not file.read(4).startswith(mark):
                    raise ValueError(f"{path} is no {suffix[1:]} file")


STORE: dict[str, Check] = {
    "store": _writable,
    "disk": _disk,
    "artifacts": _artifacts,
    "tables": _tables,
    "MLflow": _history,
    "MLflow server": _server,
    "data": _data,
}
