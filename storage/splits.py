"""Seeded, disjoint data roles, the sets an attack is judged on, and the checks against leaks.

Roles (methods.md 2.3): members (D1), nonmembers (D3) and reference (D2), `untrained` groups for the
null (2.5), and the population, which is everything left. Everything here is row numbers.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

__all__ = [
    "ROLES",
    "Judge",
    "Sizes",
    "Split",
    "Violation",
    "card",
    "check_invariants",
    "half_split",
    "make_split",
    "shadow_independence",
]

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Judge = Literal["members", "reference", "untrained"]

# Every set a row can be in; pairwise disjoint.
ROLES = (
    *(f"{side}_{part}" for side in ("members", "nonmembers") for part in ("fit", "cal", "eval")),
    *("reference_fit", "reference_val", "untrained_a", "untrained_b", "population"),
)
# A record order or a shadow design is chance up to here: 6e-5 two-sided.
_MAX_Z = 4.0


@dataclass(frozen=True)
class Sizes:
    """Rows wanted for each role; `untrained` is the size of each of two extra fresh groups."""

    members: int
    reference: int
    nonmembers: int
    untrained: int = 0


@dataclass(frozen=True, eq=False)
class Split:
    """Who is what: pairwise disjoint int64 row numbers, each set in a random order.

    The members, and their order, do not depend on `known` nor on the other sizes, the nonmembers
    not on the reference, nothing on `untrained`: experiments that vary those share their targets.

    Attributes:
        groups: int64 [n], rows with equal numbers are duplicates of each other.
        known_share: the attacker's share of members, of nonmembers, and (judge "reference") of D2.
        seed: of every order and subsample below.
    """

    members_fit: Rows
    members_cal: Rows
    members_eval: Rows
    nonmembers_fit: Rows
    nonmembers_cal: Rows
    nonmembers_eval: Rows
    reference_fit: Rows
    reference_val: Rows
    untrained_a: Rows
    untrained_b: Rows
    population: Rows
    groups: Rows
    known_share: float
    seed: int

    @property
    def members(self) -> Rows:
        """D1, the target's training rows."""
        return self._shuffled("members", self.members_fit, self.members_cal, self.members_eval)

    @property
    def nonmembers(self) -> Rows:
        """D3, rows the defender never touches."""
        parts = (self.nonmembers_fit, self.nonmembers_cal, self.nonmembers_eval)
        return self._shuffled("nonmembers", *parts)

    @property
    def reference(self) -> Rows:
        """D2, the defender's rows that never train the target."""
        return self._shuffled("reference", self.reference_fit, self.reference_val)

    def roles(self) -> dict[str, Rows]:
        """The eleven disjoint sets by name."""
        return {name: getattr(self, name) for name in ROLES}

    def role_of(self, rows: Rows) -> NDArray[np.str_]:
        """Names of the roles of `rows`; empty for a row that dedup "drop" left out."""
        names = np.full(len(self.groups), "", dtype="U15")
        for name, of_role in self.roles().items():
            names[of_role] = name
        return names[rows]

    def judged(self, judge: Judge = "members") -> tuple[Rows, Flags]:
        """The records an attack is judged on, and their membership.

        One record (the lowest row) of each duplicate group, as many members as non-members (the
        larger side is subsampled), in a random order.

        Args:
            judge: "members" is members_eval against nonmembers_eval. "reference" takes the unknown
                share of D2 for members (PURIFIER Table 7). "untrained" takes two groups nobody
                trained on, the first arbitrarily called members: the null of methods.md 2.5.

        Returns:
            Rows int64 [N] and is_member bool [N], N even.

        Raises:
            ValueError: if the split has no such records.
        """
        if judge == "untrained":
            positive, negative = self.untrained_a, self.untrained_b
        elif judge == "reference":
            positive, negative = self._divided_reference()[2], self.nonmembers_eval
        else:
            positive, negative = self.members_eval, self.nonmembers_eval
        if not len(positive):
            raise ValueError(
                f"judge '{judge}' has no records to judge in this split; enlarge sizes.{judge}"
            )
        sides = []
        for name, rows in (("positive", positive), ("negative", negative)):
            rows = np.sort(rows)
            first = np.unique(self.groups[rows], return_index=True)[1]
            sides.append(self._shuffled(f"judged/{judge}/{name}", rows[first]))
        num = min(map(len, sides))
        return self._labelled(f"judged/{judge}", sides[0][:num], sides[1][:num])

    def known(self, judge: Judge = "members") -> tuple[Rows, Flags, Rows, Flags]:
        """The records whose membership the attacker knows when judged by `judge`.

        Returns:
            Rows to fit on and their membership, then rows to calibrate on and theirs; members and
            non-members shuffled together, not balanced. With "reference" the members come from
            the known share of D2; with "untrained" they are the usual ones.
        """
        if judge == "reference":
            fit, cal, _ = self._divided_reference()
        else:
            fit, cal = self.members_fit, self.members_cal
        return (
            *self._labelled(f"known/{judge}/fit", fit, self.nonmembers_fit),
            *self._labelled(f"known/{judge}/cal", cal, self.nonmembers_cal),
        )

    def _divided_reference(self) -> list[Rows]:
        """D2 as the attacker divides it (fit, cal, eval), across the defender's fit and val."""
        rows = self.reference
        ids, inverse = np.unique(self.groups[rows], return_inverse=True)
        order = _permutation(len(ids), self.seed, "reference/known")
        parts = _divide(order, np.bincount(inverse), _known_sizes(len(rows), self.known_share))
        return [
            self._shuffled(f"reference/known/{i}", rows[np.isin(inverse, part)])
            for i, part in enumerate(parts)
        ]

    def _shuffled(self, purpose: str, *parts: Rows) -> Rows:
        # Sorted first, so that how a role is divided leaves no trace in its order.
        rows = np.sort(np.concatenate(parts))
        return rows[_permutation(len(rows), self.seed, purpose)]

    def _labelled(self, purpose: str, positive: Rows, negative: Rows) -> tuple[Rows, Flags]:
        rows = self._shuffled(purpose, positive, negative)
        return rows, np.isin(rows, positive)


