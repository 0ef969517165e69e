"""Training with stored labels: espnet_atm.data, collate and task together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import LOSSES
from test_data import command, folder_of, own, rewrite, split  # noqa: F401
from test_frames import logmel
from test_task import WAV2VEC, arguments, checkpoint, without

from espnet_atm import data
from espnet_atm.audio import Table, checksum
from espnet_atm.collate import SyncedCollateFn
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.labels import LabelWriter
from espnet_atm.preencoder import Conv2dPreEncoder
from espnet_atm.task import ATMSSLTask, encoder_grid

ATM, RANDOM = {"masker": "atm"}, {"masker": "random"}
ENCODER = FrameGrid.from_layers([(512, 160, 256), (3, 2, 0), (3, 2, 0)])
MFCC = FrameGrid.from_layers([(400, 160, 0)])
LAST = "utt9"
AT_FRAMES = {"collate_fn_conf": {"label_downsampling": 1}}


def store(corpus, folder, grid=ENCODER, num_classes=4, **labeller) -> Path:
    """Labels of the corpus's audio, and in ``text`` the same as ESPnet has them."""
    folder.mkdir()
    utterances = Table(corpus / "wav.scp", 2)
    note = {"num_classes": num_classes, "frame_shift": grid.shift}
    note.update(frame_offset=grid.offset, sampling_rate=16000, **labeller)
    rng, lines = np.random.default_rng(0), []
    with LabelWriter(folder, utterances, note) as writer:
        for number, (utt, file) in enumerate(utterances):
            speech, _ = soundfile.read(file, dtype="float32")
            row = rng.integers(0, num_classes, grid.length(len(speech)))
            writer.write({number: row}, {number: checksum(speech)})
            lines.append(f"{utt} {' '.join(map(str, row))}\n")
    (folder / "text").write_text("".join(lines))
    return folder


@pytest.fixture
def labels(own, tmp_path) -> Path:  # noqa: F811
    return store(own, tmp_path / "labels")


def with_labels(words, folder, valid=None) -> list:
    """The command with stored labels and without a token list."""
    found, mode = [], None
    for word in without(without(words, "--token_list"), "--token_type"):
        mode = word[2:7] if word.startswith("--") else mode
        there = folder if mode == "train" else valid or folder
        stored = word.endswith(",text,text")
        found.append(f"{there}/labels.scp,text,pseudo_labels" if stored else word)
    return found


def with_text(words, folder) -> list:
    """The command with ESPnet's labels, which say the same."""
    return [f"{folder}/text,text,text" if x.endswith(",text,text") else x for x in words]


def losses(cmd) -> list:
    """Of each epoch, training's and validation's."""
    state = torch.load(folder_of(cmd) / "checkpoint.pth", weights_only=False)
    return [
        (epoch, mode, {k: v for k, v in stats.items() if "loss" in k or "acc" in k})
        for epoch, modes in state["reporter"]["stats"].items()
        for mode, stats in modes.items()
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"ssl_conf": ATM},
        {"ssl_conf": RANDOM, "collate_fn_conf": {"label_downsampling": 1, "pad": True}},
        {"ssl_conf": {**ATM, "crop_seconds": 0.5}},
        {"ssl_conf": {**ATM, "crop_seconds": 0.5}, "num_workers": 2},
        {"ssl_conf": ATM, "batch_type": "numel", "batch_bins": 60000},
    ],
    ids=["atm", "random-pad", "crop", "crop-workers", "numel"],
)
def test_it_is_training_with_espnets_text_to_the_bit(command, labels, config):  # noqa: F811
    config = {**AT_FRAMES, **config}
    text = with_text(command(**config), labels)
    ATMSSLTask.main(cmd=text)
    # Of stored labels the collate function knows when they are.
    config["collate_fn_conf"] = {**config["collate_fn_conf"], "label_downsampling": 4}
    stored = with_labels(command(**config), labels)
    ATMSSLTask.main(cmd=stored)
    expected, found = checkpoint(text), checkpoint(stored)
    assert set(expected) == set(found)
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    assert losses(text) == losses(stored) and len(losses(text)) >= 2
    assert any("acc" in k for k in losses(text)[0][2])


