"""The history asked in plain columns: MLflow understands what was meant, and nothing else."""

import math
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.search_utils import SearchUtils

from storage.runs import COLUMNS, NUMBERS, _filter, find_runs
from storage.tracking import PARAM_COLUMNS, Tracker, TrackingAway, default_uri

OURS = [("tag", "sfumato.kind", "=", "row"), ("attribute", "status", "=", "FINISHED")]


def read(text: str) -> list[tuple[str, str, str, Any]]:
    """What MLflow itself reads in a filter, beside what every one of ours says."""
    terms = [
        (t["type"], t["key"], t["comparator"], t["value"])
        for t in SearchUtils.parse_search_filter(text)
    ]
    assert terms[:2] == OURS
    return terms[2:]


# --- the language


@pytest.mark.parametrize(
    ("condition", "term"),
    [
        ("dataset = location30", ("parameter", "dataset", "=", "location30")),
        ("  defense != none ", ("parameter", "defense", "!=", "none")),
        ("label LIKE purif%", ("parameter", "label", "LIKE", "purif%")),
        ("label ilike Purif%", ("parameter", "label", "ILIKE", "Purif%")),
        ("label = reformer only", ("parameter", "label", "=", "reformer only")),
        ("label == 'a and b = c'", ("parameter", "label", "=", "a and b = c")),
        ("label = 'it''s'", ("parameter", "label", "=", "it's")),
        ("label = brandy", ("parameter", "label", "=", "brandy")),
        ("adaptive = true", ("parameter", "adaptive", "=", "True")),
        ("seed = 3", ("parameter", "seed", "=", "3")),
        ("flags = ''", ("parameter", "flags", "IS NULL", None)),
        ('flags <> ""', ("parameter", "flags", "IS NOT NULL", None)),
        ("attack_accuracy>0.6", ("metric", "attack_accuracy", ">", "0.6")),
        ("auc >= 1e-20", ("metric", "auc", ">=", "1e-20")),
        ("auc < 1e20", ("metric", "auc", "<", "1e20")),
        ("num_members = -3", ("metric", "num_members", "=", "-3.0")),
        ("experiment = quick", ("tag", "sfumato.experiment", "=", "quick")),
        ("task_key = 0123ab", ("tag", "sfumato.task_key", "LIKE", "0123ab%")),
        ("task_key = " + "a" * 64, ("tag", "sfumato.task_key", "=", "a" * 64)),
        ("started >= 2024-05-01", ("attribute", "start_time", ">=", 1714521600000)),
        ("started < 2024-05-01T02:00+02:00", ("attribute", "start_time", "<", 1714521600000)),
    ],
)
def test_a_condition_is_what_mlflow_reads(condition: str, term: tuple[str, str, str, Any]) -> None:
    assert read(_filter([condition])) == [term]


def test_conditions_join() -> None:
    terms = read(_filter(["auc > 0.6 and label = a b AND seed != 1", "dataset = d"]))
    assert [(key, value) for _, key, _, value in terms] == [
        ("auc", "0.6"),
        ("label", "a b"),
        ("seed", "1"),
        ("dataset", "d"),
    ]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("attack_acuracy > 0.6", "did you mean 'attack_accuracy'"),
        ("auc > high", "'high' is none; write e.g. auc > 0.6"),
        ("auc > nan", "'nan' is none"),
        ("auc LIKE 0.5", "auc is a number and takes = !="),
        ("dataset > a", "dataset is a text and takes = != LIKE ILIKE"),
        ("started = 2024-05-01", "started is a time and takes < <="),
        ("started > yesterday", "'yesterday' is no date or time"),
        ("seed = a or seed = b", "'or' is not known"),
        ("label = a = b", "more than a value"),
        ("label = 'a' b", "is no condition"),
        ("label = 'a", "is no condition"),
        ("label =", "is no condition"),
        ("label", "is no condition"),
        ("", "is no condition"),
        ("auc > 0.5 and", "is no condition"),
        ("auc > 0.5; drop", "is none"),
        ("label IN ('a')", "is no condition"),
        ("params.`label` = a", "no column 'params.`label`'"),
        ("tags.mlflow.user = x", "no column 'tags.mlflow.user'"),
        ("label = '\"''", "is no condition"),
        ("label = 'a\"b''c'", "MLflow's filters cannot say"),
    ],
)
def test_what_is_no_condition_is_refused_by_place(condition: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        _filter([condition])
    assert str(caught.value).startswith(f"--filter {condition}")


@example("x' OR tags.a = 'b")
@example("x' AND attributes.status = 'RUNNING")
@example('"')
@example("\\")
@example("a\\'")
@example("'; --")
@given(st.text(max_size=30))
def test_no_value_says_more_than_itself(value: str) -> None:
    """Whatever a quoted text holds, MLflow reads that text, or it is refused."""
    quoted = "'" + value.replace("'", "''") + "'"
    conditions = [f"label LIKE {quoted}", "dataset = d"]
    if ("'" in value and '"' in value) or "\\" in value:  # some of these MLflow cannot say
        with suppress(ValueError):
            assert read(_filter(conditions))[0][3] == value
    else:
        meant = [("parameter", "label", "LIKE", value), ("parameter", "dataset", "=", "d")]
        assert read(_filter(conditions)) == meant


@given(st.text(max_size=40))
def test_no_expression_escapes_or_crashes(expression: str) -> None:
    try:
        terms = read(_filter([expression]))
    except ValueError:
        return
    assert all(key.removeprefix("sfumato.") in (*COLUMNS, "start_time") for _, key, *_ in terms)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_arrive_exactly(number: float) -> None:
    ((_, _, _, value),) = read(_filter([f"auc > {number!r}"]))
    assert float(value) == number
    assert math.copysign(1, float(value)) == math.copysign(1, number)


# --- the answers


def result(i: int, **columns: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task_key": f"{i:064x}",
        "label": "purifier" if i % 2 else "none",
        "preset": "cpu",
        "dataset": "location30",
        "seed": i,
        "attack": "nsh",
        "adaptive": i % 3 == 0,
        "auc": 0.5 + ((7 * i) % 12) / 100,
        "num_members": 100 * i,
        "flags": ["leaky", "overlap"] if i == 5 else [],
        "duration_s": 0.0,
        "created_at": datetime(2024, 5, 1, i, tzinfo=UTC),
    }
    return {**row, **columns}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, database: Path) -> str:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mlflow.db").write_bytes(database.read_bytes())
    tracker = Tracker(default_uri(folder), folder)
    tracker.send("exp", [result(i) for i in range(12)])
    tracker.send("other", [result(3, dataset="digits"), result(20, created_at=None, auc=None)])
    return default_uri(folder)


