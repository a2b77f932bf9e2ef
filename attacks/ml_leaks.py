"""ML-Leaks: a shadow model, and a small net on the three largest confidences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from attacks.base import Attack, Classifier, Knowledge, Outline

__all__ = ["MlLeaks"]

# Streams drawn from the attack's seed.
_DIVISION, _SHADOW, _FIT = 0, 1, 2


class MlLeaks(Attack):
    """Learn on a shadow model how members' top-3 confidences look, and judge the target by it.

    Adversary 1 divides the records it holds into S_in and S_out, ignoring their membership in
    the target, and trains one shadow model on S_in. If it builds its own copy of the deployed
    defense, a fifth of the records is kept as that defense's reference data. Adversary 3 trains
    nothing: its score is the largest confidence. It needs less than `THREAT_MODEL` (BB-shadow)
    grants: scores and a threshold.

    Source: Salem et al., "ML-Leaks", NDSS 2019, adversaries 1 (section III) and 3 (section V);
        the 40/40/20 division is the reconstruction of PURIFIER's "Adaptive" (methods 6.3). The
        paper describes a net with one hidden layer of 64; the public code fits a softmax
        regression, as its hidden size is never used. We build the net. The initial weights are
        not given; we draw them uniformly in +-1/sqrt(fan-in).
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    adversary: Literal[1, 3] = Field(1, description="1: one shadow model; 3: no training")
    hidden: int = Field(64, ge=1, description="width of the attack net's hidden layer")
    learning_rate: float = Field(0.01, gt=0, description="Adam's step for the attack net")
    batch_size: int = Field(10, ge=1, description="records a step of the attack net")
    epochs: int = Field(50, ge=1, description="passes over S_in and S_out")
    weight_decay: float = Field(1e-6, ge=0, description="L2 penalty on all weights and biases")

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """One shadow model on S_in, with its own copy of the defense if `outline.adaptive`."""
        if self.adversary == 3:
            return ()
        s_in, _, s_ref = _divide(outline.known_rows, adaptive=outline.adaptive, seed=seed)
        shadow_seed = int(np.random.SeedSequence([seed, _SHADOW]).generate_state(1)[0])
        if outline.adaptive:
            return (
                outline.training(rows=s_in, reference_rows=s_ref, defended=True, seed=shadow_seed),
            )
        return (outline.training(rows=s_in, seed=shadow_seed),)

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member" (adversary 1) or the largest confidence (adversary 3).

        Args:
            query: asked once.
            known: `trained[0]` is the shadow model; membership in `fit` and `cal` is not used.
            x: [N, ...] records.
            y: [N] labels, not used: the attack reads sorted confidences.
            seed: the one `trainings` was called with; the division is derived from it again.

        Returns:
            Finite float64 [N], any sign for adversary 1; equal for equal top-3.

        Raises:
            ValueError: if the shadow model is missing or was trained on another division.
        """
        if self.adversary == 3:
            return np.asarray(query(x).max(axis=1), dtype=np.float64)
        if len(known.trained) != 1:
            raise ValueError(
                f"ml_leaks got {len(known.trained)} shadow models in known.trained; adversary 1 "
                "needs the one its trainings() asked for"
            )
        shadow = known.trained[0]
        num_rows = len(known.rows)
        adaptive = len(shadow.rows) < num_rows // 2
        s_in, s_out, _ = _divide(known.rows, adaptive=adaptive, seed=seed)
        if not np.array_equal(np.sort(shadow.rows), np.sort(s_in)):
            raise ValueError(
                f"ml_leaks' shadow model was trained on {len(shadow.rows)} of the {num_rows} known "
                f"rows that are not the division of seed {seed}; call score() with the seed "
                "trainings() was called with"
            )
        top_M3 = np.concatenate(
            [_top3(shadow.answer(known.x_of(part)[0])) for part in (s_in, s_out)]
        )
        is_member_M = np.arange(len(top_M3)) < len(s_in)
        rng = np.random.default_rng([seed, _FIT])
        net = _Net.initial(self.hidden, rng)
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
        distinct_U3, where_N = np.unique(_top3(query(x)), axis=0, return_inverse=True)
        return net.log_odds(distinct_U3)[where_N]


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


def _top3(confidence: NDArray[Any]) -> NDArray[np.float64]:
    """[N, 3] largest confidences, descending; zeros stand in for missing classes."""
    top_N3 = np.zeros((len(confidence), 3))
    largest = -np.sort(-np.asarray(confidence, dtype=np.float64), axis=1)[:, :3]
    top_N3[:, : largest.shape[1]] = largest
    return top_N3


@dataclass(frozen=True, eq=False)
class _Net:
    """The attack net 3-H-2 (ReLU, softmax), trained by Adam with gradients written out.

    Thousands of steps on ten rows each cost torch a millisecond a step, and these some tens of
    microseconds. `first` is [4, H] and `second` [H + 1, 2], both views of `flat`; the last row
    of each is the bias.
    """

    flat: NDArray[np.float64]
    hidden: int

    @classmethod
    def initial(cls, hidden: int, rng: np.random.Generator) -> "_Net":
        """Weights and biases uniform in +-1/sqrt(fan-in)."""
        first = rng.uniform(-1.0, 1.0, 4 * hidden) / np.sqrt(3)
        second = rng.uniform(-1.0, 1.0, (hidden + 1) * 2) / np.sqrt(hidden)
        return cls(np.concatenate([first, second]), hidden)

    @property
    def first(self) -> NDArray[np.float64]:
        return self.flat[: 4 * self.hidden].reshape(4, self.hidden)

    @property
    def second(self) -> NDArray[np.float64]:
        return self.flat[4 * self.hidden :].reshape(self.hidden + 1, 2)

    def log_odds(self, top: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds log P(member) - log P(non-member), [N], for features [N, 3]."""
        hidden_NH = np.maximum(top @ self.first[:3] + self.first[3], 0.0)
        out_N2 = hidden_NH @ self.second[:-1] + self.second[-1]
        return np.asarray(out_N2[:, 1] - out_N2[:, 0])

    def fit(
        self,
        top: NDArray[np.float64],
        is_member: NDArray[np.bool_],
        *,
        learning_rate: float,
        batch_size: int,
        epochs: int,
        weight_decay: float,
        rng: np.random.Generator,
    ) -> None:
        """Minimise the mean cross entropy of each batch plus `weight_decay`/2 |weights|^2.

        Args:
            top: [N, 3] features.
            is_member: [N].
            learning_rate: Adam's step; its decay rates are 0.9 and 0.999.
            batch_size: rows a step; the last batch of an epoch may be smaller.
            epochs: passes, each in a new order.
            weight_decay: L2, added to the gradient before Adam.
            rng: draws the orders.
        """
        num_rows, hidden = len(top), self.hidden
        x_N4 = np.column_stack([top, np.ones(num_rows)])
        target_N = is_member.astype(np.float64)
        weights, first, second = self.flat, self.first, self.second
        gradient = _Net(np.empty_like(weights), hidden)
        gradient_first, gradient_second = gradient.first, gradient.second
        hidden_BH1 = np.ones((batch_size, hidden + 1))
        error_B2 = np.empty((batch_size, 2))
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        mean_bias, square_bias = 1.0, 1.0
        for _ in range(epochs):
            order = rng.permutation(num_rows)
            x_epoch, target_epoch = x_N4[order], target_N[order]
            for start in range(0, num_rows, batch_size):
                x_B4, target_B = (a[start : start + batch_size] for a in (x_epoch, target_epoch))
                size = len(x_B4)
                h, error = hidden_BH1[:size], error_B2[:size]
                np.maximum(x_B4 @ first, 0.0, out=h[:, :-1])
                out_B2 = h @ second
                # With two classes the softmax is the sigmoid of the difference.
                error[:, 1] = (expit(out_B2[:, 1] - out_B2[:, 0]) - target_B) / size
                np.negative(error[:, 1], out=error[:, 0])
                np.matmul(h.T, error, out=gradient_second)
                back_BH = (error @ second[:-1].T) * (h[:, :-1] > 0)
                np.matmul(x_B4.T, back_BH, out=gradient_first)
                step = gradient.flat + weight_decay * weights
                mean *= 0.9
                mean += 0.1 * step
                square *= 0.999
                square += 0.001 * step * step
                mean_bias *= 0.9
                square_bias *= 0.999
                root = np.sqrt(square / (1.0 - square_bias)) + 1e-8
                weights -= learning_rate / (1.0 - mean_bias) * mean / root
