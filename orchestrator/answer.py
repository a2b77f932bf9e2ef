"""The answer to a query: a table in the terminal, or bytes for another program."""

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.flags import explained
from orchestrator.source import readable
from storage.exports import FORMATS, export, export_file, spell

__all__ = ["MOST_ROWS", "find_format", "print_answer", "print_catalogue", "write_answer"]

MOST_ROWS = 100
_MOST_SHOWN = 2000
# In narrower columns words break in the middle.
_WIDE_ENOUGH = 16
_LONG_NAME = 9


def find_format(given: str | None, out: Path | None) -> str:
    """What to make of an answer: as asked, else as the file is named, else a table.

    Raises:
        ValueError: a table for a file, or bytes for a terminal.
    """
    named = out.suffix.lstrip(".").lower() if out else ""
    form = given or (named if named in FORMATS else "table")
    if form == "table" and out:
        raise ValueError(f"--out {out}: name it .csv, .json or .parquet, or add --format")
    if form == "parquet" and not out and sys.stdout.isatty():
        raise ValueError("Parquet is not for terminals; add --out FILE, or pipe it")
    return form


def write_answer(console: Console, rows: Any, form: str, out: Path | None) -> None:
    """Write an Arrow table to a file, or to standard output."""
    if out:
        export_file(rows, form, out)
        console.print(f"{len(rows)} rows written to {out}", soft_wrap=True)
        return
    export(rows, form, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def print_answer(console: Console, rows: Any) -> None:
    """Print an Arrow table, at most `MOST_ROWS`; one too wide as a block of lines for each row.

    Numbers stand right, with six significant digits; NULL is empty.
    """
    columns = [column.to_pylist() for column in rows.slice(0, MOST_ROWS).columns]
    texts = [[_text(value) for value in column] for column in columns]
    names = [readable(name) for name in rows.column_names]
    if _needed(names, texts) > console.width:
        names = [_folded(name) for name in names]
    if not rows.num_rows:
        console.print(f"no rows; columns: {', '.join(rows.column_names)}", soft_wrap=True)
    elif _needed(names, texts) > console.width:
        _print_blocks(console, rows.column_names, texts)
    else:
        table = Table()
        for name, column in zip(names, columns, strict=True):
            right = all(map(_is_number, column))
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in zip(*texts, strict=True):
            table.add_row(*row)
        console.print(table)
    if "flags" in rows.column_names and (
        meant := explained(_listed(columns[rows.column_names.index("flags")]))
    ):
        console.print(meant)


def print_catalogue(console: Console, views: list[tuple[str, str, int]]) -> None:
    """Print what can be asked: (name, what it holds, number of columns)."""
    table = Table(title="tables and views", title_justify="left")
    table.add_column("name")
    table.add_column("columns", justify="right")
    table.add_column("holds")
    for name, about, num in views:
        table.add_row(name, str(num), about)
    console.print(table)
    console.print('sfumato query "DESCRIBE results" tells the columns of one')


def _print_blocks(console: Console, names: list[str], texts: list[list[str]]) -> None:
    for number, row in enumerate(zip(*texts, strict=True), 1):
        table = Table(title=f"row {number}", title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in zip(names, row, strict=True):
            table.add_row(readable(name), text)
        console.print(table)


def _needed(names: list[str], texts: list[list[str]]) -> int:
    """How wide a table must be to be readable: texts may wrap, short words and numbers not."""
    width = 1
    for name, column in zip(names, texts, strict=True):
        longest = max((len(line) for text in column for line in text.split("\n")), default=0)
        header = max(map(len, name.split("\n")))
        width += max(header, min(longest, _WIDE_ENOUGH)) + 3
    return width


def _folded(name: str) -> str:
    """A long name over several lines, broken after underscores."""
    lines = [""]
    for piece in re.findall(r"[^_]*_?", name):
        if len(lines[-1]) + len(piece) > _LONG_NAME and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _listed(column: list[Any]) -> set[str]:
    """What is in a column of lists of texts; of another, nothing."""
    return {flag for value in column if isinstance(value, list) for flag in value}


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    return value is None or number


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else spell(value)
    # Logs keep their lines, but nothing in them moves the cursor.
    return "\n".join(readable(line, _MOST_SHOWN) for line in text.split("\n"))
