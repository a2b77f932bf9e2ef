"""Arithmetic of duplicate groups, seeded orders and class counts, behind splits and invariants."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


def take(order: Rows, rows_of_group: Rows, num: int) -> tuple[Rows, Rows]:
    """The first groups of `order` that fit into `num` rows, and the others, both in order.

    A group too large for the room left is passed over for a later, smaller one.
    """
    size = rows_of_group[order]
    taken = np.zeros(len(order), dtype=bool)
    # Each pass ends at a group too large for what is then left, so sizes shrink from pass to pass.
    while len(fitting := np.flatnonzero(~taken & (size <= num))):
        filled = np.cumsum(size[fitting])
        num_taken = int(np.searchsorted(filled, num, side="right"))
        taken[fitting[:num_taken]] = True
        num -= int(filled[num_taken - 1])
    return order[taken], order[~taken]


def divide(order: Rows, rows_of_group: Rows, sizes: list[int]) -> list[Rows]:
    """Groups for each part; the last part takes whatever the others leave."""
    parts = []
    for num in sizes[:-1]:
        part, order = take(order, rows_of_group, num)
        parts.append(part)
    return [*parts, order]


def canonical(groups: NDArray[np.integer[Any]]) -> tuple[Rows, Rows, Rows]:
    """Groups numbered by first appearance [n], their first rows [G] and their sizes [G].

    Numbering by appearance makes a split depend on which rows are equal, not on how the
    dataset's hash happens to name them.
    """
    _, first, inverse, counts = np.unique(
        np.asarray(groups), return_index=True, return_inverse=True, return_counts=True
    )
    by_appearance = np.argsort(first)
    number = np.empty_like(by_appearance)
    number[by_appearance] = np.arange(len(first))
    return number[inverse], first[by_appearance], counts[by_appearance]


def permutation(num: int, seed: int, purpose: str) -> Rows:
    """A random order from a stream of its own per (seed, purpose), as methods.md 0.4 asks."""
    digest = hashlib.sha256(f"data.split/{int(seed)}/{purpose}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest, "big"))
    # NumPy keeps raw bits stable between versions, `Generator.permutation` it does not.
    return np.argsort(bits.random_raw(num), kind="stable")


def class_counts(y: NDArray[np.integer[Any]], rows: Rows, is_member: Flags) -> NDArray[np.int64]:
    """Records per side and class [2, C]; side 1 are the members."""
    num = int(y.max()) + 1
    return np.stack([np.bincount(y[rows[is_member == side]], minlength=num) for side in (0, 1)])


def chi2_p(count_2C: NDArray[np.int64]) -> float:
    """p-value of Pearson's chi-squared test of class against membership; 1 if nothing to test."""
    seen = count_2C[:, count_2C.any(axis=0)]
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / max(seen.sum(), 1)
    if seen.shape[1] < 2 or not expected.all():
        return 1.0
    return float(chdtrc(seen.shape[1] - 1, np.sum((seen - expected) ** 2 / expected)))
