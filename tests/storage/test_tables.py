"""Tables: parts by task key, damage never trusted, views that join them."""

import hashlib
import math
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.tables import MEASURED, SCHEMAS, Tables, equal

A, B, C = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b", b"c"))
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
RESULT = {
    "dataset": "synth_hard",
    "seed": 3,
    "attack": "gap",
    "adaptive": False,
    "num_members": 200,
    "auc": 0.1 + 0.2,
    "auc_low": -0.0,
    "auc_high": math.nan,
    "flags": ["underpowered", "overlap"],
    "duration_s": 1.5,
    "created_at": NOW,
}
SCORES = [
    {"record": i, "is_member": i % 3 == 0, "score": math.sin(i), "decision": i % 2 == 0}
    for i in range(150)
]
CELLS = [
    {"label": "raw", "seed": 3, "attack": "gap", "kind": "attack", "task_key": A, "status": "done"},
    {"label": "same", "seed": 3, "attack": "g", "kind": "attack", "task_key": A, "status": "done"},
    {"label": "raw", "attack": "nsh", "kind": "attack", "task_key": C, "status": "failed"},
    {"label": "raw", "attack": "lira", "kind": "attack", "status": "not applicable"},
    {"label": "raw", "seed": 3, "kind": "utility", "task_key": B, "status": "done"},
]


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path / "tables")


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    tables = Tables(tmp_path_factory.mktemp("once"))
    tables.write("results", A, [RESULT])
    tables.write("utility", B, [{"dataset": "synth_hard", "seed": 3, "test_accuracy": 0.75}])
    tables.write("scores", A, SCORES)
    tables.write("results", "f" * 64, [RESULT | {"auc": 1.0}])  # another experiment's
    tables.write_cells("mine", CELLS)
    return tables


@pytest.fixture
def filled(tables, written_once):
    """A copy: writing waits for the disk some ten times."""
    shutil.copytree(written_once.root, tables.root)
    return tables


def part(tables: Tables, table: str, key: str) -> Path:
    return tables.root / table / f"part-{key}.parquet"


@pytest.mark.parametrize("key", ["", "../x", "A" * 64, "a" * 63, A + "\n"])
def test_what_is_no_key_never_becomes_a_path(tables, key):
    for use in (
        lambda: tables.write("results", key, []),
        lambda: tables.lacking("results", [key]),
        lambda: tables.remove("results", key),
    ):
        with pytest.raises(ValueError, match="not a task key"):
            use()
    assert not tables.root.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".x"])
def test_what_is_no_experiment_name_never_becomes_a_path(tables, name):
    for use in (lambda: tables.write_cells(name, []), lambda: tables.frame("cells", name)):
        with pytest.raises(ValueError, match="cannot name a file"):
            use()


def test_unknown_tables_are_refused(tables):
    for use in (lambda: tables.write("../x", A, []), lambda: tables.frame("nope")):
        with pytest.raises(ValueError, match="known: results, utility, scores"):
            use()
    with pytest.raises(ValueError, match="write_cells"):
        tables.write("cells", A, [])
    with pytest.raises(ValueError, match="cannot be told by experiment"):
        tables.frame("failures", "mine")


def test_a_rerun_replaces_and_a_success_removes(tables):
    tables.write("failures", A, [{"error": "x", "attempts": 1}])
    tables.write("failures", A, [{"error": "x", "attempts": 2}])
    assert tables.frame("failures")["attempts"].tolist() == [2]
    tables.remove("failures", A)
    tables.remove("failures", A)
    assert len(tables.frame("failures")) == 0
    assert list((tables.root / "failures").iterdir()) == []


def test_a_view_shows_a_row_for_each_cell_that_has_a_result(filled):
    frame = filled.frame("results", "mine")
    assert frame["label"].tolist() == ["raw", "same"]
    assert frame["attack_label"].tolist() == ["gap", "g"]
    assert frame["attack"].tolist() == ["gap", "gap"]
    assert set(frame["experiment"]) == {"mine"}
    assert set(frame["status"]) == {"done"}
    assert frame["auc"].tolist() == [0.1 + 0.2] * 2
    assert list(frame["flags"][0]) == RESULT["flags"]
    assert filled.frame("utility", "mine")["test_accuracy"].tolist() == [0.75]
    assert filled.frame("scores", "mine")["score"].tolist() == [r["score"] for r in SCORES]
    assert len(filled.frame("results", "unknown")) == 0
    assert len(filled.frame("cells")) == len(CELLS)
    filled.write_cells("second", CELLS[:1])
    assert filled.frame("results")["experiment"].tolist() == ["mine", "mine", "second"]


def test_a_frame_reads_only_the_parts_it_needs(filled):
    part(filled, "results", "f" * 64).write_bytes(b"rubbish")
    filled.frame("results", "mine")
    assert filled.problems == []


@pytest.mark.parametrize("table", ["results", "scores", "cells"])
@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "renamed"])
def test_a_damaged_part_is_set_aside_reported_and_never_trusted(filled, table, fault):
    path = filled.root / "cells" / "mine.parquet" if table == "cells" else part(filled, table, A)
    data = path.read_bytes()
    if fault == "flip":
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    elif fault == "renamed":
        other = "other.parquet" if table == "cells" else f"part-{B}.parquet"
        path = path.rename(path.with_name(other))
    else:
        path.write_bytes(data[:-1] if fault == "truncate" else b"")
    if table == "cells":
        assert len(filled.frame("cells")) == 0
    else:
        assert filled.lacking(table, [A, B, C]) == {A, B, C}
    assert not path.exists()
    assert path.with_suffix(".damaged").exists()
    (problem,) = filled.problems
    assert str(path) in problem
    assert "a run that needs it writes it again" in problem
    filled.frame("scores")  # what is left is still read
    if table != "cells":
        filled.write(table, A, [RESULT] if table == "results" else SCORES)
        assert filled.lacking(table, [A]) == set()


