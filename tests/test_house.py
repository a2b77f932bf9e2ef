"""The house checks: what CI judges is what `make test` ran."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "tasks", "defenses", "attacks", "storage", "cluster")
MAPPED = ("orchestrator", "tasks", "storage", "cluster")


def check(*command: str) -> None:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}{ran.stderr}"


def test_lint_and_format():
    check(sys.executable, "-m", "ruff", "check", ".")
    check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_types():
    check(sys.executable, "-m", "mypy")


def test_imports_point_down_and_heavy_packages_have_one_home():
    check(str(Path(sys.executable).parent / "lint-imports"))


@pytest.mark.parametrize("package", MAPPED)
def test_map_lists_exactly_the_files(package):
    text = (ROOT / package / "__init__.py").read_text()
    lines = text.split('"""')[1].strip().splitlines()
    listed = {line.split()[0] for line in lines[1:] if line.strip()}
    files = {p.name for p in (ROOT / package).glob("*.py") if not re.match(r"_(?!_main)", p.name)}
    assert listed == files


@pytest.mark.parametrize("package", MAPPED)
def test_map_imports_nothing(package):
    text = (ROOT / package / "__init__.py").read_text()
    assert text.strip().endswith('"""'), "a package map is a docstring and nothing else"


def test_packages_are_listed_one_by_one():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["setuptools"]["packages"] == list(PACKAGES)
    assert "Private :: Do Not Upload" in config["project"]["classifiers"]


def test_tests_are_no_packages_and_packages_have_no_sub_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    for package in PACKAGES:
        assert not list((ROOT / package).glob("*/__init__.py"))


def test_every_plugin_has_a_test_file():
    for package in ("attacks", "defenses"):
        names = {p.stem for p in (ROOT / package).glob("*.py") if not p.name.startswith("_")}
        for name in names - {"base"}:
            found = list((ROOT / "tests" / package).glob(f"test_{name}*.py"))
            assert found or name == "none", f"{package}/{name}.py has no tests"


def test_constraints_pin_every_dependency():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*config["dependencies"], *config["optional-dependencies"]["test"]]
    wanted += [*config["optional-dependencies"]["cpu"], *config["optional-dependencies"]["gpu"]]
    names = {re.split(r"[\[><=]", name)[0].lower() for name in wanted}
    assert names - pinned == set()
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()


def test_no_pickle_no_unsafe_loading():
    unsafe = re.compile(r"\bpickle\.|torch\.load\((?!.*weights_only=True)|yaml\.load\(|shell=True")
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                assert not unsafe.search(line), f"{path}:{number}: {line.strip()}"
