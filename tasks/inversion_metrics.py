"""How near rebuilt records come to the true ones: means, intervals, and what guessing gets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.base import Records
from tasks import metrics
from tasks._intervals import Bools, Floats

__all__ = ["HEADLINE", "deviation", "guesses", "inversion_metrics"]

HEADLINE = "inversion_error"


def guesses(own: Records, y: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is guessed of each judged record without an answer, and from its true class alone.

    Args:
        own: the attacker's records.
        y: [N], the classes of the judged records.

    Returns:
        [N, ...]: the mean of its records, and the mean of those of the record's class; where it
        has none of that, the mean of all.
    """
    mean = own.x.mean(axis=0, dtype=np.float64)
    of_class = {int(c): own.x[own.y == c].mean(axis=0, dtype=np.float64) for c in np.unique(own.y)}
    by_class_N = np.stack([of_class.get(int(c), mean) for c in y])
    return np.broadcast_to(mean, by_class_N.shape), by_class_N


def deviation(x: NDArray[Any]) -> NDArray[np.float64]:
    """The standard deviation of images [M, channels, ...] by channel, or of all other records.

    1 where nothing varies.
    """
    axes = (0, 2, 3) if x.ndim == 4 else None
    found = np.asarray(x.std(axis=axes, dtype=np.float64))
    return np.where(found > 0, found, 1.0)


def inversion_metrics(
    by_record: Mapping[str, Floats | Bools], is_member_N: Bools
) -> dict[str, Any]:
    """Means of what is known of each record, over all, over members and over the others.

    Args:
        by_record: figure -> [N]. Rates (bool) get Clopper-Pearson limits, others those of a
            t-interval, which are left out for one record.
        is_member_N: whether each record trained the target.

    Returns:
        Each figure, its limits `*_low` and `*_high`, and the same for `*_members` and
        `*_nonmembers`, whose limits are told of the error only.
    """
    figures: dict[str, Any] = {
        "num_members": int(is_member_N.sum()),
        "num_nonmembers": int((~is_member_N).sum()),
    }
    everyone = np.ones(len(is_member_N), dtype=bool)
    for side, chosen in (("", everyone), ("_members", is_member_N), ("_nonmembers", ~is_member_N)):
        for name, value_N in by_record.items():
            if not chosen.any():
                continue
            values = value_N[chosen]
            limited = metrics.accuracy_interval if values.dtype == bool else metrics.seed_interval
            named = f"{name}{side}"
            mean, low, high = limited(values)
            figures[named] = mean
            if not side or name == HEADLINE:
                figures |= {f"{named}_low": low, f"{named}_high": high}
    return figures
