"""Tasks: models on row sets of their own, trained several at once because a plugin asked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import Draft
from tasks.architectures import Architecture
from tasks.base import Rows, stream
from tasks.block import BLOCK, Block, BlockModel
from tasks.split import Split, write_rows_seen
from tasks.stacked import joined, train_many
from tasks.worker import Bench

__all__ = ["SubModel", "TrainBlock", "sub_models"]


@dataclass(frozen=True, eq=False)
class TrainBlock(Block):
    """Models of the target's architecture and recipe, each on rows of its own.

    Attributes:
        rows: for each model the rows it trains on.
        seeds: for each model the root of its streams; `seed` is the first of them.
    """

    VERSION: ClassVar[int] = 1

    rows: tuple[Rows, ...]
    seeds: tuple[int, ...]

    @property
    def num_models(self) -> int:
        """How many it trains."""
        return len(self.rows)

    def rows_of(
        self, index: int, bench: Bench
    ) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows of one model, and no reference."""
        none = np.empty(0, dtype=np.int64)
        return self.rows[index].array, (none, none)

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write the weights of every model, and the rows each trained on."""
        dataset = bench.dataset(self.split.data)
        pool, local = np.unique(np.concatenate([r.array for r in self.rows]), return_inverse=True)
        ends = np.cumsum([len(rows) for rows in self.rows])
        started = time.perf_counter()
        trained = train_many(
            self.architecture,
            dataset.x(pool),
            dataset.y[pool],
            np.split(local, ends[:-1]),
            num_classes=dataset.num_classes,
            seeds=self.seeds,
            device=bench.device,
        )
        draft.facts("metrics", {"train_s": time.perf_counter() - started})
        draft.arrays("weights", joined([model.weights for model in trained]))
        seen = {f"model_{i}": rows.array for i, rows in enumerate(self.rows)}
        write_rows_seen(draft, seen)


@dataclass(frozen=True, eq=False)
class SubModel(BlockModel):
    """One model of a block; nothing is fitted around it."""

    VERSION: ClassVar[int] = 1

    block: TrainBlock


def sub_models(
    split: Split,
    architecture: Architecture,
    rows: Sequence[NDArray[np.int64]],
    seed: int,
) -> tuple[SubModel, ...]:
    """A classifier a row set, trained in blocks; the order of `rows` is kept."""
    found: list[SubModel] = []
    for start in range(0, len(rows), BLOCK):
        own = tuple(Rows(part) for part in rows[start : start + BLOCK])
        seeds = tuple(stream(seed, "sub_model", start + i) for i in range(len(own)))
        block = TrainBlock(
            seed=seeds[0], split=split, architecture=architecture, rows=own, seeds=seeds
        )
        found += [SubModel(seed=seeds[i], block=block, index=i) for i in range(len(own))]
    return tuple(found)
