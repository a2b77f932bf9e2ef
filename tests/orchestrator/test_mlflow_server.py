"""A real MLflow server, killed and started again: runs go on, and the history is whole after."""

import http.client
import http.server
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from storage._mlflow import connect
from storage.tables import equal
from storage.tracking import Rebuilt, Tracker, TrackingAway, mlflow_experiment

pytestmark = pytest.mark.slow  # a server takes 4 to 30 s to start, as busy as the machine is
PATIENCE_S = 120


@dataclass
class Server:
    """An MLflow server on loopback, over a SQLite file."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--default-artifact-root", (self.folder / "artifacts").as_uri()]
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # it starts in half the time so
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                asked.request("GET", "/health")
                assert asked.getresponse().status == 200
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                select.select([], [], [], 0.1)

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def finished(self):
        """How many child runs are finished."""
        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(mlflow_experiment("tiny"))
        if found is None:
            return 0
        where = "tags.`sfumato.kind` = 'row' AND attributes.status = 'FINISHED'"
        return len(client.search_runs([found.experiment_id], where))

    def rows(self, experiment="tiny"):
        """The child runs by (task_key, label); there must be one parent, and nothing half."""
        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(mlflow_experiment(experiment))
        runs = client.search_runs([found.experiment_id], max_results=1000)
        kinds = [run.data.tags["sfumato.kind"] for run in runs]
        assert kinds.count("parent") == 1
        rows = [run for run in runs if run.data.tags["sfumato.kind"] == "row"]
        assert {run.info.status for run in runs} == {"FINISHED"}
        told = {(r.data.tags["sfumato.task_key"], r.data.tags["sfumato.label"]): r for r in rows}
        assert len(told) == len(rows)
        return told


@pytest.fixture(scope="module")
def new_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def server(tmp_path, new_database):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(new_database, folder / "server.db")
    made = Server(folder, port)
    made.start()
    yield made
    made.kill()


def driver(lab, server):
    argv = [sys.executable, "-m", "orchestrator", "run", str(lab.file()), "--inline"]
    argv += ["--store", str(lab.store.root), "--tracking-uri", server.uri]
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # so that select() and readline() see the same
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def is_whole(lab, server):
    """MLflow says exactly what the tables say."""
    told = server.rows()
    frame = lab.store.tables.frame("results", "tiny")
    assert set(told) == set(zip(frame["task_key"], frame["label"], strict=True))
    for row in frame.to_dict("records"):
        metrics = told[row["task_key"], row["label"]].data.metrics
        assert metrics["attack_accuracy"] == row["attack_accuracy"]
        assert metrics["auc"] == row["auc"]
        assert metrics["num_members"] == row["num_members"]


@pytest.mark.parametrize("back", ["before the end", "after the end, then run", "then rebuild"])
def test_a_server_killed_in_the_middle_of_a_run(undisturbed, lab, server, back):
    before, _, _ = undisturbed
    running = driver(lab, server)
    while not (arrived := server.finished()):
        assert running.poll() is None, running.stderr.read().decode()
        if select.select([running.stdout], [], [], 0.05)[0]:
            running.stdout.readline()
    running.send_signal(signal.SIGSTOP)  # a server starts more slowly than this run ends
    server.kill()
    assert arrived < 16, "the run was over too soon to prove anything"
    if back == "before the end":
        server.start()
    running.send_signal(signal.SIGCONT)
    errors = running.communicate(timeout=PATIENCE_S)[1].decode()
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    assert equal(before.store.tables, lab.store.tables) == []

    if back == "before the end":
        assert errors == ""
        is_whole(lab, server)
    else:
        assert re.fullmatch(r"warning: \d+ result rows are not in MLflow yet: .*\n", errors)
        server.start()
    again = [sys.executable, "-m", "orchestrator"]
    if back == "then rebuild":
        again += ["history", "--rebuild"]
    else:
        again += ["run", str(lab.file()), "--inline"]
    again += ["--store", str(lab.store.root), "--tracking-uri", server.uri]
    ended = subprocess.run(again, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stderr) == (0, "")
    is_whole(lab, server)
    tracker = Tracker(server.uri, lab.root)
    rows = lab.store.tables.frame("results", "tiny").drop(columns=["experiment", "status"])
    assert tracker.rebuild("tiny", rows.to_dict("records")) == Rebuilt(16, 0, 0)


@contextmanager
def losing(server, nth):
    """A way to the server on which the answer to the nth request is lost; gives how many came."""
    asked = []

    class Way(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            onward = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            onward.request(self.command, self.path, body, dict(self.headers))
            answer = onward.getresponse()
            content = answer.read()
            asked.append(self.path)
            if len(asked) == nth:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do

        def log_message(self, *args):
            pass

    way = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Way)
    threading.Thread(target=way.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{way.server_address[1]}", asked
    finally:
        way.shutdown()
        way.server_close()


def test_whichever_answer_is_lost_every_row_is_there_once(server, tmp_path):
    rows = [
        {"task_key": f"{i:064x}", "label": "none", "dataset": "d", "dataset_hash": "0", "auc": 0.5}
        for i in range(2)
    ]
    with losing(server, 0) as (uri, asked):
        Tracker(uri, tmp_path).send("whole", rows, experiment_params={"preset": "cpu"})
        num_requests = len(asked)
    assert num_requests > 10
    num_lost = 0
    for nth in range(1, num_requests + 1):
        with losing(server, nth) as (uri, asked):
            tracker = Tracker(uri, tmp_path)
            try:
                tracker.send(f"lost-{nth}", rows, experiment_params={"preset": "cpu"})
            except TrackingAway:
                num_lost += 1
            # As the mirror does when it closes, and as the next run does.
            assert tracker.send(f"lost-{nth}", rows) <= 2
        assert Tracker(server.uri, tmp_path).send(f"lost-{nth}", rows) == 0
        told = server.rows(f"lost-{nth}")
        assert len(told) == 2
        assert all(run.data.metrics == {"auc": 0.5} for run in told.values())
        assert all(run.inputs.dataset_inputs for run in told.values())
    # That of create_experiment is no loss: the experiment is looked up again.
    assert num_lost == num_requests - 1
