"""A name or a path -> records, labels, duplicate groups and a content hash.

The generator of the `synth_*` sets is in `_synth.py`.
"""

import dataclasses
import difflib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from storage import _synth

__all__ = [
    "DEFAULT_SPLITS",
    "Dataset",
    "DatasetInfo",
    "Kind",
    "Source",
    "canonical_bytes",
    "load",
    "names",
]

LOADER_VERSION = 1  # bump when the same file would give other arrays

Kind = Literal["binary", "continuous", "image"]
Raw = tuple[Any, Any, list[str], dict[str, NDArray[Any]]]  # x, labels, feature names, extras


@dataclass(frozen=True)
class Source:
    """Where records come from.

    Attributes:
        name: a name of `names()`, the stem of a file in the data directory, or with `path` the
            name the set goes by.
        path: a Parquet or npz file, or None to find one by name.
        params: overrides of a `synth_*` preset: rows, features, classes, clusters, sparsity,
            bit_noise, label_noise, data_seed.
    """

    name: str
    path: str | None = None
    params: tuple[tuple[str, int | float | str], ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """One line of the list of datasets.

    Attributes:
        name: what to write in an experiment.
        summary: what it is; says so if it stands in for another set.
        source: whom to cite.
        rows: n.
        classes: C.
        shape: of one record, images channel-first.
        available: whether `load` finds it.
        default_split: rows of members, reference and nonmembers.
    """

    name: str
    summary: str
    source: str
    rows: int
    classes: int
    shape: tuple[int, ...]
    available: bool
    default_split: Mapping[str, int]


def _info(
    name: str, rows: int, classes: int, shape: str, split: str, summary: str, source: str
) -> DatasetInfo:
    sizes = zip(("members", "reference", "nonmembers"), map(int, split.split("/")), strict=True)
    return DatasetInfo(
        name=name,
        summary=summary,
        source=source,
        rows=rows,
        classes=classes,
        shape=tuple(map(int, shape.split("x"))),
        available=False,
        default_split=dict(sizes),
    )


# Sizes: PURIFIER Table 1 where the set allows it, the data directory's manifest for the stand-ins.
# fmt: off
_CATALOGUE = {info.name: info for info in (
    _info("location30", 5010, 30, "446", "1600/1600/1600",
          "check-ins in Bangkok, the real Location",
          "Yang et al., as prepared by Shokri et al. 2017"),
    _info("retail100", 35593, 100, "600", "10000/10000/10000",
          "supermarket receipts, stand-in for Purchase100",
          "Brijs et al., KDD 1999"),
    _info("hospital100", 52096, 100, "599", "10000/10000/10000",
          "hospital stays, stand-in for Texas100",
          "Strack et al. 2014, CC BY 4.0"),
    _info("clinc100", 14943, 100, "600", "5000/4900/4900",
          "words of short queries; 1,373 duplicate rows",
          "Larson et al., EMNLP 2019, CC BY 3.0"),
    _info("adult_binary", 48842, 2, "126", "10000/10000/10000",
          "census income, one-hot; 20,363 duplicate rows",
          "Becker and Kohavi 1996, CC BY 4.0"),
    _info("adult", 48842, 2, "14", "0/0/0",
          "census income with text columns, not loadable: use adult_binary",
          "Becker and Kohavi 1996, CC BY 4.0"),
    _info("cifar10", 60000, 10, "3x32x32", "50000/5000/5000",
          "CIFAR10, a JPEG copy, train and test pooled",
          "Krizhevsky 2009"),
    _info("cifar10_mini", 2500, 10, "3x32x32", "1000/700/700",
          "2,500 images of CIFAR10, for tests",
          "Krizhevsky 2009"),
    _info("tinyimagenet32_100a", 54996, 100, "3x32x32", "49996/2500/2500",
          "100 classes of Tiny ImageNet, stand-in for CIFAR100",
          "Stanford CS231n, non-commercial research"),
    _info("utkface64", 22000, 2, "3x64x64", "12000/5000/5000",
          "faces by gender, with race and age",
          "Zhang, Song and Qi 2017, non-commercial research"),
    _info("faces_yaleb38", 2414, 38, "1x64x64", "1000/700/700",
          "faces by identity, stand-in for FaceScrub530",
          "Georghiades et al. 2001"),
    _info("faces_orl38", 380, 38, "1x64x64", "190/95/95",
          "faces by identity, stand-in for FaceScrub530",
          "Samaria and Harter 1994"),
    _info("mnist10k", 10000, 10, "1x28x28", "4000/3000/3000",
          "10,000 images of MNIST",
          "LeCun, Cortes, Burges"),
    _info("purchase100", 197324, 100, "600", "20000/20000/20000",
          "shoppers, the original; bring your own copy",
          "Shokri et al. 2017"),
    _info("texas100", 67330, 100, "6169", "10000/10000/10000",
          "hospital stays, the original; bring your own copy",
          "Shokri et al. 2017"),
    _info("cifar100", 60000, 100, "3x32x32", "50000/5000/5000",
          "CIFAR100, the original; bring your own copy",
          "Krizhevsky 2009"),
    _info("facescrub530", 48579, 530, "1x64x64", "30000/10000/8000",
          "faces by identity, the original; bring your own copy",
          "Ng and Winkler, ICIP 2014"),
    _info("digits", 1797, 10, "1x8x8", "600/600/597",
          "small handwritten digits",
          "scikit-learn, from UCI (Alpaydin and Kaynak 1998)"),
    _info("digits_binary", 1797, 10, "64", "600/600/597",
          "the digits as 64 black or white pixels",
          "scikit-learn, from UCI (Alpaydin and Kaynak 1998)"),
    _info("synth_s", 6000, 20, "128", "2000/2000/2000",
          "SynthPurchase, moderate leak",
          "methods.md 2.5"),
    _info("synth_m", 6000, 100, "600", "2000/2000/2000",
          "SynthPurchase, shaped like Purchase100",
          "methods.md 2.5"),
    _info("synth_hard", 6000, 20, "128", "2000/2000/2000",
          "SynthPurchase, leaks plainly",
          "methods.md 2.5"),
    _info("synth_null", 6000, 20, "128", "2000/2000/2000",
          "SynthPurchase, nearly nothing to leak",
          "methods.md 2.5"),
)}
# fmt: on

DEFAULT_SPLITS: dict[str, dict[str, int]] = {
    info.name: dict(info.default_split) for info in _CATALOGUE.values() if info.name != "adult"
}


def names(data_dir: Path | None = None) -> list[DatasetInfo]:
    """Every known dataset; `available` says whether `load` would find it."""
    return [
        dataclasses.replace(
            info,
            available=info.name != "adult"
            and (info.name in _BUILT_IN or _in_data_dir(info.name, data_dir) is not None),
        )
        for info in _CATALOGUE.values()
    ]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled records. Shared within a process, so its arrays are read-only.

    Attributes:
        name: the name in tables.
        kind: "binary" if every feature is 0 or 1, "image" for pixels of 0..255, else "continuous".
        num_classes: C.
        y: int64 [n], classes 0..C-1.
        groups: int64 [n], the number of the first row with an equal record, so that exactly the
            equal records share a group. Images of a Parquet file are compared by encoded bytes.
        content_hash: SHA-256, hex, of what the records come from; the path is not part of it.
        extras: every further column, [n] or [n, ...].
    """

    name: str
    kind: Kind
    num_classes: int
    y: NDArray[np.int64]
    groups: NDArray[np.int64]
    content_hash: str
    extras: Mapping[str, NDArray[Any]]
    _values: "NDArray[Any] | _Encoded"
    _scale: float = 1.0

    def __post_init__(self) -> None:
        for array in (self.y, self.groups, *self.extras.values()):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record: (D,) or (channels, height, width)."""
        return tuple(self._values.shape[1:])

    def x(self, rows: ArrayLike) -> NDArray[np.float32]:
        """The records of `rows` [k], decoded where needed.

        Returns:
            float32 [k, *shape], a new array. Pixels are in [0, 1], binary features 0 or 1, other
            features as in their file.

        Raises:
            TypeError: if `rows` are not whole numbers (a mask, say).
            IndexError: if a row is not in 0..n-1.
            ValueError: if an image does not decode, with its row.
        """
        rows_k = np.asarray(rows)
        if rows_k.size == 0:
            rows_k = rows_k.astype(np.int64)
        if rows_k.ndim != 1 or rows_k.dtype.kind not in "iu":
            raise TypeError(
                f"dataset {self.name}: rows are {rows_k.dtype} {list(rows_k.shape)}; give row "
                "numbers [k] (np.flatnonzero turns a mask into them)"
            )
        if rows_k.size and not 0 <= rows_k.min() <= rows_k.max() < len(self):
            raise IndexError(
                f"dataset {self.name}: rows {rows_k.min()}..{rows_k.max()} asked for; it has "
                f"0..{len(self) - 1}"
            )
        return np.divide(self._values[rows_k], np.float32(self._scale), dtype=np.float32)


def canonical_bytes(x: NDArray[Any], kind: Kind) -> NDArray[np.uint8]:
    """What identifies each record, the same for equal records.

    Args:
        x: [k, *shape] as from `Dataset.x`, finite. Values between 0 and 1 of a binary record are
            rounded, pixels are rounded to 1/255 and clipped to [0, 1].
        kind: of the dataset.

    Returns:
        uint8 [k, B]: packed bits, uint8 pixels or float32 bytes.

    Source: methods.md section 0.4.
    """
    flat_kD = np.asarray(x, np.float32).reshape(len(x), int(np.prod(np.shape(x)[1:])))
    if kind == "binary":
        return np.packbits(flat_kD > 0.5, axis=1)
    if kind == "image":
        return np.rint(flat_kD.clip(0, 1) * np.float32(255)).astype(np.uint8)
    # Adding 0 turns -0.0 into 0.0: equal numbers must have equal bytes.
    return np.ascontiguousarray(flat_kD + np.float32(0)).view(np.uint8)


def load(source: Source, data_dir: Path | None = None) -> Dataset:
    """Find and check a dataset; a file is read once per process while it stays unchanged.

    Looks at `source.path`, then for NAME.parquet or NAME.npz in `data_dir`, then for a set that
    comes with scikit-learn, then for a SynthPurchase preset. Every numeric column but `label` is a
    feature when none is named f000, f001, ...

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: on an unknown name, or a file that is not a usable dataset: what is wrong,
            where, and the remedy.
    """
    name, path = source.name, None
    if source.path is not None:
        path = Path(source.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"dataset {name}: there is no file {path}; check `path`")
    elif name == "adult":
        raise ValueError(
            "dataset adult: its columns are text and not encoded; use 'adult_binary', the same "
            "rows one-hot encoded"
        )
    else:
        path = _in_data_dir(name, data_dir)
    if source.params and (path is not None or name not in _synth.PRESETS):
        where = f"this set is read from {path}" if path else "this set is not generated"
        raise ValueError(
            f"dataset {name}: parameters {', '.join(key for key, _ in source.params)} given, but "
            f"{where}; only {', '.join(_synth.PRESETS)} take parameters"
        )
    if path is not None:
        stat = path.stat()
        return _from_file(name, path.resolve(), stat.st_mtime_ns, stat.st_size)
    if name in _synth.PRESETS:
        return _from_synth(name, _synth.parameters(name, source.params))
    if name in _BUILT_IN:
        return _from_sklearn(name)
    raise _not_found(name, data_dir)


_BUILT_IN = ("digits", "digits_binary", *_synth.PRESETS)


def _in_data_dir(name: str, data_dir: Path | None) -> Path | None:
    if data_dir is None or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return None
    paths = (data_dir / f"{name}{suffix}" for suffix in _READERS)
    return next((path for path in paths if path.is_file()), None)


def _not_found(name: str, data_dir: Path | None) -> Exception:
    if name not in _CATALOGUE:
        own = (
            [path.stem for path in data_dir.iterdir() if path.suffix in _READERS]
            if (data_dir is not None and data_dir.is_dir())
            else []
        )
        known = sorted({*DEFAULT_SPLITS, *own})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return ValueError(
            f"no dataset is named '{name}'.{hint} Known: {', '.join(known)}. Your own data needs a "
            "`path` to a Parquet or npz file"
        )
    info = _CATALOGUE[name]
    if len(info.shape) == 3:
        layout = "npz with `x` uint8 [n, H, W] or [n, H, W, 3] and `y`, or Parquet with `label` and `image` (JPEG or PNG bytes)"  # noqa: E501
    else:
        layout = "npz with `x` [n, D] and `y` (or, as published, `features` and `labels`), or Parquet with `label` and features f000, f001, ..."  # noqa: E501
    if data_dir is None:
        tried = "no data directory is set"
    else:
        tried = "tried " + " and ".join(str(data_dir / f"{name}{suffix}") for suffix in _READERS)
    return FileNotFoundError(
        f"dataset {name}: no file ({tried}). Point SFUMATO_DATA or --data-dir at the folder that "
        f"has it, or give its `path`. Expected: {layout}"
    )


def _sha256(*parts: str | bytes) -> str:
    """Hash of the parts, each preceded by its length so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _groups(records: Iterable[bytes]) -> NDArray[np.int64]:
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(hashlib.sha256(r).digest(), row) for row, r in enumerate(records)],
        np.int64,
    )


# Few at a time: an image set may take hundreds of megabytes once decoded.
@lru_cache(maxsize=4)
def _from_synth(name: str, made: _synth.SynthPurchase) -> Dataset:
    x_ND, y_N = _synth.generate(made)
    # The name is not hashed: two presets with the same parameters are the same data.
    text = json.dumps(dataclasses.asdict(made), sort_keys=True)
    return Dataset(
        name=name,
        kind="binary",
        num_classes=made.classes,
        y=y_N,
        groups=np.arange(made.rows),
        content_hash=_sha256("synth_purchase", str(_synth.VERSION), text),
        extras={},
        _values=x_ND,
    )


@lru_cache(maxsize=4)
def _from_sklearn(name: str) -> Dataset:
    from sklearn.datasets import load_digits  # here, because importing it takes about a second

    bunch = load_digits()
    y_N = bunch.target.astype(np.int64)
    x = bunch.images.astype(np.uint8)[:, None]
    if name == "digits_binary":
        x = (x > 8).astype(np.uint8).reshape(len(x), -1)
    return Dataset(
        name=name,
        kind="binary" if name == "digits_binary" else "continuous",
        num_classes=10,
        y=y_N,
        groups=_groups(row.tobytes() for row in x),
        content_hash=_sha256(name, str(LOADER_VERSION), x.tobytes(), y_N.tobytes()),
        extras={},
        _values=x,
        _scale=1.0 if name == "digits_binary" else 16.0,
    )


@lru_cache(maxsize=4)
def _from_file(name: str, path: Path, mtime_ns: int, size: int) -> Dataset:
    """The dataset in a file; time and size are there so that a changed file is read again."""
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path}: the suffix is '{path.suffix}'; give a .parquet or .npz file")
    with path.open("rb") as file:
        file_hash = hashlib.file_digest(file, "sha256").hexdigest()
    x, labels, columns, extras = _READERS[path.suffix.lower()](path)
    y_N = _checked_labels(path, labels)
    if len(x) != len(y_N):
        raise ValueError(f"{path}: {len(x)} records but {len(y_N)} labels; they must be as many")
    values: NDArray[Any] | _Encoded
    kind: Kind
    if isinstance(x, list):
        values, kind = _Encoded(path, x), "image"
    elif x.ndim == 2:
        values = _checked_features(path, x, columns)
        kind = "binary" if values.dtype == np.uint8 else "continuous"
    else:
        values, kind = _channel_first(path, x), "image"
    records = x if isinstance(values, _Encoded) else (row.tobytes() for row in values)
    return Dataset(
        name=name,
        kind=kind,
        num_classes=int(y_N.max()) + 1,
        y=y_N,
        groups=_groups(records),
        content_hash=_sha256("file", str(LOADER_VERSION), file_hash),
        extras=extras,
        _values=values,
        _scale=255.0 if kind == "image" else 1.0,
    )


def _read_parquet(path: Path) -> Raw:
    try:
        # Not read_table: it makes columns of folders called key=value.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one ({error})") from error
    fields = {field.name: field.type for field in table.schema}
    if len(fields) < table.num_columns:
        twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        raise ValueError(f"{path}: columns {_some(twice)} appear twice; rename them")
    if "label" not in fields:
        raise ValueError(
            f"{path}: no column `label` among {_some(list(fields))}; name the class column `label`"
        )
    labels = _column(path, table, "label")
    features = [name for name in fields if re.fullmatch(r"f[0-9]+", name)]
    is_image = not features and "image" in fields
    if not features and not is_image:
        # The index of a pandas frame tells the order of the source, it describes no record.
        index = (table.schema.pandas_metadata or {}).get("index_columns", [])
        features = [name for name in fields if name != "label" and name not in index]
    if not features and not is_image:
        raise ValueError(f"{path}: no feature columns; add columns f000, f001, ... of numbers")
    text = [name for name in features if not _is_number(fields[name])]
    if text:
        raise ValueError(
            f"{path}: columns {_some(text)} are not numbers; encode them as numbers, drop them, or "
            "name the feature columns f000, f001, ... and all others are kept beside the features"
        )
    others = [name for name in fields if name not in {"label", "image", *features}]
    extras = {name: _column(path, table, name, fill="") for name in others}
    if is_image:
        if not (pa.types.is_binary(fields["image"]) or pa.types.is_large_binary(fields["image"])):
            raise ValueError(
                f"{path}: column 'image' is {fields['image']}; it must be binary, one JPEG or PNG "
                "file a row"
            )
        # A missing image is an empty file: it does not decode, which is what the message says.
        return [file or b"" for file in table.column("image").to_pylist()], labels, [], extras
    small = all(pa.types.is_uint8(fields[name]) for name in features)
    x_DN = np.empty((len(features), table.num_rows), np.uint8 if small else np.float32)
    with np.errstate(over="ignore"):  # what does not fit float32 is reported as infinite
        for column, name in enumerate(features):
            x_DN[column] = _column(path, table, name)
    return np.ascontiguousarray(x_DN.T), labels, features, extras


def _column(path: Path, table: Any, name: str, fill: str | None = None) -> NDArray[Any]:
    """A column as numbers or str; a missing text is `fill`, a missing number has no stand-in."""
    column = table.column(name)
    if _is_number(column.type):
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ValueError(
                f"{path}: column '{name}', row {row} is missing (null); fill or drop the row"
            )
        return np.array(column.to_numpy())
    try:
        texts = column.cast(pa.large_string()).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(
            f"{path}: column '{name}' is {column.type}; only numbers and text are read, drop it"
        ) from error
    return np.array([fill if text is None else text for text in texts], dtype=np.str_)


def _is_number(kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _read_npz(path: Path) -> Raw:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz file, or a truncated one; write it with np.savez")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                arrays[key] = file[key]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path}: array '{key}' holds pickled Python objects, which are never loaded; "
                "save it as numbers or text"
            ) from error
        raise ValueError(f"{path}: a damaged npz file ({error})") from error
    for part, name in (("x", "features"), ("y", "labels")):
        halves = [arrays.get(f"{part}_{half}") for half in ("train", "test")]
        if part not in arrays and name in arrays:
            arrays[part] = arrays.pop(name)
        elif part not in arrays and halves[0] is not None and halves[1] is not None:
            train, test = arrays.pop(f"{part}_train"), arrays.pop(f"{part}_test")
            if train.ndim == 0 or train.shape[1:] != test.shape[1:]:
                raise ValueError(
                    f"{path}: {part}_train is {list(train.shape)} and {part}_test is "
                    f"{list(test.shape)}; they must differ in the first number only"
                )
            arrays[part] = np.concatenate([train, test])
            arrays["split"] = np.repeat(["train", "test"], [len(train), len(test)])
    if "x" not in arrays or "y" not in arrays:
        raise ValueError(
            f"{path}: arrays {_some(list(arrays))}; it must have `x` and `y`, or `features` and "
            "`labels`, or `x_train`, `y_train`, `x_test` and `y_test`"
        )
    x, y = arrays.pop("x"), arrays.pop("y")
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{path}: `x` is {x.dtype} {list(x.shape)}; it must be numbers [n, D], or images uint8 "
            "[n, H, W] or [n, H, W, 3]"
        )
    # Arrays of another length do not describe records (class names, say).
    extras = {name: array for name, array in arrays.items() if array.shape[:1] == x.shape[:1]}
    return x, y, [str(column) for column in range(x.shape[1])], extras


_READERS: dict[str, Callable[[Path], Raw]] = {".parquet": _read_parquet, ".npz": _read_npz}


def _checked_labels(path: Path, labels: NDArray[Any]) -> NDArray[np.int64]:
    """Labels int64 [n], which are 0..C-1 and all of them."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        hot = labels == 1
        valid = (hot.sum(axis=1) == 1) & (hot | (labels == 0)).all(axis=1)
        bad = np.flatnonzero(~valid)
        if len(bad):
            raise ValueError(
                f"{path}: labels are {list(labels.shape)} but row {bad[0]} is not one-hot; give "
                "one-hot rows or whole numbers [n]"
            )
        labels = hot.argmax(axis=1)
    labels = labels.reshape(len(labels), -1)[:, 0] if labels.ndim == 2 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        value = f", the first is {labels[0]!r}" if labels.ndim == 1 and len(labels) else ""
        raise ValueError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}{value}; they must be whole "
            "numbers 0..C-1, one a record"
        )
    if len(labels) < 2:
        raise ValueError(f"{path}: {len(labels)} rows; at least two records are needed")
    bad = np.flatnonzero(labels != np.floor(labels)) if labels.dtype.kind == "f" else np.array([])
    if len(bad) == 0:
        bad = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int32).max))
    if len(bad):
        raise ValueError(
            f"{path}: label of row {bad[0]} is {labels[bad[0]]}; labels must be whole numbers "
            "0..C-1"
        )
    y_N = labels.astype(np.int64)
    present = np.unique(y_N)
    if len(present) == 1:
        raise ValueError(
            f"{path}: every label is {present[0]}; at least two classes are needed, numbered from 0"
        )
    missing = np.setdiff1d(np.arange(min(present[-1], len(present) + 5)), present)
    if len(missing):
        raise ValueError(
            f"{path}: labels run up to {present[-1]} but {present[-1] + 1 - len(present)} of those "
            f"classes have no record: {_some([str(label) for label in missing])}; number the "
            "classes 0..C-1 without gaps"
        )
    return y_N


