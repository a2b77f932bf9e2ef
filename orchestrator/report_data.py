"""What attacks on records and attributes got, as tables in the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from orchestrator._spelled import averaged, explain, flags_of, limited, seeds_meant
from orchestrator.flags import marked

__all__ = ["print_attribute", "print_inversion"]


def print_inversion(
    console: Console, rows: pd.DataFrame, labels: Sequence[str], dataset: str, seeds: int
) -> None:
    """Print how near rebuilt records come, and what guessing a mean gets.

    Args:
        console: where to.
        rows: those of the table `inversion` about the dataset.
        labels: the defenses, in the experiment's order.
        dataset: its name.
        seeds: how many were run.
    """
    table = _table(
        f"{dataset}: how near rebuilt records come (mean squared error; {seeds_meant(seeds)})",
        ("error", "members", "nonmembers", "of the mean's %", "SSIM", "re-identified %", "cosine"),
    )
    for row, mine, mark in _by_attack(table, rows, labels):
        share = mine["inversion_error"] / mine["mean_error"]
        table.add_row(
            *row,
            limited(mine, "inversion_error", 1, 4) + mark,
            averaged(mine["inversion_error_members"], 1, 4),
            averaged(mine["inversion_error_nonmembers"], 1, 4),
            averaged(share, 100, 1),
            averaged(mine["ssim"], 1, 3),
            limited(mine, "reidentified"),
            averaged(mine["cosine"], 1, 3),
        )
    console.print(table)
    guesses = (
        f"guessing the mean of the attacker's records: {averaged(rows['mean_error'], 1, 4)}, the "
        f"mean of the right class: {averaged(rows['class_mean_error'], 1, 4)}"
    )
    named = averaged(rows["reidentified_originals"], 100, 1)
    told = f"; of the originals {named} % are re-identified" if named != "-" else ""
    console.print(guesses + told)


def print_attribute(
    console: Console, rows: pd.DataFrame, labels: Sequence[str], dataset: str, seeds: int
) -> None:
    """Print how well an attribute is inferred, a table for each, and what guessing gets.

    Args:
        console: where to.
        rows: those of the table `attribute` about the dataset.
        labels: the defenses, in the experiment's order.
        dataset: its name.
        seeds: how many were run.
    """
    for attribute in dict.fromkeys(rows["attribute"]):
        of_it = rows[rows["attribute"] == attribute]
        table = _table(
            f"{dataset}: what answers tell of {attribute} ({seeds_meant(seeds)})",
            (
                *("balanced acc %", "members", "nonmembers", "natural acc %"),
                *("macro F1", "mutual information, bits"),
            ),
        )
        for row, mine, mark in _by_attack(table, of_it, labels):
            table.add_row(
                *row,
                limited(mine, "balanced_accuracy") + mark,
                limited(mine, "balanced_accuracy_members"),
                limited(mine, "balanced_accuracy_nonmembers"),
                limited(mine, "natural_accuracy"),
                averaged(mine["macro_f1"], 1, 3),
                averaged(mine["mutual_information"], 1, 4),
            )
        console.print(table)
        console.print(
            f"guessing gets balanced {averaged(of_it['uniform_accuracy'], 100, 1)} %; the most "
            f"frequent value is right in {averaged(of_it['majority_accuracy'], 100, 1)} %, of the "
            f"rarest {int(of_it['num_rarest'].min())} records are judged"
        )


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("defense", "attack"):
        table.add_column(name, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _by_attack(
    table: Table, rows: pd.DataFrame, labels: Sequence[str]
) -> list[tuple[tuple[str, str], pd.DataFrame, str]]:
    """(Defense, attack), its rows and the marks of its flags, explained under the table."""
    found, marks = [], set[str]()
    for label in labels:
        of_label = rows[rows["label"] == label]
        for attack in dict.fromkeys(of_label["attack_label"]):
            mine = of_label[of_label["attack_label"] == attack]
            flags = flags_of(mine)
            marks |= flags
            found.append(((label, attack), mine, marked(flags)))
    explain(table, marks)
    return found
