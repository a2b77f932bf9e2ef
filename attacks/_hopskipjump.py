"""HopSkipJump: how far a record lies from the boundary of a service that tells only labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Effort", "Found", "hop_skip_jump", "most_queries", "num_samples", "search_steps"]

# The constants of the library the label-only attacks were published with. Those of the authors'
# code, 1/d and d^-1.5, have the same ratio, but for d in the thousands the first is lost in float32
# near the boundary, and for small d the second is no precision at all.
_RADIUS = 0.01  # of the sphere a gradient is estimated on, over the distance before projection
_PRECISION = 0.01  # of a binary search, over the square root of the number of features
_FIRST_RADIUS = 0.1  # of the first sphere, over the width of the clip range

# A gradient estimate holds at once 16 MB of float32, and asks for so many labels in one call.
_NUMBERS_AT_ONCE = 2**22
_ROWS_AT_ONCE = 2**14

# Rows [n] of the records in question and the number of the attempt, to points [n, D].
Start = Callable[[NDArray[np.int64], int], NDArray[Any]]


@dataclass(frozen=True)
class Effort:
    """How much is asked.

    Attributes:
        max_iter: T, gradient steps.
        init_eval: B_0; step t asks min(B_0 sqrt(t), max_eval) labels for its gradient.
        max_eval: most labels a gradient.
        num_starts: attempts to find a first point with another label.
        repeats: labels a single point is judged by; the majority counts, a tie is no other label.
            A gradient's points are asked once each, as it averages over them already.
    """

    max_iter: int
    init_eval: int
    max_eval: int
    num_starts: int
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class Found:
    """The nearest points with another label.

    Attributes:
        distance: float64 [N], L2, infinite where no such point was found.
        point: float32 [N, D], the record itself where none was found.
        num_queries: int64 [N], rows asked about each record.
    """

    distance: NDArray[np.float64]
    point: NDArray[np.float32]
    num_queries: NDArray[np.int64]


def num_samples(effort: Effort, iteration: int) -> int:
    """B_t: how many labels the gradient of step t = 1, 2, ... is estimated from."""
    return min(int(effort.init_eval * math.sqrt(iteration)), effort.max_eval)


def search_steps(num_features: int) -> int:
    """How often a binary search halves, and how often at most a step."""
    return math.ceil(math.log2(math.sqrt(num_features) / _PRECISION))


def most_queries(effort: Effort, num_features: int) -> int:
    """The most that is asked about one record; less if starts or steps succeed sooner."""
    steps = search_steps(num_features)
    gradients = sum(num_samples(effort, t) for t in range(1, effort.max_iter + 1))
    single = effort.num_starts + steps + effort.max_iter * 2 * steps
    return gradients + effort.repeats * single


def hop_skip_jump(
    label_of: Callable[[NDArray[Any]], NDArray[np.int64]],
    x: NDArray[Any],
    y: NDArray[np.int64],
    start: Start,
    generators: Sequence[np.random.Generator],
    effort: Effort,
    clip: tuple[float, float] | None,
) -> Found:
    """Walk along the decision boundary to where it is nearest to each record.

    All records advance in lock-step and their points are asked about together, but each draws from
    its own generator and none looks at another. Of the boundary points a record passes the nearest
    counts, not the last.

    Args:
        label_of: the service; asked with float32 [M, ...] like `x`.
        x: [N, ...] records. Not modified.
        y: [N] their labels, which the service is taken to give them.
        start: proposes first points.
        generators: N, for the directions; they are advanced.
        effort: how much may be asked.
        clip: lowest and highest value of a feature, or None. Without, the first sphere is as large
            as the later ones, for want of a range.

    Source: Chen, Jordan & Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based
        Attack", S&P 2020, algorithms 1 (binary search) and 2, untargeted, L2: gradient estimate
        with the baseline subtracted, step size dist / sqrt(t) halved until the label is another.
        Halvings end with the precision of the binary search, where the authors' code may go on for
        ever; the point then stays where it is.
    """
    x_ND = np.array(x, dtype=np.float32).reshape(len(x), math.prod(x.shape[1:]))
    steps = search_steps(x_ND.shape[1])
    oracle = _Oracle(label_of, y, x.shape[1:], effort.repeats)
    distance_N, point_ND = np.full(len(x), np.inf), x_ND.copy()
    rows, point = _started(oracle, start, effort.num_starts, x_ND)
    origin, drawn_by = x_ND[rows], [generators[row] for row in rows]
    reach = _distance(point, origin)
    point = _projected(oracle, origin, point, rows, steps)
    distance_N[rows], point_ND[rows] = _distance(point, origin), point
    for iteration in range(1, effort.max_iter + 1 if len(rows) else 1):
        if iteration == 1 and clip is not None:
            radius = np.full(len(rows), _FIRST_RADIUS * (clip[1] - clip[0]))
        else:
            radius = _RADIUS * reach
        num = num_samples(effort, iteration)
        direction = _direction(oracle, point, rows, drawn_by, radius, num, clip)
        size = _distance(point, origin) / math.sqrt(iteration)
        point = _stepped(oracle, point, rows, direction, size, steps, clip)
        reach = _distance(point, origin)
        point = _projected(oracle, origin, point, rows, steps)
        distance = _distance(point, origin)
        nearer = distance < distance_N[rows]
        distance_N[rows[nearer]], point_ND[rows[nearer]] = distance[nearer], point[nearer]
    return Found(distance_N, point_ND, oracle.num_queries)


class _Oracle:
    """Says whether points have another label than the record they belong to, and counts."""

    def __init__(
        self,
        label_of: Callable[[NDArray[Any]], NDArray[np.int64]],
        y: NDArray[np.int64],
        shape: tuple[int, ...],
        repeats: int,
    ) -> None:
        self._label_of, self._y, self._shape, self._repeats = label_of, y, shape, repeats
        self.num_queries = np.zeros(len(y), dtype=np.int64)

    def once(self, points: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Bool [M] for points [M, D] of records `rows` [M]."""
        if not len(points):
            return np.zeros(0, dtype=np.bool_)
        self.num_queries += np.bincount(rows, minlength=len(self._y))
        return np.asarray(self._label_of(points.reshape(-1, *self._shape)) != self._y[rows])

    def majority(self, points: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The same by the majority of `repeats` labels each."""
        votes = np.zeros(len(points), dtype=np.int64)
        for _ in range(self._repeats):
            votes += self.once(points, rows)
        return 2 * votes > self._repeats


def _started(
    oracle: _Oracle, start: Start, num_starts: int, x_ND: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows [n] for which a point with another label was found, and those points [n, D]."""
    point_ND = np.empty_like(x_ND)
    rows = np.arange(len(x_ND))
    for attempt in range(num_starts):
        if not len(rows):
            break
        point = np.asarray(start(rows, attempt), dtype=np.float32).reshape(len(rows), -1)
        differs = oracle.majority(point, rows)
        point_ND[rows[differs]] = point[differs]
        rows = rows[~differs]
    found = np.setdiff1d(np.arange(len(x_ND)), rows, assume_unique=True)
    return found, point_ND[found]


def _projected(
    oracle: _Oracle,
    origin: NDArray[np.float32],
    point: NDArray[np.float32],
    rows: NDArray[np.int64],
    steps: int,
) -> NDArray[np.float32]:
    """Where the way from each record to its point leaves the label, on the far side."""
    low, high = np.zeros(len(rows)), np.ones(len(rows))
    for _ in range(steps):
        middle = (low + high) / 2
        differs = oracle.majority(_between(origin, point, middle), rows)
        low, high = np.where(differs, low, middle), np.where(differs, middle, high)
    return _between(origin, point, high)


def _between(
    origin: NDArray[np.float32], point: NDArray[np.float32], share: NDArray[np.float64]
) -> NDArray[np.float32]:
    return (origin * (1 - share[:, None]) + point * share[:, None]).astype(np.float32)


def _direction(
    oracle: _Oracle,
    point: NDArray[np.float32],
    rows: NDArray[np.int64],
    generators: Sequence[np.random.Generator],
    radius: NDArray[np.float64],
    num: int,
    clip: tuple[float, float] | None,
) -> NDArray[np.float64]:
    """Unit vectors [n, D] towards other labels, estimated from `num` points on a sphere each."""
    dim = point.shape[1]
    # How a record's points are cut into pieces must not depend on the other records.
    most = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // dim))
    piece = min(num, most)
    block = max(1, most // piece)
    radius32 = np.maximum(radius, np.finfo(np.float32).tiny).astype(np.float32)
    direction = np.empty((len(rows), dim))
    for first in range(0, len(rows), block):
        part = slice(first, first + block)
        centre, r = point[part, None], radius32[part, None, None]
        signed, plain = np.zeros((len(centre), dim)), np.zeros((len(centre), dim))
        total = np.zeros((len(centre), 1))
        for done in range(0, num, piece):
            size = min(piece, num - done)
            v = np.stack(
                [g.standard_normal((size, dim), dtype=np.float32) for g in generators[part]]
            )
            v /= np.linalg.norm(v, axis=2, keepdims=True)
            asked = centre + r * v
            if clip is not None:
                np.clip(asked, *clip, out=asked)
            # What was asked, which clipping and rounding have moved.
            v = (asked - centre) / r
            differs = oracle.once(asked.reshape(-1, dim), np.repeat(rows[part], size))
            sign = (2 * differs.reshape(-1, 1, size) - 1).astype(np.float32)
            signed += (sign @ v)[:, 0]
            plain += v.sum(axis=1)
            total += sign.sum(axis=2)
        # Less the mean sign, as unbalanced signs add the noise of `plain`; where all are alike
        # nothing would be left.
        mean = total / num
        direction[part] = np.where(np.abs(mean) == 1, signed, signed - mean * plain)
    norm = np.linalg.norm(direction, axis=1, keepdims=True)
    return np.asarray(direction / np.maximum(norm, np.finfo(np.float64).tiny))


def _stepped(
    oracle: _Oracle,
    point: NDArray[np.float32],
    rows: NDArray[np.int64],
    direction: NDArray[np.float64],
    size: NDArray[np.float64],
    steps: int,
    clip: tuple[float, float] | None,
) -> NDArray[np.float32]:
    """The points after the largest step that leaves them another label.

    Tried are `size` [n] and its halves, `steps` in all; where none does, points stay as they were.
    """
    stepped, pending = point.copy(), np.arange(len(rows))
    for halving in range(steps):
        tried = point[pending] + (size[pending] / 2**halving)[:, None] * direction[pending]
        if clip is not None:
            np.clip(tried, *clip, out=tried)
        tried32 = tried.astype(np.float32)
        differs = oracle.majority(tried32, rows[pending])
        stepped[pending[differs]] = tried32[differs]
        pending = pending[~differs]
    return stepped


def _distance(point: NDArray[np.float32], origin: NDArray[np.float32]) -> NDArray[np.float64]:
    """L2 between rows, in double precision."""
    return np.asarray(np.linalg.norm(point.astype(np.float64) - origin, axis=1))
