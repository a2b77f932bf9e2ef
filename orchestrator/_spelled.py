"""Figures of a run as text: means over seeds with their limits, flags under a table."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from orchestrator.flags import marks_explained
from tasks import metrics


def limited(rows: pd.DataFrame, column: str, scale: float = 100, digits: int = 1) -> str:
    """Mean over seeds and half-width of its 95 % interval, where there is one; in percent."""
    limits = [f"{column}_low", f"{column}_high"]
    given = rows.reindex(columns=[column, *limits]).dropna(subset=[column]).astype(float)
    if given.empty:
        return "-"
    mean, low, high = metrics.mean_interval(*(given[name] for name in given))
    half = "" if np.isnan(high - low) else f" ±{scale * (high - low) / 2:.{digits}f}"
    return f"{scale * mean:.{digits}f}{half}"


def averaged(values: "pd.Series[Any]", scale: float, digits: int) -> str:
    """Mean over seeds; a dash where nothing is known."""
    given = values.dropna()
    return f"{scale * given.mean():.{digits}f}" if len(given) else "-"


def seeds_meant(count: int) -> str:
    """What figures of so many seeds are, for a title."""
    over = "seeds, over records where all agree" if count > 2 else "records"
    return f"{count} seed{'' if count == 1 else 's'}, ± 95 % over {over}"


def flags_of(rows: pd.DataFrame) -> set[str]:
    """All flags of some rows."""
    return {flag for listed in rows["flags"].dropna() for flag in listed}


def explain(table: Table, flags: Iterable[str]) -> None:
    """Say under a table what its marks mean."""
    if meant := marks_explained(flags):
        table.caption, table.caption_justify = meant, "left"
