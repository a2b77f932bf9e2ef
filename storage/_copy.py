"""A working copy beside its URI: which files travel which way, and how both were when alike."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from storage._disk import draft_name, write_whole, writing_to
from storage._objects import Objects, Stat, each

_INDEX, _LOCK = ".synced.json", ".synced.lock"
_FOLDERS = ("tables", "experiments", "logs", "live")
_JOURNAL = "optuna.journal"  # grows at its end, and has one writer at a time
# What has arrived in the MLflow history, which is this folder's own.
_OWN = "tracked.jsonl"


class Copy:
    """A working copy beside its URI.

    The index says how each file was, here and there, when the two were last the same.
    """

    def __init__(self, root: Path, objects: Objects) -> None:
        self.root, self.objects = root, objects
        self.notes: list[str] = []
        self.index: dict[str, tuple[Stat, Stat]] = {}
        try:
            told = json.loads((root / _INDEX).read_bytes())
            self.index = {
                name: (Stat(*map(int, here)), Stat(*map(int, there)))
                for name, (here, there) in told.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            self.index = {}  # everything is compared anew; nothing is removed
        # A folder that somebody removed is fetched again, not removed at the URI too.
        gone = tuple(f"{name}/" for name in _FOLDERS if not (root / name).is_dir())
        self.index = {name: was for name, was in self.index.items() if not name.startswith(gone)}

    @staticmethod
    @contextmanager
    def locked(root: Path, objects: Objects) -> "Iterator[Copy]":
        """One process at a time; what was done is kept whatever stops it."""
        with writing_to(root), open(root / _LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            copy = Copy(root, objects)
            before = dict(copy.index)
            try:
                yield copy
            finally:
                if copy.index != before:
                    told = {
                        name: [[stat.size, stat.mtime_ns] for stat in was]
                        for name, was in copy.index.items()
                    }
                    write_whole(root / _INDEX, json.dumps(told))

    def pull(self) -> None:
        there = self._there()
        here = self._here()
        wanted = []
        for name, stat in there.items():
            mine, was = here.get(name), self.index.get(name)
            if was is not None and was[1] == stat:
                continue  # what changed here is for push to send
            unsent = mine is not None and (was is None or was[0] != mine)
            if mine is None or not unsent or mine.mtime_ns < stat.mtime_ns or name == _JOURNAL:
                wanted.append(name)
        each(lambda name: self._fetch(name, there[name]), wanted)
        for name in self.index.keys() - there.keys():
            if here.get(name) == self.index[name][0]:
                (self.root / name).unlink(missing_ok=True)
            del self.index[name]

    def push(self) -> None:
        here = self._here()
        changed = [n for n, stat in here.items() if n not in self.index or self.index[n][0] != stat]
        each(lambda name: self._send(name, here[name]), changed)
        each(self._remove, self.index.keys() - here.keys())

    def _there(self) -> dict[str, Stat]:
        found: dict[str, Stat] = {}
        for folder in _FOLDERS:
            listed = self.objects.listing(folder)
            # What others wrote at the URI must not lead out of this folder.
            found |= {name: stat for name, stat in listed.items() if _inside(name)}
        journal = self.objects.stat(_JOURNAL)
        return found | ({_JOURNAL: journal} if journal else {})

    def _here(self) -> dict[str, Stat]:
        found: dict[str, Stat] = {}
        for top in _FOLDERS:
            for folder, _, files in os.walk(self.root / top):
                for file in files:
                    if file != _OWN and not file.startswith(".draft-"):
                        found |= self._stat(os.path.join(folder, file))
        return found | self._stat(str(self.root / _JOURNAL))

    def _stat(self, path: str) -> dict[str, Stat]:
        try:
            found = os.stat(path)
        except OSError:  # removed while we looked
            return {}
        name = Path(path).relative_to(self.root).as_posix()
        return {name: Stat(found.st_size, found.st_mtime_ns)}

    def _fetch(self, name: str, there: Stat) -> None:
        path = self.root / name
        try:
            content = self.objects.read(name)
        except FileNotFoundError:  # removed while we looked
            return
        if name == _JOURNAL and not self._grown(content):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(draft_name())
        try:
            # Not synced to the disk: the URI has it, and tables know a damaged part.
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self.index[name] = (next(iter(self._stat(str(path)).values())), there)

    def _send(self, name: str, here: Stat) -> None:
        try:
            content = (self.root / name).read_bytes()
        except FileNotFoundError:
            return
        if name == _JOURNAL and not self._sendable(content):
            return
        self.objects.write(name, content)
        there = self.objects.stat(name)
        if there is not None:
            self.index[name] = (here, there)

    def _remove(self, name: str) -> None:
        if name == _JOURNAL:  # a study is not given up because a file of this copy is gone
            return
        if self.objects.stat(name) == self.index[name][1]:
            self.objects.remove(name)
        del self.index[name]

    def _grown(self, theirs: bytes) -> bool:
        """Whether the journal at the URI is this one and more."""
        try:
            mine = (self.root / _JOURNAL).read_bytes()
        except FileNotFoundError:
            return True
        if theirs.startswith(mine):
            return True
        if not mine.startswith(theirs):
            self._shared()
        return False

    def _sendable(self, mine: bytes) -> bool:
        """Whether this journal is the one at the URI and more."""
        there, was = self.objects.stat(_JOURNAL), self.index.get(_JOURNAL)
        if there is None or (was is not None and was[1] == there):
            return True
        theirs = self.objects.read(_JOURNAL)
        if mine.startswith(theirs):
            return True
        if not theirs.startswith(mine):
            self._shared()
        return False

    def _shared(self) -> None:
        self.notes.append(
            f"two drivers share the studies of {self.objects.uri}: {_JOURNAL} there and in "
            f"{self.root} went apart, and neither was overwritten. Use one database for both, "
            "with --study-uri; to go on from the one at the URI, move the local file away"
        )


def _inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    ours = parts[-1:] != (_OWN,) and ".." not in parts
    return ours and name == "/".join(parts) and name.isprintable()
