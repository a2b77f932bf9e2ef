"""What an experiment file may say."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from orchestrator.entries import (
    AttackEntry,
    DatasetEntry,
    DefenseEntry,
    Entry,
    Name,
    Preset,
    Seed,
    TargetEntry,
    flat,
)
from orchestrator.tune_entry import TuneEntry

__all__ = ["Experiment"]


class Experiment(Entry):
    """One experiment: what is trained, defended, attacked, and how often."""

    name: Name
    description: str = ""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0])
    datasets: list[DatasetEntry] = Field(min_length=1)
    target: TargetEntry = TargetEntry()
    defenses: list[Annotated[list[DefenseEntry], Field(min_length=1)]] = Field(
        default=[[DefenseEntry(name="none")]], min_length=1, description="an inner list is a chain"
    )
    attacks: list[AttackEntry] = Field(min_length=1)
    adaptive: bool = Field(
        False, strict=True, description="also run attacks that learn or train models adaptively"
    )
    retry: bool = Field(
        False,
        strict=True,
        description="train attacks harder that a defense brings below 52 % under the first seed",
    )
    preset: Preset = "cpu"
    tune: TuneEntry | None = Field(None, description="a search, for `sfumato tune`")

    @model_validator(mode="before")
    @classmethod
    def _chains(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("defenses"), list):
            chains = [c if isinstance(c, list) else [c] for c in value["defenses"]]
            return {**value, "defenses": chains}
        return value

    def resolved(self) -> dict[str, Any]:
        """The experiment as plain data with defaults filled in; a file of it can be run."""
        plain = self.model_dump(mode="json", by_alias=True)
        plain["target"] = flat(plain["target"], "recipe")
        plain["attacks"] = [flat(entry, "params") for entry in plain["attacks"]]
        plain["defenses"] = [
            [flat(entry, "params") for entry in chain] for chain in plain["defenses"]
        ]
        plain |= {"tune": self.tune.resolved()} if self.tune else {}
        return plain if self.tune else {k: v for k, v in plain.items() if k != "tune"}