def test_a_token_list_beside_them_changes_nothing(command, labels):  # noqa: F811
    """ssl.sh has one to give."""
    plain = with_labels(command(ssl_conf=ATM), labels)
    given = command(ssl_conf=ATM)
    at = given.index("--token_list")
    given = [*with_labels(given, labels), *given[at : at + 2], "--token_type", "word"]
    for cmd in (plain, given):
        ATMSSLTask.main(cmd=cmd)
    expected, found = checkpoint(plain), checkpoint(given)
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_parts_of_a_set(command, own, labels, tmp_path):  # noqa: F811
    """What made the labels is beside the folder of parts."""
    shutil.copytree(labels, valid := tmp_path / "valid")
    split(own)
    lines = (labels / "labels.scp").read_text().splitlines(keepends=True)
    (labels / "labels.scp").unlink()
    (labels / "labels.scp").mkdir()
    (labels / "labels.scp/num_splits").write_text("2")
    for part in range(2):
        (labels / f"labels.scp/split.{part}").write_text("".join(lines[part::2]))
    cmd = command(only="train", ssl_conf={**ATM, "crop_seconds": 0.5})
    cmd = [*with_labels(cmd, labels, valid), "--multiple_iterator", "true"]
    ATMSSLTask.main(cmd=cmd)
    assert checkpoint(cmd)
    (labels / "labels.scp/split.1").write_text("".join(lines[1:-2:2]))
    with pytest.raises(UserError, match="split.1: lacks 1 of the 5 utt.*: utt9; label them"):
        ATMSSLTask.main(cmd=cmd)
    (labels / "labels.scp/split.1").write_text("".join(lines[1::2]))
    (labels / "labeller").unlink()
    with pytest.raises(UserError, match=f"{labels}/labeller is missing"):
        ATMSSLTask.main(cmd=cmd)


def test_statistics_are_collected(command, labels):  # noqa: F811
    cmd = with_labels(command(ssl_conf=ATM), labels) + ["--collect_stats", "true"]
    ATMSSLTask.main(cmd=cmd)
    folder = folder_of(cmd) / "train"
    assert len((folder / "speech_shape").read_text().splitlines()) == 10
    shapes = dict(x.split() for x in (folder / "text_shape").read_text().splitlines())
    assert len(shapes) == 10


@pytest.mark.parametrize("config", [{}, WAV2VEC], ids=["conv2d", "wav2vec_cnn"])
def test_labels_of_another_front_end_are_taken_by_time(
    command, own, tmp_path, config  # noqa: F811
):
    folder = store(own, tmp_path / "mfcc", MFCC)
    cmd = with_labels(command(ssl_conf={**ATM, "crop_seconds": 0.5}, **config), folder)
    ATMSSLTask.main(cmd=cmd)
    args = arguments(cmd)
    grid, collate = encoder_grid(args), ATMSSLTask.build_collate_fn(args, False)
    assert isinstance(collate, SyncedCollateFn)
    text = dict(x.split(maxsplit=1) for x in (folder / "text").read_text().splitlines())
    labels = np.array(text["utt3"].split(), int)
    speech, _ = soundfile.read(own / "utt3.wav", dtype="float32")
    track = np.zeros(ENCODER.length(len(speech)), np.float32)
    _, batch = collate([("utt3", dict(speech=speech, text=labels, confidence=track))])
    centres = grid.offset + grid.shift * np.arange(grid.length(len(speech)))
    times = MFCC.offset + MFCC.shift * np.arange(len(labels))
    distances = np.abs(centres[:, None] - times)
    for label, row in zip(batch["text"][0].tolist(), distances):
        assert label in labels[row == row.min()]


# --- what is refused --------------------------------------------------------------------


def refused(cmd, message) -> None:
    """Before anything is trained or written."""
    with pytest.raises(UserError, match=message) as e:
        ATMSSLTask.main(cmd=cmd)
    assert "\n" not in str(e.value)
    assert not (folder_of(cmd) / "config.yaml").exists()


