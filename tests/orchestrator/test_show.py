"""`show KEY` tells the chain behind a number from the store alone."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from orchestrator.check import load_experiment
from orchestrator.plan import Plan, make_plan
from orchestrator.resume import Store
from orchestrator.show import find_key, look_up
from storage.artifacts import Artifacts
from tasks.versions import software

LIRA = {"attacks": ["gap", {"name": "lira", "num_shadows": 8}]}


@dataclass(frozen=True)
class World:
    place: Any
    plan: Plan

    @property
    def store(self) -> Store:
        return Store(self.place.store)

    def closure(self, task) -> set[str]:
        """The keys a task was made from and its own, from the plan."""
        return {task.key}.union(*map(self.closure, task.inputs))

    def key(self, attack, label="prototype") -> str:
        cells = self.plan.cells
        return next(c.task.key for c in cells if c.label == label and c.attack == attack)

    def show(self, *args):
        return self.place.command("show", *args, "--store", self.place.store)

    def shown(self, key) -> dict:
        said = self.show(key, "--format", "json")
        assert said.code == 0, said.text
        return json.loads(said.text)


@pytest.fixture(scope="module")
def _ran(finished, tmp_path_factory):
    place = type(finished)(tmp_path_factory.mktemp("show"))
    assert place.run(**LIRA).code == 0
    plan = make_plan(load_experiment(place.file(**LIRA)), None)
    return World(place, plan)


@pytest.fixture
def world(_ran, tmp_path):
    shutil.copytree(_ran.place.folder, tmp_path, dirs_exist_ok=True)
    return World(type(_ran.place)(tmp_path), _ran.plan)


def replace(world, key, **measured):
    """Another artifact of the same task, measured otherwise."""
    artifacts = world.store.artifacts
    text = json.dumps(artifacts.open(key).description)
    artifacts.set_aside(key, "replaced by a test")
    artifacts.put(key, text, lambda draft: draft.facts("measured", measured))
    world.store.tables.remove("tasks", key)


def test_the_chain_is_what_the_plan_made_it_from(world):
    for task in world.plan.tasks.values():
        shown = look_up(world.store, task.key)
        assert set(shown.chain) == world.closure(task)
        for key, step in shown.chain.items():
            planned = world.plan.tasks[key]
            assert (step.kind, step.name) == (planned.kind, planned.name)
            assert (step.dataset, step.seed) == (planned.dataset, planned.seed)
            assert {below for _, below in step.inputs} == {t.key for t in planned.inputs}
            assert step.state == "complete"
            assert step.measured["duration_s"] >= 0


def test_settings_with_inputs_and_seed_are_all_that_was_hashed(world):
    for task in world.plan.tasks.values():
        step = look_up(world.store, task.key).step
        fields = json.loads(task.description)["fields"]
        roles = {role for role, _ in step.inputs}
        assert set(step.settings) | roles | {"seed"} == set(fields)
        assert all(fields[name] == value for name, value in step.settings.items())


def test_figures_are_the_tables_bit_for_bit(world):
    shown = world.shown(world.key("gap"))
    (row,) = shown["figures"]["results"]
    frame = world.store.tables.frame("results")
    (held,) = frame[frame["task_key"] == world.key("gap")].to_dict("records")
    assert row["attack_accuracy"] == held["attack_accuracy"]
    assert row["auc_low"] == held["auc_low"]
    assert row["flags"] == list(held["flags"])
    assert pd.Timestamp(row["created_at"]) == held["created_at"]
    assert not [name for name, value in row.items() if value is None or value != value]


def test_cells_are_those_the_task_fills_and_others_are_counted(world):
    (cell,) = world.shown(world.key("gap"))["cells"]
    assert (cell["experiment"], cell["label"], cell["attack"]) == ("tiny", "prototype", "gap")
    cells = world.plan.cells
    filled = {cell.task.key for cell in cells}
    for key in world.plan.tasks.keys() - filled:
        rest_on_it = sum(1 for cell in cells if key in world.closure(cell.task))
        assert world.shown(key)["served"] == {"tiny": rest_on_it}


def test_every_task_says_what_it_was_computed_with(world):
    shown = look_up(world.store, world.key("lira(num_shadows=8)"))
    assert shown.versions == [(software(), len(shown.chain))]
    kept = world.store.tables.frame("tasks")["versions"]
    assert all(json.loads(text) == software() for text in kept)
    folder = world.store.experiment("tiny")
    beside = json.loads((folder / "versions.json").read_text())
    assert beside["python"] == software()["python"]
    assert beside["packages"].items() >= software()["packages"].items()


def test_a_chain_of_mixed_versions_is_told(world):
    key = world.key("gap")
    (split,) = (k for k, t in world.plan.tasks.items() if t.kind == "Split")
    other = {**software(), "commit": "f" * 40}
    other["packages"] = {**other["packages"], "torch": "1.0"}
    replace(world, split, duration_s=1.0, versions=other)
    said = world.show(key).flat
    assert "the chain mixes commits: " in said
    assert "the chain mixes torch: " in said
    assert "mixes numpy" not in said


def test_artifacts_older_than_versions_are_told(world):
    (split,) = (k for k, t in world.plan.tasks.items() if t.kind == "Split")
    replace(world, split, duration_s=1.0)
    shown = look_up(world.store, world.key("gap"))
    assert [count for versions, count in shown.versions if versions is None] == [1]
    assert "1 tasks were computed before versions were kept" in shown.warnings


def test_the_chain_goes_on_behind_a_damaged_input_and_ends_at_an_absent_one(world):
    key = world.key("gap")
    whole = look_up(world.store, key)
    target = next(step for step in whole.chain.values() if step.kind == "TrainTarget")
    split = next(step for step in whole.chain.values() if step.kind == "Split")
    artifacts = world.place.artifacts()
    (payload, *_) = sorted(artifacts[target.key].glob("*.safetensors"))
    payload.write_bytes(payload.read_bytes()[:-1])
    shutil.rmtree(artifacts[split.key])
    shown = look_up(world.store, key)
    assert set(shown.chain) == set(whole.chain)
    assert shown.chain[target.key].state == "damaged"
    assert shown.chain[target.key].inputs == target.inputs
    assert shown.chain[split.key].state == "absent"
    assert shown.chain[split.key].kind == "Split"  # the table of tasks still knows
    said = world.show(key).flat
    assert f"damaged: TrainTarget {target.key[:12]}" in said
    assert f"absent: Split {split.key[:12]}" in said


def test_a_task_whose_plugin_experiment_and_tables_are_gone_is_shown(world):
    shutil.rmtree(world.place.store / "experiments")
    shutil.rmtree(world.place.store / "tables")
    gone = {"type": "attacks.gone.Gone", "version": 7, "fields": {"width": 3}}
    below = world.key("gap")
    told = {"fields": {"attack": gone, "before": {"task": below}}, "kind": "Old", "version": 9}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(text.encode()).hexdigest()
    Artifacts(world.place.store / "artifacts").put(key, text, lambda draft: None)
    said = world.show(key).flat
    assert "Gone(width=3; version 7)" in said
    assert f"before: RunAttack {below[:12]}" in said
    assert "no cell of an experiment in this store rests on it" in said


def test_a_failed_task_shows_its_error(world):
    key = world.key("gap")
    shutil.rmtree(world.place.artifacts()[key])
    row = {"kind": "RunAttack", "name": "gap", "error": "ValueError: too warm", "attempts": 2}
    world.store.tables.write("failures", key, [row])
    assert "failed after 2 attempts: ValueError: too warm" in world.show(key).flat


def test_many_alike_inputs_are_one_line_unless_all_are_wanted(world):
    key = world.key("lira(num_shadows=8)")
    answers = [t for t in world.plan.tasks[key].inputs if t.kind == "Answers"][-8:]
    assert len(answers) == 8
    short, full = world.show(key).text, world.show(key, "--all").text
    assert "trainings: 8 x Answers" in short
    assert [t.key[:12] in short for t in answers] == [True] + [False] * 7
    assert all(t.key[:12] in full for t in answers)
    assert " x Answers" not in full


def test_each_task_is_spelled_out_once(world):
    for args in ((), ("--all",)):
        text = world.show(world.key("lira(num_shadows=8)"), *args).text
        for key in world.plan.tasks:
            lines = [line for line in text.splitlines() if key[:12] in line and "key " not in line]
            assert sum("see above" not in line for line in lines) <= 1


def test_first_digits_are_enough_while_they_name_one_task(world):
    key = world.key("gap")
    assert find_key(world.store, key) == find_key(world.store, f" {key[:20].upper()} ") == key
    assert find_key(world.store, f'"{key[:20]}"\n') == find_key(world.store, f"'{key}'") == key
    twin = key[:30] + ("0" if key[30] != "0" else "1") * 34
    (world.place.store / "artifacts" / twin[:2] / twin).mkdir()
    said = world.show(key[:30])
    assert said.code == 2
    assert f"2 tasks begin with '{key[:30]}'; give more digits" in said.flat
    assert f"{key[:16]} RunAttack gap synth_s seed 0 complete" in said.flat
    assert find_key(world.store, key[:31]) == key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("abc", "'abc' is not a task key: give 4 to 64 of its digits"),
        ("", "'' is not a task key"),
        ("xyz/../..", "is not a task key"),
        ("f" * 65, "is not a task key"),
        ("tiny", "'tiny' is an experiment; `show` takes a task key"),
        ("quickstart", "'quickstart' is an experiment"),
        ("some/where.yaml", "is an experiment"),
    ],
)
def test_what_is_no_key_is_refused_with_a_hint(world, text, says):
    said = world.show(text)
    assert said.code == 2
    assert says in said.flat


def test_an_unknown_key_says_what_was_searched(world):
    absent = next(c * 8 for c in "0123456789abcdef" if c * 8 not in str(world.plan.tasks.keys()))
    said = world.show(absent)
    assert said.code == 2
    assert f"no task key begins with '{absent}'" in said.flat
    assert f"searched {len(world.plan.tasks)} tasks" in said.flat
    nowhere = world.place.command("show", "abcd", "--store", world.place.folder / "nowhere")
    assert nowhere.code == 2
    assert "there is no store" in nowhere.flat
