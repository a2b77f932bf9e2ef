"""A small experiment that has every kind of task and runs in seconds."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from orchestrator.check import load_experiment
from orchestrator.resume import Store
from orchestrator.run import Options, Outcome, run

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
