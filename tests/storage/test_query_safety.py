"""Queries reach nothing but the tables, end when told to, and refuse with a reason."""

import contextlib
import os
import signal
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.queries import _fetch, ask, connect
from storage.tables import Tables


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """One for all: no test may change it, and most make sure of that."""
    tables = Tables(tmp_path_factory.mktemp("safe") / "store" / "tables")
    key = "ab" * 32
    tables.write("results", key, [{"dataset": "synth_hard", "seed": 3, "attack": "gap"}])
    cell = {"label": "raw", "kind": "attack", "task_key": key, "attack": "gap", "status": "done"}
    tables.write_cells("mine", [cell])
    return tables


def rows(tables, sql):
    return list(zip(*ask(tables, sql).to_pydict().values(), strict=True))


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


READS_FILES = [
    "SELECT * FROM read_csv('{here}/a.csv')",
    "SELECT * FROM read_csv_auto('{here}/*.csv')",
    "SELECT * FROM read_text('{here}/a.csv')",
    "SELECT * FROM read_blob('{here}/a.csv')",
    "SELECT * FROM read_json('{here}/a.json')",
    "SELECT * FROM sniff_csv('{here}/a.csv')",
    "SELECT * FROM '{here}/a.csv'",
    'SELECT * FROM "{here}/a.csv"',
    "SELECT * FROM '{here}/a.json'",
    "SELECT * FROM '{here}/a.parquet'",
    "SELECT * FROM read_parquet(['{here}/a.parquet'])",
    "SELECT * FROM parquet_metadata('{here}/a.parquet')",
    "SELECT * FROM parquet_schema('{here}/a.parquet')",
    "SELECT * FROM parquet_kv_metadata('{here}/a.parquet')",
    "SELECT * FROM parquet_file_metadata('{here}/a.parquet')",
    "SELECT * FROM glob('{here}/*')",
    "SELECT * FROM query('SELECT * FROM read_text(''{here}/a.csv'')')",
    "SELECT * FROM query_table(['{here}/a.parquet'])",
    "DESCRIBE '{here}/a.csv'",
    "SUMMARIZE '{here}/a.csv'",
    "EXPLAIN ANALYZE SELECT * FROM '{here}/a.csv'",
    "SELECT * FROM secret",
]
REACHES_OUT = [
    "SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')",
    "SELECT * FROM 'https://127.0.0.1:1/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM sqlite_scan('{here}/a.db', 'a')",
    "SELECT * FROM postgres_scan('host=127.0.0.1', 'a', 'b')",
    "SELECT * FROM read_duckdb('{here}/a.db')",
    "SELECT * FROM duckdb_extensions()",
    "SELECT * FROM enable_logging(storage='file', storage_path='{here}/log')",
    "SELECT * FROM enable_profiling(save_location='{here}/profile')",
]
WRITES = [
    "COPY results TO '{here}/out.csv'",
    "COPY (SELECT 1) TO '{here}/out.parquet'",
    "COPY (PIVOT results ON attack USING count(*)) TO '{here}/out.csv'",
    "EXPLAIN ANALYZE COPY results TO '{here}/out.csv'",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "EXPORT DATABASE '{here}/out'",
    "IMPORT DATABASE '{here}/out'",
    "ATTACH '{here}/out.db'",
    "ATTACH ':memory:' AS other",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CALL enable_profiling()",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET memory_limit = '1TB'",
    "SET VARIABLE a = 1",
    "RESET enable_external_access",
    "SET allowed_directories = ['/']",
    "SET temp_directory = '{here}'",
    "SET python_enable_replacements = true",
    "CREATE TABLE t (a INT)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE MACRO results() AS TABLE SELECT 1",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
    "DROP VIEW tradeoff",
    "ALTER VIEW tradeoff RENAME TO t",
    "COMMENT ON VIEW tradeoff IS 'a'",
    "DELETE FROM results",
    "UPDATE results SET auc = 0.5",
    "INSERT INTO scores SELECT * FROM scores",
    "MERGE INTO results USING scores ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE results",
    "VACUUM",
    "CHECKPOINT",
    "BEGIN",
    "COMMIT",
    "PREPARE a AS SELECT 1",
    "EXECUTE a",
    "SELECT 1; DROP VIEW tradeoff",
    "SELECT 1; SELECT 2",
    "",
    " ; -- nothing",
]


