"""What every command shares: its options, its console, its errors and exit codes."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import Experiment

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A packaged experiment, or the path of a YAML file.")
]
StoreOption = Annotated[
    Path, typer.Option("--store", help="Folder that keeps everything that was computed.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="SFUMATO_DATA", help="Folder with dataset files (Parquet, npz)."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, e.g. --set target.epochs=50."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]

DEFAULT_STORE = Path("sfumato-store")


class Errors:
    """Turn what a person can act on into a few lines and an exit code."""

    def __init__(self, debug: bool) -> None:
        self._debug = debug

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # SystemExit: whoever reads our output closed the pipe (`| head`), and rich says so.
        if error is None or isinstance(error, typer.Exit | SystemExit):
            return
        if self._debug and not isinstance(error, KeyboardInterrupt):
            return
        if isinstance(error, KeyboardInterrupt):
            say("interrupted; everything finished so far is kept, the same command resumes")
            raise typer.Exit(INTERRUPTED) from None
        say(f"error: {error or type(error).__name__}")
        if not _expected(error):
            say("this is a fault of Sfumato's; --debug shows the traceback")
        raise typer.Exit(BAD_INPUT if _expected(error) else FAILED) from None


def _expected(error: BaseException) -> bool:
    from cluster.base import ClusterUnreachable
    from storage.artifacts import StoreUnwritable

    return isinstance(error, ValueError | OSError | ClusterUnreachable | StoreUnwritable)


def refuse(message: str) -> NoReturn:
    raise ValueError(message)


def say(message: str) -> None:
    typer.echo(message, err=True)


def make_console() -> "Console":
    from rich.console import Console

    # Without a terminal rich assumes 80 columns, which cuts tables in logs.
    asked = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else max(40, int(asked)) if asked.isdigit() else 160
    # No markup: labels, paths and errors may hold brackets, which are not styles.
    return Console(width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def find_data_dir(given: Path | None) -> Path | None:
    if given is None:
        return None
    if not given.is_dir():
        refuse(f"the data folder {given} does not exist; check --data-dir or SFUMATO_DATA")
    return given.absolute()


def find_store(given: Path) -> Path:
    if "://" in str(given) or ":/" in str(given):
        refuse(f"--store {given}: only local folders are stores so far")
    if given.exists() and not given.is_dir():
        refuse(f"--store {given} is a file; name a folder")
    return given.absolute()


def load(name: str, overrides: list[str] | None, data_dir: Path | None) -> "Experiment":
    from orchestrator.check import load_experiment

    return load_experiment(name, overrides or (), data_dir)
