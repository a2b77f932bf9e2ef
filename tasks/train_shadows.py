"""Tasks: shadow models in the half-split design (methods.md section 2.4)."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense, TrainingDefense
from storage import splits
from storage.artifacts import Draft
from storage.halves import half_split
from tasks.base import random_generator, stream
from tasks.block import BLOCK, Block, BlockModel
from tasks.reference import reference_of
from tasks.setting import make_setting
from tasks.split import write_rows_seen
from tasks.stacked import joined, train_many
from tasks.train_target import TrainTarget
from tasks.worker import Bench

__all__ = ["LoneShadow", "Shadow", "TrainShadows", "shadow_pool", "shadow_rows"]


def shadow_pool(split: splits.Split, judge: splits.Judge, seed: int) -> NDArray[np.int64]:
    """The records shadow models divide: all judged and calibration ones, and more of the pool.

    Args:
        split: the partition.
        judge: whose records are judged.
        seed: of the experiment.

    Returns:
        Rows, twice as many as members if the pool has them. Their membership in the target plays
        no part. The pool is the population where it is large enough, else the known records; of
        a defender, who has no population, it is the rest of D1 and D2.
    """
    judged, _ = split.judged(judge)
    fit, _, cal, _ = split.known(judge)
    wanted = 2 * len(split.members)
    pool = split.population_of(judge)
    if judge == "defender":
        pool = np.concatenate([split.members, split.reference])
        # A twin in the other half would make a model that is OUT of a judged record see it.
        taken = split.groups[np.concatenate([judged, cal])]
        pool = pool[~np.isin(split.groups[pool], taken)]
    elif len(pool) < wanted:
        pool = fit
    order = random_generator(seed, "shadow.pool").permutation(len(pool))
    more = np.sort(pool)[order][: max(0, wanted - len(judged) - len(cal))]
    return np.sort(np.concatenate([judged, cal, more]))


@dataclass(frozen=True, eq=False)
class TrainShadows(Block):
    """A block of shadow models trained together, each on its half of the pool.

    Blocks are of fixed size, so that asking for 32 shadows where 16 exist trains 16 more.

    Attributes:
        judge: whose records are judged, hence in the pool.
        block: which block; it holds shadows BLOCK * block to BLOCK * block + BLOCK - 1.
        defense: the target's training defense, if the shadows carry it.
    """

    VERSION: ClassVar[int] = 1

    judge: splits.Judge
    block: int
    defense: Defense | None = None

    def design(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The pool [n], and which of it each shadow of this block trains on [BLOCK, n]."""

        def make() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
            pool = shadow_pool(bench.split(self.split), self.judge, self.seed)
            first = BLOCK * self.block
            seed = stream(self.seed, "shadow.halves")
            return pool, half_split(pool, first + BLOCK, seed=seed)[first:]

        return bench.keep(("design", self.key), make)

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write the weights of every shadow, and the rows each trained on."""
        dataset = bench.dataset(self.split.data)
        pool, is_in = self.design(bench)
        seeds = [stream(self.seed, "shadow", BLOCK * self.block + i) for i in range(BLOCK)]
        started = time.perf_counter()
        if isinstance(self.defense, TrainingDefense):
            models = [self._defended(bench, i, seeds[i]) for i in range(BLOCK)]
        else:
            local = [np.flatnonzero(chosen) for chosen in is_in]
            trained = train_many(
                self.architecture,
                dataset.x(pool),
                dataset.y[pool],
                local,
                num_classes=dataset.num_classes,
                seeds=seeds,
                device=bench.device,
            )
            models = [model.weights for model in trained]
        draft.facts("metrics", {"train_s": time.perf_counter() - started})
        draft.arrays("weights", joined(models))
        write_rows_seen(draft, {f"shadow_{i}": pool[chosen] for i, chosen in enumerate(is_in)})

    def rows_of(
        self, index: int, bench: Bench
    ) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Members and reference rows of one shadow of the block, as `shadow_rows` gives them."""
        pool, is_in = self.design(bench)
        return shadow_rows(pool, is_in[index], BLOCK * self.block + index, self.seed)

    def _defended(self, bench: Bench, index: int, seed: int) -> dict[str, NDArray[Any]]:
        member_rows, reference_rows = self.rows_of(index, bench)
        dataset = bench.dataset(self.split.data)
        setting = make_setting(
            dataset,
            member_rows=member_rows,
            reference=reference_of(dataset, *reference_rows),
            architecture=self.architecture,
            seed=seed,
            device=bench.device,
        )
        assert isinstance(self.defense, TrainingDefense)
        return self.defense.train(setting, seed=stream(seed, "defense.fit"))


def shadow_rows(
    pool: NDArray[np.int64], is_in: NDArray[np.bool_], number: int, seed: int
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """A shadow's members, and its defender's reference rows (fit, val): half of its OUT rows.

    A record is reference to every other of the models it is OUT of: drawn independently, some
    records would be left without a model that they are merely OUT of.

    Args:
        pool: [n] rows.
        is_in: bool [n], which of them it trains on.
        number: which shadow it is.
        seed: of the experiment.
    """
    pair = number // 2
    bit = random_generator(seed, "shadow.reference").random(len(pool)) < 0.5
    reference = pool[~is_in & (bit ^ bool(pair % 2))]
    order = random_generator(seed, "shadow.reference", 1 + pair).permutation(len(reference))
    cut = round(0.8 * len(reference))
    return pool[is_in], (reference[order[:cut]], reference[order[cut:]])


@dataclass(frozen=True, eq=False)
class LoneShadow(TrainTarget):
    """A shadow trained as a target is: its training defense asks for models of its own."""


@dataclass(frozen=True, eq=False)
class Shadow(BlockModel):
    """One shadow of a block; a defense around it is fitted on half of its OUT rows."""

    VERSION: ClassVar[int] = 1

    block: TrainShadows

    @property
    def defense(self) -> Defense | None:
        """The training defense, or None."""
        return self.block.defense
