"""Small networks that tell members from others by a confidence, and their training."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

__all__ = [
    "TwoBranch",
    "balanced_accuracy",
    "initialised",
    "relu_layers",
    "train_on_membership",
    "weights_of",
]

_PATIENCE = 20
_Net = TypeVar("_Net", bound=nn.Module)


class TwoBranch(nn.Module):
    """Log-odds [N] of "member" from confidences [N, C] and labels [N].

    One branch reads the confidence, another the one-hot label, a joint one what both make of it.

    Args:
        num_classes: C.
        prediction: widths of the confidence's branch, each followed by a ReLU.
        label: widths of the label's branch.
        joint: widths of the hidden joint layers; one number comes out.
    """

    def __init__(
        self,
        num_classes: int,
        prediction: Sequence[int],
        label: Sequence[int],
        joint: Sequence[int],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.prediction = relu_layers(num_classes, *prediction)
        self.label = relu_layers(num_classes, *label)
        self.joint = relu_layers(prediction[-1] + label[-1], *joint)
        self.last = nn.Linear(joint[-1], 1)

    def forward(self, c_NC: Tensor, y_N: Tensor) -> Tensor:
        label_NC = one_hot(y_N, self.num_classes).to(c_NC.dtype)
        both = torch.cat([self.prediction(c_NC), self.label(label_NC)], dim=1)
        log_odds_N: Tensor = self.last(self.joint(both))[:, 0]
        return log_odds_N


def relu_layers(*sizes: int) -> nn.Sequential:
    """Linear layers between these sizes, each followed by a ReLU."""
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*(part for i, o in pairs for part in (nn.Linear(i, o), nn.ReLU())))


def initialised(make: Callable[[], _Net], seed: int) -> _Net:
    """The network that `make` gives, its random weights drawn on the CPU from this seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train_on_membership(
    net: nn.Module,
    members: Sequence[Tensor],
    others: Sequence[Tensor],
    validation: tuple[Sequence[Tensor], Sequence[Tensor]],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Descend the cross-entropy of membership, with half the weight on either side.

    Sides of unequal size would make "member" the safer guess; weights balance them without
    leaving records out. The weights of the epoch with the least cross-entropy on `validation` are
    kept: after many epochs a step or two can move all saturated answers across the boundary.

    Args:
        net: gives log-odds [B, ...] of its inputs; on the inputs' device.
        members: its inputs for records that trained the model, each [M, ...].
        others: its inputs for records that did not, each [N, ...].
        validation: such inputs of members and of others, to choose the epoch on.
        optimizer: of the net's parameters.
        epochs: most passes over all records; 20 without a better one are the last.
        batch_size: records a step.
        seed: of the order of the records.

    Raises:
        FloatingPointError: if no epoch ends with a finite loss.
    """
    inputs, member_N, weight_N = _sides(members, others)
    judged, judged_member_N, judged_weight_N = _sides(*validation)
    generator = torch.Generator().manual_seed(seed)
    best, least, best_epoch = None, math.inf, 0
    for epoch in range(epochs):
        order_N = torch.randperm(len(member_N), generator=generator).to(member_N.device)
        parts = [torch.split(data[order_N], batch_size) for data in (*inputs, member_N, weight_N)]
        for *batch, member, weight in zip(*parts, strict=True):
            loss = _loss(net(*batch), member, weight)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            judgement = float(_loss(net(*judged), judged_member_N, judged_weight_N))
        if judgement < least:
            best, least = {k: v.clone() for k, v in net.state_dict().items()}, judgement
            best_epoch = epoch
        elif epoch - best_epoch >= _PATIENCE:
            break
    if best is None:
        raise FloatingPointError(
            f"the loss of a membership classifier was not finite in any of {epochs} epochs; "
            "lower learning_rate"
        )
    net.load_state_dict(best)


def _sides(
    members: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The inputs of both sides, which are members [N], and weights [N] that balance them."""
    inputs = [torch.cat(pair) for pair in zip(members, others, strict=True)]
    num_members, num_others = len(members[0]), len(others[0])
    total = num_members + num_others
    member_N = (torch.arange(total) < num_members).float().to(inputs[0].device)
    weight_N = total / 2 * (member_N / num_members + (1 - member_N) / num_others)
    return inputs, member_N, weight_N


def _loss(log_odds: Tensor, member_N: Tensor, weight_N: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(log_odds.reshape(-1), member_N, weight_N)


def balanced_accuracy(member: NDArray[Any], other: NDArray[Any]) -> float:
    """Of log-odds [M] of members and [N] of others; log-odds of 0 call "member"."""
    return 0.5 * (float(np.mean(member >= 0)) + float(np.mean(other < 0)))


def weights_of(net: nn.Module) -> dict[str, NDArray[Any]]:
    """A copy of what a network has learned, by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in net.state_dict().items()}
