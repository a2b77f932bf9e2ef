"""What no experiment of a store needs, and its removal."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.check import load_experiment
from orchestrator.forms import Form, kept
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from storage import census
from storage.census import Piece
from storage.remote import ObjectStore

__all__ = ["EARLIER", "Garbage", "collect", "forget", "kinds", "refusal", "survey", "weights"]

EARLIER = "earlier"
_DRAFT_AGE_S = 86_400.0  # longer than any task writes


@dataclass(frozen=True)
class Garbage:
    """What can go.

    Attributes:
        pieces: artifacts and parts nobody needs, stale drafts, what was set aside.
        artifacts: artifacts that are needed.
        unplanned: form -> why it cannot be told what it needs. While there are any, nothing but
            drafts and what was set aside may go.
        needs: what each form needs, among the keys of the store.
    """

    pieces: Sequence[Piece]
    artifacts: Sequence[Piece]
    unplanned: Mapping[str, str]
    needs: Mapping[Form, frozenset[str]]

    @property
    def kept(self) -> tuple[int, int]:
        """How many artifacts are needed, and their bytes."""
        return len(self.artifacts), sum(piece.nbytes for piece in self.artifacts)


def survey(store: Store, data_dir: Path | None, forgotten: Sequence[str] = ()) -> Garbage:
    """Find what no form of an experiment needs; removes nothing.

    Needed is what a form's plan names, what fills a cell or belongs to a study, and everything
    these were made from.

    Args:
        store: the store.
        data_dir: where datasets are looked for, to plan what was run before plans were kept.
        forgotten: what `forget` takes; their needs do not count.

    Raises:
        ValueError: there is no store, or as `forget`.
    """
    census.check_store(store.root)
    # Pieces first: what a run that starts meanwhile makes is not among them.
    pieces = list(census.pieces(store.root, _DRAFT_AGE_S))
    if store.upstream is not None:
        store.upstream.read_ahead(piece.key for piece in pieces if piece.what == "artifact")
    forms = kept(store)
    gone = {form for text in forgotten for form in _named(forms, text)}
    needs: dict[Form, frozenset[str]] = {}
    unplanned: dict[str, str] = {}
    for form in forms:
        if form not in gone:
            try:
                needs[form] = frozenset(_needed(store, form, data_dir))
            except Exception as error:  # a plugin may raise anything; then its needs are not known
                title = form.experiment if form.current else form.title
                unplanned[title] = str(error) or type(error).__name__
    of_trials = store.tables.frame("trials")["task_keys"].dropna()
    trials = _followed(store, [key for keys in of_trials for key in keys], set())
    needed = trials.union(*needs.values())
    artifacts = [piece for piece in pieces if piece.what == "artifact" and piece.key in needed]
    loose = [piece for piece in pieces if not piece.key or piece.key not in needed]
    return Garbage(loose, artifacts, unplanned, needs)


def weights(garbage: Garbage) -> list[tuple[Form, int, int]]:
    """The earlier forms with the number and bytes of the artifacts that nothing else needs.

    Two that need the same count it for neither; forgotten together, it goes too.
    """
    users = Counter(key for keys in garbage.needs.values() for key in keys)
    found = []
    for form, keys in garbage.needs.items():
        if not form.current:
            alone = [p.nbytes for p in garbage.artifacts if p.key in keys and users[p.key] == 1]
            found.append((form, len(alone), sum(alone)))
    return found


def kinds(root: Path, garbage: Garbage) -> list[tuple[str, int, int]]:
    """What can go as (what, count, bytes), artifacts by kind, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for piece in garbage.pieces:
        match piece.what:
            case "artifact":
                told = census.description(root, piece.key)
                what = f"artifacts: {told['kind']}" if told else "artifacts: unreadable"
            case "part":
                what = f"parts of the table {piece.table}"
            case "draft":
                what = "drafts of processes that were killed"
            case "damaged":
                what = "set aside as damaged (goes with --damaged only)"
        counts[what] += 1
        sizes[what] += piece.nbytes
    return [(what, counts[what], nbytes) for what, nbytes in sizes.most_common()]


