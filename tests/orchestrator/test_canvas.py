"""How figures are written: labels that do not cover each other, the same bytes everywhere."""

import hashlib
import os
import subprocess
import sys

import numpy as np

from orchestrator._canvas import drawing, label_points
from orchestrator.figures_tune import Column, Front, draw_fronts, draw_parallel


def test_labels_of_points_that_coincide_do_not_cover_each_other():
    with drawing(6.0) as figure:
        axes = figure.subplots()
        at = [(0.5, 0.5), (0.5, 0.5), (0.502, 0.5), (1.0, 1.0), (0.0, 0.0), (1.0, 0.5)]
        axes.plot(*np.transpose(at), "o")
        label_points(axes, [(f"the label {n}", one, "black") for n, one in enumerate(at)], at, "l")
        frame = axes.get_window_extent()
        boxes = [text.get_window_extent() for text in axes.texts]
        dots = axes.transData.transform(at)
    assert len(boxes) == 6
    for n, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:n])
        assert not any(box.contains(*dot) for dot in dots)


AGAIN = """
import hashlib, sys
from pathlib import Path
import numpy as np
from orchestrator.figures_tune import Column, Front, draw_fronts, draw_parallel
assert "matplotlib" not in sys.modules, "only those who draw pay for matplotlib"
import matplotlib
matplotlib.rcParams["font.size"] = 30  # as a user's matplotlibrc may
front = Front("a", np.array([[0.5, 0.5], [0.6, 0.7]]), np.array([True, True]), chosen=1)
paths = draw_fronts([front], Path(sys.argv[1]) / "f", x_title="x", y_title="y")
columns = [Column("a", [1, 2]), Column("b", ["u", None])]
paths += draw_parallel(columns, [1.0, 2.0], Path(sys.argv[1]) / "p", title="t")
assert "matplotlib.pyplot" not in sys.modules, "pyplot keeps figures, and wants a screen"
assert matplotlib.rcParams["font.size"] == 30, "a figure's style is its own"
for path in paths:
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_equal_data_gives_equal_bytes_in_any_process_without_pyplot(tmp_path):
    one = Front("a", np.array([[0.5, 0.5], [0.6, 0.7]]), np.array([True, True]), chosen=1)
    paths = draw_fronts([one], tmp_path / "f", x_title="x", y_title="y")
    columns = [Column("a", [1, 2]), Column("b", ["u", None])]
    paths += draw_parallel(columns, [1.0, 2.0], tmp_path / "p", title="t")
    here = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    ran = subprocess.run(
        [sys.executable, "-c", AGAIN, str(tmp_path / "again")],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == here
    assert all(b"date" not in path.read_bytes().lower() for path in paths[::2])  # of the SVGs
