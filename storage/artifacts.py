"""Folders named by task key, written whole or not at all, checked when read, never pickled."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from storage._disk import (
    KEY,
    StoreUnwritable,
    check_key,
    check_name,
    draft_name,
    drop_drafts,
    sync_folder,
    unreadable,
    write_synced,
    write_whole,
    writing_to,
)
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

__all__ = [
    "Artifact",
    "ArtifactDamaged",
    "ArtifactMissing",
    "Artifacts",
    "Draft",
    "StoreUnwritable",
    "drop_drafts",
    "write_whole",
]


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
        if file in self._files or file == "task.json":
            raise ValueError(f"{file} is already part of this artifact; choose another name")
        with writing_to(self._folder.parent):
            write_synced(self._folder / file, data)
        self._files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _seal(self, key: str, task: Mapping[str, Any]) -> None:
        content = {"key": key, "task": task, "files": self._files}
        write_synced(self._folder / "task.json", canonical(content))
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
            if _key_of(content["task"]) != key:
                raise ValueError("the task in it is not the one its key stands for")
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
        except OSError as error:
            raise _unreadable(key, "task.json", error) from error
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
            ValueError: `key` is not the hash of the description.
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        final = self._folder(key)
        # Not tempfile.mkdtemp: its folders are private to their user, and a store is shared.
        folder = self.root / draft_name()
        task = json.loads(description)
        if not isinstance(task, dict):
            raise ValueError(f"the description of {key} is no JSON object: {description[:80]}")
        if _key_of(task) != key:
            raise ValueError(f"{key} is not the SHA-256 of its description {description[:80]}")
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
                _move(folder, place / "artifact")
            except FileNotFoundError:  # another process was quicker
                shutil.rmtree(place, ignore_errors=True)
                return None
            except OSError:
                shutil.rmtree(place, ignore_errors=True)
                raise
            (place / "reason.txt").write_text(f"{reason}\n", encoding="utf-8")
        return place

    def keys(self) -> Iterator[str]:
        """The complete keys, sorted."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            if KEY.fullmatch(folder.name) and folder.name in self:
                yield folder.name

    def drop_stale_drafts(self, older_than_s: float) -> int:
        """Remove the drafts of processes that were killed; as `drop_drafts`."""
        return drop_drafts(self.root, older_than_s)

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


def _key_of(task: Any) -> str:
    return hashlib.sha256(canonical(task)).hexdigest()


def _unreadable(key: str, file: str, error: OSError) -> OSError | ArtifactDamaged:
    """Damage, if it is the file's fault that it cannot be read."""
    if not unreadable(error):
        return error
    return ArtifactDamaged(key, file, f"cannot be read ({error.strerror})")


def _move(folder: Path, to: Path) -> None:
    """Rename; copies only where the two lie on different disks."""
    try:
        folder.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(folder, to)
