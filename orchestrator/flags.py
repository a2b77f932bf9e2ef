"""What the flags of results mean, and the marks that tables print for them."""

from collections.abc import Iterable, Mapping

__all__ = ["MEANING", "explained", "marked", "marks_explained"]

MEANING: Mapping[str, tuple[str, str]] = {
    "invalid": ("!", "in some seed 1.5 points below the gap attack it contains: under-trained"),
    "collapsed": ("c", "collapsed: the reformer is one prototype per label"),
    "non_adaptive": ("n", "non-adaptive: the attacker ignores the defense"),
    "leaky": ("L", "leaky: the defense saw the non-members"),
    "no_adaptive_attack": (
        "a",
        "no attack here was made for this defense, so a stronger one may exist",
    ),
    "order_leak": ("V", "void: the position of a record tells its membership (checks)"),
    "blind_leak": ("V", "void: the inputs alone tell membership (checks)"),
    "swap_detectable": (
        "s",
        "answers with a changed label can be told from the others by their vector",
    ),
    "unverified_hparams": ("u", "experimental: the paper's hyper-parameters could not be verified"),
    "no_better_than_mean": (
        "m",
        "rebuilt no better than by the mean of the attacker's records: the answers tell nothing, "
        "or the attack is under-trained",
    ),
    "i5": ("i5", "some judged records are duplicates, so intervals are too narrow"),
    "i6": (
        "i6",
        "the class tells membership of the judged records (p ≤ 0.01, as by chance in 1 of 100), or "
        "their numbers differ",
    ),
    "i7": ("i7", "the order in which records were asked tells membership a little"),
    "underpowered": ("", "under 1,000 nonmembers: TPR at 1 % FPR rests on few of them"),
    "underpowered_0_001": ("", "under 10,000 nonmembers: TPR at 0.1 % FPR rests on few of them"),
    "unbalanced": ("", "members and nonmembers judged differ in number; accuracy is balanced"),
}
"""By flag: the mark in the tables of a run, empty for what these do not show; and its meaning."""


def marked(flags: Iterable[str]) -> str:
    """The marks of flags, to put behind a figure; empty without any."""
    marks = "".join(sorted({MEANING[flag][0] for flag in _known(flags)}))
    return f" {marks}" if marks else ""


def marks_explained(flags: Iterable[str]) -> str:
    """What the marks of flags mean, to put under a table; empty without any."""
    meant = (MEANING[flag] for flag in _known(flags))
    return "; ".join(f"{mark} = {meaning}" for mark, meaning in meant if mark)


def explained(flags: Iterable[str]) -> str:
    """What flags mean, by name, to put under a table that shows them; a line each."""
    return "\n".join(f"{flag}: {MEANING[flag][1]}" for flag in _known(flags))


def _known(flags: Iterable[str]) -> list[str]:
    """Without those of plugins that are no more, or of a newer Sfumato."""
    return sorted(set(flags) & MEANING.keys())
