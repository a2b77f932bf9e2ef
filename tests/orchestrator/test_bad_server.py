"""Clusters and MLflow servers that are none, are away, or answer with something else."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    """A port where every connection is answered with these bytes; with None, never."""
    listening = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            if answer is None:
                held.append(connection)
                continue
            with connection:
                if answer.startswith(b"HTTP"):
                    connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for connection in held:
            connection.close()


# -- Ray ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("nonsense", ["'nonsense' is not host:port", "10.0.0.5:6379"]),
        ("", ["'' is not host:port"]),
        (":6379", ["':6379' is not host:port"]),
        ("127.0.0.1:abc", ["is not host:port"]),
        ("127.0.0.1:-1", ["is not host:port"]),
        ("127.0.0.1:99999", ["nothing answers at 127.0.0.1:99999", "ray start --head"]),
        ("ray://127.0.0.1:10001", ["is no address for `run`", "host:port"]),
        ("http://127.0.0.1:8265", ["is no address for `run`", "sfumato submit"]),
        ("x" * 3000 + ":1", ["nothing answers at xxx", "Is the head running"]),
        ("\x1b[31m:1", ["nothing answers at \\x1b[31m:1"]),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_what_is_no_address_of_a_cluster(place: Any, address: str, parts: list[str]) -> None:
    file = place.file()
    said = place.command("run", file, "--store", str(place.store), "--address", address)
    place.refused(said, *parts)


def test_a_cluster_that_is_not_there_is_told_soon(place: Any) -> None:
    address = f"127.0.0.1:{closed_port()}"
    started = time.monotonic()
    said = place.command("run", place.file(), "--store", str(place.store), "--address", address)
    place.refused(said, address, "Is the head running", "ray start --head")
    assert time.monotonic() - started < 20


# -- MLflow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "nonsense",
        "./mlruns",
        "file:///mlruns",
        "ftp://somewhere/else",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://host:port",
        "://",
        "sqlite://",
        "postgresql://",
        "http://\x1b[31m",
        "sqlite:////tmp/" + "x" * 3000,
    ],
)
def test_what_is_no_address_of_mlflow(place: Any, uri: str) -> None:
    place.refused(place.run("--tracking-uri", uri), "--tracking-uri", "http://HOST:PORT", "sqlite:")
    assert not place.store.exists()


@pytest.mark.parametrize(
    "uri", ["http://ann:se/cret@host:port", "ftp://ann:secret@host", "http://ann:secret@host:x"]
)
def test_a_password_in_a_wrong_address_is_not_shown(place: Any, uri: str) -> None:
    said = place.run("--tracking-uri", uri)
    place.refused(said, "--tracking-uri")
    assert "cret" not in said.text


HTML = b"<html>Welcome to nginx</html>"
ANSWERS = {
    "error 500": b"HTTP/1.1 500 Oh No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "another site": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
    + b"Content-Length: %d\r\n\r\n" % len(HTML)
    + HTML,
    "no permission": b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "hangs up": b"",
    "hangs": None,
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_server_that_is_no_mlflow_stops_nothing(
    place: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # a person's own setting wins
    with server(ANSWERS[kind]) as port:
        started = time.monotonic()
        said = place.run("--tracking-uri", f"http://ann:secret@127.0.0.1:{port}")
        seconds = time.monotonic() - started
    assert said.code == 0, said.text
    rows = len(place.rows("results"))
    assert f"warning: {rows} result rows are not in MLflow yet" in said.flat
    assert f"127.0.0.1:{port}" in said.flat
    assert "sfumato run" in said.flat
    assert "secret" not in said.text
    assert seconds < 30


def tracked(database: Path) -> int:
    """Result rows in an MLflow database."""
    with sqlite3.connect(database) as connection:
        count = "SELECT COUNT(DISTINCT value) FROM tags WHERE key = 'sfumato.task_key'"
        return int(connection.execute(count).fetchone()[0])


def test_rows_wait_while_mlflow_is_away_and_are_sent_when_it_is_back(place: Any) -> None:
    uri = f"sqlite:///{place.folder}/server/mlflow.db"
    (place.folder / "server").write_text("not a folder, so nothing can be kept in it")
    said = place.run("--tracking-uri", uri)
    assert said.code == 0, said.text
    rows = len(place.rows("results"))
    assert f"warning: {rows} result rows are not in MLflow yet" in said.flat
    (place.folder / "server").unlink()
    (place.folder / "server").mkdir()
    again = place.run("--tracking-uri", uri)
    assert again.code == 0, again.text
    assert "nothing to run" in again.flat
    assert "warning" not in again.flat
    assert tracked(place.folder / "server" / "mlflow.db") == rows


def test_an_mlflow_server_that_does_not_answer_stops_nothing(place: Any) -> None:
    said = place.run("--tracking-uri", f"http://user:secret@127.0.0.1:{closed_port()}")
    assert said.code == 0, said.text
    assert "not in MLflow yet" in said.flat
    assert "127.0.0.1" in said.flat
    assert "secret" not in said.text
    later = place.run()  # without the address they go into the store's own database
    assert later.code == 0
    assert "warning" not in later.flat
    assert tracked(place.store / "mlflow.db") == len(place.rows("results"))
