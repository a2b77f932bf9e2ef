"""MLflow made anew from rows: whatever was done to it, it says afterwards what the rows say."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from storage._mlflow import connect
from storage._sqlite import damage, set_aside
from storage.tracking import Rebuilt, Tracker, TrackingAway, default_uri, mlflow_experiment

ROWS = [
    {"task_key": f"{i:064x}", "label": "none", "dataset": "digits", "auc": i / 10, "flags": ["a"]}
    for i in range(6)
]


def children(uri: str, experiment: str = "exp") -> list[Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(mlflow_experiment(experiment))
    runs = client.search_runs([found.experiment_id])
    parents = [r for r in runs if r.data.tags["sfumato.kind"] == "parent"]
    assert len(parents) == 1
    rows = [r for r in runs if r.data.tags["sfumato.kind"] == "row"]
    assert {r.data.tags["mlflow.parentRunId"] for r in rows} <= {parents[0].info.run_id}
    return rows


def says(uri: str) -> dict[tuple[str, str], Any]:
    """What the history says, an entry a row; fails on doubles and half-written runs."""
    found: dict[tuple[str, str], Any] = {}
    for run in children(uri):
        assert run.info.status == "FINISHED"
        identity = (run.data.tags["sfumato.task_key"], run.data.tags["sfumato.label"])
        assert identity not in found
        found[identity] = (run.data.params, run.data.metrics)
    return found


def harm(client: Any, runs: list[Any], how: str, which: int) -> None:
    """One of the things that happen to a history."""
    run = runs[which % len(runs)]
    tags, where = dict(run.data.tags), run.info.experiment_id
    if how == "delete":
        client.delete_run(run.info.run_id)
    elif how == "delete parent":
        client.delete_run(tags["mlflow.parentRunId"])
    elif how == "second parent":
        client.create_run(where, start_time=1, tags={"sfumato.kind": "parent"})
    elif how == "double":
        client.set_terminated(client.create_run(where, tags=tags).info.run_id)
    elif how == "begin":
        client.create_run(where, tags=tags)
    elif how == "reopen":
        client.update_run(run.info.run_id, status="RUNNING")
    elif how == "stranger":
        client.create_run(where, tags={**tags, "sfumato.task_key": "f" * 64})
    elif how == "metric":
        client.log_metric(run.info.run_id, "auc", 7.0)
    elif how == "param":
        client.log_param(run.info.run_id, "further", "1")
    elif how == "tag":
        client.set_tag(run.info.run_id, "sfumato.label", "other")
    elif how == "delete experiment":
        client.delete_experiment(where)
        client.restore_experiment(where) if which % 2 else None


HARMS = (
    *("delete", "delete parent", "second parent", "double", "begin", "reopen", "stranger"),
    *("metric", "param", "tag", "delete experiment"),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.sampled_from(HARMS[:-1]), st.integers(0, 5)), max_size=4, unique=True),
    st.booleans(),
)
def test_after_any_harm_the_history_is_what_the_rows_say(
    tmp_path: Path, database: Path, harms: list[tuple[str, int]], gone: bool
) -> None:
    shutil.copy(database, tmp_path / "mlflow.db")
    uri = default_uri(tmp_path)
    Tracker(uri, tmp_path).send("exp", ROWS)
    whole, runs = says(uri), children(uri)
    for how, which in harms:
        harm(MlflowClient(uri), runs, how, which)
        if how == "delete":  # MLflow lets nobody touch it any more
            del runs[which % len(runs)]
    if gone:
        harm(MlflowClient(uri), runs, "delete experiment", 0)

    done = Tracker(uri, tmp_path).rebuild("exp", ROWS)
    assert done.kept + done.added == len(ROWS)
    assert says(uri) == whole
    assert Tracker(uri, tmp_path).rebuild("exp", ROWS) == Rebuilt(len(ROWS), 0, 0)


@pytest.mark.parametrize("how", HARMS)
def test_each_harm_is_seen(how: str, uri: str, tmp_path: Path) -> None:
    Tracker(uri, tmp_path).send("exp", ROWS)
    harm(MlflowClient(uri), children(uri), how, 0)
    counts = Tracker(uri, tmp_path).rebuild("exp", ROWS)
    expected = {
        "delete": Rebuilt(5, 1, 0),
        "double": Rebuilt(6, 0, 1),
        "begin": Rebuilt(6, 0, 1),
        "stranger": Rebuilt(6, 0, 1),
        "delete parent": Rebuilt(6, 0, 0),
        "second parent": Rebuilt(6, 0, 0),
        "delete experiment": Rebuilt(6, 0, 0),
    }
    assert counts == expected.get(how, Rebuilt(5, 1, 1))
    assert len(says(uri)) == 6


def test_a_recomputed_and_a_vanished_row(uri: str, tmp_path: Path) -> None:
    Tracker(uri, tmp_path).send("exp", ROWS)
    rows = [{**ROWS[0], "auc": 0.75}, *ROWS[1:5]]
    assert Tracker(uri, tmp_path).rebuild("exp", rows) == Rebuilt(4, 1, 2)
    told = {key: metrics["auc"] for (key, _), (_, metrics) in says(uri).items()}
    assert told == {row["task_key"]: row["auc"] for row in rows}
    assert Tracker(uri, tmp_path).rebuild("exp", []) == Rebuilt(0, 0, 5)


def test_rows_of_another_store_are_left_alone(uri: str, tmp_path: Path) -> None:
    mine, theirs = ROWS[:2], ROWS[2:]
    Tracker(uri, tmp_path, origin="mine").send("exp", mine)
    Tracker(uri, tmp_path, origin="theirs").send("exp", theirs)
    assert Tracker(uri, tmp_path, origin="mine").rebuild("exp", mine[:1]) == Rebuilt(1, 0, 1)
    assert Tracker(uri, tmp_path, origin="theirs").rebuild("exp", theirs) == Rebuilt(4, 0, 0)
    assert len(says(uri)) == 5


def test_a_send_makes_doubles_single(uri: str, tmp_path: Path) -> None:
    """A create_run whose answer came too late, or two drivers at once."""
    Tracker(uri, tmp_path).send("exp", ROWS)
    for how in ("double", "begin", "double"):
        harm(MlflowClient(uri), children(uri), how, 1)
    assert Tracker(uri, tmp_path).send("exp", ROWS) == 0
    assert len(says(uri)) == 6


# --- the SQLite file


def garble(path: Path, how: str, at: float) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: int(at * len(content))])
    elif how == "overwritten":
        path.write_bytes(os.urandom(len(content) // 10))
    elif how == "page":
        start = int(at * (len(content) // 4096 - 1)) * 4096
        path.write_bytes(content[:start] + bytes([0xA5]) * 4096 + content[start + 4096 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.unlink()
        path.mkdir()
        (path / "file").touch()
    elif how == "text":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE runs (a)")


@pytest.mark.parametrize("at", [0.0, 0.0001, 0.001, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("how", ["cut", "page"])
def test_damage_is_seen_and_what_was_moved_is_made_anew(
    how: str, at: float, uri: str, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    garble(path, how, at)
    said = set_aside(path, tmp_path / "damaged")
    assert said is not None
    assert "damaged" in said
    assert not path.exists()
    kept = {file.name for file in (tmp_path / "damaged" / "mlflow.db-0").iterdir()}
    assert kept == {"mlflow.db", "reason.txt"}
    assert set_aside(path, tmp_path / "damaged") is None


@pytest.mark.parametrize("how", ["overwritten", "empty", "folder", "text"])
def test_what_is_no_database_is_damage(how: str, uri: str, tmp_path: Path) -> None:
    path, journal = tmp_path / "mlflow.db", tmp_path / "mlflow.db-journal"
    for n in range(2):
        if not path.exists():
            path.write_bytes(b"x")
        garble(path, how, 0)
        journal.write_bytes(b"must not be played into the next database")
        assert set_aside(path, tmp_path / "damaged") is not None
        assert (tmp_path / "damaged" / f"mlflow.db-{n}" / "mlflow.db").exists()
        assert not journal.exists()


def test_text_that_cannot_be_read_is_found_by_a_thorough_look(uri: str, tmp_path: Path) -> None:
    Tracker(uri, tmp_path).send("exp", ROWS)
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE params SET value = CAST(x'ff41' AS TEXT) WHERE key = 'dataset'")
    assert damage(path) is None
    assert "UTF-8" in str(damage(path, thorough=True))


def test_sound_absent_and_locked_files_are_not_damaged(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert damage(path, thorough=True) is None
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert damage(path, thorough=True) is None
    assert set_aside(path, tmp_path / "damaged") is None
    holder.close()
    assert damage(tmp_path / "none.db") is None
    assert path.exists()
    assert not (tmp_path / "damaged").exists()


KILLED_WRITING = """
import resource, signal, sys
from storage._mlflow import connect
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
connect(sys.argv[1])
"""


def test_a_database_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """A driver killed while the tables are made, at the first byte and at a later one."""
    path, draft = tmp_path / "mlflow.db", tmp_path / ".mlflow.db-new"
    for size in (0, 100_000):  # of some 700 kB
        command = [sys.executable, "-c", KILLED_WRITING, default_uri(tmp_path), str(size)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGXFSZ
        assert draft.stat().st_size <= size
        assert not path.exists()
    connect(default_uri(tmp_path))
    assert Tracker(default_uri(tmp_path), tmp_path).send("exp", ROWS) == 6
    assert not draft.exists()


def test_a_rebuild_that_cannot_reach_mlflow_says_so(tmp_path: Path, closed_port: int) -> None:
    with pytest.raises(TrackingAway, match=r"could not be rebuilt: .*refused"):
        Tracker(f"http://127.0.0.1:{closed_port}", tmp_path).rebuild("exp", ROWS)
