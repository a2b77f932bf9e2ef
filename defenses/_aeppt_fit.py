"""AEPPT's classifiers, and the step size that defeats one of the defender's own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defenses._mlp import TwoBranch, balanced_accuracy, initialised, train_on_membership

__all__ = ["SUBSTITUTE", "Answers", "Recipe", "chosen_step", "smallest_step", "trained"]

_Widths = tuple[tuple[int, ...], ...]  # of the prediction, label and joint layers
SUBSTITUTE: _Widths = ((256,), (256,), (64,))
_MIM0: _Widths = ((1024, 512, 64), (512, 64), (256, 64))
_MIN_BATCH, _STEPS_PER_EPOCH = 16, 20
_MOST_JUDGED = 1000
_TOLERANCE = 0.01
_BISECTIONS = 5
_NO_DEVIATION = 1e-9  # of answers that are all the same, but for rounding


@dataclass(frozen=True)
class Recipe:
    """How a membership classifier is trained: with Adam, on `device`."""

    epochs: int
    learning_rate: float
    batch_size: int
    device: str


@dataclass(frozen=True, eq=False)
class Answers:
    """Confidences [N, C], and the labels [N] that a classifier is given with them."""

    c_NC: NDArray[np.float64]
    label_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label_N)

    def by_prediction(self) -> "Answers":
        """The same with the predicted labels."""
        return Answers(self.c_NC, self.c_NC.argmax(axis=1))

    def of(self, rows: NDArray[np.int64]) -> "Answers":
        """Some of them."""
        return Answers(self.c_NC[rows], self.label_N[rows])

    def tensors(self, device: str) -> list[Tensor]:
        """What a `TwoBranch` reads."""
        c_NC = torch.tensor(self.c_NC, dtype=torch.float32, device=device)
        return [c_NC, torch.tensor(self.label_N, device=device)]


def trained(
    widths: _Widths,
    fit_on: tuple[Answers, Answers],
    judged_on: tuple[Answers, Answers],
    recipe: Recipe,
    *,
    seed: int,
) -> TwoBranch:
    """A membership classifier; its epoch is the best on `judged_on`. Members come first.

    It learns from standardised confidences: beside a one-hot label, scores that differ in the
    third decimal, as those of a target with a Tanh after its last layer do, are next to nothing
    for a fresh net. What is given back reads confidences as they are.

    Source: AEPPT sections 4.3 and 5.2. Optimiser, batches and the scale of the inputs are not
        given there.
    """
    first, second = (int(s) for s in np.random.default_rng(seed).integers(2**63, size=2))
    num_classes = fit_on[0].c_NC.shape[1]
    net = initialised(lambda: TwoBranch(num_classes, *widths), first).to(recipe.device)
    scores = np.concatenate([answers.c_NC for answers in fit_on])
    mean, deviation = float(scores.mean()), float(scores.std())
    deviation = deviation if deviation > _NO_DEVIATION else 1.0

    def standardised(answers: Answers) -> list[Tensor]:
        moved = Answers((answers.c_NC - mean) / deviation, answers.label_N)
        return moved.tensors(recipe.device)

    members, others = (standardised(answers) for answers in fit_on)
    held_out, outsiders = (standardised(answers) for answers in judged_on)
    # A few steps an epoch on small sets would leave the net where it began.
    most = max(_MIN_BATCH, (len(fit_on[0]) + len(fit_on[1])) // _STEPS_PER_EPOCH)
    train_on_membership(
        net,
        members,
        others,
        (held_out, outsiders),
        optimizer=torch.optim.Adam(net.parameters(), lr=recipe.learning_rate, fused=True),
        epochs=recipe.epochs,
        batch_size=min(recipe.batch_size, most),
        seed=second,
    )
    weights = net.state_dict()  # shares the parameters' memory
    weights["prediction.0.weight"] /= deviation
    weights["prediction.0.bias"] -= mean * weights["prediction.0.weight"].sum(dim=1)
    return net


def chosen_step(
    release: Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.float64]],
    member: Answers,
    other: Answers,
    val: Answers,
    recipe: Recipe,
    *,
    width: float,
    iterations: int,
    seed: int,
) -> tuple[float, tuple[float, float]]:
    """The smallest step that defeats a classifier of the defender's own.

    The classifier is the published attacker's (MIM0), fitted on the clean answers to half of the
    members and to `other`, and judged on the other half and `val`. One fitted on released answers
    would be fairer, but is as good as without the defense at any step: no step would be found.

    Args:
        release: (confidences [N, C], random factors [N, T], step) -> what is released.
        member: answers to D1, with true labels.
        other: answers to the fitting part of D2.
        val: answers to its validation part.
        recipe: of the classifier.
        width: factor on its hidden widths.
        iterations: T.
        seed: of the halves, the classifier and the random factors.

    Returns:
        The step, and the classifier's balanced accuracy on clean and on released answers.
    """
    rng = np.random.default_rng(seed)
    half, held_out = np.array_split(rng.permutation(len(member)), 2)
    judged_on = member.of(held_out), val
    fit_on = member.of(half), other
    widths = tuple(tuple(max(1, round(width * size)) for size in branch) for branch in _MIM0)
    judge = trained(widths, fit_on, judged_on, recipe, seed=int(rng.integers(2**63)))
    sides = [side.of(rng.permutation(len(side))[:_MOST_JUDGED]) for side in judged_on]
    # The same numbers for every step, or the accuracy would jump about while it is searched.
    uniform = [rng.random((len(side), iterations)) for side in sides]

    @torch.no_grad()
    def accuracy(step: float) -> float:
        odds = []
        for side, uniform_NT in zip(sides, uniform, strict=True):
            seen = Answers(release(side.c_NC, uniform_NT, step), side.label_N)
            odds.append(judge(*seen.tensors(recipe.device)).cpu().numpy())
        return balanced_accuracy(*odds)

    # From an expected L1 distortion of 0.01, were nothing clipped, to where every score can cross
    # [0, 1] and more would mean nothing.
    largest = 2 / iterations
    first = 0.01 * largest / member.c_NC.shape[1]
    step = smallest_step(accuracy, first=first, largest=largest)
    return step, (accuracy(0.0), accuracy(step))


def smallest_step(accuracy: Callable[[float], float], *, first: float, largest: float) -> float:
    """The smallest step whose accuracy is within 0.01 of 0.5, to about 4 %.

    Steps grow fourfold until the accuracy has come down to 0.51, then the last fourfold is halved
    in its logarithm. Where it never comes down, or skips the range, it is the step tried whose
    accuracy is nearest to 0.5.

    Args:
        accuracy: of the attack for a step.
        first: the smallest step to try after 0.
        largest: no step above this is tried.
    """
    tried = {0.0: accuracy(0.0)}

    def defeated(step: float) -> bool:
        tried[step] = accuracy(step)
        return tried[step] <= 0.5 + _TOLERANCE

    if tried[0.0] > 0.5 + _TOLERANCE:
        high = first
        while not defeated(high) and high < largest:
            high = min(4 * high, largest)
        low = high / 4
        for _ in range(_BISECTIONS if tried[high] <= 0.5 + _TOLERANCE else 0):
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if defeated(middle) else (middle, high)
    off = {step: abs(found - 0.5) for step, found in tried.items()}
    near = [step for step, distance in off.items() if distance <= _TOLERANCE]
    return min(near) if near else min(off, key=lambda step: (off[step], step))
