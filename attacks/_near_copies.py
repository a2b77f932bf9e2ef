"""Near copies of records, and a service's answers about a record asked again or about them."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attacks._keyed import keyed_normal, keyed_uniform
from attacks.base import Classifier, Kind

__all__ = ["Over", "answers_about", "near_copies"]

# What is asked beside the record itself: the same again, or near copies.
Over = Literal["repeats", "neighbours"]

_GREY_LEVEL = np.float32(1 / 255)
_DEVIATION = 1e-3  # of the noise on continuous features
# Tells these draws from others an attack makes with its seed.
_PURPOSE = 612
# Numbers in the records, or in the answers about them, held at once.
_AT_ONCE = 2**22


def near_copies(x: NDArray[Any], num: int, kind: Kind, seed: int) -> NDArray[np.float32]:
    """Copies as near as records of the kind can be, drawn for each record by itself.

    Bits: one is flipped. Images: one value (a pixel of one channel) moves by 1/255, up or down,
    and inwards where it would leave [0, 1]. Continuous: every feature gets noise N(0, 1e-3^2).

    A record's copies have their bit or pixel in different places, as the same copy twice tells
    nothing new where noise is keyed by input. With more copies than places, each place serves
    equally often, give or take one.

    Args:
        x: [N, ...] records, D numbers each. Not modified.
        num: m, copies of each.
        kind: of the records.
        seed: of the attack; a record's copies depend on it and the record alone.

    Returns:
        float32 [m, N, ...].

    Source: methods.md section 6.12 c.
    """
    num_rows, num_features = len(x), int(np.prod(x.shape[1:]))
    flat_ND = np.asarray(x, dtype=np.float32).reshape(num_rows, num_features)
    if kind == "continuous":
        noise_NmD = _DEVIATION * keyed_normal(x, seed, _PURPOSE, (num, num_features))
        copies_mND = (flat_ND + noise_NmD.transpose(1, 0, 2)).astype(np.float32)
        return copies_mND.reshape(num, *x.shape)
    where_mN, up_mN = keyed_uniform(x, seed, _PURPOSE, (2, num)).transpose(1, 2, 0)
    place_mN = _places(where_mN, num_features)
    at = np.arange(num)[:, None], np.arange(num_rows), place_mN
    copies_mND = np.repeat(flat_ND[None], num, axis=0)
    value_mN = copies_mND[at]
    if kind == "binary":
        copies_mND[at] = 1 - value_mN
    else:
        step_mN = np.where(up_mN < 0.5, -_GREY_LEVEL, _GREY_LEVEL)
        moved_mN = value_mN + step_mN
        inside_mN = (moved_mN >= 0) & (moved_mN <= 1)
        copies_mND[at] = np.where(inside_mN, moved_mN, value_mN - step_mN)
    return copies_mND.reshape(num, *x.shape)


def _places(uniform_mN: NDArray[np.float64], num_features: int) -> NDArray[np.int64]:
    """A feature for each of m copies [m, N], none twice in any D in a row (Floyd's sampling)."""
    place_mN = np.empty(uniform_mN.shape, dtype=np.int64)
    for start in range(0, len(uniform_mN), num_features):
        uniform_kN = uniform_mN[start : start + num_features]
        place_kN = place_mN[start : start + num_features]
        first = num_features - len(uniform_kN)
        for i, uniform_N in enumerate(uniform_kN):
            last = first + i
            drawn_N = (uniform_N * (last + 1)).astype(np.int64)
            taken_N = (place_kN[:i] == drawn_N).any(axis=0)
            place_kN[i] = np.where(taken_N, last, drawn_N)
    return place_mN


def answers_about(
    query: Classifier,
    x: NDArray[Any],
    num: int,
    over: Over,
    *,
    kind: Kind,
    num_classes: int,
    seed: int,
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Ask `num` times about each record, in pieces of bounded memory.

    Args:
        query: costs exactly `num` queries a record.
        x: [N, ...] records.
        num: R, at least 1, the record itself included.
        over: whether the others are the record again, or its near copies.
        kind: of the records.
        num_classes: C; only bounds the pieces.
        seed: of the near copies.

    Yields:
        Which rows, and the answers about them: [R, n, C], or labels [R, n]. The first of each row
        is about the record itself.
    """
    step = max(1, _AT_ONCE // (num * max(num_classes, int(np.prod(x.shape[1:])))))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        asked = x[rows]
        if over == "repeats":
            others = np.repeat(asked[None], num - 1, axis=0)
        else:
            others = near_copies(asked, num - 1, kind, seed)
        together = np.concatenate([asked[None], others]).reshape(num * len(asked), *x.shape[1:])
        answers = query(together)
        yield rows, answers.reshape(num, len(asked), *answers.shape[1:])
