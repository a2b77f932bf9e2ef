"""Privacy against utility: what searches found, and what held-out judges say of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator._canvas import (
    GREY,
    INK,
    colour,
    drawing,
    label_points,
    legend_below,
    marker,
    percent_axis,
    save,
    titled,
)
from orchestrator.front import Direction

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["Front", "Judged", "draw_fronts"]

Floats = NDArray[np.float64]
Point = tuple[float, float]


@dataclass(frozen=True)
class Judged:
    """What a trial got from the held-out judges.

    Attributes:
        row: which trial.
        at: its two values.
        low, high: the ends of their 95 % intervals; NaN is none.
    """

    row: int
    at: Point
    low: Point = (np.nan, np.nan)
    high: Point = (np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Front:
    """One defense in a figure of fronts: privacy to the right, utility upwards.

    Attributes:
        name: what the legend calls it.
        values_N2: [N, 2], every trial as the search saw it; rows with a NaN are not drawn.
        on_front_N: [N] bool, the trials to draw as the front.
        low_N2, high_N2: [N, 2], the ends of 95 % intervals, NaN where there is none; drawn for the
            front only, or nothing else could be seen.
        chosen: the row to mark.
        judged: trials as the held-out judges see them.
        references: points of this defense that are not of the search, by name.
    """

    name: str
    values_N2: Floats
    on_front_N: NDArray[np.bool_]
    low_N2: Floats | None = None
    high_N2: Floats | None = None
    chosen: int | None = None
    judged: Sequence[Judged] = ()
    references: Mapping[str, Point] = field(default_factory=dict)


def draw_fronts(
    fronts: Sequence[Front],
    path: Path,
    *,
    x_title: str,
    y_title: str,
    directions: tuple[Direction, Direction] = ("minimize", "maximize"),
    percent: tuple[bool, bool] = (True, True),
    references: Mapping[str, Point] | None = None,
) -> list[Path]:
    """Draw privacy against utility of one or several defenses, a colour and a marker each.

    All trials are faint, the front is the step of what it attains. Hollow markers are held-out
    judgements; an arrow leads to each from what the search saw.

    Args:
        fronts: a defense each.
        path: with or without an ending.
        x_title: of the first value, without its unit.
        y_title: of the second.
        directions: which way is better; the titles say it.
        percent: whether values are fractions, to be written in percent.
        references: points of no defense, such as that of no defense at all, by name.

    Returns:
        The SVG file and the PNG file.

    Raises:
        ValueError: there is nothing to draw.
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    common = dict(references or {})
    points = np.concatenate([*map(_points, fronts), _array(common.values())])
    if not len(fronts) or not np.isfinite(points).all(axis=1).any():
        raise ValueError(f"{path.name}: no trial has both values, so there is no front to draw")
    with drawing(6.0) as figure:
        axes = figure.subplots()
        labels: list[tuple[str, Point, str]] = []
        for number, front in enumerate(fronts):
            _draw(axes, front, number, directions[0])
            of = f" ({front.name})" if len(fronts) > 1 else ""  # stars tell it by colour alone
            labels += [(f"{name}{of}", at, INK) for name, at in front.references.items()]
        for number, at in enumerate(common.values()):
            axes.plot(*at, "*", color=INK, ms=12, gid=f"reference-{number}", zorder=5)
        labels += [(name, at, INK) for name, at in common.items()]
        axes.set_xlabel(titled(x_title, percent[0], directions[0]))
        axes.set_ylabel(titled(y_title, percent[1], directions[1]))
        percent_axis(axes.xaxis, percent[0])
        percent_axis(axes.yaxis, percent[1])
        axes.margins(0.06)
        legend_below(figure, [*_names(fronts), *_meanings(fronts)])
        label_points(axes, labels, points, "label")
        return save(figure, path)


