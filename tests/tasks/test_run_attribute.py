"""The attacker gets the answers about judged records and its own records, and nothing else."""

import json
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from attacks.attribute import Attribute
from attacks.base import Attack
from defenses.onehot import OneHot
from tasks import training
from tasks.answers import Answers
from tasks.run_attribute import RunAttribute, attribute_values
from tasks.worker import Bench


class Spy(Attack):
    """Keeps what it was given, and answers what a test wants."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"

    returns: str = "first"
    seen: ClassVar[dict[str, Any]] = {}

    def infer(
        self, answers: Any, own_answers: Any, own_values: Any, *, num_values: int, seed: int
    ) -> Any:
        Spy.seen = {"answers": answers, "own": own_answers, "values": own_values, "seed": seed}
        score = np.zeros((len(answers), num_values))
        match self.returns:
            case "nan":
                return score + np.nan
            case "short":
                return score[1:]
        return score


class Labels(Spy):
    """The same where the service tells labels only."""

    ACCESS: ClassVar[Any] = "label"


class Given(Bench):
    """A bench whose dataset has an attribute, and other records where a test says so."""

    def __init__(self, lab: Any, sens: Any, poisoned: Any = ()) -> None:
        super().__init__(lab.site)
        self.sens, self.poisoned = sens, np.asarray(poisoned, dtype=np.int64)

    def dataset(self, data: Any) -> Any:
        dataset = super().dataset(data)
        values = np.array(dataset._values)
        values[self.poisoned] = 1 - values[self.poisoned]
        return replace(dataset, extras={"sens": self.sens}, _values=values)


def ran(bench: Bench, task: RunAttribute) -> Any:
    bench.artifacts.put(task.key, task.description, lambda draft: task.run(bench, draft))
    return bench.open(task)


def attack(answers: Answers, plugin: Attack, **fields: Any) -> RunAttribute:
    given = {"judge": "members", "column": "sens", **fields}
    return RunAttribute(answers.seed, answers, plugin, **given)


@pytest.fixture(scope="module")
def parity(lab: Any) -> Any:
    """Whether the digit is odd: what a classifier of digits tells if it is any good."""
    return lab.dataset.y % 2


def test_it_sees_the_answers_and_its_own_records_only(own_lab: Any, parity: Any) -> None:
    lab = own_lab
    task = attack(lab.plain, Spy())
    bench = Given(lab, parity)
    artifact = ran(bench, task)
    split = bench.split(lab.split)
    judged, is_member = split.judged()
    fit, _, cal, _ = split.known()
    own = np.concatenate([fit, cal])
    table = artifact.table("records")
    assert sorted(table["record"]) == sorted(judged)
    assert not np.array_equal(table["record"], judged)
    assert sorted(table["record"][table["is_member"]]) == sorted(judged[is_member])
    np.testing.assert_array_equal(table["value"], parity[table["record"]])
    np.testing.assert_array_equal(Spy.seen["answers"], lab.plain.of(table["record"], bench))
    np.testing.assert_array_equal(Spy.seen["own"], lab.plain.of(own, bench))
    np.testing.assert_array_equal(Spy.seen["values"], parity[own])
    facts = artifact.facts("metrics")
    assert (facts["num_known"], facts["num_queries"]) == (60, 60)
    assert (facts["num_members"], facts["num_nonmembers"]) == (30, 30)
    assert facts["attribute"] == "sens"


def test_judged_records_could_be_anything(own_lab: Any, parity: Any, tmp_path: Any) -> None:
    """Once the service has answered, nothing is read of the records it was asked about."""
    task = attack(own_lab.plain, Attribute(epochs=3))
    honest = ran(Given(own_lab, parity), task).table("records")
    other = own_lab.elsewhere(tmp_path / "b", keep=(own_lab.split, own_lab.target, own_lab.plain))
    judged = other.bench.split(other.split).judged()[0]
    poisoned = ran(Given(other, parity, poisoned=judged), task).table("records")
    for name, column in honest.items():
        np.testing.assert_array_equal(column, poisoned[name])


def test_its_values_of_judged_records_are_read_for_the_figures_only(
    own_lab: Any, parity: Any, tmp_path: Any
) -> None:
    task = attack(own_lab.plain, Spy())
    judged = own_lab.bench.split(own_lab.split).judged()[0]
    ran(Given(own_lab, parity), task)
    before = dict(Spy.seen)
    turned = parity.copy()
    turned[judged] = 1 - turned[judged]
    other = own_lab.elsewhere(tmp_path / "b", keep=(own_lab.split, own_lab.target, own_lab.plain))
    ran(Given(other, turned), task)
    for name in ("answers", "own", "values", "seed"):
        np.testing.assert_array_equal(Spy.seen[name], before[name])


def test_what_the_label_tells_is_found_and_what_it_does_not_is_not(
    own_lab: Any, parity: Any
) -> None:
    rng = np.random.default_rng(0)
    told = ran(Given(own_lab, parity), attack(own_lab.plain, Attribute())).facts("metrics")
    assert told["balanced_accuracy_low"] > 0.5
    assert told["mutual_information"] > 0.1
    assert told["balanced_accuracy_members"] > 0.85  # the target knows them by heart
    nothing = rng.integers(3, size=len(parity))
    task = attack(own_lab.defended(OneHot()), Attribute())
    for needed in task.inputs:
        own_lab.run(needed)
    figures = ran(Given(own_lab, nothing), task).facts("metrics")
    assert figures["balanced_accuracy_low"] < 1 / 3 < figures["balanced_accuracy_high"]
    assert figures["uniform_accuracy"] == pytest.approx(1 / 3)


def test_records_without_a_value_are_left_out(own_lab: Any, parity: Any) -> None:
    sens = parity.astype(float)
    sens[::3] = np.nan
    artifact = ran(Given(own_lab, sens), attack(own_lab.plain, Spy()))
    table, facts = artifact.table("records"), artifact.facts("metrics")
    assert (table["record"] % 3 != 0).all()
    assert len(Spy.seen["own"]) == facts["num_queries"] == facts["num_known"] < 60
    assert facts["num_members"] + facts["num_nonmembers"] == len(table["record"]) < 60
    known = np.bincount(Spy.seen["values"]).argmax()
    assert facts["majority_accuracy"] == np.mean(table["value"] == known)


def test_where_the_service_tells_labels_so_does_what_is_handed_over(
    own_lab: Any, parity: Any
) -> None:
    ran(Given(own_lab, parity), attack(own_lab.plain, Labels()))
    assert Spy.seen["answers"].shape == (60,)
    assert Spy.seen["own"].dtype == np.int64


def test_from_the_hidden_layer_it_sees_more_than_from_a_label(own_lab: Any, parity: Any) -> None:
    """Whatever stands before the answers: they are not asked for."""
    defended = own_lab.defended(OneHot())
    for needed in attack(defended, Spy()).inputs:
        own_lab.run(needed)
    bench = Given(own_lab, parity)
    artifact = ran(bench, attack(defended, Spy(), layer="hidden"))
    network = training.load_module(
        own_lab.target.architecture,
        bench.open(own_lab.target).arrays("weights"),
        own_lab.dataset.shape,
        10,
    )
    rows = artifact.table("records")["record"]
    expected = training.logits(network[:-1], own_lab.dataset.x(rows))  # type: ignore[index]
    np.testing.assert_array_equal(Spy.seen["answers"], expected)
    assert Spy.seen["own"].shape == (60, 64)
    assert artifact.facts("metrics")["num_queries"] == 0
    # Asked for answers, the task is the one it was before there was a choice.
    plain = attack(defended, Spy())
    assert "layer" not in json.loads(plain.description)["fields"]
    assert plain.key != attack(defended, Spy(), layer="hidden").key


@pytest.mark.parametrize("returns", ["nan", "short"])
def test_scores_that_are_none_are_refused(own_lab: Any, parity: Any, returns: str) -> None:
    with pytest.raises(ValueError, match=r"must return finite scores \[60, 2\]"):
        ran(Given(own_lab, parity), attack(own_lab.plain, Spy(returns=returns)))


def test_the_row_says_what_was_run(lab: Any, parity: Any) -> None:
    task = attack(lab.plain, Attribute())
    assert task.name == "attribute"
    assert [needed.kind for needed in task.inputs] == ["Answers"]
    assert json.loads(task.description)["fields"]["column"] == "sens"
    assert task.key != attack(lab.plain, Attribute(), column="other").key


def test_values_are_numbered_in_order_and_missing_ones_are_none(lab: Any) -> None:
    texts = np.array(["b", "", "a", "b", "a"] * 359 + ["a", "b"], dtype=object)
    dataset = replace(lab.dataset, extras={"sens": texts})
    code, names = attribute_values(dataset, "sens")
    assert names == ("a", "b")
    assert code[:5].tolist() == [1, -1, 0, 1, 0]


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"other": np.zeros(1797)}, "has no column 'sens' beside its features: other"),
        ({"sens": np.zeros(1797)}, "has 1 different values"),
        ({"sens": np.arange(1797)}, "has 1797 different values"),
        ({"sens": np.zeros((1797, 2))}, "one value a record is needed"),
    ],
)
def test_columns_that_are_no_attribute_are_refused(lab: Any, extras: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attribute_values(replace(lab.dataset, extras=extras), "sens")
