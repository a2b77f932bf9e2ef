"""What is true of the timing attack. Its clock is a made-up one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks.timing import Timing


class Clocked:
    """A service whose n-th answer about a record takes `seconds(record number, n)`.

    Only single rows are answered. `log` has the number of each record asked about.
    """

    def __init__(self, x: Any, seconds: Callable[[int, int], float]) -> None:
        self._number = {record.tobytes(): i for i, record in enumerate(x)}
        self._seconds, self.log = seconds, list[int]()

    @property
    def num_queries(self) -> int:
        return len(self.log)

    def __call__(self, x: Any) -> Any:
        raise AssertionError("an answer without a time tells this attack nothing")

    def timed(self, x: Any) -> tuple[Any, float]:
        assert len(x) == 1
        number = self._number[x[0].tobytes()]
        self.log.append(number)
        return np.zeros(1, dtype=np.int64), self._seconds(number, len(self.log) - 1)


def records(num: int) -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(num, 6)).astype(np.float32)
    return x, np.zeros(num, dtype=np.int64)


def run(attack: Timing, x: Any, seconds: Callable[[int, int], float], seed: int = 0) -> Any:
    query = Clocked(x, seconds)
    known: Any = None  # what it knows is not asked for
    return attack.score(query, known, x, np.zeros(len(x), dtype=np.int64), seed=seed), query


def test_the_score_is_the_median_time() -> None:
    x, _ = records(30)
    attack = Timing(repeats=5, warmups=7)
    rng = np.random.default_rng(1)
    taken: list[list[float]] = [[] for _ in x]

    def seconds(number: int, n: int) -> float:
        time = float(rng.exponential())
        if n >= 7:
            taken[number].append(time)
        return time

    scores, _ = run(attack, x, seconds)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, [np.median(times) for times in taken])
    assert {len(times) for times in taken} == {5}


@pytest.mark.parametrize(("repeats", "warmups"), [(5, 20), (1, 0), (3, 100)])
def test_asks_as_often_as_it_says_a_row_at_a_time(repeats: int, warmups: int) -> None:
    x, _ = records(30)
    _, query = run(Timing(repeats=repeats, warmups=warmups), x, lambda number, n: 1.0)
    assert query.num_queries == repeats * 30 + warmups


def test_every_round_asks_about_everybody_in_an_order_of_its_own() -> None:
    x, _ = records(30)
    attack = Timing(repeats=4, warmups=2)
    orders = [run(attack, x, lambda number, n: 1.0, seed=s)[1].log[2:] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    rounds = np.reshape(orders[0], (4, 30))
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(30), (4, 1)))
    assert len(np.unique(rounds, axis=0)) == 4
    # Where a record stands in the file is not where it stands in a round.
    assert abs(np.corrcoef(rounds[0], np.arange(30))[0, 1]) < 4 / np.sqrt(30)


def test_the_order_is_keyed_by_record() -> None:
    """Records judged in reverse, or with others left out, are asked in the same order."""
    x, _ = records(30)
    attack = Timing(repeats=2, warmups=0)
    order = run(attack, x, lambda number, n: 1.0)[1].log
    backwards = run(attack, x[::-1].copy(), lambda number, n: 1.0)[1].log
    assert [29 - number for number in backwards] == order
    few = run(attack, x[:10], lambda number, n: 1.0)[1].log
    assert few == [number for number in order if number < 10]


def test_slow_starts_and_slow_spells_do_not_count() -> None:
    """The first answers load something; later the machine is busy for a round and a half."""
    x, _ = records(40)
    is_member = np.arange(40) % 2 == 0

    def seconds(number: int, n: int) -> float:
        time = 2.0 if is_member[number] else 1.0
        return time + 100.0 * (n < 20) + 50.0 * (100 <= n < 160)

    scores, _ = run(Timing(), x, seconds)
    np.testing.assert_array_equal(scores, np.where(is_member, 2.0, 1.0))
    unwarmed, _ = run(Timing(warmups=0, repeats=1), x, seconds)
    assert roc_auc_score(is_member, unwarmed) < 1


@pytest.mark.parametrize(("difference", "least", "most"), [(0.0, 0.36, 0.64), (0.3, 0.9, 1.0)])
def test_members_that_take_longer_are_found(difference: float, least: float, most: float) -> None:
    """Answers of a second with a deviation of 0.2; 100 records a side, four deviations of AUC."""
    x, _ = records(200)
    is_member = np.arange(200) < 100
    rng = np.random.default_rng(2)

    def seconds(number: int, n: int) -> float:
        return float(1.0 + difference * is_member[number] + 0.2 * rng.normal())

    scores, _ = run(Timing(), x, seconds)
    assert least < roc_auc_score(is_member, scores) <= most


def test_the_service_is_asked_about_no_more_than_the_records_allow(small_world: Any) -> None:
    assert Timing().most_records == 1000
    assert Timing(**Timing.PRESETS["cpu"]).most_records == 200
    scores, _ = small_world.run(Timing())
    # The made-up clock of the small world tells nothing.
    np.testing.assert_array_equal(scores, np.full(len(scores), 1e-3))
    assert run(Timing(), records(0)[0], lambda number, n: 1.0)[0].shape == (0,)


def test_fields_out_of_range_are_refused() -> None:
    for fields in ({"repeats": 0}, {"warmups": -1}, {"records": 1}):
        with pytest.raises(ValidationError):
            Timing(**fields)
