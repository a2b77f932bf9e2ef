"""What no experiment of a store needs, and its removal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.check import load_experiment
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from storage import census
from storage.census import Piece
from storage.tables import Tables

__all__ = ["Garbage", "collect", "forget", "kinds", "refusal", "survey"]

_DRAFT_AGE_S = 86_400.0  # longer than any task writes


@dataclass(frozen=True)
class Garbage:
    """What can go.

    Attributes:
        pieces: artifacts and parts nobody needs, stale drafts, what was set aside.
        kept: how many artifacts are needed, and their bytes.
        unplanned: experiment -> why it cannot be told what it needs. While there are any, nothing
            but drafts and what was set aside may go.
    """

    pieces: Sequence[Piece]
    kept: tuple[int, int]
    unplanned: dict[str, str]


def survey(store: Store, data_dir: Path | None, forgotten: Sequence[str] = ()) -> Garbage:
    """Find what no experiment needs; removes nothing.

    Needed is what an experiment's plan names, what fills a cell or belongs to a study, and
    everything these were made from.

    Args:
        store: the store.
        data_dir: where datasets are looked for; planning reads them.
        forgotten: experiments whose needs do not count.

    Raises:
        ValueError: there is no store, or no experiment of a name in `forgotten`.
    """
    if not (store.root / "artifacts").is_dir():
        raise ValueError(f"there is no store {store.root}; name it with --store")
    named = _experiments(store)
    for name in forgotten:
        if name not in named:
            known = ", ".join(sorted(named)) or "none"
            raise ValueError(f"--forget {name}: the store has no such experiment; it has: {known}")
    # Pieces first: what a run that starts meanwhile makes is not among them.
    pieces = list(census.pieces(store.root, _DRAFT_AGE_S))
    needed, unplanned = _wanted(store, data_dir, sorted(named - set(forgotten)))
    _follow(store, needed)
    kept = [p.nbytes for p in pieces if p.what == "artifact" and p.key in needed]
    loose = [piece for piece in pieces if not piece.key or piece.key not in needed]
    return Garbage(loose, (len(kept), sum(kept)), unplanned)


def kinds(root: Path, garbage: Garbage) -> list[tuple[str, int, int]]:
    """What can go as (what, count, bytes), artifacts by kind, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for piece in garbage.pieces:
        match piece.what:
            case "artifact":
                told = census.description(root, piece.key)
                what = f"artifacts: {told['kind']}" if told else "artifacts: unreadable"
            case "part":
                what = f"parts of the table {piece.table}"
            case "draft":
                what = "drafts of processes that were killed"
            case "damaged":
                what = "set aside as damaged (goes with --damaged only)"
        counts[what] += 1
        sizes[what] += piece.nbytes
    return [(what, counts[what], nbytes) for what, nbytes in sizes.most_common()]


def collect(garbage: Garbage, *, damaged: bool) -> tuple[int, int]:
    """Remove what can go; stopping at any moment leaves a sound store.

    Args:
        garbage: what `survey` found a moment ago; a run that starts meanwhile may reuse it.
        damaged: also what was set aside.

    Returns:
        How many pieces were removed, and their bytes.

    Raises:
        ValueError: if an experiment cannot be planned.
        StoreUnwritable: the disk is read-only or forbidden.
    """
    if garbage.unplanned:
        raise ValueError(refusal(garbage.unplanned))
    going = [piece for piece in garbage.pieces if piece.what != "damaged" or damaged]
    for piece in going:
        census.remove(piece)
    return len(going), sum(piece.nbytes for piece in going)


def forget(store: Store, name: str) -> None:
    """Remove an experiment's folder and cells; its results stay until they are collected.

    Raises:
        StoreUnwritable: the disk is read-only or forbidden.
    """
    cells = store.root / "tables" / "cells" / f"{name}.parquet"
    for path in (cells, store.experiment(name)):  # the folder last: it keeps the name known
        if path.exists():
            census.discard(path)


def refusal(unplanned: dict[str, str]) -> str:
    """Why nothing is removed, and what to do."""
    lines = [f"  {name}: {reason}" for name, reason in unplanned.items()]
    names = " ".join(f"--forget {name}" for name in unplanned)
    return (
        "nothing was removed, because it cannot be told what these experiments need:\n"
        + "\n".join(lines)
        + "\ngive back what is missing (--data-dir for data), or give them up: "
        + f"sfumato gc {names}"
    )


def _experiments(store: Store) -> set[str]:
    folders = {path.name for path in store.root.glob("experiments/*") if path.is_dir()}
    return folders | {path.stem for path in store.root.glob("tables/cells/*.parquet")}


def _wanted(
    store: Store, data_dir: Path | None, names: Sequence[str]
) -> tuple[set[str], dict[str, str]]:
    """Keys that plans, cells and studies name; and why some experiments cannot be planned."""
    tables = store.tables
    needed = set(tables.frame("trials")["task_key"].dropna())
    unplanned: dict[str, str] = {}
    for name in names:
        try:
            needed |= set(_cells(tables, name))
            # Cells alone are what is left of an experiment whose folder somebody removed.
            if store.experiment(name).is_dir():
                path = store.experiment(name) / "experiment.yaml"
                needed |= make_plan(load_experiment(str(path), (), data_dir), data_dir).tasks.keys()
        except Exception as error:  # a plugin may raise anything; then its needs are not known
            unplanned[name] = str(error) or type(error).__name__
    return needed, unplanned


def _cells(tables: Tables, name: str) -> Iterator[str]:
    """The task keys of an experiment's cells.

    Raises:
        ValueError: they are damaged.
    """
    found = len(tables.problems)
    keys = tables.frame("cells", name)["task_key"].dropna()
    if tables.problems[found:]:
        raise ValueError(f"{tables.problems[-1]}. `sfumato run` writes it again")
    yield from keys


def _follow(store: Store, needed: set[str]) -> None:
    """Add everything that what is needed was made from."""
    open_ = list(needed)
    while open_:
        told = census.description(store.root, open_.pop())
        fresh = set(census.keys_in(told)) - needed
        needed |= fresh
        open_.extend(fresh)