def make_split(
    y: NDArray[np.integer[Any]],
    groups: NDArray[np.integer[Any]],
    sizes: Sizes,
    *,
    known: float = 0.5,
    seed: int,
    dedup: Literal["group", "drop"] = "group",
) -> Split:
    """Divide a dataset into its roles by one pooled permutation of its duplicate groups.

    A duplicate group goes to one part of one role as a whole. A role never exceeds its size; it
    falls short only when no group left would fit, hence by fewer rows than the largest group has,
    and never when all groups have one row. Of members and nonmembers the share `known` is the
    attacker's, 20 % of it for calibration; of the reference 20 % are `val`; evaluation (and
    `reference_fit`) takes what its role has left.

    The result depends on which rows are duplicates, on the sizes, `known`, `seed` and `dedup`; on
    labels it does not. It is the same under any NumPy, as only raw generator bits are used.

    Args:
        y: [n], classes; only their number is checked.
        groups: [n], equal numbers mark duplicates.
        sizes: rows per role.
        known: in (0, 1); the papers use 0.25, 0.5 and 0.75.
        seed: any integer.
        dedup: "group" keeps duplicates together; "drop" keeps the first row of each group, the
            others get no role.

    Raises:
        ValueError: if the sizes exceed the rows (the distinct records, under "drop"), or leave a
            part without a record.

    Source: methods.md 2.1 (duplicates), 2.3 (partition); sizes of PURIFIER Table 1 in 2.2.
    """
    if len(y) != len(groups):
        raise ValueError(f"{len(y)} labels but {len(groups)} duplicate groups; give one per row")
    if not 0 < known < 1:
        raise ValueError(f"known is {known}; the attacker's share must lie between 0 and 1")
    if dedup not in ("group", "drop"):
        raise ValueError(f"dedup is '{dedup}'; use 'group' or 'drop'")
    group_of_row, first_row, rows_of_group = _canonical(groups)
    if dedup == "drop":
        rows_of_group = np.ones_like(rows_of_group)
    wanted = _wanted(sizes, known, int(rows_of_group.sum()), len(groups), dedup)

    order = _permutation(len(first_row), seed, "groups")
    part_of_group = np.full(len(first_row), "population", dtype="U15")
    for parts in wanted:
        chosen, order = _take(order, rows_of_group, sum(parts.values()))
        divided = _divide(chosen, rows_of_group, list(parts.values()))
        for name, part in zip(parts, divided, strict=True):
            part_of_group[part] = name

    part_of_row = part_of_group[group_of_row]
    if dedup == "drop":
        kept = np.zeros(len(groups), dtype=bool)
        kept[first_row] = True
        part_of_row[~kept] = ""
    rows: dict[str, Rows] = {}
    for name in [*(name for parts in wanted for name in parts), "population"]:
        rows[name] = np.flatnonzero(part_of_row == name)
        rows[name] = rows[name][_permutation(len(rows[name]), seed, name)]
    for parts in wanted:
        for name, num in parts.items():
            if num and not len(rows[name]):
                raise ValueError(
                    f"no duplicate group fits into {name} ({num} rows wanted; the largest group "
                    f"has {rows_of_group.max()}); enlarge the role or use dedup 'drop'"
                )
    return Split(**rows, groups=group_of_row, known_share=known, seed=seed)


