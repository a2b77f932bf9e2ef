"""RMIA: is the record's likelihood ratio higher than that of records which trained nothing."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._ratio import mean_over, offline, ratio, share_exceeded, tuned_a
from attacks.base import Attack, Classifier, Knowledge, Outline, Records

__all__ = ["Rmia"]

# Shadow confidences held at once: 128 MB.
_AT_ONCE = 2**24
# Stream drawn from the attack's seed.
_POPULATION = 0


class Rmia(Attack):
    """Compare how much more the target likes the record than other models do with a population's.

    The ratio of a record is the target's confidence in its label over the mean confidence of
    models half of which were trained on it (online), or what that mean would be by the models
    without it (offline). The score is the share of population records, known to be no members,
    whose ratio it exceeds more than `gamma` times.

    Nobody needs to have trained on a population record: its ratio is the offline one in both
    modes, over the models it is OUT of; those without such a model are left out.

    The coefficient `a` of the offline ratio is tuned by attacking one shadow model with the
    others, on records the attacker holds.

    If the attacker builds its own copies of the deployed defense, a shadow model's OUT records
    that were its defense's reference data count as neither IN nor OUT for it.

    Source: Zarifzadeh, Liu & Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML
        2024, section 2 and appendix B (computing Pr(x)). The public code takes a record's largest
        signals as those of its OUT models, after setting the others to 0; we keep roles. `gamma`
        is 2 in the paper and 1 in one version of the code. The paper's best variant replaces the
        softmax by its Taylor series, which answers without logits do not allow.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"num_shadows": 8},
        "sound": {"num_shadows": 16},
        "cpu": {"num_shadows": 16},
    }

    num_shadows: int = Field(
        8, ge=2, le=10_000, multiple_of=2, description="models, half of them IN"
    )
    mode: Literal["offline", "online"] = Field(
        "offline", description="offline reads OUT models only"
    )
    num_population: int = Field(2500, ge=1, description="most records to compare with")
    gamma: float = Field(2.0, gt=0, description="how many times a ratio must exceed another")
    a: float | None = Field(
        None,
        ge=0,
        le=1,
        description="IN models are taken to answer a p_out + 1 - a; tuned on shadow models if "
        "not given",
    )
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p in a ratio")

    def fault(self, shape: tuple[int, ...], *, adaptive: bool) -> str:
        """Too few shadow models for own copies of the defense.

        Every other OUT model of a record has it as reference data then. Without own copies one
        pair is enough: it gives every record an IN and an OUT model.
        """
        if adaptive and self.num_shadows < 4:
            return (
                f"num_shadows is {self.num_shadows}; with adaptive, half of the models a record is "
                "OUT of have it as reference data of their defense, and rmia takes one that does "
                "not: use 4 or more"
            )
        return ""

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """The shadow models, with their own copies of the defense if `outline.adaptive`."""
        return outline.shadows(self.num_shadows, defended=outline.adaptive)

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Share of the population whose ratio the record's exceeds.

        Args:
            query: asked once.
            known: `shadows`, and `population`, about which `known.query` is asked once; with `a`
                to be tuned also the answers of shadow models to the records held, never their
                membership in the target.
            x: [N, ...] records.
            y: [N] labels.
            seed: draws the population if there is more than `num_population`.

        Returns:
            float64 [N] in [0, 1].

        Raises:
            ValueError: if there are not `num_shadows` shadow models, judged records have no OUT
                (online: or no IN) model, or no population record has an OUT model.
        """
        if known.shadows.num_shadows != self.num_shadows:
            raise ValueError(
                f"rmia got {known.shadows.num_shadows} shadow models in known.shadows; it asked "
                f"for num_shadows = {self.num_shadows}"
            )
        a = self.a
        if a is None:
            a = tuned_a(*self._signals(known, *known.x_of(known.rows)), clip=self.clip)
        z = self._population(known.population, seed)
        p_SZ, role_SZ = self._signals(known, z.x, z.y)
        p_out_Z, count_Z = mean_over(p_SZ, role_SZ == 0)
        kept_Z = count_Z > 0
        if not kept_Z.any():
            raise ValueError(
                f"none of the {len(z)} population records drawn has an OUT model among "
                f"{self.num_shadows} shadow models; use more shadow models"
            )
        p_target_Z = _at_label(known.query(z.x[kept_Z]), z.y[kept_Z])
        ratio_z = ratio(p_target_Z, offline(p_out_Z[kept_Z], a), clip=self.clip)
        p_N = self._expected(*self._signals(known, x, y), a)
        ratio_x = ratio(_at_label(query(x), y), p_N, clip=self.clip)
        return share_exceeded(ratio_x, ratio_z, self.gamma)

    def _population(self, records: Records, seed: int) -> Records:
        if len(records) <= self.num_population:
            return records
        rng = np.random.default_rng([seed, _POPULATION])
        drawn = np.sort(rng.choice(len(records), self.num_population, replace=False))
        return Records(records.x[drawn], records.y[drawn])

    def _expected(
        self, p_SN: NDArray[np.float64], role_SN: NDArray[np.int8], a: float
    ) -> NDArray[np.float64]:
        """[N] what models are expected to answer, half of them with the record."""
        p_out_N = self._mean(p_SN, role_SN == 0, "OUT")
        if self.mode == "offline":
            return offline(p_out_N, a)
        return np.asarray(0.5 * (self._mean(p_SN, role_SN == 1, "IN") + p_out_N))

    def _mean(
        self, p_SN: NDArray[np.float64], mask_SN: NDArray[np.bool_], side: str
    ) -> NDArray[np.float64]:
        mean_N, count_N = mean_over(p_SN, mask_SN)
        if num_none := int(np.count_nonzero(count_N == 0)):
            raise ValueError(
                f"{num_none} of {len(count_N)} records have no {side} models among "
                f"{self.num_shadows} shadow models; use more shadow models, or leave these "
                "records out"
            )
        return mean_N

    def _signals(
        self, known: Knowledge, x: NDArray[Any], y: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """The shadow models' confidences in the label, [S, N], and the records' roles, [S, N]."""
        shadows = known.shadows
        p_SN = np.empty((shadows.num_shadows, len(x)))
        step = max(1, _AT_ONCE // (shadows.num_shadows * known.num_classes))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            confidence_SnC = shadows(x[part])
            p_SN[:, part] = confidence_SnC[:, np.arange(len(y[part])), y[part]]
        return p_SN, shadows.role(x)


def _at_label(confidence: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N] confidences in the labels."""
    return np.asarray(confidence[np.arange(len(y)), y], dtype=np.float64)
