"""MemGuard's phase I: the noise in the logits that crosses a membership classifier's boundary."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from defenses._relu_net import Gradients, ReluNet

__all__ = ["log_odds", "noised"]

_LEAST = 1e-30  # of a score, before its logarithm is taken
_UNDECIDED = 1e-5
# Rows searched at once. Their activations stay in a core's cache, and a full batch's products run
# at the processor's speed.
_SLOTS = 128


class _Slots:
    """The rows being searched, each at a weight c3 and a step of its own."""

    def __init__(self, rows: NDArray[np.int64], z_NC: NDArray[np.float64], first_weight: float):
        self.row = rows
        self.z = z_NC
        self.s = _softmax(z_NC)
        self.order = np.argsort(self.s, axis=1, kind="stable")
        self.e = np.zeros_like(z_NC)
        self.weight = np.full(len(rows), first_weight)
        self.steps = np.zeros(len(rows), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.row)

    def replace(self, gone: NDArray[np.bool_], other: "_Slots") -> None:
        """Put the rows of `other` where rows are gone, and close the gaps that remain."""
        free = np.flatnonzero(gone)
        filled, empty = free[: len(other)], free[len(other) :]
        for name, value in vars(self).items():
            value[filled] = getattr(other, name)
            if len(empty):
                setattr(self, name, np.delete(value, empty, axis=0))


def log_odds(classifier: ReluNet, c_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds [N] of "member" for confidences [N, C]."""
    return classifier.forward(np.sort(c_NC, axis=1))[0]


def noised(
    c_NC: NDArray[np.float64],
    classifier: ReluNet,
    *,
    label_weight: float,
    distortion_weight: float,
    largest_distortion_weight: float,
    step: float,
    iterations: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The least distorted confidences found on the other side of the classifier's boundary.

    A fixed number of rows is searched together; a row that is through makes room for the next.

    Args:
        c_NC: confidences [N, C]. Not modified.
        classifier: the network to cross.
        label_weight: c2.
        distortion_weight: the first c3; it grows tenfold for as long as the search succeeds.
        largest_distortion_weight: the last.
        step: beta.
        iterations: most steps at one c3.

    Returns:
        Confidences [N, C] with the same labels, those given where nothing was found; the
        classifier's log-odds [N] for those given, and for those returned.

    Source: MemGuard algorithm 1.
    """
    found_NC = c_NC.copy()
    label_N = c_NC.argmax(axis=1)
    z_NC = np.log(c_NC.clip(min=_LEAST))
    before_N = log_odds(classifier, _softmax(z_NC))
    after_N = before_N.copy()
    waiting = np.flatnonzero(np.abs(expit(before_N) - 0.5) > _UNDECIDED)
    # The least tenfold of the last weight, rounding aside, is not tried.
    last = largest_distortion_weight * (1 + 1e-9)

    def take(most: int) -> _Slots:
        nonlocal waiting
        rows, waiting = waiting[:most], waiting[most:]
        return _Slots(rows, z_NC[rows], distortion_weight)

    at = take(_SLOTS)
    gradients = Gradients(classifier, len(at))
    while len(at):
        label_B = label_N[at.row]
        v_BC = at.z + at.e
        p_BC = _softmax(v_BC)
        sorted_BC = _in_order(p_BC, at.order)
        log_odds_B, kept = classifier.forward(sorted_BC)
        # The label is that of the scores released: rounding can tie what the logits tell apart.
        crossed_B = np.sign(log_odds_B) != np.sign(before_N[at.row])
        success_B = (at.steps > 0) & crossed_B & (p_BC.argmax(axis=1) == label_B)
        failed_B = ~success_B & (at.steps >= iterations)
        going_B = ~(success_B | failed_B)

        away_BC = np.sign(log_odds_B)[:, None] * gradients.at(kept)
        q_BC = np.empty_like(p_BC)
        np.put_along_axis(q_BC, at.order, away_BC, axis=1)
        q_BC += at.weight[:, None] * np.sign(p_BC - at.s)
        grad_BC = _through_softmax(p_BC, q_BC, label_B)
        _add_label_loss(grad_BC, v_BC, label_B, label_weight)
        length_B = np.linalg.norm(grad_BC, axis=1)
        # Where the loss is flat there is no direction; such a row stays and fails.
        scale_B = np.divide(step, length_B, out=np.zeros_like(length_B), where=length_B > 0)
        at.e -= np.where(going_B, scale_B, 0.0)[:, None] * grad_BC
        at.steps += 1

        rows = at.row[success_B]
        found_NC[rows], after_N[rows] = p_BC[success_B], log_odds_B[success_B]
        at.e[success_B] = 0
        at.steps[success_B] = 0
        at.weight[success_B] *= 10
        gone_B = failed_B | (at.weight > last)
        if gone_B.any():
            at.replace(gone_B, take(int(gone_B.sum())))
            if len(at) < len(gradients):
                gradients = Gradients(classifier, len(at))
    return found_NC, before_N, after_N


def _softmax(z_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    p_NC: NDArray[np.float64] = np.exp(z_NC - z_NC.max(axis=1, keepdims=True))
    p_NC /= p_NC.sum(axis=1, keepdims=True)
    return p_NC


def _in_order(p_BC: NDArray[np.float64], order_BC: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scores in ascending order; `order_BC`, that of a step ago, is brought up to date.

    One step rarely changes the order. Ties are put in the order of their classes, as always.
    """
    sorted_BC = np.take_along_axis(p_BC, order_BC, axis=1)
    stale = np.flatnonzero((sorted_BC[:, 1:] <= sorted_BC[:, :-1]).any(axis=1))
    if len(stale):
        order_BC[stale] = np.argsort(p_BC[stale], axis=1, kind="stable")
        sorted_BC[stale] = np.take_along_axis(p_BC[stale], order_BC[stale], axis=1)
    return sorted_BC


def _through_softmax(
    p_BC: NDArray[np.float64], q_BC: NDArray[np.float64], label_B: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The gradient in the logits of what has gradient q in the scores: p (q - <p, q>).

    A constant in q makes no difference, so the label's own is taken out first: else the mean of a
    saturated row would be that entry and nothing but rounding would be left of it.
    """
    q_BC -= q_BC[np.arange(len(q_BC)), label_B][:, None]
    q_BC -= np.einsum("bc,bc->b", p_BC, q_BC)[:, None]
    q_BC *= p_BC
    return q_BC


def _add_label_loss(
    grad_BC: NDArray[np.float64],
    v_BC: NDArray[np.float64],
    label_B: NDArray[np.int64],
    label_weight: float,
) -> None:
    """Add the gradient of label_weight * ReLU(largest other logit - the label's)."""
    row_B = np.arange(len(v_BC))
    own_B = v_BC[row_B, label_B].copy()
    v_BC[row_B, label_B] = -np.inf
    rival_B = v_BC.argmax(axis=1)
    below = np.flatnonzero(v_BC[row_B, rival_B] > own_B)
    grad_BC[below, rival_B[below]] += label_weight
    grad_BC[below, label_B[below]] -= label_weight
