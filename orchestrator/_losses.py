"""Objectives as losses, the smaller the better: what is behind `orchestrator.front`."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Direction", "Floats", "as_losses", "on_front", "scaled_to", "sign", "volume"]

Direction = Literal["minimize", "maximize"]
Floats = NDArray[np.float64]


def as_losses(values_NM: ArrayLike, directions: Sequence[Direction]) -> Floats:
    """Values [N, M] as losses [N, M]; raises ValueError for another shape or direction."""
    values = np.asarray(values_NM, dtype=np.float64)
    if values.size == 0 and values.ndim < 2:
        values = values.reshape(0, len(directions))
    if values.ndim != 2 or values.shape[1] != len(directions) or not directions:
        raise ValueError(
            f"values have shape {list(values.shape)}, which is not [points, objectives] with "
            f"{len(directions)} objectives; give a column for each direction"
        )
    return np.asarray(values * np.array([sign(direction) for direction in directions]))


def sign(direction: str) -> float:
    """What turns a value into a loss, and back; raises ValueError for an unknown direction."""
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"direction {direction!r} is neither 'minimize' nor 'maximize'")
    return 1.0 if direction == "minimize" else -1.0


def on_front(losses: Floats) -> NDArray[np.bool_]:
    """Which rows no other row dominates; see `orchestrator.front.nondominated`."""
    kept = np.asarray(~np.isnan(losses).any(axis=1))
    for row in np.flatnonzero(kept):  # by row: a search has thousands of points, and N x N is large
        no_worse = (losses <= losses[row]).all(axis=1)  # NaN compares false
        kept[row] = not (no_worse & (losses < losses[row]).any(axis=1)).any()
    return kept


def scaled_to(losses: Floats, front: Floats) -> Floats:
    """0 is the best on the front and 1 the worst; an objective without a range is 0 on it."""
    low = front.min(axis=0)
    wide = front.max(axis=0) - low
    return np.asarray((losses - low) / np.where(wide > 0, wide, 1.0))


def volume(gains: Floats) -> float:
    """The volume of the union of the boxes between the origin and each row, all above 0."""
    if not len(gains):
        return 0.0
    if gains.shape[1] == 1:
        return float(gains.max())
    if gains.shape[1] == 2:
        wide, high = gains[np.argsort(-gains[:, 0], kind="stable")].T
        top = np.maximum.accumulate(high)
        return float((wide * np.diff(top, prepend=0.0)).sum())
    gains = np.unique(gains[on_front(-gains)], axis=0)
    order = np.argsort(-gains[:, -1], kind="stable")
    gains, depth = gains[order, :-1], gains[order, -1]
    thick = depth - np.append(depth[1:], 0.0)
    return sum(float(thick[n]) * volume(gains[: n + 1]) for n in np.flatnonzero(thick))