@pytest.fixture(scope="module")
def lures(filled):
    """Files that are there to be read, beside a store."""
    here = filled.root.parent.parent
    with duckdb.connect() as free:
        for name in ("a.csv", "a.json", "a.parquet"):
            free.execute(f"COPY (SELECT 1 AS a) TO '{here / name}'")
    return here


@pytest.mark.parametrize("sql", READS_FILES)
def test_no_file_is_read(filled, lures, sql):
    sql, secret = sql.format(here=lures), filled.frame("results")
    with duckdb.connect() as free:
        free.sql(sql).to_arrow_table()  # but for us it would be
    with pytest.raises(ValueError, match=r"file system operations|does not exist"):
        ask(filled, sql)
    with connect(filled) as connection, pytest.raises(duckdb.Error):
        connection.execute(sql).fetchall()
    assert len(secret) == 1  # a Python variable DuckDB would find by its name


@pytest.mark.parametrize("sql", REACHES_OUT + WRITES)
def test_everything_but_reading_the_tables_is_refused(filled, lures, sql):
    before = files(lures)
    with pytest.raises(ValueError, match=r"\w"):
        ask(filled, sql.format(here=lures))
    assert files(lures) == before


@pytest.mark.parametrize("sql", [sql for sql in READS_FILES + REACHES_OUT + WRITES if "{" in sql])
def test_a_connection_by_itself_reaches_no_file(filled, lures, sql):
    before = files(lures)
    with connect(filled) as connection, pytest.raises(duckdb.Error):
        connection.execute(sql.format(here=lures)).fetchall()
    assert files(lures) == before


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT * FROM resluts", ['Did you mean "results"', "known: results, utility"]),
        ("SELECT * FROM zzzzzz", ["zzzzzz does not exist", "tradeoff", "scores"]),
        ("SELECT aucc FROM results", ['"auc"', "DESCRIBE results"]),
        ("SELEC 1", ["syntax error", "SELEC"]),
        ("SELECT 'a'::INT", ["Could not convert string 'a'"]),
        ("SELECT $a", ["parameters: a"]),
        ("DROP VIEW results", ["DROP is refused", "SELECT"]),
        ("SELECT 1; SELECT 2", ["not 2"]),
        ("", ["SHOW TABLES"]),
        ("SELECT * FROM '/etc/passwd'", ["does not exist", "known"]),
        ("SELECT * FROM read_text('/etc/passwd')", ["/etc/passwd", "nothing else"]),
    ],
)
def test_a_refusal_names_what_would_be_right(filled, sql, told):
    with pytest.raises(ValueError, match=r"\w") as caught:
        ask(filled, sql)
    for words in told:
        assert words in str(caught.value)
    assert "pg_" not in str(caught.value)


WORDS = "SELECT FROM results scores WHERE ( ) , * ; auc = 'a' 1 -- /* COPY TO \" $a PIVOT ON \0 é"


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(WORDS.split(" ")), max_size=12).map(" ".join)
    | st.text(st.characters(), max_size=5)
)
def test_any_text_is_answered_or_refused(sql):
    with contextlib.suppress(ValueError):
        ask(Tables(Path("nowhere")), sql)


def test_an_answer_that_does_not_fit_is_refused():
    with (
        duckdb.connect(config={"memory_limit": "20MB"}) as small,
        pytest.raises(ValueError, match="LIMIT"),
    ):
        _fetch(small, "FROM range(1000000000000)", None)


def test_nothing_spills_to_disk(filled):
    sql = "SELECT current_setting('temp_directory'), current_setting('enable_external_access')"
    assert rows(filled, sql) == [("", False)]


def test_ctrl_c_stops_an_endless_query(filled):
    class Impatient(Tables):
        """Sends Ctrl-C when DuckDB, and so the query, has begun."""

        def view(self, view, experiment=None):
            os.kill(os.getpid(), signal.SIGINT)
            return super().view(view, experiment)

    endless = """SELECT count(*) FROM range(10000000) a, range(10000000) b,
        (SELECT count(*) AS num FROM cells) WHERE hash(a.range * b.range + num) = 1"""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(Impatient(filled.root), endless)
    finally:
        signal.signal(signal.SIGINT, before)
    assert rows(filled, "SELECT count(*) FROM cells") == [(1,)]
