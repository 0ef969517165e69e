"""Damaged input is refused by name or harmless: see fuzz.py, which prints the counts."""

import collections

import fuzz
import pytest


def check(cases: int, seed: int, folder) -> None:
    outcomes = list(fuzz.fuzz(cases, seed, folder))
    wrong = [
        f"{x.seed} {x.verdict}: {x.case.command}, {x.case.what}\n{x.said[-1500:]}"
        for x in outcomes
        if x.verdict not in ("refused", "harmless")
    ]
    assert not wrong, "\n\n".join(wrong)
    tried = collections.Counter(x.case.kind for x in outcomes)
    assert len(outcomes) == cases and min(tried.values()) > 0
    assert sum(x.verdict == "refused" for x in outcomes) > cases // 2


def test_a_hundred_damaged_inputs(tmp_path):
    check(100, 0, tmp_path)


@pytest.mark.slow
def test_six_hundred_damaged_inputs(tmp_path):
    check(600, 1, tmp_path)
