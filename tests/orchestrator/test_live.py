"""What a driver says of itself in its store, and who is believed to live."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.check import load_experiment
from orchestrator.count import Snapshot
from orchestrator.live import FOLDER, Live, drivers, gone
from orchestrator.plan import make_plan
from orchestrator.resume import Prepared, Store, compare
from storage.artifacts import StoreUnwritable


@pytest.fixture(scope="module")
def prepared(module_lab: Any) -> Prepared:
    """The small experiment beside an empty store."""
    plan = make_plan(load_experiment(str(module_lab.file())), None)
    return compare(plan, Store(module_lab.root / "none"), repair=False)


@contextmanager
def at_work(root: Path, run: str, prepared: Prepared, experiment: str = "tiny") -> Iterator[Live]:
    live = Live(Store(root), run, experiment)
    live.add(prepared)
    live.begin()
    try:
        yield live
    finally:
        live.end()


def put(root: Path, run: str, told: Snapshot) -> Path:
    path = root / FOLDER / f"{run}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(told.plain()))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_driver_is_seen_while_it_works(tmp_path: Path, prepared: Prepared) -> None:
    assert drivers(tmp_path, "tiny") == []
    with at_work(tmp_path, "a", prepared) as live:
        (told,) = drivers(tmp_path, "tiny")
        assert (told.pid, told.total) == (os.getpid(), len(prepared.needed))
        assert live.path.is_file()
    assert drivers(tmp_path, "tiny") == []
    assert gone(tmp_path, "tiny") == []
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_it_says_what_happens_although_its_loop_is_in_a_task(
    tmp_path: Path, prepared: Prepared
) -> None:
    task = next(iter(prepared.plan.tasks.values()))
    with at_work(tmp_path, "a", prepared) as live:
        live.count.joined("inline", "", gpu=False)
        live.count.started("inline", task)
        live.tick(3)
        (told,) = drivers(tmp_path)
        until = time.monotonic() + 30
        while not told.desks and time.monotonic() < until:
            (told,) = drivers(tmp_path)
    (desk,) = told.desks
    assert (desk.worker, desk.key) == ("inline", task.key)
    assert told.pending == 3


def test_several_drivers_of_several_experiments(tmp_path: Path, prepared: Prepared) -> None:
    with (
        at_work(tmp_path, "a", prepared),
        at_work(tmp_path, "b", prepared),
        at_work(tmp_path, "c", prepared, "other"),
    ):
        assert len(drivers(tmp_path, "tiny")) == 2
        assert len(drivers(tmp_path, "other")) == 1
        assert len(drivers(tmp_path)) == 3


def test_who_was_killed_or_is_silent_is_gone(tmp_path: Path, prepared: Prepared) -> None:
    with at_work(tmp_path, "a", prepared):
        (told,) = drivers(tmp_path)
    long_ago = (datetime.now(UTC) - timedelta(seconds=90)).isoformat()
    killed = replace(told, pid=dead_pid())
    silent = replace(told, host="elsewhere.example", updated=long_ago)
    stopped = replace(told, updated=long_ago)
    away = replace(told, host="elsewhere.example", pid=dead_pid())
    for run, one in zip("abcd", (killed, silent, stopped, away), strict=True):
        put(tmp_path, run, one)
    assert list(drivers(tmp_path, "tiny")) == [away]
    assert list(gone(tmp_path, "tiny")) == [killed, silent, stopped]


def test_the_next_driver_removes_what_those_left(tmp_path: Path, prepared: Prepared) -> None:
    with at_work(tmp_path, "a", prepared) as live:
        (told,) = drivers(tmp_path)
        kept = put(tmp_path, "b", replace(told, host="elsewhere.example"))
    put(tmp_path, "c", replace(told, pid=dead_pid()))
    (tmp_path / FOLDER / "d.json").write_text('{"experiment": "tiny"')
    (tmp_path / FOLDER / "e.json").write_text("[]")
    assert list(drivers(tmp_path)) == [replace(told, host="elsewhere.example")]
    with at_work(tmp_path, "f", prepared) as live:
        assert sorted((tmp_path / FOLDER).glob("*.json")) == [kept, live.path]


def test_a_store_that_takes_nothing_is_told_at_once_and_not_later(
    tmp_path: Path, prepared: Prepared
) -> None:
    (tmp_path / FOLDER).write_text("")
    live = Live(Store(tmp_path), "a", "tiny")
    live.add(prepared)
    with pytest.raises(StoreUnwritable):
        live.begin()
    live.end()
    (tmp_path / FOLDER).unlink()
    with at_work(tmp_path, "b", prepared):
        shutil.rmtree(tmp_path / FOLDER)
    assert drivers(tmp_path) == []
