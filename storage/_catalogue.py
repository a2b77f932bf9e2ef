"""The datasets known by name: what each is, how it is divided by default, whether it is here."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage import _synth
from storage._files import READERS

BUILT_IN = ("digits", "digits_binary", *_synth.PRESETS)


@dataclass(frozen=True)
class DatasetInfo:
    """One line of the list of datasets.

    Attributes:
        name: what to write in an experiment.
        summary: what it is; says so if it stands in for another set.
        source: whom to cite.
        rows: n.
        classes: C.
        shape: of one record, images channel-first.
        kind: as `Dataset.kind` once it is loaded.
        available: whether `load` finds it.
        default_split: rows of members, reference and nonmembers.
        path: its file in the data directory, if there is one.
    """

    name: str
    summary: str
    source: str
    rows: int
    classes: int
    shape: tuple[int, ...]
    available: bool
    default_split: Mapping[str, int]
    kind: str
    path: Path | None = None


# What the shape does not tell: the digits' pixels are 0..16.
_KINDS = {"digits": "continuous", "adult": "text"}


def _info(
    name: str, rows: int, classes: int, shape: str, split: str, summary: str, source: str
) -> DatasetInfo:
    sizes = zip(("members", "reference", "nonmembers"), map(int, split.split("/")), strict=True)
    dimensions = tuple(map(int, shape.split("x")))
    return DatasetInfo(
        name=name,
        summary=summary,
        source=source,
        rows=rows,
        classes=classes,
        shape=dimensions,
        available=False,
        default_split=dict(sizes),
        kind=_KINDS.get(name, "image" if len(dimensions) == 3 else "binary"),
    )


# Sizes: PURIFIER Table 1 where the set allows it, the data directory's manifest for the stand-ins.
# fmt: off
_CATALOGUE = {info.name: info for info in (
    _info("location30", 5010, 30, "446", "1600/1600/1600",
          "check-ins in Bangkok, the real Location",
          "Yang et al., as prepared by Shokri et al. 2017"),
    _info("retail100", 35593, 100, "600", "10000/10000/10000",
          "supermarket receipts, stand-in for Purchase100",
          "Brijs et al., KDD 1999"),
    _info("hospital100", 52096, 100, "599", "10000/10000/10000",
          "hospital stays, stand-in for Texas100",
          "Strack et al. 2014, CC BY 4.0"),
    _info("clinc100", 14943, 100, "600", "5000/4900/4900",
          "words of short queries; 1,373 duplicate rows",
          "Larson et al., EMNLP 2019, CC BY 3.0"),
    _info("adult_binary", 48842, 2, "126", "10000/10000/10000",
          "census income, one-hot; 20,363 duplicate rows",
          "Becker and Kohavi 1996, CC BY 4.0"),
    _info("adult", 48842, 2, "14", "0/0/0",
          "census income with text columns, not loadable: use adult_binary",
          "Becker and Kohavi 1996, CC BY 4.0"),
    _info("cifar10", 60000, 10, "3x32x32", "50000/5000/5000",
          "CIFAR10, a JPEG copy, train and test pooled",
          "Krizhevsky 2009"),
    _info("cifar10_mini", 2500, 10, "3x32x32", "1000/700/700",
          "2,500 images of CIFAR10, for tests",
          "Krizhevsky 2009"),
    _info("tinyimagenet32_100a", 54996, 100, "3x32x32", "49996/2500/2500",
          "100 classes of Tiny ImageNet, stand-in for CIFAR100",
          "Stanford CS231n, non-commercial research"),
    _info("utkface64", 22000, 2, "3x64x64", "12000/5000/5000",
          "faces by gender, with race and age",
          "Zhang, Song and Qi 2017, non-commercial research"),
    _info("faces_yaleb38", 2414, 38, "1x64x64", "1000/700/700",
          "faces by identity, stand-in for FaceScrub530",
          "Georghiades et al. 2001"),
    _info("faces_orl38", 380, 38, "1x64x64", "190/95/95",
          "faces by identity, stand-in for FaceScrub530",
          "Samaria and Harter 1994"),
    _info("mnist10k", 10000, 10, "1x28x28", "4000/3000/3000",
          "10,000 images of MNIST",
          "LeCun, Cortes, Burges"),
    _info("purchase100", 197324, 100, "600", "20000/20000/20000",
          "shoppers, the original; bring your own copy",
          "Shokri et al. 2017"),
    _info("texas100", 67330, 100, "6169", "10000/10000/10000",
          "hospital stays, the original; bring your own copy",
          "Shokri et al. 2017"),
    _info("cifar100", 60000, 100, "3x32x32", "50000/5000/5000",
          "CIFAR100, the original; bring your own copy",
          "Krizhevsky 2009"),
    _info("facescrub530", 48579, 530, "1x64x64", "30000/10000/8000",
          "faces by identity, the original; bring your own copy",
          "Ng and Winkler, ICIP 2014"),
    _info("digits", 1797, 10, "1x8x8", "600/600/597",
          "small handwritten digits",
          "scikit-learn, from UCI (Alpaydin and Kaynak 1998)"),
    _info("digits_binary", 1797, 10, "64", "600/600/597",
          "the digits as 64 black or white pixels",
          "scikit-learn, from UCI (Alpaydin and Kaynak 1998)"),
    _info("synth_s", 6000, 20, "128", "2000/2000/2000",
          "SynthPurchase, moderate leak",
          "methods.md 2.5"),
    _info("synth_m", 6000, 100, "600", "2000/2000/2000",
          "SynthPurchase, shaped like Purchase100",
          "methods.md 2.5"),
    _info("synth_hard", 6000, 20, "128", "2000/2000/2000",
          "SynthPurchase, leaks plainly",
          "methods.md 2.5"),
    _info("synth_null", 6000, 20, "128", "2000/2000/2000",
          "SynthPurchase, nearly nothing to leak",
          "methods.md 2.5"),
)}
# fmt: on

DEFAULT_SPLITS: dict[str, dict[str, int]] = {
    info.name: dict(info.default_split) for info in _CATALOGUE.values() if info.name != "adult"
}


def names(data_dir: Path | None = None) -> list[DatasetInfo]:
    """Every known dataset; `available` says whether `load` would find it."""
    found = {name: in_data_dir(name, data_dir) for name in _CATALOGUE}
    return [
        dataclasses.replace(
            info,
            path=found[info.name],
            available=info.name != "adult"
            and (info.name in BUILT_IN or found[info.name] is not None),
        )
        for info in _CATALOGUE.values()
    ]


def own_files(data_dir: Path | None) -> list[Path]:
    """Files of the data directory that are no set of the catalogue, by name."""
    if data_dir is None:
        return []
    paths = (path for path in sorted(data_dir.iterdir()) if path.stem not in _CATALOGUE)
    return [path for path in paths if in_data_dir(path.stem, data_dir) == path]


def in_data_dir(name: str, data_dir: Path | None) -> Path | None:
    """The set's file in the data directory, None if there is none or the name is no file name."""
    if data_dir is None or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return None
    paths = (data_dir / f"{name}{suffix}" for suffix in READERS)
    return next((path for path in paths if path.is_file()), None)