def _wanted(
    sizes: Sizes, known: float, available: int, num_rows: int, dedup: str
) -> list[dict[str, int]]:
    """Rows per part, a dictionary a role; the order of the roles is the order of filling."""
    for name in ("members", "reference", "nonmembers", "untrained"):
        if getattr(sizes, name) < 0:
            raise ValueError(f"sizes.{name} is {getattr(sizes, name)}; it must not be negative")
    total = sizes.members + sizes.reference + sizes.nonmembers + 2 * sizes.untrained
    if total > available:
        rows = f"{num_rows} rows"
        has = f"{available} distinct records in {rows}" if dedup == "drop" else rows
        raise ValueError(
            f"the split wants {total} rows (members {sizes.members}, reference {sizes.reference}, "
            f"nonmembers {sizes.nonmembers}, untrained 2 x {sizes.untrained}) but the dataset has "
            f"{has}; take {total - available} off the sizes"
        )
    wanted = []
    for side in ("members", "nonmembers"):
        parts = _known_sizes(getattr(sizes, side), known)
        if min(parts) < 1:
            raise ValueError(
                f"sizes.{side} is {getattr(sizes, side)}: known={known} divides it into fit, cal, "
                f"eval = {parts}, each of which needs a record; enlarge it"
            )
        wanted.append(
            {f"{side}_{p}": n for p, n in zip(("fit", "cal", "eval"), parts, strict=True)}
        )
    num_val = _fifth(sizes.reference)
    if sizes.reference and not num_val:
        raise ValueError(f"sizes.reference is {sizes.reference}; use 0, or 3 and more")
    # The part that takes what is left comes last.
    wanted.append({"reference_val": num_val, "reference_fit": sizes.reference - num_val})
    return [*wanted, {"untrained_a": sizes.untrained}, {"untrained_b": sizes.untrained}]


def _known_sizes(num: int, known: float) -> list[int]:
    """Sizes of fit, cal and eval."""
    num_known = math.floor(known * num + 0.5)
    return [num_known - _fifth(num_known), _fifth(num_known), num - num_known]


def _fifth(num: int) -> int:
    """20 %, rounded half up, in integers."""
    return (2 * num + 5) // 10


def _take(order: Rows, rows_of_group: Rows, num: int) -> tuple[Rows, Rows]:
    """The first groups of `order` that fit into `num` rows, and the others, both in order.

    A group too large for the room left is passed over for a later, smaller one.
    """
    size = rows_of_group[order]
    taken = np.zeros(len(order), dtype=bool)
    # Each pass ends at a group too large for what is then left, so sizes shrink from pass to pass.
    while len(fitting := np.flatnonzero(~taken & (size <= num))):
        filled = np.cumsum(size[fitting])
        num_taken = int(np.searchsorted(filled, num, side="right"))
        taken[fitting[:num_taken]] = True
        num -= int(filled[num_taken - 1])
    return order[taken], order[~taken]


def _divide(order: Rows, rows_of_group: Rows, sizes: list[int]) -> list[Rows]:
    """Groups for each part; the last part takes whatever the others leave."""
    parts = []
    for num in sizes[:-1]:
        part, order = _take(order, rows_of_group, num)
        parts.append(part)
    return [*parts, order]


def _canonical(groups: NDArray[np.integer[Any]]) -> tuple[Rows, Rows, Rows]:
    """Groups numbered by first appearance [n], their first rows [G] and their sizes [G].

    Numbering by appearance makes a split depend on which rows are equal, not on how the
    dataset's hash happens to name them.
    """
    _, first, inverse, counts = np.unique(
        np.asarray(groups), return_index=True, return_inverse=True, return_counts=True
    )
    by_appearance = np.argsort(first)
    number = np.empty_like(by_appearance)
    number[by_appearance] = np.arange(len(first))
    return number[inverse], first[by_appearance], counts[by_appearance]


