"""What an attacker holds: what it is told, what it may train, and what it may not have."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from attacks.base import Attack
from defenses.onehot import OneHot
from tasks.answers import Answers
from tasks.base import Rows
from tasks.fit_defense import FitDefense
from tasks.split import rows_seen
from tasks.train_target import TrainTarget


class Asking(Attack):
    """Keeps what it was given."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    LEARNS: ClassVar[bool] = True
    seen: ClassVar[Any] = None

    judges: int | None = None

    @property
    def most_records(self) -> int | None:
        return self.judges

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        Asking.seen = SimpleNamespace(known=known, x=x, fit=known.query(known.fit.x))
        return query(x)[np.arange(len(y)), y]


class Blind(Asking):
    """Has nothing but the answers."""

    THREAT_MODEL: ClassVar[str] = "BB-blind"

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        for part in ("fit", "cal", "population"):
            with pytest.raises(PermissionError):
                getattr(known, part)
        return query(x).max(axis=1)


class Population(Asking):
    """Has records that are no members."""

    THREAT_MODEL: ClassVar[str] = "BB-pop"

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        for part in ("fit", "cal"):
            with pytest.raises(PermissionError, match="told nobody's membership"):
                getattr(known, part)
        Asking.seen = SimpleNamespace(known=known)
        return query(x).max(axis=1)


@pytest.fixture
def own(lab: Any, tmp_path: Path) -> Any:
    return lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))


def test_a_blind_attacker_has_no_records(own: Any) -> None:
    own.run(own.attack(own.plain, Blind()))


def test_the_population_is_known_and_spare_records_of_no_member(own: Any) -> None:
    own.run(own.attack(own.plain, Population()))
    split, known = own.bench.split(own.split), Asking.seen.known
    rows = np.union1d(split.nonmembers_fit, split.population)
    expected = {record.tobytes() for record in own.dataset.x(rows)}
    assert {record.tobytes() for record in known.population.x} == expected
    assert len(known.population) == len(rows)
    # In an order that tells nothing of where they come from.
    first = {record.tobytes() for record in own.dataset.x(split.nonmembers_fit)}
    place = [record.tobytes() in first for record in known.population.x]
    assert place != sorted(place)
    assert place != sorted(place, reverse=True)


def test_a_defenders_own_attacker_has_no_population(own: Any) -> None:
    artifact = own.run(own.attack(own.plain, Population(), judge="defender"))
    split, known = own.bench.split(own.split), Asking.seen.known
    fit, is_member, _, _ = split.known("defender")
    expected = {record.tobytes() for record in own.dataset.x(fit[~is_member])}
    assert {record.tobytes() for record in known.population.x} == expected
    for foreign in (split.population[:1], split.nonmembers_fit[:1], split.reference_val[:1]):
        with pytest.raises(PermissionError, match="does not hold"):
            known.x_of(foreign)
    owned = np.concatenate([split.members, split.reference])
    for rows in rows_seen(artifact).values():
        assert np.isin(rows, owned).all()


def test_few_records_are_judged_where_each_costs_thousands_of_questions(own: Any) -> None:
    artifact = own.run(own.attack(own.plain, Asking(judges=20)))
    seen, figures = rows_seen(artifact), artifact.facts("metrics")
    judged, _member = own.bench.split(own.split).judged("members")
    assert np.isin(seen["judged"], judged).all()
    assert figures["num_members"] == figures["num_nonmembers"] == 10
    assert len(seen["cal"]) == 10
    assert len(Asking.seen.x) == 30


def test_training_after_answers_gives_the_model_at_equal_parts(own: Any) -> None:
    own.run(own.attack(own.plain, Asking()))
    known = Asking.seen.known
    soft = known.query(known.fit.x)
    early, late = known.train(known.fit.x, soft, seed=5, snapshots=2, epochs=8)
    again = known.train(known.fit.x, soft, seed=5, epochs=8)[-1]
    half = known.train(known.fit.x, soft, seed=5, epochs=4)[-1]
    x = own.dataset.x(np.arange(7))
    np.testing.assert_array_equal(late.answer(x), again.answer(x))
    np.testing.assert_array_equal(early.answer(x), half.answer(x))
    assert not np.array_equal(early.answer(x), late.answer(x))
    hard = known.train(known.fit.x, known.fit.y, seed=5, epochs=60)[-1]
    assert (hard.answer(known.fit.x).argmax(axis=1) == known.fit.y).mean() > 0.9
    with pytest.raises(ValueError, match="between 1 and as many"):
        known.train(known.fit.x, soft, seed=5, snapshots=9, epochs=8)


def test_an_own_copy_takes_the_place_of_the_deployed_service(own: Any) -> None:
    split = own.bench.split(own.split)
    fit = np.sort(np.concatenate([split.members_fit, split.nonmembers_fit]))
    rows_in, rows_out, reference = fit[0::3], fit[1::3], fit[2::3]
    target = TrainTarget(
        seed=11,
        split=own.split,
        architecture=own.target.architecture,
        rows=Rows(rows_in),
        reference=Rows(reference),
    )
    plain = Answers(seed=11, source=target)
    copy = Answers(seed=11, source=FitDefense(seed=11, answers=plain, defense=OneHot()))
    deployed = own.defended(OneHot())
    task = own.attack(deployed, Asking(), adaptive=True, own_copy=copy, own_copy_out=Rows(rows_out))
    artifact = own.run(task)
    known = Asking.seen.known
    told = {
        record.tobytes(): bool(member)
        for part in (known.fit, known.cal)
        for record, member in zip(part.x, part.is_member, strict=True)
    }
    expected = {record.tobytes(): True for record in own.dataset.x(rows_in)}
    expected |= {record.tobytes(): False for record in own.dataset.x(rows_out)}
    assert told == expected
    # What it fits on are the copy's defended answers, and they cost the service no query.
    rows = {record.tobytes(): row for row, record in zip(fit, own.dataset.x(fit), strict=True)}
    asked = np.array([rows[record.tobytes()] for record in known.fit.x])
    np.testing.assert_array_equal(Asking.seen.fit, copy.of(asked, own.bench))
    assert artifact.facts("metrics")["num_queries"] == len(Asking.seen.x)
    assert "non_adaptive" not in artifact.facts("metrics")["flags"]
    seen = rows_seen(artifact)
    assert set(seen["own_copy_in"]) == set(rows_in)
    assert not np.isin(seen["judged"], [*rows_in, *rows_out]).any()
