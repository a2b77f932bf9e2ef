"""Questions in SQL about a store, answered by DuckDB: only reading, shut off from the world.

Two lines give a pandas frame, wherever a program of yours runs:

    from storage.queries import query

    frame = query("sfumato-store", "SELECT * FROM tradeoff WHERE experiment = 'quickstart'")

Besides the tables there are ready views, `READY`; `catalogue` tells of all. Times are UTC.
"""

import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs

from storage._schemas import SCHEMAS, TEXT, TIME
from storage._views import ABOUT, READY
from storage.census import check_store
from storage.tables import Tables, view_schema
from storage.working import working_copy

__all__ = ["READY", "ask", "catalogue", "connect", "find_tables", "query"]

_BATCH = 100_000
# Views of cells, and what shows that whoever asks them tells settings apart.
_OF_CELLS = re.compile(
    r"\b(cells|results|utility|worst|gates|inversion|attribute|mean_results|mean_utility|"
    r"mean_inversion|mean_attribute|tradeoff)\b",
    re.IGNORECASE,
)
_APART = re.compile(r"(?<!\()\*|\b(current|form|settings|service|task_key)\b", re.IGNORECASE)
_MIXED = (
    "some rows belong to settings that their experiment was run with before: WHERE current leaves "
    "them out, the column settings tells them apart"
)
# A pivot whose values must first be looked up is several statements in one.
_READS = ("SELECT", "EXPLAIN", "MULTI")
_STREAM_BROKE = "reading the stream registered as"
_CLOSED = "file system operations are disabled by configuration"


def query(store: Path | str, sql: str) -> pd.DataFrame:
    """The answer to one statement that reads, as a frame.

    Args:
        store: the folder of the store.
        sql: SELECT, WITH, FROM, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN.

    Raises:
        ValueError: there is no store, or as `ask`. Damaged parts are warned of.
    """
    tables = find_tables(store)
    frame: pd.DataFrame = ask(tables, sql).to_pandas()
    for problem in tables.problems:
        warnings.warn(problem, stacklevel=2)
    return frame


def find_tables(store: Path | str) -> Tables:
    """The tables of a store: a folder, or an URI as `working_copy` takes it.

    Raises:
        ValueError: there is no store.
    """
    root = working_copy(store) if isinstance(store, str) and "://" in store else Path(store)
    check_store(root)
    return Tables(root / "tables")


def ask(tables: Tables, sql: str, first: int | None = None) -> Any:
    """The answer to one statement that reads, as an Arrow table.

    Ctrl-C stops it. Parts found damaged are set aside and listed in `tables.problems`; the answer
    is over what is sound. That it may mix settings is told there too.

    Args:
        tables: what is asked.
        sql: as `query`.
        first: no more rows than these; the rest is not computed where DuckDB can help it.

    Raises:
        ValueError: another statement, or DuckDB's refusal: a fault in the SQL, an unknown view or
            column, files or network asked for, more memory than half of the machine's.
    """
    _check(sql)
    again = True
    while True:
        try:
            answer = _answer(tables, sql, first)
            if _may_mix(tables, sql):
                tables.problems.append(_MIXED)
            return answer
        except duckdb.Error as error:
            # A part of scores was damaged, or replaced by another run while being read.
            if not (again and _STREAM_BROKE in str(error)):
                raise ValueError(_explained(str(error), sql)) from error
            keys = [path.stem.removeprefix("part-") for path in tables.parts("scores")]
            tables.lacking("scores", keys)
            again = False