def collect(
    garbage: Garbage, *, damaged: bool, upstream: ObjectStore | None = None
) -> tuple[int, int]:
    """Remove what can go; stopping at any moment leaves a sound store.

    Args:
        garbage: what `survey` found a moment ago; a run that starts meanwhile may reuse it.
        damaged: also what was set aside.
        upstream: whose working copy the store is.

    Returns:
        How many pieces were removed, and their bytes.

    Raises:
        ValueError: if it cannot be told what a form needs.
        StoreUnwritable: the disk is read-only or forbidden, or the server is away.
    """
    if garbage.unplanned:
        raise ValueError(refusal(garbage.unplanned))
    going = [piece for piece in garbage.pieces if piece.what != "damaged" or damaged]
    for piece in going:
        census.remove(piece, upstream)
    return len(going), sum(piece.nbytes for piece in going)


def forget(store: Store, text: str) -> int:
    """Remove settings and cells of forms; their results stay until they are collected.

    Args:
        store: the store.
        text: "NAME" for a whole experiment, "NAME@FORM" (the first digits will do) for one earlier
            form, "NAME@earlier" for all of those.

    Returns:
        How many forms there were.

    Raises:
        ValueError: the store has no such experiment or form, or that form is the current one.
        StoreUnwritable: the disk is read-only or forbidden.
    """
    forms = _named(kept(store), text)
    experiment, at, _ = text.partition("@")
    for form in forms if at else ():
        store.tables.forms.forget(experiment, form.name)
        for path in (form.file.with_suffix(".json"), form.file):
            census.discard(path)
    if not at:
        store.tables.forms.forget(experiment)
        folder = store.experiment(experiment)  # the last: it keeps the name known
        if folder.exists():
            census.discard(folder)
    return len(forms)


def refusal(unplanned: Mapping[str, str]) -> str:
    """Why nothing is removed, and what to do."""
    lines = [f"  {name}: {reason}" for name, reason in unplanned.items()]
    names = " ".join(f"--forget {name}" for name in unplanned)
    return (
        "nothing was removed, because it cannot be told what these experiments need:\n"
        + "\n".join(lines)
        + "\ngive back what is missing (--data-dir for data), or give them up: "
        + f"sfumato gc {names}"
    )


def _named(forms: Sequence[Form], text: str) -> list[Form]:
    """The forms that `text` names; raises as `forget`."""
    name, at, wanted = text.partition("@")
    mine = [form for form in forms if form.experiment == name]
    if not mine:
        known = ", ".join(dict.fromkeys(form.experiment for form in forms)) or "none"
        raise ValueError(f"--forget {text}: the store has no such experiment; it has: {known}")
    earlier = [form for form in mine if not form.current]
    if not at or wanted == EARLIER:
        return earlier if at else mine
    found = [form for form in mine if wanted and form.name.startswith(wanted)]
    if len(found) != 1:
        known = ", ".join(form.name for form in earlier) or "none"
        fault = f"{len(found)} forms begin so" if found else f"{name} has no such form"
        raise ValueError(f"--forget {text}: {fault}; its earlier forms: {known}, or {EARLIER}")
    if found[0].current:
        raise ValueError(
            f"--forget {text}: that is how {name} was run last; --forget {name} forgets all of it, "
            "and once another form has been run this is an earlier one"
        )
    return found


def _needed(store: Store, form: Form, data_dir: Path | None) -> set[str]:
    """What a form's plan and cells name, and everything the cells were made from.

    Raises:
        Exception: it cannot be told, for whatever reason.
    """
    tables = store.tables
    found = len(tables.problems)
    cells = tables.frame("cells", form.experiment, form.name)["task_key"].dropna()
    if tables.problems[found:]:
        raise ValueError(f"{tables.problems[-1]}. `sfumato run` writes it again")
    return _followed(store, cells, _planned(store, form, data_dir))


def _planned(store: Store, form: Form, data_dir: Path | None) -> set[str]:
    """The keys of a form's plan; raises as `_needed`."""
    if form.tasks is not None:
        return set(form.tasks)
    if form.damaged and not form.file.exists():
        raise ValueError(form.damaged)
    if not form.file.exists() and (form.name or not store.experiment(form.experiment).is_dir()):
        return set()  # cells alone are what is left where somebody removed the folder
    return set(make_plan(load_experiment(str(form.file), (), data_dir), data_dir).tasks)


def _followed(store: Store, keys: Collection[str], whole: set[str]) -> set[str]:
    """`whole`, and `keys` with everything they were made from."""
    needed, open_ = whole.union(keys), list(set(keys) - whole)
    while open_:
        told = census.description(store.root, open_.pop())
        fresh = set(census.keys_in(told)) - needed
        needed |= fresh
        open_.extend(fresh)
    return needed