def test_more_labels_than_classes_are_refused(command, own, tmp_path):  # noqa: F811
    folder = store(own, tmp_path / "l", num_classes=5)
    message = "labeller: there are 5 labels, .* num_classes: 4; write num_classes: 5 or more"
    refused(with_labels(command(ssl_conf=ATM), folder), message)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"kmeans": "2"}, "different labellers: kmeans; label"),
        ({"grid": MFCC}, "different labellers: frame_offset, frame_shift; label"),
        ({"num_classes": 3}, "different labellers: num_classes; label"),
        ({"model": "x"}, "different labellers: kmeans, model; label"),
    ],
)
def test_sets_that_are_labelled_differently_are_refused(
    command, own, tmp_path, other, message  # noqa: F811
):
    known = {} if "model" in other else {"kmeans": "1"}
    train = store(own, tmp_path / "t", kmeans="1")
    valid = store(own, tmp_path / "v", **{**known, **other})
    refused(with_labels(command(ssl_conf=ATM), train, valid), message)


def test_labels_without_ssl_conf_are_refused(command, labels):  # noqa: F811
    cmd = with_labels(command(("speech", "text")), labels)
    refused(cmd, "gives pseudo_labels, .*write ssl_conf: {masker: random}, or atm")


def test_labels_that_no_loss_reads_are_refused(command, labels):  # noqa: F811
    loss = [{"name": "best_rq", "conf": LOSSES["best_rq"]}]
    cmd = with_labels(command(ssl_conf=ATM, loss=loss), labels)
    refused(cmd, "names labels, which no loss reads: leave them out$")


@pytest.mark.parametrize("mode", ["train", "valid"])
@pytest.mark.parametrize("tokens", [True, False])
def test_stored_labels_and_text_are_not_mixed(command, labels, mode, tokens):  # noqa: F811
    words, stored = command(ssl_conf=ATM), []
    option = None
    for word in words:
        option = word if word.startswith("--") else option
        if word.endswith(",text,text") and option.startswith(f"--{mode}"):
            word = f"{labels}/labels.scp,text,pseudo_labels"
        stored.append(word)
    if not tokens:
        stored = without(without(stored, "--token_list"), "--token_type")
    refused(stored, "labels of both sets must be of one type, .*labels.scp pseudo_labels")


def test_a_set_without_labels_is_refused(command, labels):  # noqa: F811
    cmd = with_labels(command(ssl_conf=ATM), labels)
    at = max(n for n, x in enumerate(cmd) if x.endswith("pseudo_labels"))
    refused(cmd[: at - 1] + cmd[at + 1 :], "reads labels, and --valid_data.* names none")


def test_an_utterance_without_labels_is_refused(command, labels):  # noqa: F811
    rewrite(labels / "labels.scp", lambda x: x[:-1])
    cmd = with_labels(command(ssl_conf=ATM), labels)
    refused(cmd, "labels.scp: lacks 1 of the 10 utterances .*: utt9; label them, or")


def test_labels_at_another_rate_are_refused(command, own, tmp_path):  # noqa: F811
    folder = store(own, tmp_path / "l")
    note = json.loads((folder / "labeller").read_text())
    (folder / "labeller").write_text(json.dumps({**note, "sampling_rate": 8000}))
    cmd = with_labels(command(ssl_conf=ATM), folder)
    refused(cmd, "labeller: the labels are of audio at 8000 Hz, and frontend_conf.fs is 16")


