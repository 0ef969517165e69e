import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECIPE

SCLITE = """
     |-----------------------------------------------------------------|
     | SPKR   | # Snt # Wrd | Corr    Sub    Del    Ins    Err  S.Err |
     |=================================================================|
     | Sum/Avg|    3      5 | 60.0   20.0   20.0   10.0   50.0  100.0 |
     |=================================================================|
     |  Mean  |  3.0    5.0 | 61.0   20.0   20.0   20.0   60.0  100.0 |
"""


def update(folder: Path, *options: str) -> str:
    command = [sys.executable, str(RECIPE / "local" / "results.py"), "--corpus", "mini"]
    command += ["--results", str(folder / "RESULTS.md"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def decoded(tmp_path) -> list[str]:
    """A test set of two utterances, one of them decoded wrongly."""
    for name, text in (
        ("data/test/text", "a one two\nb three four\n"),
        ("decode/test/text", "b three four\na one too\n"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return [
        *(
            "--data_dir",
            str(tmp_path / "data"),
            "--decode_dir",
            str(tmp_path / "decode"),
        ),
        "test",
    ]


def test_without_sclite_by_jiwer(tmp_path, decoded):
    update(tmp_path, "--run", "first", *decoded)
    # 1 of 4 words; 1 of 17 characters, spaces within an utterance included
    assert "| mini | first | test | 2 | 25.0 | 5.9 | jiwer |" in update(tmp_path)


def test_with_sclite(tmp_path, decoded):
    for kind in ("wer", "cer"):
        (tmp_path / f"decode/test/score_{kind}").mkdir()
        (tmp_path / f"decode/test/score_{kind}/result.txt").write_text(SCLITE)
    update(tmp_path, "--run", "first", *decoded)
    assert "| mini | first | test | 2 | 50.0 | 50.0 | sclite |" in update(tmp_path)


def test_runs_live_side_by_side_and_replace_themselves(tmp_path, decoded):
    for run in ("first", "second", "first"):
        update(tmp_path, "--run", run, *decoded)
    table = update(tmp_path)
    assert table.count("| first |") == 1 and table.count("| second |") == 1
    assert (tmp_path / "RESULTS.md").read_text().count("| mini |") == 2


def test_missing_hypotheses_are_refused(tmp_path, decoded):
    (tmp_path / "decode/test/text").write_text("a one two\n")
    with pytest.raises(AssertionError, match="no hypothesis for b and 0 more of 2"):
        update(tmp_path, "--run", "first", *decoded)
