"""What a defense is given for reference records, where that is not all of D2."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from defenses.base import Records, Reference
from storage.datasets import Dataset, canonical_bytes
from tasks.base import Data, random_generator

if TYPE_CHECKING:
    from tasks.train_target import Classifier
    from tasks.worker import Bench

__all__ = ["ReferenceFrom", "brought", "check_input", "reference_of", "reference_rows", "referred"]

_Rows = NDArray[np.int64]
_CHUNK = 1024
# Luma of ITU-R BT.601, by which images are commonly made grey.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class ReferenceFrom(BaseModel):
    """Where the reference records of a defense come from.

    Attributes:
        role: "reference" is D2, "members" D1, "nonmembers" D3 (which leaks the records judged into
            the defense); "random" is uniform noise, "dataset" another data set.
        size: how many; None is all of a role, and as many foreign records as D2 has (or fewer,
            where the other data set has fewer).
        data: the other data set.
    """

    VERSION: ClassVar[int] = 1

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["reference", "members", "nonmembers", "random", "dataset"]
    size: int | None = None
    data: Data | None = None

    @property
    def leaky(self) -> bool:
        """Whether the defense sees records that are judged."""
        return self.role == "nonmembers"

    @property
    def foreign(self) -> bool:
        """Whether the records are none of the target's data set."""
        return self.role in ("random", "dataset")

    @property
    def of_attacker(self) -> "ReferenceFrom | None":
        """What an attacker's own copy is given in place of the records it keeps as reference.

        The attacker knows how the defense is fitted, not on what. It fits its copy on the records
        that trained it, or on noise of its own, where the defender does so; otherwise on its own
        reference records, whatever the size or the data set of the defender's.
        """
        if self.role == "members":
            return ReferenceFrom(role="members")
        return self if self.role == "random" else None

    def columns(self) -> dict[str, Any]:
        """What tells it in a table: `from` and `size` as an experiment has them."""
        return {"from": self.data.name if self.data else self.role, "size": self.size}


def reference_rows(
    choice: ReferenceFrom | None,
    *,
    members: _Rows,
    reference: tuple[_Rows, _Rows],
    nonmembers: _Rows,
    groups: _Rows,
    seed: int,
) -> tuple[_Rows, _Rows]:
    """Rows of the target's data set to fit on and to select on; none for foreign records.

    A part of D2 keeps to D2's own division, so that a record that one defense selects on is never
    fitted on by another, and a smaller part lies within a larger one. Other roles are divided
    80/20 with duplicates kept together.

    Args:
        choice: None for all of D2.
        members: [n], rows of D1.
        reference: D2 as (fit, val), each in random order.
        nonmembers: [m], rows of D3.
        groups: of the data set; rows with equal numbers are duplicates.
        seed: any integer.
    """
    if choice is None:
        return reference
    if choice.foreign:
        return members[:0], members[:0]
    if choice.role == "reference":
        fit, val = reference
        size = len(fit) + len(val) if choice.size is None else choice.size
        num_val = max(_fifth(size), size - len(fit))
        return fit[: size - num_val], val[:num_val]
    rows = members if choice.role == "members" else nonmembers
    rng = random_generator(seed, "defense.reference.rows")
    rows = rows[rng.permutation(len(rows))][: choice.size]
    return _divided(rows, groups[rows], rng)


def referred(
    choice: ReferenceFrom | None,
    target: "Classifier",
    bench: "Bench",
    *,
    seed: int,
    answer: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None,
) -> tuple[Reference, dict[str, _Rows]]:
    """The reference records of a defense around `target`.

    Args:
        choice: None for the target's own reference rows, all of them.
        target: the classifier at the root of the chain.
        bench: where records are found.
        seed: of the draws.
        answer: the target's confidences [N, C], which label foreign records.

    Returns:
        The records, and by role the rows of the target's data set they are (none if foreign).

    Raises:
        ValueError: if too few records of another data set are left, as others are nonmembers.
    """
    dataset = bench.dataset(target.split.data)
    split = bench.split(target.split)
    own, members = target.reference_rows(bench), target.member_rows(bench)
    fit, val = reference_rows(
        choice,
        members=members,
        reference=own,
        nonmembers=split.nonmembers,
        groups=dataset.groups,
        seed=seed,
    )
    seen = {"reference": np.concatenate([fit, val])}
    if choice is None or choice.role in ("reference", "nonmembers"):
        return reference_of(dataset, fit, val), seen
    unseen = reference_of(dataset, *own) if len(own[0]) else None
    if len(own[0]):
        seen["unseen"] = np.concatenate(own)
    if not choice.foreign:
        return reference_of(dataset, fit, val, unseen), seen
    assert answer is not None
    size = len(own[0]) + len(own[1]) if choice.size is None else choice.size
    rng = random_generator(seed, "defense.reference.foreign")
    if choice.data is None:
        x, groups = _noise(size, dataset, members, rng), np.arange(size)
    else:
        other = bench.dataset(choice.data)
        rows, x = _drawn(size, other, dataset, split.nonmembers, rng)
        if len(rows) < (choice.size or 1):
            raise ValueError(
                f"the reference wants {size} records of '{other.name}', but of its {len(other)} "
                f"only {len(rows)} are not among the nonmembers of '{dataset.name}', which no "
                f"defense may see; set reference.size to {len(rows)} or less, or take another set"
            )
        groups = other.groups[rows]
    fit, val = _divided(np.arange(len(x)), groups, rng)
    y = answer(x).argmax(axis=1).astype(np.int64)
    both = np.concatenate([fit, val])
    parts = Records(x[fit], y[fit]), Records(x[val], y[val])
    return Reference(x[both], y[both], *parts, unseen=unseen), seen


