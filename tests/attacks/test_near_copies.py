"""What is true of near copies of records, and of asking about them."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from attacks._near_copies import answers_about, near_copies

IMAGE = (2, 4, 4)


def records(kind: str, num: int = 60, shape: tuple[int, ...] = (24,), seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if kind == "binary":
        return rng.integers(2, size=(num, *shape)).astype(np.float32)
    if kind == "image":
        return (rng.integers(256, size=(num, *shape)) / 255).astype(np.float32)
    return rng.normal(size=(num, *shape)).astype(np.float32)


def flat(copies: Any) -> Any:
    return copies.reshape(*copies.shape[:2], -1)


@pytest.mark.parametrize(
    ("kind", "shape"), [("binary", (24,)), ("image", IMAGE), ("continuous", (24,))]
)
def test_a_records_copies_depend_on_it_and_the_seed_alone(kind: Any, shape: Any) -> None:
    x = records(kind, shape=shape)
    before = x.tobytes()
    x.flags.writeable = False
    copies = near_copies(x, 5, kind, 3)
    assert copies.shape == (5, *x.shape)
    assert copies.dtype == np.float32
    np.testing.assert_array_equal(near_copies(x[::-1], 5, kind, 3)[:, ::-1], copies)
    np.testing.assert_array_equal(near_copies(x[[17, 4]], 5, kind, 3), copies[:, [17, 4]])
    np.testing.assert_array_equal(near_copies(x[:1], 5, kind, 3), copies[:, :1])
    assert (near_copies(x, 5, kind, 4) != copies).any(axis=(0, *range(2, copies.ndim))).mean() > 0.9
    assert near_copies(x, 0, kind, 3).shape == (0, *x.shape)
    assert near_copies(x[:0], 5, kind, 3).shape == (5, 0, *shape)
    assert x.tobytes() == before


def test_one_bit_is_flipped_another_one_in_each_copy() -> None:
    x = records("binary")
    changed = near_copies(x, 24, "binary", 0) != x
    assert (changed.sum(axis=2) == 1).all()
    # As many copies as bits: every bit once.
    assert (changed.sum(axis=0) == 1).all()
    assert np.isin(near_copies(x, 24, "binary", 0), (0, 1)).all()


@pytest.mark.parametrize("num", [1, 7, 23, 24, 25, 60])
def test_each_place_serves_equally_often(num: int) -> None:
    x = records("binary")
    counts = (near_copies(x, num, "binary", 0) != x).sum(axis=0)
    assert (counts.sum(axis=1) == num).all()
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


@pytest.mark.parametrize("num", [1, 7])
def test_all_places_are_equally_likely(num: int) -> None:
    x = records("binary", 3000)
    counts = (near_copies(x, num, "binary", 0) != x).sum(axis=(0, 1))
    # Draws without replacement vary less than the test supposes; 6e-5 is 4 standard deviations.
    assert stats.chisquare(counts).pvalue > 6e-5


def test_one_value_of_an_image_moves_by_a_grey_level_and_stays_inside() -> None:
    x = records("image", 200, IMAGE)
    x[:50], x[50:100] = 0.0, 1.0
    copies = near_copies(x, 9, "image", 0)
    grey, grey_before = np.rint(flat(copies) * 255), np.rint(flat(x[None]) * 255)
    assert ((flat(copies) != flat(x[None])).sum(axis=2) == 1).all()
    moved = (grey - grey_before).sum(axis=2)
    assert (np.abs(moved) == 1).all()
    assert copies.min() >= 0
    assert copies.max() <= 1
    assert (moved[:, :50] == 1).all()
    assert (moved[:, 50:100] == -1).all()
    # 900 coin tosses: four standard deviations are 60.
    assert abs((moved[:, 100:] == 1).sum() - 450) < 60


def test_continuous_features_get_noise_of_a_thousandth() -> None:
    x = records("continuous", 200)
    noise = (near_copies(x, 20, "continuous", 0).astype(np.float64) - x).ravel() / 1e-3
    # 96,000 draws; float32 rounds each to 1e-4 of its deviation.
    assert stats.kstest(noise, "norm").pvalue > 6e-5


class Service:
    """Answers with the record's number of queries so far in the first class; counts."""

    def __init__(self, access: str = "score") -> None:
        self.access, self.num_queries, self.largest = access, 0, 0
        self.asked: dict[bytes, int] = {}

    def __call__(self, x: Any) -> Any:
        self.num_queries += len(x)
        self.largest = max(self.largest, x.size)
        draw = []
        for record in x:
            draw.append(self.asked.get(record.tobytes(), 0))
            self.asked[record.tobytes()] = draw[-1] + 1
        released = np.column_stack([draw, x.reshape(len(x), -1)[:, 0]]).astype(np.float64)
        return released if self.access == "score" else np.array(draw)

    def timed(self, x: Any) -> Any:
        raise AssertionError("this attack measures no time")


@pytest.mark.parametrize("access", ["score", "label"])
def test_repeats_ask_for_draw_after_draw(access: str) -> None:
    x, query = records("continuous"), Service(access)
    ((rows, answers),) = answers_about(
        query, x, 4, "repeats", kind="continuous", num_classes=2, seed=0
    )
    assert rows == slice(0, 60)
    assert answers.shape == ((4, 60, 2) if access == "score" else (4, 60))
    draws = answers[..., 0] if access == "score" else answers
    np.testing.assert_array_equal(draws, np.arange(4)[:, None] * np.ones(60))
    assert query.num_queries == 4 * 60


@pytest.mark.parametrize("num", [1, 4])
def test_neighbours_come_after_the_record_itself(num: int) -> None:
    x, query = records("continuous"), Service()
    ((_, answers),) = answers_about(
        query, x, num, "neighbours", kind="continuous", num_classes=2, seed=5
    )
    together = np.concatenate([x[None], near_copies(x, num - 1, "continuous", 5)])
    np.testing.assert_array_equal(answers[..., 1], together[..., 0].astype(np.float64))
    assert (answers[..., 0] == 0).all()
    assert query.num_queries == num * 60


@pytest.mark.parametrize("over", ["repeats", "neighbours"])
def test_pieces_are_bounded_and_make_no_difference(over: Any) -> None:
    x = records("continuous", 30)
    # A million classes: one record a piece.
    answers = []
    for num_classes, num_pieces in ((2, 1), (2**20, 30)):
        pieces = list(
            answers_about(Service(), x, 4, over, kind="continuous", num_classes=num_classes, seed=0)
        )
        assert len(pieces) == num_pieces
        assert [row for rows, _ in pieces for row in range(30)[rows]] == list(range(30))
        answers.append(np.concatenate([piece for _, piece in pieces], axis=1))
    np.testing.assert_array_equal(answers[0], answers[1])
    wide = records("continuous", 40, (2**16,))
    query = Service()
    list(answers_about(query, wide, 16, "repeats", kind="continuous", num_classes=2, seed=0))
    assert query.largest <= 2**22
    assert query.num_queries == 16 * 40
