"""ML-Leaks' attack net on the three largest confidences."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["Top3Net", "top3"]


def top3(confidence: NDArray[Any]) -> NDArray[np.float64]:
    """[N, 3] largest confidences, descending; zeros stand in for missing classes."""
    top_N3 = np.zeros((len(confidence), 3))
    largest = -np.sort(-np.asarray(confidence, dtype=np.float64), axis=1)[:, :3]
    top_N3[:, : largest.shape[1]] = largest
    return top_N3


@dataclass(frozen=True, eq=False)
class Top3Net:
    """The attack net 3-H-2 (ReLU, softmax), trained by Adam with gradients written out.

    Thousands of steps on ten rows each cost torch a millisecond a step, and these some tens of
    microseconds. `first` is [4, H] and `second` [H + 1, 2], both views of `flat`; the last row
    of each is the bias.
    """

    flat: NDArray[np.float64]
    hidden: int

    @classmethod
    def initial(cls, hidden: int, rng: np.random.Generator) -> "Top3Net":
        """Weights and biases uniform in +-1/sqrt(fan-in)."""
        first = rng.uniform(-1.0, 1.0, 4 * hidden) / np.sqrt(3)
        second = rng.uniform(-1.0, 1.0, (hidden + 1) * 2) / np.sqrt(hidden)
        return cls(np.concatenate([first, second]), hidden)

    @property
    def first(self) -> NDArray[np.float64]:
        return self.flat[: 4 * self.hidden].reshape(4, self.hidden)

    @property
    def second(self) -> NDArray[np.float64]:
        return self.flat[4 * self.hidden :].reshape(self.hidden + 1, 2)

    def log_odds(self, top: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds log P(member) - log P(non-member), [N], for features [N, 3]."""
        hidden_NH = np.maximum(top @ self.first[:3] + self.first[3], 0.0)
        out_N2 = hidden_NH @ self.second[:-1] + self.second[-1]
        return np.asarray(out_N2[:, 1] - out_N2[:, 0])

    def fit(
        self,
        top: NDArray[np.float64],
        is_member: NDArray[np.bool_],
        *,
        learning_rate: float,
        batch_size: int,
        epochs: int,
        weight_decay: float,
        rng: np.random.Generator,
    ) -> None:
        """Minimise the mean cross entropy of each batch plus `weight_decay`/2 |weights|^2.

        Args:
            top: [N, 3] features.
            is_member: [N].
            learning_rate: Adam's step; its decay rates are 0.9 and 0.999.
            batch_size: rows a step; the last batch of an epoch may be smaller.
            epochs: passes, each in a new order.
            weight_decay: L2, added to the gradient before Adam.
            rng: draws the orders.
        """
        num_rows, hidden = len(top), self.hidden
        x_N4 = np.column_stack([top, np.ones(num_rows)])
        target_N = is_member.astype(np.float64)
        weights, first, second = self.flat, self.first, self.second
        gradient = Top3Net(np.empty_like(weights), hidden)
        gradient_first, gradient_second = gradient.first, gradient.second
        hidden_BH1 = np.ones((batch_size, hidden + 1))
        error_B2 = np.empty((batch_size, 2))
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        mean_bias, square_bias = 1.0, 1.0
        for _ in range(epochs):
            order = rng.permutation(num_rows)
            x_epoch, target_epoch = x_N4[order], target_N[order]
            for start in range(0, num_rows, batch_size):
                x_B4, target_B = (a[start : start + batch_size] for a in (x_epoch, target_epoch))
                size = len(x_B4)
                h, error = hidden_BH1[:size], error_B2[:size]
                np.maximum(x_B4 @ first, 0.0, out=h[:, :-1])
                out_B2 = h @ second
                # With two classes the softmax is the sigmoid of the difference.
                error[:, 1] = (expit(out_B2[:, 1] - out_B2[:, 0]) - target_B) / size
                np.negative(error[:, 1], out=error[:, 0])
                np.matmul(h.T, error, out=gradient_second)
                back_BH = (error @ second[:-1].T) * (h[:, :-1] > 0)
                np.matmul(x_B4.T, back_BH, out=gradient_first)
                step = gradient.flat + weight_decay * weights
                mean *= 0.9
                mean += 0.1 * step
                square *= 0.999
                square += 0.001 * step * step
                mean_bias *= 0.9
                square_bias *= 0.999
                root = np.sqrt(square / (1.0 - square_bias)) + 1e-8
                weights -= learning_rate / (1.0 - mean_bias) * mean / root
