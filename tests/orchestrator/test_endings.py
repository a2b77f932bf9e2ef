"""However a command ends before its end, it says so in a line, or nothing at all."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import typer

from orchestrator._console import Errors, stop

PROGRAM = [sys.executable, "-m", "orchestrator"]

# Python leaves Ctrl-C ignored where its parent ignores it, as shells do in the background.
NOTICED = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)

# Ctrl-C comes while a module is imported, which makes another error of it.
CTRL_C = """
import signal, sys

class Stops:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise {raised} from None

sys.meta_path.insert(0, Stops())
sys.argv = ["sfumato", *{args!r}]
import runpy
runpy.run_module("orchestrator", run_name="__main__")
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],  # written by Rich
        ["show", "KEY", "--format", "json"],  # by Typer
        ["query", "SELECT * FROM results", "--format", "csv"],  # as bytes
    ],
    ids=" ".join,
)
def test_who_reads_no_further_is_told_nothing(finished, args):
    key = next(iter(finished.artifacts()))
    at = [] if args == ["--help"] else ["--store", str(finished.store)]
    command = [*PROGRAM, *(key if arg == "KEY" else arg for arg in args), *at]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_who_reads_no_errors_either_is_left_alone(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PROGRAM, "show", "abcd", "--store", str(tmp_path / "nowhere")]
    done = subprocess.run(command, stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 141


def test_a_connection_that_broke_is_an_error_and_not_a_reader(capfd):
    with pytest.raises(typer.Exit) as ended, Errors(debug=False):
        raise BrokenPipeError(32, "Broken pipe")
    assert ended.value.exit_code == 2
    assert "Broken pipe" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "module"),
    [
        (["run", "quickstart"], "torch"),
        (["plan", "quickstart", "--debug"], "orchestrator.check"),
        (["plan", "quickstart"], "rich.console"),  # before the command's own handler
        (["plan", "quickstart"], "typer"),  # before any
    ],
)
def test_ctrl_c_while_packages_are_imported_is_told_in_a_line(tmp_path, args, module):
    raised = "KeyboardInterrupt" if module == "typer" else "RecursionError('too deep')"
    code = CTRL_C.format(module=module, raised=raised, args=args)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=NOTICED
    ) as process:
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, "interrupted\n")


def import_badly():
    try:
        stop(signal.SIGINT, None)
    except KeyboardInterrupt:
        raise ImportError("half imported") from None


def test_what_a_package_makes_of_ctrl_c_is_ctrl_c(capfd, monkeypatch):
    monkeypatch.setattr(Errors, "stopped", False)
    with pytest.raises(typer.Exit) as ended, Errors(debug=True, resumes=True):
        import_badly()
    assert ended.value.exit_code == 130
    assert "the same command resumes" in capfd.readouterr().err


@pytest.mark.parametrize("resumes", [True, False])
def test_only_what_resumes_says_so(capfd, resumes):
    with pytest.raises(typer.Exit) as ended, Errors(debug=False, resumes=resumes):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert ("the same command resumes" in capfd.readouterr().err) == resumes
