"""One artifact: a folder being filled, a folder that is read, and its files on their way."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from storage._disk import check_name, sync_folder, unreadable, write_synced, writing_to
from storage._formats import (
    UNREADABLE,
    arrays_bytes,
    canonical,
    facts_bytes,
    image_bytes,
    read_arrays,
    read_facts,
    read_table,
    table_bytes,
)

MARK = "task.json"
"""The file that says what an artifact is and what it holds; elsewhere it is written last."""


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
        return f"artifact {self.damaged_key}: {self.fault}. A run that needs it computes it again."

    @property
    def fault(self) -> str:
        """Which file, and what is wrong with it."""
        return f"{self.args[1]} {self.args[2]}"


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
        self._write(f"{check_name(name)}.safetensors", arrays_bytes(name, arrays))

    def table(self, name: str, columns: Mapping[str, NDArray[Any] | Sequence[Any]]) -> None:
        """Keep columns of equal length in NAME.parquet.

        Args:
            name: file name without its ending.
            columns: [N] strings, bools, integers or floats, or [N, C] numbers with C > 0.

        Raises:
            ValueError: no columns, unequal lengths, missing values, or another shape.
            TypeError: values of another type.
        """
        self._write(f"{check_name(name)}.parquet", table_bytes(name, columns))

    def facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep small facts in NAME.json, in one canonical text; NaN becomes null.

        Raises:
            TypeError: a value JSON has no word for, or a name that is not a string.
            ValueError: an infinite number.
        """
        self._write(f"{check_name(name)}.json", facts_bytes(name, facts))

    def image(self, name: str, pixels: NDArray[Any]) -> None:
        """Keep pixels uint8 [H, W] or [H, W, 3] in NAME.png; raises ValueError for others."""
        self._write(f"{check_name(name)}.png", image_bytes(name, pixels))

    def _write(self, file: str, data: bytes | memoryview) -> None:
        if file in self._files or file == MARK:
            raise ValueError(f"{file} is already part of this artifact; choose another name")
        with writing_to(self._folder.parent):
            write_synced(self._folder / file, data)
        self._files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _seal(self, key: str, task: Mapping[str, Any]) -> None:
        content = {"key": key, "task": task, "files": self._files}
        write_synced(self._folder / MARK, canonical(content))
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
            mark = (folder / MARK).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            if not os.path.lexists(folder):
                raise ArtifactMissing(
                    key, f"no artifact {key} in {folder.parent.parent}"
                ) from error
            raise ArtifactDamaged(key, MARK, "is missing") from error
        except IsADirectoryError as error:
            raise ArtifactDamaged(key, MARK, f"cannot be read ({error})") from error
        except OSError as error:
            raise _unreadable(key, MARK, error) from error
        self.description, self._files = read_mark(key, mark)
        for name, (size, _) in self._files.items():
            try:
                found = (folder / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ArtifactDamaged(key, name, "is missing") from error
            except OSError as error:
                raise _unreadable(key, name, error) from error
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
        return self._parsed(f"{name}.safetensors", read_arrays)

    def table(self, name: str) -> dict[str, NDArray[Any]]:
        """The columns of NAME.parquet; text comes as object arrays of `str`. Read-only.

        Raises:
            ArtifactMissing: there is no such file in this artifact.
            ArtifactDamaged: the file is not what was written.
        """
        return self._parsed(f"{name}.parquet", read_table)

    def facts(self, name: str) -> dict[str, Any]:
        """The facts of NAME.json; what was NaN is None.

        Raises:
            ArtifactMissing: there is no such file in this artifact.
            ArtifactDamaged: the file is not what was written.
        """
        return self._parsed(f"{name}.json", read_facts)

    def image(self, name: str) -> bytes:
        """The file NAME.png as it is.

        Raises:
            ArtifactMissing: there is no such file in this artifact.
            ArtifactDamaged: the file is not what was written.
        """
        return self._bytes(f"{name}.png")

    def verify(self) -> None:
        """Check every file against its checksum.

        Raises:
            ArtifactDamaged: a file is not what was written.
        """
        for name in self._files:
            self._bytes(name)

    def content(self) -> dict[str, bytes]:
        """Every file by name, task.json included; raises as `verify`."""
        payload = {name: self._bytes(name) for name in self._files}
        try:
            return payload | {MARK: (self._folder / MARK).read_bytes()}
        except FileNotFoundError as error:  # removed meanwhile
            raise ArtifactDamaged(self.key, MARK, "is missing") from error

    def _bytes(self, file: str) -> bytes:
        if file not in self._files:
            held = ", ".join(self.files) or "nothing"
            raise ArtifactMissing(self.key, f"artifact {self.key} holds no {file}; it holds {held}")
        try:
            data = (self._folder / file).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ArtifactDamaged(self.key, file, "is missing") from error
        except OSError as error:
            raise _unreadable(self.key, file, error) from error
        if hashlib.sha256(data).hexdigest() != self._files[file][1]:
            raise ArtifactDamaged(self.key, file, "does not match its checksum")
        return data

    def _parsed(
        self, file: str, parse: Callable[[bytes], dict[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        data = self._bytes(file)
        try:
            return parse(data)
        except UNREADABLE as e:
            raise ArtifactDamaged(self.key, file, f"cannot be read ({e})") from e


def key_of(task: Any) -> str:
    """The key of the task that a description tells."""
    return hashlib.sha256(canonical(task)).hexdigest()


def read_mark(key: str, mark: bytes) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """What task.json says.

    Returns:
        The task that was hashed to make `key`, and the bytes and SHA-256 of each payload file.

    Raises:
        ArtifactDamaged: it cannot be read, or says another key.
    """
    try:
        content = json.loads(mark)
        if content["key"] != key:
            raise ValueError(f"it says key {content['key']!r}")
        if key_of(content["task"]) != key:
            raise ValueError("the task in it is not the one its key stands for")
        files = {
            check_name(name): (int(file["bytes"]), str(file["sha256"]))
            for name, file in content["files"].items()
        }
        return dict(content["task"]), files
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactDamaged(key, MARK, f"cannot be read ({error})") from error


def check_copy(key: str, files: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    """Check the files of an artifact that came from elsewhere.

    Returns:
        The bytes and SHA-256 of each payload file.

    Raises:
        ArtifactDamaged: a file is missing, or is not what task.json says.
    """
    if MARK not in files:
        raise ArtifactDamaged(key, MARK, "is missing")
    _, named = read_mark(key, files[MARK])
    for name, (size, digest) in named.items():
        if name not in files:
            raise ArtifactDamaged(key, name, "is missing")
        if len(files[name]) != size:
            raise ArtifactDamaged(key, name, f"has {len(files[name])} bytes instead of {size}")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ArtifactDamaged(key, name, "does not match its checksum")
    return named


def _unreadable(key: str, file: str, error: OSError) -> OSError | ArtifactDamaged:
    """Damage, if it is the file's fault that it cannot be read."""
    if not unreadable(error):
        return error
    return ArtifactDamaged(key, file, f"cannot be read ({error.strerror})")
