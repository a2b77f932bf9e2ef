"""Shadow models: the half-split design, blocks that are shared, defended copies."""

import shutil
from collections import Counter

import numpy as np
import pytest

from storage import splits
from tasks.block import BLOCK
from tasks.run_attack import ShadowModels, is_shadow
from tasks.train_shadows import shadow_pool
from tasks.worker import Bench, Site

SHADOWS = 8
DEFENSES = ["none", {"name": "purifier", "epochs": 2}]


def lira(num_shadows=SHADOWS, **fields):
    return {"name": "lira", "num_shadows": num_shadows, **fields}


@pytest.fixture(scope="module")
def done(module_lab):
    """Not to be changed."""
    outcome, _ = module_lab.run(defenses=DEFENSES, attacks=[lira(), lira(adaptive=True)])
    assert not outcome.failed, outcome.failed
    return module_lab, outcome


def models(lab, outcome, adaptive):
    task = next(
        cell.task
        for cell in outcome.plan.cells
        if cell.kind == "attack" and cell.task.adaptive == adaptive
    )
    bench = Bench(Site(lab.store.root / "artifacts"))
    answers = tuple(t for t in task.trainings if is_shadow(t))
    return task, bench, ShadowModels(answers, bench)


def test_every_judged_record_is_in_half_of_the_shadows(done):
    lab, outcome = done
    task, bench, shadows = models(lab, outcome, adaptive=False)
    split = bench.split(task.answers.target.split)
    rows, is_member = split.judged("members")
    dataset = bench.dataset(task.answers.target.split.data)
    role = shadows.role(dataset.x(rows))
    assert shadows.num_shadows == SHADOWS
    assert set(np.unique(role)) == {0, 1}
    np.testing.assert_array_equal((role == 1).sum(axis=0), SHADOWS // 2)
    # Membership in the target plays no part: members are as often IN as non-members.
    inside = (role == 1).mean(axis=0)
    assert abs(inside[is_member].mean() - inside[~is_member].mean()) < 1e-12
    answers = shadows(dataset.x(rows))
    assert answers.shape == (SHADOWS, len(rows), dataset.num_classes)
    # They were trained on what they are said to be IN for.
    sure = np.take_along_axis(answers, dataset.y[rows][None, :, None], axis=2)[:, :, 0]
    assert sure[role == 1].mean() > sure[role == 0].mean() + 0.05


def test_defended_shadows_have_reference_records_that_are_neither_in_nor_out(done):
    lab, outcome = done
    task, bench, shadows = models(lab, outcome, adaptive=True)
    split = bench.split(task.answers.target.split)
    rows, _ = split.judged("members")
    dataset = bench.dataset(task.answers.target.split.data)
    role = shadows.role(dataset.x(rows))
    np.testing.assert_array_equal((role == 1).sum(axis=0), SHADOWS // 2)
    np.testing.assert_array_equal((role == -1).sum(axis=0), SHADOWS // 4)
    np.testing.assert_array_equal((role == 0).sum(axis=0), SHADOWS // 4)


def test_pool_holds_judged_and_calibration_records(done):
    lab, outcome = done
    task, bench, _ = models(lab, outcome, adaptive=False)
    split: splits.Split = bench.split(task.answers.target.split)
    pool = set(shadow_pool(split, "members", 0).tolist())
    judged, _ = split.judged("members")
    assert set(judged.tolist()) <= pool
    assert set(split.known("members")[2].tolist()) <= pool
    assert not pool & set(split.reference.tolist())
    assert len(pool) == 2 * len(split.members)


def test_more_shadows_train_only_the_missing_blocks(done, lab):
    before, _ = done
    shutil.copytree(before.store.root, lab.store.root)
    again, quiet = lab.run(defenses=["none"], attacks=[lira(), lira(SHADOWS + BLOCK)])
    kinds = Counter(again.plan.tasks[key].kind for key in quiet.started_)
    assert kinds.pop("WorstCase") == 1
    assert kinds == {"TrainShadows": 1, "Shadow": BLOCK, "Answers": BLOCK, "RunAttack": 1}


def test_flags_tell_who_ignores_the_defense(done):
    lab, _ = done
    frame = lab.store.tables.frame("results", "tiny")
    flagged = {
        (row.label, bool(row.adaptive)): "non_adaptive" in list(row.flags)
        for row in frame.itertuples()
    }
    assert flagged == {
        ("none", False): False,
        ("purifier", False): True,
        ("purifier", True): False,
    }


def test_lira_finds_the_undefended_leak(done):
    lab, _ = done
    frame = lab.store.tables.frame("results", "tiny")
    assert frame.loc[frame["label"] == "none", "auc"].item() > 0.6


def test_equal_records_have_one_role(module_lab):
    """digits_binary has duplicates, of which a shadow may have seen one: it has seen the other."""
    outcome, _ = module_lab.run(
        name="digits", datasets=["digits_binary"], defenses=["none"], attacks=[lira()]
    )
    assert not outcome.failed, outcome.failed
    task, bench, shadows = models(module_lab, outcome, adaptive=False)
    dataset = bench.dataset(task.answers.target.split.data)
    pool = shadow_pool(bench.split(task.answers.target.split), "members", 0)
    role = shadows.role(dataset.x(pool))
    seen = [
        bench.dataset(task.answers.target.split.data).groups[rows]
        for rows in trained_on(task, bench)
    ]
    for role_N, groups in zip(role, seen, strict=True):
        np.testing.assert_array_equal(role_N == 1, np.isin(dataset.groups[pool], groups))


def test_records_of_the_population_have_their_role(module_lab):
    """Where the pool is filled up with the population, its records train shadows too."""
    data = {
        "name": "synth_s",
        "generator": {"rows": 1200, "classes": 4},
        "split": {"members": 100, "reference": 60, "nonmembers": 100},
    }
    outcome, _ = module_lab.run(name="spare", datasets=[data], defenses=["none"], attacks=[lira()])
    assert not outcome.failed, outcome.failed
    task, bench, shadows = models(module_lab, outcome, adaptive=False)
    split = bench.split(task.answers.target.split)
    pool = shadow_pool(split, "members", 0)
    spare = np.intersect1d(pool, split.population)
    assert len(spare) > 50
    dataset = bench.dataset(task.answers.target.split.data)
    role = shadows.role(dataset.x(spare))
    np.testing.assert_array_equal((role == 1).sum(axis=0), SHADOWS // 2)
    for role_N, rows in zip(role, trained_on(task, bench), strict=True):
        np.testing.assert_array_equal(role_N == 1, np.isin(spare, rows))


def trained_on(task, bench):
    """The rows each shadow was trained on, as its block logged them."""
    return [
        bench.open(t.target.block).table("rows")["row"][
            bench.open(t.target.block).table("rows")["role"] == f"shadow_{t.target.index}"
        ]
        for t in task.trainings
    ]
