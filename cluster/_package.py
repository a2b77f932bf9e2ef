"""What a job brings along, as the two kinds of archive that Ray unpacks on every node."""

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

__all__ = ["Content", "released", "source_files", "write_wheel", "write_zip"]

Content = Mapping[str, bytes | Path]  # name in the archive -> what it holds, or the file that does

# The code that runs is this process's; what pip noted of its own install is not passed on.
_NOT_SHIPPED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "WHEEL")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def released(name: str, init: Path) -> metadata.Distribution | None:
    """The installed distribution that `init` belongs to, None if the code is being developed.

    Args:
        name: of the distribution.
        init: the `__init__.py` of one of its packages, as it was imported.
    """
    inside = f"{init.parent.name}/{init.name}"
    for found in metadata.distributions(name=name):
        # An editable install records a pointer, not the files; a checkout's egg-info no RECORD.
        recorded = found.read_text("RECORD") or ""
        there = Path(str(found.locate_file(inside)))
        if f"{inside}," in recorded and there.is_file() and there.samefile(init):
            return found
    return None


def source_files(root: Path, packages: Iterable[str], name: str) -> dict[str, bytes | Path]:
    """The packages below `root`, and their distribution's metadata, so that its version is known.

    Only what Python and the packages themselves read is taken: no caches, no hidden files.
    """
    content: dict[str, bytes | Path] = {}
    for package in packages:
        for path in sorted((root / package).rglob("*")):
            parts = path.relative_to(root).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                content["/".join(parts)] = path
    for found in metadata.distributions(name=name):
        told = found.read_text("METADATA") or found.read_text("PKG-INFO")
        if told:
            content[f"{name}-{found.version}.dist-info/METADATA"] = told.encode()
            break
    return content


def write_zip(path: Path, content: Content) -> int:
    """Write a zip whose bytes depend on names and contents alone; gives its size.

    Ray keeps an archive under the hash of its bytes: the same experiment is sent once, and its
    files are at the same place on a node when it is submitted again.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            held = content[name]
            data = held.read_bytes() if isinstance(held, Path) else held
            archive.writestr(_entry(name), data)
    return path.stat().st_size


def write_wheel(folder: Path, distribution: metadata.Distribution) -> Path:
    """Make a wheel of an installed distribution, named by its content.

    Ray knows a wheel by its file name alone, so the name has a hash of the content as its build
    tag. It asks for no other packages: `pip`, as Ray calls it, would fetch them for every job,
    torch too. The cluster's environment has them.

    Raises:
        ValueError: if the distribution does not say which files it has.
    """
    name, version = distribution.metadata["Name"], distribution.version
    info = f"{name}-{version}.dist-info"
    content: dict[str, bytes] = {}
    for file in distribution.files or ():
        held = Path(str(distribution.locate_file(file)))
        outside = ".." in file.parts or file.is_absolute() or "__pycache__" in file.parts
        if outside or not held.is_file():
            continue
        if file.parts[0].endswith(".dist-info"):
            if file.name not in _NOT_SHIPPED:
                content["/".join((info, *file.parts[1:]))] = held.read_bytes()
        else:
            content["/".join(file.parts)] = held.read_bytes()
    told = content.get(f"{info}/METADATA")
    if told is None:
        raise ValueError(f"the installed {name} has no METADATA; install it anew")
    head, blank, text = told.decode().partition("\n\n")
    head = re.sub(r"(?m)^(Requires-Dist|Provides-Extra):.*(\n|\Z)", "", head).rstrip("\n")
    content[f"{info}/METADATA"] = (head + blank + text).encode()
    content[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: sfumato\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    digest = hashlib.sha256()
    for file_name in sorted(content):
        digest.update(f"{file_name}\0{_sha256(content[file_name])}\n".encode())
    record = io.StringIO()
    for file_name in sorted(content):
        data = content[file_name]
        record.write(f"{file_name},sha256={_sha256(data)},{len(data)}\n")
    record.write(f"{info}/RECORD,,\n")
    content[f"{info}/RECORD"] = record.getvalue().encode()
    # A build tag begins with a digit.
    path = folder / f"{name}-{version}-0h{digest.hexdigest()[:16]}-py3-none-any.whl"
    write_zip(path, content)
    return path


def _sha256(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _LONG_AGO)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
