"""What a process says it computes with."""

import json
import subprocess

import numpy as np
import pytest
import torch

from tasks.versions import _commit, installed, software


def git(folder, *args):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init")
    (folder / "a.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_the_versions_are_those_of_the_modules_in_use():
    packages = software()["packages"]
    assert packages["numpy"] == np.__version__
    assert packages["torch"] == torch.__version__
    assert json.loads(json.dumps(software())) == software()
    assert software() is software()


def test_what_is_not_installed_is_left_out():
    assert set(installed("numpy", "no-such-package-at-all")) == {"numpy"}


def test_a_commit_and_changes_it_does_not_have(tree):
    commit = _commit(tree)
    assert commit is not None
    assert len(commit) == 40
    (tree / "a.py").write_text("2\n")
    assert _commit(tree) == f"{commit}-dirty"
    git(tree, "commit", "-am", "second")
    git(tree, "tag", "v1")
    assert _commit(tree) not in (None, commit, "v1")


def test_a_repository_we_are_merely_inside_of_is_not_ours(tree):
    inside = tree / "venv" / "site-packages"
    inside.mkdir(parents=True)
    assert _commit(inside) is None


def test_a_hook_of_another_repository_does_not_lead_astray(tree, tmp_path, monkeypatch):
    commit = _commit(tree)
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert _commit(tree) == commit
