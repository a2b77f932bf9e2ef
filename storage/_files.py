"""Parquet and npz files -> records, labels and further columns, each checked by name and row."""

import difflib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# x, labels, feature names, extras, columns that would be features were they not named as beside
Raw = tuple[Any, Any, list[str], dict[str, NDArray[Any]], list[str]]


def _read_parquet(path: Path, beside: tuple[str, ...]) -> Raw:
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
    _check_beside(path, beside, fields, ("label", "image"))
    labels = _column(path, table, "label")
    features = [name for name in fields if re.fullmatch(r"f[0-9]+", name)]
    is_image = not features and "image" in fields
    if not features and not is_image:
        # The index of a pandas frame tells the order of the source, it describes no record.
        index = (table.schema.pandas_metadata or {}).get("index_columns", [])
        features = [name for name in fields if name != "label" and name not in index]
    left_out = [name for name in features if name in beside]
    features = [name for name in features if name not in beside]
    if not features and not is_image:
        raise ValueError(f"{path}: no feature columns; add columns f000, f001, ... of numbers")
    text = [name for name in features if not _is_number(fields[name])]
    if text:
        raise ValueError(
            f"{path}: columns {_some(text)} are not numbers; encode them as numbers, drop them, or "
            "name the feature columns f000, f001, ... and all others are kept beside the features"
        )
    others = [name for name in fields if name not in {"label", "image", *features}]
    extras = {
        name: _texts(table.column(name).to_pylist())
        if name in beside
        else _column(path, table, name, fill="")
        for name in others
    }
    if is_image:
        if not (pa.types.is_binary(fields["image"]) or pa.types.is_large_binary(fields["image"])):
            raise ValueError(
                f"{path}: column 'image' is {fields['image']}; it must be binary, one JPEG or PNG "
                "file a row"
            )
        # A missing image is an empty file: it does not decode, which is what the message says.
        return [file or b"" for file in table.column("image").to_pylist()], labels, [], extras, []
    small = all(pa.types.is_uint8(fields[name]) for name in features)
    x_DN = np.empty((len(features), table.num_rows), np.uint8 if small else np.float32)
    with np.errstate(over="ignore"):  # what does not fit float32 is reported as infinite
        for column, name in enumerate(features):
            x_DN[column] = _column(path, table, name)
    return np.ascontiguousarray(x_DN.T), labels, features, extras, left_out


def as_text(value: object) -> str:
    """One value of a column as text: alike for 1, 1.0 and "1", empty for what is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    # A column of whole numbers with a gap comes out of pandas as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _texts(values: list[Any]) -> NDArray[np.str_]:
    return np.array([as_text(value) for value in values], dtype=np.str_)


def _check_beside(
    path: Path, beside: tuple[str, ...], known: Iterable[str], taken: tuple[str, ...]
) -> None:
    for name in beside:
        if name in taken:
            raise ValueError(
                f"{path}: '{name}' is part of the records; name a column that stands beside them"
            )
        if name not in known:
            others = [column for column in known if column not in taken]
            near = difflib.get_close_matches(name, others, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {_some(others)}"
            raise ValueError(f"{path}: there is no column '{name}' with a value a row; {hint}")


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


def _read_npz(path: Path, beside: tuple[str, ...]) -> Raw:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz file, or a truncated one; write it with np.savez")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                arrays[key] = file[key]
                if not isinstance(arrays[key], np.ndarray):  # what has no header comes as bytes
                    raise ValueError(f"'{key}' in it is no array")
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
    columns = [name for name, array in extras.items() if array.ndim == 1]
    _check_beside(path, beside, [*columns, "x", "y"], ("x", "y"))
    extras |= {name: _texts(extras[name].tolist()) for name in beside}
    return x, y, [str(column) for column in range(x.shape[1])], extras, []


# What reads other tables, to say how they become Parquet; we read them not, as text has no types.
_BY_PANDAS = {
    ".csv": "read_csv",
    ".tsv": "read_table",
    ".json": "read_json",
    ".xls": "read_excel",
    ".xlsx": "read_excel",
    ".feather": "read_feather",
    ".dta": "read_stata",
}
_PACKED = (".gz", ".bz2", ".xz", ".zip")
_IMAGES = (".jpg", ".jpeg", ".png")


def not_read(path: Path) -> str:
    """Why a file or folder is not read, and, where there is one, the line that converts it."""
    if path.is_dir():
        return _not_a_file(path)
    stem, suffix = path.with_suffix(""), path.suffix.lower()
    message = f"{path}: the suffix is '{path.suffix}'; give a .parquet or .npz file"
    inner = stem.suffix.lower() if suffix in _PACKED else suffix
    if inner in _BY_PANDAS:
        into = f"{stem.with_suffix('') if suffix in _PACKED else stem}.parquet"
        line = f"import pandas; pandas.{_BY_PANDAS[inner]}({str(path)!r}).to_parquet({into!r})"
        return f'{message}. This makes one, whose class column must be `label`: python -c "{line}"'
    if suffix == ".npy":
        load = f"x=numpy.load({str(path)!r}), y=numpy.load('LABELS.npy')"
        line = f"import numpy; numpy.savez({f'{stem}.npz'!r}, {load})"
        return f'{message}. This makes one: python -c "{line}"'
    return message


def _not_a_file(path: Path) -> str:
    message = f"{path} is a folder; name a Parquet or npz file (check `path`)"
    if any(file.suffix.lower() in _IMAGES for file in path.glob("*/*")):
        line = (
            f"import pandas, pathlib; f=sorted(pathlib.Path({str(path)!r}).glob('*/*.*')); "
            "c=sorted({i.parent.name for i in f}); pandas.DataFrame({'label': "
            "[c.index(i.parent.name) for i in f], 'image': [i.read_bytes() for i in f]})"
            f".to_parquet({f'{path}.parquet'!r})"
        )
        return f'{message}. This packs images in a folder for each class: python -c "{line}"'
    return f"{message}; `sfumato data list --data-dir {path}` lists those in it"


READERS: dict[str, Callable[[Path, tuple[str, ...]], Raw]] = {
    ".parquet": _read_parquet,
    ".npz": _read_npz,
}


def checked_labels(path: Path, labels: NDArray[Any]) -> NDArray[np.int64]:
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
        first = labels.tolist()[0] if labels.ndim == 1 and len(labels) else None
        value = "" if first is None else f", the first is {first!r:.60}"
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


def checked_features(path: Path, x: NDArray[Any], columns: list[str]) -> NDArray[Any]:
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


def _some(texts: list[str]) -> str:
    """The first few of a list of names, and how many more there are."""
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(texts[:5]) + more if texts else "(none)"
