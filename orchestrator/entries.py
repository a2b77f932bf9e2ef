"""The entries of an experiment file: datasets, target, defenses, attacks."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from storage import datasets
from storage.datasets import Source
from tasks.base import Data
from tasks.noise import NoisePolicy
from tasks.split import Split, SplitColumn

__all__ = [
    "BY_COLUMN",
    "BY_SIZES",
    "AttackEntry",
    "DatasetEntry",
    "DefenseEntry",
    "ReferenceEntry",
    "SplitColumn",
    "SplitSizes",
    "TargetEntry",
    "attack_label",
    "chain_label",
    "grid_points",
    "point_label",
]

Preset = Literal["paper", "sound", "cpu"]
# Names become parts of file names; labels stand in tables.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=100)]
DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
# Nothing that moves a terminal's cursor, breaks a line, or turns the direction of writing.
Label = Annotated[
    str,
    Field(
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+$",
        max_length=200,
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
PluginName = Annotated[str, Field(max_length=100)]
Values = Annotated[list[Any], Field(min_length=1)]
MOST_POINTS = 1000


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Numbers(Entry):
    """Numbers only. Strict: `true` and '3' are none, though pydantic would make some of them."""

    model_config = ConfigDict(strict=True)


class SplitSizes(_Numbers):
    """How many records play each role."""

    members: int = Field(ge=10, description="D1, trains the target")
    reference: int = Field(ge=10, description="D2, the defender's reference data")
    nonmembers: int = Field(ge=10, description="D3, never seen by target or defender")
    untrained: int = Field(0, ge=0, description="each of two fresh groups, for judge: untrained")


def _kind_of_split(value: Any) -> str:
    if isinstance(value, Mapping):
        return BY_COLUMN if "column" in value else BY_SIZES
    return BY_COLUMN if isinstance(value, SplitColumn) else BY_SIZES


# Told apart by a key, as else every mistake would be told twice, once for each kind. The tags stand
# in pydantic's paths; no key is like them.
BY_SIZES, BY_COLUMN = "[sizes]", "[column]"
Division = Annotated[
    Annotated[SplitSizes, Tag(BY_SIZES)] | Annotated[SplitColumn, Tag(BY_COLUMN)],
    Discriminator(_kind_of_split),
]


class Generator(_Numbers):
    """Parameters of SynthPurchase (methods.md section 2.5), for the synth_* datasets."""

    rows: int | None = Field(None, ge=30, le=1_000_000)
    features: int | None = Field(None, ge=4, le=10_000)
    classes: int | None = Field(None, ge=2, le=1000)
    clusters: int | None = Field(None, ge=1, le=100)
    sparsity: float | None = Field(None, gt=0, lt=1)
    bit_noise: float | None = Field(None, ge=0, lt=1)
    label_noise: float | None = Field(None, ge=0, lt=1)
    data_seed: int | None = Field(None, ge=0, lt=2**63)


class DatasetEntry(Entry):
    """A dataset, how it is divided, and what the attacker knows of it."""

    name: DatasetName
    path: str | None = Field(None, description="a Parquet or npz file of one's own")
    split: Division | None = Field(None, description="default: the dataset's own")
    generator: Generator = Generator()
    known: float = Field(0.5, strict=True, description="the attacker's share of D1 and D3")
    judge: Literal["members", "reference", "untrained", "defender"] = "members"
    dedup: Literal["group", "drop"] = "group"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("known")
    @classmethod
    def _published(cls, value: float) -> float:
        if value not in (0.25, 0.5, 0.75):
            raise ValueError(f"must be 0.25, 0.5 or 0.75, got {value}")
        return value

    @property
    def source(self) -> Source:
        """What storage.datasets loads."""
        given = self.generator.model_dump(exclude_none=True)
        beside = (self.split.column,) if isinstance(self.split, SplitColumn) else ()
        # The path is absolute (`source.Content`), as workers run in folders of their own.
        return Source(self.name, self.path, tuple(sorted(given.items())), beside)

    def sizes(self) -> SplitSizes:
        """The split asked for, or the dataset's default.

        Raises:
            ValueError: if there is neither, or a column divides it.
        """
        if isinstance(self.split, SplitColumn):
            raise ValueError(f"'{self.name}' is divided by its column {self.split.column}")
        if self.split is not None:
            return self.split
        default = datasets.DEFAULT_SPLITS.get(self.name) if self.path is None else None
        if default is None:
            raise ValueError(
                f"'{self.name}' has no default split; "
                "add split: {members: …, reference: …, nonmembers: …} or split: {column: …}"
            )
        return SplitSizes(**default)

    def division(self, seed: int, content_hash: str) -> Split:
        """The task that divides it under a seed.

        Raises:
            ValueError: as `sizes` does, if no column divides it.
        """
        column = self.split if isinstance(self.split, SplitColumn) else None
        sizes = None if column else self.sizes()
        return Split(
            seed=seed,
            data=Data(self.source, content_hash),
            members=sizes.members if sizes else 0,
            reference=sizes.reference if sizes else 0,
            nonmembers=sizes.nonmembers if sizes else 0,
            untrained=sizes.untrained if sizes else 0,
            known=self.known,
            dedup=self.dedup,
            column=column,
        )


class TargetEntry(Entry):
    """The target's architecture and fields of its recipe."""

    architecture: PluginName | None = Field(None, description="default: the dataset's own")
    recipe: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"architecture": value}
        return _gathered(value, ("architecture",), "recipe")


