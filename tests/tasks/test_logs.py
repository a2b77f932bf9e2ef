"""The log of a task: what is printed reaches it, whatever ends the process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ray_pool import RayPool
from tasks.logs import log_path, logged, read_log

SPEAK = """
print("from Python")
print("an error of Python", file=sys.stderr)
os.write(1, b"as C prints\\n")
os.write(2, b"as C errs\\n")
subprocess.run(["echo", "from a program"], check=True)
"""
SAID = ["from Python", "an error of Python", "as C prints", "as C errs", "from a program"]


def ends(path: Path, *lines: str) -> int:
    """The exit code of a process that does something with a log."""
    script = [
        "import os, signal, subprocess, sys",
        "from pathlib import Path",
        "from tasks.logs import logged",
        "with logged(Path(sys.argv[1]), 'a task', capture=True, send=None):",
        *(f"    {line}" for text in lines for line in text.splitlines()),
    ]
    command = [sys.executable, "-c", "\n".join(script), str(path)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def test_prints_of_every_kind_are_in_it_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "ab" / "task.log"
    assert ends(path, SPEAK) == 0
    first, *said, last = path.read_text().splitlines()
    assert "a task on" in first
    assert said == SAID
    assert last.endswith(" done")


def test_afterwards_prints_go_where_they_went(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with logged(tmp_path / "a.log", "a task", capture=True, send=None):
        os.write(1, b"inside\n")
    os.write(1, b"outside\n")
    assert capfd.readouterr().out == "outside\n"
    assert "inside" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "inline"])
def test_an_error_is_in_it_with_its_traceback(tmp_path: Path, capture: bool) -> None:
    sent: list[bytes] = []
    path = tmp_path / "a.log"
    with (
        pytest.raises(ValueError, match="no such thing"),
        logged(path, "a task", capture=capture, send=sent.append),
    ):
        raise ValueError("no such thing")
    text = path.read_text()
    assert "Traceback" in text
    assert "test_logs.py" in text
    assert "ValueError: no such thing" in text
    assert b"".join(sent).decode() == text


@pytest.mark.parametrize(
    ("how", "code"),
    [("os._exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["exit", "kill"],
)
def test_what_was_printed_outlives_a_killed_process(tmp_path: Path, how: str, code: int) -> None:
    path = tmp_path / "a.log"
    assert ends(path, SPEAK, how) == code
    first, *said = path.read_text().splitlines()
    assert "a task on" in first
    assert said == SAID


def test_a_second_attempt_is_appended_and_says_that_it_went_well(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    assert ends(path, "os._exit(3)") == 3
    assert ends(path, "pass") == 0
    first, second, last = path.read_text().splitlines()
    assert "a task on" in first
    assert "a task on" in second
    assert last.endswith(" done")


def test_a_quiet_task_leaves_none(tmp_path: Path) -> None:
    sent: list[bytes] = []
    with logged(tmp_path / "ab" / "a.log", "a task", capture=True, send=sent.append):
        pass
    assert list((tmp_path / "ab").iterdir()) == []
    assert sent == []


@pytest.mark.parametrize("place", ["a file is in the way", "a folder has its name"])
def test_one_that_cannot_be_written_costs_nothing(tmp_path: Path, place: str) -> None:
    path = tmp_path / "ab" / "a.log"
    if place == "a file is in the way":
        (tmp_path / "ab").write_text("")
    else:
        path.mkdir(parents=True)
    done = []
    with logged(path, "a task", capture=True, send=None):
        done.append("all the same")
    assert done


@pytest.mark.parametrize("broken", ["sys.stdout = None", "sys.stderr.close()"])
def test_a_process_without_streams_is_logged_too(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "a.log"
    assert ends(path, broken, "os.write(1, b'without a stream\\n')") == 0
    assert "without a stream" in path.read_text()
    assert "Traceback" not in path.read_text()


def test_a_reader_that_fails_costs_nothing(tmp_path: Path) -> None:
    def fail(content: bytes) -> None:
        raise ConnectionError("the driver is away")

    with logged(tmp_path / "a.log", "a task", capture=True, send=fail):
        os.write(1, b"said\n")
    assert "said" in (tmp_path / "a.log").read_text()


def test_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    path = log_path(tmp_path, "abcdef")
    path.parent.mkdir()
    path.write_text("0123456789")
    assert read_log(tmp_path, "abcdef", 4) == b"6789"
    assert read_log(tmp_path, "abcdef", 400) == b"0123456789"
    assert read_log(tmp_path, "fedcba", 4) == b""


@pytest.mark.ray
@pytest.mark.slow
def test_prints_inside_ray_workers_reach_it(tmp_path: Path) -> None:
    """Ray has its own ideas of a worker's standard output."""
    from cluster.base import TaskDone, TaskFailed, WorkerJoined, WorkerLost

    said = SPEAK

    # Workers cannot import a test file.
    def speak(path: Path, end: str) -> None:
        with logged(path, "a task", capture=True, send=None):
            exec(said, {"os": os, "subprocess": subprocess, "sys": sys})
            if end == "fail":
                raise ValueError("as asked")
            if end == "die":
                os._exit(3)

    pool = RayPool(workers=1, visible=tmp_path)
    pool.start()
    try:
        open_ = ["well", "fail", "die"]
        while open_:
            for event in pool.events(60.0):
                match event:
                    case WorkerJoined(worker):
                        pool.submit(worker, open_[0], speak, tmp_path / open_[0], open_[0])
                    case TaskDone(worker, _) | TaskFailed(worker, _, _):
                        open_.pop(0)
                        pool.submit(worker, open_[0], speak, tmp_path / open_[0], open_[0])
                    case WorkerLost(_, _):
                        open_.pop(0)
    finally:
        pool.close()
    for end in ("well", "fail", "die"):
        lines = (tmp_path / end).read_text().splitlines()
        assert [line for line in lines if line in SAID] == SAID, f"{end}: {lines}"
    assert "ValueError: as asked" in (tmp_path / "fail").read_text()
