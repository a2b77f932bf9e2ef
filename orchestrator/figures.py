"""Rebuilt records of an experiment as images: what each defense leaves to be seen."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan import Cell, Plan
from orchestrator.resume import Store
from storage.artifacts import ArtifactDamaged, ArtifactMissing, write_whole
from tasks.image_grid import image_grid, row_tops

__all__ = ["inversion_figures", "kept_images", "labelled_grid"]

_LETTERS = 14  # height of labels in pixels
_MARGIN = 8


def inversion_figures(plan: Plan, store: Store) -> list[Path]:
    """Draw the same records under every defense, a file for each dataset and seed.

    The first row is the originals, members left of the others; below it is a row for each attack
    on each defense. What is not done yet, or keeps no images, is left out.

    Returns:
        The PNG files written, `images/DATASET-SEED.png` in the folder of the experiment.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    places: dict[tuple[str, int], list[Cell]] = {}
    for cell in plan.cells:
        if cell.kind == "inversion":
            places.setdefault((cell.dataset, cell.seed), []).append(cell)
    written = []
    for (dataset, seed), cells in places.items():
        found = [(cell, arrays) for cell in cells if (arrays := _examples(store, cell))]
        if not found:
            continue
        several = len({cell.attack for cell in cells}) > 1
        first = found[0][1]
        rows = {"original": first["original"]}
        for cell, arrays in found:
            label = f"{cell.label}, {cell.attack}" if several else cell.label
            rows[label] = arrays["rebuilt"]
        path = store.experiment(plan.experiment.name) / "images" / f"{dataset}-{seed}.png"
        write_whole(path, labelled_grid(rows, first["is_member"]))
        written.append(path)
    return written


def kept_images(store: Store, key: str) -> bytes:
    """The images that a task kept, as a PNG file: originals above their reconstructions.

    Raises:
        ValueError: if it kept none, or they are not there any more.
    """
    try:
        return store.artifacts.open(key).image("examples")
    except ArtifactMissing:
        raise ValueError(
            f"task {key[:12]} keeps no images; attacks that rebuild images do: sfumato query "
            "'select label, attack, task_key from inversion'"
        ) from None
    except ArtifactDamaged as damage:
        raise ValueError(str(damage)) from None


def labelled_grid(rows: Mapping[str, NDArray[np.uint8]], is_member: NDArray[np.bool_]) -> bytes:
    """Rows of images under each other, each with its label at the left, as a PNG file.

    Args:
        rows: label -> images uint8 [K, channels, H, W], all of one shape.
        is_member: [K]; members stand left.
    """
    from PIL import Image, ImageDraw, ImageFont  # here, as most runs draw nothing

    images = list(rows.values())
    grid = image_grid(images, is_member)
    font = ImageFont.load_default(_LETTERS)
    wide = 2 * _MARGIN + max(int(font.getlength(label)) for label in rows)
    head = _LETTERS + 2 * _MARGIN
    canvas = Image.new("RGB", (wide + grid.shape[1], head + grid.shape[0]), "white")
    canvas.paste(Image.fromarray(grid), (wide, head))
    draw = ImageDraw.Draw(canvas)
    num = int(is_member.sum())
    title = f"{num} members, {len(is_member) - num} nonmembers"
    draw.text((wide + _MARGIN, _MARGIN), title, fill="black", font=font)
    for label, top in zip(rows, row_tops(len(rows), images[0].shape), strict=True):
        draw.text((_MARGIN, head + int(top)), label, fill="black", font=font)
    sink = io.BytesIO()
    canvas.save(sink, "PNG")
    return sink.getvalue()


def _examples(store: Store, cell: Cell) -> dict[str, NDArray[Any]]:
    """The examples an attack kept; none where there are none."""
    try:
        return store.artifacts.open(cell.task.key).arrays("examples")
    except (ArtifactMissing, ArtifactDamaged):
        return {}
