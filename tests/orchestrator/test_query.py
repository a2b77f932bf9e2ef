"""`sfumato query`: what a person sees, what a program gets, how it ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.answer import print_answer
from orchestrator.cli import app
from storage.queries import ask
from storage.tables import Tables

PROGRAM = [sys.executable, "-m", "orchestrator", "query"]


def key(*names):
    return hashlib.sha256(repr(names).encode()).hexdigest()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("query") / "store"
    tables, cells = Tables(root / "tables"), []
    for seed, accuracy in ((0, 0.7), (1, 0.123456789)):
        about = {"dataset": "synth_hard", "seed": seed}
        result = {"attack": "gap", "attack_accuracy": accuracy, "flags": ["overlap", "leaky"]}
        tables.write("results", key(seed), [about | result | {"created_at": datetime.now(UTC)}])
        tables.write("utility", key(seed, "u"), [about | {"test_accuracy": 0.75}])
        cell = about | {"label": "[red]raw", "status": "done"}
        cells.append(cell | {"kind": "attack", "attack": "gap", "task_key": key(seed)})
        cells.append(cell | {"kind": "utility", "task_key": key(seed, "u")})
    scores = {"record": list(range(300)), "score": [i / 7 for i in range(300)]}
    tables.write("scores", key(0), scores)
    log = "\x1b[31mred\x1b]0;title\x07\nlast line"
    tables.write("failures", key("f"), [{"kind": "run_attack", "log_tail": log, "attempts": 1}])
    tables.write_cells("mine", cells)
    return root


def said(store, *args, code=0, stdin=None):
    done = CliRunner().invoke(app, ["query", *args, "--store", str(store)], input=stdin)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def test_without_a_query_it_tells_what_can_be_asked(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = said(store).output
    assert CliRunner().invoke(app, ["query"]).output == text  # also before any run
    for view in ("results", "scores", "worst", "gates", "mean_results", "tradeoff", "slowest"):
        assert view in text


def test_a_table_has_six_digits_joined_lists_and_empty_nulls(store):
    sql = "SELECT seed, label, attack_accuracy AS acc, auc, flags, adaptive FROM results"
    lines = [line.split("│")[1:-1] for line in said(store, sql).output.splitlines() if "│" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["0", "[red]raw", "0.7", "", "overlap leaky", ""],
        ["1", "[red]raw", "0.123457", "", "overlap leaky", ""],
    ]
    assert lines[0][2].endswith("0.7 ")  # numbers stand right


def test_a_table_too_wide_becomes_a_block_a_row(store):
    lines = said(store, "SELECT * FROM results ORDER BY seed").output.splitlines()
    assert [line.strip() for line in lines if line.startswith("row")] == ["row 1", "row 2"]
    pairs = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines if "│" in line]
    assert pairs.count(["attack_label", "gap"]) == 2
    assert ["attack_accuracy", "0.123457"] in pairs
    assert all(len(line) <= 160 for line in lines)


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_tables_keep_to_the_width_and_numbers_whole(store, width):
    out = StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False)
    for view in ("tradeoff", "mean_results", "results", "scores LIMIT 3"):
        print_answer(console, ask(Tables(store / "tables"), f"SELECT * FROM {view}"))
    assert all(len(line) <= width for line in out.getvalue().splitlines())
    assert out.getvalue().count("0.123457") == 1  # of results, in whatever form


def test_only_the_first_rows_are_shown_and_that_is_said(store):
    done = said(store, "SELECT record AS num FROM scores ORDER BY num")
    assert " 99 " in done.stdout
    assert " 100 " not in done.stdout
    assert "only the first 100 rows" in done.stderr


def test_an_answer_without_rows_tells_its_columns(store):
    assert (
        "no rows; columns: label, auc"
        in said(store, "SELECT label, auc FROM results WHERE false").output
    )


def test_what_failed_tasks_printed_does_not_move_the_cursor(store):
    text = said(store, "SELECT log_tail FROM failures").output
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "last line" in text


def test_csv_and_json_give_every_row_and_bit(store, tmp_path):
    wanted = [i / 7 for i in range(300)]
    sql = "SELECT score FROM scores ORDER BY record"
    answer = said(store, sql, "--format", "json").stdout
    assert [row["score"] for row in json.loads(answer)] == wanted
    path = tmp_path / "scores.csv"
    assert "300 rows" in said(store, sql, "--out", str(path)).output
    assert pd.read_csv(path)["score"].tolist() == wanted
    assert said(store, sql, "--format", "csv").stdout == path.read_text()


def test_parquet_goes_to_a_file(store, tmp_path):
    path = tmp_path / "answer.data"
    said(store, "SELECT label, flags FROM results", "--format", "parquet", "--out", str(path))
    frame = pd.read_parquet(path)
    assert frame["label"].tolist() == ["[red]raw"] * 2
    assert list(frame["flags"][0]) == ["overlap", "leaky"]


def test_sql_comes_from_standard_input(store):
    assert "42" in said(store, "-", stdin="SELECT 42 -- the answer\n").output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["SELECT * FROM resuls"], 'Did you mean "results"'),
        (["SELECT aucc FROM results"], '"auc"'),
        (["DROP VIEW results"], "DROP is refused"),
        (["COPY results TO 'x.csv'"], "COPY is refused"),
        (["SELECT * FROM '/etc/passwd'"], "does not exist"),
        (["SELECT 1", "--out", "answer.txt"], ".parquet, or add --format"),
        (["SELECT 1", "--out", "answer.csv", "--format", "table"], "answer.csv"),
        (["SELECT 1", "--out", "missing/answer.csv"], "there is no folder missing"),
        (["SELECT 1", "--format", "xml"], "parquet"),
        (["-"], "no statement"),
    ],
)
def test_bad_input_is_told_and_ends_with_2(store, tmp_path, monkeypatch, args, told):
    monkeypatch.chdir(tmp_path)
    done = said(store, *args, code=2, stdin="")
    assert told in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_there_is_told(tmp_path):
    for sql in ([], ["SELECT 1"]):
        done = said(tmp_path / "nothing", *sql, code=2)
        assert "there is no store at" in done.stderr
        assert "sfumato run" in done.stderr
        assert not (tmp_path / "nothing").exists()


def test_flags_that_are_shown_are_explained(store):
    text = said(store, "SELECT DISTINCT flags FROM results").output
    assert "leaky: the defense saw the non-members" in text
    assert "saw" not in said(store, "SELECT 1 AS flags, 'leaky' AS word").output


def test_damage_is_warned_of_and_the_rest_answered(store, tmp_path):
    tables = Tables(tmp_path / "tables")
    tables.write("scores", key(1), [{"record": 1, "score": 0.5}])
    tables.write("scores", key(2), [{"record": 2, "score": 0.5}])
    (tables.root / "scores" / f"part-{key(1)}.parquet").write_bytes(b"rubbish")
    done = said(tmp_path, "SELECT count(*) AS num FROM scores", "--format", "csv")
    assert done.stdout == "num\n1\n"
    assert "warning" in done.stderr
    assert key(1) in done.stderr


def test_parquet_is_not_for_terminals(store):
    parent, child = os.openpty()
    command = [*PROGRAM, "SELECT 1", "--format", "parquet", "--store", str(store)]
    done = subprocess.run(command, stdout=child, stderr=subprocess.PIPE, text=True, check=False)
    os.close(child)
    os.close(parent)
    assert done.returncode == 2
    assert "add --out" in done.stderr


def test_a_reader_that_has_enough_is_no_error(store):
    command = [*PROGRAM, "FROM range(1000000)", "--format", "csv", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_ctrl_c_ends_a_long_query_with_130(tmp_path):
    """The cells are a pipe: whoever opens it for writing waits until the query reads them."""
    (tmp_path / "tables" / "cells").mkdir(parents=True)
    pipe = tmp_path / "tables" / "cells" / "mine.parquet"
    os.mkfifo(pipe)
    endless = """SELECT count(*) FROM range(10000000) a, range(10000000) b,
        (SELECT count(*) AS num FROM cells) WHERE hash(a.range * b.range + num) = 1"""
    command = [*PROGRAM, endless, "--store", str(tmp_path)]
    # Python leaves Ctrl-C ignored where its parent ignores it, as shells do in the background.
    noticed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=noticed
    ) as process:
        with open(pipe, "wb"):
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
