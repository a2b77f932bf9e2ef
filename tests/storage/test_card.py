"""The data card counts what a plain loop counts."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from storage.card import card
from storage.splits import Sizes, make_split


@given(
    st.integers(0, 2**32),
    st.sampled_from([0, 15]),
    st.sampled_from([0, 3]),
    st.sampled_from(["group", "drop"]),
)
@settings(max_examples=20, deadline=None)
def test_the_card_counts_what_a_plain_loop_counts(seed, reference, untrained, dedup):
    rng = np.random.default_rng(seed)
    y, groups = rng.integers(0, 5, size=300), rng.integers(0, 400, size=300)
    sizes = Sizes(60, reference, 60, untrained)
    split = make_split(y, groups, sizes, seed=seed, dedup=dedup)
    facts = json.loads(json.dumps(card(split, y, groups)))
    repeats = [n for n in Counter(groups.tolist()).values() if n > 1]
    assert (facts["duplicate_groups"], facts["grouped_rows"]) == (len(repeats), sum(repeats))
    distinct = len(set(groups.tolist()))
    dropped = len(y) - distinct if dedup == "drop" else 0
    assert (facts["num_rows"], facts["dropped_rows"]) == (len(y), dropped)
    for role, rows in split.roles().items():
        assert facts["roles"][role] == len(rows)
        assert set(facts["missing_classes"][role]) == set(y) - set(y[rows])
    has = {"members": True, "reference": reference, "untrained": untrained}
    assert list(facts["judged"]) == [judge for judge in has if has[judge]]
    for judge, fact in facts["judged"].items():
        rows, is_member = split.judged(judge)
        table = [[0] * (y.max() + 1), [0] * (y.max() + 1)]
        for row, member in zip(rows, is_member, strict=True):
            table[int(member)][y[row]] += 1
        assert [fact["nonmembers_by_class"], fact["members_by_class"]] == table
        seen = np.array(table)[:, np.any(table, axis=0)]
        p = chi2_contingency(seen, correction=False).pvalue if seen.shape[1] > 1 else 1
        assert fact["chi2_p"] == pytest.approx(p)
