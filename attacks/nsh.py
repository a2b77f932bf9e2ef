"""The NSH attack: a net on the whole confidence vector and the true label."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._membership_net import Recipe, Seen, both_sides, judged, mim0, trained
from attacks.base import Attack, Classifier, Knowledge, Known

__all__ = ["Nsh"]


class Nsh(Attack):
    """Learn from known members and non-members what the service answers to each.

    A prediction net reads the confidence, a label net the one-hot true label, and a joint net
    both outputs. Each mini-batch holds members and non-members in equal weight; the epoch is chosen
    on `known.cal` by balanced accuracy (at probability 0.5) and, within its standard error, by
    cross entropy. Fewer than 20 steps an epoch leave the net under-trained on small sets, so the
    batch shrinks with them.

    Source: Nasr, Shokri & Houmansadr, "Machine Learning with Membership Privacy using
        Adversarial Regularization", CCS 2018, section 4 (figure 3), in black-box use; layer
        widths, cross entropy, learning rate and epochs as AEPPT gives them for MIM0. The public
        code feeds logits, adds joint layers, uses the mean squared error and picks the epoch on
        the evaluation records; we do none of it. `true_confidence` is ours: without it the net
        falls below the gap attack on label-only answers.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"true_confidence": False},
        "sound": {},
        "cpu": {"width": 0.5},
    }

    learning_rate: float = Field(1e-3, gt=0, description="Adam's step")
    epochs: int = Field(100, ge=1, description="most passes over the known records")
    batch_size: int = Field(512, ge=2, description="most records a step")
    patience: int = Field(40, ge=1, description="epochs without a better one before stopping")
    width: float = Field(1.0, gt=0, description="factor on the width of every hidden layer")
    true_confidence: bool = Field(True, description="feed the true label's entry to the joint net")
    logit_features: bool = Field(False, description="log p minus the row's mean log p, for p")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p in `logit_features`")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member", which keep the order of saturated probabilities.

        Raises:
            ValueError: if `known.fit` or `known.cal` lacks members or non-members.
            FloatingPointError: if the training leaves the finite numbers.
        """
        both_sides(known, "nsh")

        def seen(records: Known) -> Seen:
            return Seen(self._features(known.query(records.x)), records.y, records.is_member)

        net = trained(
            lambda: mim0(known.num_classes, self.width, true_confidence=self.true_confidence),
            seen(known.fit),
            seen(known.cal),
            Recipe(
                "nsh",
                self.learning_rate,
                self.epochs,
                self.batch_size,
                self.patience,
                known.device,
            ),
            np.random.default_rng([seed, 0]),
        )
        return judged(net, self._features(query(x)), y, known.device)

    def _features(self, confidence: NDArray[Any]) -> NDArray[np.float32]:
        """[N, C] what the prediction net reads; logarithms in float64, as p may be near 1."""
        if not self.logit_features:
            return np.array(confidence, dtype=np.float32)
        log_NC = np.log(np.clip(np.asarray(confidence, dtype=np.float64), self.clip, 1.0))
        log_NC -= log_NC.mean(axis=1, keepdims=True)
        return log_NC.astype(np.float32)
