"""Folders named by task key, written whole or not at all, checked when read, never pickled."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

__all__ = [
    "Artifact",
    "ArtifactDamaged",
    "ArtifactMissing",
    "Artifacts",
    "Draft",
    "StoreUnwritable",
    "check_key",
    "check_name",
    "sync_folder",
    "write_synced",
    "write_whole",
    "writing_to",
]

_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9_.-]+")
_DRAFT = ".draft-"
_DTYPES = ("float64", "float32", "int64", "int32", "uint8", "bool")
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class ArtifactMissing(LookupError):
    """Nothing is stored under this key or name.

    Attributes:
        damaged_key: the key of the artifact to compute again.
    """

    def __init__(self, damaged_key: str, what: str) -> None:
        super().__init__(damaged_key, what)
        self.damaged_key = damaged_key

    def __str__(self) -> str:
        return str(self.args[1])


class ArtifactDamaged(RuntimeError):
    """A stored artifact is not what was written.

    Attributes:
        damaged_key: the key of the artifact to set aside and compute again.
    """

    def __init__(self, damaged_key: str, file: str, fault: str) -> None:
        # All arguments go to `args`, so that the exception survives the way between processes.
        super().__init__(damaged_key, file, fault)
        self.damaged_key = damaged_key

    def __str__(self) -> str:
        key, file, fault = self.args
        return f"artifact {key}: {file} {fault}. Running the experiment again recomputes it."


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
    if not _KEY.fullmatch(key):
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


class Draft:
    """An artifact being written; nobody else sees it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}

    def arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays of any shape in NAME.safetensors.

        Raises:
            TypeError: a dtype other than float64, float32, int64, int32, uint8 or bool.
        """
        whole: dict[str, NDArray[Any]] = {}
        for label, array in arrays.items():
            if array.dtype.name not in _DTYPES:
                raise TypeError(
                    f"{name}: array {label!r} is {array.dtype}; convert it to one of "
                    f"{', '.join(_DTYPES)}"
                )
            # safetensors writes the buffer as it lies, so it must lie in C order, natively.
            whole[label] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        self._write(f"{check_name(name)}.safetensors", safetensors.numpy.save(whole))

    def table(self, name: str, columns: Mapping[str, NDArray[Any] | Sequence[Any]]) -> None:
        """Keep columns of equal length in NAME.parquet.

        Args:
            name: file name without its ending.
            columns: [N] strings, bools, integers or floats, or [N, C] numbers with C > 0.

        Raises:
            ValueError: no columns, unequal lengths, missing values, or another shape.
            TypeError: values of another type.
        """
        arrow = {label: _to_arrow(name, label, values) for label, values in columns.items()}
        lengths = {label: len(values) for label, values in arrow.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{name}: expected columns of one length, got lengths {lengths}")
        # Non-nullable fields spare Parquet a level of bookkeeping: 4 times faster for [N, C].
        fields = [pa.field(label, v.type, nullable=False) for label, v in arrow.items()]
        table = pa.Table.from_arrays(list(arrow.values()), schema=pa.schema(fields))
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            write_page_checksum=True,
            # A dictionary makes all NaNs one NaN; numbers are kept bit for bit.
            use_dictionary=[f.name for f in fields if pa.types.is_string(f.type)],
        )
        self._write(f"{check_name(name)}.parquet", memoryview(sink.getvalue()))

    def facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep small facts in NAME.json, in one canonical text; NaN becomes null.

        Raises:
            TypeError: a value JSON has no word for, or a name that is not a string.
            ValueError: an infinite number.
        """
        self._write(f"{check_name(name)}.json", _canonical(_plain(name, facts)))

    def _write(self, file: str, data: bytes | memoryview) -> None:
        if file in self._files or file == "task.json":
            raise ValueError(f"{file} is already part of this artifact; choose another name")
        with writing_to(self._folder.parent):
            write_synced(self._folder / file, data)
        self._files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _seal(self, key: str, task: Mapping[str, Any]) -> None:
        content = {"key": key, "task": task, "files": self._files}
        write_synced(self._folder / "task.json", _canonical(content))
        sync_folder(self._folder)


