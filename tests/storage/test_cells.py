"""Forms of experiments: every cell is kept, each once, and none is taken for a current one."""

import hashlib
import shutil

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage._cells import IDENTITY, SHOWN, Forms, union
from storage._schemas import to_arrow
from storage.queries import ask
from storage.tables import Tables

FIRST, SECOND, THIRD = ("a" * 12, "b" * 12, "c" * 12)


def key(*names):
    return hashlib.sha256(repr(names).encode()).hexdigest()


def cell(seed=0, label="none", attack="gap", settings="s", status="done"):
    about = {"label": label, "preset": "cpu", "dataset": "d", "seed": seed, "attack": attack}
    about |= {"defense": "none", "kind": "attack", "status": status, "service": settings}
    return about | {"settings": settings, "task_key": key(seed, attack, settings)}


CELLS = st.builds(
    cell,
    st.integers(0, 2),
    st.sampled_from("ab"),
    st.sampled_from(["gap", "nsh"]),
    st.sampled_from(["s", "t", ""]),
    st.sampled_from(["done", "waiting"]),
)
FORMS = st.dictionaries(
    st.sampled_from([FIRST, SECOND, THIRD]), st.lists(CELLS, max_size=6, unique_by=str)
)


def identity(row):
    return tuple(row[name] for name in IDENTITY)


@settings(max_examples=50, deadline=None)
@given(FORMS, st.sampled_from([FIRST, SECOND, None]))
def test_every_cell_of_every_form_is_there_once_the_current_form_s_first(forms, current):
    forms = {
        form: list({identity(row): row for row in rows}.values()) for form, rows in forms.items()
    }
    parts = {
        form: to_arrow("cells", [{**row, "form": form} for row in rows], "experiment", "e")
        for form, rows in forms.items()
    }
    table = union(parts, current)
    assert table.schema == SHOWN
    found = table.to_pylist()
    everything = {identity(row) for rows in forms.values() for row in rows}
    assert len(found) == len(everything)
    assert {identity(row) for row in found} == everything
    mine = forms.get(current, [])
    assert [identity(row) for row in found[: len(mine)]] == [identity(row) for row in mine]
    for row in found:
        held = {f: r for f, rows in forms.items() for r in rows if identity(r) == identity(row)}
        if current in held:
            assert (row["form"], row["status"]) == (current, held[current]["status"])
        else:
            assert row["status"] == held[row["form"]]["status"]
            done = [form for form, other in held.items() if other["status"] == "done"]
            assert (row["status"] == "done") == bool(done)
        asked_now = any(
            (r["label"], r["attack"], r["settings"])
            == (row["label"], row["attack"], row["settings"])
            for r in mine
        )
        # What nobody knows the settings of is current only if it is asked for itself.
        assert row["current"] == (current in held or (asked_now and row["settings"] != ""))


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path / "store" / "tables")


def run(tables, form, cells, current=True):
    for row in cells:
        figure = {"dataset": "d", "seed": row["seed"], "attack": "gap"}
        tables.write("results", row["task_key"], [figure | {"auc": (row["seed"] + 1) / 10}])
    tables.write_cells("e", cells, form)
    if current:
        tables.forms.set_current("e", form)


def means(tables):
    sql = "SELECT label, attack_label, num_seeds, round(auc, 6) AS auc, current FROM mean_results"
    return ask(tables, sql).to_pylist()


def test_seeds_run_one_after_the_other_make_one_mean(tables):
    run(tables, FIRST, [cell(seed) for seed in (0, 1, 2)])
    run(tables, SECOND, [cell(7)])
    (row,) = means(tables)
    assert (row["num_seeds"], row["auc"], row["current"]) == (4, 0.35, True)
    assert tables.frame("results", "e", SECOND)["seed"].tolist() == [7]
    assert tables.frame("cells", "e")["current"].tolist() == [True] * 4


def test_other_settings_are_never_averaged_and_an_answer_that_may_mix_them_says_so(tables):
    run(tables, FIRST, [cell(seed) for seed in (0, 1)])
    asked = "SELECT avg(auc) AS auc, count(*) AS num FROM results"
    assert ask(tables, asked).to_pylist() == [{"auc": pytest.approx(0.15), "num": 2}]
    assert tables.problems == []
    run(tables, SECOND, [cell(0, settings="t")])
    assert [(r["num_seeds"], r["auc"], r["current"]) for r in means(tables)] == [
        (1, 0.1, True),
        (2, 0.15, False),
    ]
    assert tables.problems == []
    for told in ("WHERE current", "GROUP BY settings"):
        ask(tables, f"{asked} {told}")
        assert tables.problems == []
    for silent in ("SELECT * FROM results", "FROM tradeoff", "SELECT count(task_key) FROM cells"):
        ask(tables, silent)
        assert tables.problems == []
    ask(tables, asked)
    assert "WHERE current" in tables.problems[0]


