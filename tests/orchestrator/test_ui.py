"""The pages of a store: really served, on loopback only, and nothing left when they end."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import optuna
import pytest

from orchestrator.study_storage import JOURNAL, open_storage
from orchestrator.ui import DASHBOARD_PORT, MLFLOW_PORT, _dashboard

PATIENCE_S = 120
LOOPBACK = "0100007F"


def study(store: Path, uri: str | None = None, trials: int = 3) -> None:
    made = optuna.create_study(
        storage=open_storage(uri, store), study_name="s", directions=["minimize", "maximize"]
    )
    for i in range(trials):
        made.tell(made.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), [0.5, i / 10])


class Pages:
    """`sfumato ui` as a process of its own."""

    def __init__(self, store: Path, *options: str) -> None:
        command = [sys.executable, "-m", "orchestrator", "ui", "--store", str(store), *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, cwd=store.parent
        )
        self.said: list[str] = []

    def wait(self) -> dict[str, int]:
        """The ports by page, once both answer."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Ctrl-C"):
                found = re.findall(r"^(\w+): +http://127\.0\.0\.1:(\d+)$", "".join(self.said), re.M)
                return {page: int(port) for page, port in found}
        raise AssertionError(self.process.communicate())

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.wait_end()

    def wait_end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


def stat(pid: int) -> list[str]:
    """Parent and start (in ticks) of a process; empty if there is none, or a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if words[0] == "Z" else [words[1], words[19]]


def descendants(pid: int) -> dict[int, str]:
    """All processes below one, with their starts."""
    everyone = {int(p.name): stat(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, wave = {}, {pid}
    while wave:
        wave = {child for child, words in everyone.items() if words and int(words[0]) in wave}
        found |= {child: everyone[child][1] for child in wave}
    return found


def are_gone(processes: dict[int, str]) -> bool:
    deadline = time.monotonic() + 30
    while left := [pid for pid, start in processes.items() if stat(pid)[1:] == [start]]:
        if time.monotonic() > deadline:
            raise AssertionError([Path(f"/proc/{pid}/cmdline").read_text() for pid in left])
        select.select([], [], [], 0.05)
    return True


def listened(pids: list[int]) -> dict[int, set[str]]:
    """Port -> addresses (hexadecimal) at which any of these processes listens."""
    held = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held.add(os.readlink(descriptor))
    found: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in held:
                address, _, port = words[1].rpartition(":")
                found.setdefault(int(port, 16), set()).add(address)
    return found


def fetch(port: int, path: str, **body: Any) -> tuple[str, str]:
    """Content type and text of a page."""
    data = json.dumps(body).encode() if body else None
    request = Request(f"http://127.0.0.1:{port}{path}", data)
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=60) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], answer.read().decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
@pytest.mark.xdist_group("ui")  # the usual ports
def test_both_pages_on_loopback_until_a_signal_and_nothing_left(
    done: Any, number: signal.Signals, code: int
) -> None:
    study(done.store)
    before = sorted(done.folder.iterdir())
    with ExitStack() as taken:
        for usual in (MLFLOW_PORT, DASHBOARD_PORT):
            with suppress(OSError):  # taken by another
                taken.enter_context(socket.create_server(("127.0.0.1", usual)))
        pages = Pages(done.store)
        ports = pages.wait()
    assert f"port {MLFLOW_PORT} is taken" in pages.said[0]
    assert f"port {DASHBOARD_PORT} is taken" in pages.said[1]
    assert set(ports) == {"MLflow", "Optuna"}

    kind, text = fetch(ports["MLflow"], "/")
    assert "html" in kind
    assert "MLflow" in text
    query = {"max_results": 100}
    found = json.loads(fetch(ports["MLflow"], "/api/2.0/mlflow/experiments/search", **query)[1])
    assert "sfumato/tiny" in {one["name"] for one in found["experiments"]}

    kind, text = fetch(ports["Optuna"], "/dashboard")
    assert "html" in kind
    assert "Optuna" in text
    (shown,) = json.loads(fetch(ports["Optuna"], "/api/studies")[1])["study_summaries"]
    assert shown["study_name"] == "s"
    path = f"/api/studies/{shown['study_id']}"
    trials = json.loads(fetch(ports["Optuna"], path)[1])["trials"]
    assert [trial["values"] for trial in trials] == [[0.5, 0.0], [0.5, 0.1], [0.5, 0.2]]

    below = descendants(pages.process.pid)
    assert below
    listening = listened([pages.process.pid, *below])
    assert set(ports.values()) <= set(listening)
    assert {address for addresses in listening.values() for address in addresses} == {LOOPBACK}

    assert pages.end(number) == (code, "")
    assert are_gone(below)
    for port in ports.values():
        with pytest.raises(URLError):
            fetch(port, "/")
    assert sorted(done.folder.iterdir()) == before  # MLflow leaves nothing where it is started


def test_asked_to_end_before_the_pages_answer_leaves_nothing(done: Any) -> None:
    pages = Pages(done.store, "--port", "0", "--dashboard-port", "0")
    deadline = time.monotonic() + PATIENCE_S
    while not (below := descendants(pages.process.pid)):
        assert pages.process.poll() is None, pages.process.communicate()
        assert time.monotonic() < deadline
        select.select([], [], [], 0.02)
    assert pages.end(signal.SIGTERM) == (130, "interrupted\n")
    assert are_gone(below)


@pytest.mark.slow
def test_without_a_study_there_is_mlflow_alone_and_its_end_is_told(done: Any) -> None:
    pages = Pages(done.store, "--port", "0", "--dashboard-port", "0")
    assert set(pages.wait()) == {"MLflow"}
    assert "sfumato tune" in pages.said[0]
    assert not (done.store / JOURNAL).exists()
    below = descendants(pages.process.pid)
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code, errors = pages.wait_end()
    assert code == 2
    assert "MLflow's page ended by itself" in errors
    assert are_gone(below)


@pytest.mark.parametrize("option", ["--port", "--dashboard-port"])
def test_a_port_that_was_asked_for_and_is_taken_is_told(done: Any, option: str) -> None:
    other = {"--port": "--dashboard-port", "--dashboard-port": "--port"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = done.command("ui", "--store", done.store, option, port, other, "0")
    assert said.code == 2
    assert f"{option} {port} cannot be had: Address already in use" in said.flat
    port = str(free_port())
    said = done.command("ui", "--store", done.store, "--port", port, "--dashboard-port", port)
    assert said.code == 2
    assert f"--dashboard-port {port} cannot be had" in said.flat


def test_studies_and_a_history_that_are_away_are_told(done: Any) -> None:
    away = f"127.0.0.1:{free_port()}"
    uri = f"postgresql://ann:s3cret@{away}/db"
    said = done.command("ui", "--store", done.store, "--study-uri", uri)
    assert said.code == 2
    assert away in said.flat
    assert "Start the server" in said.flat
    assert "s3cret" not in said.text
    said = done.command("ui", "--store", done.store, "--tracking-uri", f"http://ann:s3cret@{away}")
    assert said.code == 2
    assert away in said.flat
    assert "s3cret" not in said.text
    (done.store / "mlflow.db").write_bytes(b"no database at all" * 1000)
    said = done.command("ui", "--store", done.store)
    assert said.code == 2
    assert "mlflow.db" in said.flat
    assert "not a database" in said.flat
    assert "sfumato history --rebuild" in said.flat
    said = done.command("ui", "--store", done.folder / "none")
    assert said.code == 2
    assert "there is no store" in said.flat


def test_what_there_is_to_show_of_studies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _dashboard(tmp_path, None) is None
    assert "`sfumato tune NAME` makes one" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    uri = f"sqlite:///{tmp_path}/study.db"
    assert _dashboard(tmp_path, uri) is None
    assert "no study yet" in capsys.readouterr().out
    study(tmp_path, uri)
    assert _dashboard(tmp_path, uri) is not None
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)  # as for what is not installed
    assert _dashboard(tmp_path, uri) is None
    assert "pip install optuna-dashboard" in capsys.readouterr().out
