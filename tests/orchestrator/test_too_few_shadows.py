"""LiRA is refused before a run exactly where its shadow models would not be enough."""

import numpy as np
import pytest

from attacks._likelihood import lira
from attacks.lira import Lira
from orchestrator.check import check
from storage.halves import half_split
from tasks.train_shadows import shadow_rows

DATA = {
    "name": "synth_s",
    "generator": {"rows": 300, "classes": 4, "features": 16},
    "split": {"members": 60, "reference": 60, "nonmembers": 60},
}
OWN = (None, True, False)


def enough(attack, defended):
    """Whether the likelihood can be computed in the real design of shadow models."""
    pool = np.arange(80)
    chosen = half_split(pool, attack.num_shadows, seed=5)
    is_out = ~chosen
    for number in range(attack.num_shadows) if defended else ():
        _, reference = shadow_rows(pool, chosen[number], number, 5)
        is_out[number, np.concatenate(reference)] = False
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(attack.num_shadows, len(pool), 1))
    common = attack.global_variance
    try:
        lira(
            phi[0],
            phi,
            chosen,
            is_out,
            mode=attack.mode,
            global_variance=attack.num_shadows < 64 if common is None else common,
        )
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("num_shadows", [4, 6, 8, 10, 12, 64])
def test_a_fault_is_told_exactly_where_scoring_would_fail(num_shadows, own, mode):
    attack = Lira(num_shadows=num_shadows, global_variance=own, mode=mode)
    for defended in (False, True):
        fault = attack.fault((16,), adaptive=defended)
        assert (fault == "") == enough(attack, defended), fault
        if fault:
            least = int(fault.rsplit("use ", 1)[1].split()[0])
            assert Lira(**{**dict(attack), "num_shadows": least}).fault((16,), adaptive=True) == ""


def problems(attack, **keys):
    raw = {"name": "few", "datasets": [DATA], "defenses": ["prototype"], "attacks": [attack]}
    return [str(problem) for problem in check({**raw, **keys}, None)]


FEW = {"name": "lira", "num_shadows": 4}


def test_an_experiment_with_too_few_is_refused_where_it_says_so():
    assert problems(FEW) == []
    for found in (problems({**FEW, "adaptive": True}), problems(FEW, adaptive=True)):
        assert len(found) == 1
        assert found[0].startswith("attacks[0]: num_shadows is 4; with adaptive")
        assert found[0].endswith("use 6 or more")
    assert problems({**FEW, "num_shadows": 6}, adaptive=True) == []
    few_own = {**FEW, "num_shadows": 6, "global_variance": False}
    assert "use 8 or more" in problems(few_own, adaptive=True)[0]
    assert len(problems({"name": "lira", "grid": {"num_shadows": [4, 6, 8]}}, adaptive=True)) == 1


def test_two_shadows_are_none():
    (found,) = problems({**FEW, "num_shadows": 2})
    assert "num_shadows" in found
    assert "4" in found


def test_queries_that_only_images_allow_are_refused_for_others():
    (found,) = problems({"name": "lira", "num_shadows": 4, "num_queries": 2})
    assert "records have shape [16]" in found
    assert Lira(num_queries=18).fault((3, 8, 8), adaptive=False) == ""
