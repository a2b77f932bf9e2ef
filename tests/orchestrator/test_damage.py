"""Every file of a finished store damaged in every way: said, set aside, made again, never used."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.check import load_experiment
from orchestrator.outcome import Options, Outcome
from orchestrator.plan import Plan, make_plan
from orchestrator.resume import Store
from orchestrator.run import run
from storage.artifacts import StoreUnwritable
from storage.tables import Tables, equal

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 16, "classes": 4, "clusters": 4},
            "split": {"members": 100, "reference": 100, "nonmembers": 100},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [16]},
    "defenses": ["none", {"name": "purifier", "epochs": 1}, ["l2", "onehot"]],
    "attacks": ["gap", {"name": "lira", "num_shadows": 4}, {"name": "nsh", "epochs": 1}],
}

# Files that are there for people: not every run reads them.
RARELY_READ = {
    "history.parquet",
    "rows.parquet",
    ("Split", "metrics.json"),
    ("Shadow", "metrics.json"),
}
FILES = {
    "Split": ("split.parquet", "metrics.json"),
    "CheckSplit": ("metrics.json",),
    "TrainTarget": ("weights.safetensors", "history.parquet", "rows.parquet", "metrics.json"),
    "TrainShadows": ("weights.safetensors", "rows.parquet", "metrics.json"),
    "Shadow": ("weights.safetensors", "rows.parquet", "metrics.json"),
    "FitDefense": ("state.safetensors", "rows.parquet", "metrics.json"),
    "Answers": ("answers.parquet",),
    "RunAttack": ("scores.parquet", "rows.parquet", "metrics.json"),
    "MeasureUtility": ("metrics.json", "timing.json"),
    "WorstCase": ("metrics.json",),
}


class Lab:
    """The small experiment and a store; `quiet` makes a progress that keeps what it was told."""

    def __init__(self, root: Path, quiet: Any) -> None:
        self.root, self.quiet = root, quiet
        self.file = root / "small.yaml"
        self.file.write_text(yaml.safe_dump(SMALL))

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def tables(self) -> Tables:
        return Tables(self.store / "tables")

    def run(self) -> tuple[Outcome, Any]:
        quiet = self.quiet()
        options = Options(store=self.store, executor="inline")
        return run(load_experiment(str(self.file)), options, quiet), quiet

    def folder(self, key: str) -> Path:
        return self.store / "artifacts" / key[:2] / key

    def part(self, table: str, key: str) -> Path:
        return self.store / "tables" / table / f"part-{key}.parquet"


# -- ways to damage -------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped_in_the_middle(path: Path) -> None:
    _flip(path, path.stat().st_size // 2)


def flipped_at_the_end(path: Path) -> None:
    _flip(path, path.stat().st_size - 1)


def deleted(path: Path) -> None:
    path.unlink()


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def forbidden(path: Path) -> None:
    path.chmod(0)


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


FLIPS = (flipped_in_the_middle, flipped_at_the_end)
WAYS: tuple[Callable[[Path], None], ...] = (
    *(truncated, emptied, deleted, made_a_folder, forbidden),
    *FLIPS,
)


_opened: set[str] | None = None


def _note_open(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.add(str(args[0]))


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """The paths of all files that are opened meanwhile, or tried to."""
    global _opened
    if _opened is None:
        sys.addaudithook(_note_open)  # stays for good
    _opened = set()
    yield _opened


# -- what is damaged ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, quiet: Any) -> tuple[Lab, Plan]:
    """A store in which the experiment is done; tests work on copies."""
    lab = Lab(tmp_path_factory.mktemp("finished"), quiet)
    outcome, told = lab.run()
    assert not outcome.failed, outcome.failed
    assert not outcome.warnings, outcome.warnings
    assert not told.notes, told.notes
    return lab, make_plan(load_experiment(str(lab.file)), None)


@pytest.fixture
def copy(finished: tuple[Lab, Plan], tmp_path: Path, quiet: Any) -> Lab:
    shutil.copytree(finished[0].store, tmp_path / "store")
    return Lab(tmp_path, quiet)


def below(plan: Plan, key: str) -> set[str]:
    """What is made from `key`, directly or not."""
    found = {key}
    for task in plan.tasks.values():  # inputs come first
        if any(needed.key in found for needed in task.inputs):
            found.add(task.key)
    return found - {key}


def forget(lab: Lab, plan: Plan, key: str) -> None:
    """Leave of `key` its artifact only, so that it must be read to fill the tables."""
    for other in below(plan, key):
        shutil.rmtree(lab.folder(other))
    for part in lab.store.glob("tables/*/part-*.parquet"):
        if part.stem.removeprefix("part-") in {key, *below(plan, key)}:
            part.unlink()


def key_of(plan: Plan, kind: str) -> str:
    """The first task of a kind; for defenses the one with the largest state."""
    of_kind = [task for task in plan.tasks.values() if task.kind == kind]
    return next((t for t in of_kind if t.name == "purifier"), of_kind[0]).key


def test_the_list_of_files_is_complete(finished: tuple[Lab, Plan]) -> None:
    lab, plan = finished
    found: dict[str, set[str]] = {}
    for key, task in plan.tasks.items():
        names = {path.name for path in lab.folder(key).iterdir()}
        found.setdefault(task.kind, set()).update(names - {"task.json", "measured.json"})
    assert found == {kind: set(files) for kind, files in FILES.items()}


ARTIFACTS = [
    (kind, file, way)
    for kind, files in FILES.items()
    for file in ("task.json", "measured.json", *files)
    for way in WAYS
]
TABLES = [(table, way) for table in ("results", "utility", "scores", "tasks") for way in WAYS]


def some(cases: list[Any], every: int) -> list[Any]:
    """Every so manieth case now, the others when there is time."""
    named = [(case, "-".join(getattr(part, "__name__", part) for part in case)) for case in cases]
    return [
        pytest.param(*case, id=name, marks=() if i % every == 0 else pytest.mark.slow)
        for i, (case, name) in enumerate(named)
    ]


# 11 shares no factor with the number of ways, so that every way and every kind has its turn.
@pytest.mark.parametrize(("kind", "file", "way"), some(ARTIFACTS, every=11))
def test_a_damaged_artifact(
    finished: tuple[Lab, Plan],
    copy: Lab,
    kind: str,
    file: str,
    way: Callable[[Path], None],
    permissions_that_count: Any,
) -> None:
    before, plan = finished
    key = key_of(plan, kind)
    forget(copy, plan, key)
    way(copy.folder(key) / file)
    with permissions_that_count(), opened_files() as opened:
        outcome, quiet = copy.run()
    assert (outcome.failed, outcome.blocked, outcome.stopped) == ({}, {}, None)
    assert equal(before.tables, copy.tables) == []
    aside = [path.name for path in copy.store.glob("damaged/*")]
    if not aside:  # what is not read is not trusted; its name and size are as they should be
        assert way in (*FLIPS, forbidden)
        assert str(copy.folder(key) / file) not in opened
        assert RARELY_READ & {file, (kind, file)}
        return
    assert aside == [f"{key}-0"]
    reason = (copy.store / "damaged" / aside[0] / "reason.txt").read_text()
    assert file in reason or file == "task.json"  # which may say what is wrong of another
    assert len([note for note in quiet.notes if key[:12] in note]) == 1
    assert key in quiet.finished_
    assert Store(copy.store).artifacts.open(key).verify() is None


@pytest.mark.parametrize(("table", "way"), some(TABLES, every=4))
def test_a_damaged_part(
    finished: tuple[Lab, Plan],
    copy: Lab,
    table: str,
    way: Callable[[Path], None],
    permissions_that_count: Any,
) -> None:
    before, _ = finished
    part = min((copy.store / "tables" / table).glob("part-*.parquet"))
    way(part)
    with permissions_that_count():
        outcome, quiet = copy.run()
    assert outcome.ran == 0
    assert outcome.stopped is None
    assert equal(before.tables, copy.tables) == []
    assert copy.tables.lacking(table, [part.stem.removeprefix("part-")]) == set()
    told = [note for note in quiet.notes if part.name in note]
    aside = list(part.parent.glob("*.damaged"))
    assert len(told) == len(aside)
    if way not in FLIPS:  # there are bits that carry nothing
        assert len(told) == (way is not deleted)


@pytest.mark.parametrize("way", WAYS)
def test_damaged_cells_are_written_anew(
    finished: tuple[Lab, Plan], copy: Lab, way: Callable[[Path], None], permissions_that_count: Any
) -> None:
    before, _ = finished
    way(next((copy.store / "tables" / "cells").rglob("*.parquet")))
    with permissions_that_count():
        outcome, _quiet = copy.run()
    assert outcome.stopped is None
    assert copy.tables.frame("cells").equals(before.tables.frame("cells"))
    assert len(outcome.warnings) == (way is made_a_folder), outcome.warnings


def test_a_part_damaged_a_second_time_is_set_aside_too(
    finished: tuple[Lab, Plan], copy: Lab
) -> None:
    part = min((copy.store / "tables" / "utility").glob("part-*.parquet"))
    for way in (made_a_folder, truncated, made_a_folder, emptied):
        way(part)
        outcome, _ = copy.run()
        assert (outcome.ran, outcome.warnings) == (0, [])
    assert equal(finished[0].tables, copy.tables) == []
    assert len(list(part.parent.glob("*.damaged*"))) >= 2


def test_several_things_at_once(finished: tuple[Lab, Plan], copy: Lab) -> None:
    """A file of every kind of artifact flipped, parts cut short, and all must be read."""
    before, plan = finished
    split = key_of(plan, "Split")
    for part in copy.store.glob("tables/*/part-*.parquet"):
        part.unlink() if int(part.stem[-1], 16) % 2 else truncated(part)
    for kind, files in FILES.items():
        flipped_in_the_middle(copy.folder(key_of(plan, kind)) / files[0])
    shutil.rmtree(copy.folder(next(c.task.key for c in plan.cells if c.kind == "attack")))
    outcome, _ = copy.run()
    assert (outcome.failed, outcome.stopped) == ({}, None)
    assert equal(before.tables, copy.tables) == []
    assert copy.folder(split).is_dir()


def test_an_artifact_that_can_neither_be_read_nor_moved_ends_in_one_clear_error(
    finished: tuple[Lab, Plan], copy: Lab, permissions_that_count: Any
) -> None:
    _, plan = finished
    key = key_of(plan, "Answers")
    copy.folder(key).chmod(0)  # a folder without permissions cannot be moved to another
    with permissions_that_count():
        try:
            with pytest.raises(StoreUnwritable) as caught:
                copy.run()
        finally:
            copy.folder(key).chmod(0o755)
    message = str(caught.value)
    for part in (str(copy.folder(key)), "Permission denied", "permit writing there", "--store"):
        assert part in message
    assert not list(copy.store.glob("damaged/*"))
    outcome, quiet = copy.run()
    assert (outcome.ran, outcome.warnings, quiet.notes) == (0, [], [])


def test_an_artifact_spoilt_while_it_was_written_is_made_once_more(
    finished: tuple[Lab, Plan], copy: Lab
) -> None:
    """Its driver finds it as it reads the rows, before anybody used it."""
    before, plan = finished
    key = next(cell.task.key for cell in plan.cells if cell.kind == "attack")
    shutil.rmtree(copy.folder(key))
    copy.part("results", key).unlink()

    class Spoiler(copy.quiet):
        def started(self, worker: str, task: Any) -> None:
            shutil.copytree(before.folder(task.key), copy.folder(task.key))
            flipped_in_the_middle(copy.folder(task.key) / "metrics.json")

    spoiler = Spoiler()
    options = Options(store=copy.store, executor="inline")
    outcome = run(load_experiment(str(copy.file)), options, spoiler)
    assert (outcome.failed, spoiler.finished_) == ({}, [key])
    assert any("metrics.json does not match its checksum" in note for note in spoiler.notes)
    assert equal(before.tables, copy.tables) == []


@pytest.mark.parametrize("where", ["artifacts", "tables/results", "experiments/small"])
def test_what_a_killed_process_was_writing_is_gone_after_the_next_run(
    finished: tuple[Lab, Plan], copy: Lab, where: str
) -> None:
    from storage._disk import draft_name

    gone = os.fork()
    if gone == 0:
        (copy.store / where / draft_name()).write_text("half")
        os._exit(0)
    os.waitpid(gone, 0)
    mine = copy.store / where / draft_name()
    mine.mkdir()
    copy.run()
    assert [path.name for path in (copy.store / where).glob(".draft-*")] == [mine.name]


def test_task_json_tells_its_key(finished: tuple[Lab, Plan]) -> None:
    lab, plan = finished
    for key, task in plan.tasks.items():
        held = json.loads((lab.folder(key) / "task.json").read_text())
        assert held["task"] == json.loads(task.description)
