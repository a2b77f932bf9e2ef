"""The local folder through which a store at an URI is worked on, kept in step with it."""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from storage._artifact import ArtifactDamaged, ArtifactMissing
from storage._disk import draft_name, write_whole, writing_to
from storage._objects import Objects, Stat, check_uri, each
from storage.artifacts import Artifacts
from storage.remote import ObjectStore

__all__ = ["Pusher", "pull", "push", "upstream_of", "working_copy"]

_SAYS = "upstream.json"
_INDEX, _LOCK = ".synced.json", ".synced.lock"
_FOLDERS = ("tables", "experiments", "logs")
_JOURNAL = "optuna.journal"  # grows at its end, and has one writer at a time
# What has arrived in the MLflow history, which is this folder's own.
_OWN = "tracked.jsonl"
_EVERY_S = 5.0
_SHARE = 10  # of its time, one part in so many may go into looking for what changed


def working_copy(uri: str) -> Path:
    """The local folder of a store at an URI, in step with it.

    Artifacts are fetched when they are opened. The MLflow history stays in the folder: it is
    rebuilt from the tables.

    Raises:
        ValueError: the URI is no address of a store, or the folder is another's.
        StoreUnwritable: the server is away or refuses, or the disk is full or forbidden.
    """
    uri = check_uri(uri)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    root = Path(cache).absolute() / "sfumato" / "stores" / name
    said = upstream_of(root)
    if said is not None and said.uri != uri:
        raise ValueError(f"{root} is a copy of {said.uri}, not of {uri}; move it away")
    upstream = said or ObjectStore(uri)
    upstream.objects.check()
    if said is None:
        write_whole(root / _SAYS, json.dumps({"uri": uri}))
    pull(root)
    if upstream.objects.has_folder("artifacts"):  # so that it is seen to be a store
        with writing_to(root):
            (root / "artifacts").mkdir(exist_ok=True)
    return root


def upstream_of(root: Path) -> ObjectStore | None:
    """Whose copy a folder is; None for a store of its own.

    Raises:
        ValueError: its upstream.json cannot be read.
    """
    file = root / _SAYS
    try:
        return ObjectStore(str(json.loads(file.read_bytes())["uri"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not say whose copy its folder is ({error})") from error


def pull(root: Path, *, whole: bool = False) -> list[str]:
    """Bring tables, experiments and logs up to what they are at the URI.

    What was written here and not sent yet stays, unless the URI has something newer. What is gone
    at the URI goes here too, if it ever was there.

    Args:
        root: a working copy; nothing happens to another folder.
        whole: also fetch every artifact.

    Returns:
        What the person should know.

    Raises:
        StoreUnwritable: the server is away or refuses, or the disk is full or forbidden.
    """
    upstream = upstream_of(root)
    if upstream is None:
        return []
    with _Copy.locked(root, upstream.objects) as copy:
        copy.pull()
    if whole:
        artifacts = Artifacts(root / "artifacts", upstream)
        for key in upstream.keys():  # noqa: SIM118 - a store, not a mapping
            try:
                artifacts.open(key)
            except (ArtifactMissing, ArtifactDamaged) as error:
                copy.notes.append(str(error))
    return copy.notes


def push(root: Path) -> list[str]:
    """Send what changed in tables, experiments and logs; nothing happens to other folders.

    What was removed here is removed at the URI, unless it has changed there.

    Returns:
        What the person should know.

    Raises:
        StoreUnwritable: the server is away or refuses; the next push sends what this one did not.
    """
    upstream = upstream_of(root)
    if upstream is None:
        return []
    with _Copy.locked(root, upstream.objects) as copy:
        copy.push()
    return copy.notes


class Pusher:
    """Pushes every few seconds in the background, and once more when it is closed."""

    def __init__(self, root: Path, every_s: float = _EVERY_S) -> None:
        """Begin, if `root` is a working copy.

        Args:
            root: of a store.
            every_s: seconds between two pushes; more where a push takes long.
        """
        self._root, self._every_s = root, every_s
        self._ended = threading.Event()
        self._fault = ""
        self._notes: dict[str, None] = {}
        self._thread: threading.Thread | None = None
        if upstream_of(root) is not None:
            self._thread = threading.Thread(target=self._work, name="pusher", daemon=True)
            self._thread.start()

    def close(self) -> list[str]:
        """Push what is left; gives what the person should know, and raises nothing."""
        if self._thread is None:
            return []
        self._ended.set()
        self._thread.join()
        self._push()
        if self._fault:
            self._notes[f"{self._fault}. Tables wait in {self._root}"] = None
        return list(self._notes)

    def _work(self) -> None:
        wait_s = self._every_s
        while not self._ended.wait(wait_s):
            began = time.monotonic()
            self._push()
            wait_s = max(self._every_s, _SHARE * (time.monotonic() - began))

    def _push(self) -> None:
        try:
            self._notes.update(dict.fromkeys(push(self._root)))
            self._fault = ""
        except Exception as error:  # results are safe here; a run does not end for this
            self._fault = str(error) or type(error).__name__


class _Copy:
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
    def locked(root: Path, objects: Objects) -> "Iterator[_Copy]":
        """One process at a time; what was done is kept whatever stops it."""
        with writing_to(root), open(root / _LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            copy = _Copy(root, objects)
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
