"""SynthPurchase: binary records like shopping baskets, made from a seed alone.

Source: methods.md section 2.5.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRESETS", "VERSION", "SynthPurchase", "generate", "parameters", "prototypes"]

VERSION = 1  # bump when the same parameters would give other records

_MOST_BITS = 1_000_000_000  # a byte each in memory; the largest real set has 0.4
_STALLED = 200_000  # draws without a new record after which no more are expected
_BLOCK = 1024  # candidates drawn at once; fixed, so that more rows are simply a longer run


@dataclass(frozen=True)
class SynthPurchase:
    """What a SynthPurchase set is made of.

    Attributes:
        rows: n, distinct records to make.
        features: d, bits of a record.
        classes: K.
        clusters: prototypes per class.
        sparsity: p0 in [0, 1], probability that a bit of a prototype is 1.
        bit_noise: rho in [0, 1], probability that a bit of a record differs from its prototype.
        label_noise: eta in [0, 1], probability that a label is replaced by a uniform one.
        data_seed: all draws derive from it; not the seed of an experiment.
    """

    rows: int
    features: int
    classes: int
    clusters: int
    sparsity: float
    bit_noise: float
    label_noise: float
    data_seed: int = 0


PRESETS: dict[str, SynthPurchase] = {
    "synth_s": SynthPurchase(6000, 128, 20, 4, 0.30, 0.20, 0.02),
    "synth_m": SynthPurchase(6000, 600, 100, 4, 0.15, 0.17, 0.02),
    "synth_hard": SynthPurchase(6000, 128, 20, 8, 0.30, 0.25, 0.0),
    "synth_null": SynthPurchase(6000, 128, 20, 2, 0.30, 0.02, 0.0),
}

_LEAST = {"rows": 2, "features": 1, "classes": 2, "clusters": 1, "data_seed": 0}


def parameters(name: str, overrides: Sequence[tuple[str, int | float | str]]) -> SynthPurchase:
    """The parameters of preset `name` with `overrides` put in.

    Raises:
        ValueError: on an unknown parameter, a wrong type or a value out of range.
    """
    known = [field.name for field in fields(SynthPurchase)]
    for key, value in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"dataset {name}: no parameter is named '{key}'.{hint} Known: {', '.join(known)}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _LEAST:
            if not number or not isinstance(value, int) or value < _LEAST[key]:
                raise ValueError(
                    f"dataset {name}: {key} is {value!r}; it must be a whole number of at least "
                    f"{_LEAST[key]}"
                )
        elif not number or not 0 <= float(value) <= 1:
            raise ValueError(f"dataset {name}: {key} is {value!r}; it must be a number in [0, 1]")
    # Fractions become float so that 0 and 0.0 describe, and hash as, the same set.
    typed = {key: value if key in _LEAST else float(value) for key, value in overrides}
    made: SynthPurchase = replace(PRESETS[name], **typed)  # type: ignore[arg-type]
    for what, count in (
        ("rows", made.rows),
        ("clusters", made.classes * made.clusters),
    ):
        if count * made.features > _MOST_BITS:
            raise ValueError(
                f"dataset {name}: {count} {what} of {made.features} features are more than "
                f"{_MOST_BITS:,} bits; ask for fewer {what} or features"
            )
    return made


def prototypes(made: SynthPurchase) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The cluster prototypes b and their weights within each class (step 1).

    Returns:
        Bits [K, clusters, d] and weights [K, clusters], whose rows sum to 1.
    """
    rng = np.random.default_rng(np.random.SeedSequence(made.data_seed, spawn_key=(0,)))
    bits = rng.random((made.classes, made.clusters, made.features)) < made.sparsity
    return bits.astype(np.uint8), rng.dirichlet(np.ones(made.clusters), size=made.classes)


def generate(made: SynthPurchase) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make the records (steps 2 to 4).

    The first n records of a longer run are the records of a run of n. Some classes may have no
    record when `rows` is small.

    Returns:
        Distinct records uint8 0/1 [rows, features] and labels [rows].

    Raises:
        ValueError: if the parameters hardly ever give a record not seen before.
    """
    bits_KJD, weights_KJ = prototypes(made)
    edges_KJ = weights_KJ.cumsum(axis=1)[:, :-1]
    rng = np.random.default_rng(np.random.SeedSequence(made.data_seed, spawn_key=(1,)))
    x_ND = np.empty((made.rows, made.features), np.uint8)
    y_N = np.empty(made.rows, np.int64)
    seen: set[bytes] = set()
    candidates = newest = 0
    while len(seen) < made.rows:
        if candidates > 50 * made.rows + 10_000 or candidates - newest > _STALLED:
            raise ValueError(
                f"SynthPurchase found {len(seen)} distinct records in {candidates} draws, but rows "
                f"is {made.rows}; ask for fewer rows, or raise features ({made.features}), "
                f"bit_noise ({made.bit_noise}) or clusters ({made.clusters})"
            )
        candidates += _BLOCK
        classes_B = rng.integers(made.classes, size=_BLOCK)
        clusters_B = (rng.random((_BLOCK, 1)) >= edges_KJ[classes_B]).sum(axis=1)
        flips_BD = rng.random((_BLOCK, made.features), dtype=np.float32) < made.bit_noise
        block_BD = bits_KJD[classes_B, clusters_B] ^ flips_BD
        noisy_B = rng.random(_BLOCK) < made.label_noise
        labels_B = np.where(noisy_B, rng.integers(made.classes, size=_BLOCK), classes_B)
        for record_D, packed, label in zip(
            block_BD, np.packbits(block_BD, axis=1), labels_B, strict=True
        ):
            key = packed.tobytes()
            if key not in seen:
                x_ND[len(seen)], y_N[len(seen)] = record_D, label
                seen.add(key)
                newest = candidates
                if len(seen) == made.rows:
                    break
    return x_ND, y_N
