"""Quantile regression: is the answer surer than records like this one get without training."""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from attacks.base import Attack, Classifier, Knowledge, Records

__all__ = ["LEVELS", "Quantile", "hinge"]

_Width = Annotated[int, Field(ge=1)]

# Levels whose quantiles the pinball loss fits: 1 - alpha for 41 false positive rates alpha from 1
# down to 1e-4.
_DECADES = 4
LEVELS = 1.0 - np.logspace(0, -_DECADES, 41)
_HELD_OUT = 0.2
_LEAST_RECORDS = 10
_MIN_BATCH = 16
_STEPS_PER_EPOCH = 20
_ROWS_AT_ONCE = 2048
# Of the logarithm of a deviation, in deviations of the signal over all records.
_LOG_DEVIATION_LIMIT = 5.0
_NO_DEVIATION = 1e-9  # of values that are all the same, but for rounding


class Quantile(Attack):
    """Predict from a record how sure of its label the target is of records it never trained on.

    A net learns, on records known to be no members, the distribution of the target's signal
    s = log p_y - max_{i != y} log p_i given the record: its mean and deviation (`gaussian`), or 41
    quantiles of it (`pinball`). A record is a member if its signal lies high in its own
    distribution. One net is all that is trained; the target's architecture is not needed.

    Every fifth population record is held out to choose the epoch. The net is a multi-layer
    perceptron on the flattened record; images [channels, height, width] have convolutions first.

    Source: Bertran et al., "Scalable Membership Inference Attacks via Quantile Regression",
        NeurIPS 2023, section 3 (signal, pinball and Gaussian losses). The signal is read off
        probabilities, as services do not release logits, which differ from it by nothing. The
        paper takes ConvNeXts or boosted trees; our nets are smaller. Batches shrink on small
        populations so that an epoch has 20 steps. Beyond the outermost quantiles we go on
        counting in units of their distance, or all who lie there would tie.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-pop"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {},
        "cpu": {"learning_rate": 1e-3, "hidden": (256, 128), "num_population": 10_000},
    }

    loss: Literal["gaussian", "pinball"] = Field(
        "gaussian", description="fit mean and deviation, or 41 quantiles"
    )
    num_population: int = Field(
        100_000, ge=_LEAST_RECORDS, description="most population records asked about"
    )
    hidden: tuple[_Width, ...] = Field((512, 256), description="widths of the net's hidden layers")
    channels: tuple[_Width, ...] = Field(
        (32, 64), description="widths of the convolutions on images, each halving the sides"
    )
    use_label: bool = Field(False, description="feed the one-hot label to the net as well")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's step")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decay of all weights")
    epochs: int = Field(30, ge=1, description="passes, of which the best is kept")
    batch_size: int = Field(128, ge=2, description="most records a step")
    max_gradient: float = Field(1.0, gt=0, description="norm gradients are cut to")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p in the signal")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """How high the signal lies in the record's own distribution.

        Args:
            query: asked once.
            known: `population`, about which `known.query` is asked once.
            x: [N, ...] records.
            y: [N] labels.
            seed: draws the population, what is held out of it, weights and batches.

        Returns:
            Finite float64 [N]: (s - mean) / deviation, so that the quantile of level 1 - alpha
            lies at that of a standard Gaussian; or -log10 of the estimated false positive rate,
            0 to 4 between the outermost quantiles.

        Raises:
            ValueError: if the population has fewer than ten records.
            FloatingPointError: if the training leaves the finite numbers.
        """
        rng = np.random.default_rng([seed, 0])
        population = self._drawn(known.population, rng)
        signal_M = hinge(known.query(population.x), population.y, clip=self.clip)
        held_out = np.zeros(len(signal_M), dtype=bool)
        held_out[rng.permutation(len(signal_M))[: max(1, round(_HELD_OUT * len(signal_M)))]] = True
        net = self._trained(known, population, signal_M, held_out, rng)
        out_N = _answers(net, x, y, known.device)
        signal_N = hinge(query(x), y, clip=self.clip)
        score_N = _gaussian_score if self.loss == "gaussian" else _pinball_score
        # Equal records with equal answers keep equal scores, wherever they stand in a batch.
        return np.round(score_N(out_N, net.standardised(signal_N)), 9)

    def _drawn(self, population: Records, rng: np.random.Generator) -> Records:
        if len(population) < _LEAST_RECORDS:
            raise ValueError(
                f"known.population holds {len(population)} records; quantile regresses on them and "
                f"needs at least {_LEAST_RECORDS}: leave more records without a role"
            )
        if len(population) <= self.num_population:
            return population
        drawn = np.sort(rng.choice(len(population), self.num_population, replace=False))
        return Records(population.x[drawn], population.y[drawn])

    def _trained(
        self,
        known: Knowledge,
        population: Records,
        signal: NDArray[np.float64],
        held_out: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> "_Net":
        """The net of the epoch with the least loss on what is held out, in double precision."""
        fit, val = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        # Weights are drawn on the CPU, so that they do not depend on the device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            net = _Net(self, population.x[fit], signal[fit], known)
        net.to(known.device)
        loss = _gaussian_loss if self.loss == "gaussian" else _pinball_loss
        x_MD, y_M, signal_M = (
            torch.tensor(np.ascontiguousarray(a), device=known.device)
            for a in (population.x, population.y, net.standardised(signal).astype(np.float32))
        )
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        size = min(self.batch_size, max(_MIN_BATCH, len(fit) // _STEPS_PER_EPOCH))
        best, kept = np.inf, net.state_dict()
        for epoch in range(self.epochs):
            for rows in np.array_split(rng.permutation(fit), max(1, len(fit) // size)):
                batch = torch.from_numpy(rows).to(known.device)
                optimiser.zero_grad()
                torch.autograd.backward(loss(net(x_MD[batch], y_M[batch]), signal_M[batch]))
                nn.utils.clip_grad_norm_(net.parameters(), self.max_gradient)
                optimiser.step()
            out_V = torch.from_numpy(
                _answers(net, population.x[val], population.y[val], known.device)
            )
            risk = float(loss(out_V, signal_M[torch.from_numpy(val)].cpu()))
            if not np.isfinite(risk):
                raise FloatingPointError(
                    f"quantile's training left the finite numbers in epoch {epoch + 1} with "
                    f"learning_rate {self.learning_rate:g}; use a smaller one"
                )
            if risk < best:
                best = risk
                kept = {name: value.clone() for name, value in net.state_dict().items()}
        net.load_state_dict(kept)
        return net.double()


def hinge(
    confidence: NDArray[Any], y: NDArray[np.int64], *, clip: float = 1e-12
) -> NDArray[np.float64]:
    """The signal log p_y - max_{i != y} log p_i, with every p at least `clip`; finite [N].

    Args:
        confidence: [N, C] as released, C > 1. Not modified.
        y: [N] labels.
        clip: smallest p.
    """
    p_NC = np.maximum(np.asarray(confidence, dtype=np.float64), clip)
    row_N = np.arange(len(y))
    own_N = np.log(p_NC[row_N, y])
    p_NC[row_N, y] = 0.0
    return np.asarray(own_N - np.log(p_NC.max(axis=1)))


class _Net(nn.Module):
    """Two (mean, log deviation) or 41 outputs for records and, if wanted, their labels.

    Signals are standardised by those it was made with, and so are features: each on its own, or
    each channel of images; bits are left as they are.
    """

    def __init__(
        self, attack: Quantile, x: NDArray[Any], signal: NDArray[np.float64], known: Knowledge
    ) -> None:
        super().__init__()
        self.signal_mean, self.signal_deviation = float(signal.mean()), float(signal.std())
        if self.signal_deviation < _NO_DEVIATION:
            self.signal_deviation = 1.0
        self.num_classes = known.num_classes if attack.use_label else 0
        is_image = x.ndim == 4
        over, shape = ((0, 2, 3), (-1, 1, 1)) if is_image else ((0,), x.shape[1:])
        mean: NDArray[np.float64] = np.mean(x, axis=over, dtype=np.float64)
        deviation: NDArray[np.float64] = np.std(x, axis=over, dtype=np.float64)
        if known.kind == "binary":
            mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
        deviation[deviation < _NO_DEVIATION] = 1.0
        for name, value in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).reshape(shape))
        layers: list[nn.Module] = []
        if is_image:
            sizes = [x.shape[1], *attack.channels]
            for size_in, size_out in itertools.pairwise(sizes):
                layers += [nn.Conv2d(size_in, size_out, 3, padding=1), nn.ReLU()]
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            num_features = self.features(torch.zeros(1, *x.shape[1:])).shape[1]
        widths = [num_features + self.num_classes, *attack.hidden]
        dense: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(widths):
            dense += [nn.Linear(size_in, size_out), nn.ReLU()]
        num_outputs = 2 if attack.loss == "gaussian" else len(LEVELS)
        self.joint = nn.Sequential(*dense, nn.Linear(widths[-1], num_outputs))

    def standardised(self, signal: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((signal - self.signal_mean) / self.signal_deviation)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        features = self.features((x.to(mean.dtype) - mean) / deviation)
        if self.num_classes:
            onehot = nn.functional.one_hot(y, self.num_classes).to(features.dtype)
            features = torch.cat([features, onehot], dim=1)
        out: torch.Tensor = self.joint(features)
        return out


@torch.no_grad()
def _answers(
    net: _Net, x: NDArray[Any], y: NDArray[np.int64], device: str
) -> NDArray[np.floating[Any]]:
    """The net's outputs [N, 2 or 41], in pieces that fit in memory."""
    pieces = [
        net(
            torch.tensor(np.ascontiguousarray(x[start : start + _ROWS_AT_ONCE]), device=device),
            torch.tensor(np.ascontiguousarray(y[start : start + _ROWS_AT_ONCE]), device=device),
        )
        for start in range(0, len(y), _ROWS_AT_ONCE)
    ]
    return np.asarray(torch.cat(pieces).cpu().numpy())


