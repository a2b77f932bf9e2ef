"""Task: the leak-free partition of a dataset (methods.md section 2.3)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from storage import splits
from storage.artifacts import Artifact, Draft
from storage.card import card
from storage.datasets import Dataset, as_text
from storage.given import GIVEN_ROLES, given_split
from tasks.base import ADDED, Data, Task, stream
from tasks.worker import Bench

__all__ = ["Split", "SplitColumn", "rows_seen", "write_rows_seen"]


def _texts(value: Any) -> tuple[str, ...]:
    """A value of a column, or a list of them, as the column's texts."""
    given = value if isinstance(value, list | tuple) else [value]
    texts = []
    for item in given:
        if not isinstance(item, str | int | float | date):
            raise ValueError("must be a value of the column, or a list of values: text or numbers")
        if not as_text(item):
            raise ValueError("must not be empty: rows without a value have no role")
        texts.append(as_text(item))
    if not texts:
        raise ValueError("must not be empty")
    return tuple(dict.fromkeys(texts))


_Values = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class SplitColumn(BaseModel):
    """A column of the dataset that says who is what; it is no feature then.

    Rows with any other value, or none, have no role.
    """

    VERSION: ClassVar[int] = 1

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: Annotated[str, Field(min_length=1, max_length=200)]
    members: _Values = ("members",)
    reference: _Values = ("reference",)
    nonmembers: _Values = ("nonmembers",)

    @model_validator(mode="after")
    def _one_role_a_value(self) -> Self:
        seen: dict[str, str] = {}
        for role, value in self._pairs():
            if value in seen:
                raise ValueError(f"'{value}' stands for {seen[value]} and for {role}; keep one")
            seen[value] = role
        return self

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for role, values in self.meaning().items():
            for value in values:
                yield role, value

    def meaning(self) -> dict[str, tuple[str, ...]]:
        """The values that stand for each role."""
        return {role: getattr(self, role) for role in GIVEN_ROLES}


@dataclass(frozen=True, eq=False)
class Split(Task):
    """Which rows train the target, which serve as reference, which are judged.

    Attributes:
        data: the dataset.
        members, reference, nonmembers: sizes of D1, D2, D3; 0 where `column` gives them.
        untrained: size of each of two groups of fresh records, judged in the null.
        known: the share of members and of non-members whose membership the attacker knows.
        dedup: keep groups of equal records together, or keep one record of each.
        column: which column gives the roles, and how; None draws them.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 0.3
    GPU: ClassVar[bool] = False

    data: Data
    members: int
    reference: int
    nonmembers: int
    untrained: int
    known: float
    dedup: Literal["group", "drop"]
    column: SplitColumn | None = field(default=None, metadata=ADDED)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.data.name

    def divide(self, dataset: Dataset) -> splits.Split:
        """The partition; planning calls this too, with the same result."""
        if self.column is not None:
            return given_split(
                dataset.groups,
                dataset.extras[self.column.column],
                self.column.meaning(),
                column=self.column.column,
                known=self.known,
                seed=stream(self.seed, "data.split"),
                dedup=self.dedup,
            )
        sizes = splits.Sizes(self.members, self.reference, self.nonmembers, self.untrained)
        return splits.make_split(
            dataset.y,
            dataset.groups,
            sizes,
            known=self.known,
            seed=stream(self.seed, "data.split"),
            dedup=self.dedup,
        )

    def restore(self, role: NDArray[Any], row: NDArray[np.int64], dataset: Dataset) -> splits.Split:
        """The partition from what `run` wrote."""
        name = role.astype(str)
        of_role = {key: row[name == key] for key in splits.ROLES}
        return splits.Split(
            **of_role,
            groups=dataset.groups,
            known_share=self.known,
            seed=stream(self.seed, "data.split"),
        )

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write row numbers by role, and the data card."""
        dataset = bench.dataset(self.data)
        split = self.divide(dataset)
        roles = split.roles()
        names = [np.full(len(rows), name) for name, rows in roles.items()]
        draft.table(
            "split", {"role": np.concatenate(names), "row": np.concatenate([*roles.values()])}
        )
        about = {"dataset": dataset.name, "content": dataset.content_hash}
        draft.facts("metrics", about | card(split, dataset.y, dataset.groups))


def write_rows_seen(draft: Draft, seen: dict[str, NDArray[np.int64]]) -> None:
    """Log the index lists a stage was given; the invariants are checked on these."""
    roles = [np.full(len(rows), role) for role, rows in seen.items()]
    draft.table("rows", {"role": np.concatenate(roles), "row": np.concatenate([*seen.values()])})


def rows_seen(artifact: Artifact) -> dict[str, NDArray[np.int64]]:
    """The index lists a finished stage logged, by role."""
    table = artifact.table("rows")
    roles = table["role"].astype(str)
    return {role: table["row"][roles == role] for role in dict.fromkeys(roles.tolist())}
