"""Points of a search against each other: who dominates, how good a front is, which to take.

Values are [N, M]: a row a point, a column an objective, each with a direction of its own. Inside,
every objective is a loss, the smaller the better.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator._losses import Direction, Floats, as_losses, on_front, scaled_to, sign, volume

__all__ = [
    "RULES",
    "WORST",
    "Direction",
    "choose",
    "dominates",
    "dominates_by",
    "hypervolume",
    "nondominated",
    "reference_point",
    "spread",
]

RULES: Mapping[str, str] = {
    "knee": "farthest below the line through the front's two ends, objectives scaled; with fewer "
    "than three points, or where the front bends outwards, as ideal",
    "least_leak": "best in the first objective; ties by the others in their order",
    "most_accurate": "best in the accuracy objective; ties by the others in their order",
    "ideal": "nearest to the point that is best in every objective at once, objectives scaled; "
    "ties by the first objective",
}  # how one point of a front is chosen, described

WORST: Mapping[tuple[str, Direction], float] = {
    ("attack_accuracy", "minimize"): 1.0,  # an attacker who is never wrong
    ("accuracy", "maximize"): 0.0,
    ("train_accuracy", "maximize"): 0.0,
    ("test_accuracy", "maximize"): 0.0,
}
"""What no point can be worse than, for the columns where that is known: volumes against it can be
compared between tables. A column that is not here is measured from the worst value seen."""

_DECIMALS = 12  # scaled distances that differ only further down are ties


def nondominated(values_NM: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    Args:
        values_NM: [N, M]. Equal points are all kept or all dropped.
        directions: [M].

    Returns:
        [N]. False in rows that have a NaN, which dominate nothing either.

    Raises:
        ValueError: another shape, or an unknown direction.
    """
    return on_front(as_losses(values_NM, directions))


def dominates(
    a_M: ArrayLike, b_M: ArrayLike, directions: Sequence[Direction], margin: float = 0.0
) -> bool:
    """Whether `a` is no worse than `b` anywhere, and better by more than `margin` somewhere.

    With margin 0 this is Pareto domination. A single large gain is enough, so this is about points
    that differ; the gate that gives up a trial asks `dominates_by`. False if either has a NaN.

    Args:
        a_M: [M].
        b_M: [M].
        directions: [M].
        margin: in the unit of the objectives, at least 0.

    Raises:
        ValueError: another shape, an unknown direction, or a margin below 0.
    """
    a, b = _pair(a_M, b_M, directions, margin)
    return bool((a <= b).all() and (a + margin < b).any())


def dominates_by(
    a_M: ArrayLike, b_M: ArrayLike, directions: Sequence[Direction], margin: float
) -> bool:
    """Whether `a` is better than `b` by more than `margin` in every objective.

    This is the gate of a search that prunes: stricter than `dominates`, as what is measured after
    a part of a trial is noisy, and noise in one objective must not end it. False if either has a
    NaN. Arguments and errors as of `dominates`.
    """
    a, b = _pair(a_M, b_M, directions, margin)
    return bool((a + margin < b).all())


def hypervolume(
    values_NM: ArrayLike, directions: Sequence[Direction], reference_M: ArrayLike
) -> float:
    """The exact volume of what the points dominate, up to a reference point.

    A sweep for M = 2, slices along the last objective for more: instant for some hundred points of
    three objectives, seconds for four.

    Args:
        values_NM: [N, M]. Rows with a NaN, or not better than the reference in all objectives, add
            nothing.
        directions: [M].
        reference_M: [M], finite.

    Returns:
        0 for no points; in the product of the objectives' units.

    Raises:
        ValueError: another shape, an unknown direction, a reference that is not finite, or a point
            that is infinitely good.
    """
    losses = as_losses(values_NM, directions)
    reference = _point(reference_M, directions)
    if not np.isfinite(reference).all():
        raise ValueError(
            f"reference {np.asarray(reference_M).tolist()} is not finite; give a finite worst value"
        )
    if np.isneginf(losses).any():
        raise ValueError("a point is infinitely good; its volume is no number, so leave it out")
    gains = reference - losses[(losses < reference).all(axis=1)]
    return volume(gains)


def reference_point(
    columns: Sequence[str], directions: Sequence[Direction], values_NM: ArrayLike
) -> Floats:
    """Where the volumes of several fronts are measured from: `WORST`, else the worst value seen.

    Args:
        columns: [M], the names of the objectives.
        directions: [M].
        values_NM: [N, M], the points of *all* fronts compared; what is not finite is left out.

    Returns:
        [M]. A point that is the worst in a column missing in `WORST` adds no volume.

    Raises:
        ValueError: another shape, an unknown direction, or a column of which nothing is known.
    """
    losses = as_losses(values_NM, directions)
    if len(columns) != len(directions):
        raise ValueError(f"{len(columns)} columns have {len(directions)} directions; name each")
    worst = np.empty(len(columns))
    for m, (column, direction) in enumerate(zip(columns, directions, strict=True)):
        seen = losses[np.isfinite(losses[:, m]), m]
        if (column, direction) in WORST:
            worst[m] = WORST[column, direction]
        elif len(seen):
            worst[m] = seen.max() * sign(direction)
        else:
            raise ValueError(
                f"no value of {column!r} to take the worst of; a worst value is known only of "
                f"{', '.join(f'{name} ({way}d)' for name, way in WORST)}"
            )
    return worst


