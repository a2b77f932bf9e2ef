"""A task is frozen data; its key is a hash of what it would compute."""

import hashlib
import json
import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from storage.artifacts import Artifact, Draft
from storage.datasets import Source

if TYPE_CHECKING:
    from tasks.service import TrainedView
    from tasks.worker import Bench

__all__ = [
    "ADDED",
    "Data",
    "Rows",
    "Task",
    "canonical",
    "canonical_text",
    "measured",
    "random_generator",
    "stream",
]


# The metadata of a task's field that came after stores were made with the task. While such a field
# has its default it is no part of the key, so that what those stores hold keeps its name.
ADDED = {"added": True}


def stream(root: int, name: str, index: int = 0) -> int:
    """A seed for one purpose, independent of every other name and index.

    Args:
        root: the root seed of the experiment.
        name: the purpose, such as "target.init" (methods.md section 0.4).
        index: a counter within the purpose.

    Returns:
        An integer in [0, 2**63), which torch and numpy both take.
    """
    digest = hashlib.sha256(f"{root}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def random_generator(root: int, name: str, index: int = 0) -> np.random.Generator:
    """A numpy generator on the stream `name` of `root`."""
    return np.random.default_rng(stream(root, name, index))


class Rows:
    """Row numbers of a dataset inside a task: hashed once, compared by content."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.array = np.array(rows, dtype=np.int64)  # a copy: the caller's may change
        self.array.setflags(write=False)
        self.digest = hashlib.sha256(self.array.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class Data:
    """A dataset as a task names it: where it is found, and the hash of what must be found there."""

    source: Source
    content_hash: str

    @property
    def name(self) -> str:
        return self.source.name


def canonical(value: Any) -> Any:
    """`value` as JSON in one way only.

    Live fields are walked rather than dumped: a dump drops the fields of a subclass that stands
    behind a base-typed field, and two temperatures would share a key.

    Raises:
        TypeError: for a type with no canonical form; nothing is ever hashed by its repr.
        ValueError: for NaN and infinities.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"a task field holds {value}; only finite numbers have a key")
            return value
        case Task():
            return {"task": value.key}
        case Rows():
            return {"rows": value.digest, "count": len(value)}
        case Data():
            return {"dataset": value.name, "content": value.content_hash}
        case BaseModel():
            version = getattr(type(value), "VERSION", None)
            if version is None:
                raise TypeError(f"{type(value).__name__} has no VERSION, so it cannot have a key")
            named = {
                name: canonical(getattr(value, name))
                for name, info in type(value).model_fields.items()
                if not (_added(info) and getattr(value, name) == info.default)
            }
            return {"type": _tag(value), "version": version, "fields": named}
        case tuple() | list():
            return [canonical(item) for item in value]
        case Mapping():
            for name in value:
                if not isinstance(name, str):
                    raise TypeError(f"a task field maps {name!r}; only text can name a value")
            return {name: canonical(item) for name, item in value.items()}
        case _:
            raise TypeError(f"a task field of type {type(value).__name__} has no canonical form")


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_text(value: Any) -> str:
    """`canonical(value)` as the text that is hashed; raises as `canonical` does.

    A plan asks it of the same few plugins and recipes for each of its many tasks, so what is
    frozen is walked once.
    """
    match value:
        case Task():
            return f'{{"task":"{value.key}"}}'
        case str() | bool() | None:
            return _JSON.encode(value)
        case int():
            return int.__repr__(value)
        case tuple() | list():
            # Most of what a plan has in such fields are tasks, by the dozen.
            texts = [
                f'{{"task":"{item.key}"}}' if isinstance(item, Task) else canonical_text(item)
                for item in value
            ]
            return f"[{','.join(texts)}]"
        case BaseModel() if value.model_config.get("frozen"):
            return _text_of_model(value)
        case _:
            return _JSON.encode(canonical(value))


# Text by the identity of a model and its class's version; by what a model equals it would not do,
# as fields of 1 and of 1.0 are equal and differ in the text.
_TEXTS: dict[tuple[int, Any], tuple[weakref.ref[BaseModel], str]] = {}


def _text_of_model(model: BaseModel) -> str:
    place = (id(model), getattr(type(model), "VERSION", None))
    kept = _TEXTS.get(place)
    if kept is None or kept[0]() is not model:
        text = _JSON.encode(canonical(model))
        kept = _TEXTS[place] = (weakref.ref(model, lambda _: _TEXTS.pop(place, None)), text)
    return kept[1]


