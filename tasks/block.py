"""Tasks: several models trained together, and each of them as a classifier of its own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense
from storage.artifacts import Draft
from tasks.architectures import Architecture
from tasks.base import Task
from tasks.service import Stage, TrainedView
from tasks.split import Split, write_rows_seen
from tasks.stacked import one_of
from tasks.train_target import classifier_stage, classifier_view
from tasks.worker import Bench

__all__ = ["BLOCK", "Block", "BlockModel"]

BLOCK = 4  # even, so that a block holds whole pairs; two stacks, and enough blocks to share out


@dataclass(frozen=True, eq=False)
class Block(Task):
    """Models of one architecture trained together: `weights` of all, and `train_s`.

    Attributes:
        split: the partition of the dataset.
        architecture: the target's network and recipe.
    """

    SECONDS: ClassVar[float] = 10.0

    split: Split
    architecture: Architecture

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.split.dataset

    @property
    def name(self) -> str:
        """The architecture."""
        return self.architecture.name

    @property
    def num_models(self) -> int:
        """How many it trains."""
        return BLOCK

    def rows_of(
        self, index: int, bench: Bench
    ) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Members of one model, and the reference rows (fit, val) of a defense around it."""
        raise TypeError(f"{self.kind} tells no rows")


@dataclass(frozen=True, eq=False)
class BlockModel(Task):
    """One model of a block as a classifier of its own, to be asked and defended.

    Attributes:
        block: where it was trained.
        index: which of the block.
    """

    SECONDS: ClassVar[float] = 0.1
    GPU: ClassVar[bool] = False

    block: Block
    index: int

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

    @property
    def defense(self) -> Defense | None:
        """The training defense, or None."""
        return None

    def member_rows(self, bench: Bench) -> NDArray[np.int64]:
        """The rows it trained on."""
        return self.block.rows_of(self.index, bench)[0]

    def reference_rows(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The reference rows (fit, val) of a defense around it."""
        return self.block.rows_of(self.index, bench)[1]

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write its weights alone."""
        draft.arrays("weights", one_of(bench.arrays(self.block, "weights"), self.index))
        write_rows_seen(draft, {"members": self.member_rows(bench)})
        seconds = bench.open(self.block).facts("metrics")["train_s"]
        draft.facts("metrics", {"train_s": seconds / self.block.num_models})

    def stage(self, bench: Bench, noise: str = "deterministic") -> Stage:
        """The trained classifier, to be asked."""
        return classifier_stage(self, bench)

    def trained(self, bench: Bench) -> TrainedView:
        """The model as the plugin that asked for it sees it."""
        return classifier_view(self, bench)
