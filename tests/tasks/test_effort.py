"""An attack that gets next to nothing is trained harder, and only then."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import Field

from attacks.base import Attack
from attacks.nsh import Nsh
from defenses.onehot import OneHot
from tasks.effort import ChooseEffort


class Learner(Attack):
    """Finds members only if trained as it must be."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"

    learning_rate: float = Field(1.0, gt=0)
    epochs: int = 10
    needs: float = 3.0
    runs: ClassVar[list[tuple[float, int]]] = []

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        Learner.runs.append((self.learning_rate, self.epochs))
        good = self.learning_rate >= self.needs and self.epochs >= 40
        return query(x)[np.arange(len(y)), y] if good else np.zeros(len(y))


@pytest.fixture
def own(lab: Any, tmp_path: Path) -> Any:
    return lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))


def test_harder_means_three_rates_and_four_times_the_steps() -> None:
    harder = Nsh(learning_rate=3e-3, epochs=10, patience=5).harder()
    assert [a.learning_rate for a in harder] == pytest.approx([1e-3, 3e-3, 9e-3])
    assert {(a.epochs, a.patience) for a in harder} == {(40, 20)}
    assert all(isinstance(a, Nsh) for a in harder)


def test_what_finds_nothing_is_tried_harder_and_the_best_is_kept(own: Any) -> None:
    Learner.runs = []
    first = own.attack(own.plain, Learner())
    effort = ChooseEffort(3, first)
    own.run(effort)
    assert own.facts(first)["attack_accuracy"] == 0.5
    assert (own.facts(effort)["choice"], effort.chosen(own.bench).learning_rate) == (3, 3.0)
    strong = own.attack(own.plain, Learner(), effort=effort)
    figures = own.facts(strong)
    assert figures["attack_accuracy"] > 0.6
    assert figures["effort"] == '{"epochs": 40, "learning_rate": 3.0}'
    assert Learner.runs[-1] == (3.0, 40)


def test_what_finds_something_is_left_alone_and_not_run_again(own: Any) -> None:
    Learner.runs = []
    first = own.attack(own.plain, Learner(needs=0.5, epochs=40))
    effort = ChooseEffort(3, first)
    again = own.attack(own.plain, Learner(needs=0.5, epochs=40), effort=effort)
    artifact = own.run(again)
    assert len(Learner.runs) == 1
    assert own.facts(effort)["choice"] == 0
    done = own.bench.open(first)
    assert artifact.facts("metrics") == done.facts("metrics")
    for table in ("scores", "rows"):
        for name, column in done.table(table).items():
            np.testing.assert_array_equal(artifact.table(table)[name], column)


def test_equals_take_no_more_effort(own: Any) -> None:
    first = own.attack(own.plain, Learner(needs=1e9))
    effort = ChooseEffort(3, first)
    own.run(effort)
    assert own.facts(effort)["choice"] == 0
    assert len(own.facts(effort)["cal_auc"]) == 4


def test_other_seeds_take_the_choice_of_the_first(own: Any) -> None:
    effort = ChooseEffort(3, own.attack(own.plain, Learner()))
    other = own.attack(own.defended(OneHot()), Learner(), effort=effort)
    assert own.facts(other)["effort"] == '{"epochs": 40, "learning_rate": 3.0}'
