"""The boundary attack: members lie further from where the label changes."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._hopskipjump import Effort, Start, hop_skip_jump
from attacks._keyed import record_generators
from attacks.base import Attack, Classifier, Kind, Knowledge

__all__ = ["Boundary"]

_DIRECTIONS, _STARTS = 0, 1  # purposes of a record's draws


class Boundary(Attack):
    """Score a record by its L2 distance to the nearest record the service labels otherwise.

    HopSkipJump finds that distance from labels alone, with hundreds to tens of thousands of
    queries a record. Records the service labels wrongly have distance 0 and cost `repeats` queries.

    Images stay in [0, 1] and start from uniform noise. Other continuous records have no range and
    start from normal noise with mean and deviation of each feature in `known.population`; distances
    are in the units the classifier reads. Where noise always gets the record's own label, records
    of the population are tried next. If none of them has another label, the score is the diagonal
    of the box that holds all pixels, or of the one that holds the population; no score is higher.

    Bits have no small distances, so there is nothing to walk along: published as not applicable.

    Source: Li & Zhang, "Membership Leakage in Label-Only Exposures", CCS 2021, adversary 2 (the
        boundary attack), with the defaults of the library it uses; Choquette-Choo et al.,
        "Label-Only Membership Inference Attacks", ICML 2021, sections 3.2 (misclassified records:
        distance 0) and 3.4.
        `start_from_records` and `repeats` are ours; the library calls a record without a start
        unmoved, which is distance 0.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    KINDS: ClassVar[frozenset[Kind]] = frozenset({"image", "continuous"})
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"start_from_records": False},
        "sound": {"repeats": 5, "num_records": 500},
        "cpu": {"max_iter": 10, "max_eval": 500, "num_records": 200},
    }

    max_iter: int = Field(50, ge=0, description="gradient steps along the boundary")
    max_eval: int = Field(10_000, ge=1, description="most labels asked for one gradient")
    init_eval: int = Field(
        100, ge=1, description="labels asked for the first gradient, times sqrt(t) for step t"
    )
    init_size: int = Field(100, ge=1, description="random inputs tried as a first point")
    start_from_records: bool = Field(
        True, description="try as many records of the population after the random inputs"
    )
    repeats: int = Field(
        1, ge=1, description="labels whose majority judges a point, for services that randomise"
    )
    num_records: int = Field(1000, ge=2, description="most records judged")

    @property
    def most_records(self) -> int | None:
        """`num_records`."""
        return self.num_records

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Distance in L2; 0 where the service's label is not `y`.

        Args:
            query: asked at most `repeats` + `most_queries` times a record; see `_hopskipjump`.
            known: `population`, for where to start and how far is far.
            x: [N, ...] records.
            y: [N] labels.
            seed: of starts and directions, which are drawn record by record.

        Raises:
            ValueError: if the records are bits.
        """
        if known.kind == "binary":
            raise ValueError(
                "boundary was given records of kind 'binary', which have no small distances; it "
                "works on 'image' and 'continuous' ones: use noise_robustness for bits"
            )
        is_image = known.kind == "image"
        wrong_N = sum((query(x) != y).astype(np.int64) for _ in range(self.repeats))
        right = np.flatnonzero(2 * wrong_N <= self.repeats)
        score_N = np.zeros(len(x))
        if not len(right):
            return score_N
        population = known.population.x
        found = hop_skip_jump(
            query,
            x[right],
            y[right],
            self._start(x[right], population, is_image=is_image, seed=seed),
            record_generators(x[right], seed, _DIRECTIONS),
            Effort(
                max_iter=self.max_iter,
                init_eval=self.init_eval,
                max_eval=self.max_eval,
                num_starts=self.init_size * (2 if self.start_from_records else 1),
                repeats=self.repeats,
            ),
            clip=(0.0, 1.0) if is_image else None,
        )
        score_N[right] = np.minimum(found.distance, _diagonal(population, is_image=is_image))
        return score_N

    def _start(
        self, x: NDArray[Any], population: NDArray[Any], *, is_image: bool, seed: int
    ) -> Start:
        """Random inputs for the first `init_size` attempts, then records of the population."""
        generators = record_generators(x, seed, _STARTS)
        shape = x.shape[1:]
        mean = population.mean(axis=0, dtype=np.float64)
        deviation = population.std(axis=0, dtype=np.float64)

        def start(rows: NDArray[np.int64], attempt: int) -> NDArray[Any]:
            drawn_by = [generators[row] for row in rows]
            if attempt >= self.init_size:
                return population[[rng.integers(len(population)) for rng in drawn_by]]
            if is_image:
                return np.stack([rng.random(shape) for rng in drawn_by])
            noise = np.stack([rng.standard_normal(shape) for rng in drawn_by])
            return np.asarray(mean + deviation * noise)

        return start


def _diagonal(population: NDArray[Any], *, is_image: bool) -> float:
    """L2 across the box of all images, or the one that just holds the population."""
    if is_image:
        return math.sqrt(math.prod(population.shape[1:]))
    sides = population.max(axis=0).astype(np.float64) - population.min(axis=0)
    return float(np.linalg.norm(sides))