@pytest.mark.parametrize("workers", [0, 2])
def test_other_audio_of_the_same_length_is_refused(
    command, own, labels, workers  # noqa: F811
):
    """Of an utterance that is not tried before training."""
    speech, rate = soundfile.read(own / f"{LAST}.wav", dtype="int16")
    soundfile.write(own / f"{LAST}.wav", speech[::-1], rate)
    cmd = with_labels(command(ssl_conf=ATM, num_workers=workers), labels)
    with pytest.raises(UserError, match=f"{LAST}: its audio is not what was labelled"):
        ATMSSLTask.main(cmd=cmd)
    assert not (folder_of(cmd) / "1epoch.pth").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_labels_are_refused_by_name(command, labels, workers):  # noqa: F811
    data = bytearray((labels / "labels.bin").read_bytes())
    data[-1] ^= 1
    (labels / "labels.bin").write_bytes(data)
    cmd = with_labels(command(ssl_conf=ATM, num_workers=workers), labels)
    message = f"labels.scp: {LAST}: .*labels.bin:[0-9]+: is damaged"
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=cmd)
    (labels / "labels.bin").unlink()
    with pytest.raises(UserError, match="labels.scp: utt0: .*No such file"):
        ATMSSLTask.main(cmd=cmd)


# --- an event -----------------------------------------------------------------------------


def test_an_events_label_is_on_its_frame_in_batches_of_training(
    command, own, tmp_path  # noqa: F811
):
    """From the files, of which training reads parts, to the batch."""
    rng, events = np.random.default_rng(0), {}
    for number in range(10):
        samples = 40_000 + 1000 * number
        speech = 1e-3 * rng.standard_normal(samples)
        events[f"utt{number}"] = int(rng.integers(3000, samples - 3000))
        speech[events[f"utt{number}"]] = 0.9
        soundfile.write(own / f"utt{number}.wav", speech, 16000)
    folder = tmp_path / "events"
    folder.mkdir()
    utterances = Table(own / "wav.scp", 2)
    note = {"num_classes": 2, "frame_shift": ENCODER.shift, "sampling_rate": 16000}
    with LabelWriter(folder, utterances, {**note, "frame_offset": ENCODER.offset}) as writer:
        for number, (utt, file) in enumerate(utterances):
            speech, _ = soundfile.read(file, dtype="float32")
            times = ENCODER.offset + ENCODER.shift * np.arange(ENCODER.length(len(speech)))
            row = np.zeros(len(times), np.int64)
            row[np.abs(times - events[utt]).argmin()] = 1
            writer.write({number: row}, {number: checksum(speech)})
    streams = [
        (f"{own}/wav.scp", "speech", "sound"),
        (f"{folder}/labels.scp", "text", "pseudo_labels"),
    ]
    cmd = with_labels(command(ssl_conf={**RANDOM, "crop_seconds": 1}), folder)
    args = arguments(cmd)
    ATMSSLTask.check_labels(args)
    reading = ATMSSLTask.build_preprocess_fn(args, True)
    reading.crop = ATMSSLTask.crop_to_read(args, reading)
    ours, reading = reading.of(streams)
    dataset = data.dataset.ESPnetDataset(ours, preprocess=reading)
    collate = ATMSSLTask.build_collate_fn(args, True)
    frontend, preencoder = logmel(), Conv2dPreEncoder(80, 16)
    grid, seen, parts = encoder_grid(args), 0, 0
    for _ in range(12):
        rows = [dataset[utt] for utt in events]
        parts += sum(len(x["speech"]) < 20_000 for _, x in rows)
        utts, batch = collate(rows)
        assert batch["speech"].shape == (10, 16000)
        assert batch["text"].shape == (10, grid.length(16000))
        for speech, labels in zip(batch["speech"], batch["text"]):
            event = int(speech.argmax())
            if speech[event] < 0.5 or not 1500 < event < 14500:
                continue
            (marked,) = np.flatnonzero(labels.numpy())
            assert abs(grid.offset + grid.shift * marked - event) <= grid.shift / 2
            # That frame is the one that feels it most.
            quiet = speech.clone()
            quiet[event] = 0
            felt = []
            with torch.no_grad():
                for x in (speech, quiet):
                    x, lengths = frontend(x[None], torch.tensor([len(x)]))
                    felt.append(preencoder(x, lengths)[0][0])
            felt = (felt[0] - felt[1]).abs().sum(dim=1)
            centre = float((felt * torch.arange(len(felt))).sum() / felt.sum())
            assert abs(centre - marked) <= 1
            seen += 1
    assert seen > 20 and parts > 100
