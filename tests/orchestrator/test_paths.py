"""A relative path in a file is meant from the file's folder, one on the command line from here."""

import os

import numpy as np
import pytest
import yaml

from orchestrator.check import load_experiment
from orchestrator.source import ConfigError

SIZES = {"members": 40, "reference": 40, "nonmembers": 40}


def experiment(path):
    data = {"name": "own", "path": path, "split": SIZES}
    return yaml.safe_dump({"datasets": [data], "attacks": ["gap"]})


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A project with an experiment and data, and another folder from which commands are given."""
    project, here = tmp_path / "project", tmp_path / "here"
    for folder, num in ((project / "data", 150), (here, 130)):
        folder.mkdir(parents=True)
        rng = np.random.default_rng(num)
        np.savez(folder / "own.npz", x=rng.normal(size=(num, 3)), y=np.arange(num) % 2)
    (project / "own.yaml").write_text(experiment("data/own.npz"))
    monkeypatch.chdir(here)
    return project, here


def path_of(file, *settings):
    return load_experiment(str(file), settings).datasets[0].source.path


@pytest.mark.parametrize("how", ["absolute", "relative", "link"])
def test_the_folder_of_the_file_counts(folders, how):
    project, here = folders
    file = project / "own.yaml"
    if how == "relative":
        file = os.path.relpath(file, here)
    if how == "link":
        (here / "project").symlink_to(project)
        file = "project/own.yaml"
    found = path_of(file)
    assert os.path.isabs(found)
    assert os.path.samefile(found, project / "data" / "own.npz")


def test_what_is_set_is_meant_from_here(folders):
    project, here = folders
    file = project / "own.yaml"
    for setting in (
        "datasets[0].path=own.npz",
        f"datasets=[{{name: own, path: own.npz, split: {SIZES}}}]".replace("'", ""),
    ):
        assert path_of(file, setting) == str(here / "own.npz")
    # Other settings leave it alone.
    assert path_of(file, "seeds=[1]") == str(project / "data" / "own.npz")


def test_home_and_absolute_paths_stay_what_they_are(folders, monkeypatch):
    project, here = folders
    monkeypatch.setenv("HOME", str(here))
    for path in ("~/own.npz", str(here / "own.npz")):
        (project / "own.yaml").write_text(experiment(path))
        assert path_of(project / "own.yaml") == str(here / "own.npz")


def test_an_experiment_as_resolved_finds_its_data_from_anywhere(folders, tmp_path):
    project, _ = folders
    first = load_experiment(str(project / "own.yaml"))
    copy = tmp_path / "kept" / "experiment.yaml"
    copy.parent.mkdir()
    copy.write_text(yaml.safe_dump(first.resolved()))
    assert load_experiment(str(copy)) == first


@pytest.mark.parametrize(("name", "why"), [("gone.npz", "there is no file"), ("x" * 300, "long")])
def test_errors_name_the_path_that_was_tried(folders, name, why):
    project, here = folders
    (project / "own.yaml").write_text(experiment(name))
    with pytest.raises(ConfigError, match=why) as error:
        load_experiment(str(project / "own.yaml"))
    assert f"{project}/{name}" in str(error.value)
    with pytest.raises(ConfigError) as error:
        load_experiment(str(project / "own.yaml"), ["datasets[0].path=none.npz"])
    assert f"no file {here}/none.npz; check `path`" in str(error.value)


@pytest.mark.parametrize("path", [3, None, "", [1]])
def test_what_is_no_path_is_left_to_the_checks(folders, path):
    project, _ = folders
    (project / "own.yaml").write_text(experiment(path))
    with pytest.raises(ConfigError):
        load_experiment(str(project / "own.yaml"))
