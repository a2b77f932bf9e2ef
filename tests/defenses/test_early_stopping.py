from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from defenses.base import Records
from defenses.early_stopping import EarlyStopping
from tasks import training
from tasks.architectures import make, with_recipe


def validation_loss(world, weights) -> float:
    val = world.reference.val
    c_NC = replace(world, weights=weights).answer(val.x)
    return -float(np.mean([np.log(row[label]) for row, label in zip(c_NC, val.y, strict=True)]))


def watched(world, epochs: list[int], **recipe) -> SimpleNamespace:
    """The world, noting how many epochs a training took."""

    def train(records, *, after_epoch, **options):
        def noted(epoch, module):
            epochs.append(epoch + 1)
            return after_epoch(epoch, module)

        return world.train(records, after_epoch=noted, **recipe, **options)

    return SimpleNamespace(
        members=world.members, reference=world.reference, device=world.device, train=train
    )


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("patience", [1, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gives_back_the_best_epoch_of_a_training_that_ended_in_time(
    dropout, patience, num_classes, make_world
):
    world = make_world(num_classes)
    # The slow way: every number of epochs trained anew.
    curve, trained = [], []
    for epochs in range(1, 60):
        trained.append(world.train(world.members, seed=1, epochs=epochs, dropout=dropout))
        curve.append(validation_loss(world, trained[-1]))
        if len(curve) - 1 - int(np.argmin(curve)) == patience:
            break
    best = int(np.argmin(curve))
    assert 0 < best < 50, "this world has no best epoch to find"

    seen: list[int] = []
    weights = EarlyStopping(patience=patience).train(watched(world, seen, dropout=dropout), seed=1)
    assert seen[-1] == best + 1 + patience
    for name, value in weights.items():
        np.testing.assert_array_equal(value, trained[best][name])


def test_closes_most_of_the_gap(make_world):
    world = make_world(10)
    gaps = []
    for weights in (world.weights, EarlyStopping().train(world, seed=1)):
        answering = replace(world, weights=weights)
        member, other = (
            np.mean(answering.answer(part.x).argmax(axis=1) == part.y)
            for part in (world.members, world.reference.fit)
        )
        gaps.append(member - other)
    assert gaps[1] < gaps[0] / 2


def test_ends_after_its_epochs_at_the_latest(make_world):
    world = make_world(10)
    seen: list[int] = []
    weights = EarlyStopping(epochs=3).train(watched(world, seen), seed=1)
    assert seen == [1, 2, 3]
    for name, value in world.train(world.members, seed=1, epochs=3).items():
        np.testing.assert_array_equal(weights[name], value)


def test_members_learned_by_heart_do_not_end_the_training_unjudged(make_world):
    world = make_world(10)
    # A recipe that calls itself finished after its first epoch, whatever the validation says.
    recipe = make("mlp_s", epochs=4, min_loss=1e9)

    def train(records, *, seed, loss, after_epoch):
        ways = training.Ways(loss=loss, after_epoch=after_epoch)
        trained = training.train(recipe, records.x, records.y, num_classes=10, seed=seed, ways=ways)
        assert len(trained.losses) == 4
        return trained.weights

    setting = SimpleNamespace(
        members=world.members, reference=world.reference, device="cpu", train=train
    )
    weights = EarlyStopping().train(setting, seed=2)
    plain = with_recipe(recipe, min_loss=0.0)
    x, y = world.members.x, world.members.y
    same = training.train(plain, x, y, num_classes=10, seed=2).weights
    for name, value in weights.items():
        np.testing.assert_array_equal(value, same[name])


def test_no_records_to_stop_on_is_an_error(make_world):
    world = make_world(10)
    empty = replace(world.reference, val=Records(world.reference.x[:0], world.reference.y[:0]))
    with pytest.raises(ValueError, match="no validation records"):
        EarlyStopping().train(replace(world, reference=empty), seed=0)
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience=0)
