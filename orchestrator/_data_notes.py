"""What is odd about the columns of a file of one's own, and voids nothing by itself."""

from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.data_check import Column, Finding
from storage.datasets import Dataset, DatasetInfo

__all__ = ["catalogue_notes", "column_notes"]

_SHOWN = 5
_MOST_RATIO = 1000.0
_FEWEST_ROWS = 20
# From here on float32, which models see, no longer tells all whole numbers apart.
_WHOLE = 2.0**24
_FLAT = 1e-12


def column_notes(columns: Sequence[Column], named: bool) -> Iterator[Finding]:
    """Features that number the records, that dwarf others, and numbers that no model sees.

    Args:
        columns: of rows in random order; the features as models see them.
        named: whether features are told by their names f000, f001, ...
    """
    features = [column for column in columns if column.is_feature]
    yield from _identifiers(features)
    yield from _scales(features)
    unused = [c.name for c in columns if not c.is_feature and c.values.dtype.kind in "iuf"]
    if unused:
        why = "only f000, f001, ... are features" if named else "only those of `x` are features"
        message = f"{_some(unused)}: numbers that no model sees, as {why}"
        yield Finding("note", "unused", message)


def catalogue_notes(dataset: Dataset, info: DatasetInfo) -> Iterator[Finding]:
    """Whether a set known by name is the one the catalogue means."""
    differs = [
        f"{what} {found}, not {known}"
        for what, found, known in (
            ("records", f"{len(dataset):,}", f"{info.rows:,}"),
            ("classes", dataset.num_classes, info.classes),
            ("shape", dataset.shape, info.shape),
        )
        if found != known
    ]
    if differs:
        message = f"differs from the '{info.name}' of the catalogue: {'; '.join(differs)}"
        advice = "if that is meant, give the file a name of its own, so that tables tell them apart"
        yield Finding("note", "catalogue", f"{message}; {advice}")


def _identifiers(features: Sequence[Column]) -> Iterator[Finding]:
    numbers, large = [], []
    for column in features:
        values = column.values
        if len(values) < _FEWEST_ROWS or (values != np.rint(values)).any():
            continue
        if len(np.unique(values)) == len(values):
            numbers.append(column.name)
        elif np.abs(values).max() >= _WHOLE:
            large.append(column.name)
    for names, what in (
        (numbers, "whole numbers that all differ, as the numbers of records or persons do"),
        (large, "whole numbers above 16,777,216, which float32 rounds: a number of a person?"),
    ):
        if names:
            message = f"{_some(names)}: {what}. A model can know a member by it: drop it if it is"
            yield Finding("note", "identifier", message)


def _scales(features: Sequence[Column]) -> Iterator[Finding]:
    spreads = [(float(column.values.std(dtype=np.float64)), column.name) for column in features]
    spread = [pair for pair in spreads if pair[0] > _FLAT]
    if not spread:
        return
    (low, small), (high, large) = min(spread), max(spread)
    if high / low > _MOST_RATIO:
        message = (
            f"features differ {high / low:,.0f}-fold in spread: '{large}' has a standard deviation "
            f"of {high:.3g}, '{small}' of {low:.3g}. Networks see them as they are and may learn "
            "nothing of the small ones: bring them to alike units when you write the file"
        )
        yield Finding("note", "scale", message)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names[:_SHOWN])}{more}"
