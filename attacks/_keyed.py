"""Random draws that belong to a record: the same whichever other records are asked about."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["keyed_normal", "keyed_uniform", "record_generators"]


def record_generators(x: NDArray[Any], seed: int, purpose: int = 0) -> list[np.random.Generator]:
    """One generator a record, seeded by a hash of the record, the seed and the purpose.

    A record's draws depend neither on the other records nor on their order. Exact duplicates (as
    float32, -0.0 being 0.0) share their draws, which is what makes their scores equal.

    Args:
        x: [N, ...] records, read as float32. Not modified.
        seed: of the attack; any integer.
        purpose: tells apart the draws one attack makes for different things; any integer.

    Returns:
        N generators in the order of the records; each call makes fresh ones.

    Raises:
        ValueError: if `x` has no axis of records.
    """
    if x.ndim == 0:
        raise ValueError("x is a single number; draws are keyed by record and need x [N, ...]")
    # Adding 0 turns -0.0, which equals 0.0 but has other bytes, into 0.0.
    bytes_of_x = np.ascontiguousarray(x, dtype="<f4") + np.float32(0)
    prefix = blake2b(f"{int(seed)} {int(purpose)} ".encode(), digest_size=16)
    generators = []
    for record in bytes_of_x:
        digest = prefix.copy()
        digest.update(record.tobytes())
        generators.append(np.random.default_rng(int.from_bytes(digest.digest(), "little")))
    return generators


def keyed_uniform(
    x: NDArray[Any], seed: int, purpose: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Uniform draws from [0, 1), float64 [N, *shape]; see `record_generators`."""
    return _drawn(x, seed, purpose, shape, lambda rng: rng.random(shape))


def keyed_normal(
    x: NDArray[Any], seed: int, purpose: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Standard normal draws, float64 [N, *shape]; see `record_generators`."""
    return _drawn(x, seed, purpose, shape, lambda rng: rng.standard_normal(shape))


def _drawn(
    x: NDArray[Any],
    seed: int,
    purpose: int,
    shape: tuple[int, ...],
    draw: Callable[[np.random.Generator], Any],
) -> NDArray[np.float64]:
    drawn = np.empty((len(x), *shape))
    for row, rng in enumerate(record_generators(x, seed, purpose)):
        drawn[row] = draw(rng)
    return drawn
