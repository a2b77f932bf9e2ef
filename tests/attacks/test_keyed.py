"""What is true of draws keyed by record."""

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from scipy import stats

from attacks._keyed import keyed_normal, keyed_uniform, record_generators

SHAPE = (3, 4)


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).normal(size=(50, 2, 5)).astype(np.float32)


@pytest.mark.parametrize("draw", [keyed_normal, keyed_uniform])
def test_a_records_draws_do_not_depend_on_the_others_or_their_order(draw: Any, x: Any) -> None:
    together = draw(x, 7, 1, SHAPE)
    assert together.shape == (50, *SHAPE)
    assert together.dtype == np.float64
    np.testing.assert_array_equal(draw(x[::-1], 7, 1, SHAPE)[::-1], together)
    np.testing.assert_array_equal(draw(x[[30, 4]], 7, 1, SHAPE), together[[30, 4]])
    np.testing.assert_array_equal(draw(x[9:10], 7, 1, SHAPE), together[9:10])


@pytest.mark.parametrize("draw", [keyed_normal, keyed_uniform])
def test_records_seeds_and_purposes_draw_apart(draw: Any, x: Any) -> None:
    all_drawn = [draw(x, seed, purpose, SHAPE) for seed in (0, 1, -1) for purpose in (0, 1)]
    # Concatenated without a mark between them, seed 1 for 11 and seed 11 for 1 would be one.
    all_drawn += [draw(x, 1, 11, SHAPE), draw(x, 11, 1, SHAPE)]
    rows = np.concatenate(all_drawn).reshape(-1, 12)
    assert len(np.unique(rows, axis=0)) == 8 * 50


def test_generators_are_the_hash_of_the_float32_bytes(x: Any) -> None:
    first, *_ = record_generators(x, 5, 2)
    digest = blake2b(b"5 2 " + x[0].tobytes(), digest_size=16).digest()
    expected = np.random.default_rng(int.from_bytes(digest, "little"))
    assert first.random() == expected.random()


def test_equal_records_share_their_draws_whatever_their_type_layout_or_zero_sign(x: Any) -> None:
    zeroed = np.concatenate([x, x[:1]])
    zeroed[:, 0, 0] = 0.0
    negative = zeroed.copy()
    negative[:, 0, 0] = -0.0
    expected = keyed_uniform(zeroed, 0, 0, SHAPE)
    np.testing.assert_array_equal(expected[50], expected[0])
    for same in (negative, zeroed.astype(np.float64), np.asfortranarray(zeroed)):
        before = same.tobytes()
        np.testing.assert_array_equal(keyed_uniform(same, 0, 0, SHAPE), expected)
        assert same.tobytes() == before


def test_the_smallest_difference_between_records_counts(x: Any) -> None:
    other = x.copy()
    other[:, 1, 4] = np.nextafter(other[:, 1, 4], np.float32(np.inf))
    assert (keyed_uniform(x, 0, 0, ()) != keyed_uniform(other, 0, 0, ())).all()


def test_draws_have_the_distributions_they_say() -> None:
    # Neighbouring records, as a bad hash would draw alike for them: 2000 records, one bit apart.
    x = np.arange(2000, dtype=np.float32)[:, None]
    # A p-value below 6e-5 is 4 standard deviations.
    assert stats.kstest(keyed_uniform(x, 0, 0, (5,)).ravel(), "uniform").pvalue > 6e-5
    assert stats.kstest(keyed_normal(x, 0, 0, (5,)).ravel(), "norm").pvalue > 6e-5
    drawn = keyed_normal(x, 0, 1, (2,))
    for a, b in ((drawn[:-1, 0], drawn[1:, 0]), (drawn[:, 0], drawn[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


def test_one_draw_or_many_come_from_one_stream(x: Any) -> None:
    """So that an attack may draw in pieces of bounded memory."""
    whole = keyed_normal(x, 0, 0, (6, 2))
    pieces = [
        (rng.standard_normal((4, 2)), rng.standard_normal((2, 2)))
        for rng in record_generators(x, 0, 0)
    ]
    np.testing.assert_array_equal(np.stack([np.concatenate(pair) for pair in pieces]), whole)


def test_no_records_no_draws(x: Any) -> None:
    assert record_generators(x[:0], 0) == []
    assert keyed_uniform(x[:0], 0, 0, SHAPE).shape == (0, *SHAPE)


def test_a_number_is_no_list_of_records() -> None:
    with pytest.raises(ValueError, match=r"need x \[N, \.\.\.\]"):
        record_generators(np.array(1.0), 0)
