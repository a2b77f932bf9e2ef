"""What every benchmark does with its numbers: one table on the terminal, one JSON file kept."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

KEPT = Path(".benchmarks")
Rows = Mapping[str, Mapping[str, float]]


@pytest.fixture
def keep(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """`keep(name, rows, **facts)`: rows of numbers, printed and kept as `.benchmarks/NAME.json`.

    Rows of an earlier benchmark under the same name stay, so that a parametrised one fills one
    file. Nothing happens under `--benchmark-disable`, where nothing was timed.
    """

    def keep(name: str, rows: Rows, **facts: object) -> None:
        if benchmark.disabled:
            return
        benchmark.extra_info.update(rows=rows, **facts)
        KEPT.mkdir(exist_ok=True)
        path = KEPT / f"{name}.json"
        earlier = json.loads(path.read_text()) if path.exists() else {"rows": {}}
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        kept = {**earlier, **facts, **machine, "rows": {**earlier["rows"], **rows}}
        path.write_text(json.dumps(kept, indent=1))
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        table = Table(
            "", *columns, title=f"{name} {' '.join(f'{k}={v}' for k, v in facts.items())}"
        )
        for label, row in rows.items():
            table.add_row(label, *(f"{row[c]:.4g}" if c in row else "" for c in columns))
        with capsys.disabled():
            Console(width=160).print("\n", table)

    return keep
