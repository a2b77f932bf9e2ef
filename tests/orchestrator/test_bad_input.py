"""What a person meets when something is wrong: exit code, place, value, remedy, no traceback."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app

TINY: dict[str, Any] = {
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


def command(*args: str) -> Said:
    """The command line in this process."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    assert "fault of Sfumato" not in result.output, result.output
    return Said(result.exit_code, result.output)


def process(*args: str, timeout_s: float = 60) -> Said:
    """The command line as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return Said(done.returncode, text)


@dataclass(frozen=True)
class Place:
    """An experiment file and a store."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def file(self, **keys: Any) -> str:
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump({**TINY, **keys}, sort_keys=False))
        return str(path)

    def run(self, *options: str, **keys: Any) -> Said:
        return command("run", self.file(**keys), "--store", str(self.store), "--inline", *options)

    def artifacts(self) -> dict[str, Path]:
        """Finished artifacts by key."""
        found = (self.store / "artifacts").glob("[0-9a-f][0-9a-f]/*/task.json")
        return {path.parent.name: path.parent for path in found}

    def rows(self, table: str) -> pd.DataFrame:
        parts = sorted((self.store / "tables" / table).glob("part-*.parquet"))
        return pd.concat([pd.read_parquet(part) for part in parts])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store in which the tiny experiment is done; tests work on copies."""
    made = Place(tmp_path_factory.mktemp("finished"))
    assert made.run().code == 0
    return made


@pytest.fixture
def done(finished: Place, tmp_path: Path) -> Place:
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


def refused(said: Said, place: Place, *parts: str) -> None:
    """Exit code 2 before any work, and a message with all the parts."""
    assert said.code == 2, said.text
    for part in parts:
        assert part in said.flat, said.text
    assert not place.store.is_dir() or not place.artifacts()


# -- the file -------------------------------------------------------------------------------------


def test_misspelt_keys_and_wrong_types_are_told_together(place: Place) -> None:
    said = place.run(sedes=[0], attacks=["gapp", {"name": "nsh", "epochs": "many"}])
    refused(said, place, "tiny.yaml: 3 problems", "sedes", "did you mean 'seeds'?")
    refused(said, place, "'gapp' is not an attack. Did you mean 'gap'?")
    refused(said, place, "attacks[1].epochs: must be a whole number, got 'many'")
    assert said.text.count("line ") >= 3


def test_no_attacks(place: Place) -> None:
    refused(place.run(attacks=[]), place, "attacks: must not be empty")


def test_a_split_larger_than_the_data(place: Place) -> None:
    data = {**TINY["datasets"][0], "split": {"members": 200, "reference": 60, "nonmembers": 60}}
    refused(place.run(datasets=[data]), place, "datasets[0].split", "320", "300", "smaller")


def test_a_chain_with_a_training_defense_inside(place: Place) -> None:
    refused(place.run(defenses=[["prototype", "l2"]]), place, "defenses[0][1]", "'l2'", "first")


def test_an_experiment_that_is_not_there_as_a_process_of_its_own(place: Place) -> None:
    said = process("run", str(place.folder / "nothing.yaml"), "--inline")
    refused(said, place, "nothing.yaml", "no such file", "quickstart")


def test_a_setting_that_is_none(place: Place) -> None:
    refused(place.run("--set", "seeds"), place, "--set: 'seeds' is not key=value")


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_commands_that_only_read_refuse_the_same(place: Place, verb: str) -> None:
    said = command(verb, place.file(attacks=["gapp"]), "--store", str(place.store))
    refused(said, place, "'gapp' is not an attack")
    assert not place.store.exists()


def test_labels_with_brackets_are_shown_as_they_are(done: Place) -> None:
    label = "[red]a[/b] :x:"
    said = done.run(defenses=[{"name": "prototype", "label": label}])
    assert said.code == 0, said.text
    assert label in said.text


# -- the data -------------------------------------------------------------------------------------


def own_data(path: Path, **split: int) -> dict[str, Any]:
    sizes = {"members": 60, "reference": 60, "nonmembers": 60, **split}
    return {"datasets": [{"name": "own", "path": str(path), "split": sizes}]}


def records(num: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 5)).astype(np.float32), np.arange(num) % 3


def test_a_nan_in_the_data(place: Place) -> None:
    x, y = records()
    x[7, 2] = np.nan
    np.savez(place.folder / "own.npz", x=x, y=y)
    said = place.run(**own_data(place.folder / "own.npz"))
    refused(said, place, "datasets[0]", "column '2', row 7 is nan", "fill or drop")


def test_one_class(place: Place) -> None:
    x, y = records()
    np.savez(place.folder / "own.npz", x=x, y=0 * y)
    refused(
        place.run(**own_data(place.folder / "own.npz")), place, "every label is 0", "two classes"
    )


def test_a_column_of_text(place: Place) -> None:
    x, y = records()
    frame = pd.DataFrame({"age": x[:, 0], "city": ["Basel"] * len(y), "label": y})
    frame.to_parquet(place.folder / "own.parquet")
    said = place.run(**own_data(place.folder / "own.parquet"))
    refused(said, place, "own.parquet", "city", "not numbers", "encode")


def test_an_array_of_pickled_objects_is_never_loaded(place: Place) -> None:
    x, y = records()
    np.savez(place.folder / "own.npz", x=x.astype(object), y=y)
    refused(
        place.run(**own_data(place.folder / "own.npz")), place, "'x'", "pickled", "never loaded"
    )


def test_a_file_of_data_that_is_not_there(place: Place) -> None:
    said = place.run(**own_data(place.folder / "gone.npz"))
    refused(said, place, "datasets[0]", "gone.npz", "check `path`")


def test_a_dataset_that_is_not_in_the_data_folder(place: Place) -> None:
    said = place.run("--data-dir", str(place.folder), datasets=["retail100"])
    refused(said, place, "retail100", str(place.folder), "--data-dir")


def test_a_data_folder_that_does_not_exist(place: Place) -> None:
    said = place.run("--data-dir", str(place.folder / "none"))
    refused(said, place, str(place.folder / "none"), "does not exist", "--data-dir")


# -- the store ------------------------------------------------------------------------------------


def test_a_store_that_is_a_file(place: Place) -> None:
    place.store.write_text("")
    refused(place.run(), place, "--store", str(place.store), "is a file; name a folder")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scramble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])


def kind_of(folder: Path) -> str:
    return str(yaml.safe_load((folder / "task.json").read_text())["task"]["kind"])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_artifact_is_said_and_computed_again(
    done: Place, damage: Callable[[Path], None]
) -> None:
    before = done.rows("results").set_index("task_key")
    for key, folder in done.artifacts().items():
        if kind_of(folder) == "Answers":
            damage(next(folder.glob("answers*")))
            damaged = key
    said = done.run(attacks=["gap", {"name": "metric", "statistic": "entropy"}])
    assert said.code == 0, said.text
    assert "damaged" in said.flat
    assert damaged[:12] in said.flat
    assert damaged in done.artifacts()
    after = done.rows("results").set_index("task_key")
    assert len(after) == 2 * len(before)
    same = ["attack_accuracy", "auc"]
    pd.testing.assert_frame_equal(after.loc[before.index, same], before[same])
    assert done.run().code == 0


@pytest.mark.parametrize("damage", [scramble, truncate])
def test_a_damaged_part_of_a_table_is_said_and_written_again(
    done: Place, damage: Callable[[Path], None]
) -> None:
    before = done.rows("results")
    part = next((done.store / "tables" / "results").glob("part-*.parquet"))
    damage(part)
    said = done.run()
    assert said.code == 0, said.text
    assert part.name in said.flat
    assert "nothing to run" in said.flat
    pd.testing.assert_frame_equal(done.rows("results"), before)


@dataclass(frozen=True)
class Disk:
    """A small disk of its own, mounted at a store."""

    place: Place

    def remount(self, options: str) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,{options}", str(self.place.store)],
            check=True,
            capture_output=True,
        )


@pytest.fixture
def disk(place: Place) -> Iterator[Disk]:
    place.store.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(place.store)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    yield Disk(place)
    subprocess.run(["umount", "-l", str(place.store)], check=True, capture_output=True)


def test_a_store_that_may_not_be_written(disk: Disk, finished: Place) -> None:
    shutil.copytree(finished.store, disk.place.store, dirs_exist_ok=True)
    kept = disk.place.artifacts()
    disk.remount("ro")
    said = disk.place.run(seeds=[0, 1])
    assert said.code == 2, said.text
    for part in ("cannot write", str(disk.place.store), "Read-only", "--store"):
        assert part in said.flat, said.text
    assert disk.place.artifacts() == kept
    # Reading needs no writing.
    seen = command("status", disk.place.file(), "--store", str(disk.place.store))
    assert seen.code == 0, seen.text
    disk.remount("rw")
    again = disk.place.run(seeds=[0, 1])
    assert again.code == 0, again.text
    assert f"{len(kept)} were in the store" in again.flat


def test_a_read_only_store_with_everything_in_it_still_prints_its_table(
    disk: Disk, finished: Place
) -> None:
    shutil.copytree(finished.store, disk.place.store, dirs_exist_ok=True)
    disk.remount("ro")
    said = disk.place.run()
    assert said.code == 0, said.text
    assert "what each attack gets" in said.flat
    assert "cannot write" in said.flat


def test_a_disk_that_fills_up_stops_the_run_and_the_same_command_resumes(
    disk: Disk, finished: Place
) -> None:
    shutil.copytree(finished.store, disk.place.store, dirs_exist_ok=True)
    ballast = disk.place.store / "ballast"
    kept = disk.place.artifacts()
    free = os.statvfs(disk.place.store)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 60 * 1024))
    said = disk.place.run(seeds=[0, 1, 2])
    assert said.code == 1, said.text
    for part in ("cannot write", str(disk.place.store), "No space left", "Free space", "--store"):
        assert part in said.flat, said.text
    partly = disk.place.artifacts()
    assert kept.keys() <= partly.keys()
    ballast.unlink()
    again = disk.place.run(seeds=[0, 1, 2])
    assert again.code == 0, again.text
    assert f"{len(partly)} were in the store" in again.flat
    assert set(disk.place.rows("results")["seed"]) == {0, 1, 2}


# -- what is elsewhere ----------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_ray_cluster_that_is_not_there_is_told_soon(place: Place) -> None:
    address = f"127.0.0.1:{closed_port()}"
    started = time.monotonic()
    said = command("run", place.file(), "--store", str(place.store), "--address", address)
    refused(said, place, address, "Is the head running", "ray start --head")
    assert time.monotonic() - started < 20


def test_contradicting_options(place: Place) -> None:
    refused(place.run("--address", "auto"), place, "--inline", "drop", "--address")


def tracked(database: Path) -> int:
    """Result rows in an MLflow database."""
    with sqlite3.connect(database) as connection:
        count = "SELECT COUNT(DISTINCT value) FROM tags WHERE key = 'sfumato.task_key'"
        return int(connection.execute(count).fetchone()[0])


def test_rows_wait_while_mlflow_is_away_and_are_sent_when_it_is_back(place: Place) -> None:
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


def test_an_mlflow_server_that_does_not_answer_stops_nothing(place: Place) -> None:
    said = place.run("--tracking-uri", f"http://user:secret@127.0.0.1:{closed_port()}")
    assert said.code == 0, said.text
    assert "not in MLflow yet" in said.flat
    assert "127.0.0.1" in said.flat
    assert "secret" not in said.text
    later = place.run()
    assert later.code == 0
    assert "warning" not in later.flat
    assert tracked(place.store / "mlflow.db") == len(place.rows("results"))
