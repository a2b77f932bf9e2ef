"""The local folder through which a store at an URI is worked on, kept in step with it."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

from storage._artifact import ArtifactDamaged, ArtifactMissing
from storage._copy import Copy
from storage._disk import write_whole, writing_to
from storage._objects import check_uri
from storage.artifacts import Artifacts
from storage.remote import ObjectStore

__all__ = ["Pusher", "pull", "push", "upstream_of", "working_copy"]

_SAYS = "upstream.json"
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
    root = _place(uri)
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
        ValueError: its upstream.json cannot be read, or the folder is not where copies are: one
            that somebody else made would have its owner's files sent, and others' removed.
    """
    file = root / _SAYS
    try:
        uri = check_uri(str(json.loads(file.read_bytes())["uri"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not say whose copy its folder is ({error})") from error
    if root.resolve() != _place(uri).resolve():
        raise ValueError(
            f"{file} calls its folder a copy of {uri}, whose copy on this machine would be "
            f"{_place(uri)}; remove that file, or name the URI itself with --store"
        )
    return ObjectStore(uri)


def _place(uri: str) -> Path:
    """The folder of an URI's copy on this machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(cache).absolute() / "sfumato" / "stores" / name


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
    with Copy.locked(root, upstream.objects) as copy:
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
    with Copy.locked(root, upstream.objects) as copy:
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
