"""What is true of HopSkipJump, on boundaries whose distance is known."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks._hopskipjump import (
    Effort,
    Found,
    hop_skip_jump,
    most_queries,
    num_samples,
    search_steps,
)
from attacks._keyed import record_generators

CPU = Effort(max_iter=10, init_eval=100, max_eval=500, num_starts=100)
SMALL = Effort(max_iter=3, init_eval=10, max_eval=15, num_starts=20)


class Watched:
    """A service's labels, and the sizes of what it was asked."""

    def __init__(self, label_of: Callable[[Any], Any]) -> None:
        self.label_of, self.sizes = label_of, list[int]()
        self.lowest, self.highest = np.inf, -np.inf

    def __call__(self, x: NDArray[Any]) -> NDArray[np.int64]:
        assert x.dtype == np.float32
        assert len(x)
        self.sizes.append(len(x))
        self.lowest, self.highest = min(self.lowest, x.min()), max(self.highest, x.max())
        return np.asarray(self.label_of(x), dtype=np.int64)


class Linear:
    """argmax of W x + b, and how far each record is from each other class."""

    def __init__(self, num_classes: int, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.W, self.b = rng.normal(size=(num_classes, dim)), 0.3 * rng.normal(size=num_classes)
        self.x = rng.normal(size=(60, dim)).astype(np.float32)
        self.y = self(self.x)

    def __call__(self, x: Any) -> NDArray[np.int64]:
        return np.asarray((x.astype(np.float64) @ self.W.T + self.b).argmax(axis=1))

    def faces(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Distances [N, C] and the unit vectors [N, C, D] that way; infinite for the own class."""
        value = self.x @ self.W.T + self.b
        normal = self.W[None] - self.W[self.y][:, None]
        norm = np.linalg.norm(normal, axis=2)
        own = norm == 0
        norm[own] = 1.0
        distance = (np.take_along_axis(value, self.y[:, None], axis=1) - value) / norm
        return np.where(own, np.inf, distance), normal / norm[..., None]


def noise(x: Any, scale: float = 1.0, shift: float = 0.0) -> Callable[[Any, int], Any]:
    generators = record_generators(x, 0, 1)

    def start(rows: Any, attempt: int) -> Any:
        return np.stack([shift + scale * generators[r].standard_normal(x.shape[1:]) for r in rows])

    return start


def run(label_of: Any, x: Any, y: Any, effort: Effort, clip: Any = None, **options: Any) -> Found:
    start = options.get("start") or noise(x)
    return hop_skip_jump(label_of, x, y, start, record_generators(x, 0, 0), effort, clip)


@pytest.mark.parametrize("dim", [2, 10, 36])
def test_distance_to_a_plane_within_5_percent(dim: int) -> None:
    plane = Linear(2, dim)
    found = run(plane, plane.x, plane.y, CPU)
    ratio = found.distance / plane.faces()[0].min(axis=1)
    assert ratio.min() > 1 - 1e-5
    assert ratio.max() < 1.05


@pytest.mark.parametrize("num_classes", [3, 8])
def test_distance_to_the_nearest_of_several_planes_within_5_percent(num_classes: int) -> None:
    """Started just across the nearest; from elsewhere another face may hold the walk."""
    planes = Linear(num_classes, 12)
    distance, towards = planes.faces()
    nearest = distance.argmin(axis=1)
    rows = np.arange(len(nearest))
    aside = 0.1 * np.random.default_rng(0).normal(size=planes.x.shape)
    step = distance[rows, nearest][:, None] * (1.5 * towards[rows, nearest] + aside)
    beyond = planes.x + step
    found = run(planes, planes.x, planes.y, CPU, start=lambda rows, _: beyond[rows])
    ratio = found.distance / distance.min(axis=1)
    assert ratio.min() > 1 - 1e-5
    assert ratio.max() < 1.05


def test_started_anywhere_it_is_never_nearer_than_the_nearest_plane() -> None:
    planes = Linear(8, 12)
    ratio = run(planes, planes.x, planes.y, CPU).distance / planes.faces()[0].min(axis=1)
    assert ratio.min() > 1 - 1e-5
    assert np.median(ratio) < 1.05


def test_more_iterations_come_nearer() -> None:
    plane = Linear(2, 100)
    truth = plane.faces()[0].min(axis=1)
    error = [
        (run(plane, plane.x, plane.y, Effort(n, 100, 500, 20)).distance / truth).mean() - 1
        for n in (0, 3, 12)
    ]
    assert error[0] > 3 * error[1] > 9 * error[2]


def test_the_point_is_there_and_has_another_label() -> None:
    planes = Linear(5, 12)
    found = run(planes, planes.x, planes.y, SMALL)
    assert (planes(found.point) != planes.y).all()
    away = found.point.astype(np.float64) - planes.x
    np.testing.assert_allclose(np.linalg.norm(away, axis=1), found.distance, rtol=1e-12)


def curved(x: Any) -> Any:
    """Three classes with bent boundaries, for records [M, 2, 3]."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    outside = np.linalg.norm(flat - 0.5, axis=1) > 0.7
    return outside.astype(int) + (flat[:, 0] ** 2 + flat[:, 1] > 1.1)


def one_by_one(
    label_of: Any, x: Any, y: Any, start: Any, effort: Effort, clip: Any
) -> tuple[float, int]:
    """The algorithm as the paper's code has it, for one record; distance and queries."""
    rng, dim, asked = record_generators(x[None], 0, 0)[0], x.size, 0

    def adversarial(point: Any, repeats: int = effort.repeats) -> bool:
        nonlocal asked
        asked += repeats
        votes = sum(int(label_of(point[None])[0] != y) for _ in range(repeats))
        return votes > repeats / 2

    def clipped(point: Any) -> Any:
        return (point if clip is None else np.clip(point, *clip)).astype(np.float32)

    def project(point: Any) -> Any:
        low, high = 0.0, 1.0
        while high - low > 0.01 / math.sqrt(dim):
            middle = (low + high) / 2
            blend = ((1 - middle) * x + middle * point).astype(np.float32)
            low, high = (low, middle) if adversarial(blend) else (middle, high)
        return ((1 - high) * x + high * point).astype(np.float32)

    def norm(point: Any) -> float:
        return float(np.linalg.norm(point.astype(np.float64) - x))

    for attempt in range(effort.num_starts):
        point = start(np.array([0]), attempt)[0].astype(np.float32)
        if adversarial(point):
            break
    else:
        return np.inf, asked
    before = norm(point)
    point = project(point)
    best = norm(point)
    for t in range(1, effort.max_iter + 1):
        delta = np.float32(0.1 * (clip[1] - clip[0]) if clip and t == 1 else 0.01 * before)
        directions, signs = [], []
        for _ in range(min(int(effort.init_eval * math.sqrt(t)), effort.max_eval)):
            v = rng.standard_normal(x.shape, dtype=np.float32)
            near = clipped(point + delta * (v / np.linalg.norm(v)))
            directions.append((near - point).astype(np.float64) / delta)
            signs.append(1.0 if adversarial(near, 1) else -1.0)
        weight = np.array(signs) - (0 if abs(np.mean(signs)) == 1 else np.mean(signs))
        gradient = np.mean([w * v for w, v in zip(weight, directions, strict=True)], axis=0)
        gradient /= np.linalg.norm(gradient)
        epsilon = norm(point) / math.sqrt(t)
        for _ in range(search_steps(dim)):
            new = clipped(point + epsilon * gradient)
            if adversarial(new):
                point = new
                break
            epsilon /= 2
        before = norm(point)
        point = project(point)
        best = min(best, norm(point))
    return best, asked


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize(
    "effort",
    [
        SMALL,
        Effort(max_iter=2, init_eval=1, max_eval=9, num_starts=1, repeats=3),
        Effort(max_iter=0, init_eval=10, max_eval=15, num_starts=3, repeats=2),
    ],
)
def test_is_the_algorithm_run_record_by_record(effort: Effort, clip: Any) -> None:
    x = np.random.default_rng(3).random((40, 2, 3)).astype(np.float32)
    y = curved(x)
    assert len(np.unique(y)) == 3
    watched = Watched(curved)
    found = run(watched, x, y, effort, clip, start=noise(x, 0.3, 0.5))
    distance, asked = zip(
        *(
            one_by_one(curved, *pair, noise(pair[0][None], 0.3, 0.5), effort, clip)
            for pair in zip(x, y, strict=True)
        ),
        strict=True,
    )
    np.testing.assert_array_equal(found.num_queries, asked)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)
    assert sum(watched.sizes) == found.num_queries.sum()
    assert found.num_queries.max() <= most_queries(effort, 6)


def test_queries_to_the_unit_where_all_succeeds_at_once() -> None:
    """A half space that all steps stay in: one start and no halving, so every count is known."""

    def label_of(x: Any) -> Any:
        return x[:, 0] > 1

    x, effort = np.zeros((7, 4), dtype=np.float32), Effort(5, 20, 30, 9, repeats=3)
    watched = Watched(label_of)
    start = lambda rows, attempt: np.full((len(rows), 4), 3.0)  # noqa: E731
    found = run(watched, x, np.zeros(7, dtype=np.int64), effort, start=start)
    steps = search_steps(4)
    assert steps == 8  # 2^-8 <= 0.01 / 2 < 2^-7
    gradients = 20 + 28 + 30 + 30 + 30
    np.testing.assert_array_equal(found.num_queries, gradients + 3 * (1 + steps + 5 * (1 + steps)))
    assert sum(watched.sizes) == found.num_queries.sum()
    assert most_queries(effort, 4) == gradients + 3 * (9 + steps + 5 * 2 * steps)


def test_a_gradient_asks_no_more_than_its_budget() -> None:
    plane = Linear(2, 10)
    watched = Watched(plane)
    effort = Effort(max_iter=6, init_eval=40, max_eval=90, num_starts=20)
    run(watched, plane.x[:1], plane.y[:1], effort)
    assert [size for size in watched.sizes if size > 1] == [40, 56, 69, 80, 89, 90]
    assert [num_samples(effort, t) for t in (1, 2, 6)] == [40, 56, 90]


def test_what_is_asked_at_once_is_bounded_and_cut_without_a_trace() -> None:
    dim = 2**15
    x = np.zeros((3, dim), dtype=np.float32)
    x[:, 0] = -np.array([1.0, 2.0, 3.0])
    watched = Watched(lambda x: x[:, 0] > 0)
    effort = Effort(max_iter=1, init_eval=300, max_eval=300, num_starts=1)
    beyond = np.zeros(dim, dtype=np.float32)
    beyond[:9] = 1.0

    def start(rows: Any, attempt: int) -> Any:
        return np.tile(beyond, (len(rows), 1))

    found = run(watched, x, np.zeros(3, dtype=np.int64), effort, start=start)
    assert max(watched.sizes) * dim <= 2**22
    assert watched.sizes.count(300 - 2 * 128) == 3
    expected = [one_by_one(watched, r, 0, lambda *_: beyond[None], effort, None) for r in x]
    np.testing.assert_allclose(found.distance, [d for d, _ in expected], rtol=1e-4)
    np.testing.assert_array_equal(found.num_queries, [n for _, n in expected])


def test_images_stay_in_their_range() -> None:
    x = np.random.default_rng(0).random((30, 1, 4, 4)).astype(np.float32)
    watched = Watched(lambda x: x.mean(axis=(1, 2, 3)) > 0.5)
    start = noise(x, 0.1, 0.5)
    found = run(watched, x, watched(x), CPU, (0.0, 1.0), start=start)
    assert np.isfinite(found.distance).all()
    assert watched.lowest >= 0.0
    assert watched.highest <= 1.0


def test_without_a_first_point_the_distance_is_infinite_and_the_attempts_are_counted() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    zero = np.zeros(5, dtype=np.int64)
    watched = Watched(lambda x: np.zeros(len(x)))
    found = run(watched, x, zero, Effort(5, 10, 10, num_starts=7, repeats=3))
    assert np.isinf(found.distance).all()
    np.testing.assert_array_equal(found.point, x)
    np.testing.assert_array_equal(found.num_queries, np.full(5, 21))
    assert watched.sizes == [5] * 21


def test_records_do_not_see_one_another() -> None:
    planes = Linear(4, 9)
    together = run(planes, planes.x, planes.y, SMALL)
    for rows in (np.arange(60)[::-1], np.array([17, 3])):
        some = run(planes, planes.x[rows], planes.y[rows], SMALL)
        np.testing.assert_array_equal(some.distance, together.distance[rows])
        np.testing.assert_array_equal(some.num_queries, together.num_queries[rows])


def test_no_records_are_no_error_and_inputs_stay_as_they_were() -> None:
    planes = Linear(4, 9)
    assert run(planes, planes.x[:0], planes.y[:0], SMALL).distance.shape == (0,)
    before = planes.x.tobytes(), planes.y.tobytes()
    run(planes, planes.x, planes.y, SMALL)
    assert (planes.x.tobytes(), planes.y.tobytes()) == before


def test_a_majority_of_labels_holds_where_single_ones_mislead() -> None:
    """One label in five is wrong wherever the service is asked."""
    plane = Linear(2, 10)
    truth = plane.faces()[0].min(axis=1)
    error = []
    for repeats in (1, 15):
        rng = np.random.default_rng(0)

        def unsure(x: Any, rng: Any = rng) -> Any:
            return plane(x) ^ (rng.random(len(x)) < 0.2)

        found = run(unsure, plane.x, plane.y, Effort(8, 100, 300, 20, repeats=repeats))
        error.append(np.median(np.abs(np.log(found.distance / truth))))
    assert error[0] > 1.0
    assert error[1] < 0.1
