"""Split, TrainTarget, Answers and FitDefense through `execute`, on real data and a store."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.gap import Gap
from attacks.metric import Metric
from attacks.nsh import Nsh
from defenses.base import Defense, Setting
from defenses.l2 import L2
from defenses.onehot import OneHot
from defenses.prototype import Prototype
from storage.artifacts import ArtifactMissing
from storage.splits import ROLES
from tasks import training
from tasks.answers import Answers
from tasks.base import Rows, Task, stream
from tasks.fit_defense import FitDefense
from tasks.measure_utility import MeasureUtility
from tasks.split import rows_seen
from tasks.worker import execute


class Broken(Defense):
    """Answers NaN."""

    VERSION: ClassVar[int] = 1

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        return {}

    def apply(self, confidence: Any, state: Mapping[str, Any], noise: Any) -> NDArray[Any]:
        return np.full_like(confidence, np.nan)


def test_a_task_runs_once_and_the_journal_says_so(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path)
    first = execute(lab.split, own.site, "w1")
    again = execute(lab.split, own.site, "w2")
    assert first["duration_s"] > 0
    assert again == {"duration_s": 0.0}
    own.run(lab.plain)
    own.run(lab.plain)
    lines = [line.split() for line in own.site.journal.read_text().splitlines()]
    order = (lab.split, lab.target, lab.plain)
    assert [(event, kind, key) for _, _, event, kind, key in lines] == [
        (event, task.kind, task.key) for task in order for event in ("start", "done")
    ]
    measured = own.bench.open(lab.split).facts("measured")
    assert measured["worker"] == "w1"
    assert measured["device"] == "cpu"
    assert measured["duration_s"] == first["duration_s"]


def test_every_stage_repeats_to_the_bit_in_another_store(lab: Any, tmp_path: Path) -> None:
    answers = lab.defended(Prototype())
    tasks: tuple[Task, ...] = (
        lab.split,
        lab.target,
        answers.source,
        answers,
        lab.attack(answers, Metric()),
        lab.attack(answers, Nsh(epochs=2, width=0.1)),
    )
    other = lab.elsewhere(tmp_path)
    for task in tasks:
        one, two = lab.run(task), other.run(task)
        assert one.files == two.files
        for file in one.files:
            name, _, ending = file.partition(".")
            if ending == "json":
                timed = {"train_s", "fit_s"}
                kept = [
                    {k: v for k, v in artifact.facts(name).items() if k not in timed}
                    for artifact in (one, two)
                ]
                assert kept[0] == kept[1] or name == "measured"
                continue
            read = "table" if ending == "parquet" else "arrays"
            left, right = getattr(one, read)(name), getattr(two, read)(name)
            assert left.keys() == right.keys()
            for column in left:
                np.testing.assert_array_equal(left[column], right[column])


def test_a_task_that_fails_leaves_a_start_and_nothing_else(own_lab: Any) -> None:
    task = own_lab.defended(Broken())
    own_lab.run(task.source)
    with pytest.raises(ValueError, match="finite"):
        execute(task, own_lab.site, "w1")
    assert task.key not in own_lab.bench.artifacts
    assert not list(own_lab.site.artifacts.glob(".*"))
    last = own_lab.site.journal.read_text().splitlines()[-1]
    assert last.split()[2:] == ["start", "Answers", task.key]


def test_a_missing_input_is_named(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing) as error:
        execute(lab.plain, lab.elsewhere(tmp_path).site, "w1")
    assert error.value.damaged_key == lab.split.key


def test_data_that_changed_since_the_plan_is_refused(lab: Any, tmp_path: Path) -> None:
    stale = replace(lab.split, data=replace(lab.split.data, content_hash="0" * 64))
    with pytest.raises(ValueError, match=r"'digits_binary' changed since the plan .*000000000000"):
        execute(stale, lab.elsewhere(tmp_path).site, "w1")


def test_the_split_is_read_as_it_was_planned(lab: Any) -> None:
    planned, read = lab.split.divide(lab.dataset), lab.bench.split(lab.split)
    for name in ROLES:
        np.testing.assert_array_equal(planned.roles()[name], read.roles()[name])
    for judge in ("members", "reference"):
        for one, two in zip(planned.judged(judge), read.judged(judge), strict=True):
            np.testing.assert_array_equal(one, two)
        for one, two in zip(planned.known(judge), read.known(judge), strict=True):
            np.testing.assert_array_equal(one, two)
    card = lab.facts(lab.split)
    assert card["content"] == lab.dataset.content_hash
    assert card["roles"]["members_eval"] == 30


def test_a_target_is_its_recipe_on_exactly_the_members(lab: Any) -> None:
    artifact = lab.bench.open(lab.target)
    members = lab.bench.split(lab.split).members
    np.testing.assert_array_equal(rows_seen(artifact)["members"], members)
    assert set(rows_seen(artifact)) == {"members"}
    alone = training.train(
        lab.target.architecture,
        lab.dataset.x(members),
        lab.dataset.y[members],
        num_classes=10,
        seed=3,
    )
    for name, value in artifact.arrays("weights").items():
        np.testing.assert_array_equal(value, alone.weights[name])
    np.testing.assert_array_equal(artifact.table("history")["loss"], alone.losses)
    assert artifact.facts("metrics")["epochs"] == 60


def test_a_target_on_rows_of_its_own(lab: Any) -> None:
    rows = lab.bench.split(lab.split).reference[:20]
    task = replace(lab.target, rows=Rows(rows), reference=Rows(np.arange(10)))
    artifact = lab.run(task)
    np.testing.assert_array_equal(rows_seen(artifact)["members"], rows)
    fit, val = task.reference_rows(lab.bench)
    assert (len(fit), len(val)) == (8, 2)
    assert sorted([*fit, *val]) == list(range(10))
    view = task.trained(lab.bench)
    np.testing.assert_array_equal(view.rows, rows)
    assert view.state == {}
    x = lab.dataset.x(rows)
    assert (view.answer(x).argmax(axis=1) == lab.dataset.y[rows]).all()
    module = training.load_module(task.architecture, view.weights, (64,), 10)
    np.testing.assert_array_equal(view.answer(x), training.softmax64(training.logits(module, x)))


def test_answers_are_those_of_the_model_for_every_row_with_a_role(lab: Any) -> None:
    record, confidence = lab.plain.confidence(lab.bench)
    split = lab.bench.split(lab.split)
    held = np.concatenate([rows for name, rows in split.roles().items() if name != "population"])
    np.testing.assert_array_equal(record, np.sort(held))
    weights = lab.bench.arrays(lab.target, "weights")
    module = training.load_module(lab.target.architecture, weights, (64,), 10)
    expected = training.softmax64(training.logits(module, lab.dataset.x(record)))
    np.testing.assert_array_equal(confidence, expected)
    some = split.nonmembers_eval[::-3]
    np.testing.assert_array_equal(
        lab.plain.of(some, lab.bench), expected[np.searchsorted(record, some)]
    )


def test_the_deployed_service_answers_from_the_artifact(lab: Any) -> None:
    answers = lab.defended(Prototype(), OneHot())
    lab.run(answers)
    service = answers.service(bench := lab.bench)
    record, confidence = answers.confidence(bench)
    np.testing.assert_array_equal(service.answer(lab.dataset.x(record[::-1])), confidence[::-1])
    assert [stage.name for stage in answers.stages] == ["prototype", "onehot"]
    assert answers.undefended is lab.plain
    assert answers.target is lab.target


def test_a_defense_that_answers_nonsense_is_named(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'test_stages' answered row 0 with \[nan"):
        lab.elsewhere(tmp_path).run(lab.defended(Broken()))


def test_a_defender_sees_members_reference_and_the_model(lab: Any, diagnosed: Any) -> None:
    answers = lab.defended(diagnosed(ratio=0.5))
    artifact = lab.run(answers.source)
    setting, split = diagnosed.seen["setting"], lab.bench.split(lab.split)
    assert diagnosed.seen["seed"] == stream(3, "defense.fit", 0)
    for records, rows in (
        (setting.members, split.members),
        (setting.reference.fit, split.reference_fit),
        (setting.reference.val, split.reference_val),
        (setting.reference, np.concatenate([split.reference_fit, split.reference_val])),
    ):
        np.testing.assert_array_equal(records.x, lab.dataset.x(rows))
        np.testing.assert_array_equal(records.y, lab.dataset.y[rows])
    np.testing.assert_array_equal(
        setting.answer(setting.members.x), lab.plain.of(split.members, lab.bench)
    )
    seen = rows_seen(artifact)
    np.testing.assert_array_equal(seen["members"], split.members)
    assert set(seen["reference"]) == set(split.reference)
    assert not np.isin(np.concatenate([*seen.values()]), split.nonmembers).any()
    logged = artifact.facts("metrics")
    assert logged["extra_bytes"] == 24
    assert (logged["variance_ratio"], logged["kl_mean"]) == (0.5, 0.25)
    with pytest.raises(ValueError, match="epoch_s"):
        setting.train(setting.members, epoch_s=3)


def test_a_chain_is_fitted_on_the_stage_before(lab: Any, diagnosed: Any) -> None:
    answers = lab.defended(OneHot(), diagnosed(ratio=0.5))
    lab.run(answers.source)
    setting = diagnosed.seen["setting"]
    assert diagnosed.seen["seed"] == stream(3, "defense.fit", 1)
    released = setting.answer(setting.reference.x)
    assert set(np.unique(released)) == {0.0, 1.0}


def test_the_stored_state_is_what_fit_gave(lab: Any) -> None:
    answers = lab.defended(Prototype())
    artifact = lab.run(answers.source)
    split = lab.bench.split(lab.split)
    fitted = np.concatenate([split.reference_fit, split.reference_val])
    c_NC = lab.plain.of(fitted, lab.bench)
    label = c_NC.argmax(axis=1)
    state = artifact.arrays("state")["prototype"]
    for found in np.unique(label):
        np.testing.assert_allclose(state[found], c_NC[label == found].mean(axis=0), atol=1e-12)
    view = answers.source.trained(lab.bench)
    np.testing.assert_array_equal(view.state["prototype"], state)
    np.testing.assert_array_equal(view.answer(lab.dataset.x(fitted)), state[label])


def test_a_training_defense_and_an_output_defense_make_a_chain(lab: Any) -> None:
    trained = replace(lab.target, defense=L2(weight_decay=0.05))
    plain = Answers(seed=3, source=trained)
    fitted = FitDefense(seed=3, answers=plain, defense=OneHot())
    answers = Answers(seed=3, source=fitted)
    result = lab.run(lab.attack(answers, Gap()))
    lab.run(utility := MeasureUtility(seed=3, answers=answers, baseline=lab.plain))
    columns = answers.columns()
    assert columns["defense"] == "l2+onehot"
    assert '"weight_decay": 0.05' in columns["defense_params"]
    # The weights are those of the decayed training, and smaller.
    members = lab.bench.split(lab.split).members
    alone = training.train(
        trained.architecture.model_copy(update={"weight_decay": 0.05}),
        lab.dataset.x(members),
        lab.dataset.y[members],
        num_classes=10,
        seed=stream(3, "defense.fit"),
    )
    weights = lab.bench.arrays(trained, "weights")
    for name, value in weights.items():
        np.testing.assert_array_equal(value, alone.weights[name])
    undefended = lab.bench.arrays(lab.target, "weights")
    assert sum((w**2).sum() for w in weights.values()) < sum(
        (w**2).sum() for w in undefended.values()
    )
    assert set(rows_seen(lab.bench.open(trained))) == {"members", "reference"}
    record, released = answers.confidence(lab.bench)
    np.testing.assert_array_equal(released, np.eye(10)[plain.of(record, lab.bench).argmax(axis=1)])
    assert result.facts("metrics")["num_members"] == 30
    assert lab.bench.open(utility).facts("timing")["fit_ratio"] > 0
