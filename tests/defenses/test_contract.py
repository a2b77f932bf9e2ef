"""What every defense promises, whatever it is: plugins are found by file name."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

import defenses
from defenses.base import Defense, Diagnosing, OutputDefense, TrainingDefense

NAMES = sorted(
    path.stem
    for path in Path(defenses.__file__).parent.glob("*.py")
    if not path.stem.startswith("_") and path.stem != "base"
)
POLICIES = {"fresh", "per_input", "deterministic"}
# By definition what these release need not sum to 1.
NOT_DISTRIBUTIONS = {"rounding", "top_k"}


def plugin_class(name: str) -> type[Defense]:
    module = importlib.import_module(f"defenses.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Defense)
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} has {len(found)} defenses, a file holds one"
    return found[0]


def small(name: str, num_classes: int) -> Defense:
    """The cpu preset, with training cut short: the promises do not need a good fit."""
    cls = plugin_class(name)
    fields = cls.preset("cpu", "synth_s", num_classes)
    if "epochs" in cls.model_fields:
        fields["epochs"] = 2
    return cls(**fields)


def outputs() -> list[str]:
    return [name for name in NAMES if hasattr(plugin_class(name), "apply")]


def trainers() -> list[str]:
    return [name for name in NAMES if hasattr(plugin_class(name), "train")]


def test_there_are_plugins():
    assert {"none", "purifier", "prototype", "onehot", "l2"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_declares_itself(name):
    cls = plugin_class(name)
    assert cls.VERSION >= 1
    assert "Source:" in (cls.__doc__ or "")
    assert set(cls.NOISE) <= {"paper", "sound", "cpu"}
    assert set(cls.NOISE.values()) <= POLICIES
    with pytest.raises(ValueError, match="no_such_field"):
        cls(no_such_field=1)
    for preset in ("paper", "sound", "cpu"):
        for num_classes in (2, 10, 530):
            cls(**cls.preset(preset, "synth_s", num_classes))
    assert hasattr(cls, "apply") == hasattr(cls, "fit"), "fit and apply come together"


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("name", outputs())
def test_answers(name, num_classes, make_world, fitted, make_noise):
    defense, world = small(name, num_classes), make_world(num_classes)
    assert isinstance(defense, OutputDefense)
    x = np.concatenate([world.members.x[:40], world.reference.x[:40]])
    confidence = world.answer(x)
    before = confidence.copy()
    owned = [world.members.x.copy(), world.members.y.copy(), world.reference.x.copy()]
    state, ready = fitted(defense, world, 3)
    everyone = range(len(x))
    released = defense.apply(confidence, state, make_noise(everyone))

    assert released.shape == confidence.shape
    assert released.dtype == np.float64
    assert np.isfinite(released).all()
    assert (released >= 0).all()
    if name not in NOT_DISTRIBUTIONS:
        np.testing.assert_allclose(released.sum(axis=1), 1, rtol=0, atol=1e-9)

    np.testing.assert_array_equal(confidence, before)
    for now, then in zip([world.members.x, world.members.y, world.reference.x], owned, strict=True):
        np.testing.assert_array_equal(now, then)

    again = defense.fit(ready, seed=3)
    assert set(again) == set(state)
    for key, value in state.items():
        assert isinstance(value, np.ndarray), f"state['{key}'] is no array"
        assert value.dtype != object
        np.testing.assert_array_equal(value, again[key], err_msg=key)

    stored = load(save({key: np.asarray(value) for key, value in state.items()}))
    np.testing.assert_array_equal(defense.apply(confidence, stored, make_noise(everyone)), released)

    for rows in (np.arange(len(x))[::-1], np.array([7]), np.arange(11, 60)):
        np.testing.assert_allclose(
            defense.apply(confidence[rows], state, make_noise(rows)),
            released[rows],
            rtol=0,
            atol=1e-6,
            err_msg="a row's answer depends on its batch",
        )

    if isinstance(defense, Diagnosing):
        for key, value in defense.diagnose(ready, state, seed=3).items():
            assert isinstance(value, float), f"'{key}' is a {type(value).__name__}"


@pytest.mark.parametrize("name", outputs())
def test_refuses_bad_scores(name, make_world, fitted, make_noise):
    defense, world = small(name, 10), make_world(10)
    state, _ = fitted(defense, world)
    confidence = world.answer(world.members.x[:5])
    broken = confidence.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"row 3.*nan"):
        defense.apply(broken, state, make_noise(range(5)))
    with pytest.raises(ValueError, match="9"):
        defense.apply(confidence[:, :9], state, make_noise(range(5)))


@pytest.mark.parametrize("name", trainers())
def test_trains(name, make_world, prepared):
    defense = small(name, 10)
    world = make_world(10)
    assert isinstance(defense, TrainingDefense)
    # A training defense comes first in a chain: there is no model to ask.
    unanswering = type(world)(world.members, world.reference, world.num_classes)
    ready = prepared(defense, unanswering, 3)
    weights = defense.train(ready, seed=3)
    again = defense.train(ready, seed=3)
    assert weights
    assert set(weights) == set(again)
    for key, value in weights.items():
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, again[key])
    other = defense.train(ready, seed=4)
    assert any(not np.array_equal(value, other[key]) for key, value in weights.items())
