import signal
import subprocess
import sys
import time

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from espnet2.train.dataset import ESPnetDataset

from espnet_atm.bin.score import main, read_scp_ids
from espnet_atm.scorer import Scorer

FILES = ("confidence.ark", "confidence.scp", "utt2confidence", "frame_shift", "scorer")


def command(asr, wav_scp, output_dir, *options) -> list[str]:
    return [
        *("--asr_train_config", str(asr[0]), "--asr_model_file", str(asr[1])),
        *("--wav_scp", str(wav_scp), "--output_dir", str(output_dir), *options),
    ]


def contents(folder) -> dict:
    """What the files hold; paths in the scp relative to the folder."""
    return {
        name: (folder / name).read_bytes().replace(str(folder).encode(), b"")
        for name in FILES
    }


@pytest.fixture
def undisturbed(asr, corpus, tmp_path):
    folder = tmp_path / "undisturbed"
    main(command(asr, corpus / "wav.scp", folder))
    return folder


def test_scores_are_the_scorers_within_a_byte(asr, corpus, undisturbed):
    scorer = Scorer.from_files(*asr)
    stored = kaldiio.load_scp(str(undisturbed / "confidence.scp"))
    means = dict(
        line.split()
        for line in (undisturbed / "utt2confidence").read_text().splitlines()
    )
    assert list(stored) == read_scp_ids(corpus / "wav.scp")
    for utt, track in stored.items():
        speech, _ = soundfile.read(corpus / f"{utt}.wav", dtype="float32")
        expected, _ = scorer.score(
            torch.from_numpy(speech)[None], torch.tensor([len(speech)])
        )
        assert track.shape == (expected.size(1), 1)
        assert np.abs(track[:, 0] - expected[0].numpy()).max() <= 0.5 / 255 + 1e-6
        assert float(means[utt]) == pytest.approx(track.mean(), abs=1e-6)
    assert (undisturbed / "frame_shift").read_text() == "640\n"
    assert (undisturbed / "frame_offset").read_text() == "479.5\n"


def test_one_byte_a_frame(corpus, undisturbed):
    tracks = kaldiio.load_scp(str(undisturbed / "confidence.scp"))
    overhead = 40 * len(tracks)
    frames = sum(len(x) for x in tracks.values())
    assert (undisturbed / "confidence.ark").stat().st_size < frames + overhead


def test_espnet_reads_the_track(undisturbed):
    dataset = ESPnetDataset(
        [(f"{undisturbed}/confidence.scp", "confidence", "kaldi_ark")]
    )
    expected = kaldiio.load_scp(str(undisturbed / "confidence.scp"))["utt3"]
    got = dataset["utt3"][1]["confidence"]
    np.testing.assert_array_equal(got, expected)


def test_a_second_run_changes_nothing(asr, corpus, undisturbed, monkeypatch):
    before = contents(undisturbed)

    def load(*args):
        raise AssertionError("nothing is left to score")

    monkeypatch.setattr(Scorer, "from_files", load)
    main(command(asr, corpus / "wav.scp", undisturbed))
    assert contents(undisturbed) == before


@pytest.mark.parametrize("name", ["confidence.ark", "confidence.scp", "utt2confidence"])
@pytest.mark.parametrize("lost", [1, 10, 60, 10**9])
def test_files_cut_off_anywhere_are_completed(asr, corpus, undisturbed, name, lost):
    before = contents(undisturbed)
    file = undisturbed / name
    data = file.read_bytes()
    file.write_bytes(data[: max(len(data) - lost, 0)])
    if name == "confidence.ark":
        # What reached the ark only in part never reached the scp.
        positions = [
            int(line.rsplit(":")[-1])
            for line in (undisturbed / "confidence.scp").read_text().splitlines()
        ]
        whole = sum(x < len(data) - lost for x in positions)
        whole = max(whole - 1, 0)
        lines = (undisturbed / "confidence.scp").read_text().splitlines(keepends=True)
        (undisturbed / "confidence.scp").write_text("".join(lines[:whole]))
    main(command(asr, corpus / "wav.scp", undisturbed))
    assert contents(undisturbed) == before


