"""Folders named by task key, written whole or not at all, checked when read, never pickled."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from storage._artifact import (
    MARK,
    Artifact,
    ArtifactDamaged,
    ArtifactMissing,
    Draft,
    check_copy,
    key_of,
)
from storage._disk import (
    KEY,
    StoreUnwritable,
    check_key,
    draft_name,
    drop_drafts,
    sync_folder,
    write_synced,
    write_whole,
    writing_to,
)
from storage.upstream import Upstream

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


class Artifacts:
    """The artifact store: a folder a key, present means complete.

    Two processes may put the same key at once; one copy wins. Every method that takes a key
    raises `ValueError` if it is not one.

    With an upstream this folder is a working copy: what it lacks is fetched when it is opened, and
    what is put is handed on. Any method may then raise `StoreUnwritable`, if the upstream is away.
    """

    def __init__(self, root: Path, upstream: Upstream | None = None) -> None:
        self.root = Path(root).absolute()
        self.upstream = upstream

    def __contains__(self, key: str) -> bool:
        """Whether `key` is complete by names and sizes; no file is hashed or fetched."""
        return self.state(key) == "complete"

    def state(self, key: str) -> Literal["complete", "damaged", "absent"]:
        """What is stored under `key`, judged by names and sizes; no file is hashed or fetched."""
        state: Literal["complete", "damaged", "absent"] = "complete"
        try:
            Artifact(key, self._folder(key))
        except ArtifactMissing:
            state = "absent"
        except ArtifactDamaged:
            state = "damaged"
        if state != "complete" and self.upstream is not None and self.upstream.holds(key):
            return "complete"
        return state

    def holds(self, key: str) -> bool:
        """As `in`; this is how a folder is the upstream of another."""
        return key in self

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that are complete; an upstream is asked for all of them at once."""
        return self.examine(keys)[0]

    def examine(self, keys: Iterable[str]) -> tuple[set[str], dict[str, ArtifactDamaged]]:
        """As `present`, and what is wrong with those that are damaged."""
        complete, damaged, lacking = set(), {}, []
        for key in keys:
            try:
                Artifact(key, self._folder(key))
            except ArtifactMissing:
                lacking.append(key)
            except ArtifactDamaged as damage:
                damaged[key] = damage
            else:
                complete.add(key)
        if self.upstream is not None and (lacking or damaged):
            complete |= _held(self.upstream, [*lacking, *damaged])
        return complete, {key: fault for key, fault in damaged.items() if key not in complete}

    def open(self, key: str) -> Artifact:
        """The artifact of `key`, fetched if only the upstream has it.

        Raises:
            ArtifactMissing: nothing is stored under `key`.
            ArtifactDamaged: it lacks a file, or a file has another size or, where it was fetched,
                another checksum.
        """
        folder = self._folder(key)
        if self.upstream is None:
            return Artifact(key, folder)
        try:
            return Artifact(key, folder)
        except (ArtifactMissing, ArtifactDamaged) as fault:
            try:
                files = self.upstream.fetch(key)
            except ArtifactMissing:
                raise fault from None
        self._keep_here(key, files)
        return Artifact(key, folder)

    def fetch(self, key: str) -> dict[str, bytes]:
        """Every file of an artifact by name, task.json included.

        Raises:
            ArtifactMissing: nothing is stored under `key`.
            ArtifactDamaged: a file is not what was written.
        """
        return self.open(key).content()

    def keep(self, key: str, files: Mapping[str, bytes]) -> None:
        """Keep an artifact that was made elsewhere; the first whole copy wins.

        Args:
            key: the task key.
            files: every file by name, task.json included.

        Raises:
            ArtifactDamaged: the files are not what task.json says.
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        self._keep_here(key, files)
        if self.upstream is not None:
            self.upstream.keep(key, files)

    def hand_on(self, keys: Iterable[str]) -> int:
        """Give the upstream what it lacks of `keys`: what this folder got while it was away.

        Returns:
            How many artifacts were given.
        """
        if self.upstream is None:
            return 0
        mine = []
        for key in keys:
            with suppress(ArtifactMissing, ArtifactDamaged):
                mine.append(Artifact(key, self._folder(key)))
        held = _held(self.upstream, [artifact.key for artifact in mine])
        given = 0
        for artifact in mine:
            if artifact.key not in held:
                with suppress(ArtifactDamaged):  # told by who needs it
                    self.upstream.keep(artifact.key, artifact.content())
                    given += 1
        return given

    def put(self, key: str, description: str, write: Callable[[Draft], None]) -> None:
        """Fill a private folder, then rename it into place, and hand it on to the upstream.

        If another process finished first, its copy stays, unless it is damaged.

        Args:
            key: the task key.
            description: the JSON object whose hash is `key`.
            write: fills the draft. What it raises leaves nothing behind.

        Raises:
            ValueError: `key` is not the hash of the description.
            StoreUnwritable: the disk is full, read-only or forbidden, or the upstream is away;
                what was put here stays then.
        """
        final = self._folder(key)
        # Not tempfile.mkdtemp: its folders are private to their user, and a store is shared.
        folder = self.root / draft_name()
        task = json.loads(description)
        if not isinstance(task, dict):
            raise ValueError(f"the description of {key} is no JSON object: {description[:80]}")
        if key_of(task) != key:
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
        if self.upstream is not None:
            self.upstream.keep(key, Artifact(key, final).content())

    def settle(self, key: str) -> bool:
        """Whether `key` is complete where others look; what only this folder has is handed on.

        Raises:
            StoreUnwritable: the upstream is away.
        """
        if self.upstream is None:
            return key in self
        if self.upstream.holds(key):
            return True
        try:
            content = Artifact(key, self._folder(key)).content()
        except (ArtifactMissing, ArtifactDamaged):
            return False
        self.upstream.keep(key, content)
        return True

    def forget(self, key: str, reason: str) -> bool:
        """Set this folder's copy aside; the upstream's stays. Whether there was one."""
        return self._set_aside_here(key, reason) is not None

    def set_aside(self, key: str, reason: str) -> Path | None:
        """Move what is stored under `key` to damaged/KEY-N/artifact beside the store's root.

        The upstream's copy is set aside too, unless it is sound.

        Returns:
            The folder damaged/KEY-N, which also holds reason.txt, or None if nothing was there.

        Raises:
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        place = self._set_aside_here(key, reason)
        aside = getattr(self.upstream, "set_aside", None)
        if self.upstream is None or aside is None:
            return place
        try:
            self.upstream.fetch(key)
        except ArtifactMissing:
            return place
        except ArtifactDamaged as damage:
            there = aside(key, str(damage))
            return place or (Path(there) if there else None)
        return place

    def _set_aside_here(self, key: str, reason: str) -> Path | None:
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
        """The complete keys of this folder, sorted."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            if KEY.fullmatch(folder.name):
                with suppress(ArtifactMissing, ArtifactDamaged):
                    yield Artifact(folder.name, folder).key

    def drop_stale_drafts(self, older_than_s: float) -> int:
        """Remove the drafts of processes that were killed; as `drop_drafts`."""
        return drop_drafts(self.root, older_than_s)

    def _folder(self, key: str) -> Path:
        return self.root / check_key(key)[:2] / key

    def _keep_here(self, key: str, files: Mapping[str, bytes]) -> None:
        named = check_copy(key, files)
        final, folder = self._folder(key), self.root / draft_name()
        try:
            with writing_to(self.root):
                folder.mkdir(parents=True)
                for name in (*named, MARK):
                    write_synced(folder / name, files[name])
                sync_folder(folder)
                self._publish(key, folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
                Artifact(key, final).verify()
                return
            except ArtifactMissing:
                continue
            except ArtifactDamaged as damage:
                self._set_aside_here(key, str(damage))

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


def _held(upstream: Upstream, keys: Sequence[str]) -> set[str]:
    """Those of `keys` that an upstream holds, asked at once where it can be."""
    present = getattr(upstream, "present", None)
    if present is not None:
        return set(present(keys))
    return {key for key in keys if upstream.holds(key)}


def _move(folder: Path, to: Path) -> None:
    """Rename; copies only where the two lie on different disks."""
    try:
        folder.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(folder, to)
