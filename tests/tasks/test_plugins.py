"""A plugin is a file; there is nothing to register."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import attacks
import defenses
from attacks.base import Attack
from attacks.gap import Gap
from defenses.base import Defense
from defenses.onehot import OneHot
from tasks import plugins

PACKAGES = {"attacks": (attacks, plugins.attack), "defenses": (defenses, plugins.defense)}
ALL = [(kind, name) for kind in PACKAGES for name in plugins.names(kind)]


@pytest.mark.parametrize("kind", PACKAGES)
def test_names_are_the_public_files(kind: str) -> None:
    files = {path.stem for path in Path(next(iter(PACKAGES[kind][0].__path__))).glob("*.py")}
    public = sorted(name for name in files if name != "base" and not name.startswith("_"))
    assert list(plugins.names(kind)) == public


def test_listing_imports_no_plugin() -> None:
    script = (
        "import sys; from tasks import plugins;"
        "names = [f'{k}.{n}' for k in ('attacks', 'defenses') for n in plugins.names(k)];"
        "print([m for m in ('torch', 'faiss', *names) if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_plugin_loads_and_is_documented(kind: str, name: str) -> None:
    cls = PACKAGES[kind][1](name)
    assert issubclass(cls, Attack if kind == "attacks" else Defense)
    assert plugins.plugin_name(cls) == plugins.plugin_name(cls()) == name
    assert cls is PACKAGES[kind][1](name)
    assert isinstance(cls.VERSION, int)
    assert plugins.summary(cls).endswith((".", ":"))
    assert plugins.source(cls)
    assert "\n" not in plugins.summary(cls) + plugins.source(cls)


def test_the_class_is_the_one_in_the_file() -> None:
    assert plugins.attack("gap") is Gap
    assert plugins.defense("onehot") is OneHot


@pytest.mark.parametrize("name", ["base", "_cvae", "__init__", "", "../attacks/gap", "os"])
def test_what_is_no_plugin_is_refused(name: str) -> None:
    for load in (plugins.attack, plugins.defense):
        with pytest.raises(ValueError, match="Known: "):
            load(name)


def test_a_typo_is_told_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"^'mlleaks' is not an attack. Did you mean 'ml_leaks'\?"):
        plugins.attack("mlleaks")
    with pytest.raises(ValueError, match=r"^'one_hot' is not a defense. Did you mean 'onehot'\?"):
        plugins.defense("one_hot")


@pytest.fixture
def add_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put a file into the attacks package, in a folder of its own."""
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])

    def add(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        plugins.names.cache_clear()

    yield add
    plugins.names.cache_clear()
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"attacks.{file.stem}", None)


CLASS = '''
class {}(Attack):
    """Say.

    Source: a
        paper.

    More.
    """

    VERSION = 1
'''


def test_a_new_file_is_a_plugin(add_attack: Callable[..., None]) -> None:
    helper = "class _Helper(Attack):\n    VERSION = 1\n"
    add_attack("brand_new", "from attacks.base import Attack\n" + helper + CLASS.format("BrandNew"))
    assert "brand_new" in plugins.names("attacks")
    cls = plugins.attack("brand_new")
    assert cls.__name__ == "BrandNew"
    assert plugins.plugin_name(cls()) == "brand_new"
    assert plugins.summary(cls) == "Say."
    assert plugins.source(cls) == "a paper."


@pytest.mark.parametrize("num", [0, 2])
def test_a_file_must_define_one_public_class(add_attack: Callable[..., None], num: int) -> None:
    # Imported classes do not count.
    text = "from attacks.base import Attack\nfrom attacks.gap import Gap\n"
    text += "".join(CLASS.format(f"Class{i}") for i in range(num))
    add_attack(f"has_{num}", text)
    with pytest.raises(
        TypeError, match=rf"attacks/has_{num}.py must define exactly one .*found {num}"
    ):
        plugins.attack(f"has_{num}")


def test_a_plugin_without_a_docstring_has_no_summary() -> None:
    class Silent(Gap):
        pass

    Silent.__doc__ = None
    assert plugins.summary(Silent) == plugins.source(Silent) == ""


def test_an_attack_is_after_what_its_method_gives():
    aims = {name: plugins.aim(plugins.attack(name)) for name in plugins.names("attacks")}
    others = {name: what for name, what in aims.items() if what != "membership"}
    assert others == {"attribute": "attribute", "inversion": "inversion"}
