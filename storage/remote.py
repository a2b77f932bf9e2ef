"""Artifacts at an URI of any `pyarrow.fs` scheme: payload first, task.json last."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from storage._artifact import MARK, ArtifactDamaged, ArtifactMissing, check_copy, read_mark
from storage._disk import KEY, check_key
from storage._objects import Objects, Stat, check_uri, each

__all__ = ["ObjectStore", "check_uri"]

_FEW = 32  # so many keys are asked for one by one; more by a listing of all


class ObjectStore:
    """The artifacts of a store at an URI; a small value that travels between processes.

    Object stores have no rename, so task.json is written last and is the mark of completeness;
    readers look at it first. Payload objects carry their hash in their name: two drivers that write
    the same task at once, measured with other clocks, never mix their copies.

    What was seen here once is taken to stay: artifacts do not change. Every method raises
    `StoreUnwritable` if the server is away or refuses, and `ValueError` for what is no key.

    Attributes:
        uri: the address of the store.
    """

    def __init__(self, uri: str, filesystem: Any = None) -> None:
        """Name it; nothing is opened before it is used.

        Args:
            uri: the address of a store.
            filesystem: one of pyarrow to use instead of the URI's own; stays in this process.

        Raises:
            ValueError: as `check_uri`.
        """
        self.uri = check_uri(uri)
        self._own = None if filesystem is None else _Place(self.uri, filesystem)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.uri,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"ObjectStore({self.uri!r})"

    @property
    def _same(self) -> tuple[str, int]:
        return self.uri, id(self._own)

    @property
    def objects(self) -> Objects:
        """The files of the store."""
        return self._place.objects

    @property
    def _place(self) -> "_Place":
        # Threads and locks of a client do not survive a fork.
        return self._own or _place(self.uri, os.getpid())

    def holds(self, key: str) -> bool:
        """Whether the mark of `key` is there."""
        known = self._place.known
        if check_key(key) in known:
            return True
        if self.objects.stat(_at(key, MARK)) is None:
            return False
        known.add(key)
        return True

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that are held; many are told by one listing."""
        wanted = set(map(check_key, keys))
        unknown = wanted - self._place.known
        if len(unknown) > _FEW:
            self.sizes()
        else:
            each(self.holds, unknown)
        return wanted & self._place.known

    def keys(self) -> Iterator[str]:
        """The complete keys, sorted."""
        whole, _ = self.sizes()
        yield from sorted(whole)

    def sizes(self) -> tuple[dict[str, int], dict[str, Stat]]:
        """What one listing says.

        Returns:
            The bytes of every key that is held, and of those without a mark the bytes and the time
            of the last change: another driver may be writing them.
        """
        folders: dict[str, dict[str, Stat]] = {}
        for name, stat in self.objects.listing("artifacts").items():
            _, _, rest = name.partition("/")
            if rest.count("/") == 2 and KEY.fullmatch(key := rest.split("/")[1]):
                folders.setdefault(key, {})[rest.split("/")[2]] = stat
        whole, half = {}, {}
        for key, files in folders.items():
            nbytes = sum(stat.size for stat in files.values())
            if MARK in files:
                whole[key] = nbytes
            else:
                half[key] = Stat(nbytes, max(stat.mtime_ns for stat in files.values()))
        self._place.known |= whole.keys()
        return whole, half

    def describe(self, key: str) -> dict[str, Any] | None:
        """The task that `key` stands for; None if it is not held or its mark cannot be read."""
        told = self._place.told
        if key not in told:
            try:
                told[key] = read_mark(key, self._mark(key))[0]
            except (ArtifactMissing, ArtifactDamaged):
                return None
        return told[key]

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Have `describe` ready for many keys: marks are read several at a time."""
        each(self.describe, keys)

    def fetch(self, key: str) -> dict[str, bytes]:
        """Every file of an artifact by name, task.json included.

        Raises:
            ArtifactMissing: it is not here, or not whole yet.
            ArtifactDamaged: what is here is not what was written.
        """
        mark = self._mark(key)
        _, named = read_mark(key, mark)

        def payload(name: str) -> bytes:
            try:
                return self.objects.read(_at(key, _addressed(name, named[name][1])))
            except FileNotFoundError as error:
                raise ArtifactDamaged(key, name, "is missing") from error

        files = dict(zip(named, each(payload, named), strict=True)) | {MARK: mark}
        check_copy(key, files)
        return files

    def keep(self, key: str, files: Mapping[str, bytes]) -> None:
        """Keep an artifact; the first whole copy wins.

        Raises:
            ArtifactDamaged: the files are not what task.json says.
        """
        named = check_copy(check_key(key), files)
        if self._whole(key):
            return

        def write(name: str) -> None:
            self.objects.write(_at(key, _addressed(name, named[name][1])), files[name])

        each(write, named)
        self.objects.write(_at(key, MARK), files[MARK])
        self._place.known.add(key)

    def drop(self, key: str) -> None:
        """Remove an artifact, its mark first: whatever stops this, no half of it is seen."""
        self._forget(key)
        self.objects.remove(_at(key, MARK))
        self.objects.remove_folder(_at(key))

    def set_aside(self, key: str, reason: str) -> str | None:
        """Move what is here under `key` to damaged/KEY-N/artifact, its mark first.

        Returns:
            The folder damaged/KEY-N, which also holds reason.txt; None if nothing was here.
        """
        self._forget(key)
        names = self.objects.listing(_at(key))
        if not names:
            return None
        number = 0
        while self.objects.stat(f"damaged/{key}-{number}/reason.txt") is not None:
            number += 1
        place = f"damaged/{key}-{number}"
        self.objects.write(f"{place}/reason.txt", f"{reason}\n".encode())
        for name in sorted(names, key=lambda name: not name.endswith(f"/{MARK}")):
            try:
                content = self.objects.read(name)
            except FileNotFoundError:  # another process was quicker
                continue
            self.objects.write(f"{place}/artifact/{name.rpartition('/')[2]}", content)
            self.objects.remove(name)
        return place

    def _mark(self, key: str) -> bytes:
        try:
            return self.objects.read(_at(key, MARK))
        except FileNotFoundError as error:
            self._forget(key)
            raise ArtifactMissing(key, f"no artifact {key} at {self.uri}") from error

    def _whole(self, key: str) -> bool:
        """Whether a copy is here already; what is damaged by names and sizes is set aside."""
        if key in self._place.known:
            return True
        try:
            _, named = read_mark(key, self._mark(key))
            sizes = {
                name.rpartition("/")[2]: stat.size
                for name, stat in self.objects.listing(_at(key)).items()
            }
            for name, (size, digest) in named.items():
                if sizes.get(_addressed(name, digest)) != size:
                    raise ArtifactDamaged(key, name, "is missing or has another size")
        except ArtifactMissing:
            return False
        except ArtifactDamaged as damage:
            self.set_aside(key, str(damage))
            return False
        self._place.known.add(key)
        return True

    def _forget(self, key: str) -> None:
        self._place.known.discard(check_key(key))
        self._place.told.pop(key, None)


class _Place:
    """What a process knows of a store: its files, keys it has seen, and what they stand for."""

    def __init__(self, uri: str, filesystem: Any = None) -> None:
        self.objects = Objects(uri, filesystem)
        self.known: set[str] = set()
        self.told: dict[str, dict[str, Any]] = {}


@cache
def _place(uri: str, process: int) -> _Place:
    return _Place(uri)


def _at(key: str, file: str = "") -> str:
    return f"artifacts/{check_key(key)[:2]}/{key}" + (f"/{file}" if file else "")


def _addressed(name: str, digest: str) -> str:
    return f"{digest[:16]}-{name}"
