"""The benchmarks of training at their smallest sizes."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import limit  # noqa: E402
import step_speed  # noqa: E402
from measure import read_rows  # noqa: E402
from training import MASKED, stock_mask_prob  # noqa: E402


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a benchmark at its smallest size; returns the rows that it leaves."""

    def run(module, part, *words):
        words = [module.__name__, "--quick", "--out", str(tmp_path), *words]
        monkeypatch.setattr(sys, "argv", words)
        threads = torch.get_num_threads()
        module.main()
        torch.set_num_threads(threads)
        return read_rows(tmp_path / f"{part}.jsonl")

    return run


def test_parts_of_a_step_are_told_beside_its_limit(run):
    rows = run(limit, "limit", "--objectives", "w2v_bert")
    assert {row.case for row in rows} == {"w2v_bert mini, 1 x 1 s"}
    found = {row.name: row.ratio for row in rows}
    assert list(found)[:2] == ["encoder there and back", "step"]
    assert found["loss"] > 0 and found["step without clip and update"] > 0


def test_a_step_is_told_beside_stock_espnets(run, monkeypatch):
    monkeypatch.setattr(step_speed, "peak_memory", lambda *args, **more: 2**20)
    monkeypatch.setattr(step_speed, "side_by_side", lambda rows, args: None)
    rows = {row.name: row for row in run(step_speed, "step", "--cases", "hubert mini")}
    names = ["ESPnet", "ours, random", "ours, ATM", "ours, ATM+S"]
    assert all(rows[name].median > 0 and rows[name].memory == 1 for name in names)
    assert rows["ours, ATM+S and ESPnet"].ratio > 0
    assert rows["masks"].ratio > 0 and rows["ours with the track"].ratio > 0


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    words = ["--quick", "--cases", "best_rq mini", "--out", tmp_path]
    subprocess.run([sys.executable, step_speed.__file__, *map(str, words)], check=True)
    rows = read_rows(tmp_path / "step.jsonl")
    found = [row for row in rows if row.case.endswith("two processes")]
    assert [row.name for row in found[:2]] == list(step_speed.PARALLEL)
    assert all(row.median > 0 and row.ratio > 0 for row in found[:2])


@pytest.mark.parametrize("case", ["hubert mini", "hubert small", "wav2vec2 small"])
def test_what_is_compared_has_the_same_architecture(case):
    """As many parameters but for the heads: torchaudio's HuBERT has others."""
    names = step_speed.PEERS[case], "ours, ATM+S"
    steps = [step_speed.make_call(case, name, (2, 1), "cpu") for name in names]
    theirs, ours = (step.parameters for step in steps)
    assert theirs == pytest.approx(ours, rel=0.03)
    for step in steps:
        assert torch.isfinite(step.loss())


def test_stock_masks_are_made_to_mask_as_much():
    from espnet2.ssl.utils.mask import _compute_mask_indices

    prob = stock_mask_prob(4, 125)
    padding = torch.zeros(4, 125, dtype=torch.bool)
    masks = [
        _compute_mask_indices((4, 125), padding, "cpu", prob, 10, min_masks=2)
        for _ in range(100)
    ]
    assert torch.stack(masks).float().mean() == pytest.approx(MASKED, abs=0.04)
