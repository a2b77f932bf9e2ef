"""Columns are held to what rows are held to, and both come back with every bit."""

import struct
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage._schemas import SCHEMAS, to_arrow
from storage.tables import Tables

KEY = "a" * 64
NUMBERS = ("f2", "f4", "f8", ">f8", "i1", "i4", "i8", ">i8", "u2", "u8", "?")
OTHERS = ("U2", "c8", "M8[us]", "S2")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
VALUES = {
    "string": st.text(),
    "double": st.floats() | st.integers(-(2**53), 2**53),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "timestamp[us, tz=UTC]": st.datetimes(
        datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)
    ),
    "list<item: string>": st.lists(st.text(), max_size=3),
    "list<item: double>": st.lists(st.floats(), max_size=3),
}


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path / "tables")


def part(tables: Tables, table: str, key: str) -> Path:
    return tables.root / table / f"part-{key}.parquet"


def outcome(table, content):
    """The rows written, floats as their bytes, or the type of the refusal."""
    try:
        rows = to_arrow(table, content, "task_key", KEY).to_pylist()
    except (TypeError, ValueError) as error:
        return TypeError if isinstance(error, TypeError) else ValueError
    return [
        {n: struct.pack(">d", v) if isinstance(v, float) else v for n, v in row.items()}
        for row in rows
    ]


def same_nan(array):
    """A NaN that is signalling or says more than the usual one may become the usual one."""
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["seed", "auc", "adaptive", "dataset", "created_at", "flags"]),
    st.sampled_from(NUMBERS + OTHERS).flatmap(
        lambda dtype: hnp.arrays(dtype, st.integers(1, 4)).map(same_nan)
    ),
)
def test_an_array_is_taken_or_refused_as_its_values_are(column, array):
    rows = [{column: value} for value in array]
    assert outcome("results", {column: array}) == outcome("results", rows)
    strided = np.repeat(array, 2)[::2]
    assert outcome("results", {column: strided}) == outcome("results", rows)


def test_columns_left_out_are_null_and_the_key_is_filled_in():
    table = to_arrow("scores", {"score": np.array([0.5, -0.0])}, "task_key", KEY)
    assert table.schema == SCHEMAS["scores"]
    assert table["task_key"].to_pylist() == [KEY, KEY]
    assert table["decision"].to_pylist() == [None, None]
    assert str(table["score"].to_pylist()) == "[0.5, -0.0]"
    given_too = {"task_key": [KEY, KEY], "score": np.array([0.5, -0.0])}
    assert to_arrow("scores", given_too, "task_key", KEY).equals(table)


@pytest.mark.parametrize("nothing", [[], {}, {"score": []}, {"score": np.empty(0)}])
def test_no_rows(nothing):
    assert to_arrow("scores", nothing, "task_key", KEY) == SCHEMAS["scores"].empty_table()


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        ({"record": [1, 2], "score": np.zeros(3)}, ValueError, "score has 3 rows, other columns 2"),
        ({"score": np.zeros((2, 2))}, ValueError, r"column score has shape \(2, 2\)"),
        ({"score": np.array(0.5)}, ValueError, "column score has shape"),
        ({"record": [1], "score": 0.5}, TypeError, "column score is 0.5; expected a list"),
        ({"score": 0.5}, TypeError, "A row by itself goes into a list"),
        ({"task_key": KEY}, TypeError, "column task_key is 'aaa"),
        ({"task_key": [KEY, "b"]}, ValueError, "task_key is 'b' in the part of"),
        ({"scores": np.zeros(2)}, ValueError, "no column is named 'scores'; known: task_key"),
        ({"record": np.zeros(2)}, TypeError, "record holds int64, got an array of float64"),
        ({"record": np.array([2**63], "u8")}, ValueError, "record is 9223372036854775808, beyond"),
    ],
)
def test_what_are_no_columns_is_refused_with_its_place(columns, error, match):
    with pytest.raises(error, match=match):
        to_arrow("scores", columns, "task_key", KEY)


