"""DMP: who teaches whom, and on what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from defenses.base import Records
from defenses.dmp import Dmp


def watched(world):
    """The world, and what its `train` was asked."""
    asked = []

    class Watching(type(world)):
        def train(self, records, *, seed, **options):
            weights = super().train(records, seed=seed, **options)
            asked.append((records, seed, options, weights))
            return weights

    return Watching(world.members, world.reference, world.num_classes), asked


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_student_learns_the_teachers_answers_to_the_reference(temperature, make_world):
    world = make_world(10)
    given, asked = watched(world)
    weights = Dmp(temperature=temperature).train(given, seed=7)
    (teacher, teacher_seed, plain, taught), (student, student_seed, options, released) = asked
    assert teacher is world.members
    assert plain == {}
    assert teacher_seed != student_seed
    np.testing.assert_array_equal(student.x, world.reference.fit.x)
    answers = replace(world, weights=taught).answer(student.x)
    soft = softmax(np.log(answers.clip(min=1e-300)) / temperature, axis=1)
    np.testing.assert_allclose(options["targets"], soft, atol=2e-6)
    np.testing.assert_array_equal(student.y, answers.argmax(axis=1))
    for name in weights:
        np.testing.assert_array_equal(weights[name], released[name])


def test_only_the_teacher_sees_members_and_nobody_the_references_labels(make_world):
    world = make_world(10)
    blank = replace(
        world.reference,
        fit=Records(world.reference.fit.x, np.zeros_like(world.reference.fit.y)),
        val=Records(world.reference.x[:0], world.reference.y[:0]),
    )
    usual = Dmp().train(replace(world, weights=None), seed=1)
    blind = Dmp().train(replace(world, weights=None, reference=blank), seed=1)
    for name in usual:
        np.testing.assert_array_equal(usual[name], blind[name])

    given, asked = watched(world)
    Dmp().train(given, seed=1)
    members = {row.tobytes() for row in world.members.x}
    assert not any(row.tobytes() in members for row in asked[-1][0].x)


def test_the_loss_is_the_kl_divergence_from_the_teacher():
    rng = np.random.default_rng(0)
    z, soft = rng.normal(scale=3, size=(12, 10)), rng.dirichlet(np.full(10, 0.1), size=12)
    for temperature in (1.0, 5.0):
        student = np.exp(log_softmax(z / temperature, axis=1))
        expected = np.mean([entropy(p, q) for p, q in zip(soft, student, strict=True)])
        found = Dmp(temperature=temperature).loss(torch.tensor(z), torch.tensor(soft), 0)
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_members_are_answered_no_better_than_others(make_world):
    """The student's train accuracy is its test accuracy, within what chance explains."""
    world = make_world(10)
    student = replace(world, weights=Dmp().train(replace(world, weights=None), seed=1))
    # Neither the members nor the validation records taught it.
    right = [
        (student.answer(part.x).argmax(axis=1) == part.y)
        for part in (world.members, world.reference.val)
    ]
    chance = np.sqrt(sum(r.var() / len(r) for r in right))
    assert abs(right[0].mean() - right[1].mean()) < 0.02 + 2 * chance
    undefended = (world.answer(world.members.x).argmax(axis=1) == world.members.y).mean()
    assert right[0].mean() < undefended - 0.1


@pytest.mark.parametrize("kept", [0.01, 0.3, 1.0])
def test_keeps_the_answers_the_teacher_is_surest_of(kept):
    soft = np.random.default_rng(3).dirichlet(np.full(6, 0.3), size=90)
    rows = Dmp(kept=kept).selected(soft)
    assert len(rows) == max(1, round(90 * kept))
    assert (np.diff(rows) > 0).all()
    doubt = np.array([entropy(row) for row in soft])
    left_out = np.delete(doubt, rows)
    assert not len(left_out) or doubt[rows].max() <= left_out.min()


def test_one_hot_and_tied_answers_are_kept_in_order():
    np.testing.assert_array_equal(Dmp(kept=0.5).selected(np.eye(4)), [0, 1])


def test_presets_are_the_published_recipe():
    paper = Dmp(**Dmp.preset("paper", "purchase100", 100))
    assert (paper.temperature, paper.epochs, paper.batch_size) == (1.0, 100, 32)
    # 0.5 with momentum 0.99, over 100 classes, is as 0.05 with 0.9.
    assert paper.learning_rate / (1 - 0.9) == pytest.approx(0.5 / (1 - 0.99) / 100)
    assert paper.kept < 1
    assert Dmp(**Dmp.preset("cpu", "purchase100", 100)).recipe() == {}


def test_no_records_to_distil_on_is_an_error(make_world):
    world = make_world(5)
    empty = replace(world.reference, fit=Records(world.reference.x[:0], world.reference.y[:0]))
    with pytest.raises(ValueError, match="no records to distil on"):
        Dmp().train(replace(world, reference=empty), seed=0)
