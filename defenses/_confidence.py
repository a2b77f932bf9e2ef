"""What defenses demand of confidences before they change them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["checked", "checked_distribution"]

_SUM_TOLERANCE = 1e-6


def checked(confidence: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    """The confidences as float64 [N, C], which may be the caller's own array.

    Raises:
        ValueError: if they are not [N, C] or a value is NaN, infinite or negative.
    """
    c_NC = np.asarray(confidence, dtype=np.float64)
    if c_NC.ndim != 2 or c_NC.shape[1] != num_classes:
        raise ValueError(
            f"confidences have shape {list(c_NC.shape)}, the defense was fitted for "
            f"[N, {num_classes}]; ask the model it was fitted around"
        )
    _refuse(~np.isfinite(c_NC), c_NC, "the model's scores must be finite")
    _refuse(c_NC < 0, c_NC, "give the model's softmax, not its logits")
    return c_NC


def checked_distribution(confidence: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    """As `checked`, for a defense whose algorithm needs rows that are distributions.

    Raises:
        ValueError: also if a row's sum is more than 1e-6 from 1.
    """
    c_NC = checked(confidence, num_classes)
    sum_N = c_NC.sum(axis=1)
    off = np.abs(sum_N - 1) > _SUM_TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise ValueError(
            f"confidences of row {row} sum to {sum_N[row]:.9g}, not to 1; give the model's "
            "softmax, and in a chain put defenses that do not renormalise after this one"
        )
    return c_NC


def _refuse(bad_NC: NDArray[np.bool_], c_NC: NDArray[np.float64], remedy: str) -> None:
    if bad_NC.any():
        row, label = (int(i) for i in np.argwhere(bad_NC)[0])
        raise ValueError(f"confidence of row {row}, class {label} is {c_NC[row, label]}; {remedy}")