def test_the_tradeoff_of_a_service_is_that_of_the_attacks_asked_for_now(tables):
    strong = {"attack": "nsh", "dataset": "d", "seed": 0, "attack_accuracy": 0.9}
    weak = strong | {"attack": "gap", "attack_accuracy": 0.6}
    both = [cell(attack="nsh", settings="n"), cell(settings="g")]
    both = [row | {"service": "same"} for row in both]
    for row, figures in zip(both, (strong, weak), strict=True):
        tables.write("results", row["task_key"], [figures])
    asked = "SELECT attack_label, attack_accuracy, current FROM tradeoff"
    tables.write_cells("e", both, FIRST)
    assert [tuple(row.values()) for row in ask(tables, asked).to_pylist()] == [("nsh", 0.9, True)]
    tables.write_cells("e", both[1:], SECOND)
    tables.forms.set_current("e", SECOND)
    assert [tuple(row.values()) for row in ask(tables, asked).to_pylist()] == [("gap", 0.6, True)]


def test_a_crash_between_cells_and_what_is_current_leaves_the_form_before(tables):
    run(tables, FIRST, [cell(0)])
    run(tables, SECOND, [cell(0, settings="t")], current=False)
    assert tables.forms.current("e") == FIRST
    assert {row["current"]: row["auc"] for row in means(tables)} == {True: 0.1, False: 0.1}


@pytest.mark.parametrize("damage", ["gone", "rubbish", "folder"])
def test_when_it_is_lost_which_form_is_current_none_is_taken_for_it(tables, damage):
    run(tables, FIRST, [cell(0)])
    pointer = tables.root / "cells" / "e.current"
    pointer.unlink()
    if damage == "rubbish":
        pointer.write_bytes(b"\xff\x00" * 6)
    elif damage == "folder":
        pointer.mkdir()
    assert tables.forms.current("e") == FIRST  # there is no other
    tables.write_cells("e", [cell(1)], SECOND)
    assert tables.forms.current("e") is None
    assert [row["current"] for row in means(tables)] == [False]


def test_a_damaged_current_form_makes_no_earlier_one_current(tables):
    run(tables, FIRST, [cell(0)])
    run(tables, SECOND, [cell(0, settings="t")])
    tables.forms.path("e", SECOND).write_bytes(b"rubbish")
    for problems in (1, 0):  # it is set aside once, and stays away
        again = Tables(tables.root)
        assert again.frame("results")["current"].tolist() == [False]
        assert len(again.problems) == problems


def test_cells_of_a_store_made_before_forms_are_the_current_ones(tables):
    bare = [{n: v for n, v in cell(s).items() if n not in ("settings", "service")} for s in (0, 1)]
    run(tables, "", bare, current=False)
    assert (tables.forms.of("e"), tables.forms.current("e")) == ([""], "")
    (row,) = means(tables)
    assert (row["num_seeds"], row["current"]) == (2, True)
    run(tables, FIRST, [cell(0), cell(2)])
    # The cell that both have is one; of the other it is not known whether it is alike.
    assert [(r["num_seeds"], r["current"]) for r in means(tables)] == [(2, True), (1, False)]


def test_forgetting_removes_one_form_or_all_and_nothing_of_a_longer_name(tables):
    for name in ("e", "e.current", "ee"):
        for form in (FIRST, SECOND):
            tables.write_cells(name, [cell()], form)
        tables.forms.set_current(name, FIRST)
    tables.forms.forget("e", SECOND)
    tables.forms.forget("e", THIRD)
    assert [tables.forms.of(name) for name in ("e", "ee")] == [[FIRST], [FIRST, SECOND]]
    tables.forms.forget("e")
    tables.forms.forget("e")
    assert tables.forms.experiments() == ["e.current", "ee"]
    assert tables.forms.current("e.current") == FIRST


def test_what_somebody_else_put_there_is_no_form(tables):
    run(tables, FIRST, [cell()])
    part = tables.forms.path("e", FIRST)
    for name in ("e@1234.parquet", "E e.parquet", f"e@{FIRST}@x.parquet", ".x.parquet", "notes"):
        shutil.copy(part, part.with_name(name))
    assert tables.forms.experiments() == ["e"]
    assert len(tables.frame("cells")) == 1
    assert tables.problems == []
    shutil.copy(part, tables.forms.path("e", SECOND))  # a form under another's name
    assert len(tables.frame("cells")) == 1
    assert "its form is not the one in its name" in tables.problems[0]


@pytest.mark.parametrize("form", ["../../../x", "A" * 12, "a" * 11, "a" * 12 + "\n"])
def test_what_is_no_form_never_becomes_a_path(tmp_path, form):
    forms = Forms(tmp_path)
    for use in (lambda: forms.path("e", form), lambda: forms.set_current("e", form)):
        with pytest.raises(ValueError, match="names no form of an experiment"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_has_no_forms(tables):
    assert (tables.forms.experiments(), tables.forms.current("e")) == ([], None)
    assert union({}, None).equals(pa.table({f.name: [] for f in SHOWN}, schema=SHOWN))
