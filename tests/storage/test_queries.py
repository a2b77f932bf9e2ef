"""Queries: what frames show, over what is sound."""

import hashlib
import math
from datetime import UTC, datetime

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.queries import READY, ask, catalogue, connect, query
from storage.tables import SCHEMAS, Tables, view_schema

A, B, C = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b", b"c"))
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NUM = 150
SCORES = {
    "record": np.arange(NUM),
    "is_member": np.arange(NUM) % 3 == 0,
    "score": np.sin(np.arange(NUM)),
}


def cell(label, kind="attack", key=A, attack="gap", seed=3, **more):
    attack = attack if kind == "attack" else None
    about = {"label": label, "kind": kind, "task_key": key, "attack": attack, "seed": seed}
    return {"dataset": "synth_hard", "status": "done", **about, **more}


@pytest.fixture
def filled(tmp_path):
    tables = Tables(tmp_path / "store" / "tables")
    result = {"dataset": "synth_hard", "seed": 3, "attack": "gap", "auc": 0.1 + 0.2}
    tables.write("results", A, [result | {"flags": ["overlap"], "created_at": NOW}])
    tables.write("utility", B, [{"dataset": "synth_hard", "seed": 3, "test_accuracy": 0.75}])
    tables.write("scores", A, SCORES)
    tables.write("scores", C, [{"record": 0, "is_member": True, "score": 7.0}])
    tables.write_cells("mine", [cell("raw"), cell("same", attack="g"), cell("raw", "utility", B)])
    return tables


def part(tables, table, key):
    return tables.root / table / f"part-{key}.parquet"


def rows(tables, sql):
    return list(zip(*ask(tables, sql).to_pydict().values(), strict=True))


@pytest.mark.parametrize("full", [False, True])
def test_views_have_their_columns_whether_or_not_there_are_parts(filled, tmp_path, full):
    tables = filled if full else Tables(tmp_path / "nothing")
    for view in SCHEMAS:
        names = ask(tables, f"SELECT * FROM {view}").column_names
        assert names == view_schema(view).names == list(tables.frame(view).columns)
    for view in READY:
        empty = view in ("slowest", "mean_inversion", "mean_attribute", "fooled")
        assert bool(len(ask(tables, f"FROM {view}"))) == (full and not empty)
    assert not (tmp_path / "nothing").exists()


def test_everything_that_can_be_asked_is_described(filled):
    told = {view: num for view, about, num in catalogue() if about}
    assert list(told) == [*SCHEMAS, *READY]
    for view, num in told.items():
        assert len(ask(filled, f"DESCRIBE {view}")) == num
    assert {name for (name,) in rows(filled, "SHOW TABLES")} == set(told)


def test_a_query_sees_what_a_frame_sees(filled):
    wanted = "SELECT label, auc, created_at, flags FROM results WHERE experiment = 'mine'"
    now = NOW.replace(tzinfo=None)
    assert rows(filled, wanted) == [
        ("raw", 0.1 + 0.2, now, ["overlap"]),
        ("same", 0.1 + 0.2, now, ["overlap"]),
    ]
    assert rows(filled, "SELECT created_at::VARCHAR FROM results LIMIT 1") == [
        ("2026-01-02 03:04:05.678901",)
    ]
    joined = "SELECT max(score) FROM scores JOIN results USING (task_key) WHERE label = 'raw'"
    assert rows(filled, joined) == [(SCORES["score"].max(),)]


@pytest.mark.parametrize(
    "where",
    [
        f"task_key = '{A}'",
        f"task_key <> '{A}'",
        f"task_key IN ('{C}', 'x')",
        f"task_key > '{A}' AND score > 0.5",
        f"task_key = '{C}' OR NOT is_member",
        "task_key IS NULL",
        "task_key LIKE '%a%'",
        "score > 0.9 OR record < 3",
        "decision IS NULL",
    ],
)
def test_scores_are_the_same_read_in_place_or_whole(filled, where):
    """Filters are worked out by Arrow on scores in place, by DuckDB on the whole."""
    filled.write("scores", B, [{"record": 0, "score": math.nan}, {"record": 1, "score": math.inf}])
    sql = f"SELECT task_key, record FROM scores WHERE {where} ORDER BY ALL"
    with connect(filled) as in_place, connect(filled, scores=False) as whole:
        assert in_place.execute(sql).fetchall() == whole.execute(sql).fetchall()


@pytest.mark.parametrize("view", ["'sco' || 'res'", "'res' || 'ults'"])
def test_a_view_found_by_a_name_put_together_has_its_rows(filled, view):
    assert len(ask(filled, f"FROM query_table({view})")) == (NUM + 1 if "sco" in view else 2)


