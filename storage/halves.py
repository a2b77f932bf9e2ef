"""Which half of a pool each shadow model trains on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage._groups import Flags, permutation

__all__ = ["half_split"]


def half_split(rows: NDArray[np.integer[Any]], num_models: int, *, seed: int) -> Flags:
    """Which records train which shadow model: models 2i and 2i+1 train on complementary halves.

    A record is in for exactly half of an even number of models. The first k models are the same
    whatever `num_models`, and a record's column the same wherever it stands in `rows`.

    Args:
        rows: [N] distinct row numbers of the pool. The even model of a pair gets N // 2.
        num_models: at least 1.
        seed: any integer.

    Returns:
        bool [num_models, N].

    Raises:
        ValueError: for fewer than two or repeated rows, or no models.

    Source: Carlini et al. 2022, section V; methods.md 2.4.
    """
    num = len(rows)
    if num < 2 or len(np.unique(rows)) < num:
        raise ValueError(f"a half split needs 2 or more distinct rows, got {num} rows")
    if num_models < 1:
        raise ValueError(f"num_models is {num_models}; a half split needs at least 1")
    by_row = np.argsort(rows)
    in_KN = np.empty((num_models, num), dtype=bool)
    for k in range(num_models):
        half = np.zeros(num, dtype=bool)
        half[permutation(num, seed, f"shadow/{k // 2}")[: num // 2]] = True
        in_KN[k, by_row] = half ^ bool(k % 2)
    return in_KN
