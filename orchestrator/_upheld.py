"""Flags of single tests, read as those of a whole run: chance may not raise one in many.

A gate is judged at 99.9 % by the task that computes it, which knows of no other. Ten seeds have
thirty gates, and one of them flags an honest run in 3 % of all runs. So what is shown of a run
keeps the chance of any false flag among all its gates at 0.1 %, by Holm's correction, whatever
the number of datasets and seeds; the same goes for the tests of swapped answers, a family of their
own. The tables keep each test's own flag and p-value.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks import metrics
from tasks.check_split import FLAGS

__all__ = ["upheld_flags", "upheld_gates"]

_LEVEL = 0.001
_SWAPS = "swap_detectable"


def upheld_gates(gates: pd.DataFrame) -> pd.DataFrame:
    """The gates of a run that void results, with a column `upheld`: flagged, and not by chance.

    Args:
        gates: all rows of the table `gates` of one experiment.
    """
    mine = gates[gates["gate"].isin(list(FLAGS))]
    return mine.assign(upheld=_upheld(mine["flagged"].to_numpy(dtype=bool), mine["p"]))


def upheld_flags(frame: pd.DataFrame, gates: pd.DataFrame, utility: pd.DataFrame) -> pd.DataFrame:
    """Rows without the flags that are not upheld.

    Args:
        frame: rows of `results`, `utility` or `worst` of one experiment, whose flags of gates are
            kept where a gate of the dataset is upheld, that of swaps where a seed's is upheld.
        gates: as `upheld_gates` gives them.
        utility: all rows of the table `utility` of the experiment, as stored.
    """
    believed = gates[gates["upheld"]]
    kept = {
        (dataset, "", FLAGS[gate])
        for dataset, gate in zip(believed["dataset"], believed["gate"], strict=True)
    }
    flagged = np.array([_SWAPS in _list(flags) for flags in utility["flags"]], dtype=bool)
    swaps = utility[_upheld(flagged, utility["swap_detection_p"])]
    kept |= {(*place, _SWAPS) for place in zip(swaps["dataset"], swaps["label"], strict=True)}
    tested = {*FLAGS.values(), _SWAPS}
    flags = [
        [
            flag
            for flag in _list(listed)
            if flag not in tested or {(dataset, "", flag), (dataset, label, flag)} & kept
        ]
        for dataset, label, listed in zip(
            frame["dataset"], frame["label"], frame["flags"], strict=True
        )
    ]
    return frame.assign(flags=pd.Series(flags, index=frame.index, dtype=object))


def _upheld(flagged_N: NDArray[np.bool_], p: "pd.Series[float]") -> NDArray[np.bool_]:
    """Flagged tests that Holm's correction leaves, and those of stores that kept no p-value."""
    p_N = p.to_numpy(dtype=float)
    return np.asarray(flagged_N & (np.isnan(p_N) | metrics.holm(p_N, _LEVEL)))


def _list(flags: object) -> list[str]:
    """A cell of flags as a list: empty where it is missing."""
    return list(flags) if isinstance(flags, list | np.ndarray) else []
