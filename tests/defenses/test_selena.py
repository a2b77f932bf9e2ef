"""SELENA: who sees what, and what the released model learns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.selena import Selena


@given(st.integers(2, 12), st.integers(1, 11), st.integers(1, 200), st.integers(0, 2**32))
def test_every_member_is_left_out_of_exactly_l_sub_models(models, excluded, members, seed):
    if excluded >= models:
        with pytest.raises(ValueError, match="smaller"):
            Selena(num_models=models, num_excluded=excluded)
        return
    out = Selena(num_models=models, num_excluded=excluded).excluded(members, seed)
    assert out.shape == (members, models)
    assert (out.sum(axis=1) == excluded).all()


def test_a_sub_model_has_the_expected_size():
    """n (1 - L/K), within five standard deviations."""
    out = Selena(num_models=25, num_excluded=10).excluded(4000, 0)
    sizes = (~out).sum(axis=0)
    assert abs(sizes - 2400).max() < 5 * np.sqrt(4000 * 0.6 * 0.4)


def test_targets_are_what_models_say_that_never_saw_the_member(make_world, prepared):
    """Against a slow loop over members; hard labels never reach the distilled model."""
    defense, world = Selena(num_models=4, num_excluded=2), make_world(5)
    ready = prepared(defense, world, 7)
    given_targets = []

    class Watching(type(ready)):
        def train(self, records, *, seed, targets=None, **overrides):
            given_targets.append(targets)
            return super().train(records, seed=seed, targets=targets, **overrides)

    watched = Watching(
        ready.members, ready.reference, ready.num_classes, ready.weights, ready.trained
    )
    defense.train(watched, seed=7)
    (targets,) = given_targets
    out = defense.excluded(len(world.members), 7)
    for i in range(0, len(world.members), 17):
        said = [
            model.answer(world.members.x[i : i + 1])[0]
            for k, model in enumerate(ready.trained)
            if out[i, k]
        ]
        np.testing.assert_allclose(targets[i], np.mean(said, axis=0), atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-5)


def test_members_and_others_are_answered_more_alike(make_world, prepared):
    world = make_world(5)
    model = type(prepared(Selena(num_models=2, num_excluded=1), world, 1).trained[0])

    def gap(weights):
        answer = model(weights, {}).answer
        sides = (world.members, world.reference)
        right = [(answer(s.x).argmax(axis=1) == s.y).mean() for s in sides]
        return right[0] - right[1]

    defense = Selena(num_models=6, num_excluded=2)
    released = defense.train(prepared(defense, world, 3), seed=3)
    assert gap(released) < gap(world.weights) / 2


def test_other_sub_models_than_asked_for_are_refused(make_world):
    with pytest.raises(ValueError, match="asked for 3"):
        Selena(num_models=3, num_excluded=1).train(make_world(5), seed=0)
