"""What a defense says of every result about it is in every row about it."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.gap import Gap
from defenses.base import Defense
from defenses.onehot import OneHot
from tasks.answers import Answers
from tasks.measure_utility import MeasureUtility
from tasks.train_target import TrainTarget


class Doubtful(Defense):
    """Trains plainly, by numbers of its own."""

    VERSION: ClassVar[int] = 1
    FLAGS: ClassVar[tuple[str, ...]] = ("unverified_hparams",)

    def train(self, setting: Any, *, seed: int) -> dict[str, NDArray[Any]]:
        trained: dict[str, NDArray[np.generic]] = setting.train(setting.members, seed=seed)
        return trained


def test_flags_of_a_defense_reach_results_and_utility(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))
    plain = lab.target
    target = TrainTarget(
        seed=plain.seed, split=plain.split, architecture=plain.architecture, defense=Doubtful()
    )
    bare = Answers(seed=plain.seed, source=target)
    chain = own.__class__(own.site, own.split, target, bare).defended(OneHot())
    for answers, flagged in ((lab.plain, False), (bare, True), (chain, True)):
        attacked = own.facts(own.attack(answers, Gap()))
        cost = own.facts(MeasureUtility(seed=plain.seed, answers=answers, baseline=lab.plain))
        for found in (attacked, cost):
            assert ("unverified_hparams" in found["flags"]) == flagged
