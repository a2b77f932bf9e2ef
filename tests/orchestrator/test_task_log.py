"""`sfumato logs --task`: which task is meant, how it ended, what it said."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.check import load_experiment
from orchestrator.cli import app
from orchestrator.live import Live
from orchestrator.plan import make_plan
from orchestrator.resume import Prepared, Store, compare
from orchestrator.task_log import find_task, print_log
from tasks.logs import log_path, logged

NSH = {"name": "nsh", "epochs": 2, "width": 0.1, "learning_rate": 1e30}  # diverges


def key_of(place: Any, kind: str) -> str:
    tasks = Store(place.store).tables.frame("tasks")
    return str(tasks.loc[tasks["kind"] == kind, "key"].iloc[0])


def write(place: Any, key: str, text: str) -> None:
    path = log_path(place.store / "logs", key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def shown(*command: str) -> str:
    """What a command says, tracebacks of tasks among it."""
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, finished: Any) -> Any:
    """A store in which an attack failed and what rests on it could not run. Not to be changed."""
    place = type(finished)(tmp_path_factory.mktemp("broken"))
    shutil.copytree(finished.store, place.store)
    said = place.run(attacks=["gap", NSH], defenses=["none"])
    assert said.code == 1
    (place.folder / "said").write_text(said.text)
    return place


def test_a_task_that_printed_nothing(done: Any) -> None:
    key = key_of(done, "TrainTarget")
    said = done.command("logs", "--task", f" '{key[:9].upper()}' ", "--store", done.store)
    assert said.code == 0
    head, rest = said.text.splitlines()
    assert head.startswith(f"TrainTarget mlp_s synth_s seed 0, {key[:12]}: done 20")
    assert " UTC by inline on cpu, " in head
    assert "on that terminal" in rest


def test_a_log_is_shown_readably(done: Any) -> None:
    key = key_of(done, "TrainTarget")
    write(done, key, "one\x1b[31m red\n10 %\r20 %\r\n\ttab\nümlaut\n\nunended")
    said = done.command("logs", "--task", key, "--store", done.store)
    assert said.code == 0
    _, *lines = said.text.splitlines()
    assert lines == [
        "one\\x1b[31m red",
        "10 %",
        "20 %",
        "        tab",
        "ümlaut",
        "",
        "unended",
    ]
    assert said.text.endswith("\n")


def test_a_failed_task_is_named_where_it_is_missed_and_shows_its_traceback(broken: Any) -> None:
    failures = Store(broken.store).tables.frame("failures")
    (key,) = failures["key"]
    command = f"sfumato logs --task {key[:12]} --store {broken.store}"
    assert (broken.folder / "said").read_text().count(command) == 1
    status = broken.command("status", broken.folder / "tiny.yaml", "--store", broken.store)
    assert command in status.flat
    head, *lines = shown(*command.split()[1:]).splitlines()
    assert head.startswith(f"RunAttack nsh synth_s seed 0, {key[:12]}: failed 20")
    assert "1 attempt: FloatingPointError: nsh's training left" in head
    assert any("Traceback" in line for line in lines)
    assert lines[-1].startswith("FloatingPointError")


def test_of_a_log_that_is_gone_the_end_is_shown(broken: Any, tmp_path: Path) -> None:
    place = type(broken)(tmp_path)
    shutil.copytree(broken.store, place.store)
    shutil.rmtree(place.store / "logs")
    (key,) = Store(place.store).tables.frame("failures")["key"]
    text = shown("logs", "--task", key, "--store", str(place.store))
    assert text.splitlines()[1] == "the log is gone; its end was kept:"
    assert "Traceback" in text


def test_a_task_that_never_ran(broken: Any) -> None:
    cells = Store(broken.store).tables.frame("cells")
    key = cells.loc[cells["status"] == "blocked", "task_key"].iloc[0]
    said = broken.command("logs", "--task", key, "--store", broken.store)
    assert said.code == 0
    assert "never ran blocked, RunAttack nsh failed: FloatingPointError" in said.flat
    assert said.text.endswith("so there is no log\n")


def test_a_task_that_was_killed(done: Any) -> None:
    key = "ab" * 32
    write(done, key, "2026-01-02 TrainTarget mlp_s by w1\nlast words\n")
    said = done.command("logs", "--task", "abab", "--store", done.store)
    assert said.code == 0
    head, *lines = said.text.splitlines()
    assert "did not end" in head
    assert lines[-1] == "last words"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--task", "f" * 20], ["no task key begins with", "searched", "--store"]),
        (["--task", "quickstart"], ["is not a task key", "4 to 64"]),
        (["--task", "abc"], ["is not a task key"]),
        (["--task", "abab"], ["2 tasks begin with 'abab'", "abababababababab", "ababcdcd"]),
        (["some-job", "--task", "abab"], ["drop the job's ID"]),
        (["--task", "abab", "--address", "http://host"], ["drop the job's ID and --address"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_is_said(done: Any, options: list[str], parts: list[str]) -> None:
    write(done, "ab" * 32, "one\n")
    write(done, "ababcdcd" * 8, "two\n")
    said = done.command("logs", *options, "--store", done.store)
    assert said.code == 2
    for part in parts:
        assert part in said.flat
    assert len(said.text.splitlines()) <= 4


def test_a_store_has_no_logs_of_jobs(done: Any) -> None:
    said = done.command("logs", "some-job", "--store", done.store)
    assert said.code == 2
    assert "--store goes with --task" in said.text


def test_a_running_task_is_followed_until_it_ends(tmp_path: Path, module_lab: Any) -> None:
    """What it prints arrives while it runs, and nothing of it is missed in the end."""
    plan = make_plan(load_experiment(str(module_lab.file())), None)
    store = Store(tmp_path)
    (tmp_path / "tables").mkdir()
    prepared: Prepared = compare(plan, store, repair=False)
    task = plan.tasks[prepared.needed[0]]
    live = Live(store, "a", "tiny")
    live.add(prepared)
    live.count.joined("w1", "node1", gpu=False)
    live.count.started("w1", task)
    live.begin()
    path = log_path(tmp_path / "logs", task.key)
    said: list[str] = []
    lines = [f"line {i}\n" for i in range(5)]
    with logged(path, "a task", capture=False, send=None):
        path.write_text("begun\n")

        def echo(text: str) -> None:  # each thing said makes the task say more, until it ends
            said.append(text)
            if lines and not text.startswith("line 4"):
                with path.open("a") as file:
                    file.write(lines.pop(0))
            elif not lines:
                live.end()

        key = find_task(store, task.key[:8])
        print_log(store, key, echo, follow=True)
    text = "".join(said)
    head, begun, *rest, last = text.splitlines()
    assert f"{task.key[:12]}: running by w1 on node1 for " in head
    assert begun == "begun"
    assert rest == [f"line {i}" for i in range(5)]
    assert "did not end" in last
