"""What a defense costs, and the tables that finished tasks fill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.metric import Metric
from defenses._dp_accountant import epsilon_of
from defenses.dpsgd import DPSGD
from defenses.onehot import OneHot
from storage.tables import Tables
from tasks.answers import Answers
from tasks.base import Task
from tasks.fit_defense import FitDefense
from tasks.measure_utility import MeasureUtility


def test_utility_is_accuracy_and_distortion_against_the_undefended(lab: Any) -> None:
    answers = lab.defended(OneHot())
    found = lab.facts(MeasureUtility(seed=3, answers=answers, baseline=lab.plain))
    split, y = lab.bench.split(lab.split), lab.dataset.y
    for column, rows in (("train_accuracy", split.members), ("test_accuracy", split.nonmembers)):
        right = lab.plain.of(rows, lab.bench).argmax(axis=1) == y[rows]
        assert found[column] == pytest.approx(right.mean(), abs=1e-12)
    assert found["test_accuracy_drop"] == 0
    assert found["label_change_rate"] == 0
    c_NC = lab.plain.of(split.nonmembers, lab.bench)
    distortion = 2 * (1 - c_NC.max(axis=1))  # of a one-hot answer with the same label
    assert found["l1_distortion_nonmembers"] == pytest.approx(distortion.mean(), abs=1e-12)
    assert found["l1_distortion"] == found["l1_distortion_nonmembers"]
    assert found["l1_distortion_p95"] == pytest.approx(np.quantile(distortion, 0.95), abs=1e-12)
    assert found["variance_ratio"] is None
    assert found["extra_bytes"] == 8


def test_a_defender_measures_on_its_reference_what_others_do_on_the_nonmembers(lab: Any) -> None:
    answers = lab.defended(OneHot())
    usual = MeasureUtility(seed=3, answers=answers, baseline=lab.plain)
    task = replace(usual, judge="defender")
    assert task.key != usual.key
    assert usual.key == replace(usual, judge="members").key
    found, split, y = lab.facts(task), lab.bench.split(lab.split), lab.dataset.y
    for column, rows in (("train_accuracy", split.members), ("test_accuracy", split.reference_val)):
        right = lab.plain.of(rows, lab.bench).argmax(axis=1) == y[rows]
        assert found[column] == pytest.approx(right.mean(), abs=1e-12)
    c_NC = lab.plain.of(split.reference_val, lab.bench)
    distortion = 2 * (1 - c_NC.max(axis=1))
    assert found["l1_distortion"] == pytest.approx(distortion.mean(), abs=1e-12)
    assert found["l1_distortion_p95"] == pytest.approx(np.quantile(distortion, 0.95), abs=1e-12)
    right = c_NC.argmax(axis=1) == y[split.reference_val]
    # A one-hot answer is sure of itself: its calibration error is its error rate.
    assert found["ece"] == pytest.approx(1 - right.mean(), abs=1e-9)
    assert found["l1_distortion"] != lab.facts(usual)["l1_distortion"]


def test_utility_of_the_undefended_costs_nothing(lab: Any) -> None:
    task = MeasureUtility(seed=3, answers=lab.plain, baseline=lab.plain)
    found = lab.facts(task)
    for column in ("l1_distortion", "label_change_rate", "test_accuracy_drop", "extra_bytes"):
        assert found[column] == 0
    timing = lab.bench.open(task).facts("timing")
    assert timing["fit_s"] == timing["fit_ratio"] == 0
    assert timing["query_s"] > 0


def test_fit_seconds_include_what_the_defense_had_trained(lab: Any) -> None:
    trained: Task = replace(lab.target, seed=9)
    fitted = FitDefense(seed=3, answers=lab.plain, defense=OneHot(), trainings=(trained,))
    answers = Answers(seed=3, source=fitted)
    lab.run(task := MeasureUtility(seed=3, answers=answers, baseline=lab.plain))
    total = (
        lab.bench.open(fitted).facts("metrics")["fit_s"]
        + lab.bench.open(trained).facts("metrics")["train_s"]
    )
    assert lab.bench.open(task).facts("timing")["fit_s"] == pytest.approx(total)


def test_a_certificate_is_told_of_the_models_own_answers_only(lab: Any, tmp_path: Path) -> None:
    defense = DPSGD(noise_multiplier=2.0, batch_size=20, epochs=1)
    alone = Answers(seed=3, source=replace(lab.target, defense=defense))
    task = MeasureUtility(seed=3, answers=alone, baseline=lab.plain)
    row = task.table_rows(lab.run(task))["utility"][0]
    assert row["epsilon"] == epsilon_of(2.0, 20 / 60, 3, 1 / 600)
    assert row["delta"] == pytest.approx(1 / 600)
    Tables(tmp_path).write("utility", task.key, [row])
    # An output defense may have been fitted on the members, without noise.
    fitted = FitDefense(seed=3, answers=alone, defense=OneHot())
    behind = MeasureUtility(seed=3, answers=Answers(seed=3, source=fitted), baseline=lab.plain)
    assert lab.facts(behind)["epsilon"] is None


def test_finished_tasks_fill_the_tables(lab: Any, diagnosed: Any, tmp_path: Path) -> None:
    answers = lab.defended(diagnosed(ratio=0.01))
    tables = Tables(tmp_path)
    result = lab.attack(answers, Metric())
    utility = MeasureUtility(seed=3, answers=answers, baseline=lab.plain)
    for task in (result, utility):
        for table, rows in task.table_rows(lab.run(task)).items():
            tables.write(table, task.key, rows)
    rows = result.table_rows(lab.bench.open(result))
    row = rows["results"][0]
    assert (row["defense"], row["attack"]) == ("conftest", "metric")
    assert row["task_key"] == result.key
    assert row["noise_policy"] == "none"
    assert row["dataset_hash"] == lab.dataset.content_hash
    assert "collapsed" in row["flags"]
    assert (row["num_members"], row["num_nonmembers"]) == (30, 30)
    np.testing.assert_array_equal(
        rows["scores"]["record"], lab.bench.split(lab.split).judged("members")[0]
    )
    assert utility.table_rows(lab.bench.open(utility))["utility"][0]["variance_ratio"] == 0.01
    assert lab.target.table_rows(lab.bench.open(lab.target)) == {}
