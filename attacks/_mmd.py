"""Maximum mean discrepancy of two sets, and moving records between them one at a time.

A move changes one row and one column of the kernel matrix, so the distance after it follows from
sums kept over the sets; nothing is summed anew. Many pairs of sets ("batches") are worked on at
once.

Source: Hui et al., "Practical Blind Membership Inference Attack via Differential Comparisons",
    NDSS 2021, differential comparison in one and in both directions; kernel, floor and the order
    of moves as in the public code.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOOR", "SIGMAS", "distances_without", "exchanged", "kernel", "squared_mmd", "survived"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Sum = Floats | np.float64

SIGMAS = (
    *(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0),
    *(20.0, 25.0, 30.0, 35.0, 100.0, 1e3, 1e4, 1e5, 1e6),
)
FLOOR = 1e-4
# A distance must grow by more than rounding for a move, or two equal records decide by place.
_ROUNDING = 1e-12


def kernel(a: Floats, b: Floats, sigmas: Sequence[float] = SIGMAS) -> Floats:
    """Sum of Gaussian kernels: sum over sigma of exp(-|a - b|^2 / (2 sigma)).

    Sigma is not squared, as in the public code.

    Args:
        a: [..., N, F].
        b: [..., M, F], leading axes as those of `a` or broadcast with them.
        sigmas: widths, above 0.

    Returns:
        [..., N, M], each in [0, number of sigmas]; positive semi-definite for a = b.
    """
    # Direct differences: the expanded square loses what tells saturated confidences apart.
    square = np.zeros(())
    for feature in range(a.shape[-1]):
        square = square + (a[..., :, None, feature] - b[..., None, :, feature]) ** 2
    total = np.zeros_like(square)
    for sigma in sigmas:
        total += np.exp(square / (-2.0 * sigma))
    return total


def squared_mmd(a: Floats, b: Floats, sigmas: Sequence[float] = SIGMAS) -> float:
    """Biased estimate of the squared MMD of two sets [N, F] and [M, F], without a floor."""
    return float(
        kernel(a, a, sigmas).mean() + kernel(b, b, sigmas).mean() - 2 * kernel(a, b, sigmas).mean()
    )


def _mmd(sum_pp: Floats, num_p: Floats, sum_qq: Sum, num_q: Sum, sum_pq: Floats) -> Floats:
    """Squared MMD from sums of kernel values; an empty set counts as one record."""
    p, q = np.maximum(num_p, 1.0), np.maximum(num_q, 1.0)
    result: Floats = sum_pp / p**2 + sum_qq / q**2 - 2.0 * sum_pq / (p * q)
    return result


def distances_without(
    inner: Floats, cross: Floats, other_sum: float, num_other: int, member: Bools
) -> tuple[Floats, Floats]:
    """Squared MMD of the members and another set, as it is and after each record's move to it.

    Args:
        inner: [S, N, N] kernel values among the records of each batch.
        cross: [S, N] sums of kernel values of a record with the other set.
        other_sum: sum of all kernel values among the other set.
        num_other: how many it has.
        member: [S, N].

    Returns:
        Before any move [S]; after the move of record i alone [S, N], of meaning for members that
        are not the last.
    """
    member_SN = member.astype(np.float64)
    num_S1 = member_SN.sum(axis=1, keepdims=True)
    row_SN = np.einsum("snm,sm->sn", inner, member_SN)
    own_SN = np.einsum("snn->sn", inner)
    within_S1 = (member_SN * row_SN).sum(axis=1, keepdims=True)
    across_S1 = (member_SN * cross).sum(axis=1, keepdims=True)
    num, total = np.float64(num_other), np.float64(other_sum)
    before_S1 = _mmd(within_S1, num_S1, total, num, across_S1)
    after_SN = _mmd(
        within_S1 - 2.0 * row_SN + own_SN,
        num_S1 - 1.0,
        total + 2.0 * cross + own_SN,
        num + 1.0,
        across_S1 - cross + row_SN - own_SN,
    )
    return before_S1[:, 0], after_SN


def survived(
    feature: Floats,
    present: Bools,
    other: Floats,
    *,
    sigmas: Sequence[float] = SIGMAS,
    floor: float = FLOOR,
) -> NDArray[np.int64]:
    """How many sweeps each record stays with the members (single-directional comparison).

    All are members at first. A sweep tries each member's move to the other set, by itself, and
    afterwards takes from the members all whose move makes the distance larger; the other set stays
    as it is. Sweeps go on until nobody leaves; all may, but a single member does not.

    Args:
        feature: [S, N, F] records of S batches.
        present: [S, N], False where a batch has fewer than N records.
        other: [M, F] non-members, M > 0.
        sigmas: of the kernel.
        floor: smallest distance; what lies below counts as it.

    Returns:
        int64 [S, N]: of who left, the sweeps before; of who did not, N, which is more than anybody
        can survive and leave; 0 where nobody is.
    """
    width = feature.shape[1]
    inner_SNN = kernel(feature, feature, sigmas)
    cross_SN = kernel(feature, other, sigmas).sum(axis=-1)
    other_sum = float(kernel(other, other, sigmas).sum())
    member_SN = present.copy()
    survived_SN = np.where(present, width, 0)
    for sweep in range(width):
        before_S, after_SN = distances_without(
            inner_SNN, cross_SN, other_sum, len(other), member_SN
        )
        limit_S = np.maximum(before_S, floor) + _ROUNDING
        leaves_SN = member_SN & (np.maximum(after_SN, floor) > limit_S[:, None])
        leaves_SN &= member_SN.sum(axis=1, keepdims=True) > 1
        if not leaves_SN.any():
            break
        survived_SN[leaves_SN] = sweep
        member_SN &= ~leaves_SN
    return survived_SN


def exchanged(
    feature: Floats,
    present: Bools,
    member: Bools,
    *,
    sigmas: Sequence[float] = SIGMAS,
    floor: float = FLOOR,
) -> tuple[Bools, Floats]:
    """Members after moves in both directions (bi-directional comparison).

    In turn each non-member is tried among the members and then each member among the non-members;
    a move that makes the distance of the two sets larger is kept at once. Passes go on until one
    keeps nothing. Neither set is emptied. If in the end the sets are not farther apart than
    `floor`, or one was empty from the start, there is one cluster, and all are members.

    The public code also keeps moves that leave the distance as it is, and then moves equal
    records to and fro for ever.

    Args:
        feature: [S, N, F] records of S batches.
        present: [S, N], False where a batch has fewer than N records.
        member: [S, N] who is a member at first.
        sigmas: of the kernel.
        floor: smallest distance; what lies below counts as it.

    Returns:
        Members bool [S, N], and the squared MMD [S] of the sets when the moves ended, not below
        `floor`, which also stands for batches with an empty set.
    """
    inner_SNN = kernel(feature, feature, sigmas)
    side_SN = member & present
    two_sided_S = side_SN.any(axis=1) & (present & ~side_SN).any(axis=1)
    distance_S = np.full(len(feature), floor)
    moved = bool(two_sided_S.any())
    while moved:
        # Summed afresh in every pass, so that rounding does not pile up over thousands of moves.
        sides = _Sides(inner_SNN, present, side_SN, floor)
        moved = False
        for goal in (True, False):
            for record in range(feature.shape[1]):
                side_S = sides.member_SN[:, record]
                able_S = two_sided_S & present[:, record] & (side_S != goal)
                if able_S.any() and sides.move(record, able_S, goal).any():
                    moved = True
        side_SN, distance_S = sides.member_SN, np.where(two_sided_S, sides.distance_S, floor)
    one_cluster_S = ~two_sided_S | (distance_S <= floor)
    return present & (side_SN | one_cluster_S[:, None]), distance_S


class _Sides:
    """Members and non-members of each batch with the sums of their kernel values."""

    def __init__(self, inner: Floats, present: Bools, member: Bools, floor: float) -> None:
        self.inner_SNN, self.floor = inner, floor
        self.member_SN = member.copy()
        share = {True: member.astype(np.float64), False: (present & ~member).astype(np.float64)}
        # By side: of each record with it, within it, and its size.
        self.row_SN = {s: np.einsum("snm,sm->sn", inner, share[s]) for s in share}
        self.within_S = {s: (share[s] * self.row_SN[s]).sum(axis=1) for s in share}
        self.num_S = {s: share[s].sum(axis=1) for s in share}
        self.across_S = (share[True] * self.row_SN[False]).sum(axis=1)
        self.distance_S = self._distance(self.within_S, self.num_S, self.across_S)

    def _distance(
        self, within_S: dict[bool, Floats], num_S: dict[bool, Floats], across_S: Floats
    ) -> Floats:
        found = _mmd(within_S[True], num_S[True], within_S[False], num_S[False], across_S)
        return np.maximum(found, self.floor)

    def move(self, record: int, able: Bools, goal: bool) -> Bools:
        """Move the record to the side `goal` in batches that are `able` and gain; which did."""
        row_from_S, row_to_S = self.row_SN[not goal][:, record], self.row_SN[goal][:, record]
        own_S = self.inner_SNN[:, record, record]
        within_S = {
            goal: self.within_S[goal] + 2.0 * row_to_S + own_S,
            not goal: self.within_S[not goal] - 2.0 * row_from_S + own_S,
        }
        num_S = {goal: self.num_S[goal] + 1.0, not goal: self.num_S[not goal] - 1.0}
        across_S = self.across_S + row_from_S - own_S - row_to_S
        distance_S = self._distance(within_S, num_S, across_S)
        moves_S: Bools = able & (self.num_S[not goal] > 1.0)
        moves_S &= distance_S > self.distance_S + _ROUNDING
        if moves_S.any():
            for side in (True, False):
                self.within_S[side] = np.where(moves_S, within_S[side], self.within_S[side])
                self.num_S[side] = np.where(moves_S, num_S[side], self.num_S[side])
            self.across_S = np.where(moves_S, across_S, self.across_S)
            self.distance_S = np.where(moves_S, distance_S, self.distance_S)
            change_SN = self.inner_SNN[moves_S, record]
            self.row_SN[goal][moves_S] += change_SN
            self.row_SN[not goal][moves_S] -= change_SN
            self.member_SN[moves_S, record] = goal
        return moves_S
