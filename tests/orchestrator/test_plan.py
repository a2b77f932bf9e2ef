"""Plans: what is shared, what is added, in which order, and who holds which rows."""

import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.check import load_experiment
from orchestrator.plan import Cell, Plan, make_plan
from orchestrator.source import packaged
from storage import datasets
from storage.datasets import Source
from tasks.answers import Answers
from tasks.base import Task
from tasks.fit_defense import FitDefense
from tasks.run_attack import RunAttack
from tasks.split import Split
from tasks.train_target import TrainTarget

DATA = {
    "name": "synth_s",
    "generator": {"rows": 400, "classes": 4},
    "split": {"members": 80, "reference": 60, "nonmembers": 80, "untrained": 20},
}
ONCE = {"datasets": [DATA], "seeds": [0], "defenses": ["none"], "attacks": ["gap"]}


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def make(**keys: Any) -> Plan:
        path = tmp_path / "planned.yaml"
        path.write_text(yaml.safe_dump({**ONCE, **keys}))
        return make_plan(load_experiment(str(path)), None)

    return make


def tasks(plan: Plan, kind: type[Task] | str) -> list[Any]:
    name = kind if isinstance(kind, str) else kind.__name__
    return [task for task in plan.tasks.values() if task.kind == name]


def lasting(plan: Plan) -> set[str]:
    """All but the worst cases, which are about the whole set of attacks and seeds."""
    return {key for key, task in plan.tasks.items() if task.kind != "WorstCase"}


def attack_cells(plan: Plan) -> list[Cell]:
    return [cell for cell in plan.cells if cell.kind == "attack"]


def split_of(plan: Plan) -> Any:
    (task,) = tasks(plan, Split)
    return task.divide(datasets.load(task.data.source))


def with_data(**keys: Any) -> Sequence[dict[str, Any]]:
    return [{**DATA, **keys}]


def test_one_target_serves_every_output_defense_and_attack(plan: Any) -> None:
    made = plan(defenses=["none", "prototype", "onehot", "purifier"], attacks=["gap", "nsh"])
    assert len(tasks(made, Split)) == 1
    assert len(tasks(made, TrainTarget)) == 1
    # Each defense answers once, whatever the number of attacks.
    assert Counter(task.name for task in tasks(made, Answers)) == {
        "mlp_s": 1,
        "prototype": 1,
        "onehot": 1,
        "purifier": 1,
    }
    assert len(tasks(made, RunAttack)) == 4 * 2
    assert len(tasks(made, "MeasureUtility")) == 4


def test_a_shadow_model_is_shared_by_all_defenses(plan: Any) -> None:
    made = plan(defenses=["none", "prototype", "onehot"], attacks=["ml_leaks"])
    trained = tasks(made, TrainTarget)
    assert len(trained) == 2
    assert sum(task.rows is None for task in trained) == 1


def test_the_full_purifier_and_the_reformer_alone_share_one_reformer(plan: Any) -> None:
    alone = {"name": "purifier", "label": "reformer only", "swapper": False}
    other = {"name": "purifier", "label": "old order", "order": "old"}
    made = plan(defenses=["purifier", alone, other])
    fits = tasks(made, FitDefense)
    reformers = [fit for fit in fits if not fit.defense.swapper]
    assert len(fits) == 3
    assert len(reformers) == 1
    full = [fit for fit in fits if fit.defense.swapper]
    assert all(fit.trainings == () or fit.trainings[0].key == reformers[0].key for fit in full)
    assert all(fit.trainings for fit in full)
    by_label = {cell.label: cell.task.answers.source for cell in attack_cells(made)}
    assert by_label["reformer only"].key == reformers[0].key


@pytest.mark.parametrize(
    "more",
    [
        {"seeds": [0, 1]},
        {"attacks": ["gap", "nsh", "ml_leaks"]},
        {"defenses": ["none", "purifier", "l2"]},
        {"datasets": [DATA, "digits_binary"]},
        {"adaptive": True, "attacks": ["gap", "ml_leaks"], "defenses": ["none", "purifier"]},
    ],
)
def test_adding_to_an_experiment_only_adds_tasks(plan: Any, more: dict[str, Any]) -> None:
    before, after = plan(), plan(**more)
    assert lasting(before) < lasting(after)