def _added(info: FieldInfo) -> bool:
    """Whether a plugin's field came after its first release: its default leaves the key alone."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("added"))


def _tag(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


@dataclass(frozen=True, eq=False)
class Task:
    """Work as a value. Subclasses are frozen dataclasses whose fields decide the result.

    What may change where it runs (device, workers, paths) is never a field.

    Class variables:
        VERSION: bump when the same fields would give other numbers.
        SECONDS: a first guess of its duration, used until this store has measured some.
        TABLES: the tables that `table_rows` fills, once for every artifact.
        GPU: whether it computes with torch and runs on a GPU where workers have one.
        MEMORY: a first guess of the bytes it needs at its peak, as SECONDS; 0 where there is none.
    """

    VERSION: ClassVar[int]
    SECONDS: ClassVar[float] = 1.0
    GPU: ClassVar[bool] = True
    MEMORY: ClassVar[int] = 0
    TABLES: ClassVar[tuple[str, ...]] = ()

    seed: int

    @property
    def kind(self) -> str:
        """The type of work, as tables and progress name it."""
        return type(self).__name__

    @property
    def name(self) -> str:
        """What tells it from others of its kind, for people."""
        return ""

    @property
    def dataset(self) -> str:
        """The name of the dataset it works on."""
        raise TypeError(f"{self.kind} names no dataset")

    @property
    def description(self) -> str:
        """The text that is hashed: canonical JSON of type, version, fields and inputs' keys."""
        # Not kept: of a large plan these texts would be most of the memory.
        named = []
        for name, label, added, default in _fields(type(self)):
            value = getattr(self, name)
            if not (added and value == default):
                named.append(f"{label}:{canonical_text(value)}")
        kind, version = _JSON.encode(self.kind), _JSON.encode(self.VERSION)
        return f'{{"fields":{{{",".join(named)}}},"kind":{kind},"version":{version}}}'

    @cached_property
    def key(self) -> str:
        """SHA-256 of the description, 64 hexadecimal digits."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    @cached_property
    def inputs(self) -> "tuple[Task, ...]":
        """The tasks among the fields, each once, in field order."""
        found: dict[str, Task] = {}
        for name in _names(type(self)):
            value = getattr(self, name)
            if isinstance(value, Task):
                found.setdefault(value.key, value)
            elif isinstance(value, tuple | list):
                for task in _tasks_in(value):
                    found.setdefault(task.key, task)
        return tuple(found.values())

    def run(self, bench: "Bench", draft: Draft) -> None:
        """Compute, and write the results into `draft`."""
        raise TypeError(f"{self.kind} defines no run()")

    def trained(self, bench: "Bench") -> "TrainedView":
        """The finished task as the plugin that asked for it sees it."""
        raise TypeError(f"{self.kind} is not a training")

    def table_rows(self, artifact: Artifact) -> dict[str, Any]:
        """What a finished artifact puts into each table, as `Tables.write` takes it."""
        return {}


_Field = tuple[str, str, bool, Any]
_NAMES: dict[type[Task], tuple[str, ...]] = {}
_FIELDS: dict[type[Task], tuple[_Field, ...]] = {}


def _names(cls: type[Task]) -> tuple[str, ...]:
    """The names of the fields in their order."""
    if cls not in _NAMES:
        _NAMES[cls] = tuple(f.name for f in fields(cls))
    return _NAMES[cls]


def _fields(cls: type[Task]) -> tuple[_Field, ...]:
    """Name, name in JSON, whether it was added, and default of each field, in order of the text."""
    if cls not in _FIELDS:
        _FIELDS[cls] = tuple(
            (f.name, _JSON.encode(f.name), bool(f.metadata.get("added")), f.default)
            for f in sorted(fields(cls), key=lambda f: f.name)
        )
    return _FIELDS[cls]


def measured(artifact: Artifact) -> dict[str, Any]:
    """What was measured while an artifact was made; these columns differ from run to run."""
    facts = artifact.facts("measured")
    for name in ("started_at", "created_at"):
        facts[name] = datetime.fromisoformat(facts[name])
    if "versions" in facts:  # older artifacts have none
        facts["versions"] = json.dumps(facts["versions"], sort_keys=True)
    return facts


def _tasks_in(value: Any) -> Iterator[Task]:
    if isinstance(value, Task):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tasks_in(item)
