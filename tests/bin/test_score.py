import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import CNN, CONFORMER
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
)
from espnet2.train.dataset import ESPnetDataset
from scipy.signal import resample_poly

from espnet_atm.audio import Table
from espnet_atm import scoring
from espnet_atm.bin import summary
from espnet_atm.bin.score import get_parser, main
from espnet_atm.devices import device_of
from espnet_atm.confidence import align_track, smooth_confidence
from espnet_atm.frames import FrameGrid
from espnet_atm.scorer import Scorer
from espnet_atm.scorers.find import Source
from espnet_atm.speech import describe_gate
from espnet_atm.track import read_track_grid

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
    assert list(stored) == [row[0] for row in Table(corpus / "wav.scp", 2)]
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

    monkeypatch.setattr(Source, "load", load)
    main(command(asr, corpus / "wav.scp", undisturbed))
    assert contents(undisturbed) == before


@pytest.mark.parametrize("name", ["confidence.ark", "confidence.scp", "utt2confidence"])
@pytest.mark.parametrize("lost", [1, 10, 60, 10**9])
def test_files_cut_off_anywhere_are_completed(asr, corpus, undisturbed, name, lost):
    before = contents(undisturbed)
    file = undisturbed / name
    data = file.read_bytes()
    file.write_bytes(data[: max(len(data) - lost, 0)])
    main(command(asr, corpus / "wav.scp", undisturbed))
    assert contents(undisturbed) == before


@pytest.fixture(scope="module")
def processes():
    """Makes processes that need not import anything any more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_atm.bin.score", "espnet_atm.scorers.espnet_asr"])
    first = context.Process(target=time.time)  # waits for the imports
    first.start()
    first.join()
    return context


def score_in_windows_of_four(cmd):
    """What the processes run."""
    scoring.WINDOW = 4
    torch.set_num_threads(1)
    main(cmd)


@pytest.fixture(scope="module")
def many(corpus, tmp_path_factory) -> Path:
    """A wav.scp of a hundred utterances, scored in 25 windows."""
    file = tmp_path_factory.mktemp("many") / "wav.scp"
    audio = [line.split()[1] for line in (corpus / "wav.scp").read_text().splitlines()]
    file.write_text("".join(f"u{n:03d} {audio[n % 10]}\n" for n in range(100)))
    return file


@pytest.mark.parametrize("jobs", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_twenty_random_moments(asr, many, processes, tmp_path, jobs):
    """Nothing is lost, nothing is there twice, and the bytes are the same."""
    lines = many.read_text().splitlines(keepends=True)
    parts = [tmp_path / f"{job}.scp" for job in range(jobs)]
    for job, part in enumerate(parts):
        part.write_text("".join(lines[job::jobs]))

    def start(folder) -> list:
        found = []
        for job, part in enumerate(parts):
            (folder / str(job)).mkdir(parents=True, exist_ok=True)
            cmd = command(asr, part, folder / str(job))
            found.append(processes.Process(target=score_in_windows_of_four, args=[cmd]))
            found[-1].start()
        return found

    whole = tmp_path / "whole"
    begin = time.monotonic()
    for process in start(whole):
        process.join()
        assert process.exitcode == 0
    lasts = time.monotonic() - begin
    expected = [contents(whole / str(job)) for job in range(jobs)]

    moments = random.Random(0)
    kills, halfway, attempt = 0, 0, 0
    while kills < 20:
        attempt += 1
        folder = tmp_path / str(attempt)
        alive = [None]
        while alive:
            running = start(folder)
            time.sleep(moments.uniform(0, lasts))
            alive = [process for process in running if process.is_alive()]
            for process in alive:
                process.kill()
            for process in running:
                process.join()
                assert process.exitcode in (0, -signal.SIGKILL)
            kills += bool(alive)
            scored = sum(
                x.read_text().count("\n") for x in folder.glob("*/utt2confidence")
            )
            halfway += 0 < scored < 100
        assert [contents(folder / str(job)) for job in range(jobs)] == expected
    assert halfway


def test_readers_end_with_a_run_that_is_killed(asr, many, processes, tmp_path):
    """Even those that wait for their audio to be taken."""
    cmd = command(asr, many, tmp_path / "scores", "--num_workers", "2")
    process = processes.Process(target=score_in_windows_of_four, args=[cmd])
    process.start()
    scp = tmp_path / "scores" / "confidence.scp"
    while not (scp.exists() and scp.stat().st_size):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # nobody takes any more
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    readers = [Path("/proc") / pid for pid in children.read_text().split()]
    assert len(readers) == 2
    time.sleep(0.5)
    process.kill()
    process.join()
    end = time.monotonic() + 20
    while any(reader.exists() for reader in readers):
        assert time.monotonic() < end, f"{readers} are still there"
        time.sleep(0.05)


def test_two_at_once_do_not_mix(asr, many, processes, tmp_path):
    """A scheduler may start the same job twice."""
    runs = {
        name: [
            processes.Process(
                target=score_in_windows_of_four, args=[command(asr, many, folder)]
            )
            for _ in range(count)
        ]
        for name, count in (("once", 1), ("twice", 2))
        for folder in [tmp_path / name]
    }
    for process in sum(runs.values(), []):
        process.start()
    for process in sum(runs.values(), []):
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def score_on_a_full_disk(cmd, told):
    """Writing fails within a line, as it does when a disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        score_in_windows_of_four(cmd)
    except SystemExit as e:
        told.write_text(str(e))


