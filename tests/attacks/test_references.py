"""What an attacker reads off its own records and models."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attacks._likelihood import logit_confidence
from attacks._references import (
    draw,
    held_records,
    loss,
    own_scores,
    place_in,
    shadow_signals,
    signal,
)
from attacks.attack_p import AttackP
from attacks.base import Records

CLIP = 1e-12


def test_every_held_record_is_there_once(world: Any) -> None:
    """The non-members for fitting are known rows and of the population."""
    known = world.knowledge(AttackP(), 0)
    assert (place_in(known.x_of(known.rows)[0], known.population.x) >= 0).sum() == 240
    held = held_records(known)
    rows = np.concatenate([world.known_rows, world.population_rows])
    assert len(held) == len(rows)
    np.testing.assert_array_equal(held.x[: len(world.known_rows)], world.x[world.known_rows])
    place = place_in(world.x, held.x)
    assert sorted(place) == sorted(rows)
    np.testing.assert_array_equal(held.y, world.y[place])


def test_without_a_population_the_known_rows_are_held(independent_world: Any) -> None:
    known = independent_world.knowledge(AttackP(), 0)
    held = held_records(known)
    np.testing.assert_array_equal(held.x, known.x_of(known.rows)[0])


def test_draw_is_without_replacement_and_in_order() -> None:
    records = Records(np.arange(50.0)[:, None], np.arange(50))
    assert draw(records, 50, np.random.default_rng(0)) is records
    some = draw(records, 20, np.random.default_rng(0))
    assert len(some) == 20
    assert (np.diff(some.y) > 0).all()
    np.testing.assert_array_equal(some.x[:, 0], some.y)
    assert not np.array_equal(some.y, draw(records, 20, np.random.default_rng(1)).y)


def test_place_in_finds_records_by_what_they_are() -> None:
    held = np.array([[[0.0, 1.0]], [[-0.0, 2.0]], [[3.0, 4.0]]], dtype=np.float32)
    x = np.array([[[3, 4]], [[0, 2]], [[9, 9]], [[0, 1]], [[3, 4]]], dtype=np.float32)
    np.testing.assert_array_equal(place_in(held, x), [2, 1, -1, 0, 2])
    np.testing.assert_array_equal(place_in(held, x[::-1]), [2, 0, -1, 1, 2])
    assert len(place_in(held, x[:0])) == 0


def test_signals_are_finite_whatever_is_released() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 3.0], [0.25, 0.75], [1.0, 0.0]])
    y = np.zeros(4, dtype=np.int64)
    expected = [-np.log(CLIP), 0.0, np.log(4), 0.0]
    np.testing.assert_allclose(loss(rows, y, clip=CLIP), expected)
    np.testing.assert_allclose(signal(rows, y, "linear", clip=CLIP), expected)
    logit = signal(rows, y, "logit_normal", clip=CLIP)
    np.testing.assert_allclose(logit, -logit_confidence(rows, y, clip=CLIP))
    assert np.isfinite(logit).all()


@pytest.mark.parametrize("smooth", ["linear", "logit_normal"])
def test_shadow_signals_in_pieces_of_bounded_memory(smooth: Any) -> None:
    """Four models of 65,536 classes and 150 records do not fit in 128 MB at once."""
    num_classes, num = 2**16, 150
    level = np.random.default_rng(0).uniform(0.1, 0.9, size=(4, num))
    sizes = []

    class Levels:
        num_shadows = 4

        def __call__(self, x: Any) -> Any:
            sizes.append(4 * len(x) * num_classes)
            confidence = np.zeros((4, len(x), num_classes))
            confidence[..., 0] = level[:, x[:, 0].astype(int)]
            confidence[..., 1] = 1 - confidence[..., 0]
            return confidence

    known: Any = SimpleNamespace(shadows=Levels(), num_classes=num_classes)
    x = np.arange(num, dtype=np.float32)[:, None]
    found = shadow_signals(known, x, np.zeros(num, dtype=np.int64), smooth, clip=CLIP)
    assert max(sizes) <= 2**24
    assert len(sizes) > 2
    expected = -np.log(level) if smooth == "linear" else np.log(1 - level) - np.log(level)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("smooth", ["linear", "logit_normal"])
def test_the_lower_the_signal_beside_the_out_models_the_higher_the_score(smooth: Any) -> None:
    reference = np.tile(np.linspace(1, 2, 8)[:, None], 5)
    target = np.array([0.5, 1.0, 1.5, 2.0, 2.5])
    is_out = np.ones(reference.shape, dtype=np.bool_)
    scores = own_scores(target, reference, is_out, smooth, clip=CLIP)
    assert (np.diff(scores) < 0).all()
    assert ((scores >= -1) & (scores <= 0)).all()
    assert scores[2] == pytest.approx(-0.5)
