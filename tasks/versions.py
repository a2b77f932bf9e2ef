"""What a process computes with: its Python, the packages that make numbers, our own commit."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["installed", "software"]

_PACKAGES = ("sfumato", "torch", "numpy", "scikit-learn", "faiss-cpu", "faiss-gpu")


def installed(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def software() -> dict[str, Any]:
    """What numbers of this process are made with; looked up once, later changes are not seen.

    Returns:
        `packages` (name -> version), `python`, and `commit`: of our source tree where the code
        runs from one, ending in "-dirty" if it had changes that are not committed, else None.
    """
    return {
        "packages": installed(*_PACKAGES),
        "python": platform.python_version(),
        "commit": _commit(Path(__file__).resolve().parent.parent),
    }


def _commit(tree: Path) -> str | None:
    """The commit of `tree` if it is the top of a source tree.

    Installed into an environment inside somebody's own repository it is not, and that repository's
    commit would say nothing of us.
    """
    if not (tree / ".git").exists():
        return None
    # Named, so that the GIT_DIR of a hook we are called from does not lead elsewhere.
    place = (f"--git-dir={tree / '.git'}", f"--work-tree={tree}", "--no-optional-locks")
    what = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        found = subprocess.run(
            ["git", *place, *what], cwd=tree, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
