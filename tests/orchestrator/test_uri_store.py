"""Stores at an URI: working copies of several machines, killed drivers, lost servers."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator._console import uri_of
from orchestrator._there import store_there
from storage.artifacts import Artifacts
from storage.queries import query
from storage.remote import ObjectStore
from storage.tables import Tables, equal
from storage.working import upstream_of, working_copy


@dataclass
class Machine:
    """A machine with a home of its own, on which commands run for a store at an URI."""

    folder: Path
    file: str
    history: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        shutil.copy(self.history, self.folder / "mlflow.db")  # a new one takes seconds

    @property
    def journal(self) -> Path:
        return self.folder / "journal.txt"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache")}

    def argv(self, uri: str) -> list[str]:
        command = [sys.executable, "-m", "orchestrator", "run", self.file, "--inline"]
        command += ["--store", uri, "--journal", str(self.journal)]
        return [*command, "--tracking-uri", f"sqlite:///{self.folder}/mlflow.db"]

    def start(self, uri: str) -> "subprocess.Popen[str]":
        out = subprocess.PIPE
        return subprocess.Popen(
            self.argv(uri), env=self.environment, stdout=out, stderr=subprocess.STDOUT, text=True
        )

    def tables(self) -> Tables:
        (root,) = (self.folder / "cache" / "sfumato" / "stores").iterdir()
        return Tables(root / "tables")

    def events(self, event: str) -> list[str]:
        """The keys of tasks that started, or were done."""
        if not self.journal.exists():
            return []
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        return [line[4] for line in lines if line[2] == event]


@pytest.fixture
def machine(place: Any, tmp_path: Path, new_history: Path) -> Any:
    def of(name: str) -> Machine:
        return Machine(tmp_path / name, place.file(), new_history)

    return of


@dataclass
class Here:
    """Commands in this process, as on the machine whose home is set."""

    place: Any
    machine: Machine
    patch: pytest.MonkeyPatch
    uri: str
    codes: list[int] = field(default_factory=list)

    def on(self, machine: Machine) -> "Here":
        self.machine = machine
        self.patch.setenv("XDG_CACHE_HOME", str(machine.folder / "cache"))
        return self

    def run(self, uri: str = "") -> Any:
        return self.place.command(*self.machine.argv(uri or self.uri)[3:])

    def command(self, *args: str) -> Any:
        return self.place.command(*args, "--store", self.uri)


@pytest.fixture
def here(place: Any, machine: Any, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(place, machine("a"), monkeypatch, s3.new_uri()).on(machine("b"))


def test_another_machine_reads_everything_and_runs_nothing(
    here: Here, machine: Any, finished: Any
) -> None:
    first, second = here.machine, machine("c")
    said = here.run()
    assert said.code == 0, said.text
    assert here.uri in said.flat
    assert len(first.events("done")) == len(finished.artifacts())
    assert set(ObjectStore(here.uri).keys()) == set(finished.artifacts())
    here.on(second)
    assert here.command("status", second.file).code == 0
    said = here.command("query", "SELECT count(*) AS n FROM results")
    assert re.search(r"\b2\b", said.text)
    assert query(here.uri, "SELECT count(*) AS n FROM results")["n"].tolist() == [2]
    said = here.run()
    assert said.code == 0, said.text
    assert "nothing to run" in said.flat
    assert second.events("start") == []
    assert equal(Tables(finished.store / "tables"), second.tables()) == []
    assert not list((second.folder / "cache").rglob("task.json")), "rows were there, no artifact"


def test_a_store_that_is_not_there_is_refused_by_who_only_reads(here: Here) -> None:
    for command in (["status", here.machine.file], ["query", "SELECT 1"], ["gc"]):
        said = here.command(*command)
        assert said.code == 2, said.text
        assert f"there is no store at {here.uri}" in said.flat


REFUSED = {
    "s3://ann:hush@bucket/store": "AWS_ACCESS_KEY_ID",
    "s4://bucket/store": "is no address of a store",
    "s3://bucket/store?colour=red": "'colour' is unknown",
}


@pytest.mark.parametrize("uri", REFUSED)
def test_addresses_that_are_none_are_bad_input(here: Here, uri: str) -> None:
    said = here.run(uri)
    here.place.refused(said, "--store", REFUSED[uri])
    assert "hush" not in said.text


SPELLED = {
    "s3://bucket/a": "s3://bucket/a",
    "s3://bucket/a?endpoint_override=http://h:9000": "s3://bucket/a?endpoint_override=http://h:9000",
    "S3://bucket": "s3://bucket",
    "file:///a/b": "file:///a/b",
    "/a:/b": None,
    "store": None,
    "x/s3://b": None,
}


@pytest.mark.parametrize("typed", SPELLED)
def test_an_address_survives_being_taken_for_a_path(typed: str) -> None:
    assert uri_of(Path(typed)) == SPELLED[typed]


def test_a_store_elsewhere_is_named_and_not_asked_for() -> None:
    assert store_there("s3://bucket/store/") == "s3://bucket/store"
    for bad in ("s3://ann:hush@bucket/store", "s4://bucket"):
        with pytest.raises(ValueError, match="--store"):
            store_there(bad)


def test_a_server_that_is_away_is_bad_input(here: Here, s3: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = here.run(s3.uri("bucket", port))
    here.place.refused(said, f"127.0.0.1:{port}", "Could not connect", "AWS_ACCESS_KEY_ID")
    here.place.refused(here.run(s3.uri("nobody")), "there is no bucket 'nobody'")


class Gate:
    """A way to the S3 server that closes itself after so many objects were written.

    Attributes:
        port: where it listens.
        left: how many may be written still; None for any number.
    """

    def __init__(self, to: int) -> None:
        self._to, self.left = to, 0
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._server: socket.socket | None = None

    def open(self, writes: int) -> None:
        self.left = writes
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._take, args=(self._server,), daemon=True).start()

    def close(self) -> None:
        with self._lock:
            server, self._server = self._server, None
            held, self._held = self._held, []
        for one in [*held, *([server] if server else [])]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _take(self, server: socket.socket) -> None:
        while True:
            try:
                near = server.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            with self._lock:
                self._held += [near, far]
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := here.recv(1 << 16):
                if counted and data.startswith(b"PUT /") and b"/artifacts/" in data[:200]:
                    self.left -= 1
                    if self.left < 0:
                        self.close()
                        return
                there.sendall(data)
        for one in (here, there):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def gate(s3: Any) -> Iterator[Gate]:
    made = Gate(s3.port)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("writes", [3, 10])
def test_a_server_lost_in_a_run_stops_it_and_the_same_command_resumes(
    here: Here, gate: Gate, s3: Any, finished: Any, writes: int
) -> None:
    uri = s3.uri(s3.new_bucket(), gate.port)
    gate.open(writes)
    said = here.run(uri)
    assert said.code == 1, said.text
    assert "stopped: the store at" in said.flat
    assert "Could not connect" in said.flat
    assert "the same command" in said.flat
    assert "Traceback" not in said.text
    before = set(here.machine.events("start"))
    assert 0 < len(before) < len(finished.artifacts())
    gate.open(10**6)
    said = here.run(uri)
    assert said.code == 0, said.text
    assert sorted(here.machine.events("start")) == sorted(finished.artifacts()), "nothing twice"
    assert equal(Tables(finished.store / "tables"), here.machine.tables()) == []
    assert set(ObjectStore(uri).keys()) == set(finished.artifacts())


@pytest.mark.slow
def test_two_machines_on_one_new_store(
    here: Here, machine: Any, finished: Any, tmp_path: Path
) -> None:
    both = [machine("c"), machine("d")]
    drivers = [one.start(here.uri) for one in both]
    said = [driver.communicate(timeout=240)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert "warning" not in "".join(said)
    local = Tables(finished.store / "tables")
    assert [equal(local, one.tables()) for one in both] == [[], []]
    third = here.on(machine("e")).machine
    assert "nothing to run" in here.run().flat
    assert third.events("start") == []
    assert equal(local, third.tables()) == []
    for key in ObjectStore(here.uri).keys():  # noqa: SIM118 - a store, not a mapping
        Artifacts(tmp_path / "read", ObjectStore(here.uri)).open(key).verify()


@pytest.mark.slow
def test_what_a_killed_driver_finished_does_not_run_again_elsewhere(
    here: Here, machine: Any, finished: Any
) -> None:
    killed, other = machine("c"), here.machine
    driver = killed.start(here.uri)
    while len(killed.events("done")) < 4:
        assert driver.poll() is None, driver.communicate()[0]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    done = set(killed.events("done"))
    assert len(done) < len(finished.artifacts())
    said = here.run()
    assert said.code == 0, said.text
    assert done & set(other.events("start")) == set()
    assert equal(Tables(finished.store / "tables"), other.tables()) == []


@pytest.mark.slow
def test_gc_removes_at_the_uri(here: Here, machine: Any) -> None:
    assert here.run().code == 0
    before = set(ObjectStore(here.uri).keys())
    here.on(machine("c"))
    said = here.command("gc", "--forget", "tiny")
    assert "artifacts: " in said.text
    assert set(ObjectStore(here.uri).keys()) == before
    said = here.command("gc", "--forget", "tiny", "--delete")
    assert said.code == 0, said.text
    left = ObjectStore(here.uri).objects
    assert [*left.listing("artifacts"), *left.listing("tables"), *left.listing("experiments")] == []


@pytest.mark.slow
def test_what_a_worker_without_reach_left_here_is_sent_by_the_next_run(here: Here) -> None:
    assert here.run().code == 0
    store = ObjectStore(here.uri)
    root = working_copy(here.uri)
    assert upstream_of(root) == store
    key = next(iter(store.keys()))
    Artifacts(root / "artifacts", store).open(key)
    store.drop(key)
    assert here.run().code == 0
    assert store.fetch(key)


SEARCHED = {
    "defense": "random_noise",
    "space": {"sigma": {"low": 0.0, "high": 1.0}},
    "attacks": ["gap"],
    "objectives": ["attack_accuracy", "l1_distortion"],
    "sampler": "random",
    "trials": 2,
}


@pytest.mark.slow
def test_a_search_goes_on_on_another_machine(here: Here, machine: Any) -> None:
    first, second = here.machine, machine("c")
    file = here.place.file(attacks=[{"name": "metric", "statistic": "entropy"}], tune=SEARCHED)

    def search(trials: int) -> None:
        options = ["--inline", "--no-judge", "--journal", str(here.machine.journal)]
        options += ["--tracking-uri", f"sqlite:///{here.machine.folder}/mlflow.db"]
        said = here.command("tune", file, *options, "--set", f"tune.trials={trials}")
        assert said.code == 0, said.text
        assert "warning" not in said.text

    search(2)
    here.on(second)
    search(3)
    assert second.events("start")
    assert set(first.events("done")) & set(second.events("start")) == set()
    frame = query(here.uri, "SELECT number, state FROM trials ORDER BY number")
    assert frame.to_dict("list") == {"number": [0, 1, 2], "state": ["complete"] * 3}
    there = ObjectStore(here.uri).objects
    assert there.read("optuna.journal") == (working_copy(here.uri) / "optuna.journal").read_bytes()
    kept = there.listing("experiments")
    assert any(name.startswith("experiments/tiny/figures/") for name in kept)
    assert "experiments/tiny/chosen.yaml" in kept
