import itertools

import numpy as np
import pytest
import torch

from defenses._mlp import TwoBranch, balanced_accuracy, initialised, train_on_membership, weights_of
from defenses._relu_net import Gradients, ReluNet


def network(sizes=(7, 20, 12, 1), seed=0):
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(sizes)
    layers = [(rng.normal(size=(o, i)) / np.sqrt(i), rng.normal(size=o)) for i, o in pairs]
    return ReluNet.of(layers), layers


def with_autograd(layers, x):
    """Output and input gradient of each record on its own."""
    outputs, gradients = [], []
    for row in x:
        inputs = hidden = torch.tensor(row, requires_grad=True)
        for i, (weight, bias) in enumerate(layers):
            hidden = torch.tensor(weight) @ hidden + torch.tensor(bias)
            hidden = hidden if i == len(layers) - 1 else hidden.relu()
        hidden[0].backward()
        outputs.append(hidden.item())
        gradients.append(inputs.grad.numpy())
    return np.array(outputs), np.array(gradients)


def test_output_and_gradient_are_those_of_autograd():
    net, layers = network()
    x = np.random.default_rng(1).normal(size=(30, 7))
    output, gradient = with_autograd(layers, x)
    found, kept = net.forward(x)
    np.testing.assert_allclose(found, output, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(net.gradient([h > 0 for h in kept]), gradient, atol=1e-12)
    assert net.num_inputs == 7


@pytest.mark.parametrize("length", [1e-4, 0.1, 3.0])
def test_gradients_kept_over_a_walk_are_those_computed_anew(length):
    net, layers = network()
    rng = np.random.default_rng(2)
    x = rng.normal(size=(25, 7))
    gradients = Gradients(net, len(x))
    for _ in range(20):
        _, kept = net.forward(x)
        np.testing.assert_allclose(gradients.at(kept), with_autograd(layers, x)[1], atol=1e-12)
        x += length * rng.normal(size=x.shape)


def test_a_network_with_nothing_on_has_no_gradient():
    net, layers = network()
    dead = ReluNet.of([(weight, bias - 1e3) for weight, bias in layers])
    x = np.random.default_rng(3).normal(size=(4, 7))
    gradients = Gradients(dead, 4)
    assert not gradients.at(dead.forward(x)[1]).any()
    live = gradients.at(net.forward(x)[1])
    assert live.any()


def sides(num_members=1000, num_others=100, seed=0):
    """Members at +1, others at -1, in unit noise: 0.84 is the best balanced accuracy."""
    generator = torch.Generator().manual_seed(seed)
    member = 1 + torch.randn((num_members, 1), generator=generator)
    return member, torch.randn((num_others, 1), generator=generator) - 1


def train(net, members, others, validation, epochs=60, rate=0.05):
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    train_on_membership(
        net,
        [members],
        [others],
        ([validation[0]], [validation[1]]),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=64,
        seed=0,
    )
    with torch.no_grad():
        return [net(side).numpy()[:, 0] for side in validation]


def test_ten_members_for_one_other_do_not_move_the_boundary():
    net = initialised(lambda: torch.nn.Linear(1, 1), 0)
    odds = train(net, *sides(), sides(4000, 4000, seed=1))
    assert balanced_accuracy(*odds) > 0.82
    assert abs(np.mean(odds[0] < 0) - np.mean(odds[1] >= 0)) < 0.05


def test_the_best_epoch_is_kept():
    # Validation contradicts training, so whatever the training does makes it worse.
    members, others = sides()
    one, many = (initialised(lambda: torch.nn.Linear(1, 1), 3) for _ in range(2))
    train(one, members, others, (others, members), epochs=1)
    train(many, members, others, (others, members), epochs=30)
    assert torch.equal(one.weight, many.weight)


def test_a_training_that_diverges_is_an_error():
    net = initialised(lambda: torch.nn.Linear(1, 1), 0)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(net, *sides(), sides(seed=1), rate=float("inf"))


def test_weights_depend_on_the_seed_alone():
    def make(seed):
        return weights_of(initialised(lambda: TwoBranch(5, (6,), (6,), (4,)), seed))

    first = make(1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    again, other = make(1), make(2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
