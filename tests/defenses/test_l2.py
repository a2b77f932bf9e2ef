import numpy as np
import pytest

from defenses.l2 import L2


def test_zero_is_the_plain_training(make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1)
    for name, value in L2(weight_decay=0).train(world, seed=1).items():
        np.testing.assert_array_equal(value, plain[name])


def test_more_decay_memorises_less(make_world):
    world = make_world(10)
    gaps = []
    for weight_decay in (0.0, 1e-2, 1e-1):
        answering = type(world)(
            world.members,
            world.reference,
            world.num_classes,
            L2(weight_decay=weight_decay).train(world, seed=1),
        )
        member, other = (
            np.mean(answering.answer(part.x).argmax(axis=1) == part.y)
            for part in (world.members, world.reference)
        )
        gaps.append(member - other)
    assert gaps[0] > gaps[1] > gaps[2]


def test_a_negative_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay"):
        L2(weight_decay=-1e-4)
