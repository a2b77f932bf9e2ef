"""What DP-SGD certifies. Importing Opacus takes seconds, so this is imported when asked."""

import math
import warnings
from functools import cache

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant  # type: ignore[import-untyped]

__all__ = ["epsilon_of", "noise_for"]

# The grid of the PRV accountant grows with epsilon: at 250 it takes gigabytes, at 1000 more than
# a machine has. An epsilon above 20 bounds the accuracy of an attack by 1 - 2e-9, to no effect.
_MOST = 20.0


@cache
def epsilon_of(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The epsilon at `delta` of that many Poisson-sampled Gaussian steps; infinite without noise.

    By PRV accounting (Gopi, Lee and Wutschitz 2021), or by RDP (Mironov, Talwar and Zhang 2019) if
    that is less: both are upper bounds, so the smaller holds. RDP alone is asked where epsilon is
    large (see `_MOST`), and stands where PRV declines: for tiny deltas its rounding would decide.

    Args:
        noise_multiplier: sigma, at least 0.
        sample_rate: the chance of each record to be in a batch, in (0, 1].
        steps: at least 1.
        delta: in (0, 1).
    """
    if noise_multiplier == 0:
        return math.inf
    renyi, tight = RDPAccountant(), PRVAccountant()
    renyi.history = tight.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # That the best order is the largest it tries: then RDP is loose, and PRV decides.
        warnings.simplefilter("ignore")
        bound = float(renyi.get_epsilon(delta))
        if not bound <= _MOST:
            return math.inf if math.isnan(bound) else bound
        try:
            epsilon = float(tight.get_epsilon(delta))
        except (RuntimeError, ValueError):
            return bound
    return epsilon if epsilon < bound else bound  # the latter also where PRV's is NaN


@cache
def noise_for(epsilon: float, sample_rate: float, steps: int, delta: float) -> float:
    """The least noise multiplier that certifies `epsilon`, to a thousandth where PRV decides.

    Raises:
        ValueError: if none up to a million does.
    """
    # Opacus has a search, which does not end where the bound jumps, as from PRV to RDP.
    enough = 0.125
    while epsilon_of(enough, sample_rate, steps, delta) > epsilon:
        enough *= 2
        if enough > 1e6:
            raise ValueError(
                f"no noise certifies epsilon {epsilon:g} at delta {delta:.2g}; raise either"
            )
    too_little = enough / 2
    for _ in range(10):
        between = (too_little + enough) / 2
        if epsilon_of(between, sample_rate, steps, delta) > epsilon:
            too_little = between
        else:
            enough = between
    return enough
