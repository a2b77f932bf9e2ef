"""MMD + mixup: the discrepancy, the batches it is taken on, and what it does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from defenses.base import Records
from defenses.mmd import Mmd, class_matched, mmd2


def confidences(seed: int, rows: int, classes: int, spread: float) -> torch.Tensor:
    z = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    return (spread * z).softmax(dim=1)


def slow(p, q) -> float:
    def kernel(a, b):
        return np.mean([[np.exp(-np.sum((x - y) ** 2) / 2) for y in b] for x in a])

    p, q = p.double().numpy(), q.double().numpy()
    return kernel(p, p) + kernel(q, q) - 2 * kernel(p, q)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 9),
    st.sampled_from([2, 10, 530]),
    st.sampled_from([0.1, 3.0, 80.0]),
)
def test_is_the_biased_estimate(seed, rows, classes, spread):
    p, q = confidences(seed, rows, classes, spread), confidences(seed + 1, 6, classes, spread)
    found = float(mmd2(p, q))
    assert found == pytest.approx(slow(p, q), abs=1e-6)
    assert found >= -1e-6
    assert found == pytest.approx(float(mmd2(q, p)), abs=1e-7)
    assert float(mmd2(p, p)) == pytest.approx(0, abs=1e-7)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 40), st.integers(1, 60))
def test_batches_are_matched_in_class(seed, classes, batch, others):
    rng = np.random.default_rng(seed)
    y, pool = rng.integers(classes, size=batch), rng.integers(classes, size=others)
    kept, drawn = class_matched(y, pool, rng)
    np.testing.assert_array_equal(y[kept], pool[drawn])
    assert set(kept) == {i for i in range(batch) if y[i] in pool}
    assert len(set(kept)) == len(kept)
    for label in range(classes):
        taken = drawn[pool[drawn] == label]
        has = np.count_nonzero(pool == label)
        assert len(set(taken)) == min(len(taken), has), "a record came twice before all came once"


def test_every_record_of_a_class_is_drawn_as_often():
    rng = np.random.default_rng(0)
    pool = np.array([0] * 5 + [1] * 10)
    drawn = [class_matched(np.array([1, 0, 1]), pool, rng)[1] for _ in range(3000)]
    counts = np.bincount(np.concatenate(drawn), minlength=15)
    np.testing.assert_allclose(counts, 600, atol=5 * np.sqrt(600))


def members_and_others(world, weights) -> tuple[np.ndarray, np.ndarray]:
    answering = replace(world, weights=weights)
    own = answering.answer(world.members.x), world.members.y
    other = answering.answer(world.reference.x), world.reference.y
    return tuple(p[np.arange(len(y)), y].mean() for p, y in (own, other))


def test_the_gap_shrinks_with_the_weight(make_world):
    world = make_world(10)
    gaps = []
    for weight in (0.0, 30.0, 100.0, 300.0):
        weights = Mmd(weight=weight, alpha=0).train(replace(world, weights=None), seed=1)
        own, other = members_and_others(world, weights)
        gaps.append(own - other)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.3 * gaps[0]


def test_phase_one_is_mixup_on_the_members(make_world):
    """Phase 2 is out of reach, so it is a plain loop with soft labels."""
    world = make_world(5)
    unmixed = Mmd(weight=0, alpha=0, epochs=2, batch_size=32).train(world, seed=1)
    never = Mmd(weight=5, alpha=0, epochs=2, batch_size=32, least_gap=1).train(world, seed=1)
    mixed = Mmd(weight=0, epochs=2, batch_size=32).train(world, seed=1)
    for name in unmixed:
        np.testing.assert_array_equal(unmixed[name], never[name])
    assert not np.array_equal(unmixed["0.weight"], mixed["0.weight"])

    rng = np.random.default_rng([1, *b"mmd.match"])
    order = torch.Generator().manual_seed(int(rng.integers(2**62)))
    network = world.network(seed=1)
    adam = world.optimizer(network)
    for _ in range(2):
        for rows in torch.split(torch.randperm(len(world.members), generator=order), 32):
            loss = F.cross_entropy(
                network(torch.tensor(world.members.x)[rows]), torch.tensor(world.members.y)[rows]
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), unmixed[name])


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_last_epoch_has_no_second_phase(epochs, make_world):
    world = make_world(5)
    trained = [
        Mmd(weight=weight, alpha=0, epochs=epochs, least_gap=0).train(world, seed=1)["0.weight"]
        for weight in (0.0, 10.0)
    ]
    assert np.array_equal(*trained) == (epochs == 1)


def test_a_published_recipe_falls_as_a_cosine(make_world):
    world = make_world(5)
    defense = Mmd(**Mmd.preset("paper", "purchase100", 100))
    optimizer, schedule = defense._optimizer(world, world.network(seed=0), 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = 0.01 * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4


def test_members_without_a_counterpart_are_left_out(make_world):
    world = make_world(5)
    fit = world.reference.fit
    some = fit.y < 2
    reference = replace(world.reference, fit=Records(fit.x[some], fit.y[some]))
    weights = Mmd(epochs=3).train(replace(world, reference=reference), seed=1)
    assert all(np.isfinite(value).all() for value in weights.values())


def test_nothing_to_match_is_an_error(make_world):
    world = make_world(5)
    empty = Records(world.reference.x[:0], world.reference.y[:0])
    for part in ("fit", "val"):
        reference = replace(world.reference, **{part: empty})
        with pytest.raises(ValueError, match="needs both"):
            Mmd().train(replace(world, reference=reference), seed=0)
