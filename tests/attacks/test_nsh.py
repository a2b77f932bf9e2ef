"""What is true of the NSH attack."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks._membership_net import balanced_loss, balanced_sides, batches, mim0
from attacks.gap import Gap
from attacks.metric import best_threshold
from attacks.nsh import Nsh

CPU = Nsh.PRESETS["cpu"]


def decided(world: Any, attack: Any, **options: Any) -> tuple[Any, Any]:
    """Decisions on the evaluation records with the threshold calibrated on `known.cal`."""
    known = world.knowledge(attack, 0, **options)
    # One call for both: the same fitted net judges them.
    rows = np.concatenate([world.parts["cal"], world.parts["eval"]])
    query = world.service("score", **options)
    scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
    num_cal = len(world.parts["cal"])
    threshold = best_threshold(scores[:num_cal], known.cal.is_member)
    return scores[num_cal:] > threshold, world.is_member[world.parts["eval"]]


def widths(net: Any, part: str) -> list[int]:
    linear = [m for m in getattr(net, part) if isinstance(m, torch.nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def test_paper_widths() -> None:
    paper = mim0(30, 1.0)
    assert widths(paper, "prediction") == [30, 1024, 512, 64]
    assert widths(paper, "label") == [30, 512, 64]
    assert widths(paper, "joint") == [128, 256, 64, 1]
    assert widths(mim0(30, 1.0, true_confidence=True), "joint") == [129, 256, 64, 1]
    half = mim0(2, 0.5, true_confidence=True)
    assert widths(half, "prediction") == [2, 512, 256, 32]
    assert widths(half, "joint") == [65, 128, 32, 1]
    assert Nsh(**Nsh.PRESETS["paper"]).true_confidence is False
    assert Nsh(**Nsh.PRESETS["sound"]).true_confidence is True


def test_net_reads_the_label_and_the_true_confidence() -> None:
    net = mim0(4, 0.25, true_confidence=True)
    rows = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(4, 1)
    assert len({round(v, 9) for v in net(rows, torch.arange(4)).tolist()}) == 4
    # With the last-but-one net's label and prediction outputs silenced, p_y is all that is left.
    for part in (net.prediction, net.label):
        torch.nn.init.zeros_(part[-2].weight)
        torch.nn.init.zeros_(part[-2].bias)
    first, *others = net(rows, torch.arange(4)).tolist()
    assert len(set(others)) == 1
    assert others[0] != first


@pytest.mark.parametrize("seed", [0, 1])
def test_at_least_the_gap_attack_on_label_only_answers(
    make_world: Any, onehot: Any, accuracy: Any, seed: int
) -> None:
    world = make_world(num_classes=4, per_side=1200, seed=seed)
    gap, is_member = world.run(Gap())
    floor = accuracy(gap > 0.5, is_member)
    assert floor > 0.6
    assert accuracy(*decided(world, Nsh(**CPU), defend=onehot)) >= floor - 0.015


def test_better_than_the_gap_attack_on_scores(world: Any, accuracy: Any) -> None:
    gap, is_member = world.run(Gap())
    assert accuracy(*decided(world, Nsh(**CPU))) > accuracy(gap > 0.5, is_member) + 0.03


def test_permuted_membership_is_not_found(make_world: Any, accuracy: Any) -> None:
    world = make_world()
    shuffled = np.random.default_rng(5).permutation(world.is_member)
    object.__setattr__(world, "is_member", shuffled)
    # 300 records a side: four standard deviations of the balanced accuracy are 0.08.
    assert abs(accuracy(*decided(world, Nsh(**CPU))) - 0.5) < 0.08


def test_logit_features_tell_what_single_precision_rounds_away(make_world: Any) -> None:
    """Members are answered 1 - 1e-10, others 1 - 1e-8: the same number in float32."""
    world = make_world(num_classes=4, per_side=200)
    member_x = {row.tobytes() for row in world.x[world.is_member]}

    def saturated(x: Any) -> Any:
        rest = np.array([1e-10 if row.tobytes() in member_x else 1e-8 for row in x])
        rest *= np.random.default_rng(0).uniform(0.5, 2, len(x))
        return np.column_stack([1 - rest, rest / 2, rest / 4, rest / 4])

    def auc(attack: Nsh) -> float:
        known, query = world.knowledge(attack, 0), world.service()
        known.query.answer = query.answer = saturated
        rows = world.parts["eval"]
        scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
        return float(roc_auc_score(world.is_member[rows], scores))

    assert auc(Nsh(width=0.1, epochs=40)) < 0.6
    assert auc(Nsh(width=0.1, epochs=40, logit_features=True)) > 0.99


@given(st.lists(st.booleans(), min_size=2, max_size=80), st.integers(0, 9))
def test_batches_use_every_record_once_and_hold_both_sides(flags: Any, seed: int) -> None:
    is_member = np.array([True, False, *flags])
    rng = np.random.default_rng(seed)
    sides = balanced_sides(is_member, rng)
    num_batches = min(3, *(len(side) for side in sides))
    found = list(batches(sides, num_batches, rng))
    assert len(found) == num_batches
    for members, nonmembers in found:
        assert len(members) > 0
        assert is_member[members].all()
        assert len(nonmembers) > 0
        assert not is_member[nonmembers].any()
    used = np.concatenate([rows for batch in found for rows in batch])
    np.testing.assert_array_equal(np.sort(used), np.arange(len(is_member)))


@settings(max_examples=20)
@given(st.integers(500, 700), st.integers(500, 700))
def test_large_sides_are_cut_to_the_same_size(num_members: int, num_nonmembers: int) -> None:
    is_member = np.repeat([True, False], [num_members, num_nonmembers])
    sides = balanced_sides(is_member, np.random.default_rng(0))
    assert [len(np.unique(side)) for side in sides] == [min(num_members, num_nonmembers)] * 2


@pytest.mark.parametrize("num_members", [1, 4, 9])
def test_loss_is_the_class_weighted_cross_entropy(num_members: int) -> None:
    log_odds = torch.linspace(-40, 40, 10, dtype=torch.float64)
    is_member = (torch.arange(10) < num_members).double()
    weight = is_member * 5 / num_members + (1 - is_member) * 5 / (10 - num_members)
    want = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, is_member, weight)
    assert float(balanced_loss(log_odds, num_members)) == pytest.approx(float(want), rel=1e-8)


def test_patience_ends_the_training(world: Any) -> None:
    """On constant answers few epochs are better; without patience this would run for hours."""
    attack = Nsh(width=0.05, epochs=10**6, patience=2)
    scores, _ = world.run(attack, defend=lambda c: np.full_like(c, 1 / c.shape[1]))
    assert np.isfinite(scores).all()


def test_one_sided_knowledge_and_divergence_are_refused(world: Any) -> None:
    attack = Nsh(width=0.05, epochs=30, learning_rate=1e18)
    with pytest.raises(FloatingPointError, match="learning_rate 1e\\+18"):
        world.run(attack)
    known = world.knowledge(Nsh(), 0)
    known.cal.is_member[:] = False
    with pytest.raises(ValueError, match=r"known\.cal holds 0 members among 120"):
        Nsh().score(world.service(), known, world.x[:3], world.y[:3], seed=0)


def test_the_device_is_where_the_net_goes(world: Any) -> None:
    known = world.knowledge(Nsh(), 0)
    object.__setattr__(known, "device", "meta")  # whose tensors have no values to give back
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        Nsh().score(world.service(), known, world.x[:3], world.y[:3], seed=0)