def _checked_features(path: Path, x: NDArray[Any], columns: list[str]) -> NDArray[Any]:
    """Features [n, D]: uint8 if all are 0 or 1, else float32."""
    if x.shape[1] == 0:
        raise ValueError(
            f"{path}: no feature columns; `x` is {list(x.shape)}, D must be at least 1"
        )
    if ((x == 0) | (x == 1)).all():
        return x.astype(np.uint8)
    with np.errstate(over="ignore"):
        x_ND = x.astype(np.float32)
    bad = np.argwhere(~np.isfinite(x_ND))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{path}: column '{columns[column]}', row {row} is {x[row, column]} ({len(bad)} such "
            "values); features must be finite float32 numbers, fill or drop them"
        )
    return x_ND + np.float32(0)  # turns -0.0 into 0.0, so that equal records have equal bytes


def _channel_first(path: Path, x: NDArray[Any]) -> NDArray[np.uint8]:
    """Images uint8 [n, H, W] or [n, H, W, 1 or 3] as [n, channels, H, W]."""
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"{path}: images are {x.dtype} {list(x.shape)}; they must be uint8 0..255 [n, H, W] or "
            "[n, H, W, 3]"
        )
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


class _Encoded:
    """JPEG or PNG files, decoded when first asked for and kept as uint8 [n, channels, H, W]."""

    def __init__(self, path: Path, files: list[bytes]):
        self._path, self._files = path, files
        with self._open(0) as image:
            grey = image.mode == "L"
            self.shape = (len(files), 1 if grey else 3, image.height, image.width)
        self._pixels: NDArray[np.uint8] = np.empty(self.shape, np.uint8)
        self._done = np.zeros(len(files), np.bool_)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        for row in rows[~self._done[rows]]:
            self._pixels[row] = self._decode(int(row))
            self._done[row] = True
        return self._pixels[rows]

    def _open(self, row: int) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self._files[row]), formats=("JPEG", "PNG"))
        except _UNDECODABLE as error:
            raise self._damaged(row) from error

    def _decode(self, row: int) -> NDArray[np.uint8]:
        channels, height, width = self.shape[1:]
        with self._open(row) as image:
            if (image.height, image.width) != (height, width) or (
                channels == 1 and image.mode != "L"
            ):
                raise ValueError(
                    f"{self._path}: column 'image', row {row} is {image.width}x{image.height} "
                    f"{image.mode}, row 0 is {width}x{height} {'L' if channels == 1 else 'RGB'}; "
                    "all images must have one size and colour mode"
                )
            try:
                pixels = np.asarray(image if channels == 1 else image.convert("RGB"), np.uint8)
            except _UNDECODABLE as error:
                raise self._damaged(row) from error
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)

    def _damaged(self, row: int) -> ValueError:
        return ValueError(
            f"{self._path}: column 'image', row {row} ({len(self._files[row])} bytes) does "
            "not decode as JPEG or PNG; replace or drop the row"
        )


_UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def _some(texts: list[str]) -> str:
    """The first few of a list of names, and how many more there are."""
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(texts[:5]) + more if texts else "(none)"
