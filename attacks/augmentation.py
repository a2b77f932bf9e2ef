"""The augmentation attack: members keep their label when turned and moved as training did."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from attacks._membership_net import Recipe, Seen, both_sides, judged, relu_layers, trained
from attacks.base import Attack, Classifier, Kind, Knowledge, Known
from attacks.metric import best_threshold

__all__ = ["Augmentation"]

# Pixels of copies held at once: 16 MB, and as much again for each neighbour they are mixed of.
_NUMBERS_AT_ONCE = 2**22


class Augmentation(Attack):
    """Read membership off which slightly turned and moved copies of an image are labelled right.

    Asked are the image, its turns by every whole degree from -r to r, and its moves by (dx, dy)
    with |dx| + |dy| = d pixels: 1 + 2r + 4d queries a record, the image itself counted once. A net
    with two hidden layers of 10 reads the bits "this copy got the true label", or they are summed.

    The net learns from known records what the shadow model of the paper would teach it. It is the
    default as the sum takes all copies for equally telling, though wrong copies of a right image
    are rare; the sum has nothing to train, and does with fewer known records.

    Source: Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021, section
        3.3, with the copies of its public code (the paper turns by r and -r only). There turns and
        moves are two attacks (`paper` turns; {rotation: 0, translation: 1} moves), each class has
        a net, the learning rate is chosen on the records the net learned from, and turned images
        have black corners and cubic interpolation. We have one net for all classes, as few records
        are known, choose the epoch on `known.cal`, interpolate linearly, and repeat edge pixels as
        that code does for moves, so that pixels stay within the image's range.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    KINDS: ClassVar[frozenset[Kind]] = frozenset({"image"})
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"translation": 0},
        "sound": {},
        "cpu": {},
    }

    rotation: int = Field(4, ge=0, le=90, description="r, the largest turn in degrees; 0 for none")
    translation: int = Field(1, ge=0, description="d, pixels moved in all; 0 for none")
    combine: Literal["net", "sum"] = Field("net", description="what is made of the bits")
    width: int = Field(10, ge=1, description="of each of the net's two hidden layers")
    learning_rate: float = Field(5e-3, gt=0, description="Adam's step")
    epochs: int = Field(100, ge=1, description="most passes over the known records")
    batch_size: int = Field(512, ge=2, description="most records a step")
    patience: int = Field(40, ge=1, description="epochs without a better one before stopping")

    @property
    def num_copies(self) -> int:
        """A, queries a record."""
        return 1 + 2 * self.rotation + 4 * self.translation

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member", or the sum of bits less its best threshold on known records.

        Args:
            query: asked `num_copies` times a record.
            known: `fit` and `cal`, asked as often through `known.query`.
            x: [N, channels, height, width] images.
            y: [N] labels.
            seed: of the net; the copies are the same for every seed.

        Raises:
            ValueError: if records are no images, or `known.fit` or `known.cal` lacks members or
                non-members.
            FloatingPointError: if the net's training leaves the finite numbers.
        """
        if x.ndim != 4:
            raise ValueError(
                f"augmentation was given records of shape {x.shape[1:]}; only images [channels, "
                "height, width] can be turned and moved: use noise_robustness"
            )
        both_sides(known, "augmentation")

        def seen(records: Known) -> Seen:
            bits = self._bits(known.query, records.x, records.y)
            return Seen(bits, records.y, records.is_member)

        fit, cal = seen(known.fit), seen(known.cal)
        bits_NA = self._bits(query, x, y)
        if self.combine == "sum":
            sum_M = np.concatenate([fit.feature, cal.feature]).sum(axis=1, dtype=np.float64)
            is_member_M = np.concatenate([fit.is_member, cal.is_member])
            sum_N = bits_NA.sum(axis=1, dtype=np.float64)
            return np.asarray(sum_N - best_threshold(sum_M, is_member_M))
        recipe = Recipe(
            "augmentation",
            self.learning_rate,
            self.epochs,
            self.batch_size,
            self.patience,
            known.device,
        )
        rng = np.random.default_rng([seed, 0])
        net = trained(lambda: _BitNet(self.num_copies, self.width), fit, cal, recipe, rng)
        return judged(net, bits_NA, y, known.device)

    def _bits(
        self, query: Classifier, x: NDArray[Any], y: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """[N, A], 1 where a copy got the true label."""
        bits_NA = np.empty((len(x), self.num_copies), dtype=np.float32)
        step = max(1, _NUMBERS_AT_ONCE // math.prod(x.shape[1:]))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            for a, copy in enumerate(self._copies(x[part])):
                bits_NA[part, a] = query(copy) == y[part]
        return bits_NA

    def _copies(self, x: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The images, their turns from -r to r without 0, their moves around the diamond."""
        yield x
        r, d = self.rotation, self.translation
        for degrees in range(-r, r + 1):
            if degrees:
                yield _turned(x, degrees)
        for step in range(4 * d):
            yield _moved(x, *_on_diamond(step, d))


class _BitNet(nn.Module):
    """Log-odds [N] of "member" from bits [N, A]; the class is not read."""

    def __init__(self, num_bits: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(relu_layers(num_bits, width, width), nn.Linear(width, 1))

    def forward(self, feature_NA: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        # About 0, as nearly all bits of most records are 1.
        log_odds: torch.Tensor = self.net(2 * feature_NA - 1)[:, 0]
        return log_odds


def _on_diamond(step: int, d: int) -> tuple[int, int]:
    """(dx, dy) number `step` of the 4d with |dx| + |dy| = d, from (d, 0) by way of (0, d)."""
    side, along = divmod(step, d)
    turn_x, turn_y = ((1, 0), (0, 1), (-1, 0), (0, -1))[side]
    next_x, next_y = -turn_y, turn_x
    return turn_x * (d - along) + next_x * along, turn_y * (d - along) + next_y * along


def _moved(x: NDArray[Any], dx: int, dy: int) -> NDArray[Any]:
    """Images moved dx pixels right and dy down; edge pixels are repeated."""
    height, width = x.shape[2:]
    rows = np.clip(np.arange(height) - dy, 0, height - 1)
    columns = np.clip(np.arange(width) - dx, 0, width - 1)
    return np.ascontiguousarray(x[:, :, rows[:, None], columns])


def _turned(x: NDArray[Any], degrees: float) -> NDArray[Any]:
    """Images turned about their middle, linearly interpolated; edge pixels are repeated.

    Args:
        x: [N, channels, height, width].
        degrees: counter-clockwise as seen, rows running down.

    Returns:
        float32 of the same shape.
    """
    height, width = x.shape[2:]
    # In whole numbers of pixels sideways and down from the middle, where each pixel comes from.
    down, right = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    row = np.clip(cos * down + sin * right + (height - 1) / 2, 0, height - 1)
    column = np.clip(-sin * down + cos * right + (width - 1) / 2, 0, width - 1)
    top, left = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    bottom, after = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    below, beyond = (row - top).astype(np.float32), (column - left).astype(np.float32)
    upper = x[:, :, top, left] * (1 - beyond) + x[:, :, top, after] * beyond
    lower = x[:, :, bottom, left] * (1 - beyond) + x[:, :, bottom, after] * beyond
    return np.asarray(upper * (1 - below) + lower * below, dtype=np.float32)
