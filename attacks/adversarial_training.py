"""Adversarial training: learn from answers that were perturbed as AEPPT perturbs them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from attacks._membership_net import (
    Recipe,
    Seen,
    Standardised,
    ThreeBranch,
    both_sides,
    judged,
    mim0,
    trained,
)
from attacks.base import Attack, Classifier, Knowledge, Known

__all__ = ["AdversarialTraining"]

# Streams drawn from the attack's seed.
_SUBSTITUTE, _STEPS, _NET = 0, 1, 2
_ROWS_AT_ONCE = 512  # their activations stay in a core's cache


class AdversarialTraining(Attack):
    """Perturb the known records' answers against a substitute of one's own, and learn from those.

    The attacker trains the defense's substitute on the records it knows, moves its answers about
    them away from what that substitute decides, and fits AEPPT's MIM0 on what comes out. It needs
    no answer of the defended service about a known record, if `fit_on` is clean as in the paper;
    fitted on defended answers it perturbs them a second time.

    It decides at probability 0.5, as `mim` does: `attack_accuracy_unsigned` is the number that
    the paper prints.

    Source: AEPPT section 5.8 and table 8; the perturbation is its algorithm 1.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-adaptive"
    THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"post": "none"},
        "sound": {},
        "cpu": {"width": 0.5, "iterations": 50, "epochs": 50},
    }

    step: float = Field(2e-5, ge=0, description="epsilon, the longest step of a score")
    iterations: int = Field(100, ge=1, description="T, steps an answer")
    post: Literal["none", "renorm"] = Field(
        "renorm", description="none: clipped only; renorm: divided by the sum"
    )
    clean_share: float = Field(
        0.0, ge=0, le=1, description="share of the known answers learnt from as they are"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step")
    epochs: int = Field(100, ge=1, description="most passes over the known records")
    batch_size: int = Field(512, ge=2, description="most records a step")
    patience: int = Field(40, ge=1, description="epochs without a better one before stopping")
    width: float = Field(1.0, gt=0, description="factor on the width of every hidden layer")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member"; above 0 the net says so.

        Raises:
            ValueError: if `known.fit` or `known.cal` lacks members or non-members.
            FloatingPointError: if a training leaves the finite numbers.
        """
        both_sides(known, "adversarial_training")
        recipe = Recipe(
            "adversarial_training",
            self.learning_rate,
            self.epochs,
            self.batch_size,
            self.patience,
            known.device,
        )

        def seen(records: Known) -> Seen:
            answers_NC = np.array(known.query(records.x), dtype=np.float32)
            return Seen(answers_NC, records.y, records.is_member)

        fit, cal = seen(known.fit), seen(known.cal)
        substitute = trained(
            lambda: Standardised(_substitute(known.num_classes), fit.feature),
            fit,
            cal,
            recipe,
            np.random.default_rng([seed, _SUBSTITUTE]),
        )
        rng = np.random.default_rng([seed, _STEPS])
        moved, moved_cal = (
            self._perturbed(part, substitute, known.device, rng) for part in (fit, cal)
        )
        net = trained(
            lambda: Standardised(mim0(known.num_classes, self.width), moved.feature),
            moved,
            moved_cal,
            recipe,
            np.random.default_rng([seed, _NET]),
        )
        return judged(net, np.array(query(x), dtype=np.float32), y, known.device)

    def _perturbed(
        self, part: Seen, substitute: nn.Module, device: str, rng: np.random.Generator
    ) -> Seen:
        """The same records with answers as the defense would release them, but for a share."""
        uniform_NT = rng.random((len(part.y), self.iterations))
        moved_NC = perturbed(part.feature, uniform_NT, substitute, self.step, device)
        if self.post == "renorm":
            # A row that is clipped to nothing stays nothing.
            moved_NC /= np.maximum(moved_NC.sum(axis=1, keepdims=True), 1e-12)
        feature_NC: NDArray[np.float32] = moved_NC.astype(np.float32)
        clean_N = rng.permutation(len(part.y)) < round(self.clean_share * len(part.y))
        feature_NC[clean_N] = part.feature[clean_N]
        return replace(part, feature=feature_NC)


def _substitute(num_classes: int) -> ThreeBranch:
    """The defense's own net: prediction C-256, label C-256, joint 512-64-1.

    Source: AEPPT section 5.2.
    """
    return ThreeBranch(num_classes, (256,), (256,), (64,))


def perturbed(
    c_NC: NDArray[Any],
    uniform_NT: NDArray[np.float64],
    substitute: nn.Module,
    step: float,
    device: str,
) -> NDArray[np.float64]:
    """Confidences [N, C] moved away from what `substitute` decides about them, clipped to [0, 1].

    Args:
        c_NC: [N, C], entries in [0, 1] or moved there by the first step. Not modified.
        uniform_NT: the random factor of each step, one for all classes of a record.
        substitute: gives log-odds; in double precision. Its labels are the predicted ones.
        step: epsilon.
        device: where the net is.

    Source: AEPPT algorithm 1.
    """
    moved = [np.zeros((0, c_NC.shape[1]))]
    for start in range(0, len(c_NC), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        a_BC = torch.tensor(c_NC[rows], dtype=torch.float64, device=device)
        label_B = a_BC.argmax(dim=1)
        length_BT = torch.tensor(step * uniform_NT[rows], device=device)
        with torch.no_grad():
            # Ascending the cross entropy of the decision, which was made once, is descending
            # the log-odds where it is "member"; unlike the loss's, this slope never vanishes.
            away_B1 = torch.where(substitute(a_BC, label_B) >= 0, -1.0, 1.0)[:, None]
        for t in range(uniform_NT.shape[1]):
            a_BC.requires_grad_()
            (slope_BC,) = torch.autograd.grad(substitute(a_BC, label_B).sum(), a_BC)
            with torch.no_grad():
                moving_BC = away_B1 * length_BT[:, t : t + 1] * slope_BC.sign()
                a_BC = (a_BC + moving_BC).clamp(0, 1)
        moved.append(a_BC.cpu().numpy())
    return np.concatenate(moved)