@pytest.mark.parametrize(
    "other",
    [
        {"target": {"epochs": 7}},
        {"datasets": with_data(known=0.25)},
        {"datasets": with_data(generator={"rows": 400, "classes": 4, "data_seed": 1})},
        {"seeds": [1]},
    ],
)
def test_what_changes_a_number_changes_the_keys_that_hang_on_it(
    plan: Any, other: dict[str, Any]
) -> None:
    before, after = plan(), plan(**other)
    kept = {task.kind for key, task in before.tasks.items() if key in after.tasks}
    # The recipe says nothing about the split; everything else here is upstream of all.
    assert kept == ({"Split", "CheckSplit"} if "target" in other else set())


def test_names_and_labels_change_no_key(plan: Any) -> None:
    before = plan(name="a", description="one", defenses=["purifier"], attacks=["gap"])
    labelled = {"name": "purifier", "label": "other"}
    after = plan(name="b", defenses=[labelled], attacks=[{"name": "gap", "label": "g"}])
    assert before.tasks.keys() == after.tasks.keys()


def test_every_task_stands_after_its_inputs(plan: Any) -> None:
    made = plan(
        seeds=[0, 1],
        defenses=["none", "purifier", ["l2", "purifier"], ["purifier", "onehot"]],
        attacks=["gap", "nsh", "ml_leaks"],
        adaptive=True,
    )
    seen: set[str] = set()
    for key, task in made.tasks.items():
        assert key == task.key
        assert {needed.key for needed in task.inputs} <= seen
        seen.add(key)
    assert {cell.task.key for cell in made.cells} <= seen
    # Nothing is planned that no cell needs.
    needed: set[str] = set()
    open_ = [cell.task for cell in made.cells]
    while open_:
        task = open_.pop()
        if task.key not in needed:
            needed.add(task.key)
            open_ += task.inputs
    assert needed == seen


def test_the_same_file_gives_the_same_plan(plan: Any) -> None:
    keys = {"defenses": ["purifier", ["l2", "onehot"]], "attacks": ["ml_leaks"], "adaptive": True}
    first, again = plan(**keys), plan(**keys)
    assert list(first.tasks) == list(again.tasks)
    assert [(c.label, c.attack, c.task.key) for c in first.cells] == [
        (c.label, c.attack, c.task.key) for c in again.cells
    ]


def test_a_grid_spans_a_product_and_labels_each_point(plan: Any) -> None:
    grid = {"latent": [2, 3], "swapper": [True, False]}
    made = plan(
        defenses=[{"name": "purifier", "label": "p", "grid": grid, "epochs": 5}],
        attacks=[{"name": "nsh", "grid": {"width": [0.5, 1.0]}}],
    )
    cells = attack_cells(made)
    assert {cell.label for cell in cells} == {
        f"p[latent={latent},swapper={swapper}]" for latent in (2, 3) for swapper in (True, False)
    }
    assert {cell.attack for cell in cells} == {"nsh[width=0.5]", "nsh[width=1.0]"}
    assert len(cells) == 8
    for cell in cells:
        defense = cell.task.answers.source.defense
        assert cell.label == f"p[latent={defense.latent},swapper={defense.swapper}]"
        assert cell.attack == f"nsh[width={cell.task.attack.width}]"
        assert defense.epochs == 5
    assert len({cell.task.key for cell in cells}) == 8


def test_an_attack_against_some_defenses_meets_only_those(plan: Any) -> None:
    chain = [{"name": "l2"}, {"name": "onehot"}]
    planned = plan(
        defenses=["none", {"name": "rounding", "label": "two digits"}, "onehot", chain],
        attacks=["gap", {"name": "nsh", "against": ["onehot", "two digits"]}],
    )
    met = {cell.label for cell in attack_cells(planned) if cell.attack == "nsh"}
    assert met == {"two digits", "onehot", "l2+onehot"}
    assert len(attack_cells(planned)) == 4 + 3


