"""Tasks: models on row sets of their own, trained several at once because a plugin asked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense
from storage.artifacts import Draft
from tasks.architectures import Architecture
from tasks.base import Rows, Task, stream
from tasks.service import Stage, TrainedView
from tasks.split import Split, write_rows_seen
from tasks.stacked import joined, one_of, train_many
from tasks.train_shadows import BLOCK
from tasks.train_target import classifier_stage, classifier_view
from tasks.worker import Bench

__all__ = ["SubModel", "TrainBlock", "sub_models"]


@dataclass(frozen=True, eq=False)
class TrainBlock(Task):
    """Models of the target's architecture and recipe, each on rows of its own.

    Attributes:
        split: the partition of the dataset.
        architecture: network and recipe.
        rows: for each model the rows it trains on.
        seeds: for each model the root of its streams; `seed` is the first of them.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 10.0

    split: Split
    architecture: Architecture
    rows: tuple[Rows, ...]
    seeds: tuple[int, ...]

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.split.dataset

    @property
    def name(self) -> str:
        """The architecture."""
        return self.architecture.name

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
class SubModel(Task):
    """One model of a block as a classifier of its own.

    Attributes:
        block: where it was trained.
        index: which of the block.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 0.1

    block: TrainBlock
    index: int

    defense: ClassVar[Defense | None] = None

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.block.dataset

    @property
    def name(self) -> str:
        """The architecture."""
        return self.block.name

    @property
    def split(self) -> Split:
        """The partition of the dataset."""
        return self.block.split

    @property
    def architecture(self) -> Architecture:
        """The target's network and recipe."""
        return self.block.architecture

    def member_rows(self, bench: Bench) -> NDArray[np.int64]:
        """The rows it trained on."""
        return self.block.rows[self.index].array

    def reference_rows(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """None: nothing is fitted around a sub-model."""
        none = np.empty(0, dtype=np.int64)
        return none, none

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write its weights alone."""
        draft.arrays("weights", one_of(bench.arrays(self.block, "weights"), self.index))
        write_rows_seen(draft, {"members": self.member_rows(bench)})
        seconds = bench.open(self.block).facts("metrics")["train_s"]
        draft.facts("metrics", {"train_s": seconds / len(self.block.rows)})

    def stage(self, bench: Bench, noise: str = "deterministic") -> Stage:
        """The trained classifier, to be asked."""
        return classifier_stage(self, bench)

    def trained(self, bench: Bench) -> TrainedView:
        """The model as the plugin that asked for it sees it."""
        return classifier_view(self, bench)


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
