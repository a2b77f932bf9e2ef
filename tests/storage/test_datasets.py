"""Datasets: what every set promises, whichever way it is found."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits

from storage.datasets import DEFAULT_SPLITS, Source, canonical_bytes, load, names


def slow_groups(records: list[bytes]) -> list[int]:
    return [records.index(record) for record in records]


BUILT_IN = ["digits", "digits_binary", "synth_s", "synth_m", "synth_hard", "synth_null"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_sets_without_a_file_match_their_catalogue_line(name: str) -> None:
    dataset = load(Source(name), None)
    info = next(info for info in names(None) if info.name == name)
    assert info.available
    assert (len(dataset), dataset.num_classes, dataset.shape) == (
        info.rows,
        info.classes,
        info.shape,
    )
    assert set(np.unique(dataset.y)) == set(range(info.classes))
    records = [row.tobytes() for row in dataset.x(np.arange(1797))]
    assert dataset.groups[:1797].tolist() == slow_groups(records)


def test_default_splits_fit_their_sets() -> None:
    assert all(
        sum(DEFAULT_SPLITS[info.name].values()) <= info.rows
        for info in names()
        if info.name != "adult"
    )
    assert DEFAULT_SPLITS["location30"] == {"members": 1600, "reference": 1600, "nonmembers": 1600}
    assert not any(i.available for i in names() if i.name not in BUILT_IN)


def test_digits_are_scikit_learns() -> None:
    images = load_digits().images
    digits, binary = load(Source("digits"), None), load(Source("digits_binary"), None)
    rows = [5, 0, 1796]
    np.testing.assert_array_equal(digits.x(rows)[:, 0] * 16, images[rows])
    np.testing.assert_array_equal(binary.x(rows), images[rows].reshape(3, 64) > 8)
    assert (digits.kind, binary.kind) == ("continuous", "binary")
    assert digits.content_hash != binary.content_hash


def test_rows_are_numbers_within_the_set() -> None:
    dataset = load(Source("digits"), None)
    assert dataset.x([]).shape == (0, 1, 8, 8)
    with pytest.raises(TypeError, match=r"np.flatnonzero"):
        dataset.x(dataset.y == 3)
    with pytest.raises(IndexError, match=r"rows -1\.\.2 asked for; it has 0\.\.1796"):
        dataset.x([-1, 2])
    with pytest.raises(IndexError, match=r"0..1796"):
        dataset.x([1797])


def test_arrays_are_read_only_and_x_is_a_copy() -> None:
    dataset = load(Source("digits_binary"), None)
    with pytest.raises(ValueError, match="read-only"):
        dataset.y[0] = 3
    before = dataset.x([0])
    dataset.x([0])[:] = 7
    np.testing.assert_array_equal(dataset.x([0]), before)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (5, 13), elements=st.integers(0, 1)))
def test_canonical_bytes_of_binary_records_are_their_bits(bits: np.ndarray) -> None:
    packed = canonical_bytes(bits.astype(np.float32), "binary")
    assert packed.shape == (5, 2)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1, count=13), bits)


def test_canonical_bytes_of_images_are_the_pixels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = np.divide(pixels, np.float32(255), dtype=np.float32)
    np.testing.assert_array_equal(canonical_bytes(x, "image"), pixels.reshape(1, 256))
    outside = np.array([[[[-0.5, 1.5]]]], np.float32)
    assert canonical_bytes(outside, "image").tolist() == [[0, 255]]
    between = np.array([[[[100.4, 100.6]]]], np.float32) / 255
    assert canonical_bytes(between, "image").tolist() == [[100, 101]]


finite = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=finite))
def test_canonical_bytes_are_equal_exactly_for_equal_records(x: np.ndarray) -> None:
    twice = np.concatenate([x, x])
    keys = [row.tobytes() for row in canonical_bytes(twice, "continuous")]
    for i in range(8):
        for j in range(8):
            assert (keys[i] == keys[j]) == bool((twice[i] == twice[j]).all())


def test_zero_has_one_sign() -> None:
    x = np.array([[0.0, 0.5], [-0.0, 0.5]], np.float32)
    first, second = canonical_bytes(x, "continuous")
    assert first.tobytes() == second.tobytes()


def test_the_hash_is_of_the_content_and_a_changed_file_is_read_again(
    tmp_path: Path, files: Any
) -> None:
    first = files.read(files.table("a.parquet", label=[0, 1], f0=[0.25, 0.5]))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    copy = files.read(tmp_path / "b.parquet")
    assert copy.content_hash == first.content_hash
    assert files.read(tmp_path / "b.parquet") is copy
    changed = bytearray((tmp_path / "b.parquet").read_bytes())
    changed[changed.index(np.float64(0.5).tobytes())] ^= 1
    (tmp_path / "b.parquet").write_bytes(changed)
    os.utime(tmp_path / "b.parquet", ns=(1, 1))  # the clock may be too coarse to tell
    again = files.read(tmp_path / "b.parquet")
    assert again.content_hash != first.content_hash
    assert len(again.content_hash) == 64


def test_a_path_goes_before_the_data_directory_and_that_before_a_built_in(
    tmp_path: Path, files: Any
) -> None:
    files.table("digits.parquet", label=[0, 1], f0=[0.25, 0.5])
    files.table("other.parquet", label=[0, 1, 0], f0=[0.25, 0.5, 0.5])
    files.table("synth_s.parquet", label=[0, 1], f0=[0.25, 0.5])
    assert len(load(Source("digits"), None)) == 1797
    assert len(load(Source("digits"), tmp_path)) == 2
    assert len(load(Source("digits", path=str(tmp_path / "other.parquet")), tmp_path)) == 3
    with pytest.raises(
        ValueError, match=r"parameters rows given, but this set is read from .*synth_s"
    ):
        load(Source("synth_s", params=(("rows", 9),)), tmp_path)


def test_unknown_names(tmp_path: Path, files: Any) -> None:
    files.table("clinic.parquet", label=[0, 1], f0=[0.25, 0.5])
    with pytest.raises(ValueError, match=r"no dataset is named 'locatoin30'\. Did you mean 'loc"):
        load(Source("locatoin30"), None)
    with pytest.raises(ValueError, match="Did you mean 'clinic'"):
        load(Source("clinik"), tmp_path)
    with pytest.raises(ValueError, match=r"no dataset is named '../clinic'"):
        load(Source("../clinic"), tmp_path / "below")
    assert len(load(Source("clinic"), tmp_path)) == 2


def test_missing_files(tmp_path: Path, files: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(Source("purchase100"), tmp_path)
    for words in (
        str(tmp_path / "purchase100.parquet"),
        str(tmp_path / "purchase100.npz"),
        "SFUMATO_DATA",
        "--data-dir",
        "`features` and `labels`",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no data directory is set.*`image` .JPEG"):
        load(Source("cifar100"), None)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone.npz"):
        files.read(tmp_path / "gone.npz")