def test_a_chain_trains_with_its_first_and_fits_each_stage_on_the_one_before(plan: Any) -> None:
    made = plan(defenses=["l2", ["l2", "purifier"], ["l2", "purifier", "onehot"]])
    by_label = {cell.label: cell.task.answers for cell in attack_cells(made)}
    long = by_label["l2+purifier+onehot"]
    assert [type(defense).__name__ for defense in long.defenses] == ["L2", "Purifier", "OneHot"]
    assert long.source.answers.key == by_label["l2+purifier"].key
    assert by_label["l2+purifier"].source.answers.key == by_label["l2"].key
    assert long.columns()["defense"] == "l2+purifier+onehot"
    # One model with L2; one without, against which the cost is measured.
    trained = tasks(made, TrainTarget)
    assert Counter(task.defense is None for task in trained) == {True: 1, False: 1}


def test_utility_is_measured_against_the_undefended_target_of_the_same_seed(plan: Any) -> None:
    made = plan(defenses=["none", ["l2", "onehot"]], seeds=[0, 1])
    baselines = {
        cell.seed: cell.task.answers.key
        for cell in made.cells
        if cell.kind == "utility" and cell.label == "none"
    }
    for cell in made.cells:
        if cell.kind == "utility":
            assert cell.task.baseline.key == baselines[cell.seed]


def test_adaptive_adds_own_copies_on_rows_of_the_attacker_alone(plan: Any) -> None:
    keys = {"defenses": ["none", ["l2", "purifier"]], "attacks": ["gap", "ml_leaks"]}
    plain, made = plan(**keys), plan(**keys, adaptive=True)
    assert lasting(plain) < lasting(made)
    added = {(c.label, c.attack) for c in made.cells} - {(c.label, c.attack) for c in plain.cells}
    # No copy of a defense is to be had where there is none, and gap trains nothing.
    assert added == {("l2+purifier", "ml_leaks adaptive")}

    (cell,) = [c for c in made.cells if c.attack.endswith("adaptive")]
    attack = cell.task
    (copy,) = attack.trainings
    assert attack.adaptive
    assert [type(d).__name__ for d in copy.defenses] == ["L2", "Purifier"]
    held = set(attack_rows(split_of(made)).tolist())
    rows, reference = copy.target.rows.array, copy.target.reference.array
    assert set(rows.tolist()) <= held
    assert set(reference.tolist()) <= held
    assert not set(rows.tolist()) & set(reference.tolist())
    # Nothing of the deployed defense is loaded: no stage of the copy is a stage of the service.
    assert not below(copy) & (below(attack.answers) - {attack.answers.target.split.key})


def test_what_learns_is_fitted_on_one_copy_of_the_service(plan: Any) -> None:
    keys = {"defenses": ["none", "purifier"], "attacks": ["nsh", "metric"], "adaptive": True}
    made = plan(**keys)
    copied = {c.attack: c.task for c in made.cells if c.attack.endswith("adaptive")}
    assert set(copied) == {"nsh adaptive", "metric adaptive"}
    # Both learn from the same copy, which is trained once.
    (copy,) = {task.own_copy.key: task.own_copy for task in copied.values()}.values()
    assert [type(d).__name__ for d in copy.defenses] == ["Purifier"]
    split = split_of(made)
    rows_in, rows_out = copy.target.rows.array, copied["nsh adaptive"].own_copy_out.array
    reference = copy.target.reference.array
    every = np.concatenate([rows_in, rows_out, reference])
    # Of the records to fit on alone: threshold and sign come from others.
    fit = np.concatenate([split.members_fit, split.nonmembers_fit])
    assert sorted(every) == sorted(fit)
    assert len(rows_in) == len(rows_out) == round(0.4 * len(fit))
    assert all(task.own_copy is None for c, task in named(made) if not c.endswith("adaptive"))


