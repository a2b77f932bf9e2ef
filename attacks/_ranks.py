"""How low a loss lies among reference losses: its level, the value of their distribution function.

A level of alpha is met or undercut by a share alpha of further values of the references' kind, so
"member if the level is at most alpha" has the false positive rate alpha where references are what
non-members are like.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

__all__ = ["Smooth", "class_levels", "levels", "own_levels", "predictive_levels"]

Smooth = Literal["linear", "logit_normal"]

# The least deviation, in nats, of signals that agree in every reference model; see _likelihood.py.
_FLOOR = 1e-3
# Reference values worked on at once (16 MB).
_AT_ONCE = 2**21


def levels(
    value: NDArray[np.float64], reference: NDArray[np.float64], *, low: float, high: float
) -> NDArray[np.float64]:
    """The level of every value among references shared by all.

    The i-th lowest of M references has the level i / (M + 1), `low` has 0 and `high` 1. Between
    neighbours the level is linear, so that it is not coarse, neither among the references nor
    beyond them. A value that equals several references has the mean of their levels.

    Args:
        value: [N] within [low, high].
        reference: [M], M >= 1, within [low, high].
        low: least possible value.
        high: largest possible value, above `low`.

    Returns:
        float64 [N] in [0, 1], not decreasing in the value.

    Raises:
        ValueError: if there is no reference, or something is outside [low, high].

    Source: Ye et al., CCS 2022, section 4: the threshold of a test of level alpha is the alpha
        quantile of the loss under the null hypothesis. The authors' code (linear interpolation)
        adds the ends 0 and 1000 to the losses, which gives the same levels.
    """
    _check_within(value, low, high, "value")
    _check_within(reference, low, high, "reference")
    num = len(reference)
    if num == 0:
        raise ValueError("no reference to rank among; at least one is needed")
    ordered = np.sort(reference)
    num_less = np.searchsorted(ordered, value, side="left")
    num_upto = np.searchsorted(ordered, value, side="right")
    edged = np.concatenate([[low], ordered, [high]])
    return _level(value, edged[num_less], edged[num_upto + 1], num_less, num_upto - num_less, num)


def class_levels(
    value: NDArray[np.float64],
    y: NDArray[np.int64],
    reference: NDArray[np.float64],
    reference_y: NDArray[np.int64],
    *,
    low: float,
    high: float,
    min_records: int,
) -> NDArray[np.float64]:
    """The level of every value among the references of its class; see `levels`.

    Args:
        value: [N].
        y: [N] classes.
        reference: [M].
        reference_y: [M] classes.
        low: least possible value.
        high: largest possible value.
        min_records: values of classes with fewer references are ranked among all references.

    Returns:
        float64 [N] in [0, 1].
    """
    result_N = levels(value, reference, low=low, high=high)
    for label in np.flatnonzero(np.bincount(reference_y) >= min_records):
        mine = y == label
        if mine.any():
            result_N[mine] = levels(
                value[mine], reference[reference_y == label], low=low, high=high
            )
    return result_N


def own_levels(
    value: NDArray[np.float64],
    reference: NDArray[np.float64],
    mask: NDArray[np.bool_],
    *,
    low: float,
    high: float,
) -> NDArray[np.float64]:
    """The level of every value among references of its own; see `levels`.

    Args:
        value: [N].
        reference: [S, N]. Entries outside `mask` may hold anything.
        mask: [S, N], which references count.
        low: least possible value.
        high: largest possible value.

    Returns:
        float64 [N] in [0, 1].

    Raises:
        ValueError: if shapes disagree, a value has no reference, or something that counts is
            outside [low, high].
    """
    _check_own(value, reference, mask, 1)
    _check_within(value, low, high, "value")
    _check_within(reference[mask], low, high, "reference")
    result_N = np.empty(len(value))
    step = max(1, _AT_ONCE // len(mask))
    for start in range(0, len(value), step):
        part = slice(start, start + step)
        result_N[part] = _own_levels(value[part], reference[:, part], mask[:, part], low, high)
    return result_N


def _own_levels(
    value: NDArray[np.float64],
    reference: NDArray[np.float64],
    mask: NDArray[np.bool_],
    low: float,
    high: float,
) -> NDArray[np.float64]:
    less_SN, more_SN = mask & (reference < value), mask & (reference > value)
    num_less, num_more, num = (side.sum(axis=0) for side in (less_SN, more_SN, mask))
    # The nearest references on either side, or the ends of what is possible.
    below_N = np.where(less_SN, reference, low).max(axis=0)
    above_N = np.where(more_SN, reference, high).min(axis=0)
    return _level(value, below_N, above_N, num_less, num - num_less - num_more, num)


def _level(
    value: NDArray[np.float64],
    below: NDArray[np.float64],
    above: NDArray[np.float64],
    num_less: NDArray[np.int64],
    num_equal: NDArray[np.int64],
    num: int | NDArray[np.int64],
) -> NDArray[np.float64]:
    """The level [N], from the nearest lower and higher neighbours and how many are below."""
    share = np.divide(value - below, above - below, out=np.zeros_like(value), where=above > below)
    rank = num_less + np.where(num_equal > 0, (num_equal + 1) / 2, share)
    return np.asarray(rank / (num + 1))


def predictive_levels(
    value: NDArray[np.float64], reference: NDArray[np.float64], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The probability that one more reference of a value's own is at most that value.

    References are taken to be normal with a mean and a deviation estimated from n of them, so
    that (value - mean) / (deviation sqrt(1 + 1/n)) has Student's t distribution with n - 1
    degrees of freedom. The normal distribution function with estimated moments orders values with
    equally many references alike, but with 8 of them calls a true level of 0.03 one of 0.01.

    Args:
        value: [N].
        reference: [S, N]. Entries outside `mask` may hold anything.
        mask: [S, N], which references count; at least two of each value.

    Returns:
        float64 [N] in [0, 1]; small levels keep their digits.

    Raises:
        ValueError: if shapes disagree, a value has fewer than two references, or something that
            counts is not finite.

    Source: Ye et al., CCS 2022, Attack R in the authors' code (logit rescaling), there with the
        normal distribution function.
    """
    _check_own(value, reference, mask, 2)
    _check_within(value, -np.inf, np.inf, "value")
    _check_within(reference[mask], -np.inf, np.inf, "reference")
    num = mask.sum(axis=0)
    kept_SN = np.where(mask, reference, 0.0)
    mean_N = kept_SN.sum(axis=0) / num
    residual_SN = np.where(mask, kept_SN - mean_N, 0.0)
    deviation_N = np.sqrt((residual_SN**2).sum(axis=0) / (num - 1))
    scale_N = np.maximum(deviation_N, _FLOOR) * np.sqrt(1 + 1 / num)
    return np.asarray(stdtr(num - 1.0, (value - mean_N) / scale_N))


def _check_within(array: NDArray[Any], low: float, high: float, name: str) -> None:
    bad = ~(np.isfinite(array) & (array >= low) & (array <= high))
    if num_bad := int(np.count_nonzero(bad)):
        raise ValueError(
            f"{num_bad} of {array.size} entries of {name} are not finite numbers in "
            f"[{low:g}, {high:g}], the first is {array[bad][0]:g}; look for nan in the answers"
        )


def _check_own(
    value: NDArray[np.float64], reference: NDArray[np.float64], mask: NDArray[np.bool_], least: int
) -> None:
    """Raise where shapes do not fit or a value has fewer than `least` references."""
    if reference.ndim != 2 or reference.shape != mask.shape or value.shape != reference.shape[1:]:
        raise ValueError(
            f"value is {value.shape}, reference {reference.shape} and mask {mask.shape}; they "
            "must be [N], [S, N] and [S, N]"
        )
    count_N = np.count_nonzero(mask, axis=0)
    if num_few := int(np.count_nonzero(count_N < least)):
        raise ValueError(
            f"{num_few} of {len(count_N)} records have fewer than {least} OUT models among "
            f"{len(mask)}; use more models, or leave these records out"
        )