def test_killed_and_started_again(asr, corpus, undisturbed, tmp_path):
    folder = tmp_path / "killed"
    wav_scp = tmp_path / "wav.scp"
    wav_scp.write_bytes((corpus / "wav.scp").read_bytes())
    start = [sys.executable, "-m", "espnet_atm.bin.score"]
    process = subprocess.Popen(
        start + command(asr, wav_scp, folder), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    # The moment that the first score is there.
    while process.poll() is None:
        scp = folder / "confidence.scp"
        if scp.exists() and scp.stat().st_size:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.wait()
    main(command(asr, wav_scp, folder))
    assert contents(folder) == contents(undisturbed)


def test_scores_of_another_scorer_or_measure_are_not_mixed_in(
    asr, make_asr, corpus, undisturbed
):
    with pytest.raises(ValueError, match="scores of another scorer or measure"):
        main(command(asr, corpus / "wav.scp", undisturbed, "--measure", "entropy"))
    other = make_asr(token_list=["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"])
    with pytest.raises(ValueError, match="scores of another scorer or measure"):
        main(command(other, corpus / "wav.scp", undisturbed))


def test_scores_of_other_utterances_are_refused(asr, corpus, undisturbed, tmp_path):
    fewer = tmp_path / "wav.scp"
    lines = (corpus / "wav.scp").read_text().splitlines(keepends=True)
    fewer.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="not in .*wav.scp: utt0 and 0 more"):
        main(command(asr, fewer, undisturbed))


def test_what_cannot_be_scored_is_skipped_by_name(asr, corpus, tmp_path, capfd):
    soundfile.write(tmp_path / "short.wav", np.zeros(160), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((16000, 2)), 16000)
    soundfile.write(
        tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT"
    )
    wav_scp = tmp_path / "wav.scp"
    names = ("short", "empty", "stereo", "nan", "missing")
    first = (corpus / "wav.scp").read_text().splitlines()[0]
    wav_scp.write_text(
        first + "".join(f"\n{x} {tmp_path}/{x}.wav" for x in names) + "\n"
    )
    folder = tmp_path / "scores"
    with pytest.raises(SystemExit, match="5 utterances have no score"):
        main(command(asr, wav_scp, folder))
    skipped = dict(
        line.split(maxsplit=1) for line in (folder / "skipped").read_text().splitlines()
    )
    assert set(skipped) == set(names)
    assert "160 samples are too short" in skipped["short"]
    assert "2 channels" in skipped["stereo"]
    assert "not finite" in skipped["nan"]
    assert len((folder / "confidence.scp").read_text().splitlines()) == 1
    main(command(asr, wav_scp, folder, "--max_skipped", "5"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a x.wav\nb\n", "wav.scp:2: no path in 'b'"),
        ("a x\nb y\na z\n", ":3: a is in line 1"),
    ],
)
def test_bad_scp_lines_are_named(tmp_path, text, message):
    (tmp_path / "wav.scp").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scp_ids(tmp_path / "wav.scp")


def test_audio_at_another_rate_is_refused(asr, tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(8000), 8000)
    (tmp_path / "wav.scp").write_text(f"slow {tmp_path}/slow.wav\n")
    with pytest.raises(
        ValueError, match="slow: .* 8000 Hz and the scorer wants 16000 Hz"
    ):
        main(command(asr, tmp_path / "wav.scp", tmp_path / "scores"))


def test_a_moved_folder_goes_on(asr, corpus, undisturbed, tmp_path):
    before = (undisturbed / "confidence.ark").read_bytes()
    moved = tmp_path / "moved"
    undisturbed.rename(moved)
    lines = (moved / "utt2confidence").read_text().splitlines(keepends=True)
    (moved / "utt2confidence").write_text("".join(lines[:4]))
    main(command(asr, corpus / "wav.scp", moved))
    assert (moved / "confidence.ark").read_bytes() == before
