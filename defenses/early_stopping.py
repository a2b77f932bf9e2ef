"""Early stopping of the target's own training."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.base import Defense, Records, Setting

__all__ = ["EarlyStopping"]

_BATCH = 1024


class EarlyStopping(Defense):
    """Train the same model until it gets worse on others than its members, and no further.

    After each epoch the cross-entropy on the validation part of the reference is taken. Training
    ends once `patience` epochs in a row have not lowered it; the weights of the best epoch are
    given back.

    Source: Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models",
        USENIX Security 2021, who find it on a par with Min-Max. The stopping rule is ours.
    """

    VERSION: ClassVar[int] = 1

    patience: int = Field(5, ge=1, description="epochs without improvement that are waited for")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="at most; None: the target's own number"
    )

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """The weights of the epoch with the least validation loss; the first one wins ties.

        Raises:
            ValueError: if there is nothing to validate on.
        """
        val = setting.reference.val
        if not len(val):
            raise ValueError(
                "the reference has no validation records to stop on; enlarge the reference split"
            )
        best, best_epoch, lowest = dict[str, NDArray[Any]](), 0, np.inf

        def after_epoch(epoch: int, module: nn.Module) -> bool:
            nonlocal best, best_epoch, lowest
            current = _cross_entropy(module, val, setting.device)
            if not best or current < lowest:
                best, best_epoch, lowest = _weights(module), epoch, current
            return epoch - best_epoch >= self.patience

        changed = {} if self.epochs is None else {"epochs": self.epochs}
        setting.train(setting.members, seed=seed, loss=_plain, after_epoch=after_epoch, **changed)
        return best


# Given explicitly, so that a recipe's own end (a bound on the members' loss) does not stop the
# training before the epoch it falls on has been judged.
def _plain(logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
    return F.cross_entropy(logits, targets)


@torch.no_grad()
def _cross_entropy(module: nn.Module, records: Records, device: str) -> float:
    module.eval()
    total = 0.0
    for start in range(0, len(records), _BATCH):
        part = slice(start, start + _BATCH)
        z_BC = module(torch.from_numpy(records.x[part]).to(device))
        y_B = torch.from_numpy(records.y[part]).to(device)
        total += float(F.cross_entropy(z_BC.cpu().double(), y_B.cpu(), reduction="sum"))
    return total / len(records)


def _weights(module: nn.Module) -> dict[str, NDArray[Any]]:
    # A copy: on the CPU the arrays would go on being trained.
    return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}