def connect(tables: Tables, scores: bool = True) -> Any:
    """An in-memory DuckDB whose views are the tables, shut off from files and network.

    Nothing that SQL can say changes the store. A view is read when first asked, and kept; `scores`
    is read from its parts each time, and a damaged page stops the statement.

    Args:
        tables: what is asked.
        scores: whether scores are likely asked; else they are found only when they are.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": "50%",
            "temp_directory": "",  # what exceeds the memory fails instead of filling a disk
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_persistent_secrets": "false",
        },
    )
    for view in SCHEMAS:
        as_set = view == "scores" and scores
        connection.register(view, _scores(tables) if as_set else _Lazy(tables, view))
    for view, sql in READY.items():
        connection.execute(f"CREATE VIEW {view} AS {sql}")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def catalogue() -> list[tuple[str, str, int]]:
    """(name, what it holds, number of columns) of every table and view."""
    with connect(Tables(Path())) as connection:
        count = "SELECT table_name, count(*) FROM duckdb_columns() WHERE NOT internal GROUP BY ALL"
        counts = dict(connection.execute(count).fetchall())
    return [(view, ABOUT.get(view, ""), counts[view]) for view in [*SCHEMAS, *READY]]


class _Lazy:
    """A table that DuckDB gets when it asks: reading thousands of parts takes a while."""

    def __init__(self, tables: Tables, view: str) -> None:
        self._tables, self._view = tables, view
        self._rows: Any = None

    def __arrow_c_schema__(self) -> Any:
        return _naive(view_schema(self._view)).__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        if self._rows is None:
            rows = self._tables.view(self._view)
            self._rows = rows.cast(_naive(rows.schema))
        return self._rows.__arrow_c_stream__(requested_schema)


def _naive(schema: Any) -> Any:
    """Times without their zone: DuckDB hands zoned ones to Python only where pytz is installed."""
    naive = pa.timestamp("us")
    return pa.schema([f.with_type(naive) if f.type == TIME else f for f in schema])


def _scores(tables: Tables) -> Any:
    """All scores as a data set that is read when asked; a part without a footer is left out.

    DuckDB's own reader of Parquet is faster, but does not look at the checksums of pages.
    """
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    # The key is one word repeated; as text it is most of the bytes that are handed over.
    schema = SCHEMAS["scores"].set(0, pa.field("task_key", pa.dictionary(pa.int32(), TEXT)))
    form = ds.ParquetFileFormat(
        dictionary_columns=["task_key"], default_fragment_scan_options=checked
    )
    disk = pyarrow.fs.LocalFileSystem()
    fragments = []
    for path in tables.parts("scores"):
        fragment = form.make_fragment(str(path), disk)
        try:
            fragment.ensure_complete_metadata()
            fragments.append(fragment)
        except (pa.ArrowException, OSError):
            tables.lacking("scores", [path.stem.removeprefix("part-")])
    return ds.FileSystemDataset(fragments, schema, form, filesystem=disk)


def _check(sql: str) -> None:
    """Refuse all but one statement that reads."""
    try:
        kinds = [statement.type.name for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        raise ValueError(_explained(str(error), sql)) from error
    if not kinds:
        raise ValueError("there is no statement in the query; `SHOW TABLES` is one")
    if len(kinds) > 1:
        raise ValueError(f"a query is one statement, not {len(kinds)}; send them one by one")
    if kinds[0] not in _READS:
        raise ValueError(
            f"{kinds[0].replace('_', ' ')} is refused: queries only read. Begin with SELECT, WITH, "
            "FROM, PIVOT, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN; to keep an answer use "
            "--format and --out, or the frame"
        )


def _may_mix(tables: Tables, sql: str) -> bool:
    """Whether an answer may take rows of earlier settings for rows of the current ones."""
    if not re.search(r"\bselect\b", sql, re.IGNORECASE) or _APART.search(sql):
        return False
    return bool(_OF_CELLS.search(sql)) and False in tables.view("cells")["current"].to_pylist()


def _answer(tables: Tables, sql: str, first: int | None) -> Any:
    scores = "scores" in sql.lower()
    with connect(tables, scores) as connection, ThreadPoolExecutor(1) as pool:
        # EXPLAIN ANALYZE runs what it explains.
        connection.execute("BEGIN TRANSACTION READ ONLY")
        # In a thread of its own, as DuckDB does not look for Ctrl-C between batches of rows.
        answer = pool.submit(_fetch, connection, sql, first)
        try:
            return answer.result()
        finally:
            # Another signal must not leave this loop: the pool would wait for the thread for good.
            while not answer.done():
                try:
                    wait([answer], timeout=0.05)
                    connection.interrupt()
                except KeyboardInterrupt:
                    continue


def _fetch(connection: Any, sql: str, first: int | None) -> Any:
    limit = "SELECT parse_formatted_bytes(current_setting('memory_limit'))"
    room = connection.execute(limit).fetchall()[0][0] // 2
    reader = connection.sql(sql).to_arrow_reader(_BATCH)
    batches, num, held = [], 0, 0
    for batch in reader:
        batches.append(batch)
        num, held = num + len(batch), held + batch.nbytes
        if held > room:
            raise ValueError(
                f"the answer is larger than {room / 1e9:.1f} GB, a quarter of the memory, after "
                f"{num} rows; aggregate, or add a LIMIT"
            )
        if first is not None and num >= first:
            break
    rows = pa.Table.from_batches(batches, reader.schema).slice(0, first)
    return rows.rename_columns(_distinct(rows.column_names))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which none is twice: `SELECT a, a` gives a and a_1."""
    taken: list[str] = []
    for name in names:
        free, number = name, 0
        while free in taken or (number and free in names):
            number += 1
            free = f"{name}_{number}"
        taken.append(free)
    return taken


def _explained(error: str, sql: str) -> str:
    """DuckDB's message, and what would be right."""
    error = re.sub(r'\nDid you mean "(pg|duckdb|sqlite)_[^"]*"\??', "", error.strip())
    views = [*SCHEMAS, *READY]
    if error.startswith("Out of Memory"):
        error = error.splitlines()[0] + "; aggregate, or ask for fewer rows or columns"
    elif _CLOSED in error:
        error += "\nqueries reach the views of the store and nothing else"
    elif "read-only mode" in error:
        error += "\nEXPLAIN ANALYZE runs what it explains, and queries only read"
    elif error.startswith("Catalog Error: Table with name"):
        error += f"\nknown: {', '.join(views)}"
    elif error.startswith("Binder Error") and "column" in error:
        asked = [view for view in views if re.search(rf"\b{view}\b", sql, re.IGNORECASE)]
        lines = [f"for its columns: DESCRIBE {view}" for view in asked]
        error = "\n".join([error, *lines])
    return error
