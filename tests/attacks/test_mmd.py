"""What is true of the maximum mean discrepancy, and of moves between two sets."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks._mmd import (
    FLOOR,
    SIGMAS,
    distances_without,
    exchanged,
    kernel,
    squared_mmd,
    survived,
)

SEEDS = st.integers(0, 10_000)


def slow_mmd(a: Any, b: Any) -> float:
    """The definition, pair by pair."""

    def k(p: Any, q: Any) -> float:
        square = sum((u - v) ** 2 for u, v in zip(p, q, strict=True))
        return sum(np.exp(-square / (2 * sigma)) for sigma in SIGMAS)

    def mean(p: Any, q: Any) -> float:
        return sum(k(u, v) for u in p for v in q) / (len(p) * len(q))

    return float(mean(a, a) + mean(b, b) - 2 * mean(a, b))


def slow_survived(feature: Any, other: Any) -> list[int]:
    """BlindMI-Diff-w on one batch, every distance computed anew."""
    member = [True] * len(feature)
    found = [len(feature)] * len(feature)
    for sweep in range(len(feature)):
        if sum(member) == 1:
            break
        before = max(squared_mmd(other, feature[member]), FLOOR)
        leaves = []
        for i in np.flatnonzero(member):
            rest = [m and j != i for j, m in enumerate(member)]
            after = squared_mmd(np.concatenate([other, feature[[i]]]), feature[rest])
            if max(after, FLOOR) > before + 1e-12:
                leaves.append(i)
        if not leaves:
            break
        for i in leaves:
            member[i], found[i] = False, sweep
    return found


def slow_exchanged(feature: Any, member: Any) -> tuple[list[bool], float]:
    """BlindMI-Diff-w/o on one batch, every distance computed anew."""
    side = np.array(member)
    if side.all() or not side.any():
        return [True] * len(side), FLOOR

    def distance(side: Any) -> float:
        return max(squared_mmd(feature[side], feature[~side]), FLOOR)

    now, moved = distance(side), True
    while moved:
        moved = False
        for goal in (True, False):
            for i in range(len(feature)):
                tried = side.copy()
                tried[i] = goal
                if side[i] == goal or tried.all() or not tried.any():
                    continue
                if distance(tried) > now + 1e-12:
                    side, now, moved = tried, distance(tried), True
    return [True] * len(side) if now <= FLOOR else side.tolist(), now


def sets(seed: int, num: int, num_other: int, num_features: int = 3) -> tuple[Any, Any]:
    """Records and non-members like confidences, on scales that all widths see; some are equal."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-4, 0)
    a = 0.9 + scale * rng.normal(size=(num, num_features))
    b = 0.9 + scale * rng.normal(rng.uniform(0, 2), size=(num_other, num_features))
    a[-1] = a[0]
    return a, b


