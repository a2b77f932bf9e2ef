"""Several studies beside each other, and what is said of one whose trials are few."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.compare import load_studies
from orchestrator.resume import Store
from orchestrator.source import ConfigError

RAW: dict[str, Any] = {
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 16, "classes": 5, "clusters": 4},
            "split": {"members": 160, "reference": 160, "nonmembers": 160},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 8, "hidden": [16]},
    "attacks": [{"name": "metric", "statistic": "entropy"}],
}
TUNE: dict[str, Any] = {
    "attacks": ["gap", {"name": "metric", "statistic": "confidence"}],
    "objectives": ["attack_accuracy", "l1_distortion"],
    "sampler": "random",
    "judged": 1,
}
SPACES: dict[str, Any] = {
    "random_noise": {"sigma": {"low": 0.0, "high": 1.0}},
    "temperature": {"temperature": {"low": 0.5, "high": 5.0}},
}


def written(folder: Path, **compared: Any) -> str:
    """Two studies beside each other in files; gives the path of the file that compares them."""
    for name, space in SPACES.items():
        tune = {**TUNE, "defense": name, "space": space, "trials": 9}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**RAW, "name": name, "tune": tune}))
    path = folder / "both.yaml"
    made = {"compare": [f"{name}.yaml" for name in SPACES], **compared}
    path.write_text(yaml.safe_dump(made))
    return str(path)


def told(*args: object) -> tuple[int, str]:
    ended = CliRunner().invoke(app, [str(arg) for arg in args])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert "Traceback" not in ended.output
    return ended.exit_code, " ".join(ended.output.split())


def test_studies_are_found_beside_the_file_and_have_its_number_of_trials(tmp_path: Path) -> None:
    comparison, found = load_studies(written(tmp_path, trials=4), [], None)
    assert comparison is not None
    assert comparison.name == "both"
    assert [one.name for one in found] == ["random_noise", "temperature"]
    assert [one.tune.trials for one in found if one.tune] == [4, 4]
    _, found = load_studies(written(tmp_path), ["tune.trials=3", "seeds=[7]"], None)
    assert [(one.tune.trials, one.seeds) for one in found if one.tune] == [(3, [7])] * 2
    _, found = load_studies(written(tmp_path, trials=4), ["tune.trials=3"], None)
    assert [one.tune.trials for one in found if one.tune] == [3, 3]
    comparison, (alone,) = load_studies(str(tmp_path / "temperature.yaml"), [], None)
    assert comparison is None
    assert alone.name == "temperature"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"compare": ["temperature.yaml"]}, "at least 2 items"),
        ({"compare": "temperature.yaml"}, "list"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"trails": 3}, "trails"),
        ({"compare": ["temperature.yaml", "tune_purifer_location"]}, "tune_purifier_location"),
        ({"compare": ["temperature.yaml", "absent.yaml"]}, "absent.yaml"),
        ({"compare": ["temperature.yaml", "quickstart"]}, "there is no block `tune`"),
        ({"compare": ["temperature.yaml", "both.yaml"]}, "both|compar"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path: Path, content: Any, said: str) -> None:
    file = written(tmp_path, **content)
    with pytest.raises(ConfigError) as caught:
        load_studies(file, [], None)
    assert said.split("|")[-1] in str(caught.value)
    code, shown = told("tune", file, "--store", tmp_path / "store", "--inline")
    assert code == 2
    assert not (tmp_path / "store" / "artifacts").exists()
    assert "fault of Sfumato" not in shown


def test_two_studies_are_searched_and_drawn_in_one(tmp_path: Path) -> None:
    file, store = written(tmp_path, trials=5), tmp_path / "store"
    args = ("--store", store, "--inline")
    code, said = told("tune", file, *args)
    assert code == 0, said
    for name in SPACES:
        assert f"study {name}@" in said
        assert (store / "experiments" / name / "chosen.yaml").is_file()
    assert "both: fronts beside each other" in said
    assert (store / "experiments" / next(iter(SPACES)) / "figures" / "both.png").is_file()
    trials = Store(store).tables.frame("trials")
    assert trials.groupby("experiment").size().to_dict() == {"random_noise": 5, "temperature": 5}

    code, said = told("tune", file, *args, "--explain")
    assert code == 0
    assert said.count("what mattered in 5 complete trials") == 2
    assert "sigma" in said
    assert "temperature" in said
    code, said = told("run", file, *args)
    assert code == 2
    assert "is a comparison of studies" in said

    code, said = told("query", "SELECT experiment, chosen, optimism FROM fooled", "--store", store)
    assert code == 0
    assert "random_noise" in said


def test_few_trials_are_told_to_be_few_and_none_to_be_none(tmp_path: Path) -> None:
    written(tmp_path)
    file, store = tmp_path / "temperature.yaml", tmp_path / "store"
    args = ("--store", store, "--inline", "--set", "tune.trials=2")
    code, said = told("tune", file, *args, "--explain")
    assert code == 2
    assert "there is no store" in said
    assert not store.exists()
    assert told("tune", file, *args, "--no-judge")[0] == 0
    code, said = told("tune", file, *args, "--explain")
    assert code == 0
    assert "what mattered" not in said or "2 complete trials" in said
    assert "5" in said
    assert "100" not in said
