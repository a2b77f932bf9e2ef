from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.rounding import Rounding

MODES = ["round", "floor"]


def release(defense: Rounding, confidence: np.ndarray) -> np.ndarray:
    return defense.apply(confidence, {"num_classes": np.array(confidence.shape[1])}, None)


@st.composite
def distributions(draw) -> np.ndarray:
    """Random, tied and saturated rows."""
    num_classes = draw(st.sampled_from([2, 10, 530]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    random = rng.dirichlet(np.full(num_classes, draw(st.sampled_from([0.02, 1.0, 50.0]))), size=4)
    tied = rng.integers(1, 3, size=(4, num_classes)).astype(float)
    saturated = np.where(np.eye(num_classes)[rng.integers(num_classes, size=4)], 1.0, 1e-14)
    c = np.concatenate([random, tied, saturated])
    return c / c.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("mode", "expected"), [("floor", [0.25, 0.25]), ("round", [0.25, 0.26])])
def test_the_published_example(mode, expected):
    released = release(Rounding(decimals=2, mode=mode), np.array([[0.2501, 0.2599, 0.49]]))
    assert released[0, :2].tolist() == expected


@pytest.mark.parametrize("decimals", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("mode", MODES)
def test_scores_are_the_decimals_near_them(mode, decimals):
    scores = np.random.default_rng(decimals).dirichlet(np.ones(10), size=50)
    released = release(Rounding(decimals=decimals, mode=mode), scores)
    step = Decimal(10) ** -decimals
    for before, after in zip(scores.ravel().tolist(), released.ravel().tolist(), strict=True):
        assert after == float(f"{after:.{decimals}f}"), "more digits than asked for"
        lost = Decimal(before) - Decimal(f"{after:.{decimals}f}")
        if mode == "round":
            assert abs(lost) <= step / 2 + Decimal("1e-16")
        else:
            assert 0 <= lost < step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_what_has_the_decimals_already_is_left_alone(mode, decimals):
    scores = np.array([[float(f"0.{k:0{decimals}d}") for k in range(10**decimals)]])
    np.testing.assert_array_equal(release(Rounding(decimals=decimals, mode=mode), scores), scores)


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_floor_never_raises_a_score(decimals):
    steps = np.array([[float(f"0.{k:0{decimals}d}") for k in range(10**decimals)]])
    below = np.nextafter(steps[:, 1:], 0)
    released = release(Rounding(decimals=decimals, mode="floor"), below)
    np.testing.assert_array_equal(released, steps[:, :-1])


@settings(max_examples=60, deadline=None)
@given(distributions(), st.sampled_from([1, 2, 3, 12]), st.sampled_from(MODES), st.booleans())
def test_order_is_kept_and_the_label_stays_among_the_largest(
    confidence, decimals, mode, renormalise
):
    defense = Rounding(decimals=decimals, mode=mode, renormalise=renormalise)
    released = release(defense, confidence)
    for before, after in zip(confidence, released, strict=True):
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()
        largest = np.flatnonzero(after == after.max())
        assert before.argmax() in largest
        # So the released label moves on ties only, and then to the first of the tied.
        assert after.argmax() == largest[0]


def test_the_label_moves_where_rounding_ties_it():
    released = release(Rounding(decimals=1), np.array([[0.48, 0.52], [0.44, 0.56]]))
    assert released.tolist() == [[0.5, 0.5], [0.4, 0.6]]
    assert released.argmax(axis=1).tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(distributions(), st.sampled_from([1, 2]), st.sampled_from(MODES))
def test_renormalised_rows_are_distributions(confidence, decimals, mode):
    plain = release(Rounding(decimals=decimals, mode=mode), confidence)
    released = release(Rounding(decimals=decimals, mode=mode, renormalise=True), confidence)
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)
    for before, after in zip(plain, released, strict=True):
        if before.sum() > 0:
            np.testing.assert_allclose(after, before / sum(before.tolist()), rtol=1e-12)
        else:
            np.testing.assert_array_equal(after, 1 / len(after))


def test_more_decimals_than_a_score_has_meaning_are_refused():
    for decimals in (0, 13):
        with pytest.raises(ValueError, match="decimals"):
            Rounding(decimals=decimals)
