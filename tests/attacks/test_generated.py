"""What is true of inputs that an attacker makes up."""

from typing import Any

import numpy as np
import pytest

from attacks._generated import edges, gaussian_noise, random_inputs, salt_pepper, shuffled

SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
SCHARR = np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]])
LAPLACE = np.array([[2, 0, 2], [0, -8, 0], [2, 0, 2]])


def filtered(image: Any, weights: Any) -> Any:
    """Pixel by pixel; beyond the edge the image is mirrored, the edge pixel not repeated."""
    height, width = image.shape
    wide = np.pad(image, 1, mode="reflect")
    found = np.empty(image.shape)
    for i in range(height):
        for j in range(width):
            found[i, j] = (wide[i : i + 3, j : j + 3] * weights).sum()
    return np.minimum(np.abs(found), 1)


@pytest.mark.parametrize(("operator", "weights"), [("sobel", SOBEL), ("scharr", SCHARR)])
def test_edges_average_both_directions(operator: Any, weights: Any) -> None:
    x = np.random.default_rng(0).uniform(0.4, 0.6, size=(3, 2, 6, 5)).astype(np.float32)
    found = edges(x, operator)
    assert found.dtype == np.float32
    for image, edge in zip(x.reshape(-1, 6, 5), found.reshape(-1, 6, 5), strict=True):
        expected = (filtered(image, weights) + filtered(image, weights.T)) / 2
        np.testing.assert_allclose(edge, expected, atol=1e-6)


def test_laplace_is_its_stencil() -> None:
    x = np.random.default_rng(0).uniform(0.4, 0.6, size=(2, 3, 5, 6)).astype(np.float32)
    for image, edge in zip(x.reshape(-1, 5, 6), edges(x, "laplace").reshape(-1, 5, 6), strict=True):
        np.testing.assert_allclose(edge, filtered(image, LAPLACE), atol=1e-6)


@pytest.mark.parametrize("operator", ["sobel", "scharr", "laplace"])
def test_edges_are_pixels_and_plain_images_have_none(operator: Any) -> None:
    x = np.random.default_rng(0).random((4, 3, 8, 8)).astype(np.float32)
    before = x.copy()
    found = edges(x, operator)
    assert found.shape == x.shape
    assert 0 <= found.min() < found.max() <= 1
    np.testing.assert_array_equal(x, before)
    assert not edges(np.full((1, 1, 4, 4), 0.7, dtype=np.float32), operator).any()


def test_noise_has_the_variance_asked_for() -> None:
    x = np.full((50, 1, 40, 40), 0.5, dtype=np.float32)
    noise = gaussian_noise(x, 1e-3, np.random.default_rng(0)) - 0.5
    # 80,000 draws: four standard deviations of mean and of variance.
    assert abs(noise.mean()) < 4 * np.sqrt(1e-3 / 80_000)
    assert abs(noise.var() - 1e-3) < 4 * 1e-3 * np.sqrt(2 / 80_000)
    dark = gaussian_noise(np.zeros((2, 1, 9, 9), dtype=np.float32), 1.0, np.random.default_rng(0))
    assert dark.min() == 0
    assert dark.max() == 1


def test_salt_and_pepper_fall_on_all_channels_of_a_pixel() -> None:
    x = np.full((20, 3, 40, 40), 0.5, dtype=np.float32)
    noisy = salt_pepper(x, 0.05, np.random.default_rng(0))
    np.testing.assert_array_equal(noisy[:, 0], noisy[:, 2])
    assert set(np.unique(noisy)) == {0, 0.5, 1}
    for value in (0, 1):
        share = (noisy[:, 0] == value).mean()
        assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 32_000)


@pytest.mark.parametrize("what", ["sobel", "salt_pepper"])
def test_images_alone_have_pixels(what: Any) -> None:
    table, rng = np.zeros((3, 40), dtype=np.float32), np.random.default_rng(0)
    with pytest.raises(ValueError, match=rf"{what} is for images .* shape \[40\]"):
        salt_pepper(table, 0.1, rng) if what == "salt_pepper" else edges(table, what)


def test_shuffled_columns_keep_their_values_and_lose_each_other() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(500, 1)), 6, axis=1).astype(np.float32).reshape(500, 2, 3)
    found = shuffled(x, rng)
    assert found.shape == x.shape
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(x, axis=0))
    correlation = np.corrcoef(found.reshape(500, 6), rowvar=False)
    assert np.abs(correlation - np.eye(6)).max() < 4.5 / np.sqrt(500)


def test_random_inputs_fill_the_space_of_the_records() -> None:
    rng = np.random.default_rng(0)
    like = (rng.normal(size=(30, 4)) * [1, 2, 3, 0] + 5).astype(np.float32)
    made = random_inputs("continuous", like, 4000, rng)
    assert made.shape == (4000, 4)
    assert made.dtype == np.float32
    low, high = like.min(axis=0), like.max(axis=0)
    assert ((low <= made) & (made <= high)).all()
    middle = made[:, :3].mean(axis=0)
    deviation = (high - low)[:3] / np.sqrt(12 * 4000)
    assert (np.abs(middle - (low + high)[:3] / 2) < 4 * deviation).all()
    bits = random_inputs("binary", like, 4000, rng)
    assert set(np.unique(bits)) == {0, 1}
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(16_000)
    pixels = random_inputs("image", np.zeros((0, 1, 5, 5)), 400, rng)
    assert pixels.shape == (400, 1, 5, 5)
    assert 0 <= pixels.min() < 0.01 < 0.99 < pixels.max() <= 1