def reference_of(
    dataset: Dataset, fit: _Rows, val: _Rows, unseen: Reference | None = None
) -> Reference:
    """Reference records of a data set, from rows to fit on and rows to select on."""
    both, cut = np.concatenate([fit, val]), len(fit)
    x, y = dataset.x(both), dataset.y[both]
    return Reference(x, y, Records(x[:cut], y[:cut]), Records(x[cut:], y[cut:]), unseen)


def check_input(other: Dataset, target: Dataset) -> None:
    """Whether records of another data set can be brought to the target's input.

    Raises:
        ValueError: if not: images go to images, and features to as many of the same kind.
    """
    if other.content_hash == target.content_hash:
        raise ValueError(
            f"'{other.name}' is the target's own data set; use reference, members or nonmembers"
        )
    shapes = [f"{'x'.join(map(str, d.shape))} ({d.kind})" for d in (other, target)]
    if len(other.shape) != len(target.shape):
        raise ValueError(
            f"'{other.name}' has records of {shapes[0]}, the target takes {shapes[1]}; images can "
            "be brought to another size, but not to features nor features to images"
        )
    if len(target.shape) == 1 and other.shape != target.shape:
        raise ValueError(
            f"'{other.name}' has records of {shapes[0]}, the target takes {shapes[1]}; "
            "give a data set of as many features"
        )
    if target.kind == "binary" and other.kind != "binary":
        raise ValueError(
            f"'{other.name}' has records of {shapes[0]}, the target takes {shapes[1]}; "
            "give a data set of bits"
        )


def brought(x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Records of another data set as the target's input; see `check_input`.

    Images are made grey (ITU-R BT.601) or given three equal channels, then resized bilinearly,
    smoothed where they shrink.

    Args:
        x: [N, ...]; pixels in [0, 1].
        shape: of the target's records.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.shape[1:] == shape:
        return x
    if x.shape[1] == 3 and shape[0] == 1:
        x = np.tensordot(x, _LUMA, axes=(1, 0))[:, None]
    x = np.repeat(x, shape[0], axis=1) if x.shape[1] == 1 else x
    resized = [
        torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(x[start : start + _CHUNK])),
            size=shape[1:],
            mode="bilinear",
            antialias=True,
        ).numpy()
        for start in range(0, len(x), _CHUNK)
    ]
    return np.concatenate(resized).clip(0, 1)


def _drawn(
    num: int, other: Dataset, target: Dataset, nonmembers: _Rows, rng: np.random.Generator
) -> tuple[_Rows, NDArray[np.float32]]:
    """At most `num` rows of another data set, and their records; none equals a nonmember."""
    forbidden = {r.tobytes() for r in canonical_bytes(target.x(nonmembers), target.kind)}
    order = rng.permutation(len(other))
    found: list[tuple[_Rows, NDArray[np.float32]]] = []
    num_found = start = 0
    while num_found < num and start < len(order):
        rows = order[start : start + num]
        x = brought(other.x(rows), target.shape)
        contents = canonical_bytes(x, target.kind)
        allowed = np.array([content.tobytes() not in forbidden for content in contents])
        found.append((rows[allowed], x[allowed]))
        num_found, start = num_found + int(allowed.sum()), start + num
    rows = np.concatenate([rows for rows, _ in found])[:num]
    return rows, np.concatenate([x for _, x in found])[:num]


def _noise(
    num: int, target: Dataset, members: _Rows, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Uniform bits, pixels in [0, 1], or features between their extremes among the members."""
    if target.kind == "binary":
        return rng.integers(0, 2, (num, *target.shape)).astype(np.float32)
    if target.kind == "image":
        return rng.random((num, *target.shape), dtype=np.float32)
    held = target.x(members)
    low, high = held.min(axis=0), held.max(axis=0)
    return np.asarray(low + (high - low) * rng.random((num, *target.shape), dtype=np.float32))


def _divided(rows: _Rows, groups: _Rows, rng: np.random.Generator) -> tuple[_Rows, _Rows]:
    """Four fifths and one fifth of rows, whose duplicates (equal `groups`) stay together."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    room, is_val = _fifth(len(rows)), np.zeros(len(counts), dtype=bool)
    for group in rng.permutation(len(counts)):
        if counts[group] <= room:
            is_val[group] = True
            room -= counts[group]
    return rows[~is_val[inverse]], rows[is_val[inverse]]


def _fifth(num: int) -> int:
    """20 %, rounded half up, in integers."""
    return (2 * num + 5) // 10