class ReferenceEntry(Entry):
    """The records a defense is fitted on, where they are not all of D2."""

    source: DatasetName = Field(
        "reference",
        alias="from",
        description="reference (D2), members (D1), nonmembers (D3: leaky), random (uniform noise), "
        "or another dataset's name",
    )
    size: int | None = Field(
        None, ge=10, le=1_000_000, strict=True, description="how many; default: all there are"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @property
    def shown(self) -> str:
        """As it stands in a label."""
        words = [self.source] if self.source != "reference" or self.size is None else []
        return " ".join([*words, *([str(self.size)] if self.size is not None else [])])


class DefenseEntry(Entry):
    """A defense: its name, its fields, how it is shown and asked, and what it is fitted on."""

    name: PluginName
    label: Label | None = None
    preset: Preset | None = None
    noise: NoisePolicy | None = None
    reference: ReferenceEntry | None = None
    grid: dict[str, Values] = {}
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        own = ("name", "label", "preset", "noise", "reference", "grid")
        return _gathered(value, own, "params")

    @property
    def called(self) -> str:
        """What an experiment calls it: its label, or its name and the reference it is given."""
        if self.label or self.reference is None:
            return self.label or self.name
        return f"{self.name} (reference: {self.reference.shown})"


class AttackEntry(Entry):
    """An attack: its name, its fields, and what it is granted."""

    name: PluginName
    label: Label | None = None
    preset: Preset | None = None
    adaptive: bool = Field(False, strict=True)
    fit_on: Literal["defended", "clean"] = "defended"
    against: Annotated[list[Label], Field(min_length=1)] | None = Field(
        None, description="only these defenses, by name or label; default: all it is made for"
    )
    shadow_data: Literal["known", "population"] = Field(
        "known",
        description="what the attacker's models train on: records it knows, or others of the "
        "population, as many as the target has (PURIFIER's more powerful shadow)",
    )
    column: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="of the dataset: the attribute to infer (attribute inference only)"
    )
    layer: Literal["hidden"] | None = Field(
        None, description="what it sees instead of answers (attribute inference only)"
    )
    grid: dict[str, Values] = {}
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        own = (
            *("name", "label", "preset", "adaptive", "fit_on", "against", "shadow_data", "column"),
            *("layer", "grid"),
        )
        return _gathered(value, own, "params")


def _gathered(value: Any, own: tuple[str, ...], rest: str) -> Any:
    """A mapping with the keys that are a plugin's fields moved under `rest`."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        return value
    fields = {key: item for key, item in value.items() if key not in own}
    return {**{key: value[key] for key in own if key in value}, rest: fields}


def flat(entry: dict[str, Any], rest: str) -> dict[str, Any]:
    """The reverse of `_gathered`."""
    return {**{key: value for key, value in entry.items() if key != rest}, **entry[rest]}


def grid_points(entry: DefenseEntry | AttackEntry) -> Iterator[dict[str, Any]]:
    """The fields of an entry, once for every point of its grid."""
    names = list(entry.grid)
    for values in itertools.product(*(entry.grid[name] for name in names)):
        yield {**entry.params, **dict(zip(names, values, strict=True))}


def point_label(entry: DefenseEntry | AttackEntry, values: Mapping[str, Any]) -> str:
    """What is added to a label to tell a point of a grid from the others; empty without a grid."""
    point = ",".join(f"{name}={values[name]}" for name in entry.grid)
    return f"[{point}]" if point else ""


def chain_label(chain: Sequence[DefenseEntry]) -> str:
    """What an experiment calls a defense or a chain of them."""
    return "+".join(entry.called for entry in chain)


def called(chain: Sequence[DefenseEntry]) -> set[str]:
    """Every name by which `against` may mean a chain: its label, and the names in it."""
    return {chain_label(chain), *(entry.name for entry in chain)}


def attack_label(entry: AttackEntry) -> str:
    """What an experiment calls an attack: its name, and the fields given."""
    if entry.label:
        return entry.label
    shown = [entry.column] if entry.column else []
    shown += [f"{entry.layer} layer"] if entry.layer else []
    shown += [v if isinstance(v, str) else f"{k}={v}" for k, v in entry.params.items()]
    shown += ["clean"] if entry.fit_on == "clean" else []
    shown += ["large shadow"] if entry.shadow_data == "population" else []
    shown += ["adaptive"] if entry.adaptive else []
    return f"{entry.name}({', '.join(shown)})" if shown else entry.name
