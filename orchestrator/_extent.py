"""How much an experiment file asks for, before anything is made of it."""

import math
from collections.abc import Iterator, Sequence

from orchestrator._problem import Problem
from orchestrator.entries import AttackEntry, DefenseEntry

__all__ = ["MOST_RESULTS", "extent_problems"]

# A few lines can ask for more than a machine could list: 1000 points of a defense's grid, 1000 of
# an attack's and 1000 seeds are 10^9 results. Planning this many takes half a minute.
MOST_RESULTS = 100_000


def extent_problems(
    num_seeds: int,
    num_datasets: int,
    chains: Sequence[Sequence[DefenseEntry]],
    attacks: Sequence[AttackEntry],
) -> Iterator[Problem]:
    """Refuse more results than `MOST_RESULTS`; nothing is listed to count them."""
    num_chains = sum(math.prod(map(_points, chain)) for chain in chains) or 1
    num_asked = sum(map(_points, attacks)) + 1  # utility is measured of each too
    total = num_seeds * num_datasets * num_chains * num_asked
    if total > MOST_RESULTS:
        message = (
            f"asks for {total:,} results ({num_seeds:,} seeds x {num_datasets:,} datasets x "
            f"{num_chains:,} defenses x {num_asked - 1:,} attacks and the utility); at most "
            f"{MOST_RESULTS:,} stand in one experiment, so make several of it"
        )
        yield Problem("", message)


def _points(entry: DefenseEntry | AttackEntry) -> int:
    return math.prod(len(values) for values in entry.grid.values())
