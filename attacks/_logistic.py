"""Logistic regression of membership on a few numbers a record."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

__all__ = ["log_odds"]

# A deviation that rounding alone leaves: sums of renormalised rows differ in the last bits.
_NO_DEVIATION = 1e-9


def log_odds(
    fit: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    judged: NDArray[np.float64],
    *,
    inverse_penalty: float,
) -> NDArray[np.float64]:
    """Log-odds [N] of "member", both sides weighing the same; deterministic, ties stay ties.

    Features are standardised on `fit`; one that does not vary there is not used.

    Args:
        fit: [M, F] finite features of known records.
        is_member: [M], with both truth values present.
        judged: [N, F] finite features of the records to judge.
        inverse_penalty: C; the loss is C times the weighted cross entropy plus half the squared
            weights, without the intercept.
    """
    mean_F, deviation_F = fit.mean(axis=0), fit.std(axis=0)
    scale_F = np.zeros_like(deviation_F)
    np.divide(1.0, deviation_F, out=scale_F, where=deviation_F > _NO_DEVIATION)
    model = LogisticRegression(
        C=inverse_penalty, class_weight="balanced", tol=1e-8, max_iter=10_000
    )
    model.fit((fit - mean_F) * scale_F, is_member)
    found_N = model.decision_function((judged - mean_F) * scale_F)
    # Matrix products round equal rows differently by their place.
    return np.asarray(np.round(found_N, 9), dtype=np.float64)
