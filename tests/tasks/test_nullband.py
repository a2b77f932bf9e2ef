"""The max-null band against slow permutation, and simulations of what it promises."""

import numpy as np
import pytest

from tasks.metrics import auc
from tasks.nullband import max_null_band


def null_case(rng, num_seeds, num_attacks, size):
    """Dependent attacks on membership that no score knows."""
    scores = [
        rng.normal(size=(num_attacks, size)) + rng.normal(size=size) for _ in range(num_seeds)
    ]
    member = [
        rng.permutation(np.arange(size) < size // (2 + 4 * (index % 2)))  # groups of unequal size
        for index in range(num_seeds)
    ]
    return scores, [score > 0.3 for score in scores], member


def test_band_agrees_with_permuting_one_by_one():
    rng = np.random.default_rng(0)
    scores, called, member = null_case(rng, 2, 3, 30)

    def advantages(members):
        accuracy = [
            [np.mean(c[m]) / 2 + np.mean(~c[~m]) / 2 - 0.5 for c in called_AN]
            for called_AN, m in zip(called, members, strict=True)
        ]
        area = [
            [auc(s, m) - 0.5 for s in score_AN] for score_AN, m in zip(scores, members, strict=True)
        ]
        return np.mean([accuracy, area], axis=1)

    null = np.array([advantages([rng.permutation(m) for m in member]) for _ in range(1000)])
    spread = null.std(axis=0)
    band = np.quantile((null / spread).max(axis=2), 0.9, axis=0)
    seen = advantages(member) / spread
    ours = max_null_band(scores, called, member, seed=1, permutations=3000, quantile=0.9)
    assert (ours.band_accuracy, ours.band_auc) == pytest.approx(tuple(band), abs=0.12)
    assert (ours.observed_accuracy, ours.observed_auc) == pytest.approx(
        tuple(seen.max(axis=1)), abs=0.1
    )
    assert (ours.worst_accuracy, ours.worst_auc) == tuple(seen.argmax(axis=1))
    assert ours.sd_accuracy == pytest.approx(tuple(spread[0]), rel=0.1)
    assert ours.sd_auc == pytest.approx(tuple(spread[1]), rel=0.1)
    # In points: the accuracy that the largest of the three passes in a tenth of the permutations.
    assert ours.chance_accuracy(1) == pytest.approx(0.5 + band[0] * spread[0, 1], abs=0.02)
    assert ours.chance_auc(2) == pytest.approx(0.5 + band[1] * spread[1, 2], abs=0.02)


def test_null_data_lie_inside_as_often_as_the_quantile_says():
    rng = np.random.default_rng(11)
    runs = 300
    bands = [
        max_null_band(*null_case(rng, 2, 4, 60), seed=seed, permutations=400, quantile=0.9)
        for seed in range(runs)
    ]
    error = 4 * np.sqrt(0.9 * 0.1 / runs)
    for outside in (
        np.mean([band.observed_accuracy > band.band_accuracy for band in bands]),
        np.mean([band.observed_auc > band.band_auc for band in bands]),
    ):
        assert outside == pytest.approx(0.1, abs=error)


def test_null_data_rarely_leave_the_default_band():
    rng = np.random.default_rng(12)
    inside = [max_null_band(*null_case(rng, 3, 4, 60), seed=seed).inside for seed in range(100)]
    # Two verdicts of 99.5 % each: four of 100 outside has a chance of at most 2 %.
    assert sum(inside) >= 97


def test_a_planted_leak_in_one_attack_is_outside_and_named():
    scores, called, member = null_case(np.random.default_rng(3), 4, 5, 400)
    for score_AN, called_AN, member_N in zip(scores, called, member, strict=True):
        score_AN[3] += 0.6 * member_N
        called_AN[3] = score_AN[3] > 0.3
    band = max_null_band(scores, called, member, seed=0)
    assert not band.inside
    assert (band.worst_accuracy, band.worst_auc) == (3, 3)
    assert band.observed_auc > band.band_auc


def test_a_leak_smaller_than_one_seed_can_show_is_seen_over_ten():
    scores, called, member = null_case(np.random.default_rng(4), 10, 3, 300)
    for score_AN, member_N in zip(scores, member, strict=True):
        score_AN[0] += 0.35 * member_N
    assert max_null_band(scores[:1], called[:1], member[:1], seed=0).inside
    assert not max_null_band(scores, called, member, seed=0).inside


def test_constant_attacks_contribute_nothing():
    scores, called, member = null_case(np.random.default_rng(5), 3, 2, 101)
    alone = max_null_band([np.zeros((1, 101))] * 3, [np.ones((1, 101), bool)] * 3, member, seed=0)
    assert (alone.band_accuracy, alone.observed_accuracy, alone.band_auc) == (0, 0, 0)
    assert alone.inside
    without = max_null_band(scores, called, member, seed=0)
    beside = max_null_band(
        [np.vstack([score, np.zeros(101)]) for score in scores],
        [np.vstack([call, np.ones(101, bool)]) for call in called],
        member,
        seed=0,
    )
    assert beside.band_auc == pytest.approx(without.band_auc)
    assert beside.band_accuracy == pytest.approx(without.band_accuracy)


def test_the_band_is_reproducible_and_refuses_odd_shapes():
    case = null_case(np.random.default_rng(6), 2, 2, 50)
    assert max_null_band(*case, seed=3) == max_null_band(*case, seed=3)
    assert max_null_band(*case, seed=3) != max_null_band(*case, seed=4)
    scores, called, member = case
    with pytest.raises(ValueError, match="attacks of the first seed"):
        max_null_band([scores[0], scores[1][:1]], called, member, seed=0)
    with pytest.raises(ValueError, match="equally many"):
        max_null_band(scores, called, member[:1], seed=0)


def test_an_attack_on_some_records_is_as_if_the_others_were_not_there():
    rng = np.random.default_rng(5)
    scores, called, member = null_case(rng, 2, 2, 60)
    part = [rng.random(60) < 0.6 for _ in scores]
    given = [
        np.where([np.ones(60, bool), kept], s, np.nan) for s, kept in zip(scores, part, strict=True)
    ]
    mixed = max_null_band(given, called, member, seed=1, permutations=4000)
    cut = [
        [array[..., kept] for array, kept in zip(arrays, part, strict=True)]
        for arrays in (scores, called, member)
    ]
    alone = max_null_band(*cut, seed=1, permutations=4000)
    whole = max_null_band(scores, called, member, seed=1, permutations=4000)
    # The spread over permutations of all records, of which varying numbers fall into the part.
    assert mixed.sd_auc[1] == pytest.approx(alone.sd_auc[1], rel=0.1)
    assert mixed.sd_accuracy[1] == pytest.approx(alone.sd_accuracy[1], rel=0.1)
    assert mixed.sd_auc[0] == whole.sd_auc[0]
    assert mixed.sd_accuracy[0] == whole.sd_accuracy[0]


def test_what_an_attack_gets_on_its_part_is_exact():
    rng = np.random.default_rng(6)
    score, member = rng.normal(size=40), np.arange(40) % 2 == 0
    part = np.arange(40) < 20
    given = np.where(part, score + member, np.nan)[None]
    band = max_null_band([given], [given > 0.5], [member], seed=1)
    expected = (auc((score + member)[part], member[part]) - 0.5) / band.sd_auc[0]
    assert band.observed_auc == pytest.approx(expected, rel=1e-12)
    called = (given[0] > 0.5)[part]
    accuracy = (called[member[part]].mean() + (~called[~member[part]]).mean()) / 2 - 0.5
    assert band.observed_accuracy == pytest.approx(accuracy / band.sd_accuracy[0], rel=1e-12)
