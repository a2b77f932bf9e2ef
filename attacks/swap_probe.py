"""Swap probe: a member whose label was swapped has another label than its near copies."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._near_copies import answers_about
from attacks.base import Attack, Classifier, Knowledge

__all__ = ["SwapProbe", "swap_score"]


class SwapProbe(Attack):
    """Compare a record's label with the commonest label of near copies of it.

    PURIFIER's swapper knows its stored members by their exact confidence. The smallest change of
    the input moves that by more than its radius, so near copies of a swapped member get the true
    answer's label and only the member itself another. Others are not swapped, and their labels
    seldom change so near by. The members found are as many as were swapped, at hardly any false
    positives; average metrics, and the gap attack above all, hide that.

    `known` is not used: what makes it adaptive is that it knows the algorithm.

    Source: methods.md section 6.12 c, ours. `bonus` and the order of what is not found are the
        tie-breaks that section leaves open.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-adaptive"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    AGAINST: ClassVar[tuple[str, ...]] = ("purifier",)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    copies: int = Field(7, ge=1, description="m, near copies asked about beside the record")
    bonus: float = Field(
        0.5,
        ge=0,
        description="added where a label that snaps back snaps back to the true one, as a member's "
        "does whenever the target had it right",
    )

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """See `swap_score`; asks `copies` + 1 times a record."""
        label_RN = np.empty((self.copies + 1, len(x)), dtype=np.int64)
        for rows, label_Rn in answers_about(
            query,
            x,
            len(label_RN),
            "neighbours",
            kind=known.kind,
            num_classes=known.num_classes,
            seed=seed,
        ):
            label_RN[:, rows] = label_Rn
        return swap_score(label_RN[0], label_RN[1:], y, bonus=self.bonus)


def swap_score(
    own: NDArray[np.int64], near: NDArray[np.int64], y: NDArray[np.int64], *, bonus: float
) -> NDArray[np.float64]:
    """How much a record's label looks swapped.

    With the copies' commonest label another than the record's own: the share of copies that have
    it, in (0, 1], plus `bonus` if it is `y`. If the record's own is as common as any other: minus
    the share of copies that have another label than it, in (-1, 0]. That orders what was not
    swapped, as labels are less stable around records that the target was not trained on.

    Args:
        own: int64 [N], labels of the records.
        near: int64 [m, N], labels of their copies.
        y: int64 [N], true labels.
        bonus: see above.

    Returns:
        float64 [N]; 0 wherever all labels agree.
    """
    # How many copies have each copy's label; of equally common labels y, then the smallest.
    count_mN = (near[:, None] == near[None]).sum(axis=1)
    most_N = count_mN.max(axis=0)
    own_N = (near == own).sum(axis=0)
    is_back_N = own_N < most_N
    is_true_N = ((near == y) & (count_mN == most_N)).any(axis=0)
    share_N = most_N / len(near)
    found_N = np.where(is_back_N, share_N + bonus * is_true_N, own_N / len(near) - 1.0)
    return np.asarray(found_N)