def row_of(table):
    owner = "key" if "key" in SCHEMAS[table].names else "task_key"
    return st.fixed_dictionaries(
        {},
        optional={
            field.name: st.none() | VALUES[str(field.type)]
            for field in SCHEMAS[table]
            if field.name != owner
        },
    )


def turned(rows):
    """Rows as columns."""
    names = {name for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([table for table in SCHEMAS if table != "cells"]))
def test_rows_come_back_with_every_bit_and_nulls_for_the_rest(data, table):
    rows = data.draw(st.lists(row_of(table), max_size=3))
    owner = "key" if "key" in SCHEMAS[table].names else "task_key"
    with tempfile.TemporaryDirectory() as folder:
        tables = Tables(Path(folder))
        tables.write(table, KEY, rows)
        back = pq.read_table(part(tables, table, KEY)).to_pylist()
        assert tables.lacking(table, [KEY]) == set()
        assert tables.problems == []
    if any(rows):
        assert exact(to_arrow(table, turned(rows), owner, KEY).to_pylist()) == exact(back)
    expected = [dict.fromkeys(SCHEMAS[table].names) | row | {owner: KEY} for row in rows]
    for row in expected:
        for name in row:
            if row[name] is not None and SCHEMAS[table].field(name).type == "double":
                row[name] = float(row[name])
    assert exact(back) == exact(expected)


def exact(value):
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    return value.hex() if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("row", "error", "match"),
    [
        ({"acu": 0.5}, ValueError, "table results: no column is named 'acu'; known: dataset"),
        ({"experiment": "mine"}, ValueError, "'experiment'"),
        ({"auc": "0.5"}, TypeError, "table results: column auc holds double, got '0.5' \\(str\\)"),
        ({"auc": True}, TypeError, "column auc"),
        ({"seed": 1.0}, TypeError, "column seed"),
        ({"seed": True}, TypeError, "column seed"),
        ({"seed": 2**63}, ValueError, "column seed is 9223372036854775808"),
        ({"adaptive": 1}, TypeError, "column adaptive"),
        ({"dataset": 5}, TypeError, "column dataset"),
        ({"flags": "collapsed"}, TypeError, "column flags"),
        ({"flags": [1]}, TypeError, "column flags"),
        ({"created_at": "2026-01-01"}, TypeError, "column created_at"),
        ({"created_at": datetime(2026, 1, 1)}, ValueError, "without a time zone"),
        ({"task_key": "b" * 64}, ValueError, "task_key is"),
    ],
)
@pytest.mark.parametrize("columns", [False, True])
def test_a_row_the_table_cannot_hold_is_refused_with_its_place(tables, row, error, match, columns):
    with pytest.raises(error, match=match):
        tables.write("results", KEY, turned([row]) if columns else [row])
    assert not part(tables, "results", KEY).exists()


def test_numpy_scalars_sets_and_other_time_zones_are_taken(tables):
    east = timezone(timedelta(hours=2))
    row = {
        "auc": np.float32(0.5),
        "seed": np.int64(3),
        "adaptive": np.True_,
        "flags": {"b", "a"},
        "created_at": NOW.astimezone(east),
        "task_key": KEY,
    }
    tables.write("results", KEY, [row])
    (back,) = pq.read_table(part(tables, "results", KEY)).to_pylist()
    assert (back["auc"], back["seed"], back["adaptive"]) == (0.5, 3, True)
    assert back["flags"] == ["a", "b"]
    assert back["created_at"] == NOW


def test_arrays_are_written_as_their_rows_are(tables):
    records = np.arange(150)
    columns = {"record": records, "is_member": records % 3 == 0, "score": np.sin(records)}
    listed = {name: array.tolist() for name, array in columns.items()}
    tables.write(
        "scores",
        KEY,
        [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)],
    )
    rows = part(tables, "scores", KEY).read_bytes()
    tables.write("scores", KEY, columns)
    assert part(tables, "scores", KEY).read_bytes() == rows
    assert tables.lacking("scores", [KEY]) == set()
