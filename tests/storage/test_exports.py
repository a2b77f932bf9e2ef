"""Exports: what is written comes back, whole or not at all."""

import csv
import io
import json
import math
import struct

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.exports import FORMATS, export, export_file

NAMES = st.sampled_from(["none", "purifier (no swapper)", "x, y"])
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "num": st.none() | st.integers(-(2**63), 2**63 - 1),
            "score": st.none() | st.floats(),
            "name": st.none() | TEXT,
            "yes": st.none() | st.booleans(),
            "flags": st.none() | st.lists(st.sampled_from(["overlap", "collapsed"])),
        }
    ),
    max_size=5,
)
SCHEMA = pa.schema(
    [
        ("num", pa.int64()),
        ("score", pa.float64()),
        ("name", pa.string()),
        ("yes", pa.bool_()),
        ("flags", pa.list_(pa.string())),
    ]
)


def written(rows, form):
    sink = io.BytesIO()
    export(rows, form, sink)
    return sink.getvalue()


def bits(value):
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack(">d", value)
    return value


@given(ROWS)
def test_rows_come_back(rows):
    table = pa.Table.from_pylist(rows, SCHEMA)
    exact = [{name: bits(value) for name, value in row.items()} for row in rows]
    back = pq.read_table(io.BytesIO(written(table, "parquet"))).to_pylist()
    assert [{name: bits(value) for name, value in row.items()} for row in back] == exact

    for row, got in zip(rows, json.loads(written(table, "json")), strict=True):
        score = row["score"]
        told = score if score is not None and math.isfinite(score) else None
        assert {n: bits(v) for n, v in got.items()} == {
            n: bits(v) for n, v in {**row, "score": told}.items()
        }

    flat = pyarrow.csv.ConvertOptions(
        column_types={**dict(zip(SCHEMA.names, SCHEMA.types, strict=True)), "flags": pa.string()},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    back = pyarrow.csv.read_csv(io.BytesIO(written(table, "csv")), convert_options=flat)
    for row, got in zip(rows, back.to_pylist(), strict=True):
        flags = None if row["flags"] is None else " ".join(row["flags"])
        expected = {**row, "flags": flags}
        assert {n: bits(v) for n, v in got.items()} == {n: bits(v) for n, v in expected.items()}


def quoted(text):
    if text and not set(text) & set(',"\n\r'):
        return text
    return '"' + text.replace('"', '""') + '"'


@given(st.lists(st.tuples(st.none() | st.text("a ,\"'\n\r\té", max_size=4), st.none() | NAMES)))
def test_csv_quotes_what_needs_it_and_nothing_else(rows):
    names = ["a,b", "c"]
    columns = zip(*rows, strict=True) if rows else ([], [])
    kinds = [pa.string(), pa.large_string()]
    arrays = [pa.array(list(c), kind) for c, kind in zip(columns, kinds, strict=True)]
    text = written(pa.table(arrays, names), "csv").decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        names,
        *([value or "" for value in row] for row in rows),
    ]
    slow = '"a,b",c\n'
    for row in rows:
        slow += ",".join("" if value is None else quoted(value) for value in row) + "\n"
    assert text == slow


def test_json_is_an_array_with_an_object_a_line():
    table = pa.table({"a": [1, 2], "é": ["x", None]})
    assert written(table, "json").decode() == '[\n{"a": 1, "é": "x"},\n{"a": 2, "é": null}\n]\n'
    assert json.loads(written(table.slice(0, 0), "json")) == []


def test_what_formats_lack_becomes_text():
    table = pa.table(
        {
            "sum": pa.array([3], pa.decimal128(38, 0)),
            "struct": [{"a": 1.5}],
            "lists": [[[1.0, 2.5], [math.nan]]],
            "at": [pd.Timestamp("2026-01-02 03:04:05")],
            "bytes": [b"\x00"],
        }
    )
    (got,) = json.loads(written(table, "json"))
    assert got["sum"] == 3
    assert got["struct"] == {"a": 1.5}
    assert got["lists"] == [[1.0, 2.5], [None]]
    assert got["at"] == "2026-01-02 03:04:05"
    line = written(table, "csv").decode().splitlines()[1]
    assert line.startswith('3,"{""a"": 1.5}",1.0 2.5 nan,2026-01-02 03:04:05')


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_whole_or_not_there(tmp_path, form):
    path = tmp_path / f"answer.{form}"
    path.write_text("older")

    class Broken:
        """An answer of which only some can be written."""

        column_names = ("a",)

        def __getattr__(self, name):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        export_file(Broken(), form, path)
    assert path.read_text() == "older"
    export_file(pa.table({"a": [1]}), form, path)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    assert b"a" in path.read_bytes()


@pytest.mark.parametrize("name", ["", "missing/answer.csv"])
def test_a_place_that_cannot_hold_a_file_is_told(tmp_path, name):
    with pytest.raises(ValueError, match="name a file"):
        export_file(pa.table({"a": [1]}), "csv", tmp_path / name)


def test_an_unknown_format_and_a_column_parquet_lacks_are_told():
    with pytest.raises(ValueError, match="csv, json, parquet"):
        export(pa.table({"a": [1]}), "xml", io.BytesIO())
    spans = pa.table({"span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(ValueError, match="CAST"):
        export(spans, "parquet", io.BytesIO())
    assert b"1" in written(spans, "csv")
