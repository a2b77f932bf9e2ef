"""The epoch an attacker's net is taken from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["Kept", "Loss"]

# Of log-odds [N], of which so many lead as members.
Loss = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class _Epoch:
    accuracy: float
    loss: float
    state: dict[str, torch.Tensor]


class Kept:
    """The epochs among which the calibration records choose.

    The best of 100 epochs on a few hundred records is mostly the luckiest. So, of the epochs within
    one standard error of the best balanced accuracy, the one with the least loss on the same
    records is taken. Only epochs that no other beats in both are held in memory.
    """

    def __init__(self, is_member: NDArray[np.bool_], loss: Loss) -> None:
        self._is_member, self._loss = is_member, loss
        self._epochs: list[_Epoch] = []
        self._best_accuracy = -1.0
        self.best_epoch = 0

    def consider(self, epoch: int, log_odds: NDArray[np.float64], net: nn.Module) -> None:
        """Hold the net's state if this epoch may still be chosen."""
        is_member, called = self._is_member, log_odds > 0
        accuracy = float(0.5 * (called[is_member].mean() + (~called[~is_member]).mean()))
        sorted_ = np.concatenate([log_odds[is_member], log_odds[~is_member]])
        loss = float(self._loss(torch.from_numpy(sorted_), int(is_member.sum())))
        if accuracy > self._best_accuracy:
            self._best_accuracy, self.best_epoch = accuracy, epoch
        if any(e.accuracy >= accuracy and e.loss <= loss for e in self._epochs):
            return
        state = {name: value.clone() for name, value in net.state_dict().items()}
        better = [e for e in self._epochs if e.accuracy > accuracy or e.loss < loss]
        self._epochs = [e for e in (*better, _Epoch(accuracy, loss, state)) if self._near(e)]

    def choice(self) -> dict[str, torch.Tensor]:
        """The state of the epoch to use."""
        return min((e for e in self._epochs if self._near(e)), key=lambda e: e.loss).state

    def _near(self, epoch: _Epoch) -> bool:
        best = self._best_accuracy
        error = float(np.sqrt(best * (1 - best) / len(self._is_member)))
        return epoch.accuracy >= best - error