@given(SEEDS, st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_squared_mmd_is_the_definition(seed: int, n: int, m: int) -> None:
    a, b = sets(seed, n, m)
    assert squared_mmd(a, b) == pytest.approx(slow_mmd(a, b), abs=1e-12)
    assert squared_mmd(a, b) == pytest.approx(squared_mmd(b, a), abs=1e-12)
    assert squared_mmd(a, b) > -1e-12


@given(SEEDS, st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_the_distance_of_a_set_to_itself_is_zero(seed: int, n: int) -> None:
    a, _ = sets(seed, n, 1)
    assert squared_mmd(a, a) == 0
    assert squared_mmd(a, np.concatenate([a, a])[::-1]) == pytest.approx(0, abs=1e-12)


@given(SEEDS, st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_the_kernel_is_positive_semi_definite(seed: int, n: int) -> None:
    a, _ = sets(seed, n, 1)
    k = kernel(a, a)
    np.testing.assert_array_equal(k, k.T)
    np.testing.assert_array_equal(np.diag(k), len(SIGMAS))
    assert np.linalg.eigvalsh(k).min() > -1e-10 * n * len(SIGMAS)


def test_the_kernel_sums_the_widths_and_does_not_square_them() -> None:
    a, b = np.array([[0.0, 0.0]]), np.array([[0.3, 0.4]])
    assert kernel(a, b, [0.5]) == pytest.approx(np.exp(-0.25))
    assert kernel(a, b, [0.5, 2.0]) == pytest.approx(np.exp(-0.25) + np.exp(-0.0625))


def test_the_kernel_takes_batches() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 5, 3)), rng.normal(size=(7, 3))
    batched = kernel(a, b)
    assert batched.shape == (4, 5, 7)
    for one, many in zip(a, batched, strict=True):
        np.testing.assert_array_equal(kernel(one, b), many)


@given(SEEDS, st.integers(3, 12), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_distances_after_a_move_are_those_computed_anew(seed: int, n: int, m: int) -> None:
    a, b = sets(seed, n, m)
    member = np.random.default_rng([seed, 1]).random(n) < 0.7
    member[:2] = True
    before, after = distances_without(
        kernel(a, a)[None], kernel(a, b).sum(axis=1)[None], kernel(b, b).sum(), m, member[None]
    )
    assert before[0] == pytest.approx(squared_mmd(b, a[member]), abs=1e-12)
    for i in np.flatnonzero(member):
        rest = member & (np.arange(n) != i)
        anew = squared_mmd(np.concatenate([b, a[[i]]]), a[rest])
        assert after[0, i] == pytest.approx(anew, abs=1e-12)


@given(SEEDS, st.integers(2, 14), st.integers(1, 10))
@settings(max_examples=50, deadline=None)
def test_sweeps_are_those_of_the_slow_algorithm(seed: int, n: int, m: int) -> None:
    a, b = sets(seed, n, m)
    found = survived(a[None], np.ones((1, n), dtype=bool), b)
    assert found[0].tolist() == slow_survived(a, b)


@given(SEEDS, st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_exchanges_are_those_of_the_slow_algorithm(seed: int, n: int) -> None:
    a, _ = sets(seed, n, 1)
    start = np.random.default_rng([seed, 1]).random(n) < 0.5
    member, distance = exchanged(a[None], np.ones((1, n), dtype=bool), start[None])
    expected, anew = slow_exchanged(a, start)
    assert member[0].tolist() == expected
    assert distance[0] == pytest.approx(anew, abs=1e-12)


def test_distances_do_not_drift_over_many_moves() -> None:
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.normal(0, 0.05, (150, 3)), rng.normal(1, 0.05, (150, 3))])
    start = rng.random(300) < 0.5
    member, distance = exchanged(a[None], np.ones((1, 300), dtype=bool), start[None])
    assert (member[0] != start).sum() > 100
    anew = squared_mmd(a[member[0]], a[~member[0]])
    assert distance[0] == pytest.approx(anew, abs=1e-12)
    assert distance[0] > squared_mmd(a[start], a[~start])


@pytest.mark.parametrize("move", ["survived", "exchanged"])
def test_batches_do_not_touch_one_another(move: str) -> None:
    """Together, alone, and with places where nobody is."""
    rng = np.random.default_rng(3)
    sizes = (9, 5, 9, 2, 1)
    feature = rng.uniform(size=(5, 9, 3))
    start = rng.random((5, 9)) < 0.5
    other = rng.uniform(size=(6, 3))
    present = np.arange(9) < np.array(sizes)[:, None]

    def run(feature: Any, present: Any, start: Any) -> Any:
        if move == "survived":
            return survived(feature, present, other)
        return exchanged(feature, present, start)[0]

    together = run(feature, present, start)
    garbage = run(np.where(present[..., None], feature, 0.5), present, start)
    np.testing.assert_array_equal(together, garbage)
    assert not together[~present].any()
    for i, size in enumerate(sizes):
        one = run(feature[[i], :size], np.ones((1, size), dtype=bool), start[[i], :size])[0]
        if move == "survived":  # who stayed to the end has the width of the batch
            one = np.where(one == size, 9, one)
        np.testing.assert_array_equal(together[i, :size], one)


def test_two_clusters_are_told_apart() -> None:
    """Non-members like the made-up ones, members elsewhere, mixed in batches of 20."""
    rng = np.random.default_rng(0)
    is_member = rng.random((50, 20)) < 0.5
    place = np.where(is_member[..., None], [0.95, 0.95, 0.02], [0.4, 0.5, 0.3])
    feature = place + rng.normal(scale=0.05, size=(50, 20, 3))
    other = rng.normal([0.4, 0.5, 0.3], 0.05, size=(20, 3))
    present = np.ones((50, 20), dtype=bool)
    stayed = survived(feature, present, other) == 20
    assert (stayed == is_member).mean() >= 0.95
    high = feature[..., 0] > np.median(feature[..., 0])
    moved, _ = exchanged(feature, present, high)
    assert (moved == is_member).mean() >= 0.95


@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_one_cluster_is_all_members(spread: float) -> None:
    """One that the narrowest kernel (1e-3 wide) does not resolve."""
    rng = np.random.default_rng(0)
    feature = 0.3 + spread * rng.normal(size=(3, 20, 3))
    other = 0.3 + spread * rng.normal(size=(20, 3))
    present = np.ones((3, 20), dtype=bool)
    assert (survived(feature, present, other) == 20).all()
    for start in (np.zeros, np.ones):
        assert exchanged(feature, present, start((3, 20), dtype=bool))[0].all()
    assert exchanged(feature, present, rng.random((3, 20)) < 0.5)[0].all()


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_moves_end_whatever_the_records(seed: int) -> None:
    """Equal ones among them; sweeps follow on one another, and no exchange empties a set."""
    rng = np.random.default_rng(seed)
    feature = rng.integers(2, size=(4, 10, 3)) * 10.0 ** rng.integers(-3, 2)
    present = np.ones((4, 10), dtype=bool)
    for sweeps in survived(feature, present, feature[0, :3]):
        left = np.unique(sweeps[sweeps < 10])
        np.testing.assert_array_equal(left, np.arange(len(left)))
    member, distance = exchanged(feature, present, rng.random((4, 10)) < 0.5)
    assert member.any(axis=1).all()
    np.testing.assert_array_equal((~member).any(axis=1), distance > FLOOR)


def test_equal_records_share_their_fate() -> None:
    rng = np.random.default_rng(0)
    few = rng.uniform(size=(6, 3))
    which = rng.integers(6, size=(10, 20))
    sweeps = survived(few[which], np.ones((10, 20), dtype=bool), rng.uniform(size=(20, 3)))
    assert len(np.unique(sweeps)) > 1
    for batch in range(10):
        for record in range(6):
            assert len(set(sweeps[batch, which[batch] == record])) <= 1


def test_a_lone_record_stays() -> None:
    one, present = np.full((1, 1, 3), 0.9), np.ones((1, 1), dtype=bool)
    assert survived(one, present, np.zeros((5, 3))).tolist() == [[1]]
    assert exchanged(one, present, ~present)[0].tolist() == [[True]]
