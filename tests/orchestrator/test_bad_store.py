"""Stores that are none, that cannot be written, or whose content was tampered with."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from storage.queries import query


def test_stores_that_are_none(place: Any) -> None:
    file = place.file()
    (place.folder / "a-file").write_text("")

    def refused(store: object, *parts: str) -> None:
        said = place.command("run", file, "--inline", "--store", store)
        place.refused(said, "--store", *parts)

    refused(place.folder / "a-file", str(place.folder / "a-file"), "is a file; name a folder")
    refused(place.folder / "a-file" / "x" / "y", "a-file is a file; name a folder")
    refused("s4://bucket/store", "is no address of a store", "s3://", "name a folder")
    refused("s3://KEY:SECRET@bucket/store", "with a secret", "AWS_ACCESS_KEY_ID")
    refused("/dev/null", "is a file; name a folder")
    refused("x" * 5000, "File name too long", "name another folder")
    refused(place.folder / "\x1b[31m", "\\x1b[31m", "cannot be printed")
    assert sorted(path.name for path in place.folder.iterdir()) == ["a-file", "tiny.yaml"]


def test_a_name_with_a_zero_byte(place: Any) -> None:
    said = place.command("run", place.file(), "--inline", "--store", "a\0b")
    assert said.code == 2
    assert "Usage" in said.text


COMMANDS = {
    "query": ["SELECT 1"],
    "status": ["tiny.yaml"],
    "plan": ["tiny.yaml"],
    "timeline": ["tiny.yaml"],
    "history": [],
    "show": ["abcdef"],
    "gc": [],
    "doctor": ["--quick"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_where_a_table_has_its_folder_is_one_clear_error(
    done: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every answer would be as if there were no results."""
    monkeypatch.chdir(done.folder)
    table = done.store / "tables" / "results"
    shutil.rmtree(table)
    table.write_text("mine")
    done.file()
    said = done.command(command, *COMMANDS[command], "--store", done.store)
    assert said.code == 2, said.text
    assert f"{table} is a file where a store has a folder" in said.flat
    assert len(said.text.splitlines()) == 1
    with pytest.raises(ValueError, match="is a file where a store has a folder"):
        query(done.store, "SELECT 1")


@pytest.mark.parametrize("name", ["artifacts", "tables", "experiments", "damaged"])
def test_a_file_where_a_store_has_a_folder(place: Any, name: str) -> None:
    place.store.mkdir()
    (place.store / name).write_text("mine")
    place.refused(place.run(), "--store", str(place.store / name), "is a file", "move the file")
    assert (place.store / name).read_text() == "mine"
    assert len(list(place.store.iterdir())) == 1


FOREIGN = {
    "notes.txt": "mine",
    "artifacts/x.txt": "mine",
    "artifacts/ab/y": "mine",
    f"artifacts/ab/{'a' * 64}/task.json": "mine",
    "tables/other.parquet": "mine",
    "tables/results/readme": "mine",
    f"tables/results/part-{'b' * 64}.parquet": "mine",
    "experiments/other/experiment.yaml": "mine",
    "damaged/old": "mine",
}


def test_a_store_with_files_that_are_not_ours(place: Any) -> None:
    """What something else put there is no result, and stays as it is."""
    for name, content in FOREIGN.items():
        path = place.store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    said = place.run()
    assert said.code == 0, said.text
    fake = f"tables/results/part-{'b' * 64}.parquet"
    for name in FOREIGN.keys() - {fake}:
        assert (place.store / name).read_text() == "mine", name
    kept = list((place.store / fake).parent.glob(f"*{'b' * 64}*"))
    assert [path.read_text() for path in kept] == ["mine"]


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
    return str(json.loads((folder / "task.json").read_text())["task"]["kind"])


def of_kind(place: Any, kind: str) -> Path:
    return next(folder for folder in place.artifacts().values() if kind_of(folder) == kind)


def reusable(artifacts: dict[str, Path]) -> int:
    """How many serve more seeds too: a worst case is over all the seeds it was asked for."""
    return sum(kind_of(folder) != "WorstCase" for folder in artifacts.values())


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_artifact_is_said_and_computed_again(
    done: Any, damage: Callable[[Path], None]
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
    done: Any, damage: Callable[[Path], None]
) -> None:
    before = done.rows("results")
    part = next((done.store / "tables" / "results").glob("part-*.parquet"))
    damage(part)
    said = done.run()
    assert said.code == 0, said.text
    assert part.name in said.flat
    assert "nothing to run" in said.flat
    pd.testing.assert_frame_equal(done.rows("results"), before)


def resealed(folder: Path, file: str) -> None:
    """Make the checksum say that the file is what was written."""
    sealed = json.loads((folder / "task.json").read_text())
    content = (folder / file).read_bytes()
    sealed["files"][file] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "task.json").write_text(json.dumps(sealed, sort_keys=True, separators=(",", ":")))


Weights = dict[str, np.ndarray]