class Artifact:
    """A finished artifact. Every read checks the file's SHA-256 first.

    Attributes:
        key: the task key.
        description: the task that was hashed to make the key.
    """

    def __init__(self, key: str, folder: Path) -> None:
        self.key = key
        self._folder = folder
        try:
            content = json.loads((folder / "task.json").read_bytes())
            if content["key"] != key:
                raise ValueError(f"it says key {content['key']!r}")
            self.description: dict[str, Any] = dict(content["task"])
            self._files = {
                check_name(name): (int(file["bytes"]), str(file["sha256"]))
                for name, file in content["files"].items()
            }
        except (FileNotFoundError, NotADirectoryError) as error:
            if not os.path.lexists(folder):
                raise ArtifactMissing(
                    key, f"no artifact {key} in {folder.parent.parent}"
                ) from error
            raise ArtifactDamaged(key, "task.json", "is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
            raise ArtifactDamaged(key, "task.json", f"cannot be read ({error})") from error
        for name, (size, _) in self._files.items():
            try:
                found = (folder / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ArtifactDamaged(key, name, "is missing") from error
            if found != size:
                raise ArtifactDamaged(key, name, f"has {found} bytes instead of {size}")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the payload files, sorted."""
        return tuple(sorted(self._files))

    @property
    def nbytes(self) -> int:
        """The size of the payload on disk."""
        return sum(size for size, _ in self._files.values())

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of NAME.safetensors, as they were.

        Raises:
            ArtifactMissing: there is no such file in this artifact.
            ArtifactDamaged: the file is not what was written.
        """
        return self._parsed(f"{name}.safetensors", safetensors.numpy.load)

    def table(self, name: str) -> dict[str, NDArray[Any]]:
        """The columns of NAME.parquet; text comes as object arrays of `str`. Read-only.

        Raises:
            ArtifactMissing: there is no such file in this artifact.
            ArtifactDamaged: the file is not what was written.
        """
        return self._parsed(f"{name}.parquet", _columns)

    def facts(self, name: str) -> dict[str, Any]:
        """The facts of NAME.json; what was NaN is None.

        Raises:
            ArtifactMissing: there is no such file in this artifact.
            ArtifactDamaged: the file is not what was written.
        """
        return self._parsed(f"{name}.json", lambda data: dict(json.loads(data)))

    def verify(self) -> None:
        """Check every file against its checksum.

        Raises:
            ArtifactDamaged: a file is not what was written.
        """
        for name in self._files:
            self._bytes(name)

    def _bytes(self, file: str) -> bytes:
        if file not in self._files:
            held = ", ".join(self.files) or "nothing"
            raise ArtifactMissing(self.key, f"artifact {self.key} holds no {file}; it holds {held}")
        try:
            data = (self._folder / file).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ArtifactDamaged(self.key, file, "is missing") from error
        if hashlib.sha256(data).hexdigest() != self._files[file][1]:
            raise ArtifactDamaged(self.key, file, "does not match its checksum")
        return data

    def _parsed(
        self, file: str, parse: Callable[[bytes], dict[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        data = self._bytes(file)
        try:
            return parse(data)
        except (ValueError, TypeError, KeyError, OSError, SafetensorError, pa.ArrowException) as e:
            raise ArtifactDamaged(self.key, file, f"cannot be read ({e})") from e


class Artifacts:
    """The artifact store: a folder a key, present means complete.

    Two processes may put the same key at once; one copy wins. Every method that takes a key
    raises `ValueError` if it is not one.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def __contains__(self, key: str) -> bool:
        """Whether `key` is complete by names and sizes; no file is hashed."""
        return self.state(key) == "complete"

    def state(self, key: str) -> Literal["complete", "damaged", "absent"]:
        """What is stored under `key`, judged by names and sizes; no file is hashed."""
        try:
            self.open(key)
        except ArtifactMissing:
            return "absent"
        except ArtifactDamaged:
            return "damaged"
        return "complete"

    def open(self, key: str) -> Artifact:
        """The artifact of `key`.

        Raises:
            ArtifactMissing: nothing is stored under `key`.
            ArtifactDamaged: it lacks a file, or a file has another size.
        """
        return Artifact(key, self._folder(key))

    def put(self, key: str, description: str, write: Callable[[Draft], None]) -> None:
        """Fill a private folder, then rename it into place.

        If another process finished first, its copy stays, unless it is damaged.

        Args:
            key: the task key.
            description: the JSON object whose hash is `key`.
            write: fills the draft. What it raises leaves nothing behind.

        Raises:
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        final = self._folder(key)
        # Not tempfile.mkdtemp: its folders are private to their user, and a store is shared.
        folder = self.root / f"{_DRAFT}{uuid.uuid4().hex}"
        task = json.loads(description)
        if not isinstance(task, dict):
            raise ValueError(f"the description of {key} is no JSON object: {description[:80]}")
        try:
            with writing_to(self.root):
                folder.mkdir(parents=True)
            draft = Draft(folder)
            write(draft)
            with writing_to(self.root):
                draft._seal(key, task)
                self._publish(key, folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def set_aside(self, key: str, reason: str) -> Path | None:
        """Move what is stored under `key` to damaged/KEY-N/artifact beside the store's root.

        Returns:
            The folder damaged/KEY-N, which also holds reason.txt, or None if nothing was there.

        Raises:
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        folder = self._folder(key)
        if not os.path.lexists(folder):
            return None
        with writing_to(self.root):
            place = self._claim(key)
            try:
                shutil.move(folder, place / "artifact")
            except FileNotFoundError:  # another process was quicker
                shutil.rmtree(place, ignore_errors=True)
                return None
            (place / "reason.txt").write_text(f"{reason}\n", encoding="utf-8")
        return place

    def keys(self) -> Iterator[str]:
        """The complete keys, sorted."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            if _KEY.fullmatch(folder.name) and folder.name in self:
                yield folder.name

    def drop_stale_drafts(self, older_than_s: float) -> int:
        """Remove the drafts of processes that were killed.

        Args:
            older_than_s: only drafts nobody wrote to for so long; longer than any task writes.

        Returns:
            How many were removed.
        """
        num_dropped = 0
        for folder in self.root.glob(f"{_DRAFT}*"):
            try:
                last = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            except FileNotFoundError:  # finished or dropped while we looked
                continue
            if time.time() - last > older_than_s:
                shutil.rmtree(folder, ignore_errors=True)
                num_dropped += not folder.exists()
        return num_dropped

    def _folder(self, key: str) -> Path:
        return self.root / check_key(key)[:2] / key

    def _publish(self, key: str, folder: Path, final: Path) -> None:
        final.parent.mkdir(exist_ok=True)
        while True:
            try:
                folder.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                sync_folder(final.parent)
                sync_folder(self.root)
                return
            try:
                self.open(key).verify()
                return
            except ArtifactMissing:
                continue
            except ArtifactDamaged as damage:
                self.set_aside(key, str(damage))

    def _claim(self, key: str) -> Path:
        number = 0
        while True:
            place = self.root.parent / "damaged" / f"{key}-{number}"
            try:
                place.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return place


def _to_arrow(table: str, label: str, values: NDArray[Any] | Sequence[Any]) -> Any:
    where = f"{table}: column {label!r}"
    if not isinstance(values, np.ndarray):
        values = list(values)
        # pyarrow refuses mixed types, which numpy would silently turn into text.
        array = pa.array(values, type=None if values else pa.float64())
    elif values.dtype.kind in "UO":
        array = pa.array(values.tolist(), type=pa.string())
    elif values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise TypeError(f"{where} is {values.dtype}; expected text, bools, integers or floats")
    elif values.ndim == 2 and values.shape[1] > 0 and values.dtype.kind != "b":
        native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
        flat = pa.array(native.reshape(-1))
        item = pa.field("item", flat.type, nullable=False)
        return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, values.shape[1]))
    elif values.ndim != 1:
        raise ValueError(f"{where} has shape {values.shape}; expected [N], or [N, C] numbers")
    else:
        array = pa.array(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
    if array.null_count:
        raise ValueError(f"{where} has {array.null_count} missing values; say NaN or '' instead")
    kinds = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    if not any(kind(array.type) for kind in kinds):
        raise TypeError(f"{where} holds {array.type}; expected text, bools, integers or floats")
    return array


def _columns(data: bytes) -> dict[str, NDArray[Any]]:
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    columns = {}
    for label, column in zip(table.column_names, table.columns, strict=True):
        array = column.combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = array.flatten().to_numpy(zero_copy_only=False)
            columns[label] = flat.reshape(-1, column.type.list_size)
        else:
            columns[label] = array.to_numpy(zero_copy_only=False)
    return columns


def _plain(where: str, value: Any) -> Any:
    """`value` in the types JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        for label in value:
            if not isinstance(label, str):
                raise TypeError(f"{where}: name {label!r} is not a string")
        return {label: _plain(f"{where}.{label}", item) for label, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{where}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold; keep None or a string")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{where} is {type(value).__name__}; JSON holds text, numbers, lists, mappings")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


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
