"""The gate on inputs alone in small sets: what it finds, and how often it is wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from storage import datasets
from tasks.check_split import blind_scores
from tasks.detection import detectors, scale_detectors
from tasks.metrics import auc, auc_p_value, delong

# Of 600 records 120 + 120 are fitted on, 30 + 30 choose, 150 + 150 are judged.
PARTS = {"fit": slice(0, 120), "cal": slice(120, 150), "judged": slice(150, 300)}


def p_value(x: Any, member: Any, seed: int) -> float:
    rows = {
        part: np.concatenate([np.flatnonzero(member == side)[cut] for side in (True, False)])
        for part, cut in PARTS.items()
    }
    fit, cal = ((x[rows[part]], member[rows[part]]) for part in ("fit", "cal"))
    score = blind_scores(fit, cal, x[rows["judged"]], seed=seed)
    assert score is not None
    return auc_p_value(*delong(score, member[rows["judged"]]), 150)


def gaussian(rng: np.random.Generator) -> Any:
    return rng.normal(size=(600, 100)).astype(np.float32)


def binary(rng: np.random.Generator) -> Any:
    return (rng.random((600, 446)) < 0.15).astype(np.float32)


def images(rng: np.random.Generator) -> Any:
    digits = datasets.load(datasets.Source("digits"))
    return digits.x(rng.permutation(len(digits))[:600])


def one_scaled(x: Any, member: Any, rng: Any) -> None:
    x[member, 3] *= 3


def one_moved(x: Any, member: Any, rng: Any) -> None:
    x[member, 3] += 0.9


def all_scaled(x: Any, member: Any, rng: Any) -> None:
    x[member] *= 1.2


def one_bit(x: Any, member: Any, rng: Any) -> None:
    x[member & (rng.random(600) < 0.45), 7] = 1


@pytest.mark.parametrize(
    ("make", "leak"),
    [(gaussian, one_scaled), (gaussian, one_moved), (gaussian, all_scaled), (binary, one_bit)],
)
def test_what_one_feature_or_every_scale_tells_is_found(
    make: Callable[..., Any], leak: Callable[..., Any]
) -> None:
    found = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, member = make(rng), rng.permutation(np.arange(600) < 300)
        leak(x, member, rng)
        found += p_value(x, member, seed) <= 0.001
    # Of 40 draws of these leaks, or of weaker ones of their kind, 35 to 39 are found.
    assert found >= 3


@pytest.mark.parametrize("make", [gaussian, binary, images])
def test_picking_among_detectors_and_features_raises_no_false_alarms(make: Any) -> None:
    runs, alarms = 20, 0
    for seed in range(runs):
        rng = np.random.default_rng(100 + seed)
        x, member = make(rng), rng.permutation(np.arange(600) < 300)
        alarms += p_value(x, member, seed) <= 0.1
    # 250 draws of each shape gave no alarm at 0.1 % and as many at 1, 5 and 10 % as these say.
    assert alarms <= stats.binom.ppf(0.9999, runs, 0.1)


def test_without_squares_there_is_one_feature_only() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((300, 20)) < 0.4).astype(np.float64)
    positive = rng.random(300) < 0.4
    x[positive, 11] = 0
    (single,) = scale_detectors(x, positive)
    order = single(x)
    assert len(np.unique(order)) == 2
    assert (order[x[:, 11] == 0].min()) > order[x[:, 11] == 1].max()


def test_the_two_see_a_scale_where_the_others_do_not() -> None:
    rng = np.random.default_rng(1)
    x, positive = rng.normal(size=(800, 30)), np.arange(800) % 2 == 0
    x[positive, 5] *= 3
    fit, judged = slice(0, 400), slice(400, 800)
    both = scale_detectors(x[fit], positive[fit])
    seen = [auc(detector(x[judged]), positive[judged]) for detector in both]
    linear, _ = detectors(x[fit], positive[fit], seed=0)
    assert min(seen) > 0.7 > 0.6 > auc(linear(x[judged]), positive[judged])
    assert seen[1] > 0.75  # 0.795 is the most that the order of this feature can give


def test_features_without_spread_or_out_of_range_do_no_harm() -> None:
    rng = np.random.default_rng(2)
    x = np.column_stack([np.ones(200), rng.normal(size=200), np.zeros(200)])
    positive = np.arange(200) < 100
    for detector in scale_detectors(x, positive):
        far = x * [1, 1e9, 1] + [0, 0, 7]
        assert np.isfinite(detector(far)).all()
    flat = np.ones((20, 2))
    (single,) = scale_detectors(flat, np.arange(20) < 10)
    assert (single(flat) == 0).all()
