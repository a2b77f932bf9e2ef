"""HAMP: train to be unsure, and release the scores of another input."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from defenses._confidence import checked_distribution
from defenses._recipe import WithRecipe
from defenses.base import Noise, Setting

__all__ = ["Hamp", "soft_label"]

_PUBLISHED: dict[str, tuple[float, float, float]] = {
    "purchase100": (0.8, 0.01, 0.5),
    "retail100": (0.8, 0.01, 0.5),
    "texas100": (0.6, 0.01, 0.5),
    "hospital100": (0.6, 0.01, 0.5),
    "cifar100": (0.5, 0.005, 1.0),
    "cifar10": (0.95, 0.001, 0.5),
    "location30": (0.5, 0.001, 0.5),
}


class Hamp(WithRecipe):
    """Soft labels of high entropy and a reward for entropy; then only the order is released.

    Training: the label holds so much that its entropy is at least `entropy_share` of log C, the
    other classes share the rest; the loss is KL(soft label || answer) less `entropy_weight` times
    the answer's entropy.

    Answers: the classes keep their order, their scores are those of a random input, sorted. The
    random input is one of `num_random` whose answers were taken when the defense was fitted,
    drawn anew for each query; under noise policy `deterministic` it is the one in the middle.

    Source: Chen and Pattabiraman, "Overconfidence is a Dangerous Thing: Mitigating Membership
        Inference Attacks by Enforcing Less Confident Prediction", NDSS 2024, section 4, and its
        public code. The code looks scores up by value and confuses tied classes; here the first
        index is the larger one.
    """

    VERSION: ClassVar[int] = 1
    NOISE: ClassVar[Mapping[str, str]] = {
        "paper": "fresh",
        "sound": "per_input",
        "cpu": "per_input",
    }

    entropy_share: float = Field(
        0.5, gt=0, le=0.99, description="least entropy of a soft label in units of log C, gamma"
    )
    entropy_weight: float = Field(0.001, ge=0, description="of the answers' entropy, alpha")
    reduction: Literal["batch", "element"] = Field(
        "batch",
        description="the KL is averaged over rows (batch), or over rows and classes, as in the "
        "public code, where the entropy's weight is so C times as much",
    )
    num_random: int = Field(1000, ge=1, le=100_000, description="random inputs to draw from")

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """Published values; other datasets get those of location30, the mildest.

        Public code has momentum 0.99, which it forgets after each epoch. With momentum 0.9 ten
        times the rate makes the same way. Only `paper` has that recipe: rate and element mean
        belong together, and with the batch mean the target's own recipe is right.
        """
        share, weight, rate = _PUBLISHED.get(dataset, _PUBLISHED["location30"])
        fields: dict[str, Any] = {"entropy_share": share, "entropy_weight": weight}
        if name != "paper":
            return fields
        return {
            **fields,
            "reduction": "element",
            "optimizer": "sgd",
            "learning_rate": 10 * rate,
            "milestones": (60, 90, 150),
            "weight_decay": 1e-5,
            "batch_size": 32,
            "epochs": 200,
        }

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        label, other = soft_label(self.entropy_share, setting.num_classes)
        soft_NC = np.full((len(setting.members), setting.num_classes), other, dtype=np.float32)
        soft_NC[np.arange(len(soft_NC)), setting.members.y] = label
        return setting.train(
            setting.members, seed=seed, targets=soft_NC, loss=self.loss, **self.recipe()
        )

    def loss(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """The scalar to descend, for logits [B, C] and soft labels [B, C]."""
        log_p_BC = F.log_softmax(logits, dim=1)
        entropy_B = -(log_p_BC.exp() * log_p_BC).sum(dim=1)
        divergence = F.kl_div(log_p_BC, targets, reduction="batchmean")
        if self.reduction == "element":
            divergence = divergence / logits.shape[1]
        return divergence - self.entropy_weight * entropy_B.mean()

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Ask the model about random inputs.

        Returns:
            `scores` [num_random, C], each row falling, rows in order of their largest score.
        """
        rng = np.random.default_rng([seed, *b"hamp.random"])
        x = _random_inputs(setting.members.x, self.num_random, rng)
        c_MC = checked_distribution(setting.answer(x), setting.num_classes)
        falling_MC = np.ascontiguousarray(np.sort(c_MC, axis=1)[:, ::-1])
        return {"scores": falling_MC[np.argsort(falling_MC[:, 0], kind="stable")]}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """The scores of random inputs in the order of the confidences [N, C].

        Raises:
            ValueError: if a row is not a distribution over the classes fitted for.
        """
        scores_MC = state["scores"]
        c_NC = checked_distribution(confidence, scores_MC.shape[1])
        row_N = (noise.uniform((len(c_NC), 1))[:, 0] * len(scores_MC)).astype(np.int64)
        order_NC = np.argsort(-c_NC, axis=1, kind="stable")  # so the first index wins ties
        released_NC = np.empty_like(c_NC)
        np.put_along_axis(
            released_NC, order_NC, scores_MC[row_N.clip(max=len(scores_MC) - 1)], axis=1
        )
        # Where the random input's own two largest tie, the label must stay the label.
        label_N = order_NC[:, 0]
        tied = np.flatnonzero(released_NC.argmax(axis=1) != label_N)
        released_NC[tied, label_N[tied]] = np.nextafter(released_NC[tied].max(axis=1), 2)
        return released_NC


def soft_label(entropy_share: float, num_classes: int) -> tuple[float, float]:
    """What the true class and every other one get; all C together sum to 1.

    The true class's part falls from 1 in steps of 0.01 until the entropy is at least
    `entropy_share` times log C.
    """
    least = entropy_share * math.log(num_classes)
    for percent in range(99, 0, -1):
        label = percent / 100
        other = (1 - label) / (num_classes - 1)
        if -label * math.log(label) - (1 - label) * math.log(other) >= least:
            return label, other
    raise ValueError(
        f"no soft label over {num_classes} classes has an entropy of {entropy_share:g} log C; "
        "lower entropy_share"
    )


def _random_inputs(
    x: NDArray[Any], num_inputs: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Uniform inputs of the kind the records x [N, ...] are.

    Bits where all records are bits, else numbers within [0, 1] where all records are. For others
    the paper says nothing: each feature is drawn between its least and its largest value.
    """
    shape = (num_inputs, *x.shape[1:])
    low, high = x.min(axis=0), x.max(axis=0)
    if low.min() >= 0 and high.max() <= 1:
        if np.isin(x, (0, 1)).all():
            return rng.integers(2, size=shape).astype(np.float32)
        return rng.random(shape, dtype=np.float32)
    drawn: NDArray[np.float32] = (low + (high - low) * rng.random(shape)).astype(np.float32)
    return drawn
