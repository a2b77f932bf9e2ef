"""What is true of AEPPT's attackers."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks.base import Known
from attacks.mim import Mim, Model, _noised, _squared_error
from tasks.metrics import calibrate, decisions

QUICK = {"width": 0.1, "epochs": 30}
SURE = 0.99


def widths(layers: Any) -> list[int]:
    linear = [m for m in layers if isinstance(m, torch.nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


@pytest.mark.parametrize("model", ["mim0", "mim2", "mim3a", "mim3b"])
def test_three_branches_of_the_published_widths(model: Model) -> None:
    net = Mim(model=model, **Mim.PRESETS["paper"])._net(100)
    assert widths(net.prediction) == [100, 1024, 512, 64]
    assert widths(net.label) == [100, 512, 64]
    assert widths(net.joint) == [128, 256, 64, 1]


def test_mim1_is_one_net_on_both_and_the_cpu_halves_it() -> None:
    assert widths(Mim(model="mim1")._net(100).layers) == [200, 1024, 512, 256, 1]
    cpu = Mim(model="mim1", **Mim.PRESETS["cpu"])
    assert widths(cpu._net(100).layers) == [200, 512, 256, 128, 1]
    # Swapped, confidence and label are other inputs.
    net, eye = cpu._net(3), torch.eye(3)
    assert net(eye[[0]], torch.tensor([1])) != net(eye[[1]], torch.tensor([0]))


@pytest.mark.parametrize("num_members", [1, 4, 9])
def test_mim2_descends_the_class_weighted_squared_error(num_members: int) -> None:
    log_odds = torch.linspace(-30, 30, 10, dtype=torch.float64)
    is_member = (torch.arange(10) < num_members).double()
    error = (torch.sigmoid(log_odds) - is_member) ** 2
    want = 0.5 * (error[:num_members].mean() + error[num_members:].mean())
    assert float(_squared_error(log_odds, num_members)) == pytest.approx(float(want), rel=1e-8)


@pytest.mark.parametrize("model", ["mim0", "mim1", "mim2", "mim3b"])
def test_each_finds_overfitting_with_scores_of_its_own(model: Model, world: Any) -> None:
    scores, is_member = world.run(Mim(model=model, **QUICK))
    assert roc_auc_score(is_member, scores) > 0.6
    plain, _ = world.run(Mim(**QUICK))
    assert (scores.tobytes() == plain.tobytes()) == (model == "mim0")


def test_learns_from_scores_that_a_tanh_has_flattened(world: Any) -> None:
    scores, is_member = world.run(Mim(**QUICK), defend=lambda c: 0.0094 + 0.004 * c)
    assert roc_auc_score(is_member, scores) > 0.65


def test_mim3a_calls_everybody_a_member_where_it_saw_no_other(world: Any) -> None:
    attack = Mim(model="mim3a", **QUICK)
    fit, _ = attack._shifted(world.knowledge(attack, 0), np.random.default_rng([0, 1]))
    seen = np.isin(world.y[world.parts["eval"]], fit.y[~fit.is_member])
    scores, is_member = world.run(attack)
    assert roc_auc_score(is_member[seen], scores[seen]) > 0.6
    assert (scores[~seen] > 0).mean() > 0.95


def test_permuted_membership_is_not_found(make_world: Any, accuracy: Any) -> None:
    world = make_world()
    shuffled = np.random.default_rng(5).permutation(world.is_member)
    object.__setattr__(world, "is_member", shuffled)
    scores, is_member = world.run(Mim(**QUICK))
    # 300 records a side: four standard deviations of the balanced accuracy are 0.08.
    assert abs(accuracy(scores > 0, is_member) - 0.5) < 0.08


def surest_first(confidence: Any) -> Any:
    """Releases sure answers as unsure ones and the other way round; the labels stay."""
    label = np.eye(confidence.shape[1])[confidence.argmax(axis=1)]
    weight = np.where(confidence.max(axis=1, keepdims=True) > SURE, 0.5, 0.999)
    return weight * label + (1 - weight) / confidence.shape[1]


def test_fitted_on_clean_answers_it_is_misled_until_it_inverts_its_decision(world: Any) -> None:
    """AEPPT's evaluation in small: the defense deceives this attacker, and hides nothing."""
    attack = Mim(**QUICK)
    rows = np.concatenate([world.parts["cal"], world.parts["eval"]])
    num_cal = len(world.parts["cal"])
    is_member = world.is_member[rows]

    def accuracies(defend: Any) -> tuple[float, float]:
        known = world.knowledge(attack, 0, **defend)
        query = world.service("score", surest_first)
        scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
        calibration = calibrate(scores[:num_cal], is_member[:num_cal], Mim.THRESHOLD)
        printed, flipped = scores[num_cal:] > 0, decisions(scores[num_cal:], calibration)
        judged = is_member[num_cal:]
        return tuple(
            0.5 * (called[judged].mean() + (~called[~judged]).mean())
            for called in (printed, flipped)
        )

    printed, flipped = accuracies({})
    assert printed < 0.42
    assert flipped == pytest.approx(1 - printed)
    printed, flipped = accuracies({"defend": surest_first})
    assert printed > 0.58
    assert flipped == printed


