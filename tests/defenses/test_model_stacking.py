"""Model stacking: who learns from what, and that stored arrays answer as the models did."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from defenses._forest import forest_answers, grown
from defenses.base import Records
from defenses.model_stacking import ModelStacking, _answers, _logits
from tasks import architectures, training

SMALL = ModelStacking(num_trees=7)


def clear(rng, num_rows: int, num_classes: int) -> Records:
    x = rng.normal(size=(num_rows, 8)).astype(np.float32)
    return Records(x, rng.integers(num_classes, size=num_rows))


@pytest.mark.parametrize("num_classes", [2, 10, 530])
def test_a_stored_forest_answers_as_the_grown_one(num_classes):
    rng = np.random.default_rng(num_classes)
    data = clear(rng, 150, num_classes)
    data.x[:40] = data.x[40:80]  # equal records of different classes: leaves that are not pure
    arrays = grown(data.x, data.y, num_trees=5, rng=np.random.default_rng(1))
    stored = load(save(arrays))
    x = np.concatenate([data.x, rng.normal(size=(1100, 8)).astype(np.float32)])
    expected, seeds = np.zeros((len(x), num_classes)), np.random.default_rng(1)
    for _ in range(5):
        tree = RandomForestClassifier(n_estimators=1, random_state=int(seeds.integers(2**31)))
        with warnings.catch_warnings(action="ignore"):  # of 530 classes for 150 records
            tree.fit(data.x, data.y)
        expected[:, tree.classes_] += tree.predict_proba(x) / 5
    found = forest_answers(stored, x, num_classes)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    for rows in (np.array([3]), np.arange(700, 20, -1)):
        np.testing.assert_array_equal(forest_answers(stored, x[rows], num_classes), found[rows])


def test_a_forest_of_one_class_has_no_branches():
    arrays = grown(np.zeros((4, 3)), np.full(4, 2), num_trees=3, rng=np.random.default_rng(0))
    np.testing.assert_allclose(forest_answers(arrays, np.ones((2, 3)), 4), [[0, 0, 1, 0]] * 2)


@pytest.mark.parametrize(
    ("name", "shape", "recipe"),
    [
        ("mlp_s", (20,), {}),
        ("purchase_mlp4_tanhout", (20,), {}),
        ("mlp_s", (20,), {"activation": "relu", "dropout": 0.3}),
        ("mlp_s", (20,), {"hidden": ()}),
        ("mlp_s", (20,), {"hidden": tuple([5] * 8)}),
        ("cnn_s", (3, 11, 9), {}),
        ("cnn_s", (1, 8, 8), {"activation": "tanh", "hidden": ()}),
    ],
)
def test_weights_alone_answer_as_the_network_does(name, shape, recipe):
    architecture = architectures.make(name, **recipe)
    module = training.initial(architecture, shape, 7, seed=3).eval()
    weights = {f"m1.{key}": value for key, value in training.weights_of(module).items()}
    x = np.random.default_rng(0).random((1500, *shape), dtype=np.float32)
    found = _logits(weights, "m1.", x, architecture)
    np.testing.assert_allclose(found, training.logits(module, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_members", [12, 13, 14, 300])
def test_the_thirds_are_disjoint_and_complete(num_members):
    members = Records(np.arange(num_members)[:, None], np.arange(num_members) % 3)
    parts = SMALL.thirds(members, 5)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    together = np.concatenate([part.x[:, 0] for part in parts])
    assert sorted(together) == list(range(num_members))
    for part in parts:
        np.testing.assert_array_equal(part.y, part.x[:, 0] % 3)
    other = SMALL.thirds(members, 6)[0].x
    assert set(other[:, 0]) != set(parts[0].x[:, 0])


@pytest.mark.parametrize("second", ["forest", "network"])
def test_each_model_sees_its_own_third(second, make_world):
    """A change of one third moves its model and the regression, never the other model."""
    world = make_world(5)
    defense = ModelStacking(second=second, num_trees=3)
    usual = defense.train(replace(world, weights=None), seed=2)
    parts = defense.thirds(world.members, 2)
    other = "forest." if second == "forest" else "m2."
    for changed, moved in enumerate(["m1.", other, "meta."]):
        y = world.members.y.copy()
        rows = {row.tobytes() for row in parts[changed].x}
        inside = np.array([row.tobytes() in rows for row in world.members.x])
        y[inside] = (y[inside] + 1) % 5
        members = Records(world.members.x, y)
        weights = defense.train(replace(world, weights=None, members=members), seed=2)
        for prefix in ("m1.", other):
            same = all(
                weights[name].shape == value.shape and np.array_equal(weights[name], value)
                for name, value in usual.items()
                if name.startswith(prefix)
            )
            assert same == (prefix != moved)
        assert not np.array_equal(weights["meta.weight"], usual["meta.weight"])


def test_the_reference_is_not_used(make_world):
    world = make_world(5)
    empty = Records(world.reference.x[:0], world.reference.y[:0])
    reference = replace(world.reference, x=empty.x, y=empty.y, fit=empty, val=empty)
    usual, without = (
        SMALL.train(replace(world, reference=r, weights=None), seed=2)
        for r in (world.reference, reference)
    )
    for name, value in usual.items():
        np.testing.assert_array_equal(value, without[name])


@pytest.mark.parametrize("num_classes", [2, 10])
def test_answers_are_the_regressions_on_both_models(num_classes, make_world):
    world = make_world(num_classes)
    weights = load(save(SMALL.train(replace(world, weights=None), seed=2)))
    last = SMALL.thirds(world.members, 2)[2]
    features = _answers(weights, last.x, world.recipe, num_classes)
    m1 = {name[3:]: value for name, value in weights.items() if name.startswith("m1.")}
    own = replace(world, weights=m1).answer(last.x)
    np.testing.assert_allclose(features[:, :num_classes], own, atol=1e-6)
    np.testing.assert_allclose(features.sum(axis=1), 2, atol=1e-9)
    meta = LogisticRegression(max_iter=1000).fit(features, last.y)
    x = world.reference.x
    released = SMALL.confidences(weights, x, architecture=world.recipe)
    expected = meta.predict_proba(_answers(weights, x, world.recipe, num_classes))
    np.testing.assert_allclose(released[:, meta.classes_], expected, atol=1e-6)
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)
    for rows in (np.array([3]), np.arange(200, 20, -1)):
        part = SMALL.confidences(weights, x[rows], architecture=world.recipe)
        np.testing.assert_allclose(part, released[rows], atol=1e-6)
    assert SMALL.confidences(weights, x[:0], architecture=world.recipe).shape == (0, num_classes)


def test_classes_the_last_third_lacks_get_nothing(make_world):
    world = make_world(10)
    rows = SMALL.thirds(Records(np.arange(300), np.zeros(300)), 2)[2].x
    y = world.members.y.copy()
    y[rows] %= 6
    members = Records(world.members.x, y)
    trained = SMALL.train(replace(world, weights=None, members=members), seed=2)
    released = SMALL.confidences(trained, members.x, architecture=world.recipe)
    assert not released[:, 6:].any()
    assert released[:, :6].any(axis=0).all()
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)


def test_members_are_far_from_memorised(make_world):
    world = make_world(10)
    weights = ModelStacking(num_trees=30).train(replace(world, weights=None), seed=2)
    answers = SMALL.confidences(weights, world.members.x, architecture=world.recipe)
    stacked = (answers.argmax(axis=1) == world.members.y).mean()
    plain = (world.answer(world.members.x).argmax(axis=1) == world.members.y).mean()
    assert stacked < plain - 0.05


def test_images_get_a_second_network(make_world):
    rng = np.random.default_rng(0)
    members = Records(rng.random((60, 1, 8, 8), dtype=np.float32), rng.integers(3, size=60))
    architecture = architectures.make("cnn_s", epochs=1)

    class Setting:
        num_classes, recipe = 3, architecture

        def train(self, records, *, seed):
            trained = training.train(architecture, records.x, records.y, num_classes=3, seed=seed)
            return trained.weights

    setting = Setting()
    setting.members = members
    weights = ModelStacking().train(setting, seed=1)
    assert {name.partition(".")[0] for name in weights} == {"m1", "m2", "meta"}
    assert not np.array_equal(weights["m1.0.weight"], weights["m2.0.weight"])
    answers = ModelStacking().confidences(weights, members.x, architecture=architecture)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-12)


def test_too_few_members_are_an_error(make_world):
    world = make_world(5)
    for rows in (slice(0, 2), world.members.y == 1):
        few = Records(world.members.x[rows], world.members.y[rows])
        with pytest.raises(ValueError, match="too few to stack"):
            SMALL.train(replace(world, members=few), seed=0)
