"""What every defense promises, whatever it is: plugins are found by file name."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import defenses
from defenses.base import Defense, Diagnosing, OutputDefense, TrainingDefense

NAMES = sorted(
    path.stem
    for path in Path(defenses.__file__).parent.glob("*.py")
    if not path.stem.startswith("_") and path.stem != "base"
)
POLICIES = {"fresh", "per_input", "deterministic"}
# By definition what these release need not sum to 1, and what these are given need not either.
NOT_DISTRIBUTIONS = {"rounding", "top_k"}
TAKE_ANY_SUM = {"onehot", "prototype", "rounding"}
# By definition these may answer with another label; rounding's is among the largest scores still.
CHANGE_LABELS = {"purifier", "rounding"}


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
    short = {"epochs": 2, "rounds": 2} | ({"iterations": 10} if num_classes > 10 else {})
    return cls(**fields | {key: n for key, n in short.items() if key in cls.model_fields})


def tricky(num_classes: int) -> np.ndarray:
    """Answers whose label hangs by a thread: ties, neighbours in float64, certainty."""
    rng = np.random.default_rng(num_classes)
    sure = np.eye(num_classes)[rng.integers(num_classes, size=6)]
    even = np.full((1, num_classes), 1 / num_classes)
    tied = rng.dirichlet(np.ones(num_classes), size=6)
    first, second = np.argsort(-tied, axis=1)[:, :2].T
    everyone = np.arange(len(tied))
    mean = (tied[everyone, first] + tied[everyone, second]) / 2
    tied[everyone, first] = tied[everyone, second] = mean
    close = tied.copy()
    close[everyone, second] = np.nextafter(mean, 1)
    return np.concatenate([sure, even, tied, close, 0.999 * sure + 0.001 * even])


def owned(world) -> list[np.ndarray]:
    """Copies of everything a defense is handed."""
    sides = (world.members, world.reference, world.reference.fit, world.reference.val)
    weights = () if world.weights is None else world.weights.values()
    return [values.copy() for side in sides for values in (side.x, side.y)] + [
        *map(np.copy, weights)
    ]


def assert_untouched(world, before: list[np.ndarray]) -> None:
    for now, then in zip(owned(world), before, strict=True):
        np.testing.assert_array_equal(now, then)


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
    handed, generator = owned(world), torch.get_rng_state()
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
    assert_untouched(world, handed)
    assert torch.equal(torch.get_rng_state(), generator), "it draws from the caller's generator"

    rows = np.concatenate([confidence, tricky(num_classes)])
    label = defense.apply(rows, state, make_noise(range(len(rows)))).argmax(axis=1)
    if name not in CHANGE_LABELS:
        np.testing.assert_array_equal(label, rows.argmax(axis=1))

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


class Bad:
    """A world whose model gives broken answers."""

    def __init__(self, world, confidence):
        self.world, self.confidence = world, confidence

    def __getattr__(self, name):
        return getattr(self.world, name)

    def answer(self, x):
        return np.resize(self.confidence, (len(x), self.confidence.shape[1]))


@pytest.mark.parametrize("name", outputs())
def test_refuses_bad_scores(name, make_world, fitted, make_noise):
    """When asked, and when fitted, unless it never looks at them then."""
    defense, world = small(name, 10), make_world(10)
    state, ready = fitted(defense, world)
    confidence = world.answer(world.members.x[:5])
    cases = [
        (confidence[:, :9], "9"),
        (np.c_[confidence, np.zeros(5)], "11"),
        (confidence[0], "10"),
    ]
    for value in (np.nan, np.inf, -np.inf, -1e-3):
        broken = confidence.copy()
        broken[3, 2] = value
        cases.append((broken, rf"row 3.*{value}"))
    if name not in TAKE_ANY_SUM:
        cases += [(confidence * 1.01, "row 0 sum to 1.0"), (confidence * 0, "row 0 sum to 0,")]
    for broken, message in cases:
        with pytest.raises(ValueError, match=message):
            defense.apply(broken, state, make_noise(range(len(broken))))
        if broken.ndim == 2:
            try:
                unseeing = defense.fit(Bad(ready, broken), seed=0)
            except ValueError as error:
                said = str(error)
                assert "confidence" in said
            else:
                for key, value in state.items():
                    np.testing.assert_array_equal(unseeing[key], value, err_msg=str(message))
    none = defense.apply(confidence[:0], state, make_noise(range(0)))
    assert none.shape == (0, 10)


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("name", trainers())
def test_trains(name, num_classes, make_world, prepared):
    defense, known = small(name, num_classes), make_world(num_classes)
    assert isinstance(defense, TrainingDefense)
    # A training defense comes first in a chain: there is no model to ask.
    world = type(known)(known.members, known.reference, num_classes)
    handed, generator = owned(world), torch.get_rng_state()
    ready = prepared(defense, world, 3)
    weights = defense.train(ready, seed=3)
    assert weights
    for key, value in weights.items():
        assert isinstance(value, np.ndarray), f"weights['{key}'] is no array"
        assert np.isfinite(value).all()
    assert_untouched(world, handed)
    assert torch.equal(torch.get_rng_state(), generator), "it draws from the caller's generator"
    stored = load(save(weights))
    assert set(stored) == set(weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(stored[key], value)
    if not hasattr(defense, "confidences"):
        answers = type(known)(known.members, known.reference, num_classes, stored).answer
        released = answers(known.members.x[:9])
        np.testing.assert_allclose(released.sum(axis=1), 1, rtol=0, atol=1e-9)
    if num_classes == 10:
        again, other = (defense.train(ready, seed=seed) for seed in (3, 4))
        assert set(weights) == set(again)
        for key, value in weights.items():
            np.testing.assert_array_equal(value, again[key])
        assert any(not np.array_equal(value, other[key]) for key, value in weights.items())


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(plugin_class(n), "trainings")])
def test_asks_for_trainings_on_its_own_records_alone(name, make_outline):
    """And what others' labels are changes nothing about what it asks for."""
    asked = [
        small(name, 10).trainings(make_outline(10, others), seed=3) for others in ("alike", "odd")
    ]
    held = make_outline(10, "alike")
    assert len(asked[0]) == len(asked[1])
    for one, other in zip(*asked, strict=True):
        assert set(one) == set(other)
        for key in ("rows", "reference_rows"):
            if one.get(key) is not None:
                np.testing.assert_array_equal(one[key], other[key])
                assert np.isin(one[key], [*held.member_rows, *held.reference_rows]).all()
        assert one.get("seed") == other.get("seed")
