"""The value that most of a released row's scores share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["modal_off_class"]


def modal_off_class(
    released: NDArray[Any], resolution: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The most frequent score above zero of each row, its first largest one left out.

    Scores are counted in bins around the multiples of `resolution`, those around zero not at all.
    Of equally frequent bins the lowest is taken.

    Args:
        released: finite [N, C], as released. Not modified.
        resolution: width of a bin, above 0.

    Returns:
        The least score in each row's fullest bin, float64 [N], and how many are in it, int64 [N];
        both 0 where no score is above zero but the largest.

    Source: methods.md section 6.12-f ("histogram of the K scores at 1e-6 resolution").
    """
    off_NC = np.array(released, dtype=np.float64)
    row_N = np.arange(len(off_NC))
    off_NC[row_N, off_NC.argmax(axis=1)] = 0.0
    off_NC.sort(axis=1)
    bin_NC = np.round(off_NC / resolution)
    is_first_NC = np.ones(off_NC.shape, dtype=bool)
    is_first_NC[:, 1:] = bin_NC[:, 1:] != bin_NC[:, :-1]
    place_C = np.arange(off_NC.shape[1])
    first_NC = np.maximum.accumulate(np.where(is_first_NC, place_C, 0), axis=1)
    count_NC = np.where(bin_NC > 0, place_C - first_NC + 1, 0)
    # The first place that has the largest count ends the lowest of the fullest bins.
    end_N = count_NC.argmax(axis=1)
    count_N = count_NC[row_N, end_N]
    least_N = off_NC[row_N, first_NC[row_N, end_N]]
    return np.where(count_N > 0, least_N, 0.0), count_N.astype(np.int64)
