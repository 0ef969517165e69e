import signal
import subprocess
import sys
import time

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import CNN, CONFORMER, ROOT
from espnet2.train.dataset import ESPnetDataset
from scipy.signal import resample_poly

from espnet_atm.audio import read_table
from espnet_atm.bin import score
from espnet_atm.bin.score import main, make_batches
from espnet_atm.confidence import smooth_confidence
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
    assert list(stored) == [row[0] for row in read_table(corpus / "wav.scp", 2)]
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


def test_an_utterance_that_the_scorer_fails_on_does_not_take_others_along(
    asr, corpus, tmp_path, monkeypatch
):
    real = Scorer.score

    def fails_on_utt3(self, speech, lengths, **measure):
        if len(soundfile.read(corpus / "utt3.wav")[0]) in lengths.tolist():
            raise ValueError("no such thing")
        return real(self, speech, lengths, **measure)

    monkeypatch.setattr(Scorer, "score", fails_on_utt3)
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder, "--max_skipped", "1"))
    text = (folder / "skipped").read_text()
    assert text == "utt3 the scorer fails: no such thing\n"
    assert len((folder / "confidence.scp").read_text().splitlines()) == 9


def test_scores_do_not_depend_on_batches_beyond_rounding(asr, corpus, tmp_path):
    tracks = []
    for bins in (1, 50000, 10**6):  # one, two and all ten utterances a batch
        folder = tmp_path / str(bins)
        main(command(asr, corpus / "wav.scp", folder, "--batch_bins", str(bins)))
        tracks.append(dict(kaldiio.load_scp(str(folder / "confidence.scp"))))
    for other in tracks[1:]:
        assert list(other) == list(tracks[0])
        for utt, track in tracks[0].items():
            assert np.abs(track - other[utt]).max() < 1.01 / 255


@pytest.mark.parametrize("scored", [1, 3, 5, 8, 9])
def test_going_on_within_a_window_gives_the_same_bytes(
    asr, corpus, tmp_path, monkeypatch, scored
):
    """Batches of part of a window would differ in the last bits."""
    monkeypatch.setattr(score, "WINDOW", 4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main(command(asr, corpus / "wav.scp", whole))
    main(command(asr, corpus / "wav.scp", cut))
    lines = (cut / "utt2confidence").read_text().splitlines(keepends=True)
    (cut / "utt2confidence").write_text("".join(lines[:scored]))
    main(command(asr, corpus / "wav.scp", cut))
    assert contents(cut) == contents(whole)


def test_a_finished_window_is_not_read_again(asr, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "WINDOW", 4)
    folder = tmp_path / "scores"
    wav_scp = tmp_path / "wav.scp"
    lines = (corpus / "wav.scp").read_text().splitlines()
    wav_scp.write_text("\n".join(lines) + "\n")
    main(command(asr, wav_scp, folder))
    means = (folder / "utt2confidence").read_text().splitlines(keepends=True)
    (folder / "utt2confidence").write_text("".join(means[:8]))
    gone = [f"{x.split()[0]} /nonexistent" for x in lines[:8]]
    wav_scp.write_text("\n".join(gone + lines[8:]) + "\n")
    main(command(asr, wav_scp, folder))
    assert len((folder / "confidence.scp").read_text().splitlines()) == 10


def test_batches_hold_utterances_of_about_the_same_length():
    lengths = {"a": 10, "b": 50, "c": 12, "d": 48, "e": 200, "f": 50}
    found = make_batches(lengths, batch_bins=100, alone=False)
    assert found == [["e"], ["b", "f"], ["d"], ["c", "a"]] or found == [
        ["e"],
        ["b", "f"],
        ["d", "c"],
        ["a"],
    ]
    assert all(
        len(x) == 1 or len(x) * max(lengths[utt] for utt in x) <= 100 for x in found
    )
    alone = make_batches(lengths, batch_bins=1000, alone=True)
    assert alone == [["e"], ["b", "f"], ["d"], ["c"], ["a"]]


# Group norm over time lets padding leak into short utterances.
LEAKY = {
    "frontend": "wav2vec_cnn",
    "frontend_conf": {**CNN, "norm_mode": "group_norm"},
    "encoder_conf": {**CONFORMER, "input_layer": "linear"},
    "normalize": None,
}


def test_a_scorer_that_padding_leaks_into_scores_equal_lengths_together(
    make_asr, corpus, tmp_path, caplog
):
    asr = make_asr(**LEAKY)
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder))
    assert "depend on the padding of a batch" in caplog.text
    scorer = Scorer.from_files(*asr)
    for utt, track in kaldiio.load_scp(str(folder / "confidence.scp")).items():
        speech, _ = soundfile.read(corpus / f"{utt}.wav", dtype="float32")
        expected, _ = scorer.score(
            torch.from_numpy(speech)[None], torch.tensor([len(speech)])
        )
        assert np.abs(track[:, 0] - expected[0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_refined_scores(asr, corpus, tmp_path):
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder, "--smooth", "5"))
    scorer = Scorer.from_files(*asr)
    speech, _ = soundfile.read(corpus / "utt0.wav", dtype="float32")
    one = torch.from_numpy(speech)[None], torch.tensor([len(speech)])
    plain, frames = scorer.score(*one)
    expected = smooth_confidence(plain, frames, 5)[0].numpy()
    track = kaldiio.load_scp(str(folder / "confidence.scp"))["utt0"][:, 0]
    assert np.abs(track - expected).max() <= 0.5 / 255 + 1e-5
    with pytest.raises(ValueError, match="scores of another scorer or measure"):
        main(command(asr, corpus / "wav.scp", folder, "--energy_gate", "30"))
    with pytest.raises(ValueError, match="smooth: 0 is not a positive number"):
        main(command(asr, corpus / "wav.scp", folder, "--smooth", "0"))


def test_audio_at_another_rate_is_resampled(asr, corpus, undisturbed, tmp_path, caplog):
    caplog.set_level("INFO")
    lines = []
    for utt in ("utt0", "utt1"):
        speech, _ = soundfile.read(corpus / f"{utt}.wav")
        fast = resample_poly(speech, 3, 1)
        soundfile.write(tmp_path / f"{utt}.wav", fast, 48000, subtype="FLOAT")
        lines.append(f"{utt} {tmp_path}/{utt}.wav\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    folder = tmp_path / "scores"
    main(command(asr, tmp_path / "wav.scp", folder, "--num_workers", "0"))
    assert caplog.text.count("is sampled at 48000 Hz: resampled to 16000 Hz") == 1
    expected = kaldiio.load_scp(str(undisturbed / "confidence.scp"))
    for utt, track in kaldiio.load_scp(str(folder / "confidence.scp")).items():
        assert abs(len(track) - len(expected[utt])) <= 1
        # The highest octave, which resampling takes away, is half of this noise's.
        assert np.abs(track.mean() - expected[utt].mean()) < 0.1


def test_a_moved_folder_goes_on(asr, corpus, undisturbed, tmp_path):
    before = (undisturbed / "confidence.ark").read_bytes()
    moved = tmp_path / "moved"
    undisturbed.rename(moved)
    lines = (moved / "utt2confidence").read_text().splitlines(keepends=True)
    (moved / "utt2confidence").write_text("".join(lines[:4]))
    main(command(asr, corpus / "wav.scp", moved))
    assert (moved / "confidence.ark").read_bytes() == before