def choose(
    values_NM: ArrayLike,
    directions: Sequence[Direction],
    rule: str,
    feasible_N: ArrayLike | None = None,
    *,
    accuracy: int = -1,
) -> int | None:
    """One point of the front of the feasible points; what is not feasible dominates nothing.

    Objectives are scaled so that on the front 0 is the best value and 1 the worst. A knee is looked
    for with two objectives; with another number of them, fewer than three different points, or no
    point below the line (the front bends outwards), `knee` is `ideal`.

    Args:
        values_NM: [N, M]. Rows that are not finite are not chosen.
        directions: [M].
        rule: one of `RULES`.
        feasible_N: [N] bool; all if None.
        accuracy: which objective `most_accurate` is about; counts from the end if negative.

    Returns:
        The row, the lowest of those that tie, or None if no point is feasible.

    Raises:
        ValueError: another shape, an unknown direction or rule, or no such objective.
    """
    losses = as_losses(values_NM, directions)
    if rule not in RULES:
        raise ValueError(f"no rule is named {rule!r}; there are {', '.join(RULES)}")
    num = len(directions)
    if not -num <= accuracy < num:
        raise ValueError(f"accuracy: {accuracy} is no objective; there are {num}, counted from 0")
    rows = _choosable(losses, feasible_N)
    if not len(rows):
        return None
    return int(rows[_CHOICES[rule](losses[rows], accuracy % num)])


def spread(
    values_NM: ArrayLike,
    directions: Sequence[Direction],
    num: int,
    keep: Sequence[int] = (),
    feasible_N: ArrayLike | None = None,
) -> list[int]:
    """At most `num` points that stand for the front, evenly along it.

    Starts from `keep`, or else from the best in the first objective, and adds the point of the
    front that is farthest from all taken, objectives scaled as in `choose`.

    Args:
        values_NM: [N, M]. Rows that are not finite are not added.
        directions: [M].
        num: how many at most; fewer if the front has fewer different points.
        keep: rows that are in any case among them, on the front or not.
        feasible_N: [N] bool; all if None.

    Returns:
        Rows, best in the first objective first, ties by the lowest row. No two are equal points,
        but for those in `keep`.

    Raises:
        ValueError: another shape, an unknown direction, more to keep than `num`, or no such row.
    """
    losses = as_losses(values_NM, directions)
    taken = list(dict.fromkeys(int(row) for row in keep))
    if num < len(taken):
        raise ValueError(f"keep: {len(taken)} points are kept, but num is {num}; raise num")
    for row in taken:
        if not 0 <= row < len(losses):
            raise ValueError(f"keep: {row} is no row; there are {len(losses)}, counted from 0")
    rows = _choosable(losses, feasible_N)
    if len(rows):
        scaled = scaled_to(losses, losses[rows])
        if not taken and num:
            taken.append(int(rows[_lexicographic(losses[rows], 0)]))
        while len(taken) < num:
            known = scaled[[row for row in taken if np.isfinite(scaled[row]).all()]]
            gaps = np.linalg.norm(scaled[rows][:, None] - known, axis=2)
            nearest = np.round(gaps.min(axis=1, initial=np.inf), _DECIMALS)
            if nearest.max() <= 0:
                break
            taken.append(int(rows[nearest.argmax()]))
    return sorted(taken, key=lambda row: (np.nan_to_num(losses[row, 0], nan=np.inf), row))


def _pair(
    a_M: ArrayLike, b_M: ArrayLike, directions: Sequence[Direction], margin: float
) -> tuple[Floats, Floats]:
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; give 0 or more")
    return _point(a_M, directions), _point(b_M, directions)


def _point(values_M: ArrayLike, directions: Sequence[Direction]) -> Floats:
    return np.asarray(as_losses(np.asarray(values_M, dtype=np.float64)[None], directions)[0])


def _choosable(losses: Floats, feasible_N: ArrayLike | None) -> NDArray[np.intp]:
    usable = np.asarray(np.isfinite(losses).all(axis=1))
    if feasible_N is not None:
        feasible = np.asarray(feasible_N, dtype=bool)
        if feasible.shape != usable.shape:
            raise ValueError(
                f"feasible has shape {list(feasible.shape)}, but there are {len(usable)} points"
            )
        usable &= feasible
    rows = np.flatnonzero(usable)
    return np.asarray(rows[on_front(losses[rows])])


def _lexicographic(front: Floats, first: int) -> int:
    order = [first, *(m for m in range(front.shape[1]) if m != first)]
    return int(np.lexsort(front[:, order[::-1]].T)[0])  # stable: the lowest of those that tie


def _ideal(front: Floats, _accuracy: int) -> int:
    distance = np.round(np.linalg.norm(scaled_to(front, front), axis=1), _DECIMALS)
    # The two ends of a front always tie: then the first objective decides.
    nearest = np.flatnonzero(distance == distance.min())
    return int(nearest[_lexicographic(front[nearest], 0)])


def _knee(front: Floats, accuracy: int) -> int:
    # The ends of a scaled front of two objectives are (0, 1) and (1, 0).
    below = np.round(1.0 - scaled_to(front, front).sum(axis=1), _DECIMALS)
    few = len(np.unique(front, axis=0)) < 3
    if front.shape[1] != 2 or few or below.max() <= 0:
        return _ideal(front, accuracy)
    return int(below.argmax())


_CHOICES: Mapping[str, Callable[[Floats, int], int]] = {
    "knee": _knee,
    "least_leak": lambda front, _: _lexicographic(front, 0),
    "most_accurate": _lexicographic,
    "ideal": _ideal,
}
