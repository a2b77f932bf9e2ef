"""Random numbers keyed by noise policy and input (methods.md section 0.4)."""

import hmac
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["POLICIES", "KeyedNoise", "NoisePolicy", "noise_keys"]

NoisePolicy = Literal["fresh", "per_input", "deterministic"]
POLICIES: tuple[str, ...] = get_args(NoisePolicy)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def noise_keys(
    secret: bytes, canonical: NDArray[np.uint8], draws: NDArray[np.int64] | None
) -> NDArray[np.uint64]:
    """One 128-bit key a row: HMAC-SHA256(secret, canonical bytes of the input [, draw number]).

    Args:
        secret: of the deployed service; no attacker has it.
        canonical: [N, B] canonical bytes of the inputs.
        draws: [N] how often each input was asked before (policy fresh), or None (per_input).

    Returns:
        [N, 2] uint64.
    """
    width = canonical.shape[1]
    content = np.ascontiguousarray(canonical).tobytes()
    rows = (content[i : i + width] for i in range(0, len(content), width))
    if draws is not None:
        numbers = np.asarray(draws, dtype=">u8").tobytes()
        ends = range(0, len(numbers), 8)
        rows = (row + numbers[i : i + 8] for row, i in zip(rows, ends, strict=True))
    digests = b"".join([hmac.digest(secret, row, "sha256")[:16] for row in rows])
    keys = np.frombuffer(digests, dtype=">u8").astype(np.uint64)
    return keys.reshape(len(canonical), 2)


class KeyedNoise:
    """Draws for all rows of one answer at once; a row's draws depend on its key alone.

    A counter-based generator (two rounds of the SplitMix64 finaliser over key and counter) gives
    every row its own sequence without a loop, whatever the batch it is asked in.
    """

    def __init__(self, keys: NDArray[np.uint64], policy: NoisePolicy) -> None:
        self._keys = keys
        self._policy = policy
        self._drawn = 0

    def uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Numbers in (0, 1), shape[0] rows; all 0.5 under `deterministic`."""
        if shape[0] != len(self._keys):
            raise ValueError(f"noise for {shape[0]} rows asked in an answer of {len(self._keys)}")
        if self._policy == "deterministic":
            return np.full(shape, 0.5)
        width = int(np.prod(shape[1:], dtype=np.int64))
        counter = np.arange(self._drawn + 1, self._drawn + 1 + width, dtype=np.uint64)
        self._drawn += width
        with np.errstate(over="ignore"):
            bits = _mix(self._keys[:, :1] + counter[None, :] * _GOLDEN)
            bits = _mix(bits ^ self._keys[:, 1:])
        # 53 bits, moved off 0 by half a step so that the normal below is finite; the step past
        # the last bit rounds up to 1, which is infinite too.
        unit = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.minimum(unit, 1 - 2.0**-53).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Standard normal numbers, shape[0] rows; all 0 under `deterministic`."""
        drawn: NDArray[np.float64] = ndtri(self.uniform(shape))
        return drawn


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