def _permutation(num: int, seed: int, purpose: str) -> Rows:
    """A random order from a stream of its own per (seed, purpose), as methods.md 0.4 asks."""
    digest = hashlib.sha256(f"data.split/{int(seed)}/{purpose}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest, "big"))
    # NumPy keeps raw bits stable between versions, `Generator.permutation` it does not.
    return np.argsort(bits.random_raw(num), kind="stable")


def half_split(rows: NDArray[np.integer[Any]], num_models: int, *, seed: int) -> Flags:
    """Which records train which shadow model: models 2i and 2i+1 train on complementary halves.

    A record is in for exactly half of an even number of models. The first k models are the same
    whatever `num_models`, and a record's column the same wherever it stands in `rows`.

    Args:
        rows: [N] distinct row numbers of the pool. The even model of a pair gets N // 2.
        num_models: at least 1.
        seed: any integer.

    Returns:
        bool [num_models, N].

    Raises:
        ValueError: for fewer than two or repeated rows, or no models.

    Source: Carlini et al. 2022, section V; methods.md 2.4.
    """
    num = len(rows)
    if num < 2 or len(np.unique(rows)) < num:
        raise ValueError(f"a half split needs 2 or more distinct rows, got {num} rows")
    if num_models < 1:
        raise ValueError(f"num_models is {num_models}; a half split needs at least 1")
    by_row = np.argsort(rows)
    in_KN = np.empty((num_models, num), dtype=bool)
    for k in range(num_models):
        half = np.zeros(num, dtype=bool)
        half[_permutation(num, seed, f"shadow/{k // 2}")[: num // 2]] = True
        in_KN[k, by_row] = half ^ bool(k % 2)
    return in_KN


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


def card(
    split: Split, y: NDArray[np.integer[Any]], groups: NDArray[np.integer[Any]]
) -> dict[str, Any]:
    """Facts about a split for the data card: plain numbers, lists and dictionaries, as JSON has.

    Returns:
        num_rows; roles (rows per role); dropped_rows (without a role); duplicate_groups (those of
        two rows or more) and grouped_rows (the rows in them); missing_classes (per role, classes of
        the dataset it has no record of); judged (per judge that has records: num_members,
        num_nonmembers, their counts per class, and chi2_p of class against membership, I6).
    """
    counts = _canonical(groups)[2]
    classes = np.unique(y)
    roles = split.roles()
    judged: dict[str, Any] = {}
    judges: tuple[Judge, ...] = ("members", "reference", "untrained")
    has = {"members": True, "reference": len(split.reference), "untrained": len(split.untrained_a)}
    for judge in judges:
        if has[judge]:
            rows, is_member = split.judged(judge)
            by_side = _class_counts(y, rows, is_member)
            judged[judge] = {
                "num_members": int(is_member.sum()),
                "num_nonmembers": int((~is_member).sum()),
                "members_by_class": by_side[1].tolist(),
                "nonmembers_by_class": by_side[0].tolist(),
                "chi2_p": _chi2_p(by_side),
            }
    return {
        "num_rows": len(y),
        "roles": {name: len(rows) for name, rows in roles.items()},
        "dropped_rows": len(y) - sum(map(len, roles.values())),
        "duplicate_groups": int((counts > 1).sum()),
        "grouped_rows": int(counts[counts > 1].sum()),
        "missing_classes": {
            name: np.setdiff1d(classes, y[rows]).tolist() for name, rows in roles.items()
        },
        "judged": judged,
    }


def _class_counts(y: NDArray[np.integer[Any]], rows: Rows, is_member: Flags) -> NDArray[np.int64]:
    """Records per side and class [2, C]; side 1 are the members."""
    num = int(y.max()) + 1
    return np.stack([np.bincount(y[rows[is_member == side]], minlength=num) for side in (0, 1)])


def _chi2_p(count_2C: NDArray[np.int64]) -> float:
    """p-value of Pearson's chi-squared test of class against membership; 1 if nothing to test."""
    seen = count_2C[:, count_2C.any(axis=0)]
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / max(seen.sum(), 1)
    if seen.shape[1] < 2 or not expected.all():
        return 1.0
    return float(chdtrc(seen.shape[1] - 1, np.sum((seen - expected) ** 2 / expected)))


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
        leaky: the defense is meant to see nonmembers (AEPPT as published); I3 is not asked.
        judge: see `Split.judged`.

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
    group_of_row = _canonical(groups)[0]
    return [
        *_check_disjoint("I1", "attack fit", "judged", rows, group_of_row),
        *_check_disjoint("I2", "attack calibration", "judged", rows, group_of_row),
        *([] if leaky else _check_defense(split, rows["defense"])),
        *_check_target(split, rows["target"], rows["judged"], is_member, judge),
        *_check_groups(split, rows, is_member, group_of_row, leaky),
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
    split: Split, rows: dict[str, Rows], is_member: Flags, groups: Rows, leaky: bool
) -> Iterator[Violation]:
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
    for one, other in pairs if leaky else [*pairs, ("defense", "judged non-members")]:
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
    p = _chi2_p(_class_counts(y, judged, is_member))
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
