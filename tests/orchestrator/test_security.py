"""What a hostile experiment file or data can do: be refused, and nothing beyond the store."""

import hashlib
import io
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator._canvas import drawing, save
from orchestrator.check import load_experiment
from orchestrator.forms import describe, form_of
from orchestrator.plan import make_plan
from orchestrator.resume import Store, cell_rows
from orchestrator.source import ConfigError

ESCAPE = "\x1b]0;mine\x07\x1b[2J\u202e"
SOON_S = 10.0  # on a busy machine; what is refused at once takes less than a second


def listing(folder: Path) -> dict[str, str]:
    """Every path below a folder with its content's digest; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            whole = path.is_file() and not path.is_symlink()
            told = hashlib.sha256(path.read_bytes()).hexdigest() if whole else "no file"
            found[str(path.relative_to(folder))] = told
    return found


class Touch:
    """Unpickled, it writes a file: the canary."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


HOSTILE = [
    "../../evil",
    "/etc/evil",
    "a/../../evil",
    "..",
    ".hidden",
    "nul\0byte",
    "two\nlines",
    ESCAPE,
    "con",
    "NUL.txt",
    "x" * 5000,
    "\u0430dmin",  # a Cyrillic a
    "~root/evil",
    "~nobody\0/x",
    "$(touch evil)",
    "`touch evil`; touch evil",
    "'; DROP TABLE results; --",
    "<script>alert(1)</script>",
    "[red]markup[/red]",
    "{0.__class__}",
    "%s%n",
    "\ud800",
    "C:\\evil",
    "file:///etc/passwd",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))


def experiment(place: Path, name: Any, label: Any, dataset: Any, path: Any) -> str:
    """An experiment file with these texts in it."""
    data: dict[str, Any] = {
        "name": dataset,
        "generator": {"rows": 300, "classes": 4, "features": 16},
        "split": {"members": 60, "reference": 60, "nonmembers": 60},
    }
    data |= {} if path is None else {"path": path}
    content = {
        "name": name,
        "datasets": [data],
        "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
        "defenses": [{"name": "prototype", "label": label}],
        "attacks": ["gap"],
    }
    file = place / "hostile.yaml"
    # What UTF-8 has no bytes for is written as an escape, which YAML reads again.
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=texts, label=texts, dataset=st.just("synth_s") | texts, path=st.none() | texts)
@example(name="tiny", label="'; DROP TABLE results; --", dataset="synth_s", path=None)
@example(name="con", label="<script>alert(1)</script>", dataset="synth_s", path=None)
@example(name="tiny", label="x", dataset="synth_s", path="~nobody\0/x")
@example(name="tiny", label="\ud800", dataset="synth_s", path=None)
@example(name="../tiny", label="x", dataset="synth_s", path=None)
def test_whatever_is_named_only_the_store_is_written_to(
    tmp_path: Path, name: str, label: str, dataset: str, path: str | None
) -> None:
    file = experiment(tmp_path, name, label, dataset, path)
    before = beyond(tmp_path)
    try:
        loaded = load_experiment(file)
        plan = make_plan(loaded, None)
        store = Store(tmp_path / "store")
        describe(plan, store)
        store.tables.write_cells(loaded.name, cell_rows(plan, store, {}, {}), form_of(plan))
    except ConfigError as error:
        said = str(error)
    else:
        said = ""
    assert all(line.isprintable() for line in said.split("\n"))
    assert beyond(tmp_path) == before
    assert not (tmp_path.parent / "evil").exists()


def beyond(folder: Path) -> dict[str, str]:
    """Its listing without the store."""
    return {k: v for k, v in listing(folder).items() if k.partition("/")[0] != "store"}


def bomb(top: str) -> str:
    """Ten times ten times … of one value, by aliases."""
    lines = [f"{top}: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{top}{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        bomb("seeds"),
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)),
        "a: &a [*a]",
        "seeds: !!python/object/apply:os.system ['touch CANARY']",
        "!!python/object/new:pathlib.Path ['CANARY']",
        "name: !!python/name:os.system",
        "seeds: " + ":".join(["59"] * 300_000),
        "seeds: 0x" + "f" * 900_000,
        "seeds: " + "9" * 900_000,
        "[" * 900_000,
        "- " * 400_000,
        "? " * 400_000,
        "'" + "a" * 900_000,
        "name: !!binary " + "A" * 900_000,
    ],
    ids=lambda text: text[:24],
)
def test_a_yaml_bomb_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_experiment("bomb.yaml")
    assert time.monotonic() - began < SOON_S
    assert len(str(error.value)) < 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.yaml"]


