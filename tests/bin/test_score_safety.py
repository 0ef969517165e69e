"""What may not be scored, and what may not be written over, is refused by name."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import CNN, ROOT
from test_score import FILES, command, contents

from espnet_atm.audio import AudioDataset
from espnet_atm.bin import summary
from espnet_atm.bin.score import main
from espnet_atm.errors import UserError
from espnet_atm.scorer import Scorer
from espnet_atm.scorers.find import Source
from espnet_atm.track import TrackReader


@pytest.fixture
def scored(asr, corpus, tmp_path):
    """A folder of finished scores, and a wav.scp of its own."""
    shutil.copy(corpus / "wav.scp", tmp_path / "wav.scp")
    main(command(asr, tmp_path / "wav.scp", tmp_path / "scores"))
    return tmp_path / "scores"


def everything(folder) -> dict:
    return {
        x.name: x.read_bytes() for x in folder.iterdir() if x.is_file() if x.name != ".lock"
    }


def refused(asr, wav_scp, folder, message, *options) -> None:
    """Refused in one line, and not a byte of the folder is another."""
    before = everything(folder)
    with pytest.raises(UserError, match=message) as e:
        main(command(asr, wav_scp, folder, *options))
    assert "\n" not in str(e.value)
    after = everything(folder)
    after.pop("skipped.partial", None)
    before.pop("skipped.partial", None)
    assert after == before


def test_training_reads_what_is_scored(corpus, scored):
    reader = TrackReader(scored / "confidence.scp")
    assert list(reader) == [f"utt{i}" for i in range(10)]
    for utt in reader:
        speech, rate = soundfile.read(corpus / f"{utt}.wav")
        assert len(reader[utt]) > 20
        reader.check_audio(utt, speech, rate)
        with pytest.raises(UserError, match=f"{utt}: its audio is not what was scored"):
            reader.check_audio(utt, speech[::-1], rate)


# --- what was not made here -----------------------------------------------------------


def test_a_track_made_by_hand_is_not_touched(asr, corpus, tmp_path):
    folder = tmp_path / "hand"
    folder.mkdir()
    for name in ("confidence.ark", "confidence.scp", "frame_shift", "frame_offset"):
        shutil.copy(corpus / name, folder / name)
    refused(asr, corpus / "wav.scp", folder, "confidence.ark was not made by")
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize(
    "name", ["utt2confidence", "skipped", "frame_shift", "utt2audio", "sampling_rate"]
)
def test_no_single_file_of_others_is_written_over(asr, corpus, tmp_path, name):
    (tmp_path / name).write_text("something of a user's\n")
    refused(asr, corpus / "wav.scp", tmp_path, f"{name} was not made by")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "a scorer", '{"model": 1', "\xff"])
def test_a_damaged_scorer_file(asr, scored, text):
    (scored / "scorer").write_bytes(text.encode("latin-1"))
    refused(asr, scored.parent / "wav.scp", scored, f"{scored}/scorer: ")


def test_a_list_of_several_folders_tracks_is_not_written_over(asr, scored):
    merged = scored.parent / "merged"
    merged.mkdir()
    for name in ("confidence.scp", "utt2confidence", "utt2audio", "scorer", "skipped"):
        shutil.copy(scored / name, merged / name)
    for name in ("frame_shift", "frame_offset", "sampling_rate"):
        shutil.copy(scored / name, merged / name)
    scp = (merged / "confidence.scp").read_text()
    with pytest.raises(UserError, match="lists tracks of another folder"):
        main(command(asr, scored.parent / "wav.scp", merged))
    assert (merged / "confidence.scp").read_text() == scp
    # Its readers take it.
    assert len(TrackReader(merged / "confidence.scp")["utt3"]) > 20
    summary.main(["--confidence_dir", str(merged)])


def test_scores_of_an_earlier_version(asr, scored):
    (scored / "utt2audio").unlink()
    refused(asr, scored.parent / "wav.scp", scored, "no utt2audio: .*earlier version")


# --- damage ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["confidence.ark", "confidence.scp", "utt2confidence"])
def test_a_flipped_bit_in_the_middle(asr, scored, name):
    """Of every list and of the archive: never is there another result than before."""
    wav_scp = scored.parent / "wav.scp"
    before = contents(scored)
    data = (scored / name).read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for at in rng.integers(0, len(data), 25):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        (scored / name).write_bytes(damaged)
        try:
            main(command(asr, wav_scp, scored))
        except UserError as e:
            assert str(scored) in str(e) and "\n" not in str(e)
            assert (scored / name).read_bytes() == damaged
            found += 1
            (scored / name).write_bytes(data)
        assert contents(scored) == before
    assert found > (0 if name == "confidence.scp" else 15)  # a path is mended


@pytest.mark.parametrize("name", ["confidence.scp", "utt2confidence", "utt2audio"])
def test_exchanged_lines(asr, scored, name):
    text = (scored / name).read_text()
    lines = text.splitlines(keepends=True)
    first, second = (lines[i].split(maxsplit=1) for i in (2, 5))
    lines[2], lines[5] = f"{first[0]} {second[1]}", f"{second[0]} {first[1]}"
    (scored / name).write_text("".join(lines))
    refused(asr, scored.parent / "wav.scp", scored, "utt2.*damaged")
    (scored / name).write_text(text + text)
    main(command(asr, scored.parent / "wav.scp", scored))


@pytest.mark.parametrize(
    "name, text",
    [
        *(("frame_shift", x) for x in ("0", "٣", "641", "x", "1" * 40)),
        *(("frame_offset", x) for x in ("inf", "nan", "1e300", "480.5")),
        *(("sampling_rate", x) for x in ("8000", "1,6", "-16000")),
    ],
)
def test_damaged_numbers_beside_the_scores(asr, scored, name, text):
    (scored / name).write_text(text + "\n")
    wav_scp = scored.parent / "wav.scp"
    refused(asr, wav_scp, scored, f"{scored}/{name}: ")
    (scored / name).unlink()  # as a run that was killed leaves it
    main(command(asr, wav_scp, scored))
    assert (scored / name).exists()


def test_utt2audio_that_is_cut_off_is_completed(asr, scored):
    names = (*FILES, "utt2audio")
    before = {name: (scored / name).read_bytes() for name in names}
    for lost in (1, 30, 200, 10**9):
        data = before["utt2audio"]
        (scored / "utt2audio").write_bytes(data[: max(len(data) - lost, 0)])
        main(command(asr, scored.parent / "wav.scp", scored))
        assert {name: (scored / name).read_bytes() for name in names} == before


def test_a_moved_folder_names_its_archive(asr, scored, monkeypatch):
    wav_scp = scored.parent / "wav.scp"
    tracks = {utt: track for utt, track in TrackReader(scored / "confidence.scp").items()}
    moved = scored.parent / "a folder with spaces"
    scored.rename(moved)
    main(command(asr, wav_scp, moved))
    found = TrackReader(moved / "confidence.scp")
    for utt, track in tracks.items():
        np.testing.assert_array_equal(found[utt], track)
    # Another way to say the same place is no other place.
    before = (moved / "confidence.scp").read_bytes()
    monkeypatch.chdir(moved)
    main(command(asr, wav_scp, "."))
    assert (moved / "confidence.scp").read_bytes() == before


# --- other audio ----------------------------------------------------------------------


def test_the_same_audio_from_elsewhere_loses_nothing(asr, corpus, scored, monkeypatch):
    moved = scored.parent / "moved"
    moved.mkdir()
    for file in corpus.glob("*.wav"):
        shutil.copy(file, moved)
    (moved / "utt3.wav").rename(moved / "utt3.x.wav")
    speech, rate = soundfile.read(corpus / "utt4.wav", dtype="int16")
    soundfile.write(moved / "utt4.flac", speech, rate)
    wav_scp = scored.parent / "wav.scp"
    text = wav_scp.read_text().replace(str(corpus), str(moved))
    text = text.replace("utt3.wav", "utt3.x.wav").replace("utt4.wav", "utt4.flac")
    wav_scp.write_text(text.replace(f"{moved}/utt5.wav", f"cat {moved}/utt5.wav |"))
    before = contents(scored)
    loads = []
    real = AudioDataset.load
    monkeypatch.setattr(
        AudioDataset, "load", lambda *args: loads.append(args) or real(*args)
    )
    for expected in (10, 0):  # its places are known by then
        loads.clear()
        main(command(asr, wav_scp, scored, "--num_workers", "0"))
        assert len(loads) == expected and contents(scored) == before


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("change", ["content", "exchange", "segments", "rate", "cut"])
def test_other_audio_of_the_same_id_is_refused(asr, corpus, tmp_path, change, workers):
    for file in corpus.glob("*.wav"):
        shutil.copy(file, tmp_path)
    lines = (corpus / "wav.scp").read_text().replace(str(corpus), str(tmp_path))
    wav_scp = tmp_path / "wav.scp"
    wav_scp.write_text(lines)
    options = ["--num_workers", workers]
    if change == "segments":
        (tmp_path / "segments").write_text("s utt3 0 0.5\n")
        options += ["--segments", str(tmp_path / "segments")]
    folder = tmp_path / "scores"
    main(command(asr, wav_scp, folder, *options))
    file = tmp_path / "utt3.wav"
    speech, rate = soundfile.read(file, dtype="int16")
    name = "utt3"
    if change == "content":
        speech[1000] += 1
        soundfile.write(file, speech, rate)
    elif change == "exchange":
        text = lines.replace("utt3.wav", "x").replace("utt6.wav", "utt3.wav")
        wav_scp.write_text(text.replace("/x\n", "/utt6.wav\n"))
    elif change == "segments":
        (tmp_path / "segments").write_text("s utt3 0.25 0.75\n")
        name = "s"
    elif change == "rate":
        soundfile.write(file, speech, 8000)
    else:
        file.write_bytes(file.read_bytes()[:-100])
    refused(asr, wav_scp, folder, f"other audio for . utterances, e.g. {name}: ", *options)


# --- lists and options ----------------------------------------------------------------


def test_an_empty_list_is_refused(asr, corpus, tmp_path):
    (tmp_path / "empty").write_text("")
    folder = tmp_path / "scores"
    with pytest.raises(UserError, match="empty is empty: there is nothing to score"):
        main(command(asr, tmp_path / "empty", folder))
    with pytest.raises(UserError, match="empty is empty: there is nothing to score"):
        options = ("--segments", str(tmp_path / "empty"))
        main(command(asr, corpus / "wav.scp", folder, *options))
    assert not folder.exists()


def test_a_byte_order_mark(asr, scored, corpus):
    wav_scp = scored.parent / "wav.scp"
    wav_scp.write_bytes(b"\xef\xbb\xbf" + wav_scp.read_bytes())
    before = contents(scored)
    main(command(asr, wav_scp, scored))
    assert contents(scored) == before


@pytest.mark.parametrize(
    "options, message",
    [
        (("--energy_gate", "nan"), "energy_gate: nan is not a positive number"),
        (("--energy_gate", "inf"), "energy_gate: inf is not a positive number"),
        (("--temperature", "inf"), "temperature: inf is not a positive number"),
        (("--max_seconds", "nan"), "max_seconds: nan is less than 10"),
        (("--max_seconds", "1"), "max_seconds: 1.0 is less than 10"),
    ],
)
def test_numbers_that_are_none(asr, corpus, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main(command(asr, corpus / "wav.scp", tmp_path / "scores", *options))
    assert not (tmp_path / "scores").exists()


def test_a_window_of_smoothing_longer_than_all(asr, corpus, tmp_path):
    """Every frame gets the mean of its utterance."""
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder, "--smooth", "1000000000"))
    reader = TrackReader(folder / "confidence.scp")
    assert all(np.ptp(reader[utt]) == 0 for utt in reader)


@pytest.mark.parametrize(
    "wav_scp, message",
    [
        ("<(head {corpus}/wav.scp)", "/dev/fd/.*: is a pipe or a device"),
        ("{tmp}/fifo", "fifo: is a named pipe"),
        ("{tmp}", "is a folder"),
        ("{tmp}/none", "none: No such file"),
        ("{asr[1]}", "model.pth:1: "),
    ],
)
def test_one_line_on_the_command_line(asr, corpus, tmp_path, wav_scp, message):
    os.mkfifo(tmp_path / "fifo")
    wav_scp = wav_scp.format(corpus=corpus, tmp=tmp_path, asr=asr)
    line = (
        f"{sys.executable} -m espnet_atm.bin.score --asr_train_config {asr[0]} "
        f"--asr_model_file {asr[1]} --wav_scp {wav_scp} --output_dir {tmp_path}/scores"
    )
    ended = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    *_, last = ended.stderr.strip().splitlines()
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert re.match(f"espnet_atm.bin.score: error: .*{message}", last), last


# --- long audio -----------------------------------------------------------------------


@pytest.fixture
def long(corpus, tmp_path):
    """Recordings of 37 and 11 s among short ones."""
    speech = [soundfile.read(corpus / f"utt{i}.wav", dtype="int16")[0] for i in range(10)]
    for name, times in (("long", 3), ("longer", 1)):
        audio = np.concatenate(speech * times)
        soundfile.write(tmp_path / f"{name}.wav", audio, 16000)
    lines = (corpus / "wav.scp").read_text().splitlines()
    lines[3:3] = [f"{name} {tmp_path}/{name}.wav" for name in ("long", "longer")]
    (tmp_path / "wav.scp").write_text("\n".join(lines) + "\n")
    return tmp_path / "wav.scp"


def test_long_audio_is_scored_in_windows(asr, long, tmp_path, monkeypatch):
    sizes = []
    real = Scorer.log_probs

    def encode(self, speech, lengths):
        sizes.append(speech.size(1))
        return real(self, speech, lengths)

    whole, windows = tmp_path / "whole", tmp_path / "windows"
    main(command(asr, long, whole, "--max_seconds", "inf"))
    scorer = Scorer.from_files(*asr)
    monkeypatch.setattr(Scorer, "log_probs", encode)
    monkeypatch.setattr(Source, "load", lambda *args: scorer)
    main(command(asr, long, windows, "--max_seconds", "10"))
    assert max(sizes) == 160000
    expected, found = (TrackReader(x / "confidence.scp") for x in (whole, windows))
    assert list(found) == list(expected)
    for utt, track in expected.items():
        assert len(found[utt]) == len(track)
        if utt.startswith("utt"):
            np.testing.assert_array_equal(found[utt], track)
        else:
            # This model hears all of its window, so that its scores do differ.
            assert 0 < np.abs(found[utt] - track).max() < 0.05
    # What is scored in other windows, or as a whole, is not mixed in.
    before = contents(windows)
    main(command(asr, long, windows, "--max_seconds", "10"))
    assert contents(windows) == before
    for folder, there, now in ((windows, "10.0", "12"), (whole, "inf", "10")):
        message = f"max_seconds: {folder} .* long of .*; give --max_seconds {there}"
        with pytest.raises(UserError, match=message):
            main(command(asr, long, folder, "--max_seconds", now))
    main(command(asr, long, whole, "--max_seconds", "100"))  # there it does not matter


def test_windows_of_a_local_model_are_the_whole(make_asr):
    """Their frames are the same ones: what hears little tells."""
    asr = make_asr(
        frontend="wav2vec_cnn",
        frontend_conf={**CNN, "norm_mode": "layer_norm"},
        encoder="rnn",
        encoder_conf={"hidden_size": 8, "output_size": 8, "subsample": [1], "num_layers": 1},
        normalize=None,
    )
    scorer = Scorer.from_files(*asr)
    generator = torch.Generator().manual_seed(0)
    for samples in (160001, 200000, 163840, 480000, 333333):
        speech = 0.1 * torch.randn(samples, generator=generator)
        whole, frames = scorer.score(speech[None], torch.tensor([samples]), smooth=3)
        found = scorer.score_long(speech, 160000, smooth=3)
        assert len(found) == frames[0]
        torch.testing.assert_close(found, whole[0], atol=1e-4, rtol=0)


def test_what_was_being_scored_when_a_run_died_is_named(asr, long, tmp_path, caplog):
    folder = tmp_path / "scores"
    line = f"""
