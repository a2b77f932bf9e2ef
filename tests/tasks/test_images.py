"""What is true of the likeness of a record and its reconstruction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.images import cosine_similarity, mse, reidentified, ssim


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def ssim_in_loops(x, z):
    """One image, one window at a time, as equations 13 to 17 are written."""
    channels, height, width = x.shape
    size = min(11, height, width)
    size -= 1 - size % 2
    half = size // 2
    weight = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            weight[i, j] = np.exp(-((i - half) ** 2 + (j - half) ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for c in range(channels):
        for top in range(height - size + 1):
            for left in range(width - size + 1):
                a = x[c, top : top + size, left : left + size]
                b = z[c, top : top + size, left : left + size]
                mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                var_a = (weight * (a - mean_a) ** 2).sum()
                var_b = (weight * (b - mean_b) ** 2).sum()
                cov = (weight * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 0.01**2)
                    * (2 * cov + 0.03**2)
                    / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
                )
    return np.mean(values)


@pytest.mark.parametrize(
    "shape", [(1, 15, 18), (3, 12, 11), (1, 8, 8), (2, 5, 30), (1, 2, 7), (3, 1, 1)]
)
def test_ssim_is_the_paper_s_in_loops(shape):
    x = pictures(4, *shape)
    z = np.clip(
        x + pictures(4, *shape, seed=1) * np.array([0, 0.1, 0.5, 2]).reshape(4, 1, 1, 1), 0, 1
    )
    slow = [ssim_in_loops(a, b) for a, b in zip(x, z, strict=True)]
    np.testing.assert_allclose(ssim(x, z), slow, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_ssim_is_symmetric_at_most_1_and_1_for_the_same(channels, height, width, seed):
    x, z = (pictures(3, channels, height, width, seed=[seed, i]) for i in range(2))
    np.testing.assert_array_equal(ssim(x, x), 1)
    np.testing.assert_allclose(ssim(x, z), ssim(z, x), rtol=1e-12)
    assert (np.abs(ssim(x, z)) <= 1).all()


def test_ssim_of_flat_images_compares_brightness_only():
    """Nothing varies, so what is left is (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b = 0.2, 0.7
    flat = np.full((1, 1, 16, 16), a), np.full((1, 1, 16, 16), b)
    np.testing.assert_allclose(ssim(*flat), (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4), rtol=1e-9)


def test_ssim_of_a_negative_is_below_0_and_falls_with_noise():
    x = pictures(1, 1, 32, 32)
    noise = pictures(1, 1, 32, 32, seed=1) - 0.5
    assert ssim(x, 1 - x)[0] < -0.5
    falling = [ssim(x, x + level * noise)[0] for level in (0, 0.1, 0.3, 1.0)]
    assert falling == sorted(falling, reverse=True)


def test_ssim_sees_structure_more_than_brightness():
    """A dimmed image is more like the original than one of the right brightness everywhere."""
    x = pictures(2, 3, 24, 24)
    mean = np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape)
    assert (ssim(x, 0.8 * x) > 0.9).all()
    assert (ssim(x, mean) < 0.3).all()


def test_mse_in_loops_and_many_records_in_parts():
    true, rebuilt = pictures(50, 3, 5, 4), pictures(50, 3, 5, 4, seed=1)
    std = np.array([0.2, 0.3, 0.5])
    for n in (0, 17, 49):
        squares = [
            ((true[n, c, i, j] - rebuilt[n, c, i, j]) / std[c]) ** 2
            for c in range(3)
            for i in range(5)
            for j in range(4)
        ]
        assert mse(true, rebuilt, std=std)[n] == pytest.approx(np.mean(squares))
    # More than fit in memory at once are cut into parts of 2**22 // (64 * 64) = 1024 records.
    many = pictures(1100, 1, 64, 64).astype(np.float32)
    expected = np.square(many.astype(np.float64) - 0.5).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(mse(many, np.full_like(many, 0.5)), expected, rtol=1e-9)
    np.testing.assert_allclose(
        ssim(many, many[::-1])[[0, 1023, 1024, 1099]],
        ssim(many[[0, 1023, 1024, 1099]], many[[1099, 76, 75, 0]]),
        rtol=1e-9,
    )


