"""Fronts: against the obvious slow way, against Optuna's own, and what must hold for any points."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.front import (
    RULES,
    Direction,
    choose,
    dominates,
    dominates_by,
    hypervolume,
    nondominated,
    reference_point,
    spread,
)

MIN, MAX = "minimize", "maximize"
PRIVACY: tuple[Direction, Direction] = (MIN, MAX)  # attack accuracy, accuracy
Points = tuple[NDArray[np.float64], tuple[Direction, ...]]


@st.composite
def fronts(draw: st.DrawFn, most: int = 12) -> Points:
    """Points on a coarse grid of [0, 1], so that ties and equal points are common."""
    num = draw(st.integers(1, 4))
    ways = tuple(draw(st.lists(st.sampled_from([MIN, MAX]), min_size=num, max_size=num)))
    row = st.lists(st.integers(0, 6).map(lambda v: v / 6), min_size=num, max_size=num)
    rows = draw(st.lists(row, max_size=most))
    return np.array(rows, dtype=float).reshape(len(rows), num), ways


def better(a: float, b: float, way: Direction) -> bool:
    return a < b if way == MIN else a > b


def beats(a: NDArray[np.float64], b: NDArray[np.float64], ways: tuple[Direction, ...]) -> bool:
    """Domination by its definition, a number at a time."""
    some = any(better(x, y, way) for x, y, way in zip(a, b, ways, strict=True))
    return some and not any(better(y, x, way) for x, y, way in zip(a, b, ways, strict=True))


def cells(values: NDArray[np.float64], ways: tuple[Direction, ...]) -> float:
    """The volume by looking at every cell of the grid: is a point better than its worst corner?"""
    losses = np.where([way == MIN for way in ways], values, 1 - values) * 6
    corners = itertools.product(range(1, 7), repeat=len(ways))
    covered = sum(bool((np.round(losses) <= np.array(c) - 1).all(axis=1).any()) for c in corners)
    return covered / 6 ** len(ways)


def worst(ways: tuple[Direction, ...]) -> list[float]:
    return [1.0 if way == MIN else 0.0 for way in ways]


@given(fronts())
def test_the_front_is_what_no_point_dominates(points):
    values, ways = points
    slow = [not any(beats(other, row, ways) for other in values) for row in values]
    assert nondominated(values, ways).tolist() == slow
    for a, b in itertools.product(values[:5], repeat=2):
        assert dominates(a, b, ways) == beats(a, b, ways)


def test_a_row_with_nan_is_on_no_front_and_dominates_nothing():
    values = [[np.nan, 1.0], [0.6, 0.8], [0.0, np.nan], [0.6, 0.8], [0.7, 0.7]]
    assert nondominated(values, PRIVACY).tolist() == [False, True, False, True, False]
    assert nondominated([], PRIVACY).tolist() == []
    assert not dominates([0.0, np.nan], [0.6, 0.8], PRIVACY)
    assert not dominates_by([0.5, 0.9], [0.6, np.nan], PRIVACY, 0.0)


def test_one_gain_above_the_margin_dominates_and_the_gate_asks_it_of_all():
    a, b = [0.50, 0.80], [0.625, 0.796875]
    assert dominates(a, b, PRIVACY)
    assert dominates(a, b, PRIVACY, 0.1)
    assert not dominates(a, b, PRIVACY, 0.125)  # more than the margin, not as much
    assert not dominates_by(a, b, PRIVACY, 0.1)
    assert dominates_by(a, b, PRIVACY, 0.003)
    assert dominates([0.5, 0.8], [0.6, 0.8], PRIVACY)
    assert not dominates_by([0.5, 0.8], [0.6, 0.8], PRIVACY, 0.0)
    assert not dominates([0.5, 0.7], [0.9, 0.8], PRIVACY, 0.1)  # worse in one
    with pytest.raises(ValueError, match=r"margin is -0\.1; give 0 or more"):
        dominates(a, b, PRIVACY, -0.1)


@settings(max_examples=150, deadline=None)
@given(fronts())
def test_the_volume_is_that_of_the_cells_it_covers(points):
    values, ways = points
    assert hypervolume(values, ways, worst(ways)) == pytest.approx(cells(values, ways), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(fronts(), st.integers(0, 2**32 - 1))
def test_a_further_point_adds_volume_unless_it_is_dominated(points, seed):
    values, ways = points
    rng = np.random.default_rng(seed)
    new = rng.random(len(ways))
    before = hypervolume(values, ways, worst(ways))
    after = hypervolume([*values, new], ways, worst(ways))
    covered = any(beats(row, new, ways) for row in values)
    assert after == pytest.approx(before, abs=1e-12) if covered else after > before
    order = rng.permutation(len(values))
    assert hypervolume(values[order], ways, worst(ways)) == pytest.approx(before, abs=1e-12)
    front = values[nondominated(values, ways)]
    assert hypervolume(front, ways, worst(ways)) == pytest.approx(before, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(fronts(), st.floats(0.01, 100), st.floats(-10, 10))
def test_the_volume_scales_with_an_objective_and_does_not_move_with_it(points, factor, shift):
    values, ways = points
    scale = np.array([factor, *[1.0] * (len(ways) - 1)])
    moved = hypervolume(values * scale + shift, ways, np.array(worst(ways)) * scale + shift)
    assert moved == pytest.approx(factor * hypervolume(values, ways, worst(ways)), abs=1e-9)


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_the_volume_is_optunas(num):
    theirs = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    rng = np.random.default_rng(num)
    points = rng.random((60, num)) ** 2 + 0.1
    reference = np.full(num, 1.2)
    ours = hypervolume(points, [MIN] * num, reference)
    assert ours == pytest.approx(theirs(points, reference), rel=1e-10)
    flipped = hypervolume(-points, [MAX] * num, -reference)
    assert flipped == pytest.approx(ours, rel=1e-12)


def test_what_is_not_better_than_the_reference_in_all_adds_nothing():
    reference = [1.0, 0.0]
    assert hypervolume([[0.5, 0.8]], PRIVACY, reference) == pytest.approx(0.4)
    more = [[0.5, 0.8], [1.0, 0.9], [0.1, -0.1], [0.2, 0.0], [np.nan, 1.0], [np.inf, 1.0]]
    assert hypervolume(more, PRIVACY, reference) == pytest.approx(0.4)
    assert hypervolume([], PRIVACY, reference) == 0.0
    with pytest.raises(ValueError, match=r"reference \[1\.0, -inf\] is not finite"):
        hypervolume(more, PRIVACY, [1.0, -np.inf])
    with pytest.raises(ValueError, match="infinitely good"):
        hypervolume([[0.5, np.inf]], PRIVACY, reference)


def test_the_reference_is_what_nothing_can_be_worse_than_or_else_the_worst_seen():
    columns = ["attack_accuracy", "test_accuracy", "auc", "inversion_error"]
    ways: list[Direction] = [MIN, MAX, MIN, MAX]
    values = [[0.6, 0.8, 0.7, 0.04], [0.7, 0.9, np.inf, 0.02], [0.5, np.nan, 0.6, np.nan]]
    assert reference_point(columns, ways, values).tolist() == [1.0, 0.0, 0.7, 0.02]
    assert reference_point(columns[:2], ways[:2], []).tolist() == [1.0, 0.0]
    other = reference_point(["attack_accuracy"], [MAX], [[0.6], [0.7]])  # an attacker's own search
    assert other.tolist() == [0.6]
    with pytest.raises(ValueError, match="no value of 'auc' to take the worst of"):
        reference_point(["auc"], [MIN], [[np.nan]])


# Attack accuracy, accuracy: two ends, a knee, a point above the line of the ends, a dominated one.
BENT = np.array([[0.9, 0.9], [0.5, 0.1], [0.6, 0.8], [0.55, 0.18], [0.7, 0.79], [0.75, 0.89]])


@pytest.mark.parametrize(
    ("rule", "row"), [("knee", 2), ("least_leak", 1), ("most_accurate", 0), ("ideal", 2)]
)
def test_each_rule_on_a_front_that_bends(rule, row):
    assert choose(BENT, PRIVACY, rule) == row
    assert set(RULES) == {"knee", "least_leak", "most_accurate", "ideal"}


def test_knee_and_ideal_differ():
    # Scaled losses: the line through the ends is one objective's sum; the ideal likes balance.
    losses = np.array([[0.0, 1.0], [1.0, 0.0], [0.70, 0.05], [0.39, 0.39]])
    assert choose(losses, (MIN, MIN), "knee") == 2
    assert choose(losses, (MIN, MIN), "ideal") == 3
    assert choose(losses * [0.001, 1000.0] - 7, (MIN, MIN), "knee") == 2  # whatever the units


def test_where_there_is_no_knee_it_is_the_point_nearest_to_the_ideal():
    outwards = np.array([[0.0, 1.0], [0.6, 0.7], [1.0, 0.0]])
    assert choose(outwards, (MIN, MIN), "knee") == choose(outwards, (MIN, MIN), "ideal") == 1
    straight = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    assert choose(straight, (MIN, MIN), "knee") == 2
    assert (
        choose(BENT[:2], PRIVACY, "knee") == 1
    )  # two ends are equally far: the one that leaks least
    assert choose(BENT[1:2], PRIVACY, "knee") == 0
    three = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.4, 0.4, 0.4]])
    assert choose(three, (MIN, MIN, MIN), "knee") == 2
    assert choose([[0.3], [0.2]], (MIN,), "knee") == 1


def test_ties_go_to_the_other_objectives_and_then_to_the_lowest_row():
    values = np.array([[0.5, 0.2, 0.8], [0.5, 0.1, 0.7], [0.5, 0.1, 0.7], [0.6, 0.0, 0.8]])
    ways: list[Direction] = [MIN, MIN, MAX]
    assert choose(values, ways, "least_leak") == 1
    assert choose(values, ways, "most_accurate") == 0  # by default the last objective
    assert choose(values, ways, "most_accurate", accuracy=1) == 3
    for rule in RULES:
        assert choose([[0.5, 0.5]] * 3, PRIVACY, rule) == 0
    with pytest.raises(ValueError, match="accuracy: 3 is no objective; there are 3"):
        choose(values, ways, "most_accurate", accuracy=3)
    with pytest.raises(ValueError, match="no rule is named 'elbow'; there are knee, least_leak"):
        choose(values, ways, "elbow")


def test_only_feasible_points_are_chosen_and_the_others_dominate_nothing():
    feasible = [False, True, False, True, True, False]
    assert choose(BENT, PRIVACY, "most_accurate", feasible) == 4  # row 2 dominates it
    for rule in RULES:
        assert choose(BENT, PRIVACY, rule, [False] * 6) is None
        assert choose([[np.nan, 0.5], [-np.inf, 0.5]], PRIVACY, rule) is None
        assert choose([], PRIVACY, rule) is None
    with pytest.raises(ValueError, match=r"feasible has shape \[2\], but there are 6 points"):
        choose(BENT, PRIVACY, "knee", [True, False])


@given(fronts(), st.sampled_from(sorted(RULES)), st.integers(0, 2**32 - 1))
def test_a_choice_is_on_the_front_and_the_same_point_in_any_unit(points, rule, seed):
    values, ways = points
    feasible = np.random.default_rng(seed).random(len(values)) < 0.7
    row = choose(values, ways, rule, feasible)
    if row is None:
        assert not feasible.any()
        return
    assert feasible[row]
    assert not any(beats(other, values[row], ways) for other in values[feasible])
    assert (values[row] != values[:row][feasible[:row]]).any(axis=1).all()  # lowest of equal points
    assert choose(values * 8 + 3, ways, rule, feasible) == row


@given(fronts(), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_a_spread_is_of_the_front_holds_what_is_kept_and_repeats_nothing(points, num, seed):
    values, ways = points
    rng = np.random.default_rng(seed)
    keep = rng.permutation(len(values))[: min(num, int(rng.integers(0, 3)))].tolist()
    rows = spread(values, ways, num, keep)
    front = set(np.flatnonzero(nondominated(values, ways)).tolist())
    assert set(keep) <= set(rows) <= front | set(keep)
    assert len(rows) <= num
    assert len(set(rows)) == len(rows)
    different = {tuple(values[row]) for row in front}
    added = [tuple(values[row]) for row in rows if row not in keep]
    assert len(set(added)) == len(added)
    if len(rows) < num:
        assert different <= {tuple(values[row]) for row in rows}
    assert rows == spread(values, ways, num, keep)


def test_a_spread_is_even():
    losses = np.column_stack([np.linspace(0, 1, 101), np.linspace(1, 0, 101)])
    crowded = np.concatenate([losses[:20], losses[[50, 100, 75, 25]]])
    rows = spread(crowded, (MIN, MIN), 5, [])
    assert crowded[rows, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert spread(crowded, (MIN, MIN), 2, []) == [0, 21]
    assert spread(crowded, (MIN, MIN), 3, [3]) == [3, 20, 21]
    assert spread(crowded, (MIN, MIN), 2, [], np.arange(24) != 21) == [0, 22]
    with pytest.raises(ValueError, match="2 points are kept, but num is 1; raise num"):
        spread(crowded, (MIN, MIN), 1, [0, 3])
    with pytest.raises(ValueError, match="keep: 24 is no row; there are 24"):
        spread(crowded, (MIN, MIN), 3, [24])


def test_other_shapes_and_directions_are_told():
    with pytest.raises(ValueError, match=r"shape \[2, 3\], which is not .* with 2 objectives"):
        nondominated(np.zeros((2, 3)), PRIVACY)
    with pytest.raises(ValueError, match="direction 'up' is neither"):
        nondominated(np.zeros((2, 1)), ["up"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 columns have 1 directions"):
        reference_point(["a", "b"], [MIN], [[1.0]])


def test_some_hundred_points_of_three_objectives_have_the_volume_of_a_sphere_at_once():
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(400, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)  # an eighth of the unit sphere
    volume = hypervolume(points, [MAX] * 3, [0.0] * 3)
    inside = math.pi / 6
    assert 0.9 * inside < volume < inside
    draws = rng.random((20_000, 3))
    share = np.mean([(points >= draw).all(axis=1).any() for draw in draws])
    assert volume == pytest.approx(float(share), abs=0.015)
