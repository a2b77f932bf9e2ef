"""AEPPT's attackers: four membership inference models, and what they do about rounding."""

from collections.abc import Mapping
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
    balanced_loss,
    both_sides,
    judged,
    mim0,
    relu_layers,
    trained,
)
from attacks.base import Attack, Classifier, Knowledge, Known

__all__ = ["Mim"]

Model = Literal["mim0", "mim1", "mim2", "mim3a", "mim3b"]
# Streams drawn from the attack's seed.
_NET, _SHIFT = 0, 1


class Mim(Attack):
    """Learn from known members and non-members as one of the attackers AEPPT was judged by.

    `mim0` reads the confidence and the one-hot true label in branches of their own, which a third
    net joins, and descends the cross entropy. `mim1` is one fully connected net on both. `mim2` is
    mim0 with the squared error of the probability. `mim3a` and `mim3b` are mim0 with non-members
    of another distribution: only of a random half of the classes (of the other half they call
    everybody a member), or with 5 % of their features noised (bits flipped; other features
    exchanged with another record's).

    The decision is the net's own, at probability 0.5: `attack_accuracy_unsigned` is the number
    that the paper prints, `attack_accuracy` that of its attacker who inverts the decision
    ("flip"), which he does where the calibration records tell that it is worse than guessing.
    Like every attack it is fitted on what the service answers; the paper's is fitted on clean
    answers (`fit_on: clean`) and judged on perturbed ones.

    `nsh` is mim0 with the true label's entry fed to the joint net, confidences as they are, and a
    calibrated threshold.

    Source: AEPPT section 5.2 and tables 6 to 8; the structure of mim0 is that of Nasr et al. 2018.
        Optimiser, batches, the scale of the inputs, the choice of the epoch and what "different
        distribution" means for the third model are not given; here the confidences are
        standardised, and the epoch is chosen on `known.cal`, whose non-members mim3a and mim3b
        change as they do those they learn from.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {},
        "cpu": {"width": 0.5},
    }

    model: Model = Field("mim0", description="which attacker")
    decimals: int | None = Field(
        None, ge=0, le=15, description="round every answer, to fit on and to judge, to so many"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step")
    epochs: int = Field(100, ge=1, description="most passes over the known records")
    batch_size: int = Field(512, ge=2, description="most records a step")
    patience: int = Field(40, ge=1, description="epochs without a better one before stopping")
    width: float = Field(1.0, gt=0, description="factor on the width of every hidden layer")
    feature_noise: float = Field(
        0.05, ge=0, le=1, description="share of a non-member's features that mim3b noises"
    )

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
            ValueError: if `known.fit` or `known.cal` lacks members or non-members, or has no
                non-member in mim3a's half of the classes.
            FloatingPointError: if the training leaves the finite numbers.
        """
        both_sides(known, "mim")
        loss = _squared_error if self.model == "mim2" else balanced_loss
        fit, cal = (
            Seen(self._features(known.query(records.x)), records.y, records.is_member)
            for records in self._shifted(known, np.random.default_rng([seed, _SHIFT]))
        )
        recipe = Recipe(
            "mim",
            self.learning_rate,
            self.epochs,
            self.batch_size,
            self.patience,
            known.device,
            loss,
        )
        net = trained(
            lambda: Standardised(self._net(known.num_classes), fit.feature),
            fit,
            cal,
            recipe,
            np.random.default_rng([seed, _NET]),
        )
        return judged(net, self._features(query(x)), y, known.device)

    def _net(self, num_classes: int) -> nn.Module:
        if self.model == "mim1":
            return _OneBranch(num_classes, self.width)
        return mim0(num_classes, self.width)

    def _features(self, confidence: NDArray[Any]) -> NDArray[np.float32]:
        """[N, C] what the net reads."""
        if self.decimals is not None:
            confidence = np.round(np.asarray(confidence, dtype=np.float64), self.decimals)
        return np.array(confidence, dtype=np.float32)

    def _shifted(self, known: Knowledge, rng: np.random.Generator) -> tuple[Known, Known]:
        """The records to fit and to choose the epoch on, their non-members as the model has them.

        Raises:
            ValueError: if mim3a's half of the classes leaves no non-member in one of the two.
        """
        fit, cal = known.fit, known.cal
        if self.model == "mim3a":
            classes = rng.permutation(np.unique(fit.y[~fit.is_member]))
            half = classes[: (len(classes) + 1) // 2]
            fit, cal = _of_classes(fit, half, "fit"), _of_classes(cal, half, "cal")
        if self.model == "mim3b":
            fit, cal = (_noised(part, self.feature_noise, rng) for part in (fit, cal))
        return fit, cal


class _OneBranch(nn.Module):
    """Log-odds [N] of "member": [C confidences, one-hot label]-1024-512-256-1, times `width`.

    Source: AEPPT section 5.2 (MIM1). How it reads the label is not given.
    """

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        hidden = [max(1, round(width * size)) for size in (1024, 512, 256)]
        self.layers = nn.Sequential(
            *relu_layers(2 * num_classes, *hidden), nn.Linear(hidden[-1], 1)
        )

    def forward(self, feature_NC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        onehot_NC = nn.functional.one_hot(y_N, self.num_classes).to(feature_NC.dtype)
        log_odds_N: torch.Tensor = self.layers(torch.cat([feature_NC, onehot_NC], dim=1))[:, 0]
        return log_odds_N


def _squared_error(log_odds: torch.Tensor, num_members: int) -> torch.Tensor:
    """Mean squared error of the probability, half the weight on the leading members."""
    # 1 - sigmoid(v) is sigmoid(-v), which does not round to 0 where v is large.
    member = torch.sigmoid(-log_odds[:num_members]).square().mean()
    nonmember = torch.sigmoid(log_odds[num_members:]).square().mean()
    return 0.5 * (member + nonmember)


def _of_classes(part: Known, classes: NDArray[np.int64], name: str) -> Known:
    """The members, and the non-members of these classes."""
    kept = part.is_member | np.isin(part.y, classes)
    if part.is_member[kept].all():
        raise ValueError(
            f"known.{name} holds no non-member of the {len(classes)} classes mim3a learns "
            "non-members from; enlarge the split, or use mim3b"
        )
    return Known(part.x[kept], part.y[kept], part.is_member[kept])


def _noised(part: Known, share: float, rng: np.random.Generator) -> Known:
    """The same with every feature of a non-member noised with probability `share`.

    A bit is flipped. Other features are taken from another non-member, so that no value is one
    that records do not have.
    """
    x = part.x.copy()
    others = np.flatnonzero(~part.is_member)
    chosen = rng.random(x[others].shape) < share
    binary = bool(np.isin(x, (0, 1)).all())
    given = 1 - x[others] if binary else x[rng.permutation(others)]
    x[others] = np.where(chosen, given, x[others])
    return Known(x, part.y, part.is_member)
