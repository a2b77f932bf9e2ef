"""MLflow's page and Optuna's dashboard over a store, on this machine only."""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from socketserver import ThreadingMixIn
from types import FrameType
from typing import IO, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import typer

from orchestrator.study_storage import JOURNAL, open_storage
from storage.tracking import Tracker, default_uri, masked

__all__ = ["DASHBOARD_PORT", "MLFLOW_PORT", "serve"]

MLFLOW_PORT, DASHBOARD_PORT = 5000, 8080
_HOST = "127.0.0.1"
_START_S = 180  # it takes 4 to 60 s, as busy as the machine is
_END_S = 10
_LOG_LINES = 5
_PR_SET_PDEATHSIG = 1


def serve(
    store: Path,
    tracking_uri: str | None,
    study_uri: str | None,
    *,
    port: int = MLFLOW_PORT,
    dashboard_port: int = DASHBOARD_PORT,
) -> None:
    """Show the run history and the studies of a store until Ctrl-C or SIGTERM.

    Both pages are on 127.0.0.1 only. Nothing that was started is left behind.

    Args:
        store: the store's folder.
        tracking_uri: an MLflow server, whose own page is named then, or a database; None for the
            store's database.
        study_uri: as `open_storage` takes it.
        port: of MLflow's page; 0 for any. If the usual one is taken, a free one is used.
        dashboard_port: likewise of Optuna's dashboard.

    Raises:
        ValueError: if a port that is not the usual one cannot be had.
        StudyAway: if the studies cannot be read.
        TrackingAway: if the run history cannot be read.
        ChildProcessError: if MLflow's page does not start, or ends by itself.
        KeyboardInterrupt: if it is asked to end before both pages answer.
    """
    uri = tracking_uri or default_uri(store)
    remote = uri.startswith(("http://", "https://"))
    # MLflow's server tells little of a history it cannot read, and would make one other than ours.
    Tracker(uri, store / "mlflow-artifacts").experiments()
    dashboard = _dashboard(store, study_uri)
    with ExitStack() as undone:
        # Both are held until both are chosen.
        probes = undone.enter_context(ExitStack())
        port = 0 if remote else _free(probes, port, MLFLOW_PORT, "--port")
        dashboard_port = _free(probes, dashboard_port, DASHBOARD_PORT, "--dashboard-port")
        probes.close()
        ending = undone.enter_context(_signals())
        mlflow = None if remote else undone.enter_context(_mlflow(uri, store, port))
        if dashboard is not None:
            undone.enter_context(_in_thread(dashboard, dashboard_port))
        if mlflow is not None:
            _wait(mlflow, port, ending)
        typer.echo(f"MLflow:  {masked(uri) if remote else f'http://{_HOST}:{port}'}")
        if dashboard is not None:
            typer.echo(f"Optuna:  http://{_HOST}:{dashboard_port}")
        if mlflow is None and dashboard is None:
            return
        typer.echo("Ctrl-C ends this")
        while not _asked(ending, 0.5):
            if mlflow is not None and mlflow.process.poll() is not None:
                raise ChildProcessError(f"MLflow's page ended by itself: {mlflow.tail()}")


def _dashboard(store: Path, study_uri: str | None) -> Any:
    """Optuna's dashboard as a WSGI application; None, and a hint, if there is nothing to show."""
    none = "no study yet: `sfumato tune NAME` makes one"
    if study_uri is None and not (store / JOURNAL).exists():
        typer.echo(f"Optuna:  {none}")
        return None
    storage = open_storage(study_uri, store)
    if not storage.get_all_studies():
        typer.echo(f"Optuna:  {none}")
        return None
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        typer.echo(
            f"Optuna:  its dashboard cannot be shown ({error}): pip install optuna-dashboard"
        )
        return None
    return wsgi(storage)


def _free(probes: ExitStack, port: int, usual: int, option: str) -> int:
    """A port that can be listened at; held by `probes` so that the next call gives another."""
    try:
        probe = probes.enter_context(socket.create_server((_HOST, port)))
    except (OSError, OverflowError) as error:
        if port != usual:
            reason = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"{option} {port} cannot be had: {reason}. Name another, or 0 for any that is free"
            ) from error
        probe = probes.enter_context(socket.create_server((_HOST, 0)))
        typer.echo(f"port {port} is taken, so another is used; {option} names one")
    return int(probe.getsockname()[1])


@contextmanager
def _signals() -> Iterator[int]:
    """Turn signals that ask to end into bytes of a pipe, of which this gives the end to read.

    No exception can then come between the start of a process and the note that it is to be ended.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def note(signum: int, frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            os.write(tell, b".")

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Where it is ignored, as in the background of a shell or under nohup, it stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)
        os.close(tell)


def _asked(ending: int, seconds: float) -> bool:
    return bool(select.select([ending], [], [], seconds)[0])


class _Mlflow:
    """MLflow's server: a process of its own, with workers, and what they said."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self._log = log

    def tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        said = "\n".join(f"  {masked(line)}" for line in lines[-_LOG_LINES:] if line.strip())
        return f"exit code {self.process.poll()}\n{said}\n`sfumato doctor` examines the store"


@contextmanager
def _mlflow(uri: str, store: Path, port: int) -> Iterator[_Mlflow]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port)]
    command += ["--workers", "1", "--no-serve-artifacts", "--default-artifact-root"]
    command += [(store / "mlflow-artifacts").resolve().as_uri()]
    # By environment, as everybody may read the arguments of a process and this holds a password.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # starts in half the time so
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that it has a group, which is ended as a whole
            preexec_fn=_die_with_parent,
        )
        try:
            yield _Mlflow(process, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent is killed and can do nothing any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(mlflow: _Mlflow, port: int, ending: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if mlflow.process.poll() is not None:
            raise ChildProcessError(f"MLflow's page did not start: {mlflow.tail()}")
        if time.monotonic() > deadline:
            raise ChildProcessError(f"MLflow's page gave no answer in {_START_S} s")
        with suppress(OSError, HTTPException):
            connection = HTTPConnection(_HOST, port, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            finally:
                connection.close()
        if _asked(ending, 0.1):
            raise KeyboardInterrupt


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def _in_thread(application: Any, port: int) -> Iterator[None]:
    server = make_server(_HOST, port, application, server_class=_Server, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.1], daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_END_S)
