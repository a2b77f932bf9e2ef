"""The checks against leaks: invariants I1 to I8 of methods.md 2.3 and the shadows' independence."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage._groups import Flags, Rows, canonical, chi2_p, class_counts
from storage.splits import Judge, Split

__all__ = ["Violation", "check_invariants", "shadow_independence"]

# A record order or a shadow design is chance up to here: 6e-5 two-sided.
_MAX_Z = 4.0


@dataclass(frozen=True)
class Violation:
    """A broken invariant of methods.md 2.3.

    `name` is "I1" to "I8". Fatal ones void a result; the others flag it, as chance (at 1 % for I6)
    or a reproduced paper can be behind them.
    """

    name: str
    message: str
    fatal: bool = True


def check_invariants(
    *,
    split: Split,
    groups: NDArray[np.integer[Any]],
    y: NDArray[np.integer[Any]],
    target_rows: Rows,
    defense_rows: Rows,
    fit_rows: Rows,
    cal_rows: Rows,
    judged_rows: Rows,
    judged_is_member: Flags,
    order: Rows | None = None,
    selection_rows: Rows | None = None,
    leaky: bool = False,
    judge: Judge = "members",
) -> list[Violation]:
    """Check one cell of an experiment against I1 to I8, on the rows each stage says it used.

    Args:
        split: what the rows should be.
        groups: [n], duplicates of the dataset, as read, not as the split kept them.
        y: [n], classes.
        target_rows: rows that trained the target; an attacker's own copies and shadows excluded.
        defense_rows: rows of this dataset the defense was fitted, selected or tuned on.
        fit_rows: rows whose membership the attack was fitted with; empty if with none.
        cal_rows: rows its threshold, sign and early stopping used.
        judged_rows: [N], rows it was scored on, in that order unless `order` is given.
        judged_is_member: [N], their membership as the metrics take it.
        order: [N], the judged rows in the order they were asked, where that differs.
        selection_rows: rows a choice among checkpoints or hyper-parameters used, if any.
        leaky: the defense is meant to see nonmembers (AEPPT as published); I3 is not asked, but of
            judge "defender", who has none.
        judge: see `Split.judged`. With "defender" all rows must be D1's or D2's (I3), and the
            defense may have used the judged non-members, as it selects on reference_val.

    Returns:
        What is broken, by name; empty for a clean cell.

    Raises:
        ValueError: if lengths disagree or a row is not in the dataset.

    Source: methods.md 2.3.
    """
    stages = {
        "target": target_rows,
        "defense": defense_rows,
        "attack fit": fit_rows,
        "attack calibration": cal_rows,
        "judged": judged_rows,
        "order": judged_rows if order is None else order,
        "selection": np.empty(0) if selection_rows is None else selection_rows,
    }
    rows = {stage: np.asarray(of_stage, dtype=np.int64) for stage, of_stage in stages.items()}
    for stage, of_stage in rows.items():
        outside = of_stage[(of_stage < 0) | (of_stage >= len(y))]
        if len(outside):
            raise ValueError(f"{stage} logged {_some(outside)}; the dataset has {len(y)} rows")
    if len(y) != len(groups) or len(judged_rows) != len(judged_is_member):
        raise ValueError(
            f"{len(y)} labels and {len(groups)} groups, {len(judged_rows)} judged rows and "
            f"{len(judged_is_member)} memberships; each pair must be equal"
        )
    is_member = np.asarray(judged_is_member, dtype=bool)
    group_of_row = canonical(groups)[0]
    return [
        *_check_disjoint("I1", "attack fit", "judged", rows, group_of_row),
        *_check_disjoint("I2", "attack calibration", "judged", rows, group_of_row),
        *([] if leaky and judge != "defender" else _check_defense(split, rows["defense"])),
        *(_check_owned(split, rows) if judge == "defender" else ()),
        *_check_target(split, rows["target"], rows["judged"], is_member, judge),
        *_check_groups(split, rows, is_member, group_of_row, leaky or judge == "defender"),
        *_check_classes(y, rows["judged"], is_member),
        *_check_order(rows["judged"], is_member, rows["order"]),
        *_check_selection(rows["selection"], rows["attack calibration"]),
    ]


def _check_disjoint(
    name: str, one: str, other: str, rows: dict[str, Rows], groups: Rows
) -> Iterator[Violation]:
    both = np.intersect1d(rows[one], rows[other])
    if len(both):
        yield Violation(name, f"{one} and {other} both use {_some(both)}; keep them apart")
    apart = np.setdiff1d(rows[one], both)
    twins = apart[np.isin(groups[apart], groups[rows[other]])]
    if len(twins):
        yield Violation(
            name,
            f"{one} uses {_some(twins)}, of which {other} holds duplicates; "
            "keep duplicate groups together, as make_split does",
        )


def _check_defense(split: Split, defense: Rows) -> Iterator[Violation]:
    seen = np.intersect1d(defense, split.nonmembers)
    if len(seen):
        yield Violation(
            "I3",
            f"the defense used {_some(seen)} of the nonmembers (D3); "
            "fit it on members and reference, or declare it leaky",
        )
    allowed = np.concatenate([split.members, split.reference, split.nonmembers])
    strange = np.setdiff1d(defense, allowed)
    if len(strange):
        role = split.role_of(strange[:1])[0] or "dropped"
        yield Violation(
            "I3",
            f"the defense used {_some(strange)}, neither members nor reference "
            f"(the first is {role}); fit it on those",
        )


def _check_owned(split: Split, rows: dict[str, Rows]) -> Iterator[Violation]:
    owned = np.concatenate([split.members, split.reference])
    for stage in ("attack fit", "attack calibration", "judged", "selection"):
        strange = np.setdiff1d(rows[stage], owned)
        if len(strange):
            role = split.role_of(strange[:1])[0] or "dropped"
            yield Violation(
                "I3",
                f"a defender's own measurement used rows it does not own: {stage} used "
                f"{_some(strange)} (the first is {role}); take rows of judge 'defender' from Split",
            )


def _check_target(
    split: Split, target: Rows, judged: Rows, is_member: Flags, judge: Judge
) -> Iterator[Violation]:
    distinct, times = np.unique(target, return_counts=True)
    faults = {
        "trained on rows that are not members": np.setdiff1d(distinct, split.members),
        "did not train on members": np.setdiff1d(split.members, distinct),
        "lists more than once": distinct[times > 1],
    }
    for fault, faulty in faults.items():
        if len(faulty):
            yield Violation("I4", f"the target {fault}: {_some(faulty)}; train on D1 exactly")
    positive = {
        "members": split.members,
        "defender": split.members,
        "reference": split.reference,
        "untrained": split.untrained_a,
    }[judge]
    wrong = judged[is_member != np.isin(judged, positive)]
    if len(wrong):
        yield Violation(
            "I4",
            f"judged {_some(wrong)} have the wrong membership for judge '{judge}'; "
            "take rows and membership from Split.judged together",
        )


def _check_groups(
    split: Split, rows: dict[str, Rows], is_member: Flags, groups: Rows, may_see: bool
) -> Iterator[Violation]:
    """`may_see`: the defense may have used the judged non-members."""
    roles = split.roles()
    row = np.concatenate(list(roles.values()))
    role = np.repeat(np.arange(len(roles)), [len(r) for r in roles.values()])
    by_group = np.argsort(groups[row], kind="stable")
    row, role = row[by_group], role[by_group]
    straddling = np.flatnonzero((groups[row[1:]] == groups[row[:-1]]) & (role[1:] != role[:-1]))
    if len(straddling):
        first = straddling[0]
        names = list(roles)
        yield Violation(
            "I5",
            f"{len(straddling)} times a duplicate group is divided between roles, first by rows "
            f"{row[first]} ({names[role[first]]}) and {row[first + 1]} ({names[role[first + 1]]});"
            " make the split with these groups",
        )
    stages = {**rows, "judged non-members": rows["judged"][~is_member]}
    pairs = [("attack calibration", "attack fit"), ("target", "judged non-members")]
    for one, other in pairs if may_see else [*pairs, ("defense", "judged non-members")]:
        yield from _check_disjoint("I5", one, other, stages, groups)
    distinct, times = np.unique(groups[rows["judged"]], return_counts=True)
    if (times > 1).any():
        repeated = rows["judged"][np.isin(groups[rows["judged"]], distinct[times > 1])]
        yield Violation(
            "I5",
            f"judged {_some(repeated)} repeat a record, which narrows every interval; "
            "judge one row of each duplicate group",
            fatal=False,
        )


def _check_classes(
    y: NDArray[np.integer[Any]], judged: Rows, is_member: Flags
) -> Iterator[Violation]:
    num, num_non = int(is_member.sum()), int((~is_member).sum())
    if not num or not num_non:
        message = f"{num} members and {num_non} non-members are judged; both are needed"
        yield Violation("I6", message)
        return
    if num != num_non:
        message = f"{num} members against {num_non} non-members are judged; subsample to equal"
        yield Violation("I6", message, fatal=False)
    p = chi2_p(class_counts(y, judged, is_member))
    if p <= 0.01:
        yield Violation(
            "I6",
            f"class tells membership of the judged records (chi-squared p = {p:.2g}, 0.01 asked); "
            "one seed in a hundred does so by chance, a pooled split no more often",
            fatal=False,
        )


def _check_order(judged: Rows, is_member: Flags, order: Rows) -> Iterator[Violation]:
    if not np.array_equal(np.sort(order), np.sort(judged)):
        strange = np.setxor1d(order, judged)
        yield Violation(
            "I7", f"the order asked is not one of the judged rows: {_some(strange)} differ"
        )
        return
    asked = np.isin(order, judged[is_member])
    num, num_non = int(asked.sum()), int((~asked).sum())
    if not num or not num_non:
        return
    num_runs = 1 + int(np.count_nonzero(asked[1:] != asked[:-1]))
    # A separated order of very few records is no evidence: it must be rarer than 2 in 10 million.
    if num_runs == 2 and math.comb(num + num_non, min(num, num_non, 20)) >= 10_000_000:
        first = "members" if asked[0] else "non-members"
        yield Violation("I7", f"all {first} are asked first; shuffle what is judged")
        return
    # Position shows a drift; runs show blocks (batches of one kind) and alternation (Wald and
    # Wolfowitz 1940: mean 1 + 2ab/n, variance 2ab(2ab - n) / (n^2 (n - 1))).
    n, twice = num + num_non, 2 * num * num_non
    spread = math.sqrt(twice * (twice - n) / (n * n * (n - 1)))
    scores = {
        "position": _z_score(np.arange(n), asked),
        "the number of runs": (num_runs - 1 - twice / n) / spread if spread else 0.0,
    }
    for what, z in scores.items():
        if abs(z) > _MAX_Z:
            yield Violation(
                "I7",
                f"{what} tells membership in the order asked ({z:.1f} standard errors, at most "
                f"{_MAX_Z:.0f} asked); shuffle what is judged",
                fatal=False,
            )


def _check_selection(selection: Rows, calibration: Rows) -> Iterator[Violation]:
    strange = np.setdiff1d(selection, calibration)
    if len(strange):
        yield Violation(
            "I8", f"selection used {_some(strange)} outside the calibration rows; select on those"
        )


def _some(rows: Rows) -> str:
    """The first three rows, and how many there are."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = f", ... ({len(rows)} in all)" if len(rows) > 3 else ""
    return f"rows {', '.join(map(str, rows[:3]))}{more}"


def shadow_independence(in_mask: Flags, is_member: Flags) -> float:
    """How far shadow training sets follow membership in the target, in standard errors.

    Args:
        in_mask: [K, N], whether shadow k trained on record n.
        is_member: [N], membership in the target.

    Returns:
        The largest absolute z-score over the K shadows and over the number of shadows each record
        is in. Above 4 to 5 the pool was drawn knowing the membership (methods.md 2.3, I2; trap 32).
    """
    counts = in_mask.sum(axis=0)
    return max(abs(_z_score(row, is_member)) for row in [*in_mask, counts])


def _z_score(values: NDArray[Any], flags: Flags) -> float:
    """Correlation in units of its standard error under permutation, 1/sqrt(N-1); 0 if constant."""
    v = values - values.mean(dtype=np.float64)
    f = flags - flags.mean(dtype=np.float64)
    norm = math.sqrt(float(v @ v) * float(f @ f))
    return float(v @ f) / norm * math.sqrt(len(v) - 1) if norm > 1e-9 else 0.0