def test_a_full_disk_is_told_and_nothing_half_written_counts(
    asr, many, processes, tmp_path
):
    whole, full, told = (tmp_path / name for name in ("whole", "full", "told"))

    def run(target, folder, *more):
        args = [command(asr, many, folder), *more]
        process = processes.Process(target=target, args=args)
        process.start()
        process.join()
        assert process.exitcode == 0

    run(score_in_windows_of_four, whole)
    for _ in range(2):
        run(score_on_a_full_disk, full, told)
        message = f"{full}: scores cannot be written: File too large. Make room"
        assert told.read_text().startswith(message)
        told.unlink()
        scp = (full / "confidence.scp").read_text()
        assert len(scp) == 1000 and not scp.endswith("\n")
    run(score_in_windows_of_four, full)
    assert contents(full) == contents(whole)


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


def test_what_cannot_be_scored_is_skipped_by_name(asr, corpus, tmp_path, capsys):
    soundfile.write(tmp_path / "short.wav", np.zeros(160), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((16000, 2)), 16000)
    soundfile.write(
        tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT"
    )
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "cut.flac", noise, 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:20000])
    (tmp_path / "text.wav").write_text("this is no audio")
    expected = {
        "short": "160 samples are too short for one frame",
        "empty": "is empty",
        "stereo": "has 2 channels",
        "nan": "has samples that are not finite",
        "cut": "is cut off|cannot be read",
        "text": "cannot be read",
        "missing": "no such file: .*/missing.wav$",
        "two": "no such file: words .*; an id ends at its first space",
    }
    files = {"cut": "cut.flac", "two": "short.wav"}
    lines = (corpus / "wav.scp").read_text().splitlines()[:1]
    for utt in expected:
        name = "two words" if utt == "two" else utt
        lines.append(f"{name} {tmp_path}/{files.get(utt, utt + '.wav')}")
    wav_scp = tmp_path / "wav.scp"
    wav_scp.write_text("\n".join(lines) + "\n")
    folder = tmp_path / "scores"
    with pytest.raises(SystemExit, match="8 utterances have no score"):
        main(command(asr, wav_scp, folder))
    skipped = dict(
        line.split(maxsplit=1) for line in (folder / "skipped").read_text().splitlines()
    )
    assert set(skipped) == set(expected)
    for utt, why in expected.items():
        assert re.search(why, skipped[utt]), utt
    assert len((folder / "confidence.scp").read_text().splitlines()) == 1
    with pytest.raises(SystemExit, match="more than --max_skipped 7"):
        main(command(asr, wav_scp, folder, "--max_skipped", "7"))
    main(command(asr, wav_scp, folder, "--max_skipped", "8"))
    summary.main(["--confidence_dir", str(folder)])
    assert (
        sum(json.loads((folder / "summary.json").read_text())["skipped"].values()) == 8
    )


