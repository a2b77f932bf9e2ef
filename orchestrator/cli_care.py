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
    find_made_store,
    find_store,
    make_console,
    refuse,
    say,
    send,
)

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.forms import Form
    from orchestrator.garbage import Garbage

__all__ = ["doctor", "gc"]


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed.")] = False,
    damaged: Annotated[
        bool,
        typer.Option("--damaged", help="With --delete: remove what was set aside as damaged, too."),
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            "--forget",
            metavar="NAME",
            help="Count an experiment, NAME@FORM or NAME@earlier as gone; with --delete remove its "
            "settings and cells too.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """List what no experiment of the store needs, and remove it with --delete.

    Needed is what the experiments of the store would use if run again as they ever were, and all
    that their tables show. Of an experiment that was run with other settings or seeds before, each
    such form is kept until it is forgotten: NAME@FORM is one of them, NAME@earlier all but the
    last. What was removed is computed again if it is ever needed again.

    [bold]Examples[/bold]

      sfumato gc

      sfumato gc --forget old_trial --delete

      sfumato gc --forget purifier_location@earlier --delete
    """
    console = make_console()
    with Errors(debug):
        data_dir, root = find_data_dir(data_dir), find_made_store(store)
        from orchestrator._finding import size
        from orchestrator.garbage import collect, refusal, survey, weights
        from orchestrator.garbage import forget as forget_experiment
        from orchestrator.resume import Store
        from storage.working import pull

        garbage = survey(Store(root), data_dir, forget or ())
        if garbage.unplanned:
            refuse(refusal(garbage.unplanned))
        if garbage.pieces:
            console.print(_listed(root, garbage))
        if earlier := weights(garbage):
            console.print(_earlier(earlier, garbage))
        count, nbytes = garbage.kept
        console.print(f"needed by experiments: {count} artifacts, {size(nbytes)}")
        if not delete:
            removable = any(piece.what != "damaged" or damaged for piece in garbage.pieces)
            end = "nothing was removed; --delete does it" if removable else "nothing to remove"
            console.print(end)
            return
        for name in forget or ():
            count = forget_experiment(Store(root), name)
            forms = f"{count} earlier form{'' if count == 1 else 's'} of "
            what = forms if "@" in name else "the experiment "
            console.print(f"forgot {what}{name.partition('@')[0]}")
        # Once more: while the list was made and printed a run may have begun to use some of it.
        send(root)
        pull(root)
        found = Store(root)
        garbage = survey(found, data_dir)
        pieces, nbytes = collect(garbage, damaged=damaged, upstream=found.upstream)
        send(root)
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


def _earlier(weights: "list[tuple[Form, int, int]]", garbage: "Garbage") -> "Table":
    from rich.table import Table

    from orchestrator._finding import size
    from orchestrator.forms import differences

    table = Table(title="earlier forms of experiments, kept until forgotten", title_justify="left")
    for column in ("form", "last run (UTC)", "differs from the last by"):
        table.add_column(column, overflow="fold")
    for column in ("artifacts only it needs", "size"):
        table.add_column(column, justify="right")
    now = {form.experiment: form.settings() for form in garbage.needs if form.current}
    for form, count, nbytes in weights:
        when = f"{form.ran_at:%Y-%m-%d %H:%M}" if form.ran_at else ""
        other = ", ".join(differences(form.settings(), now.get(form.experiment, {})))
        table.add_row(form.title, when, other or "data or versions", str(count), size(nbytes))
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
