"""`sfumato status --watch` beside a run: who works, how it ends, and what it costs to look."""

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.check import load_experiment
from orchestrator.live import FOLDER, Live, drivers
from orchestrator.plan import make_plan
from orchestrator.resume import Prepared, Store, compare
from orchestrator.watch import last_written, print_drivers, watch

PATIENCE_S = 120


@pytest.fixture(scope="module")
def prepared(module_lab: Any) -> Prepared:
    """The small experiment beside an empty store."""
    plan = make_plan(load_experiment(str(module_lab.file())), None)
    return compare(plan, Store(module_lab.root / "none"), repair=False)


def at_work(root: Path, prepared: Prepared) -> Live:
    """A driver, in this process, in the middle of its first task."""
    live = Live(Store(root), "a", "tiny")
    live.add(prepared)
    live.count.joined("w1", "node1", gpu=False)
    live.count.started("w1", next(iter(prepared.plan.tasks.values())))
    live.begin()
    return live


def another(root: Path) -> "tuple[subprocess.Popen[bytes], Path]":
    """A process that counts as a driver like the one there is, and its file."""
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    (told,) = drivers(root)
    file = root / FOLDER / "b.json"
    file.write_text(json.dumps({**told.plain(), "pid": process.pid}))
    return process, file


class Said(io.StringIO):
    """Remembers what is said, and does something as soon as it holds a word."""

    def __init__(self, word: str, then: Callable[[], None]) -> None:
        super().__init__()
        self._word, self._then, self._done = word, then, False

    def write(self, text: str) -> int:
        written = super().write(text)
        if not self._done and self._word in self.getvalue():
            self._done = True
            self._then()
        return written


def never() -> bool:
    raise AssertionError("asked for although somebody works: this costs a look at every artifact")


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "terminal"])
def test_shows_each_driver_until_the_last_has_ended(
    tmp_path: Path, prepared: Prepared, terminal: bool
) -> None:
    live = at_work(tmp_path, prepared)
    other, file = another(tmp_path)

    def end() -> None:
        live.end()
        file.unlink()

    said = Said("tasks" if terminal else "left;", end)
    console = Console(file=said, force_terminal=terminal, width=120, markup=False)
    watch(console, tmp_path, "tiny", written=never, finished=never)
    other.communicate()
    text = said.getvalue()
    assert f"process {os.getpid()}:" in text
    assert f"process {other.pid}:" in text
    assert f"0/{len(prepared.needed)}" in text
    if terminal:
        assert "w1" in text
        assert "Split" in text
    assert "killed" not in text


def test_waits_for_somebody_to_begin(tmp_path: Path, prepared: Prepared) -> None:
    lives: list[Live] = []

    def written() -> int:  # asked while it waits
        if not lives:
            lives.append(at_work(tmp_path, prepared))
        return 0

    said = Said("left;", lambda: lives[0].end())
    console = Console(file=said, width=120)
    watch(console, tmp_path, "tiny", written=written, finished=lambda: False)
    first, second = said.getvalue().splitlines()
    assert first.startswith("nobody works on it now: waiting")
    assert "1 of 1 worker busy on 1 node" in second


def test_a_run_too_short_to_be_seen_ends_it_too(tmp_path: Path) -> None:
    answers, rounds = iter([False, True]), iter(range(9))
    console = Console(file=io.StringIO())
    watch(console, tmp_path, "tiny", written=lambda: next(rounds), finished=lambda: next(answers))
    assert next(answers, None) is None


def test_a_killed_driver_is_told(tmp_path: Path, prepared: Prepared) -> None:
    live = at_work(tmp_path, prepared)
    process, _ = another(tmp_path)
    live.end()

    def kill() -> None:
        process.kill()
        process.communicate()

    said = Said("left;", kill)
    watch(Console(file=said, width=200), tmp_path, "tiny", written=never, finished=never)
    lost = f"process {process.pid}, was killed or lost"
    assert lost in said.getvalue()

    out = io.StringIO()
    print_drivers(Console(file=out, width=200), tmp_path, "tiny")
    assert "nobody works on it now" in out.getvalue()
    assert lost in out.getvalue()


def test_results_that_are_written_are_noticed(tmp_path: Path) -> None:
    tables = Store(tmp_path).tables
    seen = [last_written(tmp_path, "tiny")]
    tables.write_cells("tiny", [{"label": "a"}], "")
    seen.append(last_written(tmp_path, "tiny"))
    tables.write_cells("tiny", [{"label": "a"}], "0" * 12)
    seen.append(last_written(tmp_path, "tiny"))
    tables.write_cells("tinys", [{"label": "a"}], "")
    assert last_written(tmp_path, "tiny") == seen[-1]
    assert len(set(seen)) == 3


def test_of_what_is_done_it_prints_the_tables(done: Any) -> None:
    plain = done.command("status", done.file(), "--store", done.store)
    assert plain.code == 0
    assert "nobody works on it now" in plain.text
    watched = done.command("status", done.file(), "--store", done.store, "--watch")
    assert watched.code == 0
    assert watched.text == plain.text.replace("nobody works on it now\n", "")


def test_status_names_who_works(done: Any, prepared: Prepared) -> None:
    live = at_work(done.store, prepared)
    try:
        said = done.command("status", done.file(), "--store", done.store)
    finally:
        live.end()
    assert said.code == 0
    assert f"process {os.getpid()}:" in said.text
    assert f"0/{len(prepared.needed)} tasks" in said.text
    assert "w1" in said.text


def start(*args: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,  # so that select() and readline() see the same
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"},
        # Jobs that a shell puts in the background begin with SIGINT ignored, and so would this.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def next_line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
    return process.stdout.readline().decode()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["well", "killed"])
@pytest.mark.parametrize(
    "where", [["--inline"], pytest.param(["--workers", "2"], marks=pytest.mark.ray)]
)
def test_beside_a_real_run(lab: Any, new_history: Path, where: list[str], end: str) -> None:
    """It is there first, sees the run begin, and ends with it."""
    (lab.store.root / "tables").mkdir(parents=True)
    shutil.copy(new_history, lab.store.root)
    file = lab.file(target={"architecture": "mlp_s", "epochs": 100})
    watching = start("status", file, "--store", lab.store.root, "--watch")
    assert "waiting until somebody does" in next_line(watching)
    running = start("run", file, "--store", lab.store.root, *where)
    assert " left; " in next_line(watching)
    if end == "killed":
        running.kill()
        running.wait(PATIENCE_S)  # one that nobody waited for counts as a process still
    else:
        assert running.communicate(timeout=PATIENCE_S) is not None
        assert running.returncode == 0
    text = watching.communicate(timeout=PATIENCE_S)[0].decode()
    running.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 0, text
    assert "tiny: status" in text
    assert ("was killed or lost" in text) == (end == "killed")


@pytest.mark.slow
def test_ctrl_c_ends_the_watching(lab: Any) -> None:
    (lab.store.root / "tables").mkdir(parents=True)
    watching = start("status", lab.file(), "--store", lab.store.root, "--watch")
    assert "waiting until somebody does" in next_line(watching)
    watching.send_signal(signal.SIGINT)
    text = watching.communicate(timeout=PATIENCE_S)[0].decode()
    assert watching.returncode == 130
    assert text == "interrupted\n"
