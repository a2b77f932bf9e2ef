"""Softer, sharper or calibrated confidences."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from defenses._confidence import checked_distribution
from defenses.base import Defense, Noise, Setting

__all__ = ["Temperature"]

_COLDEST, _HOTTEST = 0.01, 100.0


class Temperature(Defense):
    """Divide the logits by one temperature before the softmax.

    Order and label are kept: float64 can tie scores that were a rounding error apart, but never
    the label with another class.

    Source: Shokri et al., "Membership Inference Attacks Against Machine Learning Models", S&P
        2017, section VIII (temperatures 1, 5 and 20). Calibration: Guo et al., "On Calibration of
        Modern Neural Networks", ICML 2017, section 4.2, on held-out reference records.
    """

    VERSION: ClassVar[int] = 1

    temperature: float | None = Field(
        None,
        ge=_COLDEST,
        description="flattens (>1) or sharpens (<1); None: calibrated, the least cross-entropy "
        "of the true labels on the validation part of the reference",
    )

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Calibrate the temperature unless it is given.

        Returns:
            `temperature`, within 0.01 to 100 if calibrated; `num_classes`.

        Raises:
            ValueError: if there is nothing to calibrate on.
        """
        temperature = self.temperature
        if temperature is None:
            val = setting.reference.val
            if not len(val):
                raise ValueError(
                    "the reference has no validation records to calibrate on; enlarge the "
                    "reference split or set temperature"
                )
            c_NC = checked_distribution(setting.answer(val.x), setting.num_classes)
            temperature = _calibrated(c_NC, val.y)
        return {
            "temperature": np.array(temperature, dtype=np.float64),
            "num_classes": np.array(setting.num_classes),
        }

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Tempered confidences [N, C], rows sum to 1.

        Raises:
            ValueError: if a row is not a distribution over the classes fitted for.
        """
        c_NC = checked_distribution(confidence, int(state["num_classes"]))
        released_NC = np.exp(_log_tempered(c_NC, float(state["temperature"])))
        label_N = c_NC.argmax(axis=1)
        tied = np.flatnonzero(released_NC.argmax(axis=1) != label_N)
        released_NC[tied, label_N[tied]] = np.nextafter(released_NC[tied].max(axis=1), 2)
        return released_NC


def _log_tempered(c_NC: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    # Log confidences are logits up to a constant, as long as nothing above float64's own limit is
    # cut: at temperature 20 a score of 1e-30 is worth 8 times less than one of 1e-12.
    z_NC = np.log(c_NC.clip(min=np.finfo(np.float64).tiny))
    tempered_NC: NDArray[np.float64] = log_softmax(z_NC / temperature, axis=1)
    return tempered_NC


def _calibrated(c_NC: NDArray[np.float64], y_N: NDArray[np.int64]) -> float:
    def cross_entropy(log_temperature: float) -> float:
        log_p_NC = _log_tempered(c_NC, float(np.exp(log_temperature)))
        return -float(log_p_NC[np.arange(len(y_N)), y_N].mean())

    # Convex in 1 / temperature, so there is one valley in log temperature too.
    bounds = np.log(_COLDEST), np.log(_HOTTEST)
    best = float(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x)
    # Answers that are all right and saturated leave a plain without a valley: keep them.
    return 1.0 if cross_entropy(0.0) <= cross_entropy(best) else float(np.exp(best))
