"""What an artifact's files hold: arrays, tables and facts as bytes, and back bit for bit."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

UNREADABLE = (ValueError, TypeError, KeyError, OSError, SafetensorError, pa.ArrowException)
"""What the functions named `read_*` raise if their bytes are something else."""

_DTYPES = ("float64", "float32", "int64", "int32", "uint8", "bool")


def arrays_bytes(name: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as safetensors.

    Raises:
        TypeError: a dtype other than float64, float32, int64, int32, uint8 or bool.
    """
    whole: dict[str, NDArray[Any]] = {}
    for label, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(
                f"{name}: array {label!r} is {array.dtype}; convert it to one of "
                f"{', '.join(_DTYPES)}"
            )
        # safetensors writes the buffer as it lies, so it must lie in C order, natively.
        whole[label] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return bytes(safetensors.numpy.save(whole))


def read_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of `arrays_bytes`, writable."""
    return dict(safetensors.numpy.load(data))


def table_bytes(name: str, columns: Mapping[str, NDArray[Any] | Sequence[Any]]) -> memoryview:
    """Columns as Parquet.

    Args:
        name: what errors call the table.
        columns: [N] strings, bools, integers or floats, or [N, C] numbers with C > 0.

    Raises:
        ValueError: no columns, unequal lengths, missing values, or another shape.
        TypeError: values of another type.
    """
    arrow = {label: _to_arrow(name, label, values) for label, values in columns.items()}
    lengths = {label: len(values) for label, values in arrow.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{name}: expected columns of one length, got lengths {lengths}")
    # Non-nullable fields spare Parquet a level of bookkeeping: 4 times faster for [N, C].
    fields = [pa.field(label, v.type, nullable=False) for label, v in arrow.items()]
    table = pa.Table.from_arrays(list(arrow.values()), schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        write_page_checksum=True,
        # A dictionary makes all NaNs one NaN; numbers are kept bit for bit.
        use_dictionary=[f.name for f in fields if pa.types.is_string(f.type)],
    )
    return memoryview(sink.getvalue())


def read_table(data: bytes) -> dict[str, NDArray[Any]]:
    """The columns of `table_bytes`; text comes as object arrays of `str`. Read-only."""
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    columns = {}
    for label, column in zip(table.column_names, table.columns, strict=True):
        array = column.combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = array.flatten().to_numpy(zero_copy_only=False)
            columns[label] = flat.reshape(-1, column.type.list_size)
        else:
            columns[label] = array.to_numpy(zero_copy_only=False)
    return columns


def image_bytes(name: str, pixels: NDArray[np.uint8]) -> bytes:
    """Pixels as a PNG file.

    Args:
        name: what errors call the image.
        pixels: uint8 [H, W], or [H, W, 3].

    Raises:
        ValueError: another type or shape.
    """
    from PIL import Image  # here, as most tasks keep no images

    colours = pixels.shape[2:] in ((), (3,)) and 0 not in pixels.shape
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or not colours:
        raise ValueError(
            f"{name}: an image is uint8 [H, W] or [H, W, 3], got {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def facts_bytes(name: str, facts: Mapping[str, Any]) -> bytes:
    """Facts as JSON in one canonical text; NaN becomes null.

    Raises:
        TypeError: a value JSON has no word for, or a name that is not a string.
        ValueError: an infinite number.
    """
    return canonical(_plain(name, facts))


def read_facts(data: bytes) -> dict[str, Any]:
    """The facts of `facts_bytes`; what was NaN is None."""
    return dict(json.loads(data))


def canonical(value: Any) -> bytes:
    """The one text that all equal JSON values share."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _to_arrow(table: str, label: str, values: NDArray[Any] | Sequence[Any]) -> Any:
    where = f"{table}: column {label!r}"
    if not isinstance(values, np.ndarray):
        values = list(values)
        # pyarrow refuses mixed types, which numpy would silently turn into text.
        array = pa.array(values, type=None if values else pa.float64())
    elif values.dtype.kind in "UO":
        array = pa.array(values.tolist(), type=pa.string())
    elif values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise TypeError(f"{where} is {values.dtype}; expected text, bools, integers or floats")
    elif values.ndim == 2 and values.shape[1] > 0 and values.dtype.kind != "b":
        native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
        flat = pa.array(native.reshape(-1))
        item = pa.field("item", flat.type, nullable=False)
        return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, values.shape[1]))
    elif values.ndim != 1:
        raise ValueError(f"{where} has shape {values.shape}; expected [N], or [N, C] numbers")
    else:
        array = pa.array(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
    if array.null_count:
        raise ValueError(f"{where} has {array.null_count} missing values; say NaN or '' instead")
    kinds = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    if not any(kind(array.type) for kind in kinds):
        raise TypeError(f"{where} holds {array.type}; expected text, bools, integers or floats")
    return array


def _plain(where: str, value: Any) -> Any:
    """`value` in the types JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        for label in value:
            if not isinstance(label, str):
                raise TypeError(f"{where}: name {label!r} is not a string")
        return {label: _plain(f"{where}.{label}", item) for label, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{where}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold; keep None or a string")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{where} is {type(value).__name__}; JSON holds text, numbers, lists, mappings")
