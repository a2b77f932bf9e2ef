"""A part of a table as a file: rows of one task or form, sealed by a digest of their values."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage._disk import unreadable
from storage._schemas import BOOL, REAL, SCHEMAS, TIME, WHOLE, key_column

SEAL = "rows_sha256"
"""The entry of a file's metadata that holds the digest: page checksums leave footers out."""


class PartDamagedError(ValueError):
    """What a file holds is no part, or not the one its name says."""


def read_part(table: str, path: Path) -> Any:
    """The rows of a part, in the columns of today's schema.

    Raises:
        FileNotFoundError: there is no such part.
        PartDamagedError: it is not what was written.
    """
    schema = SCHEMAS[table]
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise PartDamagedError("it is a folder") from error
    except OSError as error:
        if unreadable(error):
            raise PartDamagedError(str(error.strerror)) from error
        raise
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        part = file.read(use_threads=False)  # threads cost more than a row is worth
        written = part.schema
        seal = (written.metadata or {}).get(SEAL.encode(), b"").decode()
        found = digest(part)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PartDamagedError(str(error)) from error
    if seal != found:
        raise PartDamagedError("its rows do not match their checksum")
    columns = []
    for field in schema:
        if field.name not in written.names:  # written before the column was added
            columns.append(pa.nulls(len(part), field.type))
        elif written.field(field.name).type != field.type:
            raise PartDamagedError(f"column {field.name} holds {written.field(field.name).type}")
        else:
            columns.append(part[field.name])
    rows = pa.Table.from_arrays(columns, schema=schema)
    owned: dict[str, str | None] = {key_column(table): path.stem.removeprefix("part-")}
    if table == "cells":
        name, _, form = path.stem.partition("@")
        owned = {"experiment": name, "form": form or None}
    for owner, expected in owned.items():
        if set(rows[owner].to_pylist()) - {expected}:
            raise PartDamagedError(f"its {owner} is not the one in its name")
    return rows


def digest(table: Any) -> str:
    """SHA-256 over names and values."""
    sha256 = hashlib.sha256(repr(table.column_names).encode())
    for column in table.columns:
        if column.type == TIME:
            column = column.cast(WHOLE)
        if column.null_count == 0 and column.type in (REAL, WHOLE, BOOL):
            values = column.to_numpy().tobytes()
        else:
            values = repr(column.to_pylist()).encode()
        sha256.update(b"%d:" % len(values) + values)
    return sha256.hexdigest()
