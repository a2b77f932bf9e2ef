"""A person's files; and one MLflow database, made once, of which tests write to copies."""

import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets import Dataset, Source, load
from storage.tracking import default_uri


@dataclass(frozen=True)
class Files:
    """A person's files in a folder."""

    folder: Path

    def table(self, name: str, **columns: Any) -> Path:
        pq.write_table(pa.table(columns), self.folder / name)
        return self.folder / name

    def arrays(self, name: str, **named: Any) -> Path:
        np.savez(self.folder / name, **named)
        return self.folder / name

    def read(self, path: Path) -> Dataset:
        return load(Source("own", path=str(path)), None)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="session")
def files_in() -> type[Files]:
    return Files


FIRST_RUN = """
import json, sys
from pathlib import Path
from storage.mirror import Ledger
from storage.tracking import Tracker, default_uri
assert "mlflow" not in sys.modules
called = []
sys.addaudithook(lambda event, args: event == "socket.connect" and called.append(str(args[1])))
store = Path("store")
ledger = Ledger(store / "ledger.jsonl")
ledger.mark("http://host", [{"task_key": "k", "label": "a"}])
assert ledger.waiting("http://host", [{"task_key": "k", "label": "a"}]) == []
assert "mlflow" not in sys.modules
tracker = Tracker(default_uri(store), store / "mlartifacts")
assert tracker.send("first", []) == 0
assert "mlflow" not in sys.modules
assert tracker.send("first", [{"task_key": "k", "label": "a", "auc": 0.5}]) == 1
Path("called.json").write_text(json.dumps(called))
"""


@pytest.fixture(scope="session")
def first_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a driver used MLflow for the first time, and how that went."""
    folder = tmp_path_factory.mktemp("first_run")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUN],
        cwd=folder,
        # MLflow's telemetry is off under CI and pytest; here it must be off because we say so.
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    return folder, done


@pytest.fixture(scope="session")
def database(first_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """A fresh database costs two seconds of migrations; this one has had them."""
    folder, done = first_run
    assert done.returncode == 0, done.stderr
    return folder / "store" / "mlflow.db"


@pytest.fixture
def uri(tmp_path: Path, database: Path) -> str:
    shutil.copy(database, tmp_path / "mlflow.db")
    return default_uri(tmp_path)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