def test_ids_with_slashes(asr, corpus, undisturbed, tmp_path):
    text = (corpus / "wav.scp").read_text()
    (tmp_path / "wav.scp").write_text(re.sub("^(?=u)", "spk/a.b/", text, flags=re.M))
    folder = tmp_path / "scores"
    main(command(asr, tmp_path / "wav.scp", folder))
    expected = kaldiio.load_scp(str(undisturbed / "confidence.scp"))
    found = kaldiio.load_scp(str(folder / "confidence.scp"))
    assert list(found) == [f"spk/a.b/{utt}" for utt in expected]
    for utt, track in expected.items():
        np.testing.assert_array_equal(found[f"spk/a.b/{utt}"], track)


@pytest.mark.parametrize(
    "text, message",
    [
        ("utt0 {0}\nutt0 {0}\n", "wav.scp:2: utt0 is in line 1 already"),
        ("utt0 {0}\nutt1\n", "wav.scp:2: no path in 'utt1'"),
    ],
)
def test_bad_lists_are_refused_before_anything_is_scored(
    asr, corpus, tmp_path, text, message
):
    (tmp_path / "wav.scp").write_text(text.format(corpus / "utt0.wav"))
    with pytest.raises(ValueError, match=message):
        main(command(asr, tmp_path / "wav.scp", tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()


def test_a_model_without_ctc_is_refused(make_asr, corpus, tmp_path):
    asr = make_asr(
        decoder="transformer",
        decoder_conf={"linear_units": 16, "num_blocks": 1},
        model_conf={"ctc_weight": 0.0},
    )
    with pytest.raises(ValueError, match="the scorer has no CTC head"):
        main(command(asr, corpus / "wav.scp", tmp_path / "scores"))
    assert not (tmp_path / "scores" / "confidence.scp").read_text()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such thing"),
        RuntimeError("no such thing"),
        TooShortUttError("no such thing", 1, 7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_utterance_that_the_scorer_fails_on_does_not_take_others_along(
    asr, corpus, tmp_path, monkeypatch, error
):
    real = Scorer.score

    def fails_on_utt3(self, speech, lengths, **measure):
        if len(soundfile.read(corpus / "utt3.wav")[0]) in lengths.tolist():
            raise error
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
    monkeypatch.setattr(scoring, "WINDOW", 4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main(command(asr, corpus / "wav.scp", whole))
    main(command(asr, corpus / "wav.scp", cut))
    lines = (cut / "utt2confidence").read_text().splitlines(keepends=True)
    (cut / "utt2confidence").write_text("".join(lines[:scored]))
    main(command(asr, corpus / "wav.scp", cut))
    assert contents(cut) == contents(whole)


def test_a_finished_window_is_not_read_again(asr, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW", 4)
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


@pytest.mark.parametrize("how", [["--speech_gate"], ["--speech_gate", "true"]])
def test_scores_through_the_speech_gate(asr, spoken, tmp_path, how):
    lines = []
    for condition, audio in spoken.items():
        soundfile.write(tmp_path / f"{condition}.wav", audio.numpy(), 16000)
        lines.append(f"{condition} {tmp_path}/{condition}.wav\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    main(command(asr, tmp_path / "wav.scp", tmp_path / "scores", *how))
    scorer = Scorer.from_files(*asr)
    tracks = kaldiio.load_scp(str(tmp_path / "scores" / "confidence.scp"))
    for condition, audio in spoken.items():
        one = audio[None], torch.tensor([len(audio)])
        expected = scorer.score(*one, speech_gate=True)[0][0].numpy()
        # In a batch ESPnet's STFT sees an utterance's end as it does alone.
        assert np.abs(tracks[condition][:, 0] - expected).max() <= 1 / 255
    rows = (tmp_path / "scores" / "utt2confidence").read_text().split()
    means = dict(zip(rows[::2], map(float, rows[1::2])))
    assert means["purenoise"] < min(means[x] for x in means if x != "purenoise") / 5
    main(command(asr, tmp_path / "wav.scp", tmp_path / "scores", *how))  # goes on


@pytest.mark.parametrize("earlier", [False, True])
def test_gated_scores_and_others_are_not_mixed(asr, corpus, undisturbed, tmp_path, earlier):
    file = undisturbed / "scorer"
    maker = json.loads(file.read_text())
    assert maker["speech_gate"] is None
    if earlier:  # of a version without the gate
        del maker["speech_gate"]
        file.write_text(json.dumps(maker))
    before = contents(undisturbed)
    with pytest.raises(ValueError, match="speech_gate: null, now \"silero-vad "):
        main(command(asr, corpus / "wav.scp", undisturbed, "--speech_gate"))
    assert contents(undisturbed) == before
    main(command(asr, corpus / "wav.scp", undisturbed, "--speech_gate", "false"))
    main(command(asr, corpus / "wav.scp", tmp_path / "gated", "--speech_gate"))
    maker = json.loads((tmp_path / "gated" / "scorer").read_text())
    assert maker["speech_gate"] == describe_gate()
    with pytest.raises(ValueError, match="speech_gate: \"silero-vad .*, now null"):
        main(command(asr, corpus / "wav.scp", tmp_path / "gated"))
    maker["speech_gate"] = "silero-vad 1.0 abc"
    (tmp_path / "gated" / "scorer").write_text(json.dumps(maker))
    with pytest.raises(ValueError, match="silero-vad 1.0 abc\", now \"silero-vad"):
        main(command(asr, corpus / "wav.scp", tmp_path / "gated", "--speech_gate"))


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


def test_an_utterance_alone_in_a_batch_that_the_scorer_fails_on(
    make_asr, corpus, tmp_path
):
    """160 samples are a frame of the grid, and too few for the STFT to mirror."""
    asr = make_asr(encoder_conf={**CONFORMER, "input_layer": "linear"})
    wav_scp = with_short(corpus, tmp_path, 160)
    folder = tmp_path / "scores"
    main(command(asr, wav_scp, folder, "--batch_bins", "1", "--max_skipped", "1"))
    text = (folder / "skipped").read_text()
    assert text == "short 160 samples are too short for one frame\n"
    assert len((folder / "confidence.scp").read_text().splitlines()) == 2
    # Whatever else is in its batch.
    beside = tmp_path / "beside"
    main(command(asr, wav_scp, beside, "--max_skipped", "1"))
    assert (beside / "skipped").read_text() == text


def test_too_short_for_a_measured_grid(make_asr, corpus, tmp_path):
    """The model tells by putting out no frame."""
    asr = make_asr(
        frontend="sliding_window",
        frontend_conf={"hop_length": 160, "win_length": 400},
        preencoder="sinc",
        preencoder_conf={"fs": 16000},
        normalize=None,
        encoder_conf={**CONFORMER, "input_layer": "conv2d"},
    )
    folder = tmp_path / "scores"
    wav_scp = with_short(corpus, tmp_path, 900)
    main(command(asr, wav_scp, folder, "--max_skipped", "1"))
    text = (folder / "skipped").read_text()
    assert text == "short 900 samples are too short for one frame\n"
    assert len((folder / "confidence.scp").read_text().splitlines()) == 2


def with_short(corpus, folder, samples) -> Path:
    """A wav.scp of two utterances and, between them, one of so many samples."""
    soundfile.write(folder / "short.wav", np.full(samples, 0.1), 16000)
    lines = (corpus / "wav.scp").read_text().splitlines()[:2]
    lines.insert(1, f"short {folder}/short.wav")
    (folder / "wav.scp").write_text("\n".join(lines) + "\n")
    return folder / "wav.scp"


def test_a_batch_that_does_not_fit_the_gpu_is_halved(
    asr, corpus, undisturbed, tmp_path, monkeypatch
):
    """The error is raised by hand: a CPU has no such limit."""
    real, sizes = Scorer.score, []

    def small_gpu(self, speech, lengths, **measure):
        sizes.append(len(speech))
        if len(speech) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, speech, lengths, **measure)

    monkeypatch.setattr(Scorer, "score", small_gpu)
    monkeypatch.setattr(Scorer, "depends_on_padding", lambda self, **measure: False)
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder))
    assert sizes == [10, 5, 2, 3, 5, 2, 3]
    expected = kaldiio.load_scp(str(undisturbed / "confidence.scp"))
    found = kaldiio.load_scp(str(folder / "confidence.scp"))
    assert list(found) == list(expected)
    for utt, track in expected.items():
        assert np.abs(track - found[utt]).max() < 1.01 / 255


def test_a_scorer_of_half_the_rate_gives_tracks_for_training(
    make_asr, corpus, tmp_path
):
    asr = make_asr(
        frontend_conf={"fs": 8000, "n_fft": 256, "win_length": 200, "hop_length": 80}
    )
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder))
    assert (folder / "frame_shift").read_text() == "320\n"
    assert (folder / "sampling_rate").read_text() == "8000\n"
    encoder = FrameGrid.from_layers([(512, 160, 256), (3, 2, 0), (3, 2, 0)])
    grid = read_track_grid(str(folder / "confidence.scp"), 16000, encoder)
    assert grid.shift == 640 and abs(grid.offset - encoder.offset) < 2
    scorer = Scorer.from_files(*asr)
    for utt, track in kaldiio.load_scp(str(folder / "confidence.scp")).items():
        speech, _ = soundfile.read(corpus / f"{utt}.wav", dtype="float32")
        half = torch.from_numpy(resample_poly(speech, 1, 2))[None].float()
        expected, _ = scorer.score(half, torch.tensor([half.size(1)]))
        frames = encoder.length(len(speech))
        got = align_track(
            track[:, 0], grid.shift, 640, frames, grid.offset, encoder.offset
        )
        # A sample of 640 is the neighbour's.
        assert len(got) == frames and abs(frames - expected.size(1)) <= 1
        count = min(frames, expected.size(1))
        assert np.abs(got[:count] - expected[0, :count].numpy()).max() < 0.01


@pytest.fixture(scope="module")
def sources(corpus, tmp_path_factory) -> dict:
    """Three utterances in each of the forms that Kaldi users have."""
    folder = tmp_path_factory.mktemp("sources")
    audio = {
        utt: soundfile.read(corpus / f"{utt}.wav", dtype="int16")[0]
        for utt in ("utt0", "utt1", "utt2")
    }
    kaldiio.save_ark(
        str(folder / "x.ark"),
        {utt: (16000, speech) for utt, speech in audio.items()},
        scp=str(folder / "ark.scp"),
    )
    long = np.concatenate(list(audio.values()))
    soundfile.write(folder / "long.flac", long, 16000, subtype="PCM_16")
    (folder / "files.scp").write_text(
        "".join(f"{utt} {corpus}/{utt}.wav\n" for utt in audio)
    )
    (folder / "pipes.scp").write_text(
        "".join(f"{utt} cat {corpus}/{utt}.wav |\n" for utt in audio)
    )
    (folder / "long.scp").write_text(f"long {folder}/long.flac\n")
    ends = np.cumsum([len(x) for x in audio.values()]) / 16000
    (folder / "segments").write_text(
        "".join(
            f"{utt} long {end - len(x) / 16000:.7f} {end:.7f}\n"
            for (utt, x), end in zip(audio.items(), ends)
        )
    )
    return {"folder": folder, "audio": audio}


@pytest.mark.parametrize(
    "form, options, measure",
    [
        ("files", ["--measure", "margin"], {"measure": "margin"}),
        ("ark", ["--measure", "entropy"], {"measure": "entropy"}),
        ("pipes", ["--exclude_blank"], {"include_blank": False}),
        ("long", ["--temperature", "0.5"], {"temperature": 0.5}),
        ("ark", ["--energy_gate", "0.5"], {"energy_gate": 0.5}),
        (
            "pipes",
            ["--measure", "entropy", "--exclude_blank", "--smooth", "3"],
            {"measure": "entropy", "include_blank": False, "smooth": 3},
        ),
    ],
)
def test_options_and_forms_of_audio(asr, sources, tmp_path, form, options, measure):
    folder = sources["folder"]
    weights = torch.load(asr[1], weights_only=True)
    weights["ctc.ctc_lo.bias"][0] = 1.0  # so that the blank is often the best
    asr = asr[0], tmp_path / "model.pth"
    torch.save(weights, asr[1])
    if form == "long":
        options = [*options, "--segments", str(folder / "segments")]
    main(command(asr, folder / f"{form}.scp", tmp_path / "scores", *options))
    scorer = Scorer.from_files(*asr)
    stored = kaldiio.load_scp(str(tmp_path / "scores" / "confidence.scp"))
    assert list(stored) == list(sources["audio"])
    for utt, track in stored.items():
        speech = torch.from_numpy(sources["audio"][utt] / np.float32(32768))[None]
        one = speech, torch.tensor([speech.size(1)])
        expected = scorer.score(*one, **measure)[0][0].numpy()
        assert track.shape == (len(expected), 1)
        # A frame at the very edge of the gate may fall on either side.
        off = np.abs(track[:, 0] - expected) > 0.5 / 255 + 1e-5
        assert off.sum() <= ("energy_gate" in measure)
        other = scorer.score(*one)[0][0].numpy()
        assert np.abs(track[:, 0] - other).max() > 2 / 255  # the option does something


@pytest.mark.parametrize(
    "options, message",
    [
        (("--temperature", "0"), "temperature: 0.0 is not a positive number"),
        (("--temperature", "nan"), "temperature: nan is not a positive number"),
        (("--smooth", "0"), "smooth: 0 is not a positive number of frames"),
        (("--energy_gate", "-3"), "energy_gate: -3.0 is not a positive number of dB"),
        (("--batch_bins", "0"), "batch_bins: 0 is less than 1"),
        (("--num_workers", "-1"), "num_workers: -1 is less than 0"),
        (("--max_skipped", "-1"), "max_skipped: -1 is less than 0"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_done(
    asr, corpus, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        main(command(asr, corpus / "wav.scp", tmp_path / "scores", *options))
    assert not (tmp_path / "scores").exists()


def test_a_failed_first_run_claims_nothing(make_asr, asr, corpus, tmp_path):
    without_ctc = make_asr(
        decoder="transformer",
        decoder_conf={"linear_units": 16, "num_blocks": 1},
        model_conf={"ctc_weight": 0.0},
    )
    folder = tmp_path / "scores"
    with pytest.raises(ValueError, match="the scorer has no CTC head"):
        main(command(without_ctc, corpus / "wav.scp", folder))
    main(command(asr, corpus / "wav.scp", folder, "--measure", "entropy"))
    assert json.loads((folder / "scorer").read_text())["measure"] == "entropy"


def test_a_reason_is_one_line(asr, corpus, tmp_path):
    """A command may write several to its stderr."""
    failing = "echo one >&2; printf 'two\\r\\n\\nthree' >&2; false |"
    (tmp_path / "wav.scp").write_text(f"utt0 {corpus}/utt0.wav\nbad {failing}\n")
    folder = tmp_path / "scores"
    main(command(asr, tmp_path / "wav.scp", folder, "--max_skipped", "1"))
    text = (folder / "skipped").read_text()
    assert text == "bad its command ends with 1: one two three\n"


@pytest.mark.parametrize("damage", ["short", "zeros at the end", "gone"])
def test_a_damaged_archive_beside_a_whole_scp(asr, corpus, undisturbed, damage):
    """As after the breakdown of a machine."""
    before = contents(undisturbed)
    file = undisturbed / "confidence.ark"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        last = data.rindex(b"utt9 ")
        zeros = bytes(len(data) - last if damage == "zeros at the end" else 0)
        file.write_bytes(data[: last if zeros else -100] + zeros)
    main(command(asr, corpus / "wav.scp", undisturbed))
    assert contents(undisturbed) == before


def test_a_window_of_much_audio_is_scored_in_parts(
    asr, corpus, undisturbed, tmp_path, monkeypatch
):
    batches = []
    real = scoring.score_window

    def window(scorer, speech, *rest):
        batches.append(list(speech))
        return real(scorer, speech, *rest)

    monkeypatch.setattr(scoring, "score_window", window)
    monkeypatch.setattr(scoring, "PART_SECONDS", 3)
    folder = tmp_path / "scores"
    main(command(asr, corpus / "wav.scp", folder))
    assert len(batches) > 2 and sum(batches, []) == list(range(10))
    whole = contents(folder)
    expected = kaldiio.load_scp(str(undisturbed / "confidence.scp"))
    for utt, track in kaldiio.load_scp(str(folder / "confidence.scp")).items():
        assert np.abs(track - expected[utt]).max() < 1.01 / 255
    means = (folder / "utt2confidence").read_text().splitlines(keepends=True)
    (folder / "utt2confidence").write_text("".join(means[:4]))
    main(command(asr, corpus / "wav.scp", folder))
    assert contents(folder) == whole


def test_jobs_on_a_machine_take_its_gpus_in_turn(monkeypatch):
    def devices(count, ngpu):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        words = ["--wav_scp", "x", "--output_dir", "y", "--ngpu", str(ngpu)]
        return [
            device_of(get_parser().parse_args([*words, "--job", str(job)]))
            for job in (1, 2, 3, 4)
        ]

    assert devices(3, 1) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert devices(1, 1) == ["cuda:0"] * 4  # as on a cluster, which shows a job its own
    assert devices(3, 0) == ["cpu"] * 4
