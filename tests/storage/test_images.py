"""Files of images: what they give, and what of them cannot be used."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from storage.datasets import canonical_bytes


def jpeg(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_images_of_both_formats(files: Any) -> None:
    images = [jpeg(0), jpeg(1), jpeg(0)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images])
    y = [0, 1, 1]
    for dataset in (
        files.read(files.table("own.parquet", label=y, image=images, age=[5, 6, 7])),
        files.read(files.arrays("own.npz", x=pixels, y=y, age=[5, 6, 7], classes=["a", "b"])),
    ):
        assert (dataset.kind, dataset.shape) == ("image", (3, 8, 8))
        np.testing.assert_array_equal(
            np.rint(dataset.x([2, 1]) * 255), pixels[[2, 1]].transpose(0, 3, 1, 2)
        )
        np.testing.assert_array_equal(
            canonical_bytes(dataset.x([1]), "image"),
            pixels[[1]].transpose(0, 3, 1, 2).reshape(1, -1),
        )
        assert dataset.groups.tolist() == [0, 1, 0]
        assert list(dataset.extras) == ["age"]
    grey = files.read(files.table("g.parquet", label=y, image=[jpeg(i, (5, 4), "L") for i in y]))
    assert grey.x([0]).shape == (1, 1, 4, 5)


IMAGES = [jpeg(0), jpeg(1), jpeg(2)]
FAULTS: dict[str, tuple[list[int], Any, str]] = {
    "empty": ([], pa.array([], pa.binary()), "0 rows; at least two records are needed"),
    "text": ([0, 1, 1], ["a", "b", "c"], "column 'image' is string; it must be binary"),
    "first": ([0, 1, 1], [b"GIF89a", *IMAGES[1:]], "'image', row 0 (6 bytes) does not decode"),
    "truncated": ([0, 1, 1], [*IMAGES[:2], IMAGES[2][:-90]], "row 2 ("),
    "missing": (
        [0, 1, 1],
        [*IMAGES[:2], None],
        "column 'image', row 2 (0 bytes) does not decode as JPEG or PNG; replace or drop",
    ),
    "sizes": (
        [0, 1, 1],
        [*IMAGES[:2], jpeg(2, (9, 8))],
        "column 'image', row 2 is 9x8 RGB, row 0 is 8x8 RGB",
    ),
    "modes": (
        [0, 1],
        [jpeg(0, mode="L"), jpeg(1)],
        "column 'image', row 1 is 8x8 RGB, row 0 is 8x8 L",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_image_is_one_clear_message(files: Any, fault: str) -> None:
    label, images, message = FAULTS[fault]
    path = files.table("a.parquet", label=pa.array(label, pa.int16()), image=images)
    with pytest.raises(ValueError) as caught:
        files.read(path).x(np.arange(len(label)))  # decoded when first asked for
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_bad_image_spoils_only_its_own_row(files: Any) -> None:
    dataset = files.read(files.table("a.parquet", label=[0, 1, 1], image=[*IMAGES[:2], b"no"]))
    assert dataset.y.tolist() == [0, 1, 1]
    assert dataset.groups.tolist() == [0, 1, 2]
    assert dataset.x([1, 0]).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="row 2"):
        dataset.x([0, 2])
    with pytest.raises(ValueError, match="row 2"):
        dataset.x([2])
    np.testing.assert_array_equal(dataset.x([1]), dataset.x([1, 0])[:1])
