"""Min-max: what the classifier pays for, and whom the inference model learns from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from defenses.base import Records
from defenses.minmax import MinMax, _Inference, _Opponent

SMALL = {"width": 0.1, "inference_rate": 1e-3}


def gap(world, weights) -> float:
    answering = replace(world, weights=weights)
    sides = (world.members, world.reference)
    member, other = ((answering.answer(s.x).argmax(axis=1) == s.y).mean() for s in sides)
    return member - other


# The second one goes through the adversarial loop, which must not disturb the plain one's draws.
@pytest.mark.parametrize("penalty", [0.0, 1e-30])
def test_without_a_penalty_it_is_the_plain_training(penalty, make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1, dropout=0.2)

    class Dropping(type(world)):
        def train(self, records, **options):
            return super().train(records, dropout=0.2, **options)

    given = Dropping(world.members, world.reference, world.num_classes)
    trained = MinMax(penalty=penalty, inference_steps=1, **SMALL).train(given, seed=1)
    for name, value in trained.items():
        np.testing.assert_array_equal(value, plain[name], err_msg=name)


def test_a_larger_penalty_memorises_less(make_world):
    world = make_world(10)
    found = []
    for penalty in (0.0, 3.0, 30.0):
        defense = MinMax(penalty=penalty, inference_steps=1, **SMALL)
        weights = defense.train(replace(world, weights=None), seed=1)
        answers = replace(world, weights=weights).answer(world.members.x)
        right = (answers.argmax(axis=1) == world.members.y).mean()
        own = answers[np.arange(len(answers)), world.members.y].mean()
        found.append((right, own, gap(world, weights)))
    rights, owns, gaps = zip(*found, strict=True)
    assert rights[0] >= rights[1] - 0.01
    assert rights[1] >= rights[2] - 0.01
    assert owns[0] > owns[1] > owns[2]
    assert gaps[2] < gaps[0]


def test_validation_records_teach_nothing_and_others_do(make_world):
    world = make_world(5)
    reference = world.reference
    defense = MinMax(inference_steps=1, epochs=10, **SMALL)

    def trained(fit, val):
        given = replace(world, weights=None, reference=replace(reference, fit=fit, val=val))
        return defense.train(given, seed=1)["0.weight"]

    usual = trained(reference.fit, reference.val)
    empty = Records(reference.x[:0], reference.y[:0])
    np.testing.assert_array_equal(usual, trained(reference.fit, empty))
    other = Records(reference.fit.x + 1, reference.fit.y)
    assert not np.array_equal(usual, trained(other, reference.val))


def met(defense, world) -> _Opponent:
    opponent = _Opponent(defense, world, 3)
    opponent.meet(0, world.network(seed=1))
    return opponent


@pytest.mark.parametrize("form", ["mean", "log"])
def test_the_penalty_is_what_h_believes_and_h_is_not_moved_by_it(form, make_world):
    opponent = met(MinMax(form=form, **SMALL), make_world(10))
    z = torch.randn(20, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(20) % 10
    before = [value.clone() for value in opponent.h.parameters()]
    opponent.h.zero_grad()  # of the warm-up
    belief = opponent.belief(z, y)
    belief.backward()
    assert z.grad.abs().sum() > 0
    assert all(value.grad is None or not value.grad.any() for value in opponent.h.parameters())
    for now, then in zip(opponent.h.parameters(), before, strict=True):
        assert torch.equal(now, then)
    log_odds = opponent.h(z.softmax(dim=1), y).detach().double().numpy()
    h = 1 / (1 + np.exp(-log_odds))
    expected = h.mean() - 0.5 if form == "mean" else np.log(h).mean() / 2
    assert float(belief.detach()) == pytest.approx(expected, abs=1e-6)


def test_both_forms_are_as_steep_where_h_is_undecided(make_world):
    slopes = []
    for form in ("mean", "log"):
        opponent = met(MinMax(form=form, warm_up=0, **SMALL), make_world(10))
        torch.nn.init.zeros_(opponent.h.joint[-1].bias)
        opponent.h.joint[-1].weight.data *= 1e-3
        z = torch.linspace(-2, 2, 200).reshape(20, 10).requires_grad_()
        opponent.belief(z, torch.arange(20) % 10).backward()
        slopes.append(z.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-2, atol=1e-9)


def test_h_learns_to_tell_the_members_of_an_overfitted_model(make_world):
    world = make_world(10)
    module = world.network(seed=1)
    module.load_state_dict({name: torch.tensor(value) for name, value in world.weights.items()})
    opponent = _Opponent(MinMax(warm_up=60, inference_rate=1e-3, width=0.3), world, 3)
    opponent.meet(0, module)
    believed = []
    with torch.no_grad():
        for side in (world.members, world.reference.fit):
            p = torch.tensor(world.answer(side.x)).float()
            believed.append(opponent.h(p, torch.tensor(side.y)).sigmoid().mean())
    assert believed[0] > believed[1] + 0.1


def test_h_has_the_published_layers():
    shapes = [tuple(v.shape) for v in _Inference(100, 1.0).parameters() if v.ndim == 2]
    assert shapes == [
        (1024, 100),
        (512, 1024),
        (64, 512),
        (512, 100),
        (64, 512),
        (256, 128),
        (64, 256),
        (1, 64),
    ]


def test_presets_are_the_published_values():
    for dataset, penalty, rate, epochs, batch in [
        ("purchase100", 3, 1e-4, 30, 512),
        ("retail100", 3, 1e-4, 30, 512),
        ("texas100", 2, 1e-3, 20, 128),
        ("hospital100", 2, 1e-3, 20, 128),
        ("cifar100", 6, 1e-4, 200, 256),
    ]:
        paper = MinMax(**MinMax.preset("paper", dataset, 100))
        assert (paper.penalty, paper.inference_rate) == (penalty, rate)
        assert (paper.epochs, paper.batch_size) == (epochs, batch)
        cpu = MinMax(**MinMax.preset("cpu", dataset, 100))
        assert cpu.penalty == penalty
        assert cpu.recipe() == {}


def test_no_records_to_learn_from_is_an_error(make_world):
    world = make_world(5)
    empty = replace(world.reference, fit=Records(world.reference.x[:0], world.reference.y[:0]))
    with pytest.raises(ValueError, match="no records to fit on"):
        MinMax().train(replace(world, reference=empty), seed=0)
