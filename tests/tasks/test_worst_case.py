"""The worst case against a slow and obvious count on the scores of its attacks."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from attacks.base import Attack
from attacks.gap import Gap
from attacks.metric import Metric
from defenses.onehot import OneHot
from tasks.answers import Answers
from tasks.fit_defense import FitDefense
from tasks.worst_case import WorstCase


class Coin(Attack):
    """Scores that know nothing."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"

    number: int = 0

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        return np.random.default_rng([seed, self.number]).normal(size=len(y)).round(1)


def services(lab: Any, *defenses: Any) -> list[Answers]:
    """The service under two seeds."""
    made = []
    for seed in (3, 4):
        split = replace(lab.split, seed=seed)
        answers = Answers(seed=seed, source=replace(lab.target, seed=seed, split=split))
        for defense in defenses:
            fitted = FitDefense(seed=seed, answers=answers, defense=defense)
            answers = Answers(seed=seed, source=fitted)
        made.append(answers)
    return made


def worst_of(lab: Any, plugins: Any, services_: Any, **fields: Any) -> WorstCase:
    attacks = [lab.attack(answers, p, **fields) for answers in services_ for p in plugins]
    return WorstCase(seed=3, attacks=tuple(attacks))


def balanced(called: Any, member: Any) -> float:
    return float((called[member].mean() + (~called[~member]).mean()) / 2)


def area(score: Any, member: Any) -> float:
    ours, others = score[member][:, None], score[~member][None]
    return float(np.mean((ours > others) + 0.5 * (ours == others)))


PLUGINS = (Coin(number=1), Gap(), Metric(statistic="confidence"), Coin(number=2))


def test_it_is_the_largest_mean_over_seeds_beside_what_permuting_gives(lab: Any) -> None:
    task = worst_of(lab, PLUGINS, services(lab))
    row = task.table_rows(lab.run(task))["worst"][0]
    tables = [
        [lab.run(lab.attack(answers, p)).table("scores") for answers in services(lab)]
        for p in PLUGINS
    ]

    def both(shuffle: Any) -> Any:
        members = [shuffle(table["is_member"]) for table in tables[0]]
        return np.array(
            [
                [
                    np.mean([f(t[c], m) for t, m in zip(of_seeds, members, strict=True)])
                    for of_seeds in tables
                ]
                for f, c in ((balanced, "decision"), (area, "score"))
            ]
        )

    (accuracy, auc), rng = both(np.asarray), np.random.default_rng(0)
    assert row["attack_accuracy"] == pytest.approx(accuracy.max(), abs=1e-12)
    assert row["auc"] == pytest.approx(auc.max(), abs=1e-12)
    worst, by_auc = PLUGINS[accuracy.argmax()], PLUGINS[auc.argmax()]
    assert row["attack_key"] == lab.attack(services(lab)[0], worst).key
    assert row["auc_attack_key"] == lab.attack(services(lab)[0], by_auc).key
    assert row["attack_params"] == lab.attack(lab.plain, worst).attack_params
    assert (row["num_seeds"], row["num_attacks"]) == (2, 4)

    null = np.array([both(rng.permutation) for _ in range(300)])
    spread = null.std(axis=0)
    largest = ((null - 0.5) / spread).max(axis=2)
    seen = (np.array([accuracy, auc]) - 0.5) / spread
    assert row["observed_accuracy_sd"] == pytest.approx(seen[0].max(), rel=0.15)
    assert row["observed_auc_sd"] == pytest.approx(seen[1].max(), rel=0.15)
    # The band is the 99.5 % quantile; 300 permutations place it between these.
    for column, i in (("band_accuracy_sd", 0), ("band_auc_sd", 1)):
        assert np.quantile(largest[:, i], 0.96) <= row[column] <= largest[:, i].max() + 0.6
    chance = 0.5 + row["band_accuracy_sd"] * spread[0, accuracy.argmax()]
    assert row["chance_accuracy"] == pytest.approx(chance, abs=0.02)
    chance = 0.5 + row["band_auc_sd"] * spread[1, auc.argmax()]
    assert row["chance_auc"] == pytest.approx(chance, abs=0.02)
    assert row["inside_band"] == (
        row["observed_accuracy_sd"] <= row["band_accuracy_sd"]
        and row["observed_auc_sd"] <= row["band_auc_sd"]
    )


def test_attacks_that_know_nothing_stay_inside(lab: Any) -> None:
    coins = [Coin(number=i) for i in range(6)]
    task = worst_of(lab, coins, services(lab))
    row = task.table_rows(lab.run(task))["worst"][0]
    assert row["inside_band"]
    accuracy = np.array(
        [[lab.facts(lab.attack(a, c))["attack_accuracy"] for a in services(lab)] for c in coins]
    )
    # The best coin of the first seed is not the best of both, and need not be.
    assert accuracy[:, 0].argmax() != accuracy.mean(axis=1).argmax()
    assert row["attack_accuracy"] == pytest.approx(accuracy.mean(axis=1).max(), abs=1e-12)
    assert 0.5 < row["attack_accuracy"] < row["chance_accuracy"]


