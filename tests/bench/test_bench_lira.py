"""How fast LiRA scores 50,000 records against 128 shadow models; recorded, never judged.

The yardstick is one numpy pass of Gaussian log-densities over the same array.
"""

import time
from statistics import median
from typing import Any

import numpy as np
import pytest

from attacks._likelihood import lira

NUM_SHADOWS, NUM_RECORDS = 128, 50_000


@pytest.fixture(scope="module")
def signals() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shadow = rng.normal(size=(NUM_SHADOWS, NUM_RECORDS, 1))
    return rng.normal(size=(NUM_RECORDS, 1)), shadow, rng.random((NUM_SHADOWS, NUM_RECORDS)) < 0.5


@pytest.mark.parametrize("global_variance", [False, True])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_score(benchmark: Any, keep: Any, signals: Any, mode: Any, global_variance: bool) -> None:
    target, shadow, is_in = signals
    mean, deviation = shadow.mean(axis=0), shadow.std(axis=0)
    densities_s = []

    def densities() -> None:
        # Timed in turn with the scores, so that a neighbour on the machine slows both.
        start = time.perf_counter()
        _ = -0.5 * ((shadow - mean) / deviation) ** 2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
        densities_s.append(time.perf_counter() - start)

    scores = benchmark.pedantic(
        lira,
        (target, shadow, is_in, ~is_in),
        {"mode": mode, "global_variance": global_variance},
        setup=densities,
        rounds=5,
    )
    assert scores.shape == (NUM_RECORDS,)
    if benchmark.stats is not None:  # None under --benchmark-disable
        seconds, yardstick = benchmark.stats.stats.median, median(densities_s)
        row = {"seconds": seconds, "density pass": yardstick, "ratio": seconds / yardstick}
        keep("lira", {f"{mode}, {'one variance' if global_variance else 'per record'}": row})
