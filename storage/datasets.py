"""A name or a path -> records, labels, duplicate groups and a content hash.

The list of names is in `_catalogue.py`, the reading of files in `_files.py` and `_images.py`, the
generator of the `synth_*` sets in `_synth.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage import _synth
from storage._catalogue import (
    BUILT_IN,
    DEFAULT_SPLITS,
    DatasetInfo,
    in_data_dir,
    names,
    not_found,
    own_files,
)
from storage._files import (
    READERS,
    as_text,
    checked_features,
    checked_labels,
    not_read,
)
from storage._images import Encoded, channel_first

__all__ = [
    "DEFAULT_SPLITS",
    "Dataset",
    "DatasetInfo",
    "Kind",
    "Source",
    "as_text",
    "canonical_bytes",
    "in_data_dir",
    "load",
    "names",
    "own_files",
]

# Bump when the same file would give other arrays, be it through this module, `_files.py` or
# `_images.py`.
LOADER_VERSION = 1

Kind = Literal["binary", "continuous", "image"]


@dataclass(frozen=True)
class Source:
    """Where records come from.

    Attributes:
        name: a name of `names()`, the stem of a file in the data directory, or with `path` the
            name the set goes by.
        path: a Parquet or npz file, or None to find one by name.
        params: overrides of a `synth_*` preset: rows, features, classes, clusters, sparsity,
            bit_noise, label_noise, data_seed.
        beside: columns of a file that are no features though they hold numbers, such as one that
            says which records train the model. They are extras, as text (see `as_text`).
    """

    name: str
    path: str | None = None
    params: tuple[tuple[str, int | float | str], ...] = ()
    beside: tuple[str, ...] = ()


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
        columns: the names of the features of a flat set from a file, in their order.
    """

    name: str
    kind: Kind
    num_classes: int
    y: NDArray[np.int64]
    groups: NDArray[np.int64]
    content_hash: str
    extras: Mapping[str, NDArray[Any]]
    _values: "NDArray[Any] | Encoded"
    _scale: float = 1.0
    columns: tuple[str, ...] = ()

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

    def check_images(self, most: int | None = None) -> None:
        """Decode images that are kept as files; other records were checked when they were loaded.

        Args:
            most: look at so many, evenly spaced with the first and the last, and at as many of
                those that do not begin or end as images do; by default at all.

        Raises:
            ValueError: if any does not decode or differs from the first in size or colour mode;
                tells how many, the first of them, and the remedy.
        """
        if not isinstance(self._values, Encoded):
            return
        rows = np.arange(len(self))
        if most is not None and most < len(self):
            spaced = np.linspace(0, len(self) - 1, most).astype(np.int64)
            rows = np.union1d(spaced, self._values.suspects()[:most])
        if faults := self._values.faults(rows):
            message, *_ = faults.values()
            bad = ", ".join(map(str, [*faults][:10])) + (", …" if len(faults) > 10 else "")
            if len(faults) > 1:
                message += f" ({len(faults)} of {len(rows)} images looked at are wrong: rows {bad})"
            raise ValueError(message)


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
        if path.is_dir():
            raise ValueError(not_read(path))
        if not path.is_file():
            raise FileNotFoundError(f"dataset {name}: there is no file {path}; check `path`")
    elif name == "adult":
        raise ValueError(
            "dataset adult: its columns are text and not encoded; use 'adult_binary', the same "
            "rows one-hot encoded"
        )
    else:
        path = in_data_dir(name, data_dir)
    if source.params and (path is not None or name not in _synth.PRESETS):
        where = f"this set is read from {path}" if path else "this set is not generated"
        raise ValueError(
            f"dataset {name}: parameters {', '.join(key for key, _ in source.params)} given, but "
            f"{where}; only {', '.join(_synth.PRESETS)} take parameters"
        )
    if path is not None:
        stat = path.stat()
        beside = tuple(sorted(source.beside))
        return _from_file(name, path.resolve(), beside, stat.st_mtime_ns, stat.st_size)
    if source.beside and (name in _synth.PRESETS or name in BUILT_IN):
        raise ValueError(
            f"dataset {name}: this set is not read from a file, so it has no column "
            f"'{source.beside[0]}'; divide it by sizes"
        )
    if name in _synth.PRESETS:
        return _from_synth(name, _synth.parameters(name, source.params))
    if name in BUILT_IN:
        return _from_sklearn(name)
    raise not_found(name, data_dir)


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
def _from_file(name: str, path: Path, beside: tuple[str, ...], mtime_ns: int, size: int) -> Dataset:
    """The dataset in a file; time and size are there so that a changed file is read again."""
    if path.suffix.lower() not in READERS:
        raise ValueError(not_read(path))
    with path.open("rb") as file:
        file_hash = hashlib.file_digest(file, "sha256").hexdigest()
    x, labels, columns, extras, left_out = READERS[path.suffix.lower()](path, beside)
    y_N = checked_labels(path, labels)
    if len(x) != len(y_N):
        raise ValueError(f"{path}: {len(x)} records but {len(y_N)} labels; they must be as many")
    values: NDArray[Any] | Encoded
    kind: Kind
    if isinstance(x, list):
        values, kind = Encoded(path, x), "image"
    elif x.ndim == 2:
        values = checked_features(path, x, columns)
        kind = "binary" if values.dtype == np.uint8 else "continuous"
    else:
        values, kind = channel_first(path, x), "image"
    records = x if isinstance(values, Encoded) else (row.tobytes() for row in values)
    return Dataset(
        name=name,
        kind=kind,
        num_classes=int(y_N.max()) + 1,
        y=y_N,
        groups=_groups(records),
        # Columns beside that never were features change no record.
        content_hash=_sha256("file", str(LOADER_VERSION), file_hash, *left_out),
        extras=extras,
        _values=values,
        _scale=255.0 if kind == "image" else 1.0,
        columns=() if kind == "image" else tuple(columns),
    )
