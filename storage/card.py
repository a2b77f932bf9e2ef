"""The data card: what a split holds, counted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage._groups import canonical, chi2_p, class_counts
from storage.splits import Judge, Split

__all__ = ["card"]


def card(
    split: Split, y: NDArray[np.integer[Any]], groups: NDArray[np.integer[Any]]
) -> dict[str, Any]:
    """Facts about a split for the data card: plain numbers, lists and dictionaries, as JSON has.

    Returns:
        num_rows; roles (rows per role); dropped_rows (without a role); duplicate_groups (those of
        two rows or more) and grouped_rows (the rows in them); missing_classes (per role, classes of
        the dataset it has no record of); judged (per judge of an evaluation that has records:
        num_members, num_nonmembers, their counts per class, and chi2_p of class against membership,
        I6). What a defender judges for itself is no evaluation, and stored cards are without it.
    """
    counts = canonical(groups)[2]
    classes = np.unique(y)
    roles = split.roles()
    judged: dict[str, Any] = {}
    judges: tuple[Judge, ...] = ("members", "reference", "untrained")
    has = {"members": True, "reference": len(split.reference), "untrained": len(split.untrained_a)}
    for judge in judges:
        if has[judge]:
            rows, is_member = split.judged(judge)
            by_side = class_counts(y, rows, is_member)
            judged[judge] = {
                "num_members": int(is_member.sum()),
                "num_nonmembers": int((~is_member).sum()),
                "members_by_class": by_side[1].tolist(),
                "nonmembers_by_class": by_side[0].tolist(),
                "chi2_p": chi2_p(by_side),
            }
    return {
        "num_rows": len(y),
        "roles": {name: len(rows) for name, rows in roles.items()},
        "dropped_rows": len(y) - sum(map(len, roles.values())),
        "duplicate_groups": int((counts > 1).sum()),
        "grouped_rows": int(counts[counts > 1].sum()),
        "missing_classes": {
            name: np.setdiff1d(classes, y[rows]).tolist() for name, rows in roles.items()
        },
        "judged": judged,
    }
