"""Noise depends on the policy, the input and the count, and on nothing else."""

import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from storage.datasets import canonical_bytes
from tasks.noise import POLICIES, KeyedNoise, noise_keys

SECRET = b"secret"
WORD = 2**64
GOLDEN_STEP = 0x9E3779B97F4A7C15


def inputs(num: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(256, size=(num, 8), dtype=np.uint8)


def noise(content: NDArray[np.uint8], draws: NDArray[np.int64] | None = None) -> KeyedNoise:
    policy = "per_input" if draws is None else "fresh"
    return KeyedNoise(noise_keys(SECRET, content, draws), policy)


def test_policies_are_the_three_of_the_method() -> None:
    assert POLICIES == ("fresh", "per_input", "deterministic")


@settings(deadline=None)
@given(st.permutations(range(7)), st.integers(1, 6), st.booleans())
def test_a_row_draws_the_same_in_any_batch_and_order(
    order: list[int], cut: int, is_fresh: bool
) -> None:
    content = inputs(7)
    draws = np.arange(7) % 3 if is_fresh else None
    whole_u, whole_n = (draw := noise(content, draws)).uniform((7, 3)), draw.normal((7, 2))
    for part in (np.array(order[:cut]), np.array(order[cut:])):
        own = noise(content[part], None if draws is None else draws[part])
        np.testing.assert_array_equal(own.uniform((len(part), 3)), whole_u[part])
        np.testing.assert_array_equal(own.normal((len(part), 2)), whole_n[part])


def test_another_count_secret_or_input_draws_other_numbers() -> None:
    content = inputs(1)
    asked = {noise(content, np.array([draw])).uniform((1,))[0] for draw in range(50)}
    asked.add(noise(content).uniform((1,))[0])
    asked.add(noise(content ^ 1).uniform((1,))[0])
    other = KeyedNoise(noise_keys(b"other", content, None), "per_input")
    asked.add(other.uniform((1,))[0])
    assert len(asked) == 53


def test_keys_are_hmac_sha256_of_the_content() -> None:
    content = inputs(5)
    for draws in (None, np.array([0, 1, 2, 3, 2**40])):
        keys = noise_keys(SECRET, content, draws)
        for i, row in enumerate(content):
            message = row.tobytes() + (b"" if draws is None else int(draws[i]).to_bytes(8, "big"))
            digest = hmac.new(SECRET, message, hashlib.sha256).digest()
            assert [int(k) for k in keys[i]] == [
                int.from_bytes(digest[:8], "big"),
                int.from_bytes(digest[8:16], "big"),
            ]


def mix(bits: int) -> int:
    """SplitMix64's finaliser in whole numbers."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % WORD
    return bits ^ (bits >> 31)


def unmix(bits: int) -> int:
    def unshift(value: int, by: int) -> int:
        found = value
        for _ in range(64 // by + 1):
            found = value ^ (found >> by)
        return found

    bits = unshift(bits, 31) * pow(0x94D049BB133111EB, -1, WORD) % WORD
    bits = unshift(bits, 27) * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD
    return unshift(bits, 30)


def test_draws_are_those_of_the_counter_generator_in_whole_numbers() -> None:
    keys = noise_keys(SECRET, inputs(4), None)
    drawn = KeyedNoise(keys, "per_input").uniform((4, 3, 2)).reshape(4, 6)
    for row, (first, second) in zip(drawn, keys.tolist(), strict=True):
        for i, value in enumerate(row):
            bits = mix(mix((first + (i + 1) * GOLDEN_STEP) % WORD) ^ second)
            assert value == ((bits >> 11) + 0.5) / 2**53


@pytest.mark.parametrize("bits", [0, 1, 2**11, WORD // 2, WORD - 2**12, WORD - 2**11, WORD - 1])
def test_the_rarest_draws_are_inside_the_unit_interval(bits: int) -> None:
    first = 12345
    second = mix((first + GOLDEN_STEP) % WORD) ^ unmix(bits)
    keys = np.array([[first, second]], dtype=np.uint64)
    value = KeyedNoise(keys, "per_input").uniform((1,))[0]
    assert 0 < value < 1
    assert abs(value - bits / WORD) < 2.0**-52
    assert np.isfinite(KeyedNoise(keys, "per_input").normal((1,))[0])


@pytest.mark.parametrize("across", ["rows", "columns"])
def test_numbers_have_the_law_they_claim(across: str) -> None:
    shape = (20_000, 1) if across == "rows" else (4, 5_000)
    uniform = noise(inputs(shape[0])).uniform(shape).ravel()
    normal = noise(inputs(shape[0], seed=1)).normal(shape).ravel()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    assert abs(normal.mean()) < 5 / np.sqrt(normal.size)
    assert abs(normal.var() - 1) < 5 * np.sqrt(2 / normal.size)


def test_rows_columns_calls_and_repeats_are_independent() -> None:
    # Inputs that differ in one bit, and counts that follow each other, are the hard case.
    content = np.zeros((8, 8), dtype=np.uint8)
    content[np.arange(8), np.arange(8)] = 1
    source = noise(content)
    first, second = source.normal((8, 4_000)), source.normal((8, 4_000))
    repeats = noise(np.zeros((8, 8), np.uint8), np.arange(8)).normal((8, 4_000))
    together = np.concatenate([first, second, repeats, first[:, 1:] @ np.eye(3_999, 4_000)])
    correlation = np.corrcoef(together) - np.eye(len(together))
    assert np.abs(correlation).max() < 6 / np.sqrt(4_000)


def test_successive_calls_continue_where_the_last_one_stopped() -> None:
    content = inputs(3)
    whole = noise(content).uniform((3, 6))
    parts = noise(content)
    np.testing.assert_array_equal(
        np.hstack([parts.uniform((3, 2)), parts.uniform((3,))[:, None], parts.uniform((3, 3))]),
        whole,
    )


def test_deterministic_noise_is_its_mean() -> None:
    constant = KeyedNoise(noise_keys(SECRET, inputs(4), None), "deterministic")
    for _ in range(2):
        assert (constant.uniform((4, 2)) == 0.5).all()
        assert (constant.normal((4, 2, 3)) == 0).all()
        assert constant.normal((4, 2, 3)).shape == (4, 2, 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_another_number_of_rows_is_refused(policy: str) -> None:
    source = KeyedNoise(noise_keys(SECRET, inputs(4), None), policy)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"3 rows asked in an answer of 4"):
        source.uniform((3, 2))
    with pytest.raises(ValueError, match=r"5 rows"):
        source.normal((5,))


def test_no_rows_and_no_columns_draw_nothing() -> None:
    assert noise(inputs(0)).normal((0, 3)).shape == (0, 3)
    assert noise(inputs(2)).normal((2, 0)).shape == (2, 0)


def test_canonical_bytes_identify_a_record() -> None:
    x = np.array([[0, 1, 1], [0, 1, 1], [1, 1, 1], [0.2, 0.8, 0.7]], dtype=np.float32)
    packed = canonical_bytes(x, "binary")
    assert packed.tolist() == [[0b01100000], [0b01100000], [0b11100000], [0b01100000]]
    pixels = canonical_bytes(np.float32([[[0, 1], [0.5, 1 / 255]], [[2, -1], [0, 0]]]), "image")
    assert pixels.tolist() == [[0, 255, 128, 1], [255, 0, 0, 0]]
    exact = canonical_bytes(
        np.float32([[1, -0.0], [1, 0.0], [np.nextafter(1, 2), 0]]), "continuous"
    )
    assert exact[0].tobytes() == np.float32([1, 0]).tobytes()
    assert (exact[0] == exact[1]).all()
    assert canonical_bytes(x[:0], "continuous").shape == (0, 12)
