"""`sfumato history`: what was run, from MLflow; all of it anew, from the tables alone."""

import csv
import io
import json
import os
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from orchestrator.check import load_experiment
from orchestrator.cli import app
from orchestrator.history import rebuild
from orchestrator.outcome import Options
from orchestrator.past import default_columns
from orchestrator.resume import Store
from orchestrator.run import run
from storage.tracking import Rebuilt


@pytest.fixture
def copy(undisturbed, lab):
    before, _, _ = undisturbed
    shutil.copytree(before.store.root, lab.store.root)
    return lab


def database(kept):
    store = kept.store
    return (store.root if isinstance(store, Store) else store) / "mlflow.db"


def tracked(lab):
    """(experiment, task_key, label) -> what the child run says; fails on doubles and halves."""
    client = MlflowClient(f"sqlite:///{database(lab)}")
    found = {}
    for run_ in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        if run_.data.tags["sfumato.kind"] == "row":
            assert run_.info.status == "FINISHED"
            tags = run_.data.tags
            key = tuple(tags[f"sfumato.{name}"] for name in ("experiment", "task_key", "label"))
            assert key not in found
            found[key] = (run_.data.params, run_.data.metrics)
    return found


def spoil(path, how):
    if how == "overwritten":
        path.write_bytes(os.urandom(20_000))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        (path / "inside").mkdir(parents=True)


def ask(lab, *args):
    at = ["--store", str(lab.store.root)]
    result = CliRunner().invoke(app, ["history", *map(str, args), *at], env={"COLUMNS": "250"})
    assert "Traceback" not in result.output, result.output
    return result


# --- asking


def test_the_table_shows_the_last_first(undisturbed):
    lab, _, _ = undisturbed
    told = ask(lab)
    assert told.exit_code == 0
    lines = [line for line in told.stdout.splitlines() if "│" in line]
    assert len(lines) == 16
    shown = [line.split("│")[1].strip() for line in lines]
    assert shown == sorted(shown, reverse=True)
    for column in ("experiment", "dataset", "seed", "label", "attack_accuracy", "flags"):
        assert column in told.stdout
    assert len(re.findall(r"[0-9a-f]{12}", told.stdout)) == 16


def test_json_and_csv_hold_the_tables_values(undisturbed):
    lab, _, _ = undisturbed
    columns = ["task_key", "label", "attack_accuracy", "auc_low", "num_members", "flags", "seed"]
    told = json.loads(ask(lab, "--format", "json", "--columns", ",".join(columns)).stdout)
    frame = lab.store.tables.frame("results", "tiny")
    rows = {(row["task_key"], row["label"]): row for row in frame.to_dict("records")}
    assert len(told) == len(rows) == 16
    for got in told:
        row = rows[got["task_key"], got["label"]]
        assert list(got) == columns
        assert got["flags"] == (list(row["flags"]) or None)
        for column in ("attack_accuracy", "auc_low", "num_members", "seed"):
            assert got[column] == row[column]

    text = ask(lab, "--format", "csv", "--columns", ",".join(columns)).stdout
    listed = list(csv.DictReader(io.StringIO(text)))
    assert [row["task_key"] for row in listed] == [row["task_key"] for row in told]
    assert [float(row["auc_low"]) for row in listed] == [row["auc_low"] for row in told]


def test_filter_sort_and_limit(undisturbed):
    lab, _, _ = undisturbed
    frame = lab.store.tables.frame("results", "tiny")
    kept = frame[(frame["auc"] > 0.5) & (frame["label"] != "none")].sort_values("auc")
    args = ["--filter", "auc > 0.5 and label != none", "--filter", "dataset = synth_s"]
    args += ["--sort", "auc", "--format", "json", "--columns", "auc"]
    up = [row["auc"] for row in json.loads(ask(lab, "tiny", *args, "--ascending").stdout)]
    assert up == list(kept["auc"])
    down = [row["auc"] for row in json.loads(ask(lab, "tiny", *args, "--limit", 3).stdout)]
    assert down == up[::-1][:3]


def test_rows_that_differ_in_settings_only_are_told_apart(done):
    plain = CliRunner().invoke(app, ["history", "--store", str(done.store)])
    assert "target_params" not in plain.stdout
    assert done.run("--set", "target.epochs=3").code == 0
    told = CliRunner().invoke(app, ["history", "--store", str(done.store)], env={"COLUMNS": "250"})
    lines = [line for line in told.stdout.splitlines() if "│ gap " in line]
    assert sorted(re.findall(r'"epochs": (\d)', told.stdout)) == ["2", "2", "3", "3"]
    assert len(lines) == 4


def test_default_columns_are_names_and_what_tells_alike_rows_apart():
    rows = [
        {"label": "none", "attack_label": "gap", "seed": seed, "judge": judge, "auc": auc}
        for seed, judge, auc in ((0, "members", 0.5), (1, "reference", 0.6))
    ]
    assert not {"judge", "attack"} & set(default_columns(rows, "table"))
    again = [*rows, rows[0] | {"judge": "reference"}]
    assert "judge" in default_columns(again, "table")
    assert default_columns(again, "csv") == default_columns(rows, "table")


