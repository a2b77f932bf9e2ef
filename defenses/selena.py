"""SELENA: self-distillation of an ensemble in which no model saw the record it answers for."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from defenses.base import Defense, Outline, Setting

__all__ = ["Selena"]

_SETS = 0  # the stream of the sets L; the other streams are the trainings' own


class Selena(Defense):
    """Train sub-models that each leave some members out, then distil what they say of those.

    Every member is left out of `num_excluded` of `num_models` sub-models; the mean answer of
    exactly those (Split-AI) is what the released model learns for it, so that it learns of each
    member what a model says that never saw it. Only the distilled model is released, hence
    Split-AI's rule for other inputs is never needed.

    The sub-models are taken after their last epoch. Public code keeps the epoch that is best on
    the test set, which lets evaluation records into the defense.

    Source: Tang et al., "Mitigating Membership Inference Attacks by Self-Distillation Through a
        Novel Ensemble Architecture", USENIX Security 2022, sections 4.2 (Split-AI) and 4.3.
    """

    VERSION: ClassVar[int] = 1

    num_models: int = Field(25, ge=2, le=10_000, description="sub-models, K in the paper")
    num_excluded: int = Field(10, ge=1, description="sub-models that miss a member, L")
    epochs: int | None = Field(None, ge=1, description="of a sub-model; default the target's")
    distil_epochs: int | None = Field(
        None, ge=1, description="of the released model; default the target's"
    )

    @model_validator(mode="after")
    def _some_saw_it(self) -> "Selena":
        if self.num_excluded >= self.num_models:
            raise ValueError(
                f"num_excluded is {self.num_excluded} of {self.num_models} models; it must be "
                "smaller, or no model would see any record"
            )
        return self

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        if name == "cpu":
            return {"num_models": 5, "num_excluded": 2}
        epochs: Mapping[str, tuple[int, int]] = {
            "purchase100": (30, 60),
            "retail100": (30, 60),
            "texas100": (20, 30),
            "hospital100": (20, 30),
            "cifar100": (200, 200),
        }
        if name == "paper" and dataset in epochs:
            sub, distil = epochs[dataset]
            return {"epochs": sub, "distil_epochs": distil}
        return {}

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """The sub-models, each on the members that it does not leave out."""
        excluded_NK = self.excluded(len(outline.member_rows), seed)
        rows = [outline.member_rows[~excluded_NK[:, k]] for k in range(self.num_models)]
        if empty := [k for k, own in enumerate(rows) if not len(own)]:
            raise ValueError(f"selena: sub-models {empty} are left without members; use fewer")
        changed = {} if self.epochs is None else {"epochs": self.epochs}
        return outline.models(rows, seed=seed, **changed)

    def excluded(self, num_members: int, seed: int) -> NDArray[np.bool_]:
        """Which sub-models leave each member out, bool [N, K], `num_excluded` in each row."""
        rng = np.random.default_rng([seed, _SETS])
        rank_NK = rng.random((num_members, self.num_models)).argsort(axis=1).argsort(axis=1)
        return rank_NK < self.num_excluded

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Distil Split-AI's answers about the members into a fresh model.

        Raises:
            ValueError: if `setting.trained` is not what `trainings` asked for.
        """
        if len(setting.trained) != self.num_models:
            raise ValueError(
                f"selena got {len(setting.trained)} sub-models; its trainings() asked for "
                f"{self.num_models}"
            )
        excluded_NK = self.excluded(len(setting.members), seed)
        soft_NC = np.zeros((len(setting.members), setting.num_classes))
        for k, model in enumerate(setting.trained):
            out = excluded_NK[:, k]
            soft_NC[out] += model.answer(setting.members.x[out]) / self.num_excluded
        changed = {} if self.distil_epochs is None else {"epochs": self.distil_epochs}
        targets = soft_NC.astype(np.float32)
        return setting.train(setting.members, seed=seed, targets=targets, **changed)
