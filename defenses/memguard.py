"""MemGuard: noise that makes a membership classifier guess, and never changes the label."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from defenses._confidence import checked_distribution
from defenses._memguard_search import log_odds, noised
from defenses._mlp import (
    balanced_accuracy,
    initialised,
    relu_layers,
    train_on_membership,
    weights_of,
)
from defenses._prepared import once_per
from defenses._relu_net import ReluNet
from defenses.base import Defense, Noise, Setting

__all__ = ["MemGuard"]

_PREFIX = "classifier."
_HIDDEN = (256, 128, 64)


class MemGuard(Defense):
    """Move each confidence to where the defender's own membership classifier cannot decide.

    The classifier reads the sorted scores. Phase I searches, for every answer, the smallest noise
    that crosses its boundary and keeps the label. Phase II releases the noisy answer with the
    probability that spends an expected L1 distortion of at most `epsilon`, and the true answer
    otherwise; under `per_input` the coin hangs on the input, so asking again tells nothing new.

    Logits are log confidences up to a constant; scores below 1e-30 count as 1e-30 there.

    Source: Jia et al., "MemGuard: Defending against Black-Box Membership Inference Attacks via
        Adversarial Examples", CCS 2019, section 4: algorithm 1 (phase I) and the probability of
        phase II; the sizes and the classifier's training are those of its public code. That code
        releases the noisy answer on both sides of the coin; the paper, and this, does not.
    """

    VERSION: ClassVar[int] = 1
    NOISE: ClassVar[Mapping[str, str]] = {
        "paper": "per_input",
        "sound": "per_input",
        "cpu": "per_input",
    }

    epsilon: float = Field(
        1.0, ge=0, description="most expected L1 distortion of an answer; 0 changes nothing"
    )
    epochs: int = Field(400, ge=1, description="of the defense classifier")
    learning_rate: float = Field(1e-3, gt=0, description="of the classifier's plain SGD")
    batch_size: int = Field(64, ge=1, description="of the classifier")
    label_weight: float = Field(10.0, ge=0, description="c2, of the loss that keeps the label")
    distortion_weight: float = Field(
        0.1, gt=0, description="the first c3, of the L1 distortion; times 10 after each success"
    )
    largest_distortion_weight: float = Field(1e5, gt=0, description="the last c3 tried")
    step: float = Field(0.1, gt=0, description="beta, the length of a step in the logits")
    iterations: int = Field(300, ge=1, description="most steps of one search")

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """Field values of a preset: "cpu" trains the classifier in a quarter of the epochs.

        At ten times the rate it tells members from R_val no worse than with the published recipe
        (location30 0.84 and 0.78, retail100 0.76 and 0.72).
        """
        return {"epochs": 100, "learning_rate": 1e-2} if name == "cpu" else {}

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Train the defense classifier on members and the fitting part of the reference.

        The epoch is chosen on members and the validation part: all of D2 to fit on, as published,
        would leave the defender nothing that is like an outsider's record.

        Returns:
            `classifier.*`: its parameters, float32.

        Raises:
            ValueError: if there are no members or too few reference records.
        """
        members, others = setting.members, setting.reference.fit
        val = setting.reference.val
        if not (len(members) and len(others) and len(val)):
            raise ValueError(
                "memguard's classifier needs members and reference records to fit and validate, "
                f"got {len(members)}, {len(others)} and {len(val)}; enlarge the split"
            )
        draws = np.random.default_rng([seed, *b"memguard"]).integers(2**63, size=2)
        net = initialised(lambda: _network(setting.num_classes), int(draws[0])).to(setting.device)
        member_NC, other_NC, val_NC = (_sorted(setting, r.x) for r in (members, others, val))
        train_on_membership(
            net,
            [member_NC],
            [other_NC],
            ([member_NC], [val_NC]),
            optimizer=torch.optim.SGD(net.parameters(), lr=self.learning_rate, fused=True),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=int(draws[1]),
        )
        return {_PREFIX + name: value for name, value in weights_of(net).items()}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Released confidences [N, C] with the labels of the true ones, rows sum to 1.

        Raises:
            ValueError: if a row is not a distribution over the classes fitted for.
        """
        classifier = _classifier(state)
        c_NC = checked_distribution(confidence, classifier.num_inputs)
        released_NC = c_NC.copy()
        # Drawn before anything is decided: the next draw of this answer is the same either way.
        coin_N = noise.uniform((len(c_NC), 1))[:, 0]
        if self.epsilon == 0:
            return released_NC
        p_NC, before_N, after_N = noised(
            c_NC,
            classifier,
            label_weight=self.label_weight,
            distortion_weight=self.distortion_weight,
            largest_distortion_weight=self.largest_distortion_weight,
            step=self.step,
            iterations=self.iterations,
        )
        distortion_N = np.abs(p_NC - c_NC).sum(axis=1)
        take_N = coin_N < probability(before_N, after_N, distortion_N, self.epsilon)
        released_NC[take_N] = p_NC[take_N]
        return released_NC

    def diagnose(
        self, setting: Setting, state: Mapping[str, NDArray[Any]], *, seed: int
    ) -> dict[str, float]:
        """How well the classifier tells members from R_val, as `classifier_accuracy` (balanced)."""
        classifier = _classifier(state)
        odds = [
            log_odds(classifier, checked_distribution(setting.answer(x), setting.num_classes))
            for x in (setting.members.x, setting.reference.val.x)
        ]
        return {"classifier_accuracy": balanced_accuracy(*odds)}


def probability(
    before_N: NDArray[np.float64],
    after_N: NDArray[np.float64],
    distortion_N: NDArray[np.float64],
    epsilon: float,
) -> NDArray[np.float64]:
    """With which probability to release the noisy answer.

    Args:
        before_N: the classifier's log-odds for the true answers.
        after_N: for the noisy ones.
        distortion_N: their L1 distances.
        epsilon: the budget.

    It minimises the expected |g - 1/2| under the budget.

    Source: MemGuard section 4, phase II. |g - 1/2| grows with the size of the log-odds, which do
        not saturate.
    """
    enough_N = distortion_N <= epsilon
    spend_N = np.divide(epsilon, distortion_N, out=np.ones_like(distortion_N), where=~enough_N)
    return np.where(np.abs(after_N) >= np.abs(before_N), 0.0, spend_N)


def _network(num_classes: int) -> nn.Sequential:
    """The classifier before training, with Keras's initial weights as in the public code.

    They are larger in the deeper layers than PyTorch's, under which plain SGD of this rate hardly
    starts to learn.
    """
    net = nn.Sequential(*relu_layers(num_classes, *_HIDDEN), nn.Linear(_HIDDEN[-1], 1))
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def _sorted(setting: Setting, x: NDArray[Any]) -> Tensor:
    c_NC = np.sort(checked_distribution(setting.answer(x), setting.num_classes), axis=1)
    return torch.tensor(c_NC, dtype=torch.float32, device=setting.device)


def _classifier(state: Mapping[str, NDArray[Any]]) -> ReluNet:
    arrays = {k.removeprefix(_PREFIX): np.asarray(v) for k, v in state.items()}
    layers = sorted({int(name.split(".")[0]) for name in arrays})

    def make() -> ReluNet:
        return ReluNet.of([(arrays[f"{i}.weight"], arrays[f"{i}.bias"]) for i in layers])

    return once_per(arrays["0.weight"], "memguard", make)
