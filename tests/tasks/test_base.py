"""Keys say what is computed; streams say where its randomness comes from."""

import json
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from attacks.gap import Gap
from attacks.metric import Metric
from defenses.base import Defense
from defenses.l2 import L2
from defenses.onehot import OneHot
from storage.datasets import Source
from tasks import architectures
from tasks.answers import Answers
from tasks.base import Data, Rows, Task, canonical, random_generator, stream
from tasks.check_split import CheckSplit
from tasks.effort import ChooseEffort
from tasks.fit_defense import FitDefense
from tasks.measure_utility import MeasureUtility
from tasks.reference import ReferenceFrom
from tasks.run_attack import RunAttack
from tasks.split import Split, SplitColumn
from tasks.train_target import TrainTarget
from tasks.worker import Site, execute
from tasks.worst_case import WorstCase

GOLDEN = Path(__file__).parents[1] / "golden" / "keys.json"

SPLIT = Split(
    seed=0,
    data=Data(Source("synth_hard"), "5f" * 32),
    members=100,
    reference=90,
    nonmembers=80,
    untrained=0,
    known=0.5,
    dedup="group",
)
TARGET = TrainTarget(seed=0, split=SPLIT, architecture=architectures.make("mlp_s", epochs=3))
L2_TARGET = replace(TARGET, defense=L2(weight_decay=0.001), rows=Rows(np.arange(5)))
PLAIN = Answers(seed=0, source=TARGET)
FITTED = FitDefense(seed=0, answers=PLAIN, defense=OneHot(), trainings=(L2_TARGET,))
DEFENDED = Answers(seed=0, source=FITTED, noise="per_input")
CHECKS = CheckSplit(seed=0, split=SPLIT)
GAP = RunAttack(seed=0, answers=DEFENDED, attack=Gap(), checks=CHECKS)
EXAMPLES: dict[str, Task] = {
    "split": SPLIT,
    "target": TARGET,
    "target_l2_own_rows": L2_TARGET,
    "answers": PLAIN,
    "fit_onehot": FITTED,
    "answers_onehot": DEFENDED,
    "check": CHECKS,
    "gap": GAP,
    "metric": RunAttack(seed=0, answers=PLAIN, attack=Metric(statistic="loss"), checks=CHECKS),
    "worst": WorstCase(seed=0, attacks=(GAP,)),
    "utility": MeasureUtility(seed=0, answers=DEFENDED, baseline=PLAIN),
}


def keys_and_streams() -> dict[str, Any]:
    return {
        "keys": {name: task.key for name, task in EXAMPLES.items()},
        "streams": {name: stream(7, name, 2) for name in ("data.split", "target.init", "shadow")},
    }


def test_keys_and_streams_are_those_of_every_store_made_so_far() -> None:
    # Written by another process, whose hash seed was another: nothing here hangs on it.
    assert keys_and_streams() == json.loads(GOLDEN.read_text())


