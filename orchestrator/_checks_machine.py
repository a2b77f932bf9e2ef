"""Checks of `sfumato doctor`: Python, packages, cores, memory, GPUs, Ray."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from orchestrator._finding import GIB, Check, Finding, Place, probe, size

__all__ = ["MACHINE"]

_OLDEST = (3, 11)
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
_IMPORT_S, _RAY_S = 120.0, 180.0
_LITTLE_MEMORY, _LITTLE_SHM = 2 * GIB, GIB
_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
torch.ones(8, 8) @ torch.ones(8, 8)
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(),
                  "gpus": names, "cuda": torch.version.cuda}))
"""
_FAISS = """
import json, numpy, faiss
index = faiss.IndexFlatL2(4)
index.add(numpy.eye(4, dtype="float32"))
index.search(numpy.eye(4, dtype="float32"), 1)
gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
print(json.dumps({"version": faiss.__version__, "gpus": gpus}))
"""
_RAY = 'import json, ray\nprint(json.dumps({"version": ray.__version__}))'
_START_RAY = """
import json, time
from cluster.base import WorkerJoined
from cluster.ray_pool import RayPool
from tasks.worker import prepare
began = time.perf_counter()
pool = RayPool(workers=1, setup=prepare)
try:
    pool.start()
    while not any(isinstance(event, WorkerJoined) for event in pool.events(1.0)):
        pass
    seconds = time.perf_counter() - began
finally:
    pool.close()
print(json.dumps({"seconds": seconds}))
"""
_REINSTALL = "install again into a fresh environment (README, Install)"


def _python(place: Place) -> Iterator[Finding]:
    oldest = ".".join(map(str, _OLDEST))
    known = sys.version_info[:2] >= _OLDEST
    found = f"{platform.python_version()} at {sys.executable}"
    remedy = "" if known else f"use Python {oldest} or newer"
    yield Finding("Python", "ok" if known else "FAIL", found, remedy)


def _packages(place: Place) -> Iterator[Finding]:
    """Every package we require: there, in a version we know, and found for import."""
    from packaging.requirements import Requirement  # comes with Ray and MLflow

    needed = [Requirement(text) for text in metadata.requires("sfumato") or ()]
    sound = [f"sfumato {metadata.version('sfumato')}"]
    for need in needed:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            remedy = f"pip install '{need}'"
            yield Finding(f"package {need.name}", "FAIL", "is not installed", remedy)
            continue
        if not need.specifier.contains(version, prereleases=True):
            found = f"{version}, we need {need.specifier}"
            yield Finding(f"package {need.name}", "FAIL", found, f"pip install '{need}'")
        elif find_spec(_MODULES.get(need.name, need.name.replace("-", "_"))) is None:
            found = f"{version} is installed, but cannot be found for import"
            yield Finding(f"package {need.name}", "FAIL", found, _REINSTALL)
        else:
            sound.append(f"{need.name} {version}")
    yield Finding("packages", "ok", ", ".join(sound))


def _torch(place: Place) -> Iterator[Finding]:
    try:
        told = probe(_TORCH, _IMPORT_S)
    except RuntimeError as error:
        yield Finding("torch", "FAIL", f"cannot be used: {error}", _REINSTALL)
        return
    threads = f"{told['threads']} threads (workers use one each)"
    yield Finding("torch", "ok", f"{told['version']}, {threads}")
    if told["gpus"]:
        yield Finding("GPU", "ok", ", ".join(told["gpus"]))
    elif shutil.which("nvidia-smi"):
        found = "nvidia-smi is here, but torch sees no GPU"
        built = f"CUDA {told['cuda']}" if told["cuda"] else "the CPU only"
        remedy = f"torch is built for {built}: install one that matches the driver"
        yield Finding("GPU", "note", found, remedy)
    else:
        yield Finding("GPU", "ok", "none; everything runs on the CPU")


