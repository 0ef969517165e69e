"""local/subset_by_confidence.sh"""

import subprocess

import pytest
from conftest import RECIPE, ROOT

CONFIDENCE = {"a-1": 0.9, "a-2": 0.5, "b-1": 0.7, "b-2": 0.699999}


@pytest.fixture
def select(tmp_path):
    """Runs the script on a data directory of four utterances."""
    if not (ROOT / "egs2" / "TEMPLATE").exists():
        pytest.fail("egs2/TEMPLATE is missing: run the tests by ./run_tests.sh")
    data = tmp_path / "data"
    data.mkdir()
    for name, value in {
        "utt2spk": lambda utt: utt[0],
        "wav.scp": lambda utt: f"{utt}.wav",
        "utt2num_samples": lambda utt: "16000",
        "text": lambda utt: "two words",
    }.items():
        lines = [f"{utt} {value(utt)}\n" for utt in CONFIDENCE]
        (data / name).write_text("".join(lines))
    (data / "feats_type").write_text("raw\n")
    means = tmp_path / "utt2confidence"
    means.write_text("".join(f"{utt} {x:.6f}\n" for utt, x in CONFIDENCE.items()))

    def run(least):
        command = ["local/subset_by_confidence.sh", "--min_confidence", least]
        command += [str(means), str(data), str(tmp_path / "subset")]
        return subprocess.run(command, cwd=RECIPE, capture_output=True, text=True)

    return run


def test_sure_utterances_are_kept_with_all_that_is_known_of_them(select, tmp_path):
    done = select("0.7")
    assert done.returncode == 0, done.stderr
    assert "2 of 4 utterances kept" in done.stdout
    assert "2 have a mean confidence below 0.7" in done.stdout
    subset = tmp_path / "subset"
    for name in ("utt2spk", "wav.scp", "utt2num_samples", "text"):
        lines = (subset / name).read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["a-1", "b-1"], name
    assert (subset / "spk2utt").read_text() == "a a-1\nb b-1\n"
    assert (subset / "feats_type").read_text() == "raw\n"
    assert not list(subset.glob(".*"))


def test_again_with_another_bound(select, tmp_path):
    select("0.9")
    assert select("0").returncode == 0
    assert len((tmp_path / "subset" / "wav.scp").read_text().splitlines()) == 4


@pytest.mark.parametrize("least", ["0,5", "1.5", "-1", "nan", "abc", "", "0x1", "inf"])
def test_an_impossible_bound_is_refused(select, tmp_path, least):
    done = select(least)
    assert done.returncode != 0 and "utterances kept" not in done.stdout
    assert f"--min_confidence {least}: is no number in [0, 1]" in done.stderr
    assert not (tmp_path / "subset").exists()


@pytest.mark.parametrize(
    "line", ["b-2", "b-2 nan", "b-2 x", "b-2 1.5", "b-2 -0.1", "b-2 0.5 0.5", "a-1 0.9"]
)
def test_a_damaged_table_of_means_is_named_by_line(select, tmp_path, line):
    means = tmp_path / "utt2confidence"
    lines = means.read_text().splitlines()
    means.write_text("\n".join([*lines[:3], line]) + "\n")
    done = select("0.5")
    assert done.returncode == 1
    assert f"{means}:4: {line} is no id that is new" in done.stderr
    assert not (tmp_path / "subset").exists()


@pytest.mark.parametrize("least, kept", [("1e-1", 4), (".7", 2), ("1", 0), ("0.", 4)])
def test_bounds_as_numbers_are_written(select, least, kept):
    done = select(least)
    assert f"{kept} of 4 utterances kept" in done.stdout


def test_what_cannot_be_selected_is_named(select, tmp_path):
    done = select("0.95")
    assert done.returncode == 1 and "nothing is left of" in done.stderr
    means = tmp_path / "utt2confidence"
    means.write_text("".join(means.read_text().splitlines(keepends=True)[:3]))
    done = select("0.5")
    assert done.returncode == 0
    assert "3 of 4 utterances kept" in done.stdout
    assert "0 have a mean confidence below 0.5, 1 have no confidence in" in done.stdout
    subset = (tmp_path / "subset" / "wav.scp").read_text().splitlines()
    assert [line.split()[0] for line in subset] == ["a-1", "a-2", "b-1"]
    means.unlink()
    done = select("0.5")
    assert done.returncode == 1 and "utt2confidence is missing" in done.stderr
    means.write_text("a-1 0.9\n")
    (tmp_path / "subset").rename(tmp_path / "before")
    (tmp_path / "subset").symlink_to(tmp_path / "data")
    done = select("0.5")
    assert done.returncode == 1 and "cannot be its own subset" in done.stderr
    assert len((tmp_path / "data" / "wav.scp").read_text().splitlines()) == 4
