"""A disk that fills up at any point of a run: a clear stop, and the same command resumes."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from storage.tables import Tables, equal

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 300, "classes": 4, "features": 16},
            "split": {"members": 60, "reference": 60, "nonmembers": 60},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
    "defenses": ["none", "prototype"],
    "attacks": ["gap", {"name": "metric", "statistic": "entropy"}],
}
BLOCK = 4096


def command(folder: Path, *options: str) -> tuple[int, str]:
    """`sfumato run` on the store in the folder: exit code, and all it said on one line."""
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    argv = ["run", str(file), "--inline", "--store", str(folder / "store"), *options]
    result = CliRunner().invoke(app, argv)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    assert "fault of Sfumato" not in result.output, result.output
    return result.exit_code, " ".join(result.output.split())


def tracked(database: Path) -> int:
    """Result rows in an MLflow database."""
    with sqlite3.connect(database) as connection:
        count = "SELECT COUNT(DISTINCT value) FROM tags WHERE key = 'sfumato.task_key'"
        return int(connection.execute(count).fetchone()[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert command(folder)[0] == 0
    return folder / "store"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A store that is a small disk of its own."""
    store = tmp_path / "store"
    store.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(store)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    yield store
    subprocess.run(["umount", "-l", str(store)], check=True, capture_output=True)


def leave(store: Path, num_blocks: int) -> Path:
    """Fill a disk but for so many blocks; gives the file to delete."""
    ballast = store / "ballast"
    free = os.statvfs(store)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - num_blocks * BLOCK))
    return ballast


@pytest.mark.parametrize(
    ("place", "least"),
    [("experiments", 0), ("artifacts", 3), ("artifacts", 20), ("tables", 40)],
)
def test_a_store_that_fills_up(disk: Path, finished: Path, place: str, least: int) -> None:
    """Where it stops depends on the room there is: more, until it is as wanted."""
    for num_blocks in range(least, least + 15):
        shutil.rmtree(disk, ignore_errors=True)  # all but the mount itself
        # MLflow's tables are there already, so that the room goes to artifacts and tables.
        shutil.copy(finished / "mlflow.db", disk)
        ballast = leave(disk, num_blocks)
        code, said = command(disk.parent)
        if f"cannot write to the store at {disk}/{place}" in said:
            break
    assert code == (2 if place == "experiments" else 1), said
    for part in (f"at {disk}/{place}", "No space left", "Free space", "--store"):
        assert part in said
    assert not list(disk.rglob(".draft-*"))
    partly = {path.parent.name for path in disk.glob("artifacts/*/*/task.json")}
    ballast.unlink()
    code, said = command(disk.parent)
    assert code == 0, said
    assert f"{len(partly)} were in the store" in said
    assert equal(Tables(finished / "tables"), Tables(disk / "tables")) == []
    assert tracked(disk / "mlflow.db") == len(Tables(disk / "tables").frame("results"))
    assert not list(disk.glob("damaged/*"))


@pytest.mark.parametrize("num_blocks", [0, 20, 200, 400])
def test_a_disk_of_mlflow_that_fills_up(disk: Path, tmp_path: Path, num_blocks: int) -> None:
    """In its migrations or in its rows: the run ends well, and the rows are sent later."""
    here = tmp_path / "here"
    here.mkdir()
    uri = f"sqlite:///{disk}/mlflow.db"
    ballast = leave(disk, num_blocks)
    code, said = command(here, "--tracking-uri", uri)
    assert code == 0, said
    rows = len(Tables(here / "store" / "tables").frame("results"))
    if num_blocks < 400:
        assert "warning:" in said
        assert f"{rows} result rows are not in MLflow yet" in said
    ballast.unlink()
    code, said = command(here, "--tracking-uri", uri)
    assert (code, "warning" in said) == (0, False), said
    assert tracked(disk / "mlflow.db") == rows
