"""Task: whether an attack that gets next to nothing is to be trained harder, and how."""

from dataclasses import dataclass
from typing import Any, ClassVar

from attacks.base import Attack
from storage.artifacts import Draft
from tasks import metrics
from tasks.base import Task
from tasks.plugins import plugin_name
from tasks.run_attack import RunAttack
from tasks.worker import Bench

__all__ = ["ChooseEffort"]

# Methods.md section 6.1: an attack below this is tried again before it is believed.
_NEXT_TO_NOTHING = 0.52


@dataclass(frozen=True, eq=False)
class ChooseEffort(Task):
    """How hard an attack is to be trained, decided under the experiment's first seed.

    Where the attack as asked for stays below 52 %, it is run again with three learning rates and
    four times the steps. The one of best AUC on the calibration records, the first one included,
    is what all seeds are attacked with. The judged records say whether there is a choice, never
    which.

    Attributes:
        first: the attack as asked for, under the first seed.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 2.0

    first: RunAttack

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.first.dataset

    @property
    def name(self) -> str:
        """The plugin."""
        return plugin_name(self.first.attack)

    def run(self, bench: Bench, draft: Draft) -> None:
        """Try what is harder if the first is next to nothing; write the choice."""
        facts: dict[str, Any] = {"choice": 0, "cal_auc": []}
        if bench.open(self.first).facts("metrics")["attack_accuracy"] < _NEXT_TO_NOTHING:
            facts["cal_auc"] = [self._cal_auc(bench, plugin) for plugin in self._candidates]
            # The first of equals: no more effort than helps.
            facts["choice"] = facts["cal_auc"].index(max(facts["cal_auc"]))
        draft.facts("metrics", facts)

    @property
    def _candidates(self) -> tuple[Attack, ...]:
        return (self.first.attack, *self.first.attack.harder())

    def _cal_auc(self, bench: Bench, plugin: Attack) -> float:
        found = self.first.attempt(bench, plugin)
        sign = found.calibration(plugin).sign
        return float(metrics.auc(sign * found.cal_score, found.cal_member))

    def chosen(self, bench: Bench) -> Attack:
        """The attack to run under every seed."""
        choice = int(bench.open(self).facts("metrics")["choice"])
        return self._candidates[choice]
