"""Several rows of images as one image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["image_grid", "row_tops"]

GAP = 2  # white pixels between images; twice as many around, thrice more between the two sides
_SMALL = 64  # images are enlarged by a whole number to about this many pixels


def image_grid(
    rows: Sequence[NDArray[np.uint8]], is_member: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Originals above their reconstructions, say: a row for each of `rows`.

    Args:
        rows: images uint8 [K, channels, H, W] each, channels 1 or 3, of one size.
        is_member: [K]; members stand left, a gap apart from the others.

    Returns:
        uint8 [height, width, 3], small images enlarged.
    """
    factor = _factor(rows[0].shape)
    order = np.argsort(~is_member, kind="stable")
    high, wide = (factor * side for side in rows[0].shape[2:])
    left = 2 * GAP + np.arange(len(order)) * (wide + GAP) + np.where(is_member[order], 0, 3 * GAP)
    tops = row_tops(len(rows), rows[0].shape)
    canvas = np.full((int(tops[-1]) + high + 2 * GAP, int(left[-1]) + wide + 2 * GAP, 3), 255)
    for top, images in zip(tops, rows, strict=True):
        large = images.repeat(factor, axis=2).repeat(factor, axis=3).transpose(0, 2, 3, 1)
        for image, start in zip(large[order], left, strict=True):
            canvas[top : top + high, start : start + wide] = image
    return canvas.astype(np.uint8)


def row_tops(num_rows: int, shape: Sequence[int]) -> NDArray[np.int64]:
    """Where each row of a grid of images [K, channels, H, W] begins."""
    return 2 * GAP + np.arange(num_rows) * (_factor(shape) * shape[2] + GAP)


def _factor(shape: Sequence[int]) -> int:
    return max(1, round(_SMALL / shape[2]))
