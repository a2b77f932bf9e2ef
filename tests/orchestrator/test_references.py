"""`reference:` of a defense: labels, plans, own copies, runs, and what is refused before one."""

import json
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.check import check, load_experiment
from orchestrator.config import Experiment
from orchestrator.plan import Plan, make_plan
from orchestrator.references import reference_from
from storage import datasets
from tasks.answers import Answers
from tasks.fit_defense import FitDefense
from tasks.train_shadows import LoneShadow
from tasks.train_target import TrainTarget

DATA = {
    "name": "synth_s",
    "generator": {"rows": 400, "classes": 4, "features": 64},
    "split": {"members": 80, "reference": 60, "nonmembers": 80, "untrained": 20},
}
SMALL = {"hidden": [8, 8, 8], "latent": 2, "epochs": 2}


def content(*defenses: Any, **keys: Any) -> dict[str, Any]:
    usual = {"name": "planned", "datasets": [DATA], "attacks": ["gap"]}
    return {**usual, "defenses": list(defenses), **keys}


def planned(*defenses: Any, **keys: Any) -> Plan:
    raw = content(*defenses, **keys)
    assert check(raw, None) == []
    return make_plan(Experiment.model_validate(raw), None)


def fits(plan: Plan, label: str) -> list[FitDefense]:
    """The fits behind the answers of one defense, the outermost first."""
    (cell,) = [c for c in plan.cells if c.label == label and c.kind == "utility"]
    found, answers = [], cell.task.answers
    while isinstance(answers.source, FitDefense):
        found.append(answers.source)
        answers = answers.source.answers
    return found


def purifier(reference: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "purifier", **SMALL, "reference": reference, **fields}


@pytest.mark.parametrize(
    ("reference", "label"),
    [
        ("reference", "purifier (reference: reference)"),
        ({"size": 30}, "purifier (reference: 30)"),
        ("members", "purifier (reference: members)"),
        ({"from": "members", "size": 30}, "purifier (reference: members 30)"),
        ({"from": "random", "size": 30}, "purifier (reference: random 30)"),
        ("digits_binary", "purifier (reference: digits_binary)"),
    ],
)
def test_a_label_tells_the_reference(reference: Any, label: str) -> None:
    made = planned(purifier(reference), purifier("members", label="mine"))
    assert [cell.label for cell in made.cells if cell.kind == "utility"] == [label, "mine"]


def test_all_of_the_reference_is_what_it_is_without_the_key() -> None:
    usual = planned(purifier(None, label="p"))
    assert planned(purifier("reference", label="p")).tasks.keys() == usual.tasks.keys()
    assert planned(purifier({"from": "reference"}, label="p")).tasks.keys() == usual.tasks.keys()
    assert planned(purifier({"size": 60}, label="p")).tasks.keys() != usual.tasks.keys()


def test_the_reformer_and_the_swapper_are_given_the_same() -> None:
    made = planned("purifier", purifier("members"), purifier("members", label="r", swapper=False))
    (full,) = fits(made, "purifier (reference: members)")
    (shared,) = full.trainings
    assert full.reference_from is not None
    assert full.reference_from.role == "members"
    assert isinstance(shared, FitDefense)
    assert shared.reference_from == full.reference_from
    assert fits(made, "r")[0].key == shared.key
    (usual,) = fits(made, "purifier")
    assert usual.reference_from is None
    assert usual.trainings[0].key != shared.key
    # One model for all of them.
    assert sum(isinstance(task, TrainTarget) for task in made.tasks.values()) == 1


def test_each_defense_of_a_chain_has_its_own() -> None:
    chain = [
        {"name": "minmax", "reference": "members"},
        {"name": "prototype", "reference": {"size": 20}},
        "prototype",
    ]
    made = planned(chain, ["minmax", "prototype"])
    outer, inner = fits(made, "minmax (reference: members)+prototype (reference: 20)+prototype")
    assert outer.reference_from is None
    assert inner.reference_from is not None
    assert inner.reference_from.size == 20
    assert inner.target.reference_from is not None  # type: ignore[union-attr]
    assert inner.target.reference_from.role == "members"  # type: ignore[union-attr]
    (plain,) = fits(made, "minmax+prototype")
    assert plain.target.key != inner.target.key
    params = json.loads(outer.answers.columns()["defense_params"])
    shown = [entry.get("reference") for entry in params]
    assert shown == [{"from": "members", "size": None}, {"from": "reference", "size": 20}]


@pytest.mark.parametrize(
    ("reference", "copied"),
    [
        ({"size": 30}, None),
        ("nonmembers", None),
        ("digits_binary", None),
        ({"from": "members", "size": 30}, ("members", None)),
        ({"from": "random", "size": 30}, ("random", 30)),
    ],
)
def test_own_copies_and_shadows_never_hold_the_defenders_records(
    reference: Any, copied: tuple[str, int | None] | None
) -> None:
    made = planned(
        purifier(reference, label="p"),
        attacks=["ml_leaks", {"name": "lira", "num_shadows": 6}],
        adaptive=True,
    )
    seen = 0
    for cell in made.cells:
        if cell.kind != "attack" or not cell.task.adaptive:
            continue
        for answers in cell.task.trainings:
            assert isinstance(answers, Answers)
            assert isinstance(answers.source, FitDefense)
            for fit in (answers.source, *answers.source.trainings):
                own = fit.reference_from
                assert (own and (own.role, own.size)) == copied
                seen += 1
    assert seen == 2 * (1 + 6)


