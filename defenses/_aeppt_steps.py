"""AEPPT's algorithm: steps against a substitute membership classifier, all rows at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from defenses._relu_net import Gradients, ReluNet

__all__ = ["Guard", "Loss", "Post", "Substitute", "finished", "perturbed"]

Loss = Literal["bce_prob_f32", "bce_logits"]
Post = Literal["none", "renorm", "simplex"]
Guard = Literal["none", "keep_argmax"]

_ROWS_AT_ONCE = 512  # their activations stay in a core's cache
_MARGIN = 0.05


@dataclass(frozen=True, eq=False)
class Substitute:
    """The substitute classifier, with its label branch computed once for every class.

    Attributes:
        net: from a confidence to the log-odds; the bias of its second layer is replaced by
        label_CJ: [C, J], what each label adds to the second layer.
    """

    net: ReluNet
    label_CJ: NDArray[np.float64]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> "Substitute":
        """From the arrays of a `TwoBranch` with one layer a branch and one joint layer."""
        a = {name: np.asarray(value).astype(np.float64) for name, value in arrays.items()}
        prediction = a["prediction.0.bias"]
        joint = a["joint.0.weight"]
        from_prediction, from_label = np.split(joint, [len(prediction)], axis=1)
        # A one-hot label picks a column of the branch's first layer.
        branch_CH = np.maximum(a["label.0.weight"].T + a["label.0.bias"], 0)
        net = ReluNet.of(
            [
                (a["prediction.0.weight"], prediction),
                (from_prediction, a["joint.0.bias"]),
                (a["last.weight"], a["last.bias"]),
            ]
        )
        return cls(net=net, label_CJ=branch_CH @ from_label.T + a["joint.0.bias"])

    def given(self, label_N: NDArray[np.int64]) -> ReluNet:
        """The network for rows with these labels."""
        first, _, last = self.net.biases
        return replace(self.net, biases=(first, self.label_CJ[label_N], last))

    def log_odds(
        self, c_NC: NDArray[np.float64], label_N: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Log-odds [N] of "member" for confidences [N, C] and labels [N]."""
        return self.given(label_N).forward(c_NC)[0]


def perturbed(
    c_NC: NDArray[np.float64],
    uniform_NT: NDArray[np.float64],
    substitute: Substitute,
    step: float,
    *,
    loss: Loss = "bce_logits",
    guard: Guard = "none",
    stop_at_boundary: bool = False,
) -> NDArray[np.float64]:
    """Confidences moved away from what the substitute decides about them.

    Args:
        c_NC: [N, C], rows sum to 1. Not modified.
        uniform_NT: the random factor of each step, one for all classes of a row.
        substitute: the classifier to move against.
        step: epsilon.
        loss: whose gradient is followed. It decides the sign of a step, and whether there is one.
        guard: "keep_argmax" gives back the last iterate with the label of c.
        stop_at_boundary: a row rests once it is 0.05 beyond the substitute's 0.5.

    Returns:
        [N, C], entries in [0, 1]; rows need not sum to 1.

    Source: AEPPT algorithm 1.
    """
    moved_NC = c_NC.copy()
    for start in range(0, len(c_NC) if step > 0 else 0, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        label_B = c_NC[rows].argmax(axis=1)
        net = substitute.given(label_B)
        gradients = Gradients(net, len(label_B))
        a_BC = moved_NC[rows] if guard == "none" else moved_NC[rows].copy()
        member_B = np.zeros(0, dtype=bool)
        for t in range(uniform_NT.shape[1]):
            log_odds_B, kept = net.forward(a_BC)
            if t == 0:
                member_B = log_odds_B >= 0  # decided once, on the clean confidences
            sign_B = _ascent(log_odds_B, member_B, loss)
            if stop_at_boundary:
                sign_B[sign_B * log_odds_B >= logit(0.5 + _MARGIN)] = 0
            if not sign_B.any():  # what rests once rests for good
                break
            move_BC = np.sign(gradients.at(kept))
            move_BC *= (step * uniform_NT[rows, t] * sign_B)[:, None]
            a_BC += move_BC
            np.clip(a_BC, 0, 1, out=a_BC)
            if guard == "keep_argmax":
                same_B = a_BC.argmax(axis=1) == label_B
                np.copyto(moved_NC[rows], a_BC, where=same_B[:, None])
    return moved_NC


def _ascent(
    log_odds_B: NDArray[np.float64], member_B: NDArray[np.bool_], loss: Loss
) -> NDArray[np.float64]:
    """The sign of d BCE(g, Y) / d log-odds, with Y = 1 for member_B; 0 where it vanishes."""
    up_B = np.where(member_B, -1.0, 1.0)  # the logistic function never reaches its limits
    if loss == "bce_prob_f32":
        # On a float32 sigmoid it does, as PyTorch differentiates that: g - Y over g (1 - g), at
        # least 1e-12, times g (1 - g).
        g_B = expit(log_odds_B.astype(np.float32))
        slope_B = g_B * (np.float32(1) - g_B)
        factor_B = (g_B - member_B.astype(np.float32)) / np.maximum(slope_B, np.float32(1e-12))
        up_B[factor_B * slope_B == 0] = 0
    return up_B


def finished(
    moved_NC: NDArray[np.float64], label_N: NDArray[np.int64], post: Post, guard: Guard
) -> NDArray[np.float64]:
    """What is released of moved confidences [N, C] with entries in [0, 1].

    Args:
        moved_NC: as `perturbed` gives them. Not modified.
        label_N: the labels before.
        post: "none"; "renorm", divided by the sum; "simplex", the nearest distribution in L2.
        guard: with "keep_argmax", no rounding gives another class the label's rank.
    """
    released_NC = moved_NC.copy()
    if post == "none":
        return released_NC
    if post == "renorm":
        empty = np.flatnonzero(~released_NC.any(axis=1))
        released_NC[empty, label_N[empty]] = 1  # nothing is left but the label
        released_NC /= released_NC.sum(axis=1, keepdims=True)
    else:
        released_NC = _on_simplex(released_NC)
    if guard == "keep_argmax":
        tied = np.flatnonzero(released_NC.argmax(axis=1) != label_N)
        released_NC[tied, label_N[tied]] = np.nextafter(released_NC[tied].max(axis=1), 2)
    return released_NC


def _on_simplex(a_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Euclidean projection of each row: what is above a threshold, less the threshold."""
    falling_NC = -np.sort(-a_NC, axis=1)
    excess_NC = falling_NC.cumsum(axis=1) - 1
    count_C = np.arange(1, a_NC.shape[1] + 1)
    last_N = (falling_NC * count_C > excess_NC).sum(axis=1) - 1
    threshold_N = excess_NC[np.arange(len(a_NC)), last_N] / count_C[last_N]
    projected_NC: NDArray[np.float64] = np.maximum(a_NC - threshold_N[:, None], 0)
    return projected_NC
