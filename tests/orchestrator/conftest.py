"""Small experiments: one with every kind of task, and a tiny one to be misused by command."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.check import load_experiment
from orchestrator.cli import app
from orchestrator.outcome import Options, Outcome
from orchestrator.resume import Store
from orchestrator.run import run
from storage._mlflow import connect
from storage.tracking import default_uri

TINY = {
    "name": "tiny",
    "seeds": [0],
    "preset": "cpu",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 1200, "features": 32, "classes": 5, "clusters": 4},
            "split": {"members": 400, "reference": 400, "nonmembers": 400},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 12},
    "defenses": [
        "none",
        {"name": "purifier", "epochs": 4},
        {"name": "purifier", "epochs": 4, "label": "reformer only", "swapper": False},
        ["l2", {"name": "onehot"}],
    ],
    "attacks": [
        "gap",
        {"name": "metric", "statistic": "confidence"},
        {"name": "nsh", "epochs": 4, "width": 0.1},
        {"name": "ml_leaks", "epochs": 2},
    ],
}


@dataclass
class Quiet:
    """Progress that remembers what it was told."""

    started_: list[str] = field(default_factory=list)
    finished_: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def begin(self, prepared):
        pass

    def joined(self, worker, node, gpu):
        pass

    def lost(self, worker):
        pass

    def tick(self, pending):
        pass

    def started(self, worker, task):
        self.started_.append(task.key)

    def finished(self, worker, task, seconds):
        self.finished_.append(task.key)

    def failed(self, worker, task, error):
        self.notes.append(f"failed: {task.kind} {task.name}: {error}")

    def note(self, message):
        self.notes.append(message)

    def end(self):
        pass


@pytest.fixture(scope="session")
def quiet():
    return Quiet


@pytest.fixture(scope="session")
def new_history(tmp_path_factory):
    """A fresh MLflow database costs seconds of migrations; this one has had them."""
    folder = tmp_path_factory.mktemp("history")
    connect(default_uri(folder))
    return folder / "mlflow.db"


@dataclass
class Lab:
    """A store, and the small experiment in a file."""

    root: Path
    tiny = TINY

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def journal(self) -> Path:
        return self.root / "journal.txt"

    def file(self, **changes) -> Path:
        path = self.root / "tiny.yaml"
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return path

    def run(self, executor="inline", workers=None, **changes) -> tuple[Outcome, Quiet]:
        experiment = load_experiment(str(self.file(**changes)))
        options = Options(
            store=self.store.root, executor=executor, workers=workers, journal=self.journal
        )
        quiet = Quiet()
        return run(experiment, options, quiet), quiet

    def executions(self) -> list[tuple[str, str]]:
        """(event, key) in the order the journal got them."""
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().splitlines()
        return [(line.split()[2], line.split()[4]) for line in lines]

    def repeated(self) -> list[str]:
        """Keys that were started again after they had finished."""
        done, again = set(), []
        for event, key in self.executions():
            if event == "start" and key in done:
                again.append(key)
            if event == "done":
                done.add(key)
        return again


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The small experiment run once, inline, from an empty store. Not to be changed."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"))
    outcome, quiet = lab.run()
    assert not outcome.failed, outcome.failed
    return lab, outcome, quiet


TINIEST = {
    "name": "tiny",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 300, "classes": 4, "features": 16},
            "split": {"members": 60, "reference": 60, "nonmembers": 60},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
    "defenses": ["none", "prototype"],
    "attacks": ["gap"],
}


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    text: str

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())


@dataclass(frozen=True)
class Place:
    """An experiment file and a store, used through the command line in this process."""

    folder: Path
    experiment = TINIEST

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def file(self, **keys) -> str:
        return self.text(yaml.safe_dump({**TINIEST, **keys}, sort_keys=False))

    def text(self, content: str | bytes) -> str:
        path = self.folder / "tiny.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def command(self, *args) -> Said:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.output, result.output
        assert "fault of Sfumato" not in result.output, result.output
        return Said(result.exit_code, result.output)

    def run(self, *options, **keys) -> Said:
        return self.run_file(self.file(**keys), *options)

    def run_file(self, file: str, *options) -> Said:
        return self.command("run", file, "--store", self.store, "--inline", *options)

    def own(self, path, *options, split=None, **keys) -> Said:
        """Run on a file of one's own."""
        sizes = {"members": 60, "reference": 60, "nonmembers": 60, **(split or {})}
        data = {"name": "own", "path": str(path), "split": sizes}
        return self.run(*options, datasets=[data], **keys)

    def refused(self, said: Said, *parts: str) -> None:
        """Exit code 2 before any work, and a message of a few lines with all the parts."""
        assert said.code == 2, said.text
        for part in parts:
            assert part in said.flat, f"{part!r} is not said:\n{said.text}"
        lines = said.text.splitlines()
        assert len(lines) <= 8, said.text
        assert all(len(line) < 1200 for line in lines), said.text
        assert all(line.isprintable() for line in lines), said.text
        assert not self.store.is_dir() or not self.artifacts()

    def artifacts(self) -> dict[str, Path]:
        """Finished artifacts by key."""
        found = (self.store / "artifacts").glob("[0-9a-f][0-9a-f]/*/task.json")
        return {path.parent.name: path.parent for path in found}

    def rows(self, table: str) -> pd.DataFrame:
        parts = sorted((self.store / "tables" / table).glob("part-*.parquet"))
        return pd.concat([pd.read_parquet(part) for part in parts])


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A store in which the tiny experiment is done; tests work on copies."""
    made = Place(tmp_path_factory.mktemp("finished"))
    assert made.run().code == 0
    return made


@pytest.fixture
def done(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


@pytest.fixture
def before_forms():
    """`before_forms(store, name)`: the store as it was made before forms of experiments were kept.

    It has the cells of the last form in one part that says nothing of forms.
    """

    def turn(root: Path, name: str) -> None:
        tables = Store(root).tables
        form = tables.forms.current(name)
        path, columns = tables.forms.path(name, form), ["form", "service", "settings"]
        rows = pd.read_parquet(path).drop(columns=columns).to_dict("records")
        tables.forms.forget(name)
        tables.write_cells(name, rows)
        shutil.rmtree(root / "experiments" / name / "forms")

    return turn


class _Of(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("thread", ctypes.c_int)]


@contextmanager
def _without_override() -> Iterator[None]:
    """Root may read and write what is forbidden, so this thread gives that up for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        yield
        return
    of = _Of(0x20080522, 0)
    # Twice (effective, permitted, inheritable): bits 0-31, bits 32-63.
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(of), before) == 0
    less[:] = before[:]
    less[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(of), less) == 0
    try:
        yield
    finally:
        assert libc.capset(ctypes.byref(of), before) == 0


@pytest.fixture
def permissions_that_count():
    """`with permissions_that_count():` file permissions hold, whoever runs the tests."""
    return _without_override