def test_a_shadow_mirrors_a_training_defense_fitted_on_members() -> None:
    attacks = [{"name": "lira", "num_shadows": 6, "adaptive": True}]
    made = planned({"name": "minmax", "reference": "members"}, attacks=attacks)
    alone = [task for task in made.tasks.values() if isinstance(task, LoneShadow)]
    assert len(alone) == 6
    assert {task.reference_from and task.reference_from.role for task in alone} == {"members"}


def test_a_dataset_of_the_experiment_may_be_named(tmp_path: Any) -> None:
    path = tmp_path / "own.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 2, (300, 64)).astype(np.uint8), y=np.arange(300) % 3)
    own = {"name": "clinic", "path": str(path), "split": DATA["split"]}
    raw = content(purifier("clinic"), datasets=[own])
    (problem,) = check(raw, None)
    assert "'clinic' is the target's own data set" in problem.message
    experiment = Experiment.model_validate({**raw, "datasets": [own, DATA]})
    (entry,) = experiment.defenses[0]
    choice = reference_from(entry.reference, experiment.datasets, None)
    assert choice is not None
    assert choice.data is not None
    assert choice.data.content_hash == datasets.load(experiment.datasets[0].source).content_hash


def test_what_is_resolved_can_be_run_again(tmp_path: Any) -> None:
    raw = content("purifier", purifier({"from": "random", "size": 30}), purifier("members"))
    experiment = Experiment.model_validate(raw)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(experiment.resolved()))
    again = load_experiment(str(path))
    assert again == experiment
    assert make_plan(again, None).tasks.keys() == make_plan(experiment, None).tasks.keys()


@pytest.mark.parametrize(
    ("defense", "place", "message"),
    [
        (purifier({"size": 61}), "reference.size", "wants 61 records, but 'synth_s' has 60 ref"),
        (purifier({"from": "members", "size": 81}), "reference.size", "has 80 members; make it 80"),
        (purifier({"from": "nonmembers", "size": 81}), "reference.size", "has 80 nonmembers"),
        (purifier({"from": "digits_binary", "size": 1798}), "reference.size", "has 1797"),
        (purifier("nonmember"), "reference.from", "did you mean 'nonmembers'?"),
        (purifier("cifar100"), "reference.from", "SFUMATO_DATA"),
        (purifier("synth_s"), "reference.from", "the target's own data set"),
        (purifier("synth_hard"), "reference.from", "give a data set of as many features"),
        (purifier("digits"), "reference.from", "features nor features to images"),
        (purifier({"from": "random", "sise": 20}), "reference.sise", "did you mean 'size'?"),
        (purifier({"size": True}), "reference.size", "must be a whole number, got true"),
        (purifier({"size": 3}), "reference.size", "must be at least 10"),
        (purifier(["members"]), "reference", "must be where it comes from"),
        ({"name": "none", "reference": "members"}, "reference", "fitted on nothing; drop the key"),
        ({"name": "minmax", "reference": "random"}, "reference.from", "shapes the training"),
        ({"name": "hamp", "reference": "digits_binary"}, "reference.from", "shapes the training"),
    ],
)
def test_one_clear_problem_before_anything_runs(defense: Any, place: str, message: str) -> None:
    (problem,) = check(content("none", defense), None)
    assert problem.path == f"defenses[1].{place}"
    assert message in problem.message


def test_a_judged_reference_is_not_to_be_changed() -> None:
    data = {**DATA, "judge": "reference"}
    (problem,) = check(content(purifier({"size": 30}), datasets=[data]), None)
    assert problem.path == "defenses[0].reference"
    assert "judge: reference" in problem.message
    assert check(content("purifier", datasets=[data]), None) == []


def test_a_leaky_defense_is_marked_and_others_are_not(lab: Any) -> None:
    defenses = [
        {"name": "prototype"},
        {"name": "prototype", "reference": "nonmembers"},
        purifier({"from": "random", "size": 40}),
        purifier({"from": "members"}),
    ]
    outcome, quiet = lab.run(datasets=[DATA], defenses=defenses, attacks=["gap"])
    assert not outcome.failed, quiet.notes
    for table in ("results", "utility"):
        rows = lab.store.tables.frame(table, "tiny")
        leaky = {row["label"]: "leaky" in list(row["flags"]) for _, row in rows.iterrows()}
        assert leaky == {
            "prototype": False,
            "prototype (reference: nonmembers)": True,
            "purifier (reference: random 40)": False,
            "purifier (reference: members)": False,
        }
    utility = lab.store.tables.frame("utility", "tiny").set_index("label")
    # The swap rate comes from D2 whatever the reformer learns from.
    rates = utility.loc[["purifier (reference: random 40)", "purifier (reference: members)"]]
    assert (rates["swap_rate_members"] > 0.02).all()