def test_the_order_of_attacks_and_seeds_changes_no_number(lab: Any) -> None:
    task = worst_of(lab, PLUGINS, services(lab))
    turned = replace(task, attacks=task.attacks[::-1])
    one, other = lab.facts(task), lab.facts(turned)
    numbers = {name for name, value in one.items() if isinstance(value, float)}
    for name in numbers - {"band_accuracy_sd", "band_auc_sd", "chance_accuracy", "chance_auc"}:
        assert other[name] == pytest.approx(one[name], rel=1e-9), name
    assert (other["attack_key"], other["num_seeds"]) == (one["attack_key"], 2)


def test_seeds_that_do_not_tell_their_spread_have_the_interval_over_records(lab: Any) -> None:
    attack = lab.attack(lab.plain, Gap())
    found, of_attack = lab.facts(WorstCase(seed=3, attacks=(attack,))), lab.facts(attack)
    for column in ("attack_accuracy", "attack_accuracy_low", "attack_accuracy_high", "auc"):
        assert found[column] == of_attack[column]
    two = lab.facts(worst_of(lab, [Gap()], services(lab)))
    rows = [lab.facts(lab.attack(answers, Gap())) for answers in services(lab)]
    for column in ("attack_accuracy", "attack_accuracy_low", "attack_accuracy_high"):
        assert two[column] == pytest.approx(np.mean([row[column] for row in rows]))


def test_flags_are_the_worst_attacks_and_say_if_nobody_adapted(lab: Any) -> None:
    defended = services(lab, OneHot())
    plain = lab.facts(worst_of(lab, [Gap()], services(lab)))
    passive = lab.facts(worst_of(lab, [Gap()], defended))
    ignorant = lab.facts(worst_of(lab, [Gap()], defended, fit_on="clean"))
    adaptive = lab.facts(worst_of(lab, [Gap()], defended, adaptive=True))
    assert not {"no_adaptive_attack", "non_adaptive"} & set(plain["flags"])
    assert {"no_adaptive_attack", "non_adaptive"} & set(passive["flags"]) == {"no_adaptive_attack"}
    assert {"no_adaptive_attack", "non_adaptive"} <= set(ignorant["flags"])
    assert "no_adaptive_attack" not in adaptive["flags"]
    assert (adaptive["adaptive"], passive["adaptive"]) == (True, False)
    assert "underpowered" in plain["flags"]


def test_the_same_attack_fitted_elsewhere_is_another(lab: Any) -> None:
    fields = ({}, {"fit_on": "clean"}, {"adaptive": True})
    answers = services(lab, OneHot())
    attacks = tuple(lab.attack(a, Gap(), **f) for a in answers for f in fields)
    groups = WorstCase(seed=3, attacks=attacks).by_attack()
    assert [[task.seed for task in tasks] for tasks in groups] == [[3, 4]] * 3


def test_seeds_that_disagree_are_refused(lab: Any) -> None:
    one, two = services(lab)
    gap, metric = lab.attack(one, Gap()), lab.attack(one, Metric())
    for attacks in ((gap, metric, lab.attack(two, Gap())), (gap, gap)):
        with pytest.raises(ValueError, match=r"has seeds .* the same seeds, each once"):
            WorstCase(seed=3, attacks=attacks).by_attack()


class Costly(Coin):
    """Judges a few records only."""

    @property
    def most_records(self) -> int | None:
        return 20


class MadeFor(Coin):
    """Made for one defense."""

    AGAINST: ClassVar[tuple[str, ...]] = ("onehot",)


def test_attacks_on_a_part_of_the_records_are_compared_on_that_part(lab: Any) -> None:
    answers = services(lab)
    task = worst_of(lab, [Gap(), Costly(number=5)], answers)
    facts = lab.facts(task)
    few = [t for t in task.attacks if isinstance(t.attack, Costly)]
    assert {lab.facts(t)["num_members"] for t in few} == {10}
    alone = lab.facts(WorstCase(seed=3, attacks=tuple(few)))
    # Chance gives more to an attack on fewer records, and that is not changed by the others.
    assert facts["num_attacks"] == 2
    assert alone["chance_accuracy"] - 0.5 > 1.3 * (
        lab.facts(worst_of(lab, [Coin(number=5)], answers))["chance_accuracy"] - 0.5
    )


def test_an_attack_made_for_the_defense_counts_as_one_that_adapts(lab: Any) -> None:
    defended = services(lab, OneHot())
    assert "no_adaptive_attack" not in lab.facts(worst_of(lab, [MadeFor()], defended))["flags"]