import os, torch
from espnet_atm.bin import score
from espnet_atm.scorer import Scorer
Scorer.score_long = lambda *args, **kwargs: os.kill(os.getpid(), 9)
score.main({command(asr, long, folder, "--max_seconds", "10")!r})
"""
    ended = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True)
    assert ended.returncode == -9
    utt, seconds = (folder / "scoring").read_text().split()
    assert utt == "long" and 30 < float(seconds) < 45
    main(command(asr, long, folder, "--max_seconds", "10"))
    message = f"the last run ended while it scored long, {seconds} s long"
    assert message in caplog.text and "--max_seconds" in caplog.text
    assert not (folder / "scoring").exists()
    undisturbed = tmp_path / "undisturbed"
    main(command(asr, long, undisturbed, "--max_seconds", "10"))
    assert contents(folder) == contents(undisturbed)


# --- the model ------------------------------------------------------------------------


def test_no_weights_no_scores(asr, corpus, tmp_path):
    state = torch.load(asr[1], weights_only=True)
    for what, weights in (
        ("ctc", {k: v for k, v in state.items() if not k.startswith("ctc.")}),
        ("encoder", {k: v for k, v in state.items() if not k.startswith("encoder.")}),
        ("optimizers", {"model": state, "optimizers": [], "epoch": 1}),
    ):
        torch.save(weights, tmp_path / "x.pth")
        message = "are not in it: {0}" if what != "optimizers" else "trainer's state"
        with pytest.raises(UserError, match="x.pth: .*" + message.format(what)):
            main(command((asr[0], tmp_path / "x.pth"), corpus / "wav.scp", tmp_path / what))
        assert not (tmp_path / what / "confidence.scp").read_text()


def test_gsm_is_scored(asr, corpus, tmp_path):
    """Which cannot be sought in; and so is a part of it."""
    speech, rate = soundfile.read(corpus / "utt0.wav")
    soundfile.write(tmp_path / "x.wav", speech, rate, subtype="GSM610")
    (tmp_path / "wav.scp").write_text(f"utt0 {tmp_path}/x.wav\n")
    (tmp_path / "segments").write_text("a utt0 0.2 0.9\n")
    for name, options in (("utt0", ()), ("a", ("--segments", f"{tmp_path}/segments"))):
        folder = tmp_path / f"scores_{name}"
        main(command(asr, tmp_path / "wav.scp", folder, *options))
        assert name in TrackReader(folder / "confidence.scp")
