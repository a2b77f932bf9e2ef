from types import SimpleNamespace

import numpy as np
import pytest

from defenses.dropout import Dropout
from tasks import training
from tasks.architectures import make, with_recipe


def test_zero_is_the_plain_training(make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1)
    for name, value in Dropout(rate=0).train(world, seed=1).items():
        np.testing.assert_array_equal(value, plain[name])


def test_the_more_is_dropped_the_less_sure_it_is_of_members(make_world):
    world = make_world(10)
    rows = np.arange(len(world.members))
    sureness = []
    for rate in (0.0, 0.5, 0.9):
        weights = Dropout(rate=rate).train(world, seed=1)
        answering = type(world)(world.members, world.reference, world.num_classes, weights)
        sureness.append(np.mean(answering.answer(world.members.x)[rows, world.members.y]))
    assert sureness[0] > sureness[1] > sureness[2]


@pytest.mark.parametrize(("network", "shape"), [("mlp_s", (64,)), ("cnn_s", (1, 8, 8))])
def test_the_service_can_load_what_it_gives(network, shape):
    architecture = make(network, epochs=2)
    rng = np.random.default_rng(0)
    x = rng.random((60, *shape)).astype(np.float32)
    y = rng.integers(3, size=60)

    def train(records, *, seed, **recipe):
        changed = with_recipe(architecture, **recipe)
        return training.train(changed, x, y, num_classes=3, seed=seed).weights

    weights = Dropout().train(SimpleNamespace(members=None, train=train), seed=0)
    # The service builds the target's network, which has no dropout.
    module = training.load_module(architecture, weights, shape, 3)
    with_dropout = with_recipe(architecture, dropout=0.5)
    same = training.load_module(with_dropout, weights, shape, 3)
    np.testing.assert_array_equal(training.logits(module, x), training.logits(same, x))
    plain = training.train(architecture, x, y, num_classes=3, seed=0).weights
    assert any(not np.array_equal(weights[name], plain[name]) for name in plain)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        Dropout(rate=rate)
