"""Attack P: how low is the loss among the target's own losses on a population."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._ranks import class_levels, levels
from attacks._references import draw, loss
from attacks.base import Attack, Classifier, Knowledge

__all__ = ["AttackP"]

# Streams drawn from the attack's seed.
_POPULATION = 0


class AttackP(Attack):
    """Call a record a member if the target's loss on it is low beside those of a population.

    The population's records are no members, so their losses are the null distribution. Ranked
    among all of them, records are in the order of their losses; what is added is the level, which
    needs no known members and means the same for every target.

    Source: Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models",
        CCS 2022, Attack P, whose threshold depends on the target; with `per_class` it depends on
        the label as well.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-pop"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    num_population: int = Field(2500, ge=1, description="records of the population asked at most")
    per_class: bool = Field(False, description="rank among losses of the record's class only")
    min_records: int = Field(10, ge=1, description="classes with fewer losses use all of them")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p_y")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Minus the share of the population's losses below the record's, interpolated.

        Args:
            query: asked once a record.
            known: `query` is asked once a record of the population, for at most `num_population`.
            x: [N, ...] records.
            y: [N] labels.
            seed: draws the population's records where there are more.

        Returns:
            Float64 [N] in [-1, 0]; scores of at least -alpha have the false positive rate alpha.

        Raises:
            ValueError: if the population is empty.
        """
        rng = np.random.default_rng([seed, _POPULATION])
        population = draw(known.population, self.num_population, rng)
        if len(population) == 0:
            raise ValueError(
                "attack_p has no population to rank among: known.population is empty; leave rows "
                "to the population, or let non-members be known"
            )
        loss_M = loss(known.query(population.x), population.y, clip=self.clip)
        loss_N = loss(query(x), y, clip=self.clip)
        high = -float(np.log(self.clip))
        if not self.per_class:
            return -levels(loss_N, loss_M, low=0.0, high=high)
        return -class_levels(
            loss_N, y, loss_M, population.y, low=0.0, high=high, min_records=self.min_records
        )
