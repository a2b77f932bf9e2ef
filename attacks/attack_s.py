"""Attack S: how low is the loss among losses of shadow models on records they never saw."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._ranks import class_levels, levels
from attacks._references import draw, held_records, loss, shadow_signals
from attacks.base import Attack, Classifier, Knowledge, Outline

__all__ = ["AttackS"]

# Streams drawn from the attack's seed.
_RECORDS = 0


class AttackS(Attack):
    """Call a record a member if the target's loss on it is low for records a model never saw.

    The null distribution is that of the losses of a few shadow models on the attacker's own
    records, each under the models it is OUT of. The target is asked about the judged records only.

    If the attacker builds its own copies of the deployed defense, records that were a copy's
    reference data are not OUT for it.

    Source: Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models",
        CCS 2022, Attack S, whose threshold is the same for all targets and records; with
        `per_class` it depends on the label. The shadow models are those of the half-split design,
        shared with other attacks.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"num_shadows": 30},
        "sound": {},
        "cpu": {"num_records": 2500},
    }

    num_shadows: int = Field(8, ge=2, le=10_000, multiple_of=2, description="shadow models")
    num_records: int = Field(
        10_000, ge=1, description="own records the shadow models answer at most"
    )
    per_class: bool = Field(False, description="rank among losses of the record's class only")
    min_records: int = Field(10, ge=1, description="classes with fewer losses use all of them")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p_y")

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
        """Minus the share of the shadow models' losses below the record's, interpolated.

        Args:
            query: asked once a record.
            known: `shadows`, and the attacker's own records; nobody's membership.
            x: [N, ...] records.
            y: [N] labels.
            seed: draws own records where there are more than `num_records`.

        Returns:
            Float64 [N] in [-1, 0].

        Raises:
            ValueError: if the shadow models are OUT of none of the attacker's records.
        """
        held = draw(held_records(known), self.num_records, np.random.default_rng([seed, _RECORDS]))
        is_out_SM = known.shadows.role(held.x) == 0
        if not is_out_SM.any():
            raise ValueError(
                f"attack_s has no losses to rank among: the {known.shadows.num_shadows} shadow "
                f"models are OUT of none of the {len(held)} records the attacker holds"
            )
        out_loss = shadow_signals(known, held.x, held.y, "linear", clip=self.clip)[is_out_SM]
        loss_N = loss(query(x), y, clip=self.clip)
        high = -float(np.log(self.clip))
        if not self.per_class:
            return -levels(loss_N, out_loss, low=0.0, high=high)
        out_y = np.broadcast_to(held.y, is_out_SM.shape)[is_out_SM]
        return -class_levels(
            loss_N, y, out_loss, out_y, low=0.0, high=high, min_records=self.min_records
        )
