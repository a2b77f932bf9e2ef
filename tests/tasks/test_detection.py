"""Swapped answers with a shape of their own are found; those that look alike are not."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.detection import detectors, stratified_auc, swap_detection
from tasks.metrics import auc_interval

CLASSES = 8


def swapped_service(rng: np.random.Generator, num: int, share: float) -> tuple[Any, Any, Any]:
    """Released and undefended answers of a swapper that leaves no trace: drawn given the label."""
    label, swapped = rng.integers(CLASSES, size=num), rng.random(num) < share
    released = rng.dirichlet(np.full(CLASSES, 0.3), size=num)
    top = released.argmax(axis=1)
    rows = np.arange(num)
    released[rows, top], released[rows, label] = released[rows, label], released[rows, top]
    undefended = np.eye(CLASSES)[np.where(swapped, (label + 1) % CLASSES, label)]
    return released, undefended, swapped


def one_hot(released: Any, swapped: Any) -> Any:
    """An exact one-hot vector for every swapped record, as a known re-implementation has it."""
    return np.where(swapped[:, None], np.eye(CLASSES)[released.argmax(axis=1)], released)


def flatter(released: Any, swapped: Any) -> Any:
    mixed = 0.7 * released + 0.3 / CLASSES
    return np.where(swapped[:, None], mixed, released)


@pytest.mark.parametrize(("shape", "least"), [(one_hot, 0.95), (flatter, 0.65)])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
def test_a_special_shape_is_found(shape: Any, least: float, share: float) -> None:
    released, undefended, swapped = swapped_service(np.random.default_rng(1), 2000, share)
    found = swap_detection(shape(released, swapped), undefended, seed=0)
    assert found is not None
    assert found.auc > least
    assert found.detectable
    assert found.low < found.auc <= found.high + 1e-12 <= 1 + 1e-12


def test_swapped_answers_drawn_like_the_others_are_not_found() -> None:
    rng = np.random.default_rng(2)
    found = [swap_detection(*swapped_service(rng, 1000, 0.2)[:2], seed=s) for s in range(20)]
    assert sum(f.detectable for f in found if f) <= 1
    assert np.mean([f.auc for f in found if f]) == pytest.approx(0.5, abs=0.02)


def test_which_label_is_released_does_not_count() -> None:
    """One prototype per label, and swaps in some labels only: nothing to see, given the label."""
    rng = np.random.default_rng(3)
    label = rng.integers(CLASSES, size=3000)
    swapped = (label < 2) & (rng.random(3000) < 0.8) | (rng.random(3000) < 0.02)
    prototype = rng.dirichlet(np.ones(CLASSES), size=CLASSES)
    prototype = np.stack([np.roll(np.sort(row), i + 1) for i, row in enumerate(prototype)])
    undefended = np.eye(CLASSES)[np.where(swapped, (label + 1) % CLASSES, label)]
    found = swap_detection(prototype[label], undefended, seed=0)
    assert found is not None
    assert found.auc == 0.5
    assert not found.detectable


def test_too_few_swaps_give_no_number() -> None:
    released, undefended, swapped = swapped_service(np.random.default_rng(4), 500, 0.5)
    few = np.flatnonzero(swapped)[19:]
    undefended[few] = released[few]
    assert swap_detection(released, undefended, seed=0) is None
    assert swap_detection(released, released, seed=0) is None
    # Labels that only swapped records have compare with nothing.
    none = np.eye(2)[np.zeros(50, dtype=int)]
    assert swap_detection(none, none[:, ::-1], seed=0) is None


def test_the_sample_and_the_halves_are_seeded_and_inputs_untouched() -> None:
    released, undefended, swapped = swapped_service(np.random.default_rng(5), 600, 0.3)
    released = flatter(released, swapped)
    before = released.copy()
    one, same, other = (swap_detection(released, undefended, seed=s) for s in (0, 0, 1))
    assert one == same != other
    np.testing.assert_array_equal(released, before)


CASE = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2)), min_size=4, max_size=40
)


@settings(deadline=None, max_examples=200)
@given(CASE)
def test_the_stratified_auc_compares_pairs_within_a_stratum(case: Any) -> None:
    score, positive, stratum = (np.array(column) for column in zip(*case, strict=True))
    shares = []
    for s, mine in zip(score[positive], stratum[positive], strict=True):
        others = score[~positive & (stratum == mine)]
        if len(others) >= 2:
            shares.append(np.mean((s > others) + 0.5 * (s == others)))
    value, low, high = stratified_auc(score.astype(float), positive.astype(bool), stratum)
    if len(shares) < 2:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(np.mean(shares), abs=1e-12)
        assert low <= value + 1e-12
        assert high >= value - 1e-12


def test_one_stratum_is_the_usual_auc_with_its_interval() -> None:
    rng = np.random.default_rng(6)
    score, positive = rng.normal(size=90).round(1), np.arange(90) < 30
    ours = stratified_auc(score + positive, positive, np.zeros(90), tail=0.025)
    assert ours == pytest.approx(auc_interval(score + positive, positive))


def test_the_limits_of_noise_exclude_a_half_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    runs, tail = 500, 0.05
    above = 0
    for _ in range(runs):
        stratum, positive = rng.integers(10, size=300), rng.random(300) < 0.2
        above += stratified_auc(rng.normal(size=300), positive, stratum, tail)[1] > 0.5
    assert above / runs == pytest.approx(tail, abs=4 * np.sqrt(tail * (1 - tail) / runs))


def test_the_net_sees_what_no_line_does() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(1500, 2))
    positive = x[:, 0] * x[:, 1] > 0
    linear, net = detectors(x[:1000], positive[:1000], seed=0)
    assert auc_interval(net(x[1000:]), positive[1000:])[1] > 0.9
    assert auc_interval(linear(x[1000:]), positive[1000:])[2] < 0.65
    np.testing.assert_array_equal(net(x[:3]), net(x)[:3])


def test_features_without_spread_and_outliers_do_no_harm() -> None:
    rng = np.random.default_rng(9)
    x = np.column_stack([np.ones(400), rng.normal(size=400), np.zeros(400)])
    positive = x[:, 1] > 0
    x[7, 1] = 1e9
    for detector in detectors(x[:300], positive[:300], seed=0):
        far = x[300:].copy()
        far[:, 2] = 1e6
        assert np.isfinite(detector(far)).all()
        np.testing.assert_array_equal(detector(far), detector(x[300:]))
