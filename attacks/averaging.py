"""Averaging attack: ask until the noise of a randomised defense is gone."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from attacks._membership_net import Recipe, Seen, both_sides, judged, relu_layers, trained
from attacks._near_copies import Over, answers_about
from attacks.base import Attack, Classifier, Knowledge
from attacks.metric import Statistic, class_thresholds, statistic_of

__all__ = ["Averaging", "summary"]

# Streams drawn from the attack's seed.
_NET = 0
_NUM_AGREEMENTS = 3
_NO_DEVIATION = 1e-9  # of answers that are all the same, but for rounding


class Averaging(Attack):
    """Ask R times about each record, and judge it by the mean answer and how answers differ.

    Under noise policy `fresh` the record is asked again (`over: repeats`), and the mean of R
    answers comes as near to the noise-free one as 1/sqrt(R). Noise that is keyed by the input is
    the same every time; then near copies of the record are asked about instead (`neighbours`),
    whose true answers are all but the same and whose noise is not.

    `head: net` fits a net on what `summary` makes of the answers about known records: it reads
    that and the one-hot true label in branches of their own, which a joint net joins, with the
    true label's mean and deviation and the agreement beside. `head: metric` fits nothing but a
    threshold a class for one statistic of the mean answer.

    Source: methods.md section 6.12 a and b, ours. The net has the widths of AEPPT's MIM0 and is
        trained as `nsh` is; the metric is Song & Mittal's, USENIX Security 2021, section 3.2.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    LEARNS: ClassVar[bool] = True
    AGAINST: ClassVar[tuple[str, ...]] = ("purifier", "aeppt", "memguard", "random_noise", "hamp")
    # Noise is fresh by default under `paper`, keyed by input under the others.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"repeats": 64},
        "sound": {"repeats": 64, "over": "neighbours"},
        "cpu": {"repeats": 16, "over": "neighbours", "width": 0.5},
    }

    repeats: int = Field(16, ge=1, description="R, queries a record, the first about itself")
    over: Over = Field("repeats", description="ask about the record again, or about near copies")
    head: Literal["net", "metric"] = Field("net", description="what judges the answers")
    statistic: Statistic = Field("modified_entropy", description="of the mean answer (metric)")
    min_records: int = Field(
        10, ge=2, description="classes with fewer use the global threshold (metric)"
    )
    clip: float = Field(
        1e-12, gt=0, lt=0.5, description="smallest argument of a logarithm (metric)"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step (net)")
    epochs: int = Field(100, ge=1, description="most passes over the known records (net)")
    batch_size: int = Field(512, ge=2, description="most records a step (net)")
    patience: int = Field(40, ge=1, description="epochs without a better one before stopping (net)")
    width: float = Field(1.0, gt=0, description="factor on the width of every hidden layer (net)")

    def harder(self) -> tuple[Attack, ...]:
        """Nets can be trained harder, thresholds cannot."""
        return super().harder() if self.head == "net" else ()

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member" (net), or the statistic less its threshold (metric).

        Args:
            query: asked exactly `repeats` times a record.
            known: `fit` and `cal`, asked about in the same way through `known.query`.
            x: [N, ...] records.
            y: int64 [N], true labels.
            seed: of the near copies and the net.

        Returns:
            Finite float64 [N]; equal summaries score the same.

        Raises:
            ValueError: if `known.fit` or `known.cal` lacks members or non-members.
            FloatingPointError: if the training leaves the finite numbers.
        """
        both_sides(known, "averaging")
        found_fit, found_cal = (
            self._found(known.query, known, part.x, part.y, seed) for part in (known.fit, known.cal)
        )
        found = self._found(query, known, x, y, seed)
        if self.head == "metric":
            found_known = np.concatenate([found_fit, found_cal])
            return self._above_threshold(found, y, found_known, known)
        fit, cal = (
            Seen(found.astype(np.float32), part.y, part.is_member)
            for found, part in ((found_fit, known.fit), (found_cal, known.cal))
        )
        recipe = Recipe(
            "averaging",
            self.learning_rate,
            self.epochs,
            self.batch_size,
            self.patience,
            known.device,
        )
        net = trained(
            lambda: _Net(known.num_classes, self.width, fit.feature),
            fit,
            cal,
            recipe,
            np.random.default_rng([seed, _NET]),
        )
        return judged(net, found.astype(np.float32), y, known.device)

    def _found(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        seed: int,
    ) -> NDArray[np.float64]:
        """`summary` [N, 2C + 3] of the answers about the records."""
        found = np.empty((len(x), 2 * known.num_classes + _NUM_AGREEMENTS))
        for rows, answers_RnC in answers_about(
            query,
            x,
            self.repeats,
            self.over,
            kind=known.kind,
            num_classes=known.num_classes,
            seed=seed,
        ):
            found[rows] = summary(answers_RnC, y[rows])
        return found

    def _above_threshold(
        self,
        found: NDArray[np.float64],
        y: NDArray[np.int64],
        found_known: NDArray[np.float64],
        known: Knowledge,
    ) -> NDArray[np.float64]:
        """The statistic of the mean minus its class's threshold, as `metric` chooses it."""

        def value(found: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
            mean_NC = found[:, : known.num_classes]
            return statistic_of(self.statistic, mean_NC, labels, clip=self.clip)

        y_M = np.concatenate([known.fit.y, known.cal.y])
        is_member_M = np.concatenate([known.fit.is_member, known.cal.is_member])
        value_M = value(found_known, y_M)
        threshold_C = class_thresholds(
            value_M, y_M, is_member_M, known.num_classes, self.min_records
        )
        return np.asarray(value(found, y) - threshold_C[y])


def summary(answers: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """What R answers about each record come to.

    Args:
        answers: [R, N, C] as released, the first about the record itself. Not modified.
        y: int64 [N], true labels.

    Returns:
        float64 [N, 2C + 3]: the mean answer; the standard deviation of each class's score; the
        share of answers with their commonest label, the share with label `y`, and whether the
        first has label `y` (1 or 0), in which the gap attack is contained.

    Source: methods.md section 6.12 a.
    """
    num_answers, num_rows, num_classes = answers.shape
    label_RN = answers.argmax(axis=2)
    place_RN = label_RN + num_classes * np.arange(num_rows)
    count_NC = np.bincount(place_RN.ravel(), minlength=num_rows * num_classes).reshape(
        num_rows, num_classes
    )
    is_true_RN = label_RN == y
    return np.column_stack(
        [
            answers.mean(axis=0),
            answers.std(axis=0),
            count_NC.max(axis=1) / num_answers,
            is_true_RN.mean(axis=0),
            is_true_RN[0],
        ]
    )


class _Net(nn.Module):
    """Log-odds [N] of "member" from summaries [N, 2C + 3] and labels [N].

    Means and deviations are read less their mean over their deviation, each over all of `like`:
    what noise leaves of a signal is small, and so are deviations between near copies.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_classes: int, width: float, like: NDArray[np.float32]) -> None:
        super().__init__()
        self.num_classes = num_classes
        w1024, w512, w256, w64 = (max(1, round(width * size)) for size in (1024, 512, 256, 64))
        num_features = 2 * num_classes + _NUM_AGREEMENTS
        self.prediction = relu_layers(num_features, w1024, w512, w64)
        self.label = relu_layers(num_classes, w512, w64)
        num_joint = 2 * w64 + 2 + _NUM_AGREEMENTS
        self.joint = nn.Sequential(*relu_layers(num_joint, w256, w64), nn.Linear(w64, 1))
        shift, scale = np.zeros(num_features), np.ones(num_features)
        for start in (0, num_classes):
            block = like[:, start : start + num_classes].astype(np.float64)
            shift[start : start + num_classes] = block.mean()
            if block.std() > _NO_DEVIATION:
                scale[start : start + num_classes] = block.std()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, feature_NF: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        scaled_NF = (feature_NF - self.shift) / self.scale
        onehot_NC = nn.functional.one_hot(y_N, self.num_classes).to(scaled_NF.dtype)
        joint_NJ = torch.cat(
            [
                self.prediction(scaled_NF),
                self.label(onehot_NC),
                scaled_NF.gather(1, y_N[:, None]),
                scaled_NF.gather(1, y_N[:, None] + self.num_classes),
                scaled_NF[:, 2 * self.num_classes :],
            ],
            dim=1,
        )
        log_odds_N: torch.Tensor = self.joint(joint_NJ)[:, 0]
        return log_odds_N
