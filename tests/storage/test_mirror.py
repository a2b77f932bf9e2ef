"""The way to MLflow: every row arrives once, and nothing that goes wrong stops a run."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from storage.mirror import Ledger, Mirror
from storage.tracking import Tracker, default_uri, mlflow_experiment


def result(i: int, label: str = "purifier") -> dict[str, Any]:
    row = {"task_key": f"{i:064x}", "label": label, "auc": 0.5}
    return {**row, "dataset": "digits", "dataset_hash": "0123456789abcdef" * 4}


def children(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(mlflow_experiment("exp"))
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=1000)
    return [r for r in runs if r.data.tags["sfumato.kind"] == "row"]


# --- the mirror


class Recorder(Tracker):
    """Takes rows as MLflow would, and keeps what each call brought."""

    def __init__(self) -> None:
        super().__init__("sqlite://", Path())
        self.batches: list[list[Any]] = []
        self.meant: list[tuple[str, Any]] = []

    def send(self, experiment: str, rows: Any, *, experiment_params: Any = None) -> int:
        self.batches.append(list(rows))
        self.meant.append((experiment, experiment_params))
        return len(rows)


@settings(deadline=None)
@given(st.lists(st.integers(0, 130), max_size=6))
def test_every_row_is_sent_once_in_order_and_few_at_a_time(sizes: list[int]) -> None:
    tracker, rows = Recorder(), [result(i) for i in range(sum(sizes))]
    mirror, rest = Mirror(tracker, "exp", {"preset": "cpu"}), iter(rows)
    for size in sizes:
        mirror.put(list(islice(rest, size)))
    assert mirror.close(60) is None
    assert mirror.close(60) is None
    assert [row for batch in tracker.batches for row in batch] == rows
    assert all(1 <= len(batch) <= 50 for batch in tracker.batches)
    assert all(meant == ("exp", {"preset": "cpu"}) for meant in tracker.meant)
    assert mirror.sent == {(row["task_key"], row["label"]) for row in rows}


def test_the_mirror_sends_to_mlflow_and_says_so(uri: str, tmp_path: Path) -> None:
    rows = [result(i) for i in range(3)]
    mirror = Mirror(Tracker(uri, tmp_path), "exp", {})
    for row in rows:
        mirror.put([row])
    assert mirror.close(60) is None
    assert mirror.sent == {(row["task_key"], row["label"]) for row in rows}
    assert len(children(uri)) == 3


def test_the_mirror_tries_once_and_then_only_at_close(tmp_path: Path) -> None:
    with socket.socket() as rude:
        rude.bind(("127.0.0.1", 0))
        rude.listen()
        rude.settimeout(20)
        mirror = Mirror(Tracker(f"http://127.0.0.1:{rude.getsockname()[1]}", tmp_path), "exp", {})
        mirror.put([result(i) for i in range(60)])  # more than a batch: sent at once
        rude.accept()[0].close()
        mirror.put([result(i) for i in range(60, 200)])
        rude.settimeout(1)  # more than a batch waits: a second try would come at once
        with pytest.raises(TimeoutError):
            rude.accept()
        assert mirror.close(0) is not None  # starts the last try, does not wait for it
        rude.settimeout(20)
        rude.accept()[0].close()
        warning = mirror.close(20)
        assert warning is not None
        assert "200 result rows" in warning
        rude.settimeout(0.2)
        with pytest.raises(TimeoutError):
            rude.accept()


def test_a_silent_server_costs_a_bounded_time_at_the_end_and_none_before(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mirror = Mirror(Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path), "exp", {})
        started = time.monotonic()
        for i in range(1000):
            mirror.put([result(i)])
        assert time.monotonic() - started < 1
        warning = mirror.close(0.5)
        assert time.monotonic() - started < 3
        assert warning is not None
        assert warning.startswith("1000 result rows are not in MLflow yet")


def test_a_bad_row_is_a_warning_not_an_exception(tmp_path: Path) -> None:
    mirror = Mirror(Tracker(default_uri(tmp_path), tmp_path), "exp", {})
    mirror.put([{"task_key": "a"}])
    warning = mirror.close(30)
    assert warning is not None
    assert "'label' is None" in warning


def test_an_idle_mirror_starts_nothing(tmp_path: Path) -> None:
    mirror = Mirror(Tracker("http://127.0.0.1:1", tmp_path), "exp", {})
    mirror.put([])
    assert mirror.close(1) is None


@contextmanager
def mlflow_server(folder: Path, database: Path, port: int) -> Iterator[str]:
    shutil.copy(database, folder / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--default-artifact-root", (folder / "artifacts").as_uri()]
    with (folder / "server.log").open("w") as log:
        # Without its job runner the server starts and stops in half the time.
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
            try:
                server.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError((folder / "server.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow  # a server takes 4 to 30 s to start, as busy as the machine is
def test_rows_wait_for_a_server_and_are_sent_when_it_is_back(
    tmp_path: Path, database: Path, closed_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{closed_port}"
    rows = [result(i) for i in range(3)]
    mirror = Mirror(Tracker(address, tmp_path), "exp", {})
    mirror.put(rows)
    warning = mirror.close(10)
    assert warning is not None
    assert "3 result rows" in warning
    assert "refused" in warning
    assert "\n" not in warning
    assert mirror.sent == set()

    with mlflow_server(tmp_path, database, closed_port) as uri:
        mirror = Mirror(Tracker(uri, tmp_path), "exp", {})
        mirror.put(rows)
        assert mirror.close(30) is None
        assert mirror.sent == {(row["task_key"], row["label"]) for row in rows}
        assert Tracker(uri, tmp_path).send("exp", rows) == 0
        assert len(children(uri)) == 3
        assert all(r.inputs.dataset_inputs[0].dataset.name == "digits" for r in children(uri))
    assert capfd.readouterr() == ("", "")


# --- the ledger


def test_the_ledger_knows_what_was_sent_where(tmp_path: Path) -> None:
    path = tmp_path / "experiments" / "exp" / "mlflow.jsonl"
    rows = [result(1), result(2), result(2, label="other")]
    server, other = "http://bob:s3cret@host:5000", "http://elsewhere:5000"
    ledger = Ledger(path)
    assert ledger.waiting(server, rows) == rows
    ledger.mark(server, rows[:2])
    assert Ledger(path).waiting(server, rows) == rows[2:]
    assert Ledger(path).waiting("http://eve:changed@host:5000", rows) == rows[2:]
    assert Ledger(path).waiting(other, rows) == rows
    ledger.mark(server, rows[2:])
    assert Ledger(path).waiting(server, rows) == []
    assert "s3cret" not in path.read_text()
    assert "bob" not in path.read_text()


def test_rows_wait_again_when_the_database_is_gone_or_another(uri: str, tmp_path: Path) -> None:
    ledger, path = Ledger(tmp_path / "ledger.jsonl"), tmp_path / "mlflow.db"
    Tracker(uri, tmp_path).send("exp", [result(1)])
    ledger.mark(uri, [result(1)])
    assert ledger.waiting(uri, [result(1)]) == []
    kept = path.rename(tmp_path / "kept.db")
    assert ledger.waiting(uri, [result(1)]) == [result(1)]
    path.touch()
    assert ledger.waiting(uri, [result(1)]) == [result(1)]
    path.unlink()
    Tracker(uri, tmp_path).send("exp", [result(2)])
    assert ledger.waiting(uri, [result(1)]) == [result(1)]
    kept.replace(path)
    assert ledger.waiting(uri, [result(1)]) == []


@given(
    cut=st.integers(0, 400),
    rubbish=st.sampled_from([b"", b"\xff\xfe", b"[1]\n", b'{"uri": "u", "rows": 3}\n', b"{}\n"]),
)
def test_a_damaged_ledger_never_claims_too_much_and_still_works(
    cut: int, rubbish: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path)
    rows = [result(i) for i in range(4)]
    for row in rows[:3]:
        ledger.mark("u", [row])
    path.write_bytes(path.read_bytes()[:cut] + rubbish)
    waiting = ledger.waiting("u", rows)
    assert rows[3] in waiting
    assert [row for row in rows if row in waiting] == waiting
    ledger.mark("u", rows)
    assert ledger.waiting("u", rows) == []
