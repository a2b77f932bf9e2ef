"""How fast 10 million scores are aggregated in SQL, in many parts and in few; never judged.

The yardsticks: pyarrow reading the same columns of the same files, checksums included, and one
numpy pass for the same means over arrays that are in memory already.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.queries import query
from storage.tables import Tables

SQL = "SELECT task_key, is_member, avg(score) AS score FROM scores GROUP BY ALL"
COLUMNS = ["task_key", "is_member", "score"]


def timed(seconds: list[float], work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    done = work()
    seconds.append(time.perf_counter() - start)
    return done


@pytest.mark.parametrize("num_parts", [1000, 100])
def test_query(benchmark: Any, keep: Any, tmp_path: Path, num_parts: int) -> None:
    num_rows = 10_000_000 // num_parts
    if benchmark.disabled:
        num_parts, num_rows = 3, 200
    rng = np.random.default_rng(0)
    tables = Tables(tmp_path / "tables")
    is_member, score = (
        rng.random((num_parts, num_rows)) < 0.5,
        rng.normal(size=(num_parts, num_rows)),
    )
    keys = sorted(hashlib.sha256(b"%d" % part).hexdigest() for part in range(num_parts))
    for part, key in enumerate(keys):
        columns = {
            "record": np.arange(num_rows),
            "is_member": is_member[part],
            "score": score[part],
        }
        tables.write("scores", key, columns)
    group = (2 * np.arange(num_parts)[:, None] + is_member).ravel()
    read_s: list[float] = []
    pass_s: list[float] = []

    def read() -> Any:
        for path in tables.parts("scores"):
            pq.read_table(path, columns=COLUMNS, page_checksum_verification=True)

    def means() -> Any:
        return np.bincount(group, score.ravel()) / np.bincount(group)

    def yardsticks() -> None:
        # Timed in turn with the query, so that a neighbour on the machine slows all.
        timed(read_s, read)
        timed(pass_s, means)

    frame = benchmark.pedantic(query, (tmp_path, SQL), setup=yardsticks, rounds=5)
    found = frame.sort_values(["task_key", "is_member"])
    assert found["task_key"].unique().tolist() == keys
    np.testing.assert_allclose(found["score"], means(), rtol=1e-9, atol=1e-12)
    if benchmark.stats is not None:  # None under --benchmark-disable
        seconds = benchmark.stats.stats.median
        row = {
            "seconds": seconds,
            "pyarrow read": median(read_s),
            "numpy pass": median(pass_s),
            "ratio to read": seconds / median(read_s),
            "ratio to pass": seconds / median(pass_s),
        }
        keep("query", {f"{num_parts} parts of {num_rows} rows": row})