def test_only_what_is_asked_is_read(filled):
    for table in ("results", "cells"):
        for path in filled.parts(table):
            path.write_bytes(b"rubbish")
    assert rows(filled, "SELECT count(*) FROM utility u, (SELECT 1) WHERE false") == [(0,)]
    ask(filled, "SELECT avg(score) FROM scores")
    ask(filled, "DESCRIBE results")
    assert [problem for problem in filled.problems if "results" in problem] == []


def test_damaged_parts_are_left_out_and_told(filled):
    part(filled, "results", A).write_bytes(b"rubbish")
    part(filled, "scores", C).write_bytes(b"rubbish")
    assert rows(filled, "SELECT count(*) FROM results") == [(0,)]
    assert rows(filled, "SELECT count(*) FROM scores") == [(NUM,)]
    damaged, lacking, other = filled.problems
    assert A in damaged
    assert "results lacks the rows of 1 finished cells" in lacking
    assert C in other


def test_a_damaged_page_of_scores_stops_a_connection_and_is_left_out_by_ask(filled):
    path = part(filled, "scores", A)
    data = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(3)  # score
    data[at.data_page_offset + at.total_compressed_size - 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(duckdb.Error, match=r"(?i)crc|checksum"):
        connect(filled).execute("SELECT sum(score) FROM scores").fetchall()
    assert rows(filled, "SELECT sum(score) FROM scores") == [(7.0,)]
    (problem,) = filled.problems
    assert str(path) in problem


@pytest.mark.parametrize(
    ("sql", "number"),
    [
        ("WITH a AS (FROM cells) SELECT * FROM a", 3),
        ("FROM results;", 2),
        ("VALUES (1), (2)", 2),
        ("TABLE cells", 3),
        ("/* why */ SELECT 1 -- not", 1),
        ("PIVOT results ON label USING count(*)", 1),
        ("PIVOT results ON label IN ('raw') USING count(*)", 1),
        ("SUMMARIZE results", len(view_schema("results"))),
        ("SHOW results", len(view_schema("results"))),
        ("EXPLAIN SELECT 1", 1),
        ("EXPLAIN ANALYZE SELECT count(*) FROM scores", 1),
        ("SELECT unnest(flags) FROM results", 2),
    ],
)
def test_what_reads_is_answered(filled, sql, number):
    assert len(ask(filled, sql)) >= number


NUMBERS = st.sampled_from([None, math.nan, 0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
ROWS = st.lists(
    st.tuples(
        st.sampled_from("de"),
        st.sampled_from(["raw", "defended"]),
        st.sampled_from(["gap", "nsh", "lira"]),
        st.integers(0, 3),
        st.sampled_from(["now", "before"]),
        st.fixed_dictionaries({"attack_accuracy": NUMBERS, "auc": NUMBERS, "precision": NUMBERS}),
        st.none() | st.sets(st.sampled_from(["collapsed", "overlap", "leaky"])),
    ),
    max_size=16,
    unique_by=lambda row: row[:5],
)


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_means_over_seeds_of_the_same_settings_are_those_of_pandas(drawn):
    listed = {"results": [], "utility": []}
    for dataset, label, attack, seed, when, numbers, flags in drawn:
        about = {"experiment": "mine", "dataset": dataset, "label": label, "seed": seed}
        about |= {"service": when, "settings": when, "current": when == "now"}
        listed["results"].append(about | numbers | {"attack_label": attack, "flags": flags})
        if attack == "gap":
            costs = {"test_accuracy": numbers["precision"], "fit_ratio": numbers["auc"]}
            listed["utility"].append(about | costs)
    with duckdb.connect() as connection:
        for view, content in listed.items():
            table = pa.Table.from_pylist(content, schema=view_schema(view))
            connection.register(view, table)
        for view in ("mean_results", "mean_utility", "tradeoff"):
            connection.execute(f"CREATE VIEW {view} AS {READY[view]}")
        results, utility, means, costs, front = (
            connection.sql(f"FROM {view}").to_arrow_table().to_pandas()
            for view in ("results", "utility", "mean_results", "mean_utility", "tradeoff")
        )
    ordered = ["experiment", "dataset", "settings", "label"]
    for frame in (results, utility):
        frame["settings"] = frame["settings"].replace("before", "then")  # the current come first
    groups = results.groupby([*ordered, "attack_label"])
    assert len(means) == groups.ngroups
    for (names, group), (_, got) in zip(groups, means.iterrows(), strict=True):
        assert (*got[:2], "now" if got["current"] else "then", *got[2:4]) == names
        assert got["num_seeds"] == group["seed"].nunique()
        for column in ("attack_accuracy", "auc", "tpr_at_fpr_0_01"):
            same(got[column], group[column].mean())
            same(got[f"{column}_std"], group[column].std())
        raised = [flag for flags in group["flags"] if flags is not None for flag in flags]
        assert list(got["flags"]) == sorted(set(raised))
    groups = utility.groupby(ordered)
    assert len(costs) == groups.ngroups
    for (names, group), (_, got) in zip(groups, costs.iterrows(), strict=True):
        assert (*got[:2], "now" if got["current"] else "then", got["label"]) == names
        same(got["test_accuracy"], group["test_accuracy"].mean())
        same(got["test_accuracy_std"], group["test_accuracy"].std())
    keys = ["experiment", "dataset", "label", "service", "current"]
    known = pd.concat([means[keys], costs[keys]]).drop_duplicates()
    assert len(front) == len(known)
    for _, got in front.iterrows():
        mine = means[(means[keys] == got[keys]).all(axis=1)]
        cost = costs[(costs[keys] == got[keys]).all(axis=1)]
        same(got["attack_accuracy"], mine["attack_accuracy"].max())
        if len(mine) and not math.isnan(mine["attack_accuracy"].max()):
            by_name = mine.sort_values("attack_label").set_index("attack_label")
            assert got["attack_label"] == by_name["attack_accuracy"].idxmax()
        same(got["fit_ratio"], cost["fit_ratio"].mean())


def same(a, b):
    assert a == pytest.approx(b, rel=1e-12, abs=1e-12, nan_ok=True)


def test_the_longest_task_comes_first(filled):
    for key, seconds in ((A, 1.0), (B, None), (C, 3.0)):
        filled.write("tasks", key, [{"kind": "answers", "duration_s": seconds}])
    assert rows(filled, "SELECT key FROM slowest") == [(C,), (A,), (B,)]


def test_columns_of_one_name_are_told_apart(filled):
    answer = ask(filled, "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a")
    assert answer.column_names == ["a", "a_2", "a_1", "a_3"]
    assert [column[0].as_py() for column in answer.columns] == [1, 2, 3, 4]


def test_no_more_rows_than_wanted(filled):
    assert len(ask(filled, "FROM scores", first=7)) == 7
    assert len(ask(filled, "FROM range(1000000000000)", first=7)) == 7  # or it would never end
    assert len(ask(filled, "FROM scores WHERE false", first=7)) == 0


def test_two_lines_give_a_frame(filled):
    frame = query(str(filled.root.parent), "SELECT label, auc FROM results ORDER BY label")
    assert frame.to_dict("list") == {"label": ["raw", "same"], "auc": [0.1 + 0.2] * 2}


def test_a_frame_warns_of_damage(filled):
    part(filled, "results", A).write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="damaged"):
        assert query(filled.root.parent, "FROM results").empty


def test_a_folder_without_tables_is_no_store(tmp_path):
    with pytest.raises(ValueError, match="sfumato run"):
        query(tmp_path, "SELECT 1")


def test_attacks_on_records_and_attributes_are_averaged_apart(filled):
    """Over seeds of the same settings; a task that is not done yet changes no mean."""
    seeds = {A: 0, B: 1}
    for table, figure in (("inversion", "inversion_error"), ("attribute", "balanced_accuracy")):
        cells = []
        for key, seed in seeds.items():
            row = {"dataset": "faces", "seed": seed, figure: 0.25 * (seed + 1), "flags": ["leaky"]}
            row |= {"attribute": "race"} if table == "attribute" else {}
            filled.write(table, key, [row])
            cells.append(cell("raw", table, key, seed=seed, settings="s", service="t"))
        cells.append(cell("raw", table, C, seed=2, status="waiting", settings="s", service="t"))
        for each in cells:
            each["attack"] = "rebuild"
        filled.write_cells(f"of-{table}", cells)
        asked = f"SELECT label, attack_label, num_seeds, {figure}, {figure}_std, flags, current"
        (row,) = rows(filled, f"{asked} FROM mean_{table} WHERE experiment = 'of-{table}'")
        assert row[:4] == ("raw", "rebuild", 2, 0.375)
        assert row[4] == pytest.approx(0.25 / np.sqrt(2))
        assert row[5:] == (["leaky"], True)
    assert filled.problems == []


def test_finished_cells_without_rows_are_told_of_every_kind(filled):
    filled.write_cells(
        "faces", [cell("raw", kind, "f" * 64) for kind in ("inversion", "attribute")]
    )
    for view in ("inversion", "attribute"):
        assert ask(filled, f"SELECT current, label FROM {view}").num_rows == 0
        assert f"{view} lacks the rows of 1 finished cells" in filled.problems[-1]
