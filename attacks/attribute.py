"""Attribute inference: a net from the service's answer to what it was never asked to tell."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import log_softmax
from torch import nn

from attacks.base import Attack

__all__ = ["Attribute"]

_HELD_OUT = 5  # one record in so many chooses the epoch
_MIN_BATCH = 16
_STEPS_PER_EPOCH = 20
_NO_DEVIATION = 1e-9  # of answers that are all the same, but for rounding


class Attribute(Attack):
    """Learn a sensitive attribute from answers about records whose attribute is known.

    A net reads the confidence and the log-ratios, log p less the row's mean log p; both are
    standardised. Each value of the attribute has the same weight in the loss, however rare, as
    balanced accuracy is what counts. A fifth of the attacker's records, of each value, is held
    out, and the epoch with the least such loss there is taken.

    Source: Song & Shmatikov, "Overlearning Reveals Sensitive Attributes", ICLR 2020, figure 1
        (inference from representation), in black-box use: the attacker sees the answer, not an
        inner layer. Layers 64-64, weights and log-ratios are our choice, as answers may be as
        short as two scores.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    width: int = Field(64, ge=1, description="units of each of the two hidden layers")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step")
    epochs: int = Field(50, ge=1, description="passes over the attacker's records")
    batch_size: int = Field(128, ge=2, description="most records a step")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p in the log-ratios")

    def infer(
        self,
        answers: NDArray[np.float64],
        own_answers: NDArray[np.float64],
        own_values: NDArray[np.int64],
        *,
        num_values: int,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-probabilities of the attribute's values, as if all were equally frequent.

        Args:
            answers: [N, C], rows as released, which need not sum to 1.
            own_answers: [M, C].
            own_values: int64 [M], two or more records each of two values or more.
            num_values: A; values none of the M records has are never inferred.
            seed: of the records held out, the weights and the batches.

        Returns:
            Finite float64 [N, A]; equal answers get equal rows.

        Raises:
            ValueError: if values are out of range, or not at least two of them seen twice.
            FloatingPointError: if the training leaves the finite numbers.
        """
        _check(own_values, len(own_answers), num_values)
        held_out_M = _one_in_five(own_values, np.random.default_rng([seed, 0]))
        feature_MF = self._features(own_answers)
        mean_F = feature_MF[~held_out_M].mean(axis=0)
        deviation_F = feature_MF[~held_out_M].std(axis=0)
        deviation_F[deviation_F < _NO_DEVIATION] = 1.0
        net = self._trained(
            (feature_MF - mean_F) / deviation_F, own_values, held_out_M, num_values, seed
        )
        with torch.no_grad():
            logit_NA = net(torch.from_numpy((self._features(answers) - mean_F) / deviation_F))
        # A matrix product rounds equal rows differently by their place in the batch.
        rounded_NA: NDArray[np.float64] = np.round(log_softmax(logit_NA.numpy(), axis=1), 9)
        return rounded_NA

    def _features(self, answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 2C]: scores, and their log-ratios."""
        p_NC = np.asarray(answers, dtype=np.float64)
        log_NC = np.log(np.clip(p_NC, self.clip, None))
        return np.hstack([p_NC, log_NC - log_NC.mean(axis=1, keepdims=True)])

    def _trained(
        self,
        feature_MF: NDArray[np.float64],
        values_M: NDArray[np.int64],
        held_out_M: NDArray[np.bool_],
        num_values: int,
        seed: int,
    ) -> nn.Module:
        """The net of the best epoch on the records held out; small, so in double precision."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([seed, 1]).integers(2**63)))
            net = nn.Sequential(
                nn.Linear(feature_MF.shape[1], self.width),
                nn.ReLU(),
                nn.Linear(self.width, self.width),
                nn.ReLU(),
                nn.Linear(self.width, num_values),
            ).double()
        inputs_MF, weight_M = torch.from_numpy(feature_MF), _weights(values_M, held_out_M)
        target_M = torch.tensor(np.asarray(values_M, dtype=np.int64))

        def loss(rows: NDArray[np.int64]) -> torch.Tensor:
            # Not divided by the weights of a batch, which would discount its rare values.
            of_each = nn.functional.cross_entropy(
                net(inputs_MF[rows]), target_M[rows], reduction="none"
            )
            return (weight_M[rows] * of_each).mean()

        fit, held_out = np.flatnonzero(~held_out_M), np.flatnonzero(held_out_M)
        batch_size = min(self.batch_size, max(_MIN_BATCH, len(fit) // _STEPS_PER_EPOCH))
        rng = np.random.default_rng([seed, 2])
        optimiser = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
        best, state = np.inf, net.state_dict()
        for _ in range(self.epochs):
            for rows in np.array_split(rng.permutation(fit), max(1, round(len(fit) / batch_size))):
                optimiser.zero_grad()
                torch.autograd.backward(loss(rows))
                optimiser.step()
            with torch.no_grad():
                held_out_loss = float(loss(held_out))
            if held_out_loss < best:
                best = held_out_loss
                state = {name: value.clone() for name, value in net.state_dict().items()}
        if not np.isfinite(best):
            raise FloatingPointError(
                "attribute's training left the finite numbers with learning_rate "
                f"{self.learning_rate:g}; use a smaller one"
            )
        net.load_state_dict(state)
        return net


def _check(own_values: NDArray[np.int64], num_answers: int, num_values: int) -> None:
    if len(own_values) != num_answers:
        raise ValueError(
            f"there are {num_answers} own_answers and {len(own_values)} own_values; each answer "
            "needs the value of its record"
        )
    if len(own_values) and (own_values.min() < 0 or own_values.max() >= num_values):
        raise ValueError(
            f"own_values go from {own_values.min()} to {own_values.max()}; with num_values "
            f"{num_values} they must lie in 0..{num_values - 1}"
        )
    count_A = np.bincount(own_values, minlength=num_values)
    if np.sum(count_A > 1) < 2:
        raise ValueError(
            f"own_values have {count_A.tolist()} records a value; attribute fits on some and "
            "chooses on others, so it needs two or more of at least two values"
        )


def _one_in_five(values_M: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which records to hold out: a fifth of each value, but one of two; none of one."""
    shuffled = rng.permutation(len(values_M))
    held_out_M = np.zeros(len(values_M), dtype=np.bool_)
    for value in np.unique(values_M):
        of_value = shuffled[values_M[shuffled] == value]
        num_held_out = min(len(of_value) - 1, max(1, len(of_value) // _HELD_OUT))
        held_out_M[of_value[:num_held_out]] = True
    return held_out_M


def _weights(values_M: NDArray[np.int64], held_out_M: NDArray[np.bool_]) -> torch.Tensor:
    """A weight for each record, by which the values found in its part count alike; mean 1."""
    weight_M = np.empty(len(values_M))
    for part in (held_out_M, ~held_out_M):
        count_A = np.bincount(values_M[part])
        weight_M[part] = part.sum() / np.sum(count_A > 0) / count_A[values_M[part]]
    return torch.from_numpy(weight_M)