def named(plan: Plan) -> list[tuple[str, Any]]:
    return [(cell.attack, cell.task) for cell in attack_cells(plan)]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_large_shadow_has_as_many_records_as_the_target(plan: Any, adaptive: bool) -> None:
    entries = [{"name": name, "shadow_data": "population"} for name in ("nsh", "ml_leaks")]
    entries = [{**entry, "adaptive": adaptive} for entry in entries]
    data = {**DATA, "generator": {"rows": 600, "classes": 4}}
    made = plan(datasets=[data], defenses=["purifier"], attacks=entries)
    split = split_of(made)
    nsh, ml_leaks = (task for _, task in named(made))
    for copy in (nsh.own_copy, ml_leaks.trainings[0]):
        target = getattr(copy, "target", copy)  # without a defense a model is a task by itself
        assert len(target.rows) == len(split.members)
        assert np.isin(target.rows.array, split.population).all()
    assert bool(nsh.own_copy.defenses) == adaptive
    assert np.isin(nsh.own_copy_out.array, split.population).all()


def test_a_shadow_on_another_dataset_is_trained_on_that_alone(plan: Any) -> None:
    entry = {"name": "ml_leaks", "adversary": 2, "transfer_from": "digits_binary"}
    made = plan(attacks=[entry, {**entry, "adaptive": True}], defenses=["onehot"])
    plain, copy = (task.trainings[0] for _, task in named(made))
    other = datasets.load(Source("digits_binary"))
    for target in (plain, copy.target):
        assert target.split.data.name == "digits_binary"
        assert target.architecture.name == "mlp_s"
    assert len(plain.rows) == len(other) // 2
    assert [type(d).__name__ for d in copy.defenses] == ["OneHot"]


def test_equal_records_are_on_one_side_of_an_own_copy(plan: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(300, 30)).repeat(2, axis=0)
    path = tmp_path / "twice.npz"
    np.savez(path, x=x, y=(x[:, 0] + 2 * x[:, 1]).astype(np.int64))
    sizes = {"members": 200, "reference": 100, "nonmembers": 200}
    data = {"name": "twice", "path": str(path), "split": sizes}
    keys = {"datasets": [data], "defenses": ["onehot"], "adaptive": True}
    made = plan(**keys, attacks=["nsh", "ml_leaks"])
    tasks_of = dict(named(made))
    copy, out = tasks_of["nsh adaptive"].own_copy, tasks_of["nsh adaptive"].own_copy_out
    sides = [copy.target.rows.array, copy.target.reference.array, out.array]
    every = x[np.concatenate(sides)]
    assert len(np.unique(every, axis=0)) == len(every)
    shadow = tasks_of["ml_leaks"].trainings[0]
    assert len(np.unique(x[shadow.rows.array], axis=0)) == len(shadow.rows)


def test_what_adapts_already_or_not_at_all_has_no_adaptive_form(plan: Any) -> None:
    attacks = [
        "gap",
        {"name": "ml_leaks", "adversary": 3},
        {"name": "metric", "fit_on": "clean"},
        {"name": "swap_probe"},
    ]
    made = plan(defenses=["purifier"], attacks=attacks, adaptive=True)
    assert not [name for name, _ in named(made) if name.endswith("adaptive")]
    assert len(named(made)) == 4


def test_efforts_are_of_the_attack_and_not_of_its_label(plan: Any) -> None:
    attacks = [{"name": "nsh", "label": "one"}, {"name": "nsh", "label": "two", "epochs": 7}]
    made = plan(defenses=["onehot"], attacks=attacks, retry=True, seeds=[0, 1])
    for _, task in named(made):
        assert task.effort.first.attack == task.attack
    assert len(tasks(made, "ChooseEffort")) == 2


def test_weak_attacks_are_tried_harder_once_for_all_seeds(plan: Any) -> None:
    keys = {"defenses": ["none", "onehot"], "attacks": ["gap", "nsh"], "seeds": [3, 4]}
    made = plan(**keys, retry=True)
    (effort,) = tasks(made, "ChooseEffort")
    assert effort.first.seed == 3
    assert effort.first.answers.defenses
    tried = {(c.label, c.attack, c.seed): c.task.effort for c in attack_cells(made)}
    for (label, attack, _), given in tried.items():
        # There is no harder gap attack, and nothing is to be blamed on no defense.
        assert (given is not None) == ((label, attack) == ("onehot", "nsh"))
    assert lasting(plan(**keys)) - lasting(made) == {
        c.task.key
        for c in attack_cells(plan(**keys))
        if (c.label, c.attack, c.seed) == ("onehot", "nsh", 4)
    }


