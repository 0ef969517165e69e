"""The benchmarks at their smallest sizes, and what they share."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import join  # noqa: E402
import measure  # noqa: E402
from measure import MIB, Row, Times, interleave, markdown, read_rows  # noqa: E402


def missing():
    raise ImportError("No module named 'toolkit'\nand more")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a benchmark at its smallest size; returns the rows that it leaves."""

    def run(module, part):
        words = [module.__name__, "--quick", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        threads = torch.get_num_threads()
        module.main()
        torch.set_num_threads(threads)
        return {(row.case, row.name): row for row in read_rows(tmp_path / f"{part}.jsonl")}

    return run


def test_each_is_as_often_before_as_after_another():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleave(functions, rounds=6, warm_up=1, before=lambda x: calls.append(x))
    assert calls[::2] == calls[1::2]  # `before` is told what comes
    rounds = ["".join(calls[1::2][i : i + 3]) for i in range(0, 21, 3)]
    assert rounds == ["abc", "bca", "cab", "cba", "acb", "bac", "abc"]
    assert {name: len(x.wall) for name, x in times.items()} == dict.fromkeys("abc", 6)


def test_a_ratio_is_of_the_rounds():
    one, other = Times([1.0, 10.0, 2.0]), Times([2.0, 20.0, 2.0])
    assert one / other == 0.5 and one.median == 2.0
    assert one.spread == (1.5, 6.0) and Times([3.0]).spread == (3.0, 3.0)


def take(mib):
    """Made in another process."""
    return lambda: bytearray(b"x") * (mib * MIB)


def test_the_peak_of_a_call():
    found = measure.peak_memory(take, 64)
    assert 63 * MIB <= found < 80 * MIB


def test_a_table_has_the_columns_that_are_used():
    rows = [
        Row("part", "case", "one", median=2.0, low=1.0, high=3.0, ratio=51, goal=">= 50"),
        Row("part", "case", "two", ratio=1.2, of="a|b", goal="<= 1.03"),
        Row("part", "", "three", note="missing: it"),
    ]
    lines = markdown(rows).splitlines()
    names = [x.strip() for x in lines[0].strip("|").split("|")]
    wanted = ["part", "case", "what", "median", "quartiles", "ratio", "of", "goal"]
    assert names == [*wanted, "met", "note"]
    assert [row.met for row in rows] == ["yes", "no", ""]
    assert "a\\|b" in lines[3] and len(set(map(len, lines))) == 1


def test_masks(run, monkeypatch):
    import mask_speed

    peers = {"ESPnet": mask_speed.load_espnet, "it": missing}
    monkeypatch.setattr(mask_speed, "PEERS", peers)
    rows = run(mask_speed, "masks")
    case = "4x50 frames"
    names = ["ESPnet", *(f"ours, {x}" for x in mask_speed.STRATEGIES)]
    assert list(rows) == [*((case, name) for name in names), ("", "it")]
    assert rows["", "it"].note == "missing: ImportError: No module named 'toolkit'"
    assert all(rows[case, name].ratio > 0 for name in names)


def test_contrastive(run, monkeypatch):
    import contrastive_speed as module

    monkeypatch.setattr(module, "LOSSES", {"ours": module.load_ours, "it": missing})
    rows = run(module, "contrastive")
    case = "2x40x5 negatives"
    assert list(rows) == [(case, "ours"), ("", "it")]
    assert rows[case, "ours"].memory > 0


def test_contrastive_losses_are_the_same():
    """But for the negatives, which each draws, of which there are many."""
    import contrastive_speed as module

    ours, other = (
        module.make_call(name, "4x100x500", "cpu")() for name in ("ours", "Hugging Face")
    )
    torch.testing.assert_close(ours, other, rtol=0.02, atol=0)


def test_data(run):
    import data_speed

    rows = run(data_speed, "data")
    cases = ("0 workers", "1 worker")
    assert list(rows) == [(case, way) for case in cases for way in data_speed.WAYS]
    assert all(row.median > 0 and row.unit == "utt/s" for row in rows.values())


def test_scoring(run):
    import score_speed

    rows = run(score_speed, "scoring")
    names = ("bare", "score", "gated", "espnet")
    assert list(rows) == [("untrained, mini", name) for name in names]


def test_one_table_and_one_plot(tmp_path, monkeypatch):
    args = measure.get_parser("", 1).parse_args(["--out", str(tmp_path)])
    rows = measure.Rows("masks", args)
    rows.add("a case", "ours", Times([1.0], [1.0]), ratio=3.0, goal=">= 2")
    rows.add_missing({"it": "why"})
    rows.finish()
    words = ["join.py", str(tmp_path), "--parts", "masks", "step", "--failed", "step"]
    monkeypatch.setattr(sys, "argv", words)
    join.main()
    table = (tmp_path / "table.md").read_text()
    assert "missing: why" in table and "| step " in table and "failed; see its log" in table
    assert f"torch {torch.__version__.partition('+')[0]}" in table
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words, message",
    [
        (["speed"], "speed is no part; there are: masks step"),
        (["--device", "tpu"], "--device: write cpu or cuda"),
        (["--fast"], "--fast is not known"),
    ],
)
def test_what_run_sh_does_not_know(words, message):
    done = subprocess.run(
        [BENCHMARKS / "run.sh", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and message in done.stderr


def test_help_tells_of_the_options():
    done = subprocess.run([BENCHMARKS / "run.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "BENCH_VENV" in done.stdout
