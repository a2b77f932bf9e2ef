"""Failed tasks are named by the defenses and attacks that they are for."""

import shutil

import pytest

from orchestrator._places import Places
from orchestrator.check import load_experiment
from orchestrator.plan import make_plan
from orchestrator.resume import Store


@pytest.fixture(scope="module")
def plan(module_lab):
    """The small experiment, with shadow models that several attacks share."""
    attacks = ["gap", {"name": "lira", "num_shadows": 4}, {"name": "nsh", "epochs": 1}]
    return make_plan(load_experiment(str(module_lab.file(attacks=attacks, seeds=[0, 1]))), None)


def closure(task):
    return {task.key}.union(*map(closure, task.inputs))


def test_names_are_those_of_all_cells_that_rest_on_a_task(plan):
    places = Places(plan)
    needs = {cell.task.key: closure(cell.task) for cell in plan.cells}
    for key, task in plan.tasks.items():
        own = [cell for cell in plan.cells if cell.task.key == key]
        above = [
            cell
            for cell in plan.cells
            if key in needs[cell.task.key] and cell.kind in ("attack", "utility")
        ]
        cells = own or above
        assert cells
        labels = list(dict.fromkeys(cell.label for cell in cells if cell.label))
        attacks = {cell.attack for cell in cells}
        first, where, *rest = places.named(key).split(", ")
        assert first == f"{task.kind} {task.name}".rstrip()
        assert where == f"{task.dataset} seed {task.seed}"
        told = ", ".join(rest)
        if len(labels) == 4:
            assert told.startswith("all 4 defenses")
        elif labels:
            assert told.startswith(f"defense {labels[0]}")
            assert all((label in told) == (label in labels) for label in ("none", "l2+onehot"))
        assert ("attack " in told) == ("" not in attacks)
        if "" not in attacks:
            assert all(attack in told for attack in attacks)


def test_a_run_and_its_status_name_defense_and_attack(place):
    attacks = ["gap", {"name": "nsh", "label": "hot", "epochs": 1, "learning_rate": 1e30}]
    said = place.run(attacks=attacks)
    assert said.code == 1
    for label in ("none", "prototype"):
        name = f"RunAttack nsh, synth_s seed 0, defense {label}, attack hot: "
        assert f"failed: {name}" in said.flat
        assert said.flat.count(name) == 2  # as it happens, and at the end
        status = place.command("status", place.file(attacks=attacks), "--store", place.store)
        assert f"failed: {name}" in status.flat


def test_status_names_failed_tasks_that_fill_no_cell(done):
    plan = make_plan(load_experiment(done.file()), None)
    (fit,) = (key for key, task in plan.tasks.items() if task.kind == "FitDefense")
    resting = [key for key, task in plan.tasks.items() if fit in closure(task)]
    for key in resting:
        shutil.rmtree(done.artifacts()[key])
    row = {"kind": "FitDefense", "name": "prototype", "error": "ValueError: no", "attempts": 1}
    Store(done.store).tables.write("failures", fit, [row])
    said = done.command("status", done.file(), "--store", done.store)
    name = "FitDefense prototype, synth_s seed 0, defense prototype"
    assert f"failed: {name}: ValueError: no" in said.flat