def another_width(weights: Weights) -> Weights:
    return {name: np.concatenate([array, array]) for name, array in weights.items()}


def a_layer_less(weights: Weights) -> Weights:
    return dict(list(weights.items())[:2])


def other_names(weights: Weights) -> Weights:
    return {f"x{name}": array for name, array in weights.items()}


def not_a_number(weights: Weights) -> Weights:
    return {name: np.full_like(array, np.nan) for name, array in weights.items()}


def tampered(place: Any, change: Callable[[Weights], Weights]) -> str:
    """Change the target's weights, seal them anew, and remove what was answered with them."""
    folder = of_kind(place, "TrainTarget")
    save_file(change(load_file(folder / "weights.safetensors")), folder / "weights.safetensors")
    resealed(folder, "weights.safetensors")
    for other in place.artifacts().values():
        if kind_of(other) == "Answers":
            shutil.rmtree(other)
    return folder.name


@pytest.mark.parametrize("change", [another_width, a_layer_less, other_names])
def test_weights_of_another_network_under_a_right_checksum_are_trained_again(
    done: Any, change: Callable[[Weights], Weights]
) -> None:
    before = done.rows("results").set_index("task_key")
    key = tampered(done, change)
    # Another attack needs the answers, and they the weights.
    said = done.run(attacks=["gap", {"name": "metric", "statistic": "entropy"}])
    assert said.code == 0, said.text
    for part in (key[:12], "weights.safetensors does not fit mlp_s", "set aside"):
        assert part in said.flat, said.text
    after = done.rows("results").set_index("task_key")
    assert len(after) == 2 * len(before)
    same = ["attack_accuracy", "auc"]
    pd.testing.assert_frame_equal(after.loc[before.index, same], before[same])


def test_weights_that_are_no_numbers_give_no_result(done: Any) -> None:
    """Training may end like that too, so the weights are kept: the error names who answered."""
    tampered(done, not_a_number)
    said = done.run(attacks=[{"name": "metric", "statistic": "entropy"}])
    assert said.code == 1, said.text
    assert "'mlp_s' answered row 0 with [nan nan nan nan], not finite numbers" in said.flat
    assert "nothing to run" not in said.flat
    assert len(done.rows("results")) == 2  # those of the first run


@pytest.mark.parametrize("field", ["key", "task"])
def test_an_artifact_under_the_key_of_another(done: Any, field: str) -> None:
    """A folder that was copied over another says whose it is."""
    folders = [folder for folder in done.artifacts().values() if kind_of(folder) == "Answers"]
    sealed = [json.loads((folder / "task.json").read_text()) for folder in folders]
    sealed[0][field] = sealed[1][field]
    (folders[0] / "task.json").write_text(json.dumps(sealed[0]))
    before = done.rows("results")
    said = done.run()
    assert said.code == 0, said.text
    pd.testing.assert_frame_equal(done.rows("results"), before)


@dataclass(frozen=True)
class Disk:
    """A small disk of its own, mounted at a store."""

    place: Any

    def remount(self, options: str) -> None:
        command = ["mount", "-o", f"remount,{options}", str(self.place.store)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(place: Any) -> Iterator[Disk]:
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


def test_a_store_that_may_not_be_written(disk: Disk, finished: Any) -> None:
    shutil.copytree(finished.store, disk.place.store, dirs_exist_ok=True)
    kept = disk.place.artifacts()
    disk.remount("ro")
    said = disk.place.run(seeds=[0, 1])
    assert said.code == 2, said.text
    for part in ("cannot write", str(disk.place.store), "Read-only", "--store"):
        assert part in said.flat, said.text
    assert disk.place.artifacts() == kept
    # Reading needs no writing.
    seen = disk.place.command("status", disk.place.file(), "--store", str(disk.place.store))
    assert seen.code == 0, seen.text
    disk.remount("rw")
    again = disk.place.run(seeds=[0, 1])
    assert again.code == 0, again.text
    assert f"{reusable(kept)} were in the store" in again.flat


def test_a_read_only_store_with_everything_in_it_still_prints_its_table(
    disk: Disk, finished: Any
) -> None:
    shutil.copytree(finished.store, disk.place.store, dirs_exist_ok=True)
    disk.remount("ro")
    said = disk.place.run()
    assert said.code == 0, said.text
    assert "what each attack gets" in said.flat
    assert "cannot write" in said.flat


def test_a_disk_that_fills_up_stops_the_run_and_the_same_command_resumes(
    disk: Disk, finished: Any
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
    assert f"{reusable(partly)} were in the store" in again.flat
    assert set(disk.place.rows("results")["seed"]) == {0, 1, 2}


def test_a_folder_without_permission(place: Any, permissions_that_count: Any) -> None:
    place.store.mkdir(mode=0o500)
    with permissions_that_count():
        said = place.run()
    place.refused(said, "cannot write", str(place.store), "Permission denied", "--store")
