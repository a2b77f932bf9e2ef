"""Results as tables in the terminal; every number is a query on the store's tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import pandas as pd
from rich.console import Console
from rich.table import Table

from orchestrator._spelled import averaged, explain, flags_of, limited, seeds_meant
from orchestrator._upheld import upheld_flags, upheld_gates
from orchestrator.config import Experiment
from orchestrator.flags import marked, marks_explained
from orchestrator.report_data import print_attribute, print_inversion
from orchestrator.resume import Store
from orchestrator.task_log import command

__all__ = ["print_results"]

_MOST_LOGS = 8
_MOST_WAITING = 5  # cells told one by one
_CELLS = {"utility": "utility", "worst": "worst of the attacks", "check": "checks of the split"}
# What may be said once under a table, if it is so in every cell of it.
_MILD = {"i5", "i6", "i7"}
_GATES = {
    "row_order": "row order",
    "asked_order": "order asked",
    "inputs": "inputs alone",
}


def print_results(
    console: Console, experiment: Experiment, store: Store, form: str | None = None
) -> None:
    """Print, per dataset, what each defense costs and what each attack gets out of it.

    Args:
        console: where to.
        experiment: whose results.
        store: where they are.
        form: of the experiment; None for the one that was run last.
    """
    tables = store.tables
    form = tables.forms.current(experiment.name) if form is None else form
    views = ("results", "utility", "worst", "gates", "cells")
    results, utility, worst, gates, cells = (
        tables.frame(view, experiment.name, form) for view in views
    )
    tested = upheld_gates(gates)
    results, worst, shown = (
        upheld_flags(frame, tested, utility) for frame in (results, worst, utility)
    )
    for entry in experiment.datasets:
        name = entry.name
        here = cells[cells["dataset"] == name]
        labels = [label for label in dict.fromkeys(here["label"]) if label]
        seeds = len(set(here["seed"]))
        console.print()
        console.print(_utility(shown[shown["dataset"] == name], labels, name, seeds))
        rows = results[results["dataset"] == name]
        attacks = list(dict.fromkeys(here.loc[here["kind"] == "attack", "attack"]))
        headline = _headlines(worst[worst["dataset"] == name], rows)
        if attacks:
            console.print(_attacks(rows, headline, labels, attacks, name, seeds))
        for view, show in (("inversion", print_inversion), ("attribute", print_attribute)):
            if view in set(here["kind"]):
                found = tables.frame(view, experiment.name, form)
                if (found["dataset"] == name).any():
                    show(console, found[found["dataset"] == name], labels, name, seeds)
        of_class = gates[(gates["gate"] == "class") & (gates["dataset"] == name)]
        _print_gates(console, tested[tested["dataset"] == name], of_class)
        if entry.judge == "untrained":
            _print_null(console, headline, name)
    _print_missing(console, cells, store)


def _utility(rows: pd.DataFrame, labels: Sequence[str], dataset: str, seeds: int) -> Table:
    table = Table(
        title=f"{dataset}: what each defense costs (train acc on members, all else on nonmembers; "
        f"{seeds_meant(seeds)})",
        title_justify="left",
    )
    columns = (
        "train acc %",
        "test acc %",
        "drop",
        "ECE",
        "L1",
        "labels changed %",
        "fit x",
        "query x",
    )
    table.add_column("defense", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    marks: set[str] = set()
    for label in labels:
        mine = rows[rows["label"] == label]
        flags = flags_of(mine)
        marks |= flags
        table.add_row(
            label + marked(flags),
            limited(mine, "train_accuracy"),
            limited(mine, "test_accuracy"),
            averaged(mine["test_accuracy_drop"], 100, 1),
            averaged(mine["ece"], 1, 3),
            averaged(mine["l1_distortion"], 1, 3),
            averaged(mine["label_change_rate"], 100, 1),
            averaged(mine["fit_ratio"], 1, 2),
            averaged(mine["query_ratio"], 1, 1),
        )
    explain(table, marks)
    if certified := _certificates(rows, labels):
        table.caption = "\n".join(filter(None, [cast(str | None, table.caption), certified]))
        table.caption_justify = "left"
    return table


def _certificates(rows: pd.DataFrame, labels: Sequence[str]) -> str:
    """What defenses prove of themselves, a line each; of several seeds the weakest."""
    lines = []
    for label in labels:
        proven = rows[(rows["label"] == label) & rows["epsilon"].notna()]
        if len(proven):
            epsilon, delta = proven["epsilon"].max(), proven["delta"].max()
            lines.append(f"{label} certifies epsilon {epsilon:.3g} at delta {delta:.2g}")
    return "\n".join(lines)


def _attacks(
    rows: pd.DataFrame,
    headlines: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    attacks: Sequence[str],
    dataset: str,
    seeds: int,
) -> Table:
    title = f"{dataset}: what each attack gets (accuracy %, below it AUC; {seeds_meant(seeds)})"
    table = Table(title=title, title_justify="left", show_lines=True)
    cells = [flags_of(cell) for _, cell in rows.groupby(["label", "attack_label"])]
    everywhere = set.intersection(*cells) & _MILD if len(cells) > 1 else set()
    marks: set[str] = set()
    columns: list[list[str]] = []  # of each defense, from the first attack to the worst of them
    for label in labels:
        mine = rows[(rows["label"] == label) & rows["attack_label"].isin(attacks)]
        column = []
        for attack in attacks:
            cell = mine[mine["attack_label"] == attack]
            flags = flags_of(cell) - everywhere
            marks |= flags
            column.append(_attack_cell(cell, flags))
        if label in headlines:
            flags = set(headlines[label]["flags"]) - everywhere
            marks |= flags
            column.append(_worst_cell(headlines[label], flags, mine))
        else:
            column.append(_incomplete_cell(mine, attacks))
        columns.append(column)
    names = [*attacks, "worst of these"]
    if len(labels) > len(names):  # what there is more of goes down, where there is room
        _fill(table, "defense", names, zip(labels, columns, strict=True))
    else:
        _fill(table, "attack", labels, zip(names, zip(*columns, strict=True), strict=True))
        table.rows[-1].style = "bold"
    explain(table, marks)
    if meant := marks_explained(everywhere):
        table.caption = f"{table.caption or ''}\nin every cell: {meant}".strip()
        table.caption_justify = "left"
    return table


def _fill(
    table: Table,
    corner: str,
    across: Sequence[str],
    down: Iterable[tuple[str, Sequence[str]]],
) -> None:
    table.add_column(corner, overflow="fold")
    for name in across:
        table.add_column(name, justify="right", overflow="fold")
    for name, cells in down:
        table.add_row(name, *cells)


def _attack_cell(rows: pd.DataFrame, flags: Iterable[str]) -> str:
    if rows.empty:
        return "-"
    accuracy = limited(rows, "attack_accuracy")
    return f"{accuracy}{marked(flags)}\n{averaged(rows['auc'], 1, 3)}"


def _worst_cell(row: Mapping[str, Any], flags: Iterable[str], rows: pd.DataFrame) -> str:
    """The largest attack of a defense, and what chance makes the largest of as many.

    Below them the bound on epsilon by the same attack, which no private training stays under.
    """
    chance = f"chance ≤ {100 * row['chance_accuracy']:.1f}"
    accuracy = limited(pd.DataFrame([row]), "attack_accuracy")
    mine = rows[rows["attack_label"] == row["attack_label"]]
    epsilon = averaged(mine["epsilon_lower_bound"], 1, 1)
    return f"{accuracy}{marked(flags)}\n{row['attack_label']}\n{chance}\nε ≥ {epsilon}"


def _incomplete_cell(rows: pd.DataFrame, attacks: Sequence[str]) -> str:
    """The largest of the attacks there are, where some are missing."""
    means = rows.groupby("attack_label")["attack_accuracy"].mean()
    # Attacks that tie exactly are named by the first in the experiment's order.
    found = [(float(means[name]), name) for name in attacks if name in means.index]
    top = max(found, key=lambda entry: entry[0], default=None)
    return f"{100 * top[0]:.1f}\n{top[1]}\nincomplete" if top else "-"


def _headlines(worst: pd.DataFrame, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """By defense, the worst case, its attacks under the names they have in the experiment."""
    names: dict[tuple[str, str], str] = {}
    for label, key, name in zip(rows["label"], rows["task_key"], rows["attack_label"], strict=True):
        names.setdefault((label, key), name)  # one task under two names: the first
    found: dict[str, dict[str, Any]] = {}
    for row in worst.to_dict("records"):
        label = row["label"]
        for kind in ("attack", "accuracy_sd", "auc_sd"):
            row[f"{kind}_label"] = names.get((label, row[f"{kind}_key"]), row["attack"])
        found[label] = {str(name): value for name, value in row.items()}
    return found


def _print_gates(console: Console, gates: pd.DataFrame, of_class: pd.DataFrame) -> None:
    """Whether the protocol itself leaks: what is guessed without any answer."""
    if gates.empty:
        return
    told, leaks, chance = [], [], []
    seeds = gates["seed"].nunique()
    for gate, words in _GATES.items():
        mine = gates[gates["gate"] == gate]
        told.append(f"{words} {averaged(mine['value'], 1, 3)}")
        if mine["upheld"].any():
            leaks.append(f"{words} in {mine['upheld'].sum()} of {seeds}")
        elif mine["flagged"].any():
            chance.append(f"{words} in {mine['flagged'].sum()} of {seeds}")
    told.append(f"{'smallest ' if seeds > 1 else ''}class p {of_class['p'].min():.2g}")
    by_class = int(of_class["flagged"].sum())
    verdict = "no leak found in the protocol"
    if leaks:
        verdict = f"LEAK: membership is told by {', '.join(leaks)} seeds; their results are void"
    elif chance:
        verdict = (
            f"no leak found in the protocol; {', '.join(chance)} seeds p ≤ 0.001, as chance makes "
            "some of as many checks as this run has"
        )
    elif by_class:  # the level is 1 %, so this alone voids nothing
        verdict = (
            f"no leak by order or inputs; classes tell membership in {by_class} of {seeds} seeds "
            "(p ≤ 0.01), as chance does in 1 of 100"
        )
    console.print(f"checks (AUC without asking the model): {', '.join(told)}: {verdict}")


def _print_null(console: Console, headlines: Mapping[str, Mapping[str, Any]], dataset: str) -> None:
    """The verdict of the null: no attack may leave the max-null band."""
    for label, row in headlines.items():
        verdict = "inside" if row["inside_band"] else "OUTSIDE: the evaluation itself leaks"
        console.print(
            f"null on {dataset}, {label}: worst accuracy {row['observed_accuracy_sd']:.2f} sd "
            f"({row['accuracy_sd_label']}, band {row['band_accuracy_sd']:.2f}), worst AUC "
            f"{row['observed_auc_sd']:.2f} sd ({row['auc_sd_label']}, band "
            f"{row['band_auc_sd']:.2f}): {verdict}"
        )


def _print_missing(console: Console, cells: pd.DataFrame, store: Store) -> None:
    """Say which cells are missing, and why, and how to see the logs of what failed."""
    missing = cells[~cells["status"].isin(["done"])]
    waiting = missing["status"] == "waiting"
    if waiting.sum() > _MOST_WAITING:
        console.print(f"missing: {waiting.sum()} cells wait to be run")
        missing = missing[~waiting]
    for row in missing.to_dict("records"):
        what = row["attack"] or _CELLS[row["kind"]]
        reason = f": {row['reason']}" if row["reason"] else ""
        seed = "" if row["kind"] == "worst" else f" seed {row['seed']}"
        place = ", ".join(filter(None, [row["dataset"] + seed, row["label"], what]))
        console.print(f"missing: {place} ({row['status']}{reason})")
    if not missing["status"].isin(["failed", "blocked"]).any():
        return
    failures = store.tables.frame("failures")
    logs = dict.fromkeys(missing.loc[missing["status"] == "failed", "task_key"])
    blocked = set(missing.loc[missing["status"] == "blocked", "reason"])
    for row in failures.to_dict("records"):
        if f"{row['kind']} {row['name']} failed: {row['error']}" in blocked:
            logs[row["key"]] = None
    for key in list(logs)[:_MOST_LOGS]:
        console.print(f"log of what failed: {command(store, key)}", soft_wrap=True)
