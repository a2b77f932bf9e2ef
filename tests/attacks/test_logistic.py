"""What is true of the regression of membership on a few numbers."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from attacks._logistic import log_odds


def records(num: int, seed: int) -> tuple[Any, Any]:
    """A fifth members, whose features of other scales lie higher."""
    rng = np.random.default_rng(seed)
    is_member = np.arange(num) % 5 == 0
    feature = rng.normal(size=(num, 3)) + is_member[:, None] * [1.0, 0.5, 0.0]
    return feature * [1e-4, 1.0, 1e3] + [0.0, 7.0, -1e3], is_member


@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0])
def test_is_the_balanced_penalised_regression(inverse_penalty: float) -> None:
    """Its minimum, found anew without gradients."""
    (fit, is_member), (judged, _) = records(200, 0), records(50, 1)
    mean, deviation = fit.mean(axis=0), fit.std(axis=0)
    z = (fit - mean) / deviation
    sign = np.where(is_member, 1.0, -1.0)
    share = np.where(is_member, 0.2, 0.8)

    def loss(w: Any) -> float:
        cross_entropy = np.logaddexp(0.0, -sign * (z @ w[:3] + w[3])) / (2 * share)
        return float(inverse_penalty * cross_entropy.sum() + 0.5 * (w[:3] ** 2).sum())

    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 10_000, "maxfev": 10_000}
    best = minimize(loss, np.zeros(4), method="Nelder-Mead", options=options).x
    found = log_odds(fit, is_member, judged, inverse_penalty=inverse_penalty)
    expected = (judged - mean) / deviation @ best[:3] + best[3]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_units_do_not_matter_and_equal_rows_are_judged_alike() -> None:
    (fit, is_member), (judged, _) = records(300, 0), records(1001, 1)
    first = log_odds(fit, is_member, judged, inverse_penalty=1.0)
    second = log_odds(1e6 * fit + 1, is_member, 1e6 * judged + 1, inverse_penalty=1.0)
    np.testing.assert_allclose(first, second, atol=1e-4)
    twice = log_odds(fit, is_member, np.repeat(judged, 3, axis=0), inverse_penalty=1.0)
    np.testing.assert_array_equal(twice, np.repeat(first, 3))


def test_what_does_not_vary_among_the_known_is_not_used() -> None:
    """Nor what varies by rounding; without any feature nobody is more likely than another."""
    (fit, is_member), (judged, _) = records(300, 0), records(40, 1)
    noise = np.random.default_rng(2).normal(scale=1e-15, size=300)
    with_constants = np.column_stack([fit, np.ones(300), 1 + noise])
    odd = np.column_stack([judged, np.arange(40.0), -np.arange(40.0)])
    first = log_odds(fit, is_member, judged, inverse_penalty=1.0)
    np.testing.assert_allclose(
        log_odds(with_constants, is_member, odd, inverse_penalty=1.0), first, atol=1e-6
    )
    alone = log_odds(with_constants[:, 3:], is_member, odd[:, 3:], inverse_penalty=1.0)
    assert len(np.unique(alone)) == 1
    assert abs(alone[0]) < 1e-3
