"""The signal and the likelihood ratio of LiRA, over all records at once."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

__all__ = ["lira", "logit_confidence"]

# The least deviation, in nats. Answers rounded to labels or to two decimals may agree in every
# shadow model; a thousandth lies far above the rounding of a network's logits and far below what
# retraining changes.
_FLOOR = 1e-3
# Values of phi worked on at once (1 MB), so that the passes over them stay in the cache.
_AT_ONCE = 2**17

Pool = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]


def logit_confidence(
    confidence: NDArray[Any], y: NDArray[np.int64], *, clip: float = 1e-12
) -> NDArray[np.float64]:
    """The signal phi = log p_y - log sum_{i != y} p_i, nearly Gaussian over retrained models.

    The second term is summed as released: 1 - p_y loses all digits where p_y is nearly 1, and
    would be wrong for rows that do not sum to 1.

    Args:
        confidence: [..., C], non-negative. Not modified.
        y: [...] labels in 0..C-1; broadcasts against the leading axes.
        clip: the least value of either logarithm's argument. It bounds phi of distributions by
            -log(clip) and decides ties in the tail.

    Returns:
        Finite float64 [...] for finite rows.

    Source: Carlini et al. 2022, section IV-C (equation 3 and below).
    """
    others = np.array(confidence, dtype=np.float64)
    label = np.broadcast_to(y, others.shape[:-1])[..., None]
    true = np.take_along_axis(others, label, axis=-1)[..., 0]
    np.put_along_axis(others, label, 0.0, axis=-1)
    phi: NDArray[np.float64] = np.log(np.maximum(true, clip))
    phi -= np.log(np.maximum(others.sum(axis=-1), clip))
    return phi


def lira(
    target_phi: NDArray[np.float64],
    shadow_phi: NDArray[np.float64],
    is_in: NDArray[np.bool_],
    is_out: NDArray[np.bool_],
    *,
    mode: Literal["online", "offline"],
    global_variance: bool,
    pool: Pool | None = None,
) -> NDArray[np.float64]:
    """Log-likelihood ratio of "member", averaged over queries.

    online: log N(phi; mean_in, sd_in) - log N(phi; mean_out, sd_out). offline: the one-sided
    log Phi((phi - mean_out) / sd_out). Means are each record's own. Deviations are each record's
    own or, with `global_variance`, pooled over records from the residuals within each record;
    both divide by degrees of freedom, since a record may have more IN than OUT models.

    Args:
        target_phi: [N, Q] signal of the judged model for each record and query.
        shadow_phi: [K, N, Q] signals of the shadow models. Entries that are neither IN nor OUT
            may hold anything.
        is_in: [K, N], the model trained on the record.
        is_out: [K, N], the model never saw the record.
        mode: "offline" reads no IN model.
        global_variance: one deviation for all records instead of one each.
        pool: `(shadow_phi, is_in, is_out)` of the records to pool deviations over, by default the
            judged ones, whose scores then depend on each other. Their number is free.

    Returns:
        Finite float64 [N].

    Raises:
        ValueError: if shapes disagree, a model is both IN and OUT of a record, a signal in use is
            not finite, or records have too few models: none, or one where its own deviation is
            wanted.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
        algorithm 1 and sections IV-C, VI. The authors' code differs: it takes medians, gives OUT
        the deviation of IN when the variance is fixed (the spread between records included), and
        scores offline by a two-sided density.
    """
    shadows = (shadow_phi, is_in, is_out)
    _check_shapes(shadows)
    num_shadows, num_records, num_per_record = shadow_phi.shape
    if target_phi.shape != shadow_phi.shape[1:]:
        raise ValueError(
            f"target_phi is {target_phi.shape} but shadow_phi is {shadow_phi.shape}; "
            "they must be [N, Q] and [K, N, Q]"
        )
    masks = {"OUT": is_out} if mode == "offline" else {"OUT": is_out, "IN": is_in}
    for side, mask in masks.items():
        _check_counts(side, mask, 1 if global_variance else 2)
    pooled: dict[str, NDArray[np.float64]] = {}
    if global_variance:
        pool_phi, pool_in, pool_out = pool or shadows
        if pool is not None:
            _check_shapes(pool)
        for side in masks:
            pooled[side] = _pooled_deviation(pool_phi, pool_in if side == "IN" else pool_out, side)

    scores_N = np.empty(num_records)
    step = max(1, _AT_ONCE // max(1, num_shadows * num_per_record))
    for start in range(0, num_records, step):
        part = slice(start, start + step)
        z: dict[str, NDArray[np.float64]] = {}
        log_deviation: dict[str, NDArray[np.float64]] = {}
        for side, mask in masks.items():
            count_n, mean_nQ, squares_nQ = _moments(shadow_phi[:, part], mask[:, part])
            deviation = pooled.get(side)
            if deviation is None:
                deviation = _deviation(squares_nQ, count_n[:, None] - 1)
            z[side] = (target_phi[part] - mean_nQ) / deviation
            log_deviation[side] = np.log(deviation)
        if mode == "offline":
            ratio_nQ = log_ndtr(z["OUT"])
        else:
            ratio_nQ = 0.5 * (z["OUT"] ** 2 - z["IN"] ** 2)
            ratio_nQ += log_deviation["OUT"] - log_deviation["IN"]
        scores_N[part] = ratio_nQ.mean(axis=1)
    num_bad = int(np.count_nonzero(~np.isfinite(scores_N)))
    if num_bad:
        raise ValueError(
            f"the signals of {num_bad} of {num_records} records are not finite; "
            "look for nan or infinite confidences of the target or the shadow models"
        )
    return scores_N


def _moments(
    phi: NDArray[np.float64], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of the entries in `mask` [K, n]: count [n], mean [n, Q], summed squared residuals [n, Q].

    In two passes: sums of squares taken in one would lose the small deviations of saturated
    answers. Entries outside are replaced, not multiplied by 0, as they may be infinite.
    """
    mask_Kn1 = mask[..., None]
    count_n = np.count_nonzero(mask, axis=0)
    kept_KnQ = np.where(mask_Kn1, phi, 0.0)
    mean_nQ = kept_KnQ.sum(axis=0) / np.maximum(count_n, 1)[:, None]
    kept_KnQ -= mean_nQ
    kept_KnQ *= mask_Kn1
    return count_n, mean_nQ, np.einsum("knq,knq->nq", kept_KnQ, kept_KnQ)


