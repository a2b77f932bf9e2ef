"""How figures look and are written: colours for every eye, text as text, the same bytes twice."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.artifacts import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "INK",
    "colour",
    "drawing",
    "label_points",
    "legend_below",
    "marker",
    "percent_axis",
    "save",
    "titled",
]

INK = "#222222"
GREY = "#8a8a8a"
_DPI = 150
_WIDTH = 8.0  # inches: 1200 pixels

# Okabe and Ito's colours, in an order in which neighbours differ in grey too; no yellow on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")  # one more than colours, so that pairs last

_STYLE: Any = {  # matplotlib types every name of it
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that layouts agree everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a label is what its user typed, dollars and all
    "svg.fonttype": "none",  # text stays text: it can be searched, and is small
    "svg.hashsalt": "sfumato",
}

# Where a label may stand beside its point: (right, up) in points, the nearest places first.
_PLACES = [
    (right * far, up * far)
    for far in (9.0, 16.0, 26.0, 40.0)
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8))
]


def colour(number: int) -> str:
    """The colour of the defense of that number."""
    return _COLOURS[number % len(_COLOURS)]


def marker(number: int) -> str:
    """The marker of the defense of that number; colour and marker repeat after 56."""
    return _MARKERS[number % len(_MARKERS)]


@contextmanager
def drawing(height: float) -> Iterator["Figure"]:
    """An empty figure of 1200 pixels' width in the style of all, whatever the user's matplotlibrc.

    Args:
        height: in inches of 150 pixels.
    """
    import matplotlib  # here, as most runs draw nothing
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def save(figure: "Figure", path: Path) -> list[Path]:
    """Write the figure as SVG and PNG, each whole or not at all; equal figures give equal bytes.

    Args:
        figure: made and saved within the same `drawing`.
        path: with or without one of the two endings.

    Returns:
        The SVG file and the PNG file.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    stem = path.with_suffix("") if path.suffix in (".svg", ".png") else path
    written = []
    nameless: Mapping[str, Mapping[str, Any]] = {  # neither a date nor a version in the file
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
    }
    for kind, metadata in nameless.items():
        sink = io.BytesIO()
        figure.savefig(sink, format=kind, metadata=metadata)
        written.append(stem.with_name(f"{stem.name}.{kind}"))
        write_whole(written[-1], sink.getvalue())
    return written


def percent_axis(axis: "Axis", percent: bool) -> None:
    """Write the fractions of an axis in percent; its title must say so."""
    if percent:
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}")


def titled(title: str, percent: bool, direction: str) -> str:
    """The title of an axis with its unit and which way is better."""
    better = "lower" if direction == "minimize" else "higher"
    return f"{title}{', %' if percent else ''} ({better} is better)"


def legend_below(figure: "Figure", handles: "Sequence[Artist]") -> None:
    """A legend under all axes, in as many columns as its longest label allows."""
    labels = [str(handle.get_label()) for handle in handles]
    columns = max(1, min(4, 110 // (max(map(len, labels)) + 6)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def label_points(
    axes: "Axes",
    labels: Sequence[tuple[str, tuple[float, float], str]],
    avoid_K2: ArrayLike,
    gid: str,
) -> None:
    """Write each label beside its point, where it covers least: other labels, points, the frame.

    To be called last, as it lays the figure out to see what lies where.

    Args:
        axes: with its limits as they stay.
        labels: text, point in data coordinates, colour.
        avoid_K2: [K, 2], points in data coordinates; NaN rows are none.
        gid: of the texts, followed by their number.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    points = axes.transData.transform(np.asarray(avoid_K2, dtype=float).reshape(-1, 2))
    frame = axes.get_window_extent()
    taken: list[NDArray[np.float64]] = []
    for number, (text, at, ink) in enumerate(labels):
        note = axes.annotate(
            text,
            at,
            xytext=(0, 0),
            textcoords="offset points",
            color=ink,
            fontsize=9,
            gid=f"{gid}-{number}",
            zorder=6,
            in_layout=False,
        )

        def placed(place: tuple[float, float], note: Any = note) -> NDArray[np.float64]:
            note.set_position(place)
            note.set_horizontalalignment(_side(place[0], "left", "right"))
            note.set_verticalalignment(_side(place[1], "bottom", "top"))
            return np.asarray(note.get_window_extent().extents)

        def cost(place: tuple[float, float], placed: Callable[..., Any] = placed) -> float:
            box = placed(place)
            hidden = ((points > box[:2] - 4) & (points < box[2:] + 4)).all(axis=1).sum()
            outside = (
                np.minimum(box[:2] - frame.min, 0) + np.minimum(frame.max - box[2:], 0)
            ).sum()
            return float(
                20 * sum(_overlap(box, other) for other in taken)
                + 100 * hidden
                - 1000 * outside
                + np.hypot(*place)
            )

        taken.append(placed(min(_PLACES, key=cost)))


def _side(offset: float, positive: str, negative: str) -> str:
    return "center" if offset == 0 else positive if offset > 0 else negative


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The area that two boxes (left, bottom, right, top) share, in square pixels."""
    return float(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod())