def not_found(name: str, data_dir: Path | None) -> Exception:
    """The error for a name that `load` has no records for: a near miss, or where to put a file."""
    if name not in _CATALOGUE:
        own = (
            [path.stem for path in data_dir.iterdir() if path.suffix in READERS]
            if (data_dir is not None and data_dir.is_dir())
            else []
        )
        known = sorted({*DEFAULT_SPLITS, *own})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return ValueError(
            f"no dataset is named '{name}'.{hint} Known: {', '.join(known)}. Your own data needs a "
            "`path` to a Parquet or npz file"
        )
    info = _CATALOGUE[name]
    if len(info.shape) == 3:
        layout = "npz with `x` uint8 [n, H, W] or [n, H, W, 3] and `y`, or Parquet with `label` and `image` (JPEG or PNG bytes)"  # noqa: E501
    else:
        layout = "npz with `x` [n, D] and `y` (or, as published, `features` and `labels`), or Parquet with `label` and features f000, f001, ..."  # noqa: E501
    if data_dir is None:
        tried = "no data directory is set"
    else:
        tried = "tried " + " and ".join(str(data_dir / f"{name}{suffix}") for suffix in READERS)
    return FileNotFoundError(
        f"dataset {name}: no file ({tried}). Point SFUMATO_DATA or --data-dir at the folder that "
        f"has it, or give its `path`. Expected: {layout}"
    )
