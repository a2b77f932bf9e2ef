"""What no file of ours may call: what runs code found in data, a shell, or opens to the network."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "tasks", "defenses", "attacks", "storage", "cluster")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).glob("*.py"))]
# What unpickles, or runs text as code or as a command.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pandas.read_pickle"}
YAML = {"load", "load_all", "full_load", "unsafe_load", "unsafe_load_all", "full_load_all"}
HOSTS = {"0.0.0.0", "::", "[::]"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """Line and what is unsafe in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((node.lineno, n) for n in names if n.partition(".")[0] in MODULES)
        if isinstance(node, ast.Constant) and node.value in HOSTS:
            yield node.lineno, f"listens to all: {node.value}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {word.arg: word.value for word in node.keywords}
        module, _, called = name.rpartition(".")
        on = {key for key, v in given.items() if not (isinstance(v, ast.Constant) and not v.value)}
        if name in CALLS or (module == "yaml" and called in YAML):
            yield node.lineno, name
        if "shell" in on or "allow_pickle" in on:
            yield node.lineno, f"{name} with {sorted(on & {'shell', 'allow_pickle'})}"
        if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
            yield node.lineno, f"{name} without allow_pickle=False"
        if name == "torch.load" and "weights_only" not in on:
            yield node.lineno, f"{name} without weights_only=True"


def test_no_file_runs_what_it_reads() -> None:
    found = [(path, *each) for path in FILES for each in unsafe(path.read_text())]
    assert not [f"{path}:{line}: {what}" for path, line, what in found]
    assert len(FILES) > 200


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "os.system(x)",
        "yaml.load(x, Loader=L)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "serve(host='0.0.0.0')",
    ],
)
def test_the_check_finds_what_it_is_for(source: str) -> None:
    assert list(unsafe(source))


def test_what_is_safe_passes() -> None:
    source = """
yaml.safe_load(x)
torch.load(x, weights_only=True)
np.load(x, allow_pickle=False)
subprocess.run([x], shell=False)
model.eval()
re.compile(x)
"""
    assert not list(unsafe(source))
