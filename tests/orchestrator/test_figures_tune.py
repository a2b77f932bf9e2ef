"""Figures of a search, read back from the SVG: every point, label, break and mark that must be."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator._canvas import colour, marker
from orchestrator.figures_tune import (
    Column,
    Front,
    Judged,
    State,
    draw_fronts,
    draw_history,
    draw_importances,
    draw_parallel,
)
from orchestrator.front import nondominated

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")
TITLES = {"x_title": "attack accuracy", "y_title": "accuracy"}
VALUES = np.array(
    [[0.5, 0.3], [0.6, 0.7], [0.62, 0.5], [0.9, 0.8], [0.7, 0.6], [NAN, 0.9], [0.8, 0.2]]
)


class Svg:
    """A figure read back."""

    def __init__(self, path: Path) -> None:
        self.root = ET.parse(path).getroot()
        self.texts = ["".join(text.itertext()) for text in self.root.iter(f"{SVG}text")]
        self.groups = {group.get("id", ""): group for group in self.root.iter(f"{SVG}g")}

    def points(self, gid: str) -> list[tuple[float, float]]:
        """Where the markers of a group stand, downwards."""
        uses = self.groups[gid].iter(f"{SVG}use")
        return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in uses]

    def paths(self, gid: str) -> list[str]:
        """The lines of a group, without the shapes of markers."""
        hidden = {id(path) for defs in self.groups[gid].iter(f"{SVG}defs") for path in defs}
        found = self.groups[gid].iter(f"{SVG}path")
        return [path.attrib["d"] for path in found if id(path) not in hidden]


def front(name: str = "purifier", **more: object) -> Front:
    return Front(name, VALUES, nondominated(VALUES, ("minimize", "maximize")), **more)  # type: ignore[arg-type]


def drawn(paths: list[Path]) -> Svg:
    svg, png = paths
    assert (svg.suffix, png.suffix) == (".svg", ".png")
    assert sorted(svg.parent.iterdir()) == sorted(paths)  # no draft is left
    with Image.open(png) as image:
        assert image.width == 1200
    return Svg(svg)


def test_a_front_shows_every_trial_and_steps_through_the_best(tmp_path):
    svg = drawn(draw_fronts([front()], tmp_path / "fronts", **TITLES))
    assert len(svg.points("trials-0")) == 3  # of seven, three on the front, one without a value
    on_front = svg.points("front-0")
    assert len(on_front) == 3
    assert on_front == sorted(on_front, key=lambda at: (at[0], -at[1]))
    (step,) = svg.paths("step-0")
    corners = step.replace("M", "L").split("L")[1:]
    assert len(corners) == 5  # along at the height of the better point, then up
    at = [tuple(map(float, corner.split())) for corner in corners]
    assert [y for _, y in at[:2]] == [at[0][1]] * 2
    assert at[1][0] == at[2][0]
    assert "attack accuracy, % (lower is better)" in svg.texts
    assert "accuracy, % (higher is better)" in svg.texts
    assert {"50", "60", "70", "80"} <= set(svg.texts)  # 0.5 is written 50
    assert "0.5" not in svg.texts
    assert {"purifier", "trial of the search"} <= set(svg.texts)
    assert not {"chosen", "95 % interval", "judged by held-out attackers"} & set(svg.texts)


def test_a_front_of_what_is_maximized_steps_the_other_way(tmp_path):
    ways = ("maximize", "minimize")
    values = VALUES[:, ::-1]
    other = Front("a", values, nondominated(values, ways))
    svg = drawn(
        draw_fronts([other], tmp_path / "f", **TITLES, directions=ways, percent=(False, True))
    )
    (step,) = svg.paths("step-0")
    at = [tuple(map(float, c.split())) for c in step.replace("M", "L").split("L")[1:]]
    assert at[0][0] == at[1][0]  # first up, then along
    assert "attack accuracy (higher is better)" in svg.texts
    assert "0.4" in svg.texts


def test_intervals_choice_judges_and_references_are_marked(tmp_path):
    low, high = VALUES - 0.02, VALUES + 0.02
    low[1, 1] = NAN
    judged = [
        Judged(1, (0.7, 0.69), (0.66, NAN), (0.74, NAN)),
        Judged(0, (0.5, 0.3)),  # as the search saw it: no arrow
        Judged(3, (0.95, 0.8)),
        Judged(4, (NAN, 0.6)),
    ]
    defense = front(
        low_N2=low, high_N2=high, chosen=1, judged=judged, references={"paper": (0.55, 0.6)}
    )
    plain = front("aeppt")
    svg = drawn(
        draw_fronts(
            [defense, plain], tmp_path / "fronts.svg", **TITLES, references={"none": (0.9, 0.85)}
        )
    )
    assert len(svg.paths("front-0-x-intervals")) == 3
    assert len(svg.paths("front-0-y-intervals")) == 2
    assert len(svg.paths("judged-0-x-intervals")) == 1
    assert "front-1-x-intervals" not in svg.groups
    assert svg.points("chosen-0") == [svg.points("front-0")[1]]
    assert "chosen-1" not in svg.groups
    assert len(svg.points("judged-0")) == 3
    arrows = {gid for gid in svg.groups if gid.startswith("fooled")}
    assert arrows == {"fooled-0-1", "fooled-0-3"}
    assert len(svg.points("reference-0-0")) == len(svg.points("reference-0")) == 1
    meanings = {"chosen", "95 % interval", "judged by held-out attackers"}
    assert {"paper (purifier)", "none", "purifier", "aeppt", *meanings} <= set(svg.texts)


def test_defenses_differ_in_colour_and_marker_and_labels_are_as_typed(tmp_path):
    assert len({(colour(n), marker(n)) for n in range(56)}) == 56
    names = ["$x_1$ <b> & co", "_hidden", "é"]
    svg = drawn(draw_fronts([front(name) for name in names], tmp_path / "v1.5", **TITLES))
    assert set(names) <= set(svg.texts)
    assert (tmp_path / "v1.5.svg").exists()
    styles = [next(svg.groups[f"front-{n}"].iter(f"{SVG}use")).attrib["style"] for n in range(3)]
    for n, style in enumerate(styles):
        assert colour(n).lower() in style


def test_history_marks_states_and_keeps_trials_without_a_value(tmp_path):
    states: list[State] = ["complete", "pruned", "failed", "complete", "pruned"]
    leak = [0.9, 0.8, NAN, 0.7, NAN]
    svg = drawn(
        draw_history(
            {"attack accuracy": leak, "loss": [1.0, NAN, NAN, 2.0, NAN]},
            {"attack accuracy": [0.9, 0.9, 0.9, 0.7, 0.7], "hypervolume": [NAN, 0, 0, 0.1, 0.1]},
            tmp_path / "history.png",
            states=states,
            percent=["attack accuracy"],
            numbers=[10, 11, 12, 13, 17],
        )
    )
    counts = {gid: len(svg.points(gid)) for gid in svg.groups if gid.endswith(("-0", "-without"))}
    marks = [counts.get(f"{state}-0", 0) for state in ("complete", "pruned", "failed")]
    assert marks == [2, 1, 0]
    assert (counts["pruned-0-without"], counts["failed-0-without"]) == (1, 1)
    assert (counts["pruned-1-without"], counts["failed-1-without"]) == (2, 1)
    foot = svg.points("pruned-0-without")[0][1]
    assert foot > max(y for _, y in svg.points("complete-0"))  # downwards: below all of them
    assert {"best-0", "best-2"} <= set(svg.groups)
    assert "best-1" not in svg.groups
    assert {"attack accuracy, %", "loss", "hypervolume", "trial", "10"} <= set(svg.texts)
    assert {"complete", "pruned", "failed", "best so far"} <= set(svg.texts)


def test_importances_are_bars_as_long_as_they_matter(tmp_path):
    shares = {
        "attack accuracy": {"epochs": 0.1, "swap_rate": 0.6, "width": 0.3},
        "accuracy": {"epochs": 0.2, "swap_rate": 0.0},
    }
    svg = drawn(draw_importances(shares, tmp_path / "importances"))
    order = ["swap_rate", "width", "epochs"]
    assert [text for text in svg.texts if text in order] == order
    lengths = {}
    for gid in (f"importance-{panel}-{row}" for panel in (0, 1) for row in range(3)):
        if gid in svg.groups:
            (bar,) = svg.paths(gid)
            across = [float(number) for number in bar.replace("L", "M").split("M")[1:][1].split()]
            start = [float(number) for number in bar.replace("L", "M").split("M")[1:][0].split()]
            lengths[gid] = across[0] - start[0]
    assert set(lengths) == {f"importance-{gid}" for gid in ("0-0", "0-1", "0-2", "1-0", "1-2")}
    unit = lengths["importance-0-0"] / 0.6
    assert lengths["importance-0-1"] == pytest.approx(0.3 * unit, abs=0.01)
    assert lengths["importance-1-2"] == pytest.approx(0.2 * unit, abs=0.01)  # panels share a scale
    assert {"attack accuracy", "accuracy", "importance, %", " 60", " 0"} <= set(svg.texts)


def test_parallel_lines_break_where_a_parameter_is_missing(tmp_path):
    columns = [
        Column("weight", [0.01, 1.0, 100.0, 1.0, 1.0], log=True),
        Column("swapper", [True, False, True, False, True]),
        Column("swap_rate", [0.2, None, 0.4, None, 0.3]),
        Column("optimizer", ["sgd", "adam", "adam", "adam", "sgd"], levels=("sgd", "adam")),
        Column("epochs", [5, 5, 5, 5, None]),
    ]
    objective = [0.7, 0.6, 0.5, NAN, 0.65]
    svg = drawn(
        draw_parallel(columns, objective, tmp_path / "p", title="attack accuracy", percent=True)
    )
    breaks = [svg.paths(f"trial-{n}")[0].count("M") for n in range(5)]
    assert breaks == [1, 2, 1, 2, 1]
    ends = {n: len(svg.points(f"ends-{n}")) for n in range(5) if f"ends-{n}" in svg.groups}
    assert {n: count for n, count in ends.items() if count} == {1: 2, 3: 2, 4: 1}
    first = svg.paths("trial-1")[0].split("L")[0]
    middle = float(first.split()[2] if first.split()[0] == "M" else first.split()[1])
    (axis,) = svg.paths("axis-0")
    heights = [float(part.split()[1]) for part in axis.replace("M", "").split("L")]
    assert middle == pytest.approx(sum(heights) / 2, abs=0.01)  # 1 is half way from 0.01 to 100
    for text in ("weight", "swapper", "0.01", "100", "true", "false", "sgd", "adam", "5", "0.4"):
        assert text in svg.texts
    assert "attack accuracy, % (lower is better)" in svg.texts
    assert "grey: trials without a value" in svg.texts
    lines = [gid for gid in svg.groups if gid.startswith("trial-")]
    assert lines == ["trial-3", "trial-0", "trial-4", "trial-1", "trial-2"]  # the best on top


def test_what_cannot_be_drawn_is_told(tmp_path):
    path = tmp_path / "figure"
    nothing = Front("a", np.full((2, 2), NAN), np.zeros(2, dtype=bool))
    for fronts in ([], [nothing]):
        with pytest.raises(ValueError, match="figure: no trial has both values"):
            draw_fronts(fronts, path, **TITLES)
    with pytest.raises(ValueError, match="there are no trials"):
        draw_history({}, {}, path, states=[])
    with pytest.raises(ValueError, match=r"loss has shape \[1\]; give a value for each of the 2"):
        draw_history({"loss": [1.0]}, {}, path, states=["complete", "failed"])
    with pytest.raises(ValueError, match="no parameter has an importance"):
        draw_importances({"loss": {}}, path)
    with pytest.raises(ValueError, match="no trials with parameters"):
        draw_parallel([], [1.0], path, title="loss")
    for column, fault in [
        (Column("w", [1.0, 0.0], log=True), "w has the value 0, .* numbers above 0 or log=False"),
        (Column("w", [1.0, float("inf")]), "w has the value inf, .* give finite numbers"),
        (Column("w", [1.0]), "w has 1 values for 2 trials"),
        (Column("w", [1, True], levels=[1]), "w has the value True, .* none of its levels: 1"),
    ]:
        with pytest.raises(ValueError, match=fault):
            draw_parallel([column], [1.0, 2.0], path, title="loss")
    assert not list(tmp_path.iterdir())


def test_the_barest_data_is_drawn_without_a_warning(tmp_path, recwarn):
    one = Front(
        "a", np.array([[0.5, 0.5]]), np.array([True]), judged=[Judged(0, (0.5, 0.5 + 1e-9))]
    )
    draw_fronts([one], tmp_path / "fronts", **TITLES)
    empty = Front("b", np.empty((0, 2)), np.empty(0, dtype=bool), references={"paper": (0.5, 0.5)})
    draw_fronts([empty], tmp_path / "fronts", **TITLES)
    draw_history({"loss": [NAN]}, {}, tmp_path / "history", states=["failed"])
    draw_importances({"loss": {"epochs": 0.0}}, tmp_path / "importances")
    missing = [Column("a", [None]), Column("b", [1]), Column("c", ["x"])]
    draw_parallel(missing, [NAN], tmp_path / "parallel", title="loss")
    draw_parallel(missing[1:2], [1.0], tmp_path / "parallel", title="loss", direction="maximize")
    assert [str(warning.message) for warning in recwarn] == []
    assert len(list(tmp_path.iterdir())) == 8
