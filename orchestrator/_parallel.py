"""Parallel coordinates: parameters of any kind on upright axes of one height."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator._canvas import GREY, INK, percent_axis, titled
from orchestrator._losses import Direction, sign

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Axle", "Column", "draw_axles", "draw_lines", "scale"]

Floats = NDArray[np.float64]
Value = float | str | bool


@dataclass(frozen=True)
class Column:
    """One parameter of every trial.

    Attributes:
        name: what its axis is called.
        values: one a trial; None where the trial has no such parameter.
        log: whether the axis is logarithmic.
        levels: the choices, upwards. If None, they are the sorted values if any is text or a truth
            value; otherwise the axis is one of numbers.
    """

    name: str
    values: Sequence[Value | None]
    log: bool = False
    levels: Sequence[Value] | None = None


@dataclass(frozen=True, eq=False)
class Axle:
    """An upright axis: the values on it between 0 and 1, and what is written where.

    Attributes:
        name: of the parameter.
        heights_N: [N], NaN where a trial has no such parameter.
        ticks: height -> text.
    """

    name: str
    heights_N: Floats
    ticks: dict[float, str]


def scale(column: Column, num: int) -> Axle:
    """A parameter as heights on its axis.

    Raises:
        ValueError: not `num` values, one that is none of the levels, one that is no finite number,
            or on a logarithmic axis one that is not above 0.
    """
    if len(column.values) != num:
        raise ValueError(f"{column.name} has {len(column.values)} values for {num} trials")
    present = [value for value in column.values if value is not None]
    if column.levels is not None or any(isinstance(value, str | bool) for value in present):
        return _levels(column, present)
    numbers = np.array([np.nan if value is None else value for value in column.values], dtype=float)
    known = np.array([value is not None for value in column.values])
    wrong = known & ~np.isfinite(numbers) if not column.log else known & ~(numbers > 0)
    if wrong.any():
        raise ValueError(
            f"{column.name} has the value {numbers[wrong][0]:g}, which has no place on "
            f"{'a logarithmic' if column.log else 'an'} axis; "
            f"{'give numbers above 0 or log=False' if column.log else 'give finite numbers'}"
        )
    if not known.any():
        return Axle(column.name, numbers, {})
    places = np.log(numbers) if column.log else numbers
    low, high = np.nanmin(places), np.nanmax(places)
    if low == high:
        return Axle(column.name, np.where(known, 0.5, np.nan), {0.5: _number(numbers[known][0])})
    ticks = {}
    for height in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = low + height * (high - low)
        ticks[height] = _number(float(np.exp(at)) if column.log else float(at))
    return Axle(column.name, (places - low) / (high - low), ticks)


def draw_lines(
    figure: "Figure",
    axes: "Axes",
    heights_NP: Floats,
    values_N: Floats,
    title: str,
    percent: bool,
    direction: Direction,
) -> None:
    """A line for each trial, the best last and darkest, and the key to its colours."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    dark_to_light = colormaps["viridis"](np.linspace(0.0, 0.9, 64))  # its end is lost on white
    upwards = dark_to_light if direction == "minimize" else dark_to_light[::-1]
    known = values_N[np.isfinite(values_N)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    key = ScalarMappable(
        Normalize(low, high if high > low else low + 1e-9),
        LinearSegmentedColormap.from_list("values", list(upwards)),
    )
    worst = np.inf if direction == "minimize" else -np.inf
    losses = np.where(np.isfinite(values_N), values_N, worst) * sign(direction)
    order = np.argsort(-losses, kind="stable")
    places = np.arange(heights_NP.shape[1])
    for depth, trial in enumerate(order):
        heights = heights_NP[trial]
        has = np.isfinite(heights)
        ink = key.to_rgba(values_N[trial]) if np.isfinite(values_N[trial]) else GREY
        look: dict[str, Any] = {"color": ink, "alpha": 0.8, "zorder": 2 + depth / len(values_N)}
        axes.plot(places, heights, lw=1.2, gid=f"trial-{trial}", **look)
        beside = np.concatenate([[True], has, [True]])
        loose = has & ~(beside[:-2] & beside[2:])
        axes.plot(places[loose], heights[loose], "o", ms=3.5, gid=f"ends-{trial}", **look)
    if len(known) < len(values_N):
        axes.set_title("grey: trials without a value", fontsize=9, loc="right")
    if len(known):
        bar = figure.colorbar(key, ax=axes, pad=0.02, aspect=30)
        bar.set_label(titled(title, percent, direction))
        percent_axis(bar.ax.yaxis, percent)


def draw_axles(axes: "Axes", axles: Sequence[Axle]) -> None:
    """The upright axes with their values, and the names of the parameters below."""
    plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    for place, axle in enumerate(axles):
        axes.plot([place, place], [0, 1], color=INK, lw=0.9, gid=f"axis-{place}", zorder=3.5)
        for height, text in axle.ticks.items():
            axes.plot(place, height, "_", color=INK, ms=6, zorder=3.5)
            axes.text(
                place + 0.035 * max(len(axles) - 1, 1) / 5,
                height,
                text,
                fontsize=8,
                va="center",
                bbox=plate,
                zorder=4,
            )
    names = [axle.name for axle in axles]
    crowded = max(map(len, names)) * len(names) > 80
    axes.set_xticks(range(len(names)), names)
    if crowded:
        for label in axes.get_xticklabels():
            label.set(rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks([])
    axes.grid(False)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.15, len(names) - 1 + 0.5)
    axes.set_ylim(-0.04, 1.04)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _levels(column: Column, present: Sequence[Value]) -> Axle:
    levels = list(
        column.levels or sorted(set(present), key=lambda value: (str(type(value)), value))
    )
    # By type too, as True is 1.
    places = {(type(value), value): n for n, value in enumerate(levels)}
    for value in present:
        if (type(value), value) not in places:
            raise ValueError(
                f"{column.name} has the value {value!r}, which is none of its levels: "
                f"{', '.join(map(repr, levels))}"
            )
    top = max(len(levels) - 1, 1)
    at = [0.5] if len(levels) == 1 else [n / top for n in range(len(levels))]
    heights = [
        np.nan if value is None else at[places[type(value), value]] for value in column.values
    ]
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in levels]
    return Axle(column.name, np.array(heights, dtype=float), dict(zip(at, texts, strict=True)))


def _number(value: float) -> str:
    """Three digits are enough to read an axis by."""
    return f"{value:.3g}"
