"""Commands that look after the store and the machine: gc, doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator._console import (
    DEFAULT_STORE,
    FAILED,
    DataDir,
    Debug,
    Errors,
    StoreOption,
    find_data_dir,
    find_store,
    make_console,
    refuse,
    say,
)

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.garbage import Garbage

__all__ = ["doctor", "gc"]


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed.")] = False,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Also what was set aside as damaged.")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            "--forget",
            metavar="NAME",
            help="Count this experiment as gone; with --delete remove its folder and cells too.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """List what no experiment of the store needs, and remove it with --delete.

    Needed is what the experiments of the store would use if run again as they were last run, and
    all that their tables show. What was removed is computed again if it is ever needed again.

    [bold]Examples[/bold]

      sfumato gc

      sfumato gc --forget old_trial --delete
    """
    console = make_console()
    with Errors(debug):
        data_dir, root = find_data_dir(data_dir), find_store(store)
        from orchestrator._finding import size
        from orchestrator.garbage import collect, refusal, survey
        from orchestrator.garbage import forget as forget_experiment
        from orchestrator.resume import Store

        garbage = survey(Store(root), data_dir, forget or ())
        if garbage.unplanned:
            refuse(refusal(garbage.unplanned))
        if garbage.pieces:
            console.print(_listed(root, garbage))
        count, nbytes = garbage.kept
        console.print(f"needed by experiments: {count} artifacts, {size(nbytes)}")
        if not delete:
            removable = any(piece.what != "damaged" or damaged for piece in garbage.pieces)
            end = "nothing was removed; --delete does it" if removable else "nothing to remove"
            console.print(end)
            return
        for name in forget or ():
            forget_experiment(Store(root), name)
            console.print(f"forgot the experiment {name}")
        # Once more: while the list was made and printed a run may have begun to use some of it.
        pieces, nbytes = collect(survey(Store(root), data_dir), damaged=damaged)
        console.print(f"removed {pieces} pieces, {size(nbytes)}")


def _listed(root: Path, garbage: "Garbage") -> "Table":
    from rich.table import Table

    from orchestrator._finding import size
    from orchestrator.garbage import kinds

    table = Table(title=f"{root}: what no experiment needs", title_justify="left")
    table.add_column("what")
    for column in ("count", "size"):
        table.add_column(column, justify="right")
    for what, count, nbytes in kinds(root, garbage):
        table.add_row(what, str(count), size(nbytes))
    return table


def doctor(
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Read every file: the store's checksums (the damaged are set aside), the data.",
        ),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Start no Ray.")] = False,
    debug: Debug = False,
) -> None:
    """Examine Python, packages, devices, Ray, the store and the data: what works, what does not.

    Exit code: 0 if nothing failed, 1 else; a note is no failure.

    [bold]Examples[/bold]

      sfumato doctor

      sfumato doctor --deep --store /big/disk/store
    """
    console = make_console()
    with Errors(debug):
        root = find_store(store)
        from rich.console import Console

        from orchestrator.doctor import Finding, Place, examine, table

        findings: list[Finding] = []
        # Progress goes to standard error, and only where somebody watches it.
        with Console(stderr=True).status("") as status:
            place = Place(
                store=root,
                data_dir=data_dir.absolute() if data_dir else None,
                deep=deep,
                quick=quick,
                told=lambda line: status.update(f"checking: {line}"),
            )
            findings.extend(examine(place))
        console.print(table(findings))
        failed = sum(1 for finding in findings if finding.state == "FAIL")
        if failed:
            say(f"{failed} of {len(findings)} findings say FAIL; the last column says what to do")
            raise typer.Exit(FAILED)