def _faiss(place: Place) -> Iterator[Finding]:
    try:
        told = probe(_FAISS, _IMPORT_S)
    except RuntimeError as error:
        remedy = "pip install 'faiss-cpu>=1.15'; without it PURIFIER does not run"
        yield Finding("faiss", "FAIL", f"cannot be used: {error}", remedy)
        return
    gpus = f"{told['gpus']} GPUs" if told["gpus"] else "CPU only"
    yield Finding("faiss", "ok", f"{told['version']}, {gpus}")


def _cores(place: Place) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _quota()
    found = f"{usable} of {cores} cores usable" + (f", quota {quota:.1f}" if quota else "")
    if quota and quota < usable - 0.5:
        remedy = f"`sfumato run --workers {max(1, int(quota))}`: more would take turns"
        yield Finding("CPU", "note", found, remedy)
    else:
        yield Finding("CPU", "ok", found)


def _quota() -> float | None:
    """CPUs that a container's limit allows, or None."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def _memory(place: Place) -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        yield Finding("memory", "ok", "not told by this system")
        return
    told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free, total = told["MemAvailable"], told["MemTotal"]
    try:  # of a container
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free, total = min(free, limit - used), min(total, limit)
    except (OSError, ValueError):  # none, or "max"
        pass
    found = f"{size(free)} free of {size(total)}"
    if free < _LITTLE_MEMORY:
        remedy = "fewer workers (--workers 1), or free some: a worker takes about 0.5 GiB and more"
        yield Finding("memory", "note", found, remedy)
    else:
        yield Finding("memory", "ok", found)


def _shared_memory(place: Place) -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return
    free = shutil.disk_usage(shm).free
    if free < _LITTLE_SHM:
        found = f"{size(free)} free: Ray keeps its objects on disk instead, which is slower"
        remedy = "in a container: `docker run --shm-size=2g`"
        yield Finding("/dev/shm", "note", found, remedy)
    else:
        yield Finding("/dev/shm", "ok", f"{size(free)} free")


def _ray(place: Place) -> Iterator[Finding]:
    try:
        version = probe(_RAY, _IMPORT_S)["version"]
    except RuntimeError as error:
        remedy = f"{_REINSTALL}; `--inline` runs without Ray"
        yield Finding("Ray", "FAIL", f"cannot be imported: {error}", remedy)
        return
    if place.quick:
        yield Finding("Ray", "ok", f"{version} imports; not started (--quick)")
        return
    place.told("starting Ray")
    try:
        seconds = probe(_START_RAY, _RAY_S)["seconds"]
    except RuntimeError as error:
        logs = Path(
            os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray/session_latest/logs"
        )
        remedy = f"`--inline` runs without Ray; logs are in {logs}"
        yield Finding("Ray", "FAIL", f"{version} does not start here: {error}", remedy)
        return
    found = f"{version}, a worker was ready after {seconds:.1f} s"
    yield Finding("Ray", "ok", found)


def _token(place: Place) -> Iterator[Finding]:
    """How a cluster elsewhere would be asked; the token itself is never shown."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    home = Path.home() / ".ray" / "auth_token"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    source = ""
    if os.environ.get("RAY_AUTH_TOKEN"):
        source = "RAY_AUTH_TOKEN"
    elif named:
        source = named if Path(named).is_file() else ""
    elif home.is_file():
        source = str(home)
    found = f"RAY_AUTH_MODE={mode or 'unset'}, token {'in ' + source if source else 'none'}"
    if mode.lower() == "token" and not source:
        remedy = (
            "needed for --address: put the cluster's token (`ray get-auth-token` on its head) into "
            "RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
        )
        yield Finding("Ray token", "note", found, remedy)
    else:
        yield Finding("Ray token", "ok", found)
    if os.environ.get("RAY_ADDRESS"):
        found = "RAY_ADDRESS is set, and is not read"
        yield Finding("Ray address", "note", found, "use --address")


MACHINE: dict[str, Check] = {
    "Python": _python,
    "packages": _packages,
    "torch": _torch,
    "faiss": _faiss,
    "CPU": _cores,
    "memory": _memory,
    "/dev/shm": _shared_memory,
    "Ray": _ray,
    "Ray token": _token,
}
