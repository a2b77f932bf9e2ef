"""Figures of a search: fronts, its history, what mattered, and what was tried."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator._canvas import (
    INK,
    colour,
    drawing,
    legend_below,
    percent_axis,
    save,
)
from orchestrator._front_figure import Front, Judged, draw_fronts
from orchestrator._parallel import Column, draw_axles, draw_lines, scale
from orchestrator.front import Direction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Column",
    "Front",
    "Judged",
    "State",
    "draw_fronts",
    "draw_history",
    "draw_importances",
    "draw_parallel",
]

State = Literal["complete", "pruned", "failed"]

_STATES: Mapping[State, tuple[str, str]] = {  # marker and colour
    "complete": ("o", colour(0)),
    "pruned": ("v", colour(1)),
    "failed": ("X", colour(5)),
}


def draw_history(
    values: Mapping[str, ArrayLike],
    best: Mapping[str, ArrayLike],
    path: Path,
    *,
    states: Sequence[State],
    percent: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
) -> list[Path]:
    """Draw objectives by trial, with the best or the hypervolume so far, under each other.

    Trials without a value stand at the foot of their panel.

    Args:
        values: title -> [N], NaN where a trial has none.
        best: title -> [N], the best after each trial, NaN before the first. A title that is in
            `values` too shares its panel; another, say a hypervolume, has one of its own.
        path: with or without an ending.
        states: [N].
        percent: the titles of fractions, to be written in percent.
        numbers: [N], trial numbers; 0, 1, ... if None.

    Returns:
        The SVG file and the PNG file.

    Raises:
        ValueError: there is nothing to draw, or lengths differ.
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    trials = np.arange(len(states)) if numbers is None else np.asarray(numbers)
    titles = list(dict.fromkeys([*values, *best]))
    if not titles or not len(states):
        raise ValueError(f"{path.name}: there are no trials, so there is no history to draw")
    for title, column in [*values.items(), *best.items()]:
        if np.shape(column) != trials.shape or trials.shape != (len(states),):
            raise ValueError(
                f"{path.name}: {title} has shape {list(np.shape(column))}; give a value for each "
                f"of the {len(states)} states and {len(trials)} numbers"
            )
    with drawing(0.8 + 2.2 * len(titles)) as figure:
        panels = figure.subplots(len(titles), sharex=True, squeeze=False)[:, 0]
        for panel, title in enumerate(titles):
            axes = panels[panel]
            if title in best:
                line = np.asarray(best[title], dtype=float)
                look: dict[str, Any] = {"color": INK, "lw": 1.4, "ds": "steps-post"}
                axes.plot(trials, line, gid=f"best-{panel}", zorder=2, **look)
            if title in values:
                column = np.asarray(values[title], dtype=float)
                _draw_states(axes, trials, column, states, panel)
                if not np.isfinite(column).all():
                    low, high = axes.get_ylim()
                    axes.set_ylim(low - 0.1 * (high - low), high)  # room for those at the foot
            axes.set_ylabel(f"{title}, %" if title in percent else title)
            percent_axis(axes.yaxis, title in percent)
        panels[-1].set_xlabel("trial")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        legend_below(figure, _history_marks(states, bool(best)))
        return save(figure, path)


def draw_importances(importances: Mapping[str, Mapping[str, float]], path: Path) -> list[Path]:
    """Draw how much each parameter mattered to each objective, a panel of bars for each objective.

    Args:
        importances: objective -> parameter -> share of 1. A parameter that one objective lacks
            has no bar there.
        path: with or without an ending.

    Returns:
        The SVG file and the PNG file.

    Raises:
        ValueError: there is nothing to draw.
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    names = list(dict.fromkeys(name for shares in importances.values() for name in shares))
    if not names:
        raise ValueError(f"{path.name}: no parameter has an importance, so there is none to draw")
    top = {name: max(shares.get(name, 0.0) for shares in importances.values()) for name in names}
    names.sort(key=lambda name: -top[name])
    with drawing(1.2 + 0.36 * len(names)) as figure:
        panels = figure.subplots(1, len(importances), sharey=True, squeeze=False)[0]
        for panel, (objective, shares) in enumerate(importances.items()):
            axes = panels[panel]
            for row, name in enumerate(names):
                if name in shares:
                    gid = f"importance-{panel}-{row}"
                    (bar,) = axes.barh(row, shares[name], height=0.62, color=colour(panel))
                    bar.set_gid(gid)
                    text = f" {100 * shares[name]:.0f}"
                    axes.text(shares[name], row, text, va="center", fontsize=9)
            axes.set_title(objective, fontsize=10)
            axes.set_xlim(0, 1.16 * max(top.values()) or 1.0)
            axes.set_xlabel("importance, %")
            axes.grid(False, axis="y")
            percent_axis(axes.xaxis, True)
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        return save(figure, path)


def draw_parallel(
    params: Sequence[Column],
    objective: ArrayLike,
    path: Path,
    *,
    title: str,
    percent: bool = False,
    direction: Direction = "minimize",
) -> list[Path]:
    """Draw each trial as a line through its parameters, coloured by one objective.

    A line breaks at a parameter that its trial lacks, with a dot at each loose end. Good trials are
    dark and on top; trials without a value are grey.

    Args:
        params: an axis each.
        objective: [N], NaN where a trial has none.
        path: with or without an ending.
        title: of the objective, without its unit.
        percent: whether it is a fraction, to be written in percent.
        direction: which way is better.

    Returns:
        The SVG file and the PNG file.

    Raises:
        ValueError: there is nothing to draw, lengths differ, a logarithmic axis has a value that is
            not above 0, or a value is none of the levels.
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    values = np.asarray(objective, dtype=float)
    if not params or not len(values):
        raise ValueError(f"{path.name}: there are no trials with parameters, so nothing to draw")
    axles = [scale(column, len(values)) for column in params]
    heights_NP = np.column_stack([axle.heights_N for axle in axles])
    with drawing(5.6) as figure:
        axes = figure.subplots()
        draw_lines(figure, axes, heights_NP, values, title, percent, direction)
        draw_axles(axes, axles)
        return save(figure, path)


def _draw_states(
    axes: "Axes",
    trials: NDArray[Any],
    values: NDArray[np.float64],
    states: Sequence[State],
    panel: int,
) -> None:
    foot = axes.get_xaxis_transform()  # trial number across, a share of the panel upwards
    for state, (mark, ink) in _STATES.items():
        mine = np.array([one == state for one in states])
        look: dict[str, Any] = {"color": ink, "ms": 5, "mew": 0, "ls": "", "marker": mark}
        known = mine & np.isfinite(values)
        axes.plot(trials[known], values[known], gid=f"{state}-{panel}", zorder=3, **look)
        without = trials[mine & ~known]
        place = np.full(len(without), 0.04)
        look |= {"transform": foot, "gid": f"{state}-{panel}-without", "in_layout": False}
        axes.plot(without, place, **look, clip_on=False)


def _history_marks(states: Sequence[State], best: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    found = [
        Line2D([], [], color=ink, marker=mark, ls="", ms=5, mew=0, label=state)
        for state, (mark, ink) in _STATES.items()
        if state in states
    ]
    return [*found, *([Line2D([], [], color=INK, lw=1.4, label="best so far")] if best else [])]