def _deviation(squares: NDArray[np.float64], freedom: Any) -> NDArray[np.float64]:
    """Standard deviations from summed squared residuals, at least the floor."""
    return np.maximum(np.sqrt(squares / freedom), _FLOOR)


def _pooled_deviation(
    phi: NDArray[np.float64], mask: NDArray[np.bool_], side: str
) -> NDArray[np.float64]:
    """One deviation a query, [Q], from the residuals within every record of the pool."""
    num_shadows, num_records, num_per_record = phi.shape
    squares_Q, freedom = np.zeros(num_per_record), 0
    step = max(1, _AT_ONCE // max(1, num_shadows * num_per_record))
    for start in range(0, num_records, step):
        part = slice(start, start + step)
        count_n, _, squares_nQ = _moments(phi[:, part], mask[:, part])
        squares_Q += squares_nQ.sum(axis=0)
        freedom += int(np.maximum(count_n - 1, 0).sum())
    if freedom == 0:
        raise ValueError(
            f"none of the {num_records} records that lira pools deviations over has two {side} "
            f"models among {num_shadows}; use more shadow models, or pool over records that "
            "the shadow models were divided by"
        )
    return _deviation(squares_Q, freedom)


def _check_shapes(shadows: Pool) -> None:
    """Raise where signals [K, N, Q] and roles [K, N] do not fit together."""
    phi, is_in, is_out = shadows
    if phi.ndim != 3 or not phi.shape[:2] == is_in.shape == is_out.shape:
        raise ValueError(
            f"shadow_phi is {phi.shape}, is_in {is_in.shape} and is_out {is_out.shape}; "
            "they must be [K, N, Q], [K, N] and [K, N]"
        )
    if num_both := int(np.count_nonzero(is_in & is_out)):
        raise ValueError(f"{num_both} entries are both IN and OUT; a model's record is one of them")


def _check_counts(side: str, mask: NDArray[np.bool_], least: int) -> None:
    """Raise if a record has fewer than `least` models on this side."""
    count_N = np.count_nonzero(mask, axis=0)
    if num_none := int(np.count_nonzero(count_N == 0)):
        raise ValueError(
            f"{num_none} of {len(count_N)} records have no {side} models among {len(mask)} shadow "
            "models; use more shadow models, or leave these records out"
        )
    if num_few := int(np.count_nonzero(count_N < least)):
        raise ValueError(
            f"{num_few} of {len(count_N)} records have one {side} model among {len(mask)} shadow "
            "models, too few for a deviation of their own; use more, or set global_variance"
        )