@pytest.mark.parametrize("table", ["results", "scores"])
def test_no_flipped_bit_changes_a_value_unnoticed(filled, table):
    path = part(filled, table, A)
    data = path.read_bytes()
    good = filled.frame(table, "mine")
    for position in range(0, len(data), 29):
        path.write_bytes(
            data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]
        )
        if A not in filled.lacking(table, [A]):  # a bit that carries nothing
            assert filled.frame(table, "mine").equals(good)
    path.write_bytes(data)
    assert filled.frame(table, "mine").equals(good)


def test_a_footer_that_points_to_another_page_is_noticed(filled):
    """Page checksums do not cover the footer: a wrong offset there turns a value into null."""
    path = part(filled, "results", A)
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    pointers = {c.path_in_schema: pointer(c.data_page_offset) for c in columns}
    data = path.read_bytes()
    assert data.count(pointers["attack"]) == 1
    path.write_bytes(data.replace(pointers["attack"], pointers["attack_params"]))
    trusting = pq.read_table(path, page_checksum_verification=True)
    assert trusting["attack"].to_pylist() == [None]
    assert filled.lacking("results", [A]) == {A}


def pointer(offset: int) -> bytes:
    """Thrift's compact form of a field holding `offset`: zigzag, seven bits a byte."""
    number, digits = 2 * offset, []
    while number:
        digits.append(number % 128 | (128 if number >= 128 else 0))
        number //= 128
    return bytes([0x26, *digits])


def test_parts_of_versions_with_fewer_or_more_columns_are_sound(filled, monkeypatch):
    older = SCHEMAS["results"].remove(SCHEMAS["results"].get_field_index("judge"))
    with monkeypatch.context() as context:
        context.setitem(SCHEMAS, "results", older)
        assert filled.lacking("results", [A]) == set()  # the part has a column we do not know
        assert "judge" not in filled.frame("results").columns
        filled.write("results", A, [RESULT])
    assert filled.lacking("results", [A]) == set()
    frame = filled.frame("results", "mine")
    assert frame["judge"].isna().all()
    assert frame["auc"].tolist() == [0.1 + 0.2] * 2


def copy_of(tables: Tables, root: Path, **changes) -> Tables:
    other = Tables(root)
    other.write("results", A, [RESULT | {"auc_high": float("-nan")} | changes])
    other.write("utility", B, [{"dataset": "synth_hard", "seed": 3, "test_accuracy": 0.75}])
    other.write("scores", A, SCORES[::-1])
    other.write("results", "f" * 64, [RESULT | {"auc": 1.0}])
    return other


def test_equal_ignores_measured_columns_and_the_order_of_rows(filled, tmp_path):
    later = {"created_at": NOW + timedelta(days=1), "duration_s": 9.0, "worker": "w2"}
    assert equal(filled, copy_of(filled, tmp_path / "b", **later)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"auc": 0.3}, "auc is 0.30000000000000004 in the first, 0.3 in the second"),
        ({"auc_low": 0.0}, "auc_low is -0.0 in the first, 0.0 in the second"),
        ({"auc_high": None}, "auc_high is nan in the first, None in the second"),
        ({"flags": ["overlap"]}, "flags"),
        ({"seed": 4}, "seed is 3 in the first, 4 in the second"),
    ],
)
def test_equal_tells_every_other_difference(filled, tmp_path, changes, told):
    (line,) = equal(filled, copy_of(filled, tmp_path / "b", **changes))
    assert told in line
    assert A in line


def test_equal_tells_missing_parts_rows_and_experiments(filled, tmp_path):
    other = copy_of(filled, tmp_path / "b")
    other.remove("utility", B)
    other.write("scores", A, SCORES[1:])
    assert equal(filled, other) == [
        f"utility/part-{B}.parquet: sound only in the first store",
        f"scores/part-{A}.parquet: 1 rows only in the first, 0 only in the second",
    ]
    assert equal(filled, other, ("cells",)) == ["cells/mine.parquet: sound only in the first store"]


def test_equal_forgives_timing_attacks_their_numbers_but_not_their_absence(filled, tmp_path):
    other = copy_of(filled, tmp_path / "b")
    for tables, auc in ((filled, 0.6), (other, 0.7)):
        tables.write("results", C, [{"attack": "timing", "auc": auc}])
        tables.write("scores", C, [{"record": 0, "score": auc}])
    assert equal(filled, other) == []
    other.remove("scores", C)
    assert len(equal(filled, other)) == 1


def test_statistics_of_answers_are_not_called_measured():
    assert {"duration_s", "fit_ratio", "query_ratio_1", "created_at", "worker"} <= MEASURED
    assert not MEASURED & {"variance_ratio", "noise_variance_ratio", "auc", "score", "task_key"}


def test_a_finished_cell_without_its_row_is_told(tmp_path):
    """A mean over the rows that are left is another number."""
    tables = Tables(tmp_path)
    key = "ab" * 32
    tables.write("results", key, [{"dataset": "d", "seed": 0, "auc": 0.7}])
    cell = {"label": "none", "kind": "attack", "task_key": key, "status": "done"}
    tables.write_cells("one", [cell])
    assert len(tables.frame("results")) == 1
    assert tables.problems == []
    (tmp_path / "results" / f"part-{key}.parquet").unlink()
    assert tables.frame("results").empty
    assert "results lacks the rows of 1 finished cells" in tables.problems[0]
