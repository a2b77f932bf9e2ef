"""Answers as CSV, JSON or Parquet, for other programs."""

import json
import math
import os
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage._disk import draft_name

__all__ = ["FORMATS", "export", "export_file", "spell"]

FORMATS = ("csv", "json", "parquet")
_BATCH = 10_000


def export(rows: Any, form: str, sink: BinaryIO) -> None:
    """Write an Arrow table.

    CSV quotes what would be misread without, which an empty text would be as NULL, which is empty;
    lists are joined by spaces. JSON is an array with an
    object a line, in which NaN and infinity, which JSON cannot say, are null. Floats come back
    bit for bit.

    Raises:
        ValueError: another format than `FORMATS`, or a column that Parquet cannot hold.
    """
    if form == "csv":
        _write_csv(rows, sink)
    elif form == "json":
        sink.write(b"[")
        between = b"\n"
        for batch in rows.to_batches(max_chunksize=_BATCH):
            for row in batch.to_pylist():
                text = json.dumps(_said(row), default=str, ensure_ascii=False, allow_nan=False)
                sink.write(between + text.encode())
                between = b",\n"
        sink.write(b"\n]\n")
    elif form == "parquet":
        try:
            pq.write_table(rows, sink, compression="zstd")
        except pa.ArrowException as error:
            raise ValueError(f"Parquet cannot hold this answer: {error}; CAST it in SQL") from error
    else:
        raise ValueError(f"no format is named {form!r}; known: {', '.join(FORMATS)}")


def export_file(rows: Any, form: str, path: Path) -> None:
    """Write an Arrow table to a file, which is there whole or not at all.

    Raises:
        ValueError: there cannot be such a file, or as `export`.
    """
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ValueError(f"cannot write {path}: {why}; name a file")
    draft = path.with_name(draft_name())
    try:
        with open(draft, "xb") as file:
            export(rows, form, file)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def spell(value: Any) -> str:
    """A value as text: lists are joined by spaces."""
    if isinstance(value, list):
        return " ".join(map(spell, value))
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, default=str) if isinstance(value, dict) else str(value)


def _said(value: Any) -> Any:
    """What JSON can say of it."""
    if isinstance(value, dict):
        return {key: _said(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_said(inner) for inner in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(rows: Any, sink: BinaryIO) -> None:
    # Arrow's own writer quotes every text.
    flat = pa.table([_flat(column) for column in rows.columns], rows.column_names)
    sink.write(",".join(_quoted(pa.array(rows.column_names)).to_pylist()).encode() + b"\n")
    for batch in flat.to_batches(max_chunksize=_BATCH):
        columns = [pc.fill_null(_quoted(column), "") for column in batch.columns]
        lines = pc.binary_join_element_wise(*columns, ",").to_pylist()
        sink.write("".join(f"{line}\n" for line in lines).encode())


def _quoted(column: Any) -> Any:
    """Values as texts, in quotes where they need some."""
    kind, texts = column.type, column.cast(pa.string())
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        return texts
    needy = pc.or_(pc.match_substring_regex(texts, '[",\r\n]'), pc.equal(texts, ""))
    inner = pc.replace_substring(texts, '"', '""')
    return pc.if_else(needy, pc.binary_join_element_wise('"', inner, '"', ""), texts)


def _flat(column: Any) -> Any:
    """A column that CSV can hold."""
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_interval(kind) or pa.types.is_binary(kind):
        texts = [None if value is None else spell(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return column
