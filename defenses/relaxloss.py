"""RelaxLoss: train to a loss that is not the least."""

import math
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from defenses._recipe import WithRecipe
from defenses.base import Setting

__all__ = ["RelaxLoss"]

_TABULAR = {"epochs": 120, "milestones": (50, 100)}
_CIFAR = {"epochs": 300, "milestones": (150, 225), "flattening": "wrong"}
_SGD = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4, "batch_size": 128}
_PUBLISHED: dict[str, tuple[float, float, dict[str, Any]]] = {
    "purchase100": (0.8, 0.3, _TABULAR),
    "retail100": (0.8, 0.3, _TABULAR),
    "texas100": (2.5, 0.1, _TABULAR),
    "hospital100": (2.5, 0.1, _TABULAR),
    "cifar10": (1.0, 1.0, _CIFAR),
    "cifar100": (3.0, 1.0, _CIFAR),
}


class RelaxLoss(WithRecipe):
    """Keep the members' mean loss at a level `alpha` that others reach too, and spread it.

    Epochs count from 0. In even ones a batch whose loss is below alpha is climbed away from; in
    odd ones its answers are flattened instead: the label's score is held (at most `upper`), the
    rest is spread evenly over the other classes. A batch above alpha always descends.

    Source: Chen, Yu and Fritz, "RelaxLoss: Defending Membership Inference Attacks without Losing
        Utility", ICLR 2022, algorithm 1; numbers from its public code.
    """

    VERSION: ClassVar[int] = 1

    alpha: float = Field(
        0.8, ge=0, description="the level of the mean loss; 0 is the plain training"
    )
    upper: float = Field(
        0.3,
        gt=0,
        le=1,
        description="the most a flattened label may hold (u); below 1 / C, it is no longer the "
        "label",
    )
    flattening: Literal["all", "wrong"] = Field(
        "all",
        description="all: every answer of the batch, as the public code does on tables; wrong: "
        "only wrong answers, while the loss of all climbs, as it does on CIFAR",
    )

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """Published values; for other datasets levels relative to a guess among the classes.

        There, alpha is a quarter of log C (published: 0.17 to 0.65 of it) and nothing is clipped:
        the published 0.3 would turn the label of two or three classes into another one.
        """
        if dataset in _PUBLISHED:
            alpha, upper, training = _PUBLISHED[dataset]
        else:
            alpha, upper, training = math.log(num_classes) / 4, 1.0, _TABULAR
        fields: dict[str, Any] = {"alpha": alpha, "upper": upper}
        # On two cores what is compared is the loss, trained as the undefended target is.
        return fields if name == "cpu" else {**fields, **_SGD, **training}

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        loss = self.loss if self.alpha else None
        return setting.train(setting.members, seed=seed, loss=loss, **self.recipe())

    def loss(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """The scalar to descend in `epoch`, for logits [B, C] and classes [B]."""
        mean = F.cross_entropy(logits, targets)
        if epoch % 2 == 0:
            return (mean - self.alpha).abs()
        if mean > self.alpha:
            return mean
        flat_BC = _flattened(logits, targets, self.upper)
        if self.flattening == "all":
            return F.cross_entropy(logits, flat_BC)
        wrong_B = (logits.argmax(dim=1) != targets).to(logits.dtype)
        return (wrong_B * F.cross_entropy(logits, flat_BC, reduction="none")).mean() - mean


def _flattened(z_BC: Tensor, y_B: Tensor, upper: float) -> Tensor:
    """Soft labels [B, C], rows sum to 1: the label's own score, all others alike."""
    # Public code lets the gradient through its targets; then they are no targets: the loss would
    # fall by moving them too, and the label's score would not be held.
    t_B1 = z_BC.detach().softmax(dim=1).gather(1, y_B[:, None]).clamp(max=upper)
    others_BC = ((1 - t_B1) / (z_BC.shape[1] - 1)).repeat(1, z_BC.shape[1])
    return others_BC.scatter(1, y_B[:, None], t_B1)