def test_rows_come_back_as_they_were_sent(asked: str) -> None:
    rows = {row["task_key"]: row for row in find_runs(asked, experiment="exp")}
    assert len(rows) == 12
    for i in range(12):
        sent, got = result(i), rows[f"{i:064x}"]
        assert got["started"] == sent.pop("created_at")
        assert got.pop("created_at") == got["started"].isoformat()
        assert got.pop("experiment") == "exp"
        assert got.pop("flags", []) == sent.pop("flags")
        assert {**sent, "started": got["started"]} == got
        assert type(got["seed"]) is type(got["num_members"]) is int


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("sort", ["started", "seed", "auc", "num_members", "label", "task_key"])
def test_sorted_as_python_sorts(asked: str, sort: str, ascending: bool) -> None:
    rows = find_runs(asked, experiment="exp", sort=sort, ascending=ascending)
    values = [row[sort] for row in rows]
    assert values == sorted(values, reverse=not ascending)
    assert len(values) == 12
    first = find_runs(asked, experiment="exp", sort=sort, ascending=ascending, limit=5)
    assert first == rows[:5]


def test_rows_without_the_column_come_last(asked: str) -> None:
    for ascending in (False, True):
        rows = find_runs(asked, sort="auc", ascending=ascending)
        assert [("auc" in row) for row in rows] == [True] * 14 + [False]


@pytest.mark.parametrize(
    ("condition", "meant"),
    [
        ("auc > 0.55", lambda row: row["auc"] > 0.55),
        (
            "num_members <= 300 and label != none",
            lambda r: r["num_members"] <= 300 and r["label"] != "none",
        ),
        ("adaptive = true", lambda row: row["adaptive"]),
        ("seed = 11", lambda row: row["seed"] == 11),
        ("flags LIKE %leaky%", lambda row: "leaky" in row["flags"]),
        ("flags = ''", lambda row: not row["flags"]),
        ("flags != ''", lambda row: row["flags"]),
        ("label LIKE PURIF%", lambda row: False),
        ("label ILIKE PURIF%", lambda row: row["label"] == "purifier"),
        ("started >= 2024-05-01T08:00", lambda row: row["created_at"].hour >= 8),
        (f"task_key = {7:064x}"[:75], lambda row: row["seed"] == 7),
    ],
)
def test_filters_mean_what_they_say(asked: str, condition: str, meant: Any) -> None:
    found = {row["seed"] for row in find_runs(asked, experiment="exp", filters=[condition])}
    assert found == {i for i in range(12) if meant(result(i))}


def test_all_experiments_or_one(asked: str) -> None:
    assert len(find_runs(asked)) == 15
    assert {row["dataset"] for row in find_runs(asked, filters=["experiment = other"])} == {
        "digits",
        "location30",
    }
    with pytest.raises(
        ValueError, match="no history of an experiment 'third'; known: exp, first, other"
    ):
        find_runs(asked, experiment="third")


def test_an_absent_database_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingAway, match=re.escape(f"{tmp_path}/mlflow.db does not exist")):
        find_runs(default_uri(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_absent_server_is_told_without_the_password(closed_port: int) -> None:
    with pytest.raises(TrackingAway, match=r"cannot be read: .*refused") as caught:
        find_runs(f"http://bob:s3cret@127.0.0.1:{closed_port}")
    assert "s3cret" not in str(caught.value)


def test_every_column_is_kept_where_it_is_looked_for() -> None:
    """What `Tracker.send` makes of a row's column decides how it is asked for."""
    assert not NUMBERS & PARAM_COLUMNS
    assert {"auc", "num_queries", "duration_s"} <= NUMBERS <= set(COLUMNS)
