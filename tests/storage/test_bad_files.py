"""Files that are no dataset: one clear message each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    content = path.read_bytes()
    return write_bytes(path, content[: len(content) // 2])


def corrupt_npz(files: Any) -> Path:
    path = files.arrays("a.npz", x=np.zeros((100, 4)), y=np.arange(100) % 2)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255  # within x: its checksum fails
    return write_bytes(path, bytes(content))


F0 = [0.25, 0.5, 0.75]
objects = np.array([{}, {}, {}], dtype=object)
FAULTS: list[tuple[str, Callable[[Any], Path], str]] = [
    (
        "csv",
        lambda f: write_bytes(f.folder / "a.csv", b"label,f0\n"),
        "suffix is '.csv'; give a .parquet",
    ),
    ("no parquet", lambda f: write_bytes(f.folder / "a.parquet", b"x" * 99), "not a Parquet file"),
    (
        "truncated parquet",
        lambda f: truncated(f.table("a.parquet", label=[0, 1, 1], f0=F0)),
        "not a Parquet file, or a damaged one",
    ),
    (
        "no npz",
        lambda f: write_bytes(f.folder / "a.npz", b"x" * 99),
        "not an npz file, or a truncated",
    ),
    (
        "truncated npz",
        lambda f: truncated(f.arrays("a.npz", x=np.zeros((3, 2)), y=[0, 1, 1])),
        "not an npz file, or a truncated",
    ),
    ("corrupt npz", lambda f: corrupt_npz(f), "a damaged npz file"),
    (
        "pickled",
        lambda f: f.arrays("a.npz", x=np.zeros((3, 2)), y=[0, 1, 1], notes=objects),
        "array 'notes' holds pickled Python objects",
    ),
    ("no x", lambda f: f.arrays("a.npz", z=F0, y=[0, 1, 1]), "arrays z, y; it must have `x` and"),
    ("no y", lambda f: f.arrays("a.npz", x=np.zeros((3, 2))), "it must have `x` and `y`"),
    ("flat x", lambda f: f.arrays("a.npz", x=F0, y=[0, 1, 1]), "`x` is float64 [3]; it must be"),
    (
        "text x",
        lambda f: f.arrays("a.npz", x=[["a"], ["b"]], y=[0, 1]),
        "`x` is <U1 [2, 1]; it must be numbers",
    ),
    (
        "lengths",
        lambda f: f.arrays("a.npz", x=np.zeros((3, 2)), y=[0, 1]),
        "3 records but 2 labels",
    ),
    (
        "float images",
        lambda f: f.arrays("a.npz", x=np.zeros((3, 4, 4)), y=[0, 1, 1]),
        "images are float64 [3, 4, 4, 1]; they must be uint8",
    ),
    (
        "channels",
        lambda f: f.arrays("a.npz", x=np.zeros((3, 3, 4, 4), np.uint8), y=[0, 1, 1]),
        "images are uint8 [3, 3, 4, 4]; they must be uint8 0..255 [n, H, W]",
    ),
    (
        "not one-hot",
        lambda f: f.arrays("a.npz", x=np.zeros((3, 2)), y=[[1, 0], [0, 1], [1, 1]]),
        "row 2 is not one-hot",
    ),
    (
        "soft labels",
        lambda f: f.arrays("a.npz", x=np.zeros((2, 2)), y=[[1, 0.5], [0, 1]]),
        "row 0 is not one-hot",
    ),
    ("no label", lambda f: f.table("a.parquet", f0=F0, f1=F0), "no column `label` among f0, f1"),
    (
        "text labels",
        lambda f: f.table("a.parquet", label=["cat", "dog", "cat"], f0=F0),
        "the first is 'cat'; they must be whole numbers 0..C-1",
    ),
    (
        "fractional",
        lambda f: f.table("a.parquet", label=[0, 1, 0.5], f0=F0),
        "label of row 2 is 0.5; labels must be whole numbers",
    ),
    (
        "nan label",
        lambda f: f.table("a.parquet", label=[0, float("nan"), 1], f0=F0),
        "label of row 1 is nan",
    ),
    (
        "null label",
        lambda f: f.table("a.parquet", label=[0, None, 1], f0=F0),
        "column 'label', row 1 is missing (null)",
    ),
    (
        "negative",
        lambda f: f.table("a.parquet", label=[0, 1, -1], f0=F0),
        "label of row 2 is -1; labels must be whole numbers 0..C-1",
    ),
    (
        "gap",
        lambda f: f.table("a.parquet", label=[0, 1, 3], f0=F0),
        "labels run up to 3 but 1 of those classes have no record: 2;",
    ),
    (
        "from one",
        lambda f: f.table("a.parquet", label=[1, 2, 3], f0=F0),
        "labels run up to 3 but 1 of those classes have no record: 0;",
    ),
    (
        "far label",
        lambda f: f.table("a.parquet", label=[0, 1, 10**9], f0=F0),
        "999999998 of those classes have no record: 2, 3, 4, 5, 6 and ",
    ),
    (
        "one class",
        lambda f: f.table("a.parquet", label=[0, 0, 0], f0=F0),
        "every label is 0; at least two classes",
    ),
    (
        "empty",
        lambda f: f.table("a.parquet", label=pa.array([], pa.int16()), f0=pa.array([], "f4")),
        "0 rows; at least two records are needed",
    ),
    (
        "one row",
        lambda f: f.table("a.parquet", label=[0], f0=[0.5]),
        "1 rows; at least two records are needed",
    ),
    (
        "nan",
        lambda f: f.table("a.parquet", label=[0, 1, 1], f0=F0, f1=[1.0, 2.0, float("nan")]),
        "column 'f1', row 2 is nan (1 such values)",
    ),
    (
        "infinite",
        lambda f: f.arrays("a.npz", x=[[0.5, 1], [0.5, -np.inf], [np.nan, 1]], y=[0, 1, 1]),
        "column '1', row 1 is -inf (2 such values)",
    ),
    (
        "too large",
        lambda f: f.arrays("a.npz", x=[[0.5], [1e300]], y=[0, 1]),
        "column '0', row 1 is 1e+300",
    ),
    (
        "null",
        lambda f: f.table("a.parquet", label=[0, 1, 1], f0=pa.array([0, None, 1], type=pa.uint8())),
        "column 'f0', row 1 is missing (null)",
    ),
    (
        "text",
        lambda f: f.table("a.parquet", label=[0, 1, 1], age=[1, 2, 3], city=["a", "b", "c"]),
        "columns city are not numbers; encode them",
    ),
    (
        "text feature",
        lambda f: f.table("a.parquet", label=[0, 1, 1], f0=["a", "b", "c"], f1=F0),
        "columns f0 are not numbers; encode them",
    ),
    (
        "no features",
        lambda f: f.table("a.parquet", label=[0, 1, 1]),
        "no feature columns; add columns f000",
    ),
    (
        "no features, npz",
        lambda f: f.arrays("a.npz", x=np.zeros((3, 0)), y=[0, 1, 1]),
        "no feature columns; `x` is [3, 0]",
    ),
    (
        "odd extra",
        lambda f: f.table("a.parquet", label=[0, 1, 1], f0=F0, tags=[[1], [2], [3]]),
        "column 'tags' is list<",
    ),
]


@pytest.mark.parametrize(("make", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_bad_file_is_one_clear_message(
    files: Any, make: Callable[[Any], Path], message: str
) -> None:
    path = make(files)
    with pytest.raises(ValueError) as caught:
        files.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_duplicate_columns_are_named(tmp_path: Path, files: Any) -> None:
    twice = pa.Table.from_arrays(
        [pa.array([0, 1]), pa.array([0.5, 1]), pa.array([2, 3])], names=["label", "f0", "f0"]
    )
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="columns f0 appear twice"):
        files.read(tmp_path / "a.parquet")
