"""The label swapper's arithmetic: whom to swap, what is a match, and the swap."""

import numpy as np
from numpy.typing import NDArray

from defenses._neighbours import NeighbourIndex
from defenses._prepared import once_per

__all__ = ["calibrated_radius", "exchanged", "matched", "swap_rate"]

_LEAST_RADIUS = 1e-9
_OTHERS_SHARE = 0.005


def swap_rate(train_accuracy: float, test_accuracy: float) -> float:
    """The share of members to swap, in [0, 1]; 0 where the model is no better on them.

    Source: PURIFIER equation 2. The guards are ours.
    """
    if train_accuracy <= max(0.0, test_accuracy):
        return 0.0
    return min(1.0, (train_accuracy - test_accuracy) / train_accuracy)


def matched(
    confidence: NDArray[np.float64],
    stored: NDArray[np.float64],
    radius: float,
    neighbours: int = 1,
    candidates: int = 8,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows are the answers to stored members.

    A row matches if at least half (rounded up) of its `neighbours` nearest stored vectors of the
    same label are within `radius`. Neighbours of other labels would match within the radius only
    where two classes tie, and are not looked at.

    Args:
        confidence: [N, C], rows sum to 1. Not modified.
        stored: [t, C]; t may be 0.
        radius: L2 distance, judged in float64. The draft gives none.
        neighbours: k.
        candidates: how many neighbours are measured in float64.

    Returns:
        Matches [N], and the position [N] of the nearest stored vector (-1: none has the label).

    Source: PURIFIER section 4.3, algorithm 2.
    """
    index = once_per(stored, "swap", lambda: NeighbourIndex(stored))
    distance_Nk, id_Nk = index.search(confidence, neighbours, candidates=candidates)
    num_within_N = np.count_nonzero(distance_Nk <= radius, axis=1)
    return num_within_N >= (neighbours + 1) // 2, id_Nk[:, 0]


def calibrated_radius(
    members: NDArray[np.float64],
    members_again: NDArray[np.float64],
    reference: NDArray[np.float64],
    stored_rows: NDArray[np.int64],
) -> float:
    """The swap radius that hardly any record but a stored one is within.

    The largest that at most 0.5 % of the reference records match, and as many of the members
    outside the swap set; but not below 10 times the 99.9 % quantile of the distance between two
    answers to one member, nor below 1e-9 (answers may come from a cache, which hides that
    distance). Reference records alone do not bound it where it matters: memorised members lie so
    close together, and so far from everybody else, that nearly all of them would be swapped.

    Args:
        members: [N, C], answers to the members.
        members_again: [N, C], the same, asked in other batches.
        reference: [M, C], answers to records that never trained the model.
        stored_rows: int64 [t], the members that are stored; t may be 0.

    Source: ours; the draft gives no radius. No radius is good: a small one exposes the stored
        members to whoever perturbs them, a large one swaps everybody.
    """
    rounding = float(np.quantile(np.linalg.norm(members_again - members, axis=1), 0.999))
    index = NeighbourIndex(members[stored_rows])
    near = np.inf
    for others in (reference, np.delete(members, stored_rows, axis=0)):
        if not len(others):
            continue
        distance_M = np.sort(index.search(others)[0][:, 0])
        num_allowed = int(_OTHERS_SHARE * len(others))
        near = min(near, distance_M[num_allowed - 1] if num_allowed else 0.0)
    # Infinite where too few others have a stored vector of their label to tell.
    return max(_LEAST_RADIUS, 10 * rounding, float(near) if np.isfinite(near) else 0.0)


def exchanged(
    vectors: NDArray[np.float64], offset: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """A copy of vectors [N, C] with the largest value and another one exchanged.

    The other is the second largest (the first index wins ties), or that of the class `offset` [N]
    places after the largest's.
    """
    swapped_NC = vectors.copy()
    row_N = np.arange(len(vectors))
    top_N = vectors.argmax(axis=1)
    if offset is None:
        rest_NC = vectors.copy()
        rest_NC[row_N, top_N] = -np.inf
        other_N = rest_NC.argmax(axis=1)
    else:
        other_N = (top_N + offset) % vectors.shape[1]
    swapped_NC[row_N, top_N] = vectors[row_N, other_N]
    swapped_NC[row_N, other_N] = vectors[row_N, top_N]
    return swapped_NC
