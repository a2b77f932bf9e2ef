"""Real files, where there are any: what their manifest says."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets import Source, load, names

DATA = os.environ.get("SFUMATO_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="SFUMATO_DATA is not set")
# name, kind, rows, shape, classes, rows of the smallest and largest class, duplicates, extras
MANIFEST = [
    ("location30", "binary", 5010, (446,), 30, 97, 308, 0, []),
    (
        "retail100",
        "binary",
        35593,
        (600,),
        100,
        175,
        867,
        0,
        ["label_10", "label_2", "label_20", "label_50"],
    ),
    ("hospital100", "binary", 52096, (599,), 100, 109, 4512, 11, ["sens_gender", "sens_race"]),
    ("clinc100", "binary", 14943, (600,), 100, 129, 150, 1373, []),
    (
        "adult_binary",
        "binary",
        48842,
        (126,),
        2,
        11687,
        37155,
        20363,
        ["sens_race", "sens_sex", "split_test"],
    ),
    ("cifar10", "image", 60000, (3, 32, 32), 10, 6000, 6000, 0, ["split"]),
    ("cifar10_mini", "image", 2500, (3, 32, 32), 10, 250, 250, 0, ["split"]),
    ("tinyimagenet32_100a", "image", 54996, (3, 32, 32), 100, 548, 550, 0, ["split"]),
    ("utkface64", "image", 22000, (3, 64, 64), 2, 0, 22000, 0, ["age", "sens_race"]),
    ("faces_yaleb38", "image", 2414, (1, 64, 64), 38, 59, 64, 0, ["light_azimuth_elevation"]),
    ("faces_orl38", "image", 380, (1, 64, 64), 38, 10, 10, 0, ["subject"]),
    ("mnist10k", "image", 10000, (1, 28, 28), 10, 863, 1127, 0, []),
]


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("row", MANIFEST, ids=lambda row: row[0])
def test_real_files_are_what_their_manifest_says(row: tuple[Any, ...]) -> None:
    name, kind, rows, shape, classes, least, most, duplicates, extras = row
    dataset = load(Source(name), Path(str(DATA)))
    counts = np.bincount(dataset.y)
    assert (dataset.kind, len(dataset), dataset.shape) == (kind, rows, shape)
    assert dataset.num_classes == len(counts) == classes
    assert least <= counts.min()
    assert counts.max() <= most
    if least != 0:  # the manifest gives no class counts for utkface64
        assert (counts.min(), counts.max()) == (least, most)
    assert rows - len(np.unique(dataset.groups)) == duplicates
    assert sorted(dataset.extras) == extras
    assert all(len(extra) == rows for extra in dataset.extras.values())
    info = next(info for info in names(Path(str(DATA))) if info.name == name)
    assert (info.rows, info.classes, info.shape, info.available) == (rows, classes, shape, True)
    x = dataset.x([0, rows - 1])
    assert x.shape == (2, *shape)
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.data
@needs_data
def test_decoded_cifar10_is_its_ready_made_copy() -> None:
    whole = load(Source("cifar10"), Path(str(DATA)))
    mini = load(Source("cifar10_mini"), Path(str(DATA)))
    rows = np.r_[:100, 2000:2100]
    of_whole = np.r_[:100, 50000:50100]
    np.testing.assert_array_equal(whole.x(of_whole), mini.x(rows))
    np.testing.assert_array_equal(whole.y[of_whole], mini.y[rows])
    np.testing.assert_array_equal(whole.extras["split"][of_whole], mini.extras["split"][rows])


@pytest.mark.data
@needs_data
def test_adult_points_to_its_encoded_form(files: Any) -> None:
    with pytest.raises(ValueError, match="use 'adult_binary'"):
        load(Source("adult"), Path(str(DATA)))
    with pytest.raises(
        ValueError, match=r"columns split, workclass, .* and 4 more are not numbers"
    ):
        files.read(Path(str(DATA)) / "adult.parquet")