def attack_rows(split: Any) -> np.ndarray:
    """By hand: what the attacker holds are the fit and cal parts of D1 and D3, nothing else."""
    parts = (
        split.members_fit,
        split.members_cal,
        split.nonmembers_fit,
        split.nonmembers_cal,
    )
    return np.concatenate(parts)


def below(task: Task) -> set[str]:
    found = {task.key}
    for needed in task.inputs:
        found |= below(needed)
    return found


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("attack", ["ml_leaks"])
def test_the_attackers_share_bounds_what_its_models_train_on(
    plan: Any, share: float, attack: str
) -> None:
    made = plan(datasets=with_data(known=share), attacks=[attack])
    split = split_of(made)
    held = attack_rows(split)
    assert len(held) == round(share * 80) * 2
    (cell,) = attack_cells(made)
    for training in cell.task.trainings:
        assert set(training.rows.array.tolist()) <= set(held.tolist())
        assert len(training.rows) <= len(held)


def test_judging_the_reference_changes_the_rows_held_but_not_the_target(plan: Any) -> None:
    keys = {"attacks": ["gap", "ml_leaks"], "defenses": ["purifier"]}
    usual = plan(**keys)
    made = plan(datasets=with_data(judge="reference"), **keys)
    shared = {task.kind for key, task in made.tasks.items() if key in usual.tasks}
    assert {"Split", "TrainTarget", "FitDefense", "Answers", "MeasureUtility"} <= shared
    assert "RunAttack" not in shared
    split = split_of(made)
    for cell in attack_cells(made):
        assert cell.task.judge == "reference"
        for training in cell.task.trainings:
            rows = training.rows.array
            assert not np.isin(rows, split.members).any()
            assert np.isin(rows, np.concatenate([split.reference, split.nonmembers])).all()


def test_untrained_records_train_nothing(plan: Any) -> None:
    made = plan(datasets=with_data(judge="untrained"), attacks=["ml_leaks"], defenses=["purifier"])
    split = split_of(made)
    fresh = np.concatenate([split.untrained_a, split.untrained_b])
    assert len(fresh) == 40
    assert not np.isin(split.members, fresh).any()
    for task in tasks(made, TrainTarget):
        if task.rows is not None:
            assert not np.isin(task.rows.array, fresh).any()


def test_presets_and_fields_meet_in_the_plugin(plan: Any) -> None:
    made = plan(
        preset="sound",
        defenses=[
            {"name": "purifier", "preset": "cpu", "label": "a", "epochs": 3},
            {"name": "purifier", "label": "b"},
        ],
    )
    by_label = {cell.label: cell for cell in attack_cells(made)}
    small, usual = (by_label[label].task.answers.source.defense for label in "ab")
    assert (small.hidden, small.epochs) == ((32, 64, 128), 3)
    assert (usual.latent, usual.epochs) == (2, 100)  # the published row for few classes
    assert (by_label["a"].preset, by_label["b"].preset) == ("cpu", "sound")


def test_noise_given_for_a_defense_reaches_its_answers(plan: Any) -> None:
    made = plan(defenses=[{"name": "purifier", "noise": "fresh"}])
    assert attack_cells(made)[0].task.answers.noise == "fresh"


@lru_cache
def packaged_plan(name: str) -> tuple[Plan, float]:
    started = time.perf_counter()
    made = make_plan(load_experiment(name), None)
    return made, time.perf_counter() - started


@pytest.mark.parametrize("name", [name for name in packaged() if name in ("quickstart", "null")])
def test_packaged_plans_are_whole_and_quick(name: str) -> None:
    made, seconds = packaged_plan(name)
    print(f"{name}: {len(made.tasks)} tasks planned in {seconds:.2f} s")  # noqa: T201
    assert len({cell.task.key for cell in made.cells}) == len(made.cells)
    assert {cell.dataset for cell in made.cells} == {d.name for d in made.experiment.datasets}
