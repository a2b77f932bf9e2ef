"""What lies in a store, whole or not, needed or not; and how a piece of it is removed."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from storage._disk import KEY, draft_name, stale_drafts, writing_to
from storage._formats import canonical
from storage._schemas import SCHEMAS
from storage.remote import ObjectStore
from storage.working import upstream_of

__all__ = [
    "Piece",
    "check_store",
    "description",
    "discard",
    "find_keys",
    "is_store",
    "keys_in",
    "obstacle",
    "pieces",
    "remove",
]

# A cell belongs to an experiment, a trial to a study: no task's key says who needs them.
_OWNED = ("cells", "trials", "judged")
_FOLDERS = ("artifacts", "tables", "experiments")


@dataclass(frozen=True)
class Piece:
    """One thing in a store that goes as a whole.

    Attributes:
        what: an artifact, a part of a table, a draft nobody writes to any more, or what was set
            aside because it was damaged.
        path: the file or folder; of a working copy, where it is or would be.
        nbytes: its size.
        key: the task key of an artifact or a part.
        table: the table of a part.
    """

    what: Literal["artifact", "part", "draft", "damaged"]
    path: Path
    nbytes: int
    key: str = ""
    table: str = ""


def check_store(root: Path) -> None:
    """Refuse a folder that is no store, or is not there.

    Raises:
        ValueError: with the remedy.
    """
    if not is_store(root) and (upstream := upstream_of(root)) is not None:
        raise ValueError(
            f"there is no store at {upstream.uri}: nothing is there. `sfumato run` makes one, "
            "--store names another"
        )
    if not is_store(root):
        some = "the folder holds no artifacts, tables or experiments"
        raise ValueError(
            f"there is no store at {root}: {some if root.is_dir() else 'no such folder'}. "
            "`sfumato run` makes one, --store names another"
        )
    if file := obstacle(root):
        raise ValueError(
            f"{file} is a file where a store has a folder; name another store, or move it away"
        )


def obstacle(root: Path) -> Path | None:
    """A file that lies where a store has a folder, if there is any."""
    tables = (f"tables/{table}" for table in SCHEMAS)
    places = (root / name for name in (*_FOLDERS, "damaged", *tables))
    return next((place for place in places if place.exists() and not place.is_dir()), None)


def is_store(root: Path) -> bool:
    """Whether a folder has anything of a store in it."""
    return any((root / name).is_dir() for name in _FOLDERS)


def pieces(store: Path, drafts_older_than_s: float) -> Iterator[Piece]:
    """All that can be removed from a store: not its experiments, their cells, nor studies.

    Args:
        store: its root.
        drafts_older_than_s: as `drop_drafts` takes it.

    Raises:
        StoreUnwritable: the store is a working copy, and the server of its URI is away.
    """
    upstream = upstream_of(store)
    there, half = upstream.sizes() if upstream else ({}, {})
    for folder in _artifacts(store):
        yield Piece("artifact", folder, there.pop(folder.name, 0) or _size(folder), folder.name)
    for key, nbytes in sorted(there.items()):
        yield Piece("artifact", store / "artifacts" / key[:2] / key, nbytes, key)
    for key, stat in sorted(half.items()):
        # Without its mark at the URI, though this folder may hold it whole.
        if time.time() - stat.mtime_ns / 1e9 > drafts_older_than_s:
            yield Piece("draft", store / "artifacts" / key[:2] / f".draft-{key}", stat.size)
    for table in SCHEMAS:
        if table not in _OWNED:
            for path in sorted((store / "tables" / table).glob("part-*.parquet")):
                key = path.stem.removeprefix("part-")
                yield Piece("part", path, _size(path), key, table)
    inside = ("experiments/*/forms", "experiments/*/images")
    folders = ("artifacts", "tables/*", "experiments/*", *inside)
    for place in (place for pattern in folders for place in store.glob(pattern)):
        for draft in stale_drafts(place, drafts_older_than_s):
            yield Piece("draft", draft, _size(draft))
    aside = {path: _size(path) for path in store.glob("damaged/*")}
    aside |= {path: _size(path) for path in store.glob("tables/*/*.damaged*")}
    for name, stat in upstream.objects.listing("damaged").items() if upstream else ():
        if not set(Path(name).parts).isdisjoint({"..", "/", "."}):
            continue  # a name that leads elsewhere is none of ours
        place = store / Path(*Path(name).parts[:2])
        aside[place] = aside.get(place, 0) + stat.size
    for path, nbytes in sorted(aside.items()):
        yield Piece("damaged", path, nbytes)


def remove(piece: Piece, upstream: ObjectStore | None = None) -> None:
    """Remove a piece; whatever stops this process, no half of an artifact is left in its place.

    Args:
        piece: of a store.
        upstream: whose working copy the store is; artifacts and what was set aside go there first.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden, or the server is away.
    """
    path = piece.path
    half = path.name.removeprefix(".draft-")
    if upstream and (piece.what == "artifact" or KEY.fullmatch(half)):
        upstream.drop(piece.key or half)
    if upstream and piece.what == "damaged" and path.parent.name == "damaged":
        upstream.objects.remove_folder(f"damaged/{path.name}")
    if piece.what == "artifact":
        # What a killed process leaves of this is a draft, which the next run drops.
        aside = path.parent.parent / draft_name()
        with writing_to(path), suppress(FileNotFoundError):
            path = path.rename(aside)
    discard(path)


def discard(path: Path) -> None:
    """Remove a file or folder, if it is still there; raises as `remove`."""
    # Another process may be doing the same.
    with writing_to(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def find_keys(store: Path, prefix: str) -> set[str]:
    """The keys beginning with `prefix` of artifacts, whole or not, and of table parts.

    Raises:
        ValueError: `prefix` has other characters than 0-9 and a-f.
    """
    if set(prefix) - set("0123456789abcdef"):
        raise ValueError(f"{prefix!r} begins no task key: they are digits 0-9 and a-f")
    parts = store.glob(f"tables/*/part-{prefix}*.parquet")
    found = {path.stem.removeprefix("part-") for path in parts}
    found |= {folder.name for folder in _artifacts(store) if folder.name.startswith(prefix)}
    return {key for key in found if KEY.fullmatch(key)}


def description(store: Path, key: str) -> dict[str, Any] | None:
    """The task that `key` stands for, read from its artifact, whatever state that is in.

    Of a working copy that lacks it, as the URI has it.

    Returns:
        None if there is none, or it cannot be read, or its hash is not `key`.
    """
    try:
        content = json.loads((store / "artifacts" / key[:2] / key / "task.json").read_bytes())
        task = content["task"]
        return dict(task) if sha256(canonical(task)).hexdigest() == key else None
    except (OSError, ValueError, KeyError, TypeError):
        upstream = upstream_of(store)
        return None if upstream is None else upstream.describe(key)


def keys_in(value: Any) -> Iterator[str]:
    """The keys of the inputs named in a description or a part of it, in order."""
    if isinstance(value, dict):
        if set(value) == {"task"} and isinstance(value["task"], str):
            yield value["task"]
        else:
            for item in value.values():
                yield from keys_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys_in(item)


def _artifacts(store: Path) -> Iterator[Path]:
    for folder in sorted(store.glob("artifacts/[0-9a-f][0-9a-f]/*")):
        if KEY.fullmatch(folder.name):
            yield folder


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 for what went meanwhile."""
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        try:
            total += file.lstat().st_size if not file.is_dir() else 0
        except OSError:
            continue
    return total