def _gaussian_loss(out: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood, less a constant."""
    log_deviation = out[:, 1].clamp(-_LOG_DEVIATION_LIMIT, _LOG_DEVIATION_LIMIT)
    z = (signal - out[:, 0]) * torch.exp(-log_deviation)
    return (log_deviation + 0.5 * z.square()).mean()


def _gaussian_score(
    out: NDArray[np.floating[Any]], signal: NDArray[np.float64]
) -> NDArray[np.float64]:
    log_deviation = np.clip(out[:, 1], -_LOG_DEVIATION_LIMIT, _LOG_DEVIATION_LIMIT)
    return np.asarray((signal - out[:, 0]) / np.exp(log_deviation), dtype=np.float64)


def _pinball_loss(out: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Mean pinball loss over all levels."""
    level = torch.tensor(LEVELS, dtype=out.dtype, device=out.device)
    above = signal[:, None] - out
    return torch.maximum(level * above, (level - 1) * above).mean()


def _pinball_score(
    out: NDArray[np.floating[Any]], signal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """-log10(alpha), interpolated between quantiles put in order, as they may have crossed."""
    quantile_NL = np.sort(np.asarray(out, dtype=np.float64), axis=1)
    row_N, last = np.arange(len(signal)), len(LEVELS) - 1
    below_N = np.count_nonzero(quantile_NL < signal[:, None], axis=1)
    low_N = quantile_NL[row_N, np.clip(below_N - 1, 0, last)]
    high_N = quantile_NL[row_N, np.clip(below_N, 0, last)]
    # Strictly between two quantiles the step is positive; beyond them all it is their distance.
    outside_N = (below_N == 0) | (below_N > last)
    distance_N = np.maximum(quantile_NL[:, -1] - quantile_NL[:, 0], np.exp(-_LOG_DEVIATION_LIMIT))
    step_N = np.where(outside_N, distance_N, high_N - low_N)
    place_N = np.maximum(below_N - 1, 0) + (signal - low_N) / step_N
    return np.asarray(place_N * (_DECADES / last))
