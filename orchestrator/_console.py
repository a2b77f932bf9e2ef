"""What every command shares: its options, its console, its errors and exit codes."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

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
    from orchestrator.source import readable

    # What it quotes may be anything: no control characters reach the terminal.
    for line in message.split("\n"):
        typer.echo(readable(line), err=True)


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
    if ":/" in str(given):
        refuse(f"--store {given}: only local folders are stores so far; name a folder")
    if not str(given).isprintable():
        refuse(f"--store {str(given)!r} holds characters that cannot be printed; name it otherwise")
    root = given.absolute()
    try:
        for folder in (root, *root.parents):
            if folder.exists() and not folder.is_dir():
                refuse(f"--store {given}: {folder} is a file; name a folder")
        for name in ("artifacts", "tables", "experiments", "damaged"):
            if (root / name).exists() and not (root / name).is_dir():
                refuse(
                    f"--store {given}: {root / name} is a file where a store has a folder; "
                    "name another store, or move the file away"
                )
    except OSError as error:
        refuse(f"--store {given}: {error.strerror}; name another folder")
    return root


def find_tracking(given: str | None) -> str | None:
    """The address of an MLflow server or database, if there can be one at it."""
    from storage.tracking import masked

    if given is None:
        return None
    scheme, _, rest = given.partition("://")
    fault = "" if given.isprintable() and len(given) <= 1000 else "is no address"
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(given)
            if not parts.hostname or parts.port == 0:
                fault = "names no host"
        except ValueError:  # its text may hold a part of the password
            fault = "is no address"
    elif re.fullmatch(r"sqlite(\+\w+)?", scheme):
        fault = fault or ("" if rest.strip("/") else "names no file")
    elif not re.fullmatch(r"(postgresql|mysql|mssql)(\+\w+)?", scheme) or not rest:
        fault = fault or ("" if scheme == "databricks" else "is no address of MLflow")
    if fault:
        refuse(
            f"--tracking-uri {masked(given)!r:.300} {fault}; write http://HOST:PORT, "
            "sqlite:////PATH/mlflow.db or another database's postgresql://USER@HOST/NAME"
        )
    return given


def load(name: str, overrides: list[str] | None, data_dir: Path | None) -> "Experiment":
    from orchestrator.check import load_experiment

    return load_experiment(name, overrides or (), data_dir)
