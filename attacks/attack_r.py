"""Attack R: how low is the loss among losses of models that never saw the record."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._ranks import Smooth
from attacks._references import own_scores, shadow_signals, signal
from attacks.base import Attack, Classifier, Knowledge, Outline

__all__ = ["AttackR"]

# With own copies of the defense a record is OUT of a quarter of the models: of four at least.
_LEAST_ADAPTIVE = 16


class AttackR(Attack):
    """Call a record a member if the target's loss on it is low beside models without it.

    Every record has its own null distribution, that of its loss over the shadow models it is OUT
    of. Eight losses tell levels of a ninth; between them the level is linear in the loss, or,
    with `logit_normal`, that of a normal distribution of the logit of p_y, which also tells apart
    losses far below all eight.

    If the attacker builds its own copies of the deployed defense, a shadow model's OUT records
    that were its defense's reference data do not count for it.

    Source: Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models",
        CCS 2022, Attack R; 29 OUT models as in the authors' CIFAR10 experiment. The reference
        models are those of the half-split design, shared with other attacks.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"num_shadows": 58, "smooth": "linear"},
        "sound": {"num_shadows": 64},
        "cpu": {"num_shadows": 16},
    }

    num_shadows: int = Field(
        16, ge=8, le=10_000, multiple_of=2, description="models, half of them OUT"
    )
    smooth: Smooth = Field("logit_normal", description="how levels between losses are read")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p_y, and sum of the other p")

    def fault(self, shape: tuple[int, ...], *, adaptive: bool) -> str:
        """Too few shadow models.

        With own copies of the defense every other OUT model of a record has it as reference data,
        so that it is OUT of a quarter of the models, rounded down. Without them half are OUT.
        """
        if adaptive and self.num_shadows < _LEAST_ADAPTIVE:
            return (
                f"num_shadows is {self.num_shadows}; with adaptive, half of the models a record is "
                "OUT of have it as reference data of their defense, and a level takes four that "
                f"do not: use {_LEAST_ADAPTIVE} or more"
            )
        return ""

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """The shadow models, with their own copies of the defense if `outline.adaptive`."""
        return outline.shadows(self.num_shadows, defended=outline.adaptive)

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Minus the level of the record's loss among its losses under OUT models.

        Args:
            query: asked once a record.
            known: `shadows`; nothing else is used.
            x: [N, ...] records.
            y: [N] labels.
            seed: not used: nothing is drawn.

        Returns:
            Float64 [N] in [-1, 0]; scores of at least -alpha have the false positive rate alpha.

        Raises:
            ValueError: if a record has too few OUT models among the shadow models.
        """
        reference_SN = shadow_signals(known, x, y, self.smooth, clip=self.clip)
        is_out_SN = known.shadows.role(x) == 0
        target_N = signal(query(x), y, self.smooth, clip=self.clip)
        return own_scores(target_N, reference_SN, is_out_SN, self.smooth, clip=self.clip)
