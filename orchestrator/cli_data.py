"""Commands that say what there is: list, data list, data check."""

from typing import Annotated

import typer

from orchestrator._console import (
    FAILED,
    DataDir,
    Debug,
    Errors,
    add,
    find_data_dir,
    make_console,
    refuse,
)

__all__ = ["data_app", "list_"]

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Which datasets are here, and whether one can be trusted with an experiment.",
)


def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="attacks, defenses, datasets, architectures or experiments"
        ),
    ],
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """List every attack, defense, dataset, architecture or packaged experiment by name."""
    console = make_console()
    with Errors(debug):
        from orchestrator.listing import KINDS, table

        if what not in KINDS:
            from difflib import get_close_matches

            near = get_close_matches(what, KINDS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            refuse(f"cannot list '{what}'{hint} (known: {', '.join(KINDS)})")
        console.print(table(what, find_data_dir(data_dir)))


def list_data(data_dir: DataDir = None, debug: Debug = False) -> None:
    """List the datasets: which are here, their shape, and the checksum of their file.

    [bold]Examples[/bold]

      sfumato data list

      sfumato data list --data-dir /big/disk/data
    """
    console = make_console()
    with Errors(debug):
        from orchestrator.data_report import here

        console.print(here(find_data_dir(data_dir)))


def check_data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A dataset, a Parquet or npz file, or an experiment with its splits.",
        ),
    ],
    split_column: Annotated[
        str | None,
        typer.Option(
            "--split-column",
            metavar="COLUMN",
            help="The column that says members, reference or nonmembers.",
        ),
    ] = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Look at a dataset: classes, duplicates, and columns that would give everything away.

    With a split (a column's, or an experiment's) it is also asked whether a column, the class or a
    duplicate tells members from nonmembers before any model does. Exit code: 0 nothing is wrong, 1
    a risk was found, 2 the data cannot be used.

    [bold]Examples[/bold]

      sfumato data check clinic.parquet --split-column role

      sfumato data check audit.yaml
    """
    console = make_console()
    with Errors(debug):
        from orchestrator.data_report import print_check, subjects

        risky = False
        for i, subject in enumerate(subjects(name, split_column, find_data_dir(data_dir))):
            if i:
                console.print()
            risky |= print_check(console, subject)
        if risky:
            raise typer.Exit(FAILED)


add(data_app, list_data, "list")
add(data_app, check_data, "check")
