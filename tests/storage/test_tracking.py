"""MLflow as a view: what was sent is there once, and nothing that goes wrong stops a run."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Param, Run

from storage.tracking import Tracker, TrackingAway, default_uri, masked, mlflow_experiment

CREATED_AT = datetime(2024, 5, 1, 12, tzinfo=UTC)


def result(i: int, **columns: Any) -> dict[str, Any]:
    return {
        "task_key": f"{i:064x}",
        "label": "reformer only",
        "dataset": "location30",
        "dataset_hash": "0123456789abcdef" * 4,
        "seed": i,
        "defense": "purifier",
        "defense_params": '{"swapper": false}',
        "attack": "nsh",
        "adaptive": False,
        "attack_accuracy": 0.5 + i / 1000,
        "num_members": 1000,
        "duration_s": 2.0,
        "created_at": CREATED_AT,
        **columns,
    }


def runs(uri: str, experiment: str = "exp") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(mlflow_experiment(experiment))
    assert found is not None
    return list(client.search_runs([found.experiment_id], max_results=1000))


def children(uri: str, experiment: str = "exp") -> list[Run]:
    return [r for r in runs(uri, experiment) if r.data.tags["sfumato.kind"] == "row"]


def parent(uri: str) -> Run:
    (found,) = [r for r in runs(uri) if r.data.tags["sfumato.kind"] == "parent"]
    return found


# --- what a row becomes


def test_a_row_becomes_a_child_run_with_its_values(uri: str, tmp_path: Path) -> None:
    row = result(
        3,
        adaptive=np.bool_(True),
        flags=np.array(["underpowered", "leaky"], dtype=object),
        auc=np.float32(0.75),
        num_queries=np.int64(7),
        tpr_at_fpr_0_001=float("nan"),
        epsilon_lower_bound=float("inf"),
        noise_policy=None,
        attack_params="x" * 7000,
    )
    tracker = Tracker(uri, tmp_path / "mlartifacts")
    assert tracker.send("exp", [row], experiment_params={"preset": "cpu", "seeds": [0, 1]}) == 1

    (child,) = children(uri)
    params = child.data.params
    assert child.info.run_name == "location30/3/reformer only/nsh/adaptive"
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 2000
    assert child.info.end_time == CREATED_AT.timestamp() * 1000
    assert child.data.metrics == {
        "attack_accuracy": 0.503,
        "num_members": 1000.0,
        "duration_s": 2.0,
        "auc": 0.75,
        "num_queries": 7.0,
    }
    assert len(params["attack_params"]) == 6000
    assert params["attack_params"].endswith("x…")
    assert {name: text for name, text in params.items() if name != "attack_params"} == {
        "label": "reformer only",
        "dataset": "location30",
        "dataset_hash": "0123456789abcdef" * 4,
        "seed": "3",
        "defense": "purifier",
        "defense_params": '{"swapper": false}',
        "attack": "nsh",
        "adaptive": "True",
        "flags": "underpowered,leaky",
        "created_at": CREATED_AT.isoformat(),
    }
    assert child.data.tags["sfumato.task_key"] == row["task_key"]
    assert child.data.tags["sfumato.experiment"] == "exp"
    assert child.data.tags["sfumato.label"] == "reformer only"
    (used,) = child.inputs.dataset_inputs
    assert used.dataset.name == "location30"
    assert row["dataset_hash"].startswith(used.dataset.digest)
    assert len(used.dataset.digest) == 36
    assert child.info.artifact_uri.startswith((tmp_path / "mlartifacts" / "exp").as_uri())

    above = parent(uri)
    assert child.data.tags["mlflow.parentRunId"] == above.info.run_id
    assert (above.info.run_name, above.info.status) == ("exp", "FINISHED")
    assert above.data.params == {"preset": "cpu", "seeds": "0,1"}


def test_experiments_have_separate_parents(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path)
    assert tracker.send("one", [result(1)]) == 1
    assert tracker.send("two", [result(1)]) == 1
    first, second = children(uri, "one"), children(uri, "two")
    assert len(first) == len(second) == 1
    assert first[0].data.tags["mlflow.parentRunId"] != second[0].data.tags["mlflow.parentRunId"]


def test_changed_experiment_params_are_told_by_a_tag(uri: str, tmp_path: Path) -> None:
    for attacks in ("gap", "gap,nsh", "gap,nsh"):
        Tracker(uri, tmp_path).send("exp", [result(1)], experiment_params={"attacks": attacks})
    assert parent(uri).data.params == {"attacks": "gap"}
    assert parent(uri).data.tags["sfumato.latest.attacks"] == "gap,nsh"


@pytest.mark.parametrize("column", ["task_key", "label"])
def test_a_row_without_identity_is_refused_by_name(column: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'{column}' is None"):
        Tracker("http://127.0.0.1:1", tmp_path).send("exp", [result(1, **{column: None})])


# --- idempotence


def test_rows_sent_again_are_not_doubled(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path)
    rows = [result(i) for i in range(4)]
    assert tracker.send("exp", [*rows[:2], rows[0]]) == 2
    assert tracker.send("exp", rows) == 2
    assert Tracker(uri, tmp_path).send("exp", rows) == 0  # another driver, later
    twin = result(0, label="same task under another label")
    assert Tracker(uri, tmp_path).send("exp", [twin]) == 1
    assert len(children(uri)) == 5
    parent(uri)


def test_a_killed_driver_is_completed_by_the_next(uri: str, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from storage.tracking import Tracker
tracker = Tracker(sys.argv[1], Path(sys.argv[2]))
for i in range(10_000):
    tracker.send("exp", [{"task_key": f"{i:064x}", "label": "a", "dataset": "d", "auc": 0.5}])
    print(i, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, uri, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        while driver.stdout.readline() != "2\n":
            assert driver.poll() is None
        driver.kill()
    num_before = len(children(uri))
    assert num_before >= 3
    rows = [
        {"task_key": f"{i:064x}", "label": "a", "dataset": "d", "auc": 0.5}
        for i in range(num_before + 3)
    ]
    assert Tracker(uri, tmp_path).send("exp", rows) == 3
    after = children(uri)
    assert {r.data.tags["sfumato.task_key"] for r in after} == {row["task_key"] for row in rows}
    assert len(after) == len(rows)
    assert all(r.info.status == "FINISHED" and r.data.metrics == {"auc": 0.5} for r in after)
    assert all(r.data.params["dataset"] == "d" for r in after)


@pytest.mark.parametrize("worker", ["gpu0", "gpu1"])
def test_a_row_left_half_written_is_completed_or_replaced(
    worker: str, uri: str, tmp_path: Path
) -> None:
    tracker = Tracker(uri, tmp_path)
    tracker.send("exp", [result(1)])
    client, (whole,) = MlflowClient(uri), children(uri)
    tags = {"sfumato.kind": "row", "sfumato.task_key": f"{2:064x}", "sfumato.label": "a"}
    half = client.create_run(whole.info.experiment_id, tags=tags)
    client.log_batch(half.info.run_id, params=[Param("worker", "gpu0")])

    Tracker(uri, tmp_path).send("exp", [result(2, label="a", worker=worker)])

    (second,) = [r for r in children(uri) if r.data.tags["sfumato.label"] == "a"]
    assert second.info.status == "FINISHED"
    assert second.data.metrics["attack_accuracy"] == 0.502
    assert second.data.params["worker"] == worker
    # The same values continue the run; params MLflow would refuse to change cost a new one.
    assert (second.info.run_id == half.info.run_id) == (worker == "gpu0")


# --- MLflow away


@pytest.mark.parametrize("scheme", ["http", "https", "mysql+nosuchdriver", "postgresql"])
def test_an_absent_server_is_named_in_seconds_and_without_credentials(
    scheme: str, tmp_path: Path, closed_port: int
) -> None:
    address = f"{scheme}://bob:s3cr%40t@127.0.0.1:{closed_port}/x?password=s3cr%40t"
    started = time.monotonic()
    with pytest.raises(TrackingAway) as caught:
        Tracker(address, tmp_path).send("exp", [result(1)])
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert f"{scheme}://***@127.0.0.1:{closed_port}/x?password=***" in message
    assert "s3cr" not in message
    assert "bob" not in message
    assert "sfumato run" in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("setting", "limit_s"), [("1", 4), pytest.param(None, 10, marks=pytest.mark.slow)]
)
def test_a_server_that_accepts_and_never_answers_costs_seconds(
    setting: str | None, limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five, or fewer where a person's own setting says so."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    if setting is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", setting)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(TrackingAway, match="timed out"):
            Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path).send("e", [result(1)])
        assert time.monotonic() - started < limit_s


@pytest.mark.parametrize("reason", ["not a database", "unable to open"])
def test_an_unusable_database_is_told_in_seconds(reason: str, tmp_path: Path) -> None:
    if reason == "not a database":
        (tmp_path / "mlflow.db").write_bytes(b"long enough to be read as a database, " * 100)
    else:
        (tmp_path / "mlflow.db").mkdir()  # MLflow itself would try again for an hour
    started = time.monotonic()
    with pytest.raises(TrackingAway, match=reason):
        Tracker(default_uri(tmp_path), tmp_path).send("exp", [result(1)])
    assert time.monotonic() - started < 10


def test_an_experiment_deleted_in_mlflow_is_named(uri: str, tmp_path: Path) -> None:
    Tracker(uri, tmp_path).send("exp", [result(1)])
    MlflowClient(uri).delete_experiment(runs(uri)[0].info.experiment_id)
    with pytest.raises(TrackingAway, match="'sfumato/exp' was deleted there; restore"):
        Tracker(uri, tmp_path).send("exp", [result(1)])


def test_a_database_that_fails_inside_a_row_leaves_no_double(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path)
    tracker.send("exp", [result(1)])
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(TrackingAway, match="full"):
        tracker.send("exp", [result(2)])
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TRIGGER full")
    assert tracker.send("exp", [result(1), result(2)]) == 0  # row 2 had been begun
    assert [r.info.status for r in children(uri)] == ["FINISHED", "FINISHED"]
    assert all("attack_accuracy" in r.data.metrics for r in children(uri))


# --- manners


@example(user="\n", password="S3CR3T")
@given(
    user=st.text(min_size=1), password=st.from_regex(r"[a-z@/?#:&=]{0,9}S3CR3T[a-z@/?#:&=]{0,9}")
)
def test_masked_never_shows_a_password(user: str, password: str) -> None:
    shown = masked(f"postgresql://{user}:{password}@db.example:5432/mlflow?sslmode=require")
    assert "S3CR3T" not in shown
    assert shown.endswith("@db.example:5432/mlflow?sslmode=require")


def test_sqlite_is_quiet_keeps_to_its_folder_and_calls_nobody(
    first_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = first_run
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((folder / "called.json").read_text()) == []
    assert {p.name for p in folder.iterdir()} == {"store", "called.json"}
    assert {p.name for p in (folder / "store").iterdir()} == {
        "mlflow.db",
        "mlflow.db.lock",
        "ledger.jsonl",
    }
