"""ML-Leaks: a shadow model, and a small net on the three largest confidences."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from attacks._generated import random_inputs
from attacks._top3_net import Top3Net, top3
from attacks.base import Attack, Classifier, Foreign, Knowledge, Outline

__all__ = ["MlLeaks"]

# Streams drawn from the attack's seed.
_DIVISION, _SHADOW, _FIT, _RANDOM = 0, 1, 2, 3


class MlLeaks(Attack):
    """Learn on a shadow model how members' top-3 confidences look, and judge the target by it.

    Adversary 1 divides the records it holds into S_in and S_out, ignoring their membership in
    the target, and trains one shadow model on S_in. If it builds its own copy of the deployed
    defense, a fifth of the records is kept as that defense's reference data. Adversary 2 does the
    same with another dataset, `transfer_from`, and an architecture fit for it: the three largest
    confidences mean the same whatever the records and however many the classes.

    Adversary 3 trains nothing: its score is how far the largest confidence lies above that of
    `percentile` % of random inputs, which no model was trained on. It needs less than
    `THREAT_MODEL` (BB-shadow) grants: scores, and random inputs answered.

    The threshold is calibrated on the service's answers, not taken from the shadow model: a
    defense that moves all scores would else look private.

    Source: Salem et al., "ML-Leaks", NDSS 2019, adversaries 1 (section III), 2 (section IV) and 3
        (section V; its threshold is the "top t percentile" of the random inputs, so the smaller t,
        the fewer records are called members); the 40/40/20 division is the reconstruction of
        PURIFIER's "Adaptive" (methods 6.3). The paper describes a net with one hidden layer of 64;
        the public code fits a softmax regression, as its hidden size is never used. We build the
        net. The initial weights are not given; we draw them uniformly in +-1/sqrt(fan-in).
    """

    VERSION: ClassVar[int] = 2
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    adversary: Literal[1, 2, 3] = Field(
        1, description="1: one shadow model; 2: the same on another dataset; 3: no training"
    )
    transfer_from: str | None = Field(
        None, min_length=1, description="dataset that adversary 2 trains its shadow model on"
    )
    hidden: int = Field(64, ge=1, description="width of the attack net's hidden layer")
    learning_rate: float = Field(0.01, gt=0, description="Adam's step for the attack net")
    batch_size: int = Field(10, ge=1, description="records a step of the attack net")
    epochs: int = Field(50, ge=1, description="passes over S_in and S_out")
    weight_decay: float = Field(1e-6, ge=0, description="L2 penalty on all weights and biases")

    percentile: float = Field(
        10.0, ge=0, le=100, description="percent of random inputs that adversary 3 calls members"
    )
    num_random: int = Field(1000, ge=1, description="random inputs that adversary 3 asks about")

    @model_validator(mode="after")
    def _has_its_data(self) -> "MlLeaks":
        if (self.adversary == 2) != (self.transfer_from is not None):
            raise ValueError(
                f"adversary is {self.adversary} and transfer_from is {self.transfer_from!r}; "
                "adversary 2, and no other, takes the name of another dataset: "
                "{name: ml_leaks, adversary: 2, transfer_from: DATASET}"
            )
        return self

    @property
    def adapts(self) -> bool:
        """Adversary 3 trains nothing."""
        return self.adversary != 3

    @property
    def foreign_datasets(self) -> tuple[str, ...]:
        """The dataset of adversary 2."""
        return () if self.transfer_from is None else (self.transfer_from,)

    def harder(self) -> tuple[Attack, ...]:
        """Adversary 3 trains nothing that could be trained harder."""
        return () if self.adversary == 3 else super().harder()

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """One shadow model on S_in, with its own copy of the defense if `outline.adaptive`."""
        if self.adversary == 3:
            return ()
        rows, asked = outline.known_rows, dict[str, Any]()
        if self.transfer_from is not None:
            rows = outline.foreign(self.transfer_from).rows
            asked["dataset"] = self.transfer_from
        s_in, _, s_ref = _divide(rows, adaptive=outline.adaptive, seed=seed)
        if outline.adaptive:
            asked |= {"reference_rows": s_ref, "defended": True}
        shadow_seed = int(np.random.SeedSequence([seed, _SHADOW]).generate_state(1)[0])
        return (outline.training(rows=s_in, seed=shadow_seed, **asked),)

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member" (adversaries 1 and 2), or confidence above the threshold (3).

        Args:
            query: asked once.
            known: `trained[0]` is the shadow model; membership in `fit` and `cal` is not used.
                `query` is asked by adversary 3 only, `num_random` times.
            x: [N, ...] records.
            y: [N] labels, not used: the attack reads sorted confidences.
            seed: the one `trainings` was called with; the division is derived from it again.

        Returns:
            Finite float64 [N], any sign; equal for equal top-3.

        Raises:
            ValueError: if the shadow model is missing or was trained on another division.
        """
        if self.adversary == 3:
            largest_N = np.asarray(query(x).max(axis=1), dtype=np.float64)
            return largest_N - self._random_threshold(known, seed)
        if len(known.trained) != 1:
            raise ValueError(
                f"ml_leaks got {len(known.trained)} shadow models in known.trained; adversary "
                f"{self.adversary} needs the one its trainings() asked for"
            )
        shadow = known.trained[0]
        # What is known of another dataset has the same two members, `rows` and `x_of`.
        held: Knowledge | Foreign = known
        if self.transfer_from is not None:
            held = known.foreign(self.transfer_from)
        num_rows = len(held.rows)
        adaptive = len(shadow.rows) < num_rows // 2
        s_in, s_out, _ = _divide(held.rows, adaptive=adaptive, seed=seed)
        if not np.array_equal(np.sort(shadow.rows), np.sort(s_in)):
            raise ValueError(
                f"ml_leaks' shadow model was trained on {len(shadow.rows)} of the {num_rows} known "
                f"rows that are not the division of seed {seed}; call score() with the seed "
                "trainings() was called with"
            )
        top_M3 = np.concatenate([top3(shadow.answer(held.x_of(part)[0])) for part in (s_in, s_out)])
        is_member_M = np.arange(len(top_M3)) < len(s_in)
        rng = np.random.default_rng([seed, _FIT])
        net = Top3Net.initial(self.hidden, rng)
        net.fit(
            top_M3,
            is_member_M,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            epochs=self.epochs,
            weight_decay=self.weight_decay,
            rng=rng,
        )
        # Matrix products may round equal rows differently by their place in the batch, and ties
        # must stay ties: on a one-hot service every record has the same features.
        distinct_U3, where_N = np.unique(top3(query(x)), axis=0, return_inverse=True)
        return net.log_odds(distinct_U3)[where_N]

    def _random_threshold(self, known: Knowledge, seed: int) -> float:
        """The largest confidence that `percentile` % of random inputs are answered above."""
        rng = np.random.default_rng([seed, _RANDOM])
        like = known.x_of(known.rows)[0]
        answers = known.query(random_inputs(known.kind, like, self.num_random, rng))
        return float(np.quantile(answers.max(axis=1), 1.0 - self.percentile / 100.0))


def _divide(
    rows: NDArray[np.int64], *, adaptive: bool, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """S_in, S_out and S_ref: halves and nothing, or 40/40/20 when adaptive.

    Sorted first, so that the division depends on which rows are held and not on their order. An
    odd row goes to S_out, what 40 % leaves over to S_ref.
    """
    if len(rows) < 6:
        raise ValueError(f"ml_leaks holds {len(rows)} known rows; dividing them needs at least 6")
    shuffled = np.random.default_rng([seed, _DIVISION]).permutation(np.sort(rows))
    num_in = len(rows) * 2 // 5 if adaptive else len(rows) // 2
    end = 2 * num_in if adaptive else len(rows)
    return shuffled[:num_in], shuffled[num_in:end], shuffled[end:]
