"""Damaged input is refused by name or harmless: see fuzz.py, which prints the counts."""

import collections

import fuzz


def test_three_hundred_damaged_inputs(tmp_path):
    outcomes = list(fuzz.fuzz(300, 1, tmp_path))
    wrong = [
        f"{x.seed} {x.verdict}: {x.case.command}, {x.case.what}\n{x.said[-1500:]}"
        for x in outcomes
        if x.verdict not in ("refused", "harmless")
    ]
    assert not wrong, "\n\n".join(wrong)
    tried = collections.Counter(x.case.kind for x in outcomes)
    assert len(outcomes) == 300 and min(tried.values()) > 5
    assert sum(x.verdict == "refused" for x in outcomes) > 250