def test_rounding_is_all_it_sees_of_an_answer(small_world: Any) -> None:
    coarse = Mim(decimals=2, width=0.05, epochs=3)
    scores, _ = small_world.run(coarse)
    rounded, _ = small_world.run(coarse, defend=lambda c: np.round(c, 2))
    assert scores.tobytes() == rounded.tobytes()
    fine, _ = small_world.run(Mim(width=0.05, epochs=3))
    assert scores.tobytes() != fine.tobytes()


def known_part(seed: int, num: int, shape: tuple[int, ...], *, binary: bool) -> Known:
    rng = np.random.default_rng(seed)
    x = rng.integers(2, size=(num, *shape)) if binary else rng.normal(size=(num, *shape))
    x = x.astype(np.float32)
    x.flags.writeable = False
    is_member = rng.permutation(num) < num // 2
    return Known(x, rng.integers(5, size=num), is_member)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(7,), (1, 3, 4)]), st.booleans())
def test_noise_touches_non_members_only_and_invents_no_value(
    seed: int, shape: tuple[int, ...], binary: bool
) -> None:
    part = known_part(seed, 20, shape, binary=binary)
    found = _noised(part, 0.5, np.random.default_rng(seed))
    np.testing.assert_array_equal(found.x[part.is_member], part.x[part.is_member])
    np.testing.assert_array_equal(found.is_member, part.is_member)
    np.testing.assert_array_equal(found.y, part.y)
    before, after = (p.x[~part.is_member].reshape(10, -1) for p in (part, found))
    for feature_before, feature_after in zip(before.T, after.T, strict=True):
        assert np.isin(feature_after, (0, 1) if binary else feature_before).all()


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_as_many_bits_are_flipped_as_asked(share: float) -> None:
    part = known_part(0, 400, (100,), binary=True)
    found = _noised(part, share, np.random.default_rng(1))
    flipped = (found.x != part.x)[~part.is_member].mean()
    # 20 000 bits: four standard deviations.
    assert abs(flipped - share) <= 4 * np.sqrt(share * (1 - share) / 20_000)


def test_mim3a_learns_no_non_member_of_the_other_classes(world: Any) -> None:
    attack = Mim(model="mim3a", **QUICK)
    known = world.knowledge(attack, 0)
    fit, cal = attack._shifted(known, np.random.default_rng(0))
    classes = np.unique(fit.y[~fit.is_member])
    assert len(classes) == world.num_classes // 2
    for part, given_part in ((fit, known.fit), (cal, known.cal)):
        assert np.isin(part.y[~part.is_member], classes).all()
        assert part.is_member.sum() == given_part.is_member.sum()
        kept = given_part.is_member | np.isin(given_part.y, classes)
        np.testing.assert_array_equal(part.x, given_part.x[kept])
    known.cal.y[~known.cal.is_member] = np.setdiff1d(np.arange(world.num_classes), classes)[0]
    with pytest.raises(ValueError, match=r"known\.cal holds no non-member of the 4 classes"):
        attack._shifted(known, np.random.default_rng(0))


def test_one_sided_knowledge_and_divergence_are_refused(world: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"mim.s training .* learning_rate 1e\+18"):
        world.run(Mim(width=0.05, epochs=30, learning_rate=1e18))
    known = world.knowledge(Mim(), 0)
    known.fit.is_member[:] = True
    with pytest.raises(ValueError, match=r"known\.fit holds 480 members among 480.*mim needs"):
        Mim().score(world.service(), known, world.x[:3], world.y[:3], seed=0)
