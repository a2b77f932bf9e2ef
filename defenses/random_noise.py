"""Gaussian noise on the released confidences."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from defenses._confidence import checked_distribution
from defenses.base import Defense, Noise, Setting

__all__ = ["RandomNoise"]

_LARGEST_SIGMA = 16.0  # beyond 3 clipped and renormalised noise is all there is, whatever sigma
_BISECTIONS = 16
_CALIBRATION_ROWS, _CALIBRATION_DRAWS = 20_000, 1_000_000


class RandomNoise(Defense):
    """Add Gaussian noise to every score, clip at 0, renormalise, and put the label back on top.

    Where the noise has made another class the largest, its score and the label's are exchanged. A
    row of which clipping leaves nothing becomes the one-hot vector of its label.

    Source: PURIFIER section 5.4, the baseline of table 5, which gives no law; ours keeps the
        label because the accuracies of that table are the undefended ones. The default size is
        to be about that of PURIFIER's own changes, so that what differs is their direction.
    """

    VERSION: ClassVar[int] = 1
    NOISE: ClassVar[Mapping[str, str]] = {
        "paper": "fresh",
        "sound": "per_input",
        "cpu": "per_input",
    }

    sigma: float | None = Field(
        None,
        ge=0,
        description="standard deviation of the noise; None: chosen on the validation part of the "
        "reference for a mean distortion of `l1`",
    )
    l1: float = Field(
        0.4,
        gt=0,
        lt=2,
        description="mean L1 distortion sought if sigma is None; for a comparison, set it to that "
        "measured for PURIFIER",
    )

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """Field values of a preset: two classes get half the distortion.

        Half of the noise on two saturated scores only confirms the label: about 0.24 is the most.
        """
        return {"l1": 0.2} if num_classes == 2 else {}

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Choose sigma unless it is given.

        Returns:
            `sigma` and `num_classes`.

        Raises:
            ValueError: if there is nothing to choose it on, or no sigma distorts as much as `l1`.
        """
        sigma = self.sigma
        if sigma is None:
            x = setting.reference.val.x
            if not len(x):
                raise ValueError(
                    "the reference has no validation records to choose sigma on; enlarge the "
                    "reference split or set sigma"
                )
            c_NC = checked_distribution(setting.answer(x), setting.num_classes)
            sigma = _calibrated(c_NC, self.l1, seed)
        return {
            "sigma": np.array(sigma, dtype=np.float64),
            "num_classes": np.array(setting.num_classes),
        }

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Noisy confidences [N, C] with the label of the true ones, rows sum to 1.

        Raises:
            ValueError: if a row is not a distribution over the classes fitted for.
        """
        c_NC = checked_distribution(confidence, int(state["num_classes"]))
        return _noisy(c_NC, float(state["sigma"]) * noise.normal(c_NC.shape))


def _noisy(c_NC: NDArray[np.float64], noise_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    row_N, label_N = np.arange(len(c_NC)), c_NC.argmax(axis=1)
    released_NC: NDArray[np.float64] = (c_NC + noise_NC).clip(min=0)
    empty_N = ~released_NC.any(axis=1)
    released_NC[empty_N, label_N[empty_N]] = 1
    released_NC /= released_NC.sum(axis=1, keepdims=True)
    top_N = released_NC.argmax(axis=1)
    own_N = released_NC[row_N, label_N]
    released_NC[row_N, label_N] = released_NC[row_N, top_N]
    moved_N = top_N != label_N
    released_NC[row_N[moved_N], top_N[moved_N]] = own_N[moved_N]
    # An exchange of equals has changed nothing: an earlier class can still tie with the label.
    tied = np.flatnonzero(released_NC.argmax(axis=1) != label_N)
    released_NC[tied, label_N[tied]] = np.nextafter(released_NC[tied].max(axis=1), 2)
    return released_NC


def _calibrated(c_NC: NDArray[np.float64], l1: float, seed: int) -> float:
    """The sigma whose mean L1 distortion of these confidences is `l1`, by bisection."""
    # Few records are taken again with other noise, until the mean is good to about 1 %.
    num_rows = min(_CALIBRATION_ROWS, _CALIBRATION_DRAWS // c_NC.shape[1])
    c_NC = np.tile(c_NC, (max(1, round(num_rows / len(c_NC))), 1))
    # The same normals for every sigma, or the distortion would jump about while it is searched.
    xi_NC = np.random.default_rng([seed, *b"random_noise.sigma"]).normal(size=c_NC.shape)

    def distortion(sigma: float) -> float:
        return float(np.abs(_noisy(c_NC, sigma * xi_NC) - c_NC).sum(axis=1).mean())

    low: float = 0.0
    high: float = l1 / (8 * c_NC.shape[1])
    reached = {high: distortion(high)}
    # With few classes it falls again at large sigma, so the smallest that is enough is sought.
    while reached[high] < l1:
        if high > _LARGEST_SIGMA:
            best = max(reached, key=lambda sigma: reached[sigma])
            raise ValueError(
                f"l1 is {l1}, but noise changes these answers by at most about "
                f"{reached[best]:.3g} (at sigma {best:.3g}); lower l1, or set sigma"
            )
        low, high = high, 2 * high
        reached[high] = distortion(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if distortion(middle) < l1 else (low, middle)
    return high
