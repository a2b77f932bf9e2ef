"""Nets that tell members by an answer and a label, and how an attacker trains them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks._epochs import Kept, Loss
from attacks.base import Knowledge

__all__ = [
    "Recipe",
    "Seen",
    "Standardised",
    "ThreeBranch",
    "balanced_loss",
    "balanced_sides",
    "batches",
    "both_sides",
    "judged",
    "mim0",
    "relu_layers",
    "trained",
]

# Below this many known records on the smaller side none are thrown away to balance the sides.
_SUBSAMPLE_FROM = 500
_MIN_BATCH = 16
_STEPS_PER_EPOCH = 20
_ROWS_AT_ONCE = 8192
_NO_DEVIATION = 1e-9  # of answers that are all the same, but for rounding


def balanced_loss(log_odds: torch.Tensor, num_members: int) -> torch.Tensor:
    """Cross entropy with half the weight on the leading members, half on the rest."""
    member = nn.functional.softplus(-log_odds[:num_members]).mean()
    nonmember = nn.functional.softplus(log_odds[num_members:]).mean()
    return 0.5 * (member + nonmember)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a net reads of known records.

    feature is float32 [N, C], y int64 [N], is_member bool [N] with both truth values present.
    """

    feature: NDArray[np.float32]
    y: NDArray[np.int64]
    is_member: NDArray[np.bool_]


@dataclass(frozen=True)
class Recipe:
    """How a net is trained, by Adam: on `device`, down `loss(log-odds, how many lead as members)`.

    `attack` is the name to complain under.
    """

    attack: str
    learning_rate: float
    epochs: int
    batch_size: int
    patience: int
    device: str
    loss: Loss = balanced_loss


