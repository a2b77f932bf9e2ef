"""Inputs made up by an attacker, which no model was trained on.

Records are [N, ...] float32; what comes back is float32 of the same shape and never the argument
itself.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve, correlate1d

from attacks.base import Kind

__all__ = ["Operator", "edges", "gaussian_noise", "random_inputs", "salt_pepper", "shuffled"]

Floats = NDArray[np.float32]
Operator = Literal["sobel", "scharr", "laplace"]

_SMOOTH = {"sobel": (1.0, 2.0, 1.0), "scharr": (3.0, 10.0, 3.0)}
_LAPLACE = np.array([[2.0, 0.0, 2.0], [0.0, -8.0, 0.0], [2.0, 0.0, 2.0]])


def edges(x: NDArray[Any], operator: Operator) -> Floats:
    """Edge images: each channel filtered by itself, edges reflected, absolute values up to 1.

    Sobel and Scharr give the mean of the two directions' absolute values.

    Args:
        x: [N, channels, height, width] in [0, 1].
        operator: the 3x3 filter, with the weights and the scale of OpenCV.

    Raises:
        ValueError: if the records are no images.
    """
    _check_images(x, operator)
    image = np.asarray(x, dtype=np.float64)
    if operator == "laplace":
        return _up_to_one(convolve(image, _LAPLACE[None, None], mode="mirror"))
    derivative, smooth = (-1.0, 0.0, 1.0), _SMOOTH[operator]
    parts = []
    for along, across in ((-1, -2), (-2, -1)):
        part = correlate1d(image, derivative, axis=along, mode="mirror")
        parts.append(_up_to_one(correlate1d(part, smooth, axis=across, mode="mirror")))
    return (parts[0] + parts[1]) / np.float32(2)


def _up_to_one(filtered: NDArray[np.float64]) -> Floats:
    return np.minimum(np.abs(filtered), 1.0).astype(np.float32)


def _check_images(x: NDArray[Any], what: str) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"{what} is for images [channels, height, width]; the records have shape "
            f"{list(x.shape[1:])}"
        )


def gaussian_noise(x: NDArray[Any], variance: float, rng: np.random.Generator) -> Floats:
    """Pixels in [0, 1] with independent normal noise, clipped to [0, 1]."""
    noise = rng.normal(scale=np.sqrt(variance), size=x.shape)
    return np.clip(x + noise, 0.0, 1.0).astype(np.float32)


def salt_pepper(x: NDArray[Any], share: float, rng: np.random.Generator) -> Floats:
    """Images with a share of the pixels black and as many white, in all channels at once."""
    _check_images(x, "salt_pepper")
    drawn = rng.random((len(x), 1, *x.shape[2:]))
    noisy = np.where(drawn < share, 0.0, np.where(drawn > 1.0 - share, 1.0, x))
    return noisy.astype(np.float32)


def shuffled(x: NDArray[Any], rng: np.random.Generator) -> Floats:
    """Records each of whose features is that of a random record: every column permuted by itself.

    Each column keeps its values, and what columns have to do with one another is lost.
    """
    flat = np.array(x, dtype=np.float32).reshape(len(x), int(np.prod(x.shape[1:])))
    return rng.permuted(flat, axis=0).reshape(x.shape)


def random_inputs(kind: Kind, like: NDArray[Any], num: int, rng: np.random.Generator) -> Floats:
    """Inputs uniform in the space of the records: pixels, bits, or numbers in the column's range.

    Args:
        kind: of the records.
        like: [M, ...] records; their shape, and for "continuous" the range of each column.
        num: how many to make.
        rng: draws them.
    """
    shape = (num, *like.shape[1:])
    if kind == "binary":
        return rng.integers(2, size=shape).astype(np.float32)
    if kind == "image":
        return rng.random(shape).astype(np.float32)
    low, high = like.min(axis=0), like.max(axis=0)
    made: Floats = (low + rng.random(shape) * (high - low)).astype(np.float32)
    return made
