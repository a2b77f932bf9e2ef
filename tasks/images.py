"""How alike a record and its reconstruction are: pixels, structure, identity."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["cosine_similarity", "mse", "reidentified", "ssim"]

Floats = NDArray[np.float64]

# Window, deviation and constants of Wang et al. 2004.
_WINDOW = 11
_DEVIATION = 1.5
_K1, _K2 = 0.01, 0.03
# Numbers held at once by each of a few arrays: 32 MB.
_AT_ONCE = 2**22


def mse(true: NDArray[Any], rebuilt: NDArray[Any], *, std: ArrayLike = 1.0) -> Floats:
    """Mean squared error of each record, over all of its pixels, channels or features.

    In units normalised by a mean and a deviation the mean cancels, so only the deviation is asked
    for: it divides the error before it is squared. For CIFAR-10, which is customarily normalised
    by (0.2023, 0.1994, 0.2010), that multiplies the error in [0, 1] by about 25.

    Args:
        true: [N, ...] records.
        rebuilt: [N, ...], likewise.
        std: deviation of all, or of each channel of images, or of each feature: one number, or
            as many as the second axis is long; above 0.

    Returns:
        float64 [N].

    Raises:
        ValueError: if shapes do not fit or a deviation is not above 0.
    """
    _alike(true, rebuilt)
    std_C = np.asarray(std, dtype=np.float64)
    if not (std_C > 0).all():
        raise ValueError(f"std is {std_C.tolist()}; a deviation must be above 0")
    if std_C.ndim and std_C.shape != true.shape[1:2]:
        raise ValueError(
            f"std has shape {list(std_C.shape)}, records {list(true.shape[1:])}; give one number, "
            "or one for each channel or feature"
        )
    scale = std_C.reshape(std_C.shape + (1,) * (true.ndim - 2)) if std_C.ndim else std_C
    error_N = np.empty(len(true))
    for part in _parts(true):
        difference = (np.asarray(rebuilt[part], dtype=np.float64) - true[part]) / scale
        error_N[part] = np.square(difference).reshape(len(difference), -1).mean(axis=1)
    return error_N


def ssim(true: NDArray[Any], rebuilt: NDArray[Any]) -> Floats:
    """Structural similarity of each image with its reconstruction.

    Means, variances and covariance are weighted by a Gaussian window of 11x11 pixels with
    deviation 1.5, at every place where it lies within the image; the index is averaged over these
    places and over channels. For images under 11 pixels high or wide the window shrinks to the
    largest odd size that fits; of 1x1 pixel it compares brightness only.

    Args:
        true: [N, channels, height, width] images with pixels in [0, 1].
        rebuilt: likewise.

    Returns:
        float64 [N] in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: if shapes differ or records are no images.

    Source: Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to
        Structural Similarity", IEEE Transactions on Image Processing 2004, equations 13 (the
        index), 14 to 16 (the weighted moments) and 17 (the average), with K1 = 0.01, K2 = 0.03
        and range L = 1. Their images are grey; the average over channels is ours.
    """
    _alike(true, rebuilt)
    if true.ndim != 4:
        raise ValueError(
            f"records have shape {list(true.shape[1:])}; structural similarity is of images "
            "[channels, height, width]"
        )
    height, width = true.shape[2:]
    down, across = _blur(height, min(height, width)), _blur(width, min(height, width))

    def local(image: Floats) -> Floats:
        return down @ image @ across.T

    c1, c2 = _K1**2, _K2**2
    ssim_N = np.empty(len(true))
    for part in _parts(true):
        x, z = (np.asarray(images[part], dtype=np.float64) for images in (true, rebuilt))
        mean_x, mean_z = local(x), local(z)
        variance_x = local(x * x) - mean_x**2
        variance_z = local(z * z) - mean_z**2
        covariance = local(x * z) - mean_x * mean_z
        index = (2 * mean_x * mean_z + c1) * (2 * covariance + c2)
        index /= (mean_x**2 + mean_z**2 + c1) * (variance_x + variance_z + c2)
        ssim_N[part] = index.mean(axis=(1, 2, 3))
    return ssim_N


def _blur(size: int, smallest: int) -> Floats:
    """Matrix [places, size] that takes Gaussian-weighted means at all places of the window."""
    window = min(_WINDOW, smallest - 1 + smallest % 2)
    weight = np.exp(-0.5 * ((np.arange(window) - window // 2) / _DEVIATION) ** 2)
    blur = np.zeros((size - window + 1, size))
    for place, row in enumerate(blur):
        row[place : place + window] = weight / weight.sum()
    return blur


def cosine_similarity(true_NF: NDArray[Any], rebuilt_NF: NDArray[Any]) -> Floats:
    """Cosine of the angle between what a network makes of each record and of its reconstruction.

    Args:
        true_NF: [N, F] features of the records, by a network that had no part in the attack.
        rebuilt_NF: [N, F] features of their reconstructions, by the same one.

    Returns:
        float64 [N] in [-1, 1]; 0 where features are all 0.

    Raises:
        ValueError: if shapes differ.
    """
    _alike(true_NF, rebuilt_NF)
    cosine_N: Floats = np.einsum("nf,nf->n", _unit(true_NF), _unit(rebuilt_NF))
    return np.clip(cosine_N, -1.0, 1.0)


def reidentified(
    rebuilt_NF: NDArray[Any],
    identity: NDArray[np.int64],
    gallery_MF: NDArray[Any],
    gallery_identity: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the gallery's picture most like a reconstruction shows the right person (top-1).

    Most alike is the largest cosine of features, the first of equal ones. Reconstructions that
    are all the same are right for one person's records, which is chance. Pictures in the gallery
    should be others than the records themselves, to tell whether a person is recognised and not
    a picture.

    Args:
        rebuilt_NF: [N, F] features of reconstructions, by a frozen identity network.
        identity: [N], whom they should show.
        gallery_MF: [M, F] features of pictures of known people, by the same network.
        gallery_identity: [M], whom these show.

    Returns:
        bool [N]; the mean is the re-identification rate.

    Raises:
        ValueError: if the gallery is empty or shapes do not fit.
    """
    if rebuilt_NF.shape[1:] != gallery_MF.shape[1:] or not len(gallery_MF):
        raise ValueError(
            f"the gallery's features have shape {list(gallery_MF.shape)}, the reconstructions' "
            f"{list(rebuilt_NF.shape)}; give at least one picture, with as many features"
        )
    if len(identity) != len(rebuilt_NF) or len(gallery_identity) != len(gallery_MF):
        raise ValueError(
            f"{len(identity)} identities for {len(rebuilt_NF)} reconstructions, "
            f"{len(gallery_identity)} for {len(gallery_MF)} pictures; each needs one"
        )
    gallery_FM = _unit(gallery_MF).T
    nearest_N = np.empty(len(rebuilt_NF), dtype=np.int64)
    step = max(1, _AT_ONCE // len(gallery_MF))
    for start in range(0, len(rebuilt_NF), step):
        part = slice(start, start + step)
        nearest_N[part] = np.argmax(_unit(rebuilt_NF[part]) @ gallery_FM, axis=1)
    right_N: NDArray[np.bool_] = np.asarray(gallery_identity)[nearest_N] == identity
    return right_N


def _unit(feature_NF: NDArray[Any]) -> Floats:
    """Features of length 1, or 0."""
    feature_NF = np.asarray(feature_NF, dtype=np.float64)
    length_N1 = np.linalg.norm(feature_NF, axis=1, keepdims=True)
    return feature_NF / np.where(length_N1 > 0, length_N1, 1.0)


def _alike(true: NDArray[Any], rebuilt: NDArray[Any]) -> None:
    if true.shape != rebuilt.shape or true.ndim < 2:
        raise ValueError(
            f"records have shape {list(true.shape)}, reconstructions {list(rebuilt.shape)}; they "
            "must be alike, [N, ...]"
        )


def _parts(records: NDArray[Any]) -> list[slice]:
    """Pieces of the records that fit in memory."""
    step = max(1, _AT_ONCE // max(1, int(np.prod(records.shape[1:]))))
    return [slice(start, start + step) for start in range(0, len(records), step)]
