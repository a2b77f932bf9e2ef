"""How fast, and in how much memory, RMIA scores 50,000 records; recorded, time never judged.

The baseline compares all pairs in pieces of records, in the same run and in turn: counting alone
(10,000 population records), and all of the scoring, from the answers of 128 shadow models on. The
scores of both must be the same bits. Memory is what is allocated at most beyond the inputs.
"""

import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest

from attacks._ratio import mean_over, offline, ratio, share_exceeded

SORTED, PAIRS = "sorted, one search", "all pairs in pieces"
NUM_SHADOWS, NUM_RECORDS, NUM_POPULATION = 128, 50_000, 10_000
PIECE, ROUNDS = 500, 5
MOST_BYTES = 2 * 10**9


def all_pairs(ratio_x: Any, ratio_z: Any, gamma: float) -> Any:
    """The definition, over some records at a time."""
    least = gamma * ratio_z
    pieces = [
        (ratio_x[start : start + PIECE, None] > least).mean(axis=1)
        for start in range(0, len(ratio_x), PIECE)
    ]
    return np.concatenate(pieces)


def peak(way: Callable[[], Any]) -> int:
    """Bytes allocated at most while it runs."""
    tracemalloc.start()
    way()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def compare(benchmark: Any, keep: Any, what: str, ways: dict[str, Callable[[], Any]]) -> None:
    """Time the ways in turn, so that a neighbour on the machine slows both."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}

    def measure() -> None:
        for name, way in ways.items():
            started = time.perf_counter()
            scores[name] = way()
            taken[name].append(time.perf_counter() - started)

    benchmark.pedantic(measure, rounds=1 if benchmark.disabled else ROUNDS)
    assert scores[SORTED].tobytes() == scores[PAIRS].tobytes()
    rows = {
        f"{what}: {name}": {"seconds": median(taken[name]), "peak, MB": peak(way) / 1e6}
        for name, way in ways.items()
    }
    fast = rows[f"{what}: {SORTED}"]
    assert fast["peak, MB"] < MOST_BYTES / 1e6
    ratios = [slow / fast for slow, fast in zip(taken[PAIRS], taken[SORTED], strict=True)]
    fast["faster by"] = median(ratios)
    keep("rmia", rows, records=NUM_RECORDS, population=NUM_POPULATION, shadows=NUM_SHADOWS)


@pytest.fixture
def sizes(benchmark: Any) -> tuple[int, int, int]:
    """Shadow models, records and population; small where nothing is timed."""
    full = (NUM_SHADOWS, NUM_RECORDS, NUM_POPULATION)
    return (8, 2000, 500) if benchmark.disabled else full


def test_counting(benchmark: Any, keep: Any, sizes: tuple[int, int, int]) -> None:
    _, num_records, num_population = sizes
    rng = np.random.default_rng(0)
    ratio_x, ratio_z = rng.lognormal(size=num_records), rng.lognormal(size=num_population)
    ways = {
        SORTED: lambda: share_exceeded(ratio_x, ratio_z, 2.0),
        PAIRS: lambda: all_pairs(ratio_x, ratio_z, 2.0),
    }
    compare(benchmark, keep, "counting", ways)


def test_whole_scoring(benchmark: Any, keep: Any, sizes: tuple[int, int, int]) -> None:
    num_shadows, num_records, num_population = sizes
    rng = np.random.default_rng(1)
    p_x, target_x = rng.random((num_shadows, num_records)), rng.random(num_records)
    p_z, target_z = rng.random((num_shadows, num_population)), rng.random(num_population)
    role_x = rng.integers(0, 2, p_x.shape, dtype=np.int8)
    role_z = rng.integers(0, 2, p_z.shape, dtype=np.int8)

    def scoring(count: Callable[[Any, Any, float], Any]) -> Any:
        ratio_x = ratio(target_x, offline(mean_over(p_x, role_x == 0)[0], 0.33))
        ratio_z = ratio(target_z, offline(mean_over(p_z, role_z == 0)[0], 0.33))
        return count(ratio_x, ratio_z, 2.0)

    ways = {SORTED: lambda: scoring(share_exceeded), PAIRS: lambda: scoring(all_pairs)}
    compare(benchmark, keep, "128 shadow models, whole scoring", ways)