class ThreeBranch(nn.Module):
    """Log-odds [N] of "member" from features [N, C] and labels [N].

    One net reads the features, another the one-hot label, a joint one what both make of them and,
    with `true_confidence`, the feature of the label. All layers but the last are followed by a
    ReLU.

    Source: Nasr et al. 2018, figure 3.
    """

    def __init__(
        self,
        num_classes: int,
        prediction: Sequence[int],
        label: Sequence[int],
        joint: Sequence[int],
        *,
        true_confidence: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.true_confidence = true_confidence
        self.prediction = relu_layers(num_classes, *prediction)
        self.label = relu_layers(num_classes, *label)
        num_joint = prediction[-1] + label[-1] + int(true_confidence)
        self.joint = nn.Sequential(*relu_layers(num_joint, *joint), nn.Linear(joint[-1], 1))

    def forward(self, feature_NC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        onehot_NC = nn.functional.one_hot(y_N, self.num_classes).to(feature_NC.dtype)
        inputs = [self.prediction(feature_NC), self.label(onehot_NC)]
        if self.true_confidence:
            inputs.append(feature_NC.gather(1, y_N[:, None]))
        log_odds: torch.Tensor = self.joint(torch.cat(inputs, dim=1))[:, 0]
        return log_odds


class Standardised(nn.Module):
    """A net that reads features less their mean over their deviation, both over all of `like`.

    Scores that differ in the third decimal, as those of a target with a Tanh after its last layer
    do, are next to nothing for a fresh net beside a one-hot label, and it never learns from them.
    """

    def __init__(self, net: nn.Module, like: NDArray[np.float32]) -> None:
        super().__init__()
        self.net = net
        self.mean = float(like.mean(dtype=np.float64))
        deviation = float(like.std(dtype=np.float64))
        self.deviation = deviation if deviation > _NO_DEVIATION else 1.0

    def forward(self, feature_NC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        log_odds_N: torch.Tensor = self.net((feature_NC - self.mean) / self.deviation, y_N)
        return log_odds_N


def mim0(num_classes: int, width: float, *, true_confidence: bool = False) -> ThreeBranch:
    """Prediction C-1024-512-64, label C-512-64, joint 128(+1)-256-64-1, times `width`.

    Source: AEPPT's MIM0, which is Nasr et al.'s attacker.
    """
    w1024, w512, w256, w64 = (max(1, round(width * size)) for size in (1024, 512, 256, 64))
    return ThreeBranch(
        num_classes,
        (w1024, w512, w64),
        (w512, w64),
        (w256, w64),
        true_confidence=true_confidence,
    )


def relu_layers(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers)


def both_sides(known: Knowledge, attack: str) -> None:
    """Complain unless members and non-members are known for fitting and for calibration.

    Raises:
        ValueError: if `known.fit` or `known.cal` lacks members or non-members.
    """
    for part, records in (("fit", known.fit), ("cal", known.cal)):
        num_members = int(records.is_member.sum())
        if num_members in (0, len(records)):
            raise ValueError(
                f"known.{part} holds {num_members} members among {len(records)} records; "
                f"{attack} needs both members and non-members there"
            )


def trained(
    make: Callable[[], nn.Module], fit: Seen, cal: Seen, recipe: Recipe, rng: np.random.Generator
) -> nn.Module:
    """The net of the best epoch, in double precision.

    Each mini-batch holds members and non-members in equal weight. The epoch is chosen on `cal` by
    balanced accuracy (at log-odds 0) and, within its standard error, by the loss. Fewer than 20
    steps an epoch leave a net under-trained on small sets, so the batch shrinks with them.

    Args:
        make: gives the net; called once, with torch's global generator seeded.
        fit: what to descend on.
        cal: what chooses the epoch.
        recipe: how.
        rng: draws the weights and the order of the records.

    Raises:
        FloatingPointError: if the training leaves the finite numbers.
    """
    # Weights are drawn on the CPU, so that they do not depend on the device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        net = make()
    net.to(recipe.device)
    feature_MC, y_M = (_to_tensor(array, recipe.device) for array in (fit.feature, fit.y))
    sides = balanced_sides(fit.is_member, rng)
    num_records = sum(len(side) for side in sides)
    batch_size = min(recipe.batch_size, max(_MIN_BATCH, num_records // _STEPS_PER_EPOCH))
    num_batches = max(1, min(round(num_records / batch_size), *(len(side) for side in sides)))
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate, fused=True)
    kept = Kept(cal.is_member, recipe.loss)
    for epoch in range(recipe.epochs):
        for members, nonmembers in batches(sides, num_batches, rng):
            rows = torch.from_numpy(np.concatenate([members, nonmembers])).to(recipe.device)
            loss = recipe.loss(net(feature_MC[rows], y_M[rows]), len(members))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        log_odds_cal = _log_odds(net, cal.feature, cal.y, recipe.device)
        if not np.isfinite(log_odds_cal).all():
            raise FloatingPointError(
                f"{recipe.attack}'s training left the finite numbers in epoch {epoch + 1} with "
                f"learning_rate {recipe.learning_rate:g}; use a smaller one"
            )
        kept.consider(epoch, log_odds_cal, net)
        if epoch - kept.best_epoch >= recipe.patience:
            break
    net.load_state_dict(kept.choice())
    return net.double()


def judged(
    net: nn.Module, feature: NDArray[np.float32], y: NDArray[np.int64], device: str
) -> NDArray[np.float64]:
    """Log-odds [N] of "member" for features [N, C], which a double net gives; ties stay ties."""
    scores_N = _log_odds(net, feature.astype(np.float64), y, device)
    # A matrix product rounds equal rows differently by their place in the batch. In double
    # precision that is far below 1e-9, so equal answers keep equal scores and ties stay ties.
    return np.round(scores_N, 9)


def _to_tensor(array: NDArray[np.generic], device: str) -> torch.Tensor:
    """A copy, as torch takes neither read-only arrays nor reversed views."""
    return torch.tensor(np.ascontiguousarray(array), device=device)


@torch.no_grad()
def _log_odds(
    net: nn.Module, feature_NC: NDArray[np.floating], y: NDArray[np.int64], device: str
) -> NDArray[np.float64]:
    """The net's log-odds [N] for features [N, C], in pieces that fit in memory."""
    pieces = [
        net(
            _to_tensor(feature_NC[start : start + _ROWS_AT_ONCE], device),
            _to_tensor(y[start : start + _ROWS_AT_ONCE], device),
        )
        for start in range(0, len(y), _ROWS_AT_ONCE)
    ]
    return np.asarray(torch.cat(pieces).cpu().numpy(), dtype=np.float64)


def balanced_sides(
    is_member: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of members and of non-members, the larger side cut to the smaller.

    Sides below 500 are left whole, as records are scarcer than balance: the loss weights them.
    """
    members, nonmembers = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    size = min(len(members), len(nonmembers))
    if size < _SUBSAMPLE_FROM:
        return members, nonmembers
    return rng.permutation(members)[:size], rng.permutation(nonmembers)[:size]


def batches(
    sides: tuple[NDArray[np.int64], NDArray[np.int64]], num_batches: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Members and non-members of each batch, in a new order."""
    pieces = [np.array_split(rng.permutation(side), num_batches) for side in sides]
    return zip(*pieces, strict=True)