def test_flags_are_explained_under_the_table_only(undisturbed):
    lab, _, _ = undisturbed
    assert "underpowered: under 1,000 nonmembers" in ask(lab).stdout
    json.loads(ask(lab, "--format", "json").stdout)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--filter", "attack_acuracy > 0.6"], "did you mean 'attack_accuracy'?"),
        (["--filter", "label = x' or 'a' = 'a"], "--filter label = x' or"),
        (["--sort", "dateset"], "did you mean 'dataset'?"),
        (["--columns", "auc,labl"], "did you mean 'label'?"),
        (["tinny"], "no history of an experiment 'tinny'; known: tiny"),
        (["--limit", "0"], "--limit"),
        (["--rebuild", "--format", "csv"], "--rebuild shows no rows"),
        (["tinny", "--rebuild"], "did you mean 'tiny'?"),
        (["--tracking-uri", "http://127.0.0.1:1"], "Connection refused"),
        (["--tracking-uri", "ftp://host"], "is no address of MLflow"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(undisturbed, args, said):
    lab, _, _ = undisturbed
    told = ask(lab, *args)
    assert told.exit_code == 2
    assert said in " ".join(told.stderr.split())


def test_without_a_history_the_remedy_is_named(lab):
    for make in (lambda: None, lab.store.root.mkdir):
        make()
        assert "there is no store at" in ask(lab).stderr
    (lab.store.root / "tables").mkdir()
    told = ask(lab)
    assert told.exit_code == 2
    assert "does not exist" in told.stderr
    assert f"`sfumato history --rebuild --store {lab.store.root}`" in told.stderr
    assert not database(lab).exists()


# --- anew


def test_what_a_run_sent_is_what_its_tables_say(copy):
    before = tracked(copy)
    told = ask(copy, "--rebuild")
    assert told.exit_code == 0
    assert re.search(r"tiny +│ +16 +│ +0 +│ +0", told.stdout)
    assert tracked(copy) == before


def test_a_deleted_database_comes_back_from_the_tables_alone(copy):
    before = tracked(copy)
    database(copy).unlink()
    assert re.search(r"tiny +│ +0 +│ +16 +│ +0", ask(copy, "--rebuild").stdout)
    assert re.search(r"tiny +│ +16 +│ +0 +│ +0", ask(copy, "--rebuild", "tiny").stdout)
    assert tracked(copy) == before


def test_experiments_the_tables_do_not_know_lose_their_rows(copy):
    copy.store.tables.forms.forget("tiny")
    assert rebuild(copy.store, None)[0] == {"tiny": Rebuilt(0, 0, 16)}
    assert tracked(copy) == {}
    assert rebuild(copy.store, None)[0] == {"tiny": Rebuilt(0, 0, 0)}


def test_a_damaged_database_is_named_then_made_anew(copy):
    before = tracked(copy)
    spoil(database(copy), "cut")
    assert "--rebuild" in ask(copy).stderr
    told = ask(copy, "--rebuild")
    assert told.exit_code == 0, told.output
    assert "was damaged" in told.stderr
    assert re.search(r"tiny +│ +0 +│ +16 +│ +0", told.stdout)
    assert (copy.store.root / "damaged" / "mlflow.db-0" / "mlflow.db").exists()
    assert tracked(copy) == before


# --- a run that meets a damaged database


@pytest.mark.parametrize("how", ["overwritten", "folder"])
def test_a_run_sets_a_damaged_database_aside_and_makes_it_anew(done, how):
    """Also the rows of experiments that this run knows nothing of."""
    done.run(name="second")
    before = tracked(done)
    assert len(before) == 4
    spoil(database(done), how)
    said = done.run()
    assert said.code == 0
    assert "mlflow.db was damaged" in said.flat
    assert "made anew from the tables" in said.flat
    assert tracked(done) == before
    assert "warning" not in done.run().text


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_database_damaged_in_the_middle_of_a_run(undisturbed, done, how):
    came = []

    class Vandal(type(undisturbed[2])):
        def finished(self, worker, task, seconds):
            super().finished(worker, task, seconds)
            if task.kind == "RunAttack" and not came:
                spoil(database(done), how)
                came.append(task)

    experiment = load_experiment(done.file(seeds=[0, 1]))
    outcome = run(experiment, Options(store=done.store, executor="inline"), Vandal())
    assert came
    assert not outcome.failed
    assert any(re.search("was damaged|was replaced", line) for line in outcome.warnings)
    assert len(tracked(done)) == 4
    assert rebuild(Store(done.store), None)[0] == {"tiny": Rebuilt(4, 0, 0)}


@pytest.mark.slow  # it waits for the lock
def test_a_locked_database_is_not_damaged(done):
    (done.store / "experiments" / "tiny" / "tracked.jsonl").unlink()
    with closing(sqlite3.connect(database(done), isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        said = done.run()
        assert said.code == 0
        assert "2 result rows are not in MLflow yet" in said.flat
        assert "locked" in said.flat
    assert "warning" not in done.run().text
    assert not (done.store / "damaged").exists()
    assert len(tracked(done)) == 2