OTHER: dict[str, Any] = {
    "seed": 1,
    "data": Data(Source("synth_hard"), "6f" * 32),
    "members": 99,
    "reference": 89,
    "nonmembers": 79,
    "untrained": 1,
    "known": 0.25,
    "dedup": "drop",
    "column": SplitColumn(column="role"),
    "split": replace(SPLIT, seed=1),
    "architecture": architectures.make("mlp_s", epochs=4),
    "rows": Rows(np.arange(5)[::-1]),
    "reference_rows": Rows(np.arange(4)),
    "trainings": (replace(L2_TARGET, seed=9),),
    "reference_from": ReferenceFrom(role="members"),
    "answers": replace(PLAIN, seed=1),
    "baseline": replace(PLAIN, seed=1),
    "source": replace(TARGET, seed=1),
    "noise": "fresh",
    "attack": Metric(statistic="margin"),
    "attacks": (GAP, replace(GAP, adaptive=True)),
    "checks": replace(CHECKS, seed=1),
    "judge": "reference",
    "fit_on": "clean",
    "adaptive": True,
    "defense": L2(weight_decay=0.002),
    "own_copy": replace(PLAIN, seed=1),
    "own_copy_out": Rows(np.arange(3)),
    "held": Rows(np.arange(6)),
    "effort": ChooseEffort(0, GAP),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_other_field_gives_another_key(name: str) -> None:
    task = EXAMPLES[name]
    keys = {task.key}
    for field in fields(task):
        other = OTHER[field.name]
        if isinstance(task, TrainTarget) and field.name == "reference":
            other = OTHER["reference_rows"]
        keys.add(replace(task, **{field.name: other}).key)
    assert len(keys) == 1 + len(fields(task))


def test_every_field_of_a_recipe_is_in_the_key() -> None:
    plain = architectures.make("mlp_s")
    others = {
        "name": "other",
        "network": "cnn",
        "hidden": (256, 129),
        "activation": "relu",
        "tanh_output": True,
        "channels": (1,),
        "dropout": 0.5,
        "optimizer": "sgd",
        "learning_rate": 2e-3,
        "milestones": (1,),
        "epochs": 41,
        "batch_size": 65,
        "weight_decay": 0.1,
        "min_loss": 0.1,
    }
    assert set(others) == set(type(plain).model_fields)
    recipes = [plain, *(plain.model_copy(update={name: value}) for name, value in others.items())]
    assert len({replace(TARGET, architecture=recipe).key for recipe in recipes}) == len(recipes)


def test_a_key_does_not_say_where() -> None:
    moved = Data(Source("synth_hard", path="/mnt/elsewhere/s.parquet"), SPLIT.data.content_hash)
    assert replace(SPLIT, data=moved).key == SPLIT.key
    places = {"path", "data_dir", "device", "worker", "workers", "gpus", "num_workers", "artifacts"}
    for task in EXAMPLES.values():
        assert not places & {field.name for field in fields(task)}
        assert "/mnt" not in task.description


def test_a_field_added_later_is_in_the_key_only_when_it_is_set() -> None:
    assert "column" not in SPLIT.description
    columns = [
        SplitColumn(column="role"),
        SplitColumn(column="fold"),
        SplitColumn(column="role", members=("train",)),
        SplitColumn(column="role", nonmembers=("nonmembers", "test")),
    ]
    keys = [replace(SPLIT, column=column).key for column in (None, *columns)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == SPLIT.key


class Warm(Defense):
    VERSION: ClassVar[int] = 1

    amount: float = Field(1.0)


class Warmer(Warm):
    more: float = Field(0.0)


def test_a_subclass_field_behind_a_base_typed_field_is_in_the_key() -> None:
    def key(plugin: Defense) -> str:
        return FitDefense(seed=0, answers=PLAIN, defense=plugin).key

    distinct = (Warm(), Warmer(), Warmer(more=0.5), Warmer(amount=2.0, more=0.5), Warm(amount=2.0))
    assert len({key(plugin) for plugin in distinct}) == len(distinct)
    assert key(Warmer(more=0.5)) == key(Warmer(amount=1.0, more=0.5))


def test_a_new_version_gives_a_new_key(plugin_class: Any) -> None:
    old, same, new = (plugin_class(Defense, VERSION=version) for version in (1, 1, 2))
    keys = [FitDefense(seed=0, answers=PLAIN, defense=cls()).key for cls in (old, same, new)]
    assert keys[0] == keys[1] != keys[2]


def test_a_new_task_version_gives_new_keys_downstream() -> None:
    @dataclass(frozen=True, eq=False)
    class Newer(TrainTarget):
        VERSION: ClassVar[int] = TrainTarget.VERSION + 1

        @property
        def kind(self) -> str:
            return "TrainTarget"

    newer = Newer(seed=0, split=SPLIT, architecture=TARGET.architecture)
    assert json.loads(newer.description)["kind"] == json.loads(TARGET.description)["kind"]
    assert newer.key != TARGET.key
    assert Answers(seed=0, source=newer).key != PLAIN.key


def test_the_order_of_fields_is_not_in_the_key() -> None:
    def forth() -> Task:
        @dataclass(frozen=True, eq=False)
        class Ordered(Task):
            VERSION: ClassVar[int] = 1
            one: int
            two: int

        return Ordered(two=2, one=1, seed=0)

    def back() -> Task:
        @dataclass(frozen=True, eq=False)
        class Ordered(Task):
            VERSION: ClassVar[int] = 1
            two: int
            one: int

        return Ordered(one=1, two=2, seed=0)

    assert forth().key == back().key
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        Path("x"),
        np.arange(3),
        np.int64(3),
        {1, 2},
        b"bytes",
        Colour.RED,
        object(),
        1j,
        Source("digits"),
        Site(Path("x")),
        Defense(),
        {1: "a"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_canonical_form_is_refused(value: Any) -> None:
    for nested in (value, [value], {"a": (value,)}):
        with pytest.raises(TypeError, match=r"canonical form|VERSION|only text"):
            canonical(nested)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_a_number_that_is_not_finite_has_no_key(value: float) -> None:
    with pytest.raises(ValueError, match=r"finite"):
        canonical(value)
    with pytest.raises(ValueError, match=r"finite"):
        _ = FitDefense(seed=0, answers=PLAIN, defense=Warm(amount=value)).key


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(JSON)
def test_the_canonical_form_loses_nothing(value: Any) -> None:
    text = json.dumps(canonical(value), sort_keys=True)
    restored = json.loads(text)
    assert restored == value
    assert repr(json.loads(json.dumps(value, sort_keys=True))) == repr(restored)


def test_inputs_are_the_tasks_among_the_fields_each_once() -> None:
    task = EXAMPLES["utility"]
    assert [needed.key for needed in task.inputs] == [DEFENDED.key, PLAIN.key]
    same = replace(task, answers=PLAIN)
    assert [needed.key for needed in same.inputs] == [PLAIN.key]
    assert [needed.key for needed in FITTED.inputs] == [PLAIN.key, L2_TARGET.key]
    assert [needed.key for needed in DEFENDED.inputs] == [FITTED.key]
    assert SPLIT.inputs == ()


def test_a_description_explains_its_key() -> None:
    for task in EXAMPLES.values():
        content = json.loads(task.description)
        assert content["kind"] == type(task).__name__
        told = {
            f.name for f in fields(task) if not f.metadata or getattr(task, f.name) != f.default
        }
        assert set(content["fields"]) == told
        assert len(task.key) == 64


def test_a_task_that_says_nothing_says_so(tmp_path: Path) -> None:
    @dataclass(frozen=True, eq=False)
    class Bare(Task):
        VERSION: ClassVar[int] = 1

    with pytest.raises(TypeError, match="Bare defines no run"):
        execute(Bare(seed=0), Site(tmp_path / "artifacts"), "w1")
    with pytest.raises(TypeError, match="Bare names no dataset"):
        _ = Bare(seed=0).dataset
    with pytest.raises(TypeError, match="Bare is not a training"):
        Bare(seed=0).trained(None)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=8), st.lists(st.integers(0, 3), max_size=3))
def test_rows_are_equal_when_their_content_is(rows: list[int], others: list[int]) -> None:
    one, two = Rows(np.array(rows, np.int64)), Rows(np.array(others, np.int64))
    assert (one == two) == (rows == others)
    assert one == Rows(np.array(rows, np.int64)[::-1][::-1])
    assert hash(one) == hash(Rows(np.array(rows, np.int64)))
    assert len(one) == len(rows)
    assert one != rows


def test_rows_are_apart_from_the_array_they_came_from() -> None:
    mine = np.arange(4)
    rows = Rows(mine)
    mine[0] = 99
    assert rows == Rows(np.arange(4))
    assert rows.array.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        rows.array[0] = 1


TRIPLE = st.tuples(st.integers(), st.text(max_size=5), st.integers(0, 9))


@settings(deadline=None)
@given(TRIPLE, TRIPLE)
def test_streams_differ_unless_all_is_equal(
    one: tuple[int, str, int], two: tuple[int, str, int]
) -> None:
    assert (stream(*one) == stream(*two)) == (one == two)
    assert 0 <= stream(*one) < 2**63


def test_names_that_run_into_their_index_stay_apart() -> None:
    assert len({stream(1, "a/2", 3), stream(1, "a", 23), stream(1, "a/23"), stream(1, "a", 2)}) == 4


def test_streams_are_independent() -> None:
    named = [("data.split", 0), ("data.split", 1), ("target.init", 0), ("target.batches", 0)]
    drawn = np.stack([random_generator(0, *name).normal(size=20_000) for name in named])
    other_root = random_generator(1, "data.split").normal(size=20_000)
    correlation = np.corrcoef(np.vstack([drawn, other_root]))
    assert np.abs(correlation - np.eye(5)).max() < 5 / np.sqrt(20_000)
