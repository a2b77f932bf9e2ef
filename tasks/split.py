"""Task: the leak-free partition of a dataset (methods.md section 2.3)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from storage import splits
from storage.artifacts import Artifact, Draft
from storage.datasets import Dataset
from tasks.base import Data, Task, stream
from tasks.worker import Bench

__all__ = ["Split", "rows_seen", "write_rows_seen"]


@dataclass(frozen=True, eq=False)
class Split(Task):
    """Which rows train the target, which serve as reference, which are judged.

    Attributes:
        data: the dataset.
        members, reference, nonmembers: sizes of D1, D2, D3.
        untrained: size of each of two groups of fresh records, judged in the null.
        known: the share of members and of non-members whose membership the attacker knows.
        dedup: keep groups of equal records together, or keep one record of each.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 0.3

    data: Data
    members: int
    reference: int
    nonmembers: int
    untrained: int
    known: float
    dedup: Literal["group", "drop"]

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.data.name

    def divide(self, dataset: Dataset) -> splits.Split:
        """The partition; planning calls this too, with the same result."""
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
        card: dict[str, Any] = splits.card(split, dataset.y, dataset.groups)
        draft.facts("metrics", {"dataset": dataset.name, "content": dataset.content_hash, **card})


def write_rows_seen(draft: Draft, seen: dict[str, NDArray[np.int64]]) -> None:
    """Log the index lists a stage was given; the invariants are checked on these."""
    roles = [np.full(len(rows), role) for role, rows in seen.items()]
    draft.table("rows", {"role": np.concatenate(roles), "row": np.concatenate([*seen.values()])})


def rows_seen(artifact: Artifact) -> dict[str, NDArray[np.int64]]:
    """The index lists a finished stage logged, by role."""
    table = artifact.table("rows")
    roles = table["role"].astype(str)
    return {role: table["row"][roles == role] for role in dict.fromkeys(roles.tolist())}