def _draw(axes: "Axes", front: Front, number: int, direction: Direction) -> None:
    ink, mark = colour(number), marker(number)
    values = front.values_N2
    shown = np.asarray(np.isfinite(values).all(axis=1))
    on_front = shown & front.on_front_N
    rest = values[shown & ~on_front]
    axes.plot(*rest.T, mark, color=ink, ms=4, alpha=0.3, mew=0, gid=f"trials-{number}", zorder=2)
    rows = np.flatnonzero(on_front)
    rows = rows[np.lexsort(values[rows].T[::-1])]
    # What a front attains at a leak that no point has is what the next better point attains.
    step: dict[str, Any] = {"ds": "steps-post" if direction == "minimize" else "steps-pre"}
    x, y = values[rows].T
    axes.plot(x, y, color=ink, lw=1.4, alpha=0.8, gid=f"step-{number}", zorder=3, **step)
    axes.plot(x, y, mark, color=ink, ms=6.5, mec="white", mew=0.6, gid=f"front-{number}", zorder=4)
    if front.low_N2 is not None and front.high_N2 is not None:
        _intervals(
            axes, values[rows], front.low_N2[rows], front.high_N2[rows], ink, f"front-{number}"
        )
    if front.chosen is not None and shown[front.chosen]:
        axes.plot(
            *values[front.chosen],
            "o",
            color=INK,
            ms=15,
            mfc="none",
            mew=1.6,
            gid=f"chosen-{number}",
            zorder=5,
        )
    _draw_judged(axes, front, number)
    for place, at in enumerate(front.references.values()):
        axes.plot(
            *at,
            "*",
            color=ink,
            ms=12,
            mec=INK,
            mew=0.5,
            gid=f"reference-{number}-{place}",
            zorder=5,
        )


def _draw_judged(axes: "Axes", front: Front, number: int) -> None:
    from matplotlib.patches import FancyArrowPatch

    ink = colour(number)
    judged = [one for one in front.judged if np.isfinite(one.at).all()]
    at, low, high = (_array(getattr(one, name) for one in judged) for name in ("at", "low", "high"))
    for one in judged:
        seen = front.values_N2[one.row]
        if np.isfinite(seen).all() and tuple(seen) != tuple(one.at):
            arrow = FancyArrowPatch(
                (float(seen[0]), float(seen[1])),
                one.at,
                arrowstyle="->,head_length=3,head_width=2",
                mutation_scale=1,
                shrinkA=0,
                shrinkB=3.5,
                color=ink,
                lw=0.8,
                gid=f"fooled-{number}-{one.row}",
                zorder=3.5,
            )
            axes.add_artist(arrow)
    axes.plot(
        *at.T,
        marker(number),
        color=ink,
        ms=7,
        mfc="white",
        mew=1.4,
        gid=f"judged-{number}",
        zorder=4.5,
    )
    _intervals(axes, at, low, high, ink, f"judged-{number}")


def _intervals(
    axes: "Axes", at_K2: Floats, low_K2: Floats, high_K2: Floats, ink: str, gid: str
) -> None:
    """Lines from end to end, horizontal for the first value and vertical for the second."""
    known = np.isfinite(low_K2) & np.isfinite(high_K2)
    look: dict[str, Any] = {"color": ink, "lw": 0.9, "alpha": 0.55, "zorder": 2.5}
    x, y = known.T
    across = axes.hlines(at_K2[x, 1], low_K2[x, 0], high_K2[x, 0], **look)
    across.set_gid(f"{gid}-x-intervals")
    along = axes.vlines(at_K2[y, 0], low_K2[y, 1], high_K2[y, 1], **look)
    along.set_gid(f"{gid}-y-intervals")


def _points(front: Front) -> Floats:
    """All that is drawn of a defense, trials first."""
    judged = _array(one.at for one in front.judged)
    return np.concatenate([front.values_N2, judged, _array(front.references.values())])


def _array(points: Iterable[Point]) -> Floats:
    return np.array([*points], dtype=np.float64).reshape(-1, 2)


def _names(fronts: Sequence[Front]) -> list["Artist"]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour(n), marker=marker(n), ms=6.5, mec="white", label=front.name)
        for n, front in enumerate(fronts)
    ]


def _meanings(fronts: Sequence[Front]) -> list["Artist"]:
    """What the kinds of marks mean, of those that are there."""
    from matplotlib.lines import Line2D

    def mark(label: str, **look: Any) -> Line2D:
        return Line2D([], [], **{"ls": "", "marker": "o", "color": GREY, "label": label, **look})

    found = [mark("trial of the search", ms=4, alpha=0.5)]
    if any(front.low_N2 is not None for front in fronts):
        found.append(mark("95 % interval", ls="-", lw=0.9, marker=""))
    if any(front.chosen is not None for front in fronts):
        found.append(mark("chosen", color=INK, ms=11, mfc="none", mew=1.6))
    if any(front.judged for front in fronts):
        found.append(mark("judged by held-out attackers", ms=7, mfc="white", mew=1.4))
    return list(found)
