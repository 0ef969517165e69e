import kaldiio
import numpy as np
import pytest

from espnet_atm.errors import UserError
from espnet_atm.summary import summarize


@pytest.fixture
def scores(tmp_path):
    """Two utterances of known confidence: 30 frames of 0.2 and 10 of 1.0."""
    kaldiio.save_ark(
        str(tmp_path / "confidence.ark"),
        {
            "a": np.full((30, 1), 0.2, np.float32),
            "b": np.full((10, 1), 1.0, np.float32),
        },
        scp=str(tmp_path / "confidence.scp"),
        compression_method=7,
    )
    (tmp_path / "frame_shift").write_text("640\n")
    (tmp_path / "skipped").write_text(
        "c cannot be read: LibsndfileError: x\nd is empty\ne cannot be read: OSError: y\n"
        "f 160 samples are too short for one frame\n"
        "g its segment ends at 1.5 s and the recording has 1.250 s\n"
        "h 161 samples are too short for one frame\n"
    )
    return tmp_path


def test_summary_by_hand(scores):
    summary = summarize(scores, 16000)
    assert summary["utterances"] == 2 and summary["frames"] == 40
    assert summary["hours"] == pytest.approx(40 * 0.04 / 3600, abs=1e-3)
    assert summary["mean"] == pytest.approx((30 * 0.2 + 10) / 40, abs=1e-3)
    assert summary["deciles"] == [0.2] * 7 + [1.0] * 2
    assert summary["utterance_deciles"][0] == pytest.approx(0.28, abs=1e-3)
    assert summary["skipped"] == {
        "cannot be read": 2,
        "is empty": 1,
        "N samples are too short for one frame": 2,
        "its segment ends at N s and the recording has N s": 1,
    }


def test_hours_are_those_of_the_scorers_rate(scores):
    (scores / "frame_shift").write_text("3200000\n")
    assert summarize(scores, 16000)["hours"] == 2.222
    (scores / "sampling_rate").write_text("8000\n")
    assert summarize(scores, 16000)["hours"] == 4.444


def test_nothing_scored_is_refused(scores):
    (scores / "confidence.scp").write_text("")
    with pytest.raises(ValueError, match="confidence.scp is empty: nothing is scored"):
        summarize(scores, 16000)


@pytest.mark.parametrize("name", ["frame_shift", "sampling_rate"])
@pytest.mark.parametrize("text", ["٣", "", "x", "1" * 31])
def test_damaged_numbers_are_refused(scores, name, text):
    (scores / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: '.*' is not a positive whole number"):
        summarize(scores, 16000)


def test_exchanged_tracks_are_refused(scores):
    scp = scores / "confidence.scp"
    (a, first), (b, second) = (x.split() for x in scp.read_text().splitlines())
    scp.write_text(f"{a} {second}\n{b} {first}\n")
    with pytest.raises(UserError, match="a: .* is not its track"):
        summarize(scores, 16000)
