"""No secret that is in an address or the environment is in a store, or in what is printed."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

CANARY = "c4n4ry"
ENVIRONMENT = (
    "RAY_AUTH_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
)


QUICK = [
    f"http://ann:{CANARY}@127.0.0.1:9",
    f"ann:{CANARY}@host:5000",
    f"http:ann:{CANARY}@host",
]
SLOW = [
    f"http://{CANARY}@127.0.0.1:9",
    f"http://127.0.0.1:9/?token={CANARY}",
    f"postgresql://ann:{CANARY}@127.0.0.1:9/x",
    f"postgresql://ann@127.0.0.1:9/x?password={CANARY}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D{CANARY}",
    f"http:/ann:{CANARY}@host:5000",
    f"postgresql:ann:{CANARY}@host/x",
    f"databricks://ann:{CANARY}@host",
]


def chain(error: BaseException | None) -> list[str]:
    """What a traceback shows of an error and of those before it."""
    said = []
    while error is not None:
        said.append(str(error))
        before = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or before
    return said


def told_in(folder: Path) -> list[Path]:
    """The files that hold the canary, in their bytes or in their columns once decompressed."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".yaml":
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += pd.read_parquet(path).to_csv().encode()
            found += [path] if CANARY.encode() in content else []
    return found


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [f"x{CANARY}"] * 1000})
    frame.to_parquet(tmp_path / "a.parquet", compression="zstd")
    assert told_in(tmp_path) == [tmp_path / "a.parquet"]


@pytest.mark.parametrize("debug", [(), pytest.param(("--debug",), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "uri",
    [
        *QUICK,
        *(pytest.param(uri, marks=pytest.mark.slow) for uri in SLOW),
    ],
)
def test_a_secret_is_nowhere_in_store_and_output(
    done: Any, monkeypatch: pytest.MonkeyPatch, uri: str, debug: tuple[str, ...]
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, CANARY)
    said = []
    for words in (
        ["run", done.file(seeds=[0]), "--inline"],
        ["history"],
        ["history", "--rebuild"],
    ):
        options = ["--store", done.store, "--tracking-uri", uri, *debug]
        try:
            said.append(done.command(*words, *options).text)
        except Exception as error:  # as --debug has it
            assert debug
            said += chain(error)
    assert CANARY not in "".join(said)
    assert not told_in(done.store)


@pytest.mark.parametrize("option", ["--tracking-uri", "--study-uri"])
@pytest.mark.parametrize(
    "uri", [f"ann:{CANARY}@host/x", f"postgresql:ann:{CANARY}@host/x", f"http:/ann:{CANARY}@host"]
)
def test_a_mistyped_address_with_a_secret_is_not_sent(place: Any, option: str, uri: str) -> None:
    address = "http://127.0.0.1:9"  # nobody is there: what is not refused before is code 1 or 2
    tune = ["--tune"] if option == "--study-uri" else []
    said = place.command("submit", place.file(), *tune, "--address", address, option, uri)
    assert said.code == 2, said.text
    assert option in said.text
    assert CANARY not in said.text
