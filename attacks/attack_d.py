"""Attack D: how low is the loss among losses of models distilled from the target."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._ranks import Smooth
from attacks._references import draw, held_records, own_scores, place_in, signal
from attacks.base import Attack, Classifier, Knowledge

__all__ = ["AttackD"]

# Streams drawn from the attack's seed.
_RECORDS, _HALVES, _MODELS = 0, 1, 2


class AttackD(Attack):
    """Call a record a member if the target's loss on it is low beside models distilled from it.

    Models like the target, but that never saw the record: each is trained on half of the
    attacker's own records with the target's answers as soft labels. Every record has its own null
    distribution, that of its loss over these models.

    Models 2i and 2i + 1 have complementary halves. A record that the attacker holds itself is
    ranked among the models that were not distilled on it, as the threshold is calibrated on such
    records and should hold for the judged ones, which no model saw.

    Source: Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models",
        CCS 2022, Attack D. There the records distilled on are as many as the target's, from the
        population; here those the attacker holds, at most `num_records`.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"num_models": 30, "smooth": "linear"},
        "sound": {"num_models": 16},
        "cpu": {"num_records": 2500},
    }

    num_models: int = Field(8, ge=4, le=10_000, multiple_of=2, description="distilled models")
    num_records: int = Field(
        10_000, ge=2, description="own records that are asked about and divided at most"
    )
    smooth: Smooth = Field("logit_normal", description="how levels between losses are read")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p_y, and sum of the other p")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Minus the level of the record's loss among its losses under distilled models.

        Args:
            query: asked once a record.
            known: `query` is asked once a record that is distilled on; `train` for `num_models`
                models. Nobody's membership is used.
            x: [N, ...] records.
            y: [N] labels.
            seed: draws the records, their halves, and the models' weights and batches.

        Returns:
            Float64 [N] in [-1, 0].

        Raises:
            ValueError: if the attacker holds fewer than two records.
        """
        held = draw(held_records(known), self.num_records, np.random.default_rng([seed, _RECORDS]))
        if len(held) < 2:
            raise ValueError(
                f"attack_d holds {len(held)} records; distilling on halves takes at least 2"
            )
        soft_MC = _distributions(known.query(held.x))
        place_N = place_in(held.x, x)
        signal_KN = np.empty((self.num_models, len(x)))
        is_out_KN = np.ones((self.num_models, len(x)), dtype=np.bool_)
        seeds = np.random.SeedSequence([seed, _MODELS]).generate_state(self.num_models)
        rng = np.random.default_rng([seed, _HALVES])
        for pair in range(self.num_models // 2):
            first = np.zeros(len(held), dtype=np.bool_)
            first[rng.permutation(len(held))[: len(held) // 2]] = True
            for k, is_in in ((2 * pair, first), (2 * pair + 1, ~first)):
                (model,) = known.train(held.x[is_in], soft_MC[is_in], seed=int(seeds[k]))
                signal_KN[k] = signal(model.answer(x), y, self.smooth, clip=self.clip)
                is_out_KN[k] = (place_N < 0) | ~is_in[place_N]
        target_N = signal(query(x), y, self.smooth, clip=self.clip)
        return own_scores(target_N, signal_KN, is_out_KN, self.smooth, clip=self.clip)


def _distributions(confidence: NDArray[Any]) -> NDArray[np.float64]:
    """Released rows [N, C] as soft labels: each over its sum, rows without any sum uniform."""
    p_NC = np.maximum(np.asarray(confidence, dtype=np.float64), 0.0)
    total_N1 = p_NC.sum(axis=1, keepdims=True)
    soft_NC = np.full_like(p_NC, 1 / p_NC.shape[1])
    np.divide(p_NC, total_N1, out=soft_NC, where=total_N1 > 0)
    return soft_NC