def thousand(field: str) -> dict[str, list[float]]:
    return {field: [1 + i / 1024 for i in range(1000)]}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"defenses": [{"name": "purifier", "grid": {f"f{i}": [*range(10)] for i in range(9)}}]},
            "spans 1000000000 points",
        ),
        (
            {
                "defenses": [{"name": "purifier", "grid": thousand("label_loss_weight")}],
                "attacks": [{"name": "nsh", "grid": thousand("width")}],
                "seeds": [*range(1000)],
            },
            "asks for 1,001,000,000 results",
        ),
        ({"seeds": [*range(15_000)], "attacks": ["gap", "nsh", "metric"]}, "for 120,000 results"),
        ({"attacks": [{"name": "lira", "num_shadows": 10**9}]}, "attacks[0].num_shadows"),
        ({"attacks": [{"name": "rmia", "num_shadows": 10**9}]}, "attacks[0].num_shadows"),
        ({"defenses": [{"name": "selena", "num_models": 10**9}]}, "defenses[0].num_models"),
    ],
    ids=["grid", "grids", "seeds", "lira", "rmia", "selena"],
)
def test_more_work_than_can_be_listed_is_refused_before_it_is_planned(
    place: Any, keys: dict[str, Any], told: str
) -> None:
    file = place.file(**keys)
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_experiment(file)
    assert time.monotonic() - began < SOON_S
    assert told in str(error.value)


def zipped(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/../"), content)
    return sink.getvalue()


def saved(**arrays: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=True, **arrays)
    return sink.getvalue()


def of_parquet(frame: pd.DataFrame) -> bytes:
    return bytes(frame.to_parquet())


def data_files(canary: Path) -> dict[str, bytes]:
    evil = pickle.dumps(Touch(canary))
    objects = np.empty(200, dtype=object)
    objects[:] = [Touch(canary)] * 200
    y, x = np.arange(200) % 2, np.random.default_rng(0).normal(size=(200, 2))
    return {
        "features.npz": saved(x=objects.reshape(100, 2), y=y[:100]),
        "labels.npz": saved(x=x, y=objects),
        "beside.npz": saved(x=x, y=y, more=objects),
        "bare.npz": evil,
        "bare.parquet": evil,
        "members.npz": zipped(**{"x.npy": evil, "y.npy": evil}),
        "climbing.npz": zipped(**{"x.npy": evil, "a__a__evil.npy": evil}),
        "images.parquet": of_parquet(pd.DataFrame({"label": y, "image": [evil] * 200})),
        "columns.parquet": of_parquet(pd.DataFrame({"label": y, "f": x[:, 0], "b": [evil] * 200})),
        "checkpoint.pt": evil,
        "array.npy": evil,
        "sheet.csv": b"=cmd|' /C touch canary'!A0\n",
    }


@pytest.mark.parametrize("name", list(data_files(Path())))
def test_data_with_code_in_them_are_refused_and_run_nothing(place: Any, name: str) -> None:
    canary = place.folder / "canary"
    (place.folder / name).write_bytes(data_files(canary)[name])
    before = listing(place.folder)
    place.refused(place.own(place.folder / name), "datasets[0]", name)
    assert not canary.exists()
    assert listing(place.folder).keys() - {"tiny.yaml"} == before.keys() - {"tiny.yaml"}


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["pipe", "endless", "circle"])
@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".yaml"])
def test_what_never_ends_is_not_read(place: Any, kind: str, suffix: str) -> None:
    path = place.folder / f"never{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else path)
    said = place.command("plan", path) if suffix == ".yaml" else place.own(path)
    place.refused(said, "never")


def test_a_label_is_text_in_a_figure(tmp_path: Path) -> None:
    label = "<script>alert(1)</script>$\\frac{"
    with drawing(2.0) as figure:
        figure.subplots().set_title(label)
        files = save(figure, tmp_path / "figure")
    svg = next(path for path in files if path.suffix == ".svg").read_text()
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
