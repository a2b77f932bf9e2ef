"""Commands that say what there is: list."""

from typing import Annotated

import typer

from orchestrator._console import (
    DataDir,
    Debug,
    Errors,
    find_data_dir,
    make_console,
    refuse,
)

__all__ = ["list_"]


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