def test_mse_in_normalised_units_is_that_of_normalised_records():
    true, rebuilt = pictures(6, 3, 4, 4), pictures(6, 3, 4, 4, seed=1)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.49, 0.48, 0.45), (0.2, 0.19, 0.21)))
    normalised = mse((true - mean) / std, (rebuilt - mean) / std)
    np.testing.assert_allclose(mse(true, rebuilt, std=std.ravel()), normalised, rtol=1e-9)
    np.testing.assert_allclose(mse(true, rebuilt, std=0.5), 4 * mse(true, rebuilt), rtol=1e-12)


def test_mse_of_bits_is_the_share_of_wrong_ones():
    bits = pictures(4, 200) > 0.5
    rebuilt = bits.copy()
    rebuilt[1, :50] = ~rebuilt[1, :50]
    np.testing.assert_allclose(mse(bits.astype(float), rebuilt.astype(float)), [0, 0.25, 0, 0])


def test_mse_of_the_mean_is_the_variance():
    x = pictures(400, 1, 6, 6)
    mean = np.broadcast_to(x.mean(axis=0), x.shape)
    assert mse(x, mean).mean() == pytest.approx(x.var(axis=0).mean())


def test_cosine_similarity_knows_angles_not_lengths():
    true = np.array([[1.0, 0], [1, 0], [1, 0], [2, 2], [0, 0]])
    rebuilt = np.array([[5.0, 0], [0, 3], [-2, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(
        cosine_similarity(true, rebuilt), [1, 0, -1, np.sqrt(0.5), 0], atol=1e-15
    )


def test_reidentified_in_loops():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(7, 12))
    gallery_identity, identity = rng.integers(7, size=40), rng.integers(7, size=60)
    gallery = centre[gallery_identity] + rng.normal(size=(40, 12))
    rebuilt = centre[identity] + rng.normal(size=(60, 12))
    right = []
    for feature, person in zip(rebuilt, identity, strict=True):
        cosines = [
            feature @ other / np.linalg.norm(feature) / np.linalg.norm(other) for other in gallery
        ]
        right.append(gallery_identity[int(np.argmax(cosines))] == person)
    found = reidentified(rebuilt, identity, gallery, gallery_identity)
    np.testing.assert_array_equal(found, right)
    assert found.mean() > 0.5


def test_one_reconstruction_for_all_identifies_one_person_only():
    identity = np.repeat(np.arange(10), 5)
    gallery = pictures(10, 8)
    for same in (np.full((50, 8), 0.3), np.zeros((50, 8))):
        assert reidentified(same, identity, gallery, np.arange(10)).mean() == 0.1


def test_what_does_not_fit_is_refused():
    x = pictures(3, 1, 8, 8)
    for compare in (mse, ssim, cosine_similarity):
        with pytest.raises(ValueError, match="must be alike"):
            compare(x, x[:2])
    with pytest.raises(ValueError, match="of images"):
        ssim(x[:, 0], x[:, 0])
    with pytest.raises(ValueError, match="above 0"):
        mse(x, x, std=0)
    with pytest.raises(ValueError, match="one number"):
        mse(x, x, std=[1, 2])
    feature, person = pictures(3, 4), np.arange(3)
    with pytest.raises(ValueError, match="at least one picture"):
        reidentified(feature, person, feature[:0], person[:0])
    with pytest.raises(ValueError, match="as many features"):
        reidentified(feature, person, feature[:, :2], person)
    with pytest.raises(ValueError, match="each needs one"):
        reidentified(feature, person, feature, person[:2])
