"""How much of a confidence, beyond its label, a reformer lets through."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defenses._cvae import Recipe, kl_divergence, loaded, reform, tensors

__all__ = ["reformer_facts"]

_DRAWS = 16


def reformer_facts(
    confidence: NDArray[np.float64],
    parameters: Mapping[str, NDArray[Any]],
    recipe: Recipe,
    *,
    seed: int,
) -> dict[str, float]:
    """Measure a reformer on confidences it was not fitted on.

    Within-label numbers use labels with at least two records; without any they are NaN.

    Args:
        confidence: [N, C], of records the reformer was not fitted on.
        parameters: as returned by `train_reformer`.
        recipe: the one it was trained with.
        seed: of the 16 noise draws a record.

    Returns:
        `kl_mean`: mean KL(N(mean, sigma²) || N(0, I)), nats.
        `variance_ratio`: sum over labels of tr Cov(p | l) at the latent mean, over that of c; near
            0 the reformer has collapsed to one vector a label.
        `noise_variance_ratio`: the variance due to noise alone, over the same.
        `info_r2`: adjusted R² of c's top score regressed on p as released (one draw of
            noise), both centred within their label.
        `label_change_rate_reference`: how often the reformed label is another one.

    Source: after PURIFIER section 4.2; the measures are ours, to tell a reformer from a prototype.
    """
    model = loaded(confidence.shape[1], parameters, recipe)
    with torch.no_grad():
        c, _, condition = tensors(confidence, torch.float64, "cpu")
        kl_mean = float(kl_divergence(*model.encode(c, condition)).mean())
    rng = np.random.default_rng(seed)
    shape = (len(confidence), recipe.latent)
    p_NC = reform(confidence, np.zeros(shape), parameters, recipe)
    draws_RNC = np.stack(
        [reform(confidence, rng.normal(size=shape), parameters, recipe) for _ in range(_DRAWS)]
    )
    label_N = confidence.argmax(axis=1)
    noise_variance_N = draws_RNC.var(axis=0, ddof=1).sum(axis=1)
    centred_c, centred_p = [], []
    noise_variance = variance_c = variance_p = 0.0
    for label in np.flatnonzero(np.bincount(label_N) >= 2):
        rows = label_N == label
        variance_c += float(confidence[rows].var(axis=0, ddof=1).sum())
        variance_p += float(p_NC[rows].var(axis=0, ddof=1).sum())
        noise_variance += float(noise_variance_N[rows].mean())
        top_N = confidence[rows, label]
        centred_c.append(top_N - top_N.mean())
        # The label's own column comes first: pooled by class, columns would mean another thing
        # in every label.
        drawn_NC = np.roll(draws_RNC[0, rows], -label, axis=1)
        centred_p.append(drawn_NC - drawn_NC.mean(axis=0))
    return {
        "kl_mean": kl_mean,
        "variance_ratio": variance_p / variance_c if variance_c else math.nan,
        "noise_variance_ratio": noise_variance / variance_c if variance_c else math.nan,
        "info_r2": _adjusted_r2(centred_c, centred_p),
        "label_change_rate_reference": float(np.mean(draws_RNC.argmax(axis=2) != label_N)),
    }


def _adjusted_r2(
    centred_c: list[NDArray[np.float64]], centred_p: list[NDArray[np.float64]]
) -> float:
    """Adjusted because C regressors explain C / N of pure chance."""
    if not centred_c:
        return math.nan
    c_N, p_NC = np.concatenate(centred_c), np.concatenate(centred_p)
    freedom = len(c_N) - len(centred_c)  # a mean was taken out for each label
    u, scale, _ = np.linalg.svd(p_NC, full_matrices=False)
    u = u[:, scale > 1e-6 * math.sqrt(len(c_N))]  # a collapsed p differs by rounding only
    total = float(c_N @ c_N)
    if total == 0 or freedom <= u.shape[1]:
        return math.nan
    residual = total - float(np.square(u.T @ c_N).sum())
    return float(max(0.0, 1 - residual / (freedom - u.shape[1]) / (total / freedom)))
