"""The NSH attack: a net on the whole confidence vector and the true label."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Nsh"]

# Below this many known records on the smaller side none are thrown away to balance the sides.
_SUBSAMPLE_FROM = 500
_MIN_BATCH = 16
_STEPS_PER_EPOCH = 20
_ROWS_AT_ONCE = 8192


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
        for part, records in (("fit", known.fit), ("cal", known.cal)):
            num_members = int(records.is_member.sum())
            if num_members in (0, len(records)):
                raise ValueError(
                    f"known.{part} holds {num_members} members among {len(records)} records; "
                    "nsh needs both members and non-members there"
                )
        net = self._train(known, seed).double()
        scores_N = _log_odds(net, self._features(query(x)).astype(np.float64), y, known.device)
        # A matrix product rounds equal rows differently by their place in the batch. In double
        # precision that is far below 1e-9, so equal answers keep equal scores and ties stay ties.
        return np.round(scores_N, 9)

    def _features(self, confidence: NDArray[Any]) -> NDArray[np.float32]:
        """[N, C] what the prediction net reads; logarithms in float64, as p may be near 1."""
        if not self.logit_features:
            return np.array(confidence, dtype=np.float32)
        log_NC = np.log(np.clip(np.asarray(confidence, dtype=np.float64), self.clip, 1.0))
        log_NC -= log_NC.mean(axis=1, keepdims=True)
        return log_NC.astype(np.float32)

    def _train(self, known: Knowledge, seed: int) -> "_Net":
        """The net of the best epoch."""
        rng = np.random.default_rng([seed, 0])
        # Weights are drawn on the CPU, so that they do not depend on the device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            net = _Net(known.num_classes, self.width, true_confidence=self.true_confidence)
        net.to(known.device)
        feature_MC = _to_tensor(self._features(known.query(known.fit.x)), known.device)
        y_M = _to_tensor(known.fit.y, known.device)
        cal_feature = self._features(known.query(known.cal.x))
        sides = _balanced_sides(known.fit.is_member, rng)
        num_records = sum(len(side) for side in sides)
        batch_size = min(self.batch_size, max(_MIN_BATCH, num_records // _STEPS_PER_EPOCH))
        num_batches = max(1, min(round(num_records / batch_size), *(len(side) for side in sides)))
        optimiser = torch.optim.Adam(net.parameters(), lr=self.learning_rate, fused=True)
        kept = _Kept(len(known.cal))
        for epoch in range(self.epochs):
            for members, nonmembers in _batches(sides, num_batches, rng):
                rows = torch.from_numpy(np.concatenate([members, nonmembers])).to(known.device)
                log_odds = net(feature_MC[rows], y_M[rows])
                loss = _balanced_loss(log_odds, len(members))
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
            log_odds_cal = _log_odds(net, cal_feature, known.cal.y, known.device)
            if not np.isfinite(log_odds_cal).all():
                raise FloatingPointError(
                    f"nsh's training left the finite numbers in epoch {epoch + 1} with "
                    f"learning_rate {self.learning_rate:g}; use a smaller one"
                )
            kept.consider(epoch, log_odds_cal, known.cal.is_member, net)
            if epoch - kept.best_epoch >= self.patience:
                break
        net.load_state_dict(kept.choice())
        return net


class _Net(nn.Module):
    """Log-odds [N] of "member" from features [N, C] and labels [N].

    prediction C-1024-512-64, label C-512-64, joint 128(+1)-256-64-1, all ReLU; `width` scales
    every hidden layer.

    Source: Nasr et al. 2018, figure 3, with AEPPT's widths (MIM0).
    """

    def __init__(self, num_classes: int, width: float, *, true_confidence: bool) -> None:
        super().__init__()
        w1024, w512, w256, w64 = (max(1, round(width * size)) for size in (1024, 512, 256, 64))
        self.num_classes = num_classes
        self.true_confidence = true_confidence
        self.prediction = _relu_layers(num_classes, w1024, w512, w64)
        self.label = _relu_layers(num_classes, w512, w64)
        self.joint = nn.Sequential(
            *_relu_layers(2 * w64 + int(true_confidence), w256, w64), nn.Linear(w64, 1)
        )

    def forward(self, feature_NC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        onehot_NC = nn.functional.one_hot(y_N, self.num_classes).to(feature_NC.dtype)
        inputs = [self.prediction(feature_NC), self.label(onehot_NC)]
        if self.true_confidence:
            inputs.append(feature_NC.gather(1, y_N[:, None]))
        log_odds: torch.Tensor = self.joint(torch.cat(inputs, dim=1))[:, 0]
        return log_odds


@dataclass(frozen=True)
class _Epoch:
    accuracy: float
    loss: float
    state: dict[str, torch.Tensor]


class _Kept:
    """The epochs among which the calibration records choose.

    The best of 100 epochs on a few hundred records is mostly the luckiest. So, of the epochs within
    one standard error of the best balanced accuracy, the one with the least cross entropy on the
    same records is taken. Only epochs that no other beats in both are held in memory.
    """

    def __init__(self, num_cal: int) -> None:
        self._num_cal = num_cal
        self._epochs: list[_Epoch] = []
        self._best_accuracy = -1.0
        self.best_epoch = 0

    def consider(
        self, epoch: int, log_odds: NDArray[np.float64], is_member: NDArray[np.bool_], net: _Net
    ) -> None:
        """Hold the net's state if this epoch may still be chosen."""
        called = log_odds > 0
        accuracy = float(0.5 * (called[is_member].mean() + (~called[~is_member]).mean()))
        sorted_ = np.concatenate([log_odds[is_member], log_odds[~is_member]])
        loss = float(_balanced_loss(torch.from_numpy(sorted_), int(is_member.sum())))
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
        return epoch.accuracy >= best - float(np.sqrt(best * (1 - best) / self._num_cal))


def _relu_layers(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _balanced_loss(log_odds: torch.Tensor, num_members: int) -> torch.Tensor:
    """Cross entropy with half the weight on the leading members, half on the rest."""
    member = nn.functional.softplus(-log_odds[:num_members]).mean()
    nonmember = nn.functional.softplus(log_odds[num_members:]).mean()
    return 0.5 * (member + nonmember)


def _to_tensor(array: NDArray[Any], device: str) -> torch.Tensor:
    """A copy, as torch takes neither read-only arrays nor reversed views."""
    return torch.tensor(np.ascontiguousarray(array), device=device)


@torch.no_grad()
def _log_odds(
    net: _Net, feature_NC: NDArray[np.floating[Any]], y: NDArray[np.int64], device: str
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


def _balanced_sides(
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


def _batches(
    sides: tuple[NDArray[np.int64], NDArray[np.int64]], num_batches: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Members and non-members of each batch, in a new order."""
    pieces = [np.array_split(rng.permutation(side), num_batches) for side in sides]
    return zip(*pieces, strict=True)
