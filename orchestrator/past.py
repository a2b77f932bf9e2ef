"""The run history and its rebuilding, as people see them: a table, CSV, JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.flags import explained
from orchestrator.source import readable
from storage.runs import NUMBERS
from storage.tracking import Rebuilt

__all__ = ["default_columns", "print_rebuilt", "print_runs"]

_NAMES = ("experiment", "dataset", "seed", "label", "attack_label")
_FIGURES = ("attack_accuracy", "auc", "flags", "task_key")
# What rows of the same names may differ in, where settings were changed between two runs.
_SETTINGS = (
    *("preset", "architecture", "target_params", "defense_params", "attack_params", "adaptive"),
    *("judge", "noise_policy", "num_members", "num_nonmembers", "dataset_hash"),
)
_KEY_SHOWN = 12


def default_columns(rows: Sequence[Mapping[str, Any]], form: str) -> list[str]:
    """What to show if nothing else is asked; in a table, also settings that tell alike rows apart.

    For programs the columns are always the same.
    """
    telling: set[str] = set()
    if form == "table":
        alike: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for row in rows:
            first = alike.setdefault(tuple(row.get(name) for name in _NAMES), row)
            telling |= {name for name in _SETTINGS if row.get(name) != first.get(name)}
    settings = [name for name in _SETTINGS if name in telling]
    return ["started", *_NAMES, *settings, *_FIGURES]


def print_runs(
    console: Console, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: str
) -> None:
    """Print rows of `find_runs` as a "table", for people, or as "csv" or "json", for programs."""
    if form == "table":
        console.print(_table(rows, columns))
        if "flags" in columns and (
            meant := explained(flag for row in rows for flag in row.get("flags") or ())
        ):
            console.print(meant)
    elif form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
        console.out(out.getvalue().rstrip("\n"), highlight=False)
    else:
        picked = [{name: row.get(name) for name in columns} for row in rows]
        console.out(json.dumps(picked, indent=1, default=_cell), highlight=False)


def print_rebuilt(console: Console, done: Mapping[str, Rebuilt], address: str) -> None:
    """Print what a rebuild kept, added and removed."""
    table = Table()
    table.add_column("experiment", overflow="fold")
    for column in ("kept", "added", "removed"):
        table.add_column(column, justify="right")
    for name, counts in done.items():
        numbers = (counts.kept, counts.added, counts.removed)
        table.add_row(readable(name), *map(str, numbers))
    console.print(f"the history at {address}, from the tables:", soft_wrap=True)
    console.print(table)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = Table()
    for name in columns:
        right = "right" if name in NUMBERS else "left"
        table.add_column(name, justify=right, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(_shown(name, row.get(name)) for name in columns))
    return table


def _shown(name: str, value: Any) -> str:
    if name == "task_key":
        return str(value)[:_KEY_SHOWN]
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return readable(", ".join(value) if isinstance(value, list) else str(_cell(value)))


def _cell(value: Any) -> Any:
    """A value as one text or number; nothing is empty."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else value
