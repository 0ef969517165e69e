"""Labels of a corpus, beside a search by hand; and whatever ends a run."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CNN, LOSSES, SSL_CONFIG
from sklearn.cluster import MiniBatchKMeans
from test_features import make_ssl

from espnet_atm import labelling
from espnet_atm.audio import resample
from espnet_atm.bin import label, learn_kmeans
from espnet_atm.errors import UserError
from espnet_atm.features import Layer, Mfcc
from espnet_atm.frames import FrameGrid
from espnet_atm.labels import Labels, LabelWriter, read_label_grid
from espnet_atm.task import ATMSSLTask, encoder_grid

CLUSTERS = 8
CONFIGS = {
    "conv2d": {},
    "wav2vec_cnn": {"frontend": "wav2vec_cnn", "frontend_conf": CNN, "preencoder": "linear"},
}


def contents(folder) -> dict:
    """What the files hold; paths in the scp relative to the folder."""
    return {
        name: (folder / name).read_bytes().replace(f"{folder}/".encode(), b"")
        for name in ("labels.scp", "labels.bin", "labeller", "skipped")
    }


def labels_of(folder) -> dict:
    found = Labels(folder / "labels.scp")
    return {utt: found[utt].tolist() for utt in found}


def command(km, wav_scp, folder, *options) -> list[str]:
    words = ["--km_path", km, "--wav_scp", wav_scp, "--output_dir", folder]
    return [*map(str, words), "--num_workers", "0", *map(str, options)]


@pytest.fixture(scope="module")
def km(corpus, tmp_path_factory) -> Path:
    """Clusters of the corpus's MFCC."""
    file = tmp_path_factory.mktemp("km") / "km.mdl"
    words = ["--wav_scp", str(corpus / "wav.scp"), "--km_path", str(file)]
    learn_kmeans.main([*words, "--num_clusters", str(CLUSTERS), "--num_workers", "0"])
    return file


@pytest.fixture(scope="module")
def undisturbed(km, corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    label.main(command(km, corpus / "wav.scp", folder))
    return folder


def write_config(folder, **config) -> Path:
    file = folder / "train.yaml"
    config = {**SSL_CONFIG, "ssl_conf": {"masker": "random"}, **config}
    file.write_text(yaml.safe_dump(config))
    return file


def by_hand(features, centres, frames, speech) -> tuple[np.ndarray, np.ndarray]:
    """The nearest cluster of the feature frame nearest in time, and the distances to all."""
    own = features(speech).numpy().astype(np.float64)
    times = features.grid.offset + features.grid.shift * np.arange(len(own))
    found = []
    for number in range(frames.length(len(speech))):
        nearest = np.abs(times - (frames.offset + frames.shift * number)).argmin()
        found.append(np.square(centres - own[nearest]).sum(axis=1))
    return np.argmin(found, axis=1), np.array(found)


def check_by_hand(folder, corpus, features, km, frames) -> None:
    centres = joblib.load(km).cluster_centers_.astype(np.float64)
    found, same, count = Labels(folder / "labels.scp"), 0, 0
    assert list(found) == [f"utt{n}" for n in range(10)]
    for utt in found:
        speech, _ = soundfile.read(corpus / f"{utt}.wav", dtype="float32")
        expected, distances = by_hand(features, centres, frames, speech)
        labels = found[utt]
        assert len(labels) == frames.length(len(speech)) == len(expected)
        # But for a tie, e.g. between a frame's two neighbours.
        least = distances[np.arange(len(labels)), labels] / distances.min(axis=1)
        same += (least < 1 + 1e-4).sum()
        count += len(labels)
        found.check_audio(utt, speech)
    assert same >= 0.98 * count and len({x for utt in found for x in found[utt]}) > 4


@pytest.mark.parametrize("name", [None, *CONFIGS])
def test_labels_are_those_found_by_hand(km, corpus, tmp_path, name):
    options, frames = (), Mfcc(16000).grid
    if name:
        file = write_config(tmp_path, **CONFIGS[name])
        options = ("--ssl_config", file)
        frames = encoder_grid(ATMSSLTask.get_parser().parse_args(["--config", str(file)]))
    label.main(command(km, corpus / "wav.scp", tmp_path / "labels", *options))
    check_by_hand(tmp_path / "labels", corpus, Mfcc(16000), km, frames)
    grid = read_label_grid(str(tmp_path / "labels/labels.scp"), 16000)
    assert grid == FrameGrid(frames.shift, frames.offset)


def test_labels_of_a_layer_on_another_models_frames(corpus, tmp_path):
    """HuBERT's second iteration."""
    loss = [{"name": "best_rq", "conf": LOSSES["best_rq"]}]
    conf = {"masker": "random"}
    config, model = make_ssl(tmp_path / "run", loss=loss, ssl_conf=conf)
    layer = ["--ssl_train_config", config, "--ssl_model_file", model, "--layer", "2"]
    layer = list(map(str, layer))
    km = tmp_path / "km"
    words = ["--wav_scp", str(corpus / "wav.scp"), "--km_path", str(km)]
    words += ["--portion", "1", "--num_workers", "0", *layer]
    learn_kmeans.main([*words, "--num_clusters", "8"])
    ssl_config = write_config(tmp_path, **CONFIGS["wav2vec_cnn"])
    cmd = command(km, corpus / "wav.scp", tmp_path / "labels", *layer)
    label.main([*cmd, "--ssl_config", str(ssl_config)])
    frames = FrameGrid.from_layers([(400, 320, 0)])
    check_by_hand(tmp_path / "labels", corpus, Layer(config, model, 2), km, frames)
    # Clusters of other features, and labels of another layer.
    with pytest.raises(UserError, match="km: its clusters are of 16 dim.* features of 39"):
        label.main(command(km, corpus / "wav.scp", tmp_path / "other"))
    with pytest.raises(UserError, match='another labeller .features: "layer 2", now "layer 1"'):
        other = [x if x != "2" else "1" for x in cmd]
        label.main([*other, "--ssl_config", str(ssl_config)])


def test_a_second_run_changes_nothing(km, corpus, undisturbed, tmp_path, monkeypatch):
    before = contents(undisturbed)

    def extract(*args):
        raise AssertionError("nothing is left to label")

    monkeypatch.setattr(Mfcc, "__call__", extract)
    label.main(command(km, corpus / "wav.scp", undisturbed))
    assert contents(undisturbed) == before


def test_jobs_have_the_labels_of_one(km, corpus, undisturbed, tmp_path):
    """Whose lists are joined."""
    lines = (corpus / "wav.scp").read_text().splitlines(keepends=True)
    joined = ""
    for job, part in enumerate((lines[:3], lines[3:])):
        folder = tmp_path / str(job)
        folder.mkdir()
        (folder / "wav.scp").write_text("".join(part))
        label.main(command(km, folder / "wav.scp", folder, "--job", job + 1))
        joined += (folder / "labels.scp").read_text()
    (tmp_path / "labels.scp").write_text(joined)
    assert labels_of(tmp_path) == labels_of(undisturbed)


def test_processes_that_read_change_nothing(km, corpus, undisturbed, tmp_path):
    label.main(command(km, corpus / "wav.scp", tmp_path, "--num_workers", "2"))
    assert contents(tmp_path) == contents(undisturbed)


# --- whatever ends a run ----------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    """Makes processes that need not import anything any more."""
    context = multiprocessing.get_context("forkserver")
    names = ("bin.label", "bin.learn_kmeans", "bin.score", "labelling", "corpus", "task")
    context.set_forkserver_preload([f"espnet_atm.{name}" for name in names])
    first = context.Process(target=time.time)  # waits for the imports
    first.start()
    first.join()
    return context


def finish(processes, target, *args) -> int:
    """Run in a process of its own; its exit code."""
    process = processes.Process(target=target, args=args)
    process.start()
    process.join(60)
    return process.exitcode


def end_at(number, when, main, cmd) -> None:
    """End as by a power cut, before or after so many writes are on the disk."""
    labelling.SECONDS_AT_RISK = -1  # after each utterance
    torch.set_num_threads(1)
    real, left = os.fsync, [number]

    def fsync(file):
        left[0] -= 1
        if left[0] < 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(file)
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    main(cmd)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_and_started_again(km, corpus, undisturbed, processes, tmp_path, when):
    """Killed at each run a little later: the bytes are those of an undisturbed run."""
    cmd = command(km, corpus / "wav.scp", tmp_path)
    killed, counts = 0, []
    for number in (1, 0, 3, 4, 99):
        code = finish(processes, end_at, number, when, label.main, cmd)
        killed += code == -signal.SIGKILL
        counts.append((tmp_path / "labels.scp").read_bytes().count(b"\n"))
        assert counts == sorted(counts) and code in (0, -signal.SIGKILL)
    assert code == 0 and killed == 4 and 0 < counts[2] < 10
    assert contents(tmp_path) == contents(undisturbed)


def label_each(cmd) -> None:
    labelling.SECONDS_AT_RISK = -1
    torch.set_num_threads(1)
    label.main(cmd)


def test_two_at_once_do_not_mix(km, corpus, undisturbed, processes, tmp_path):
    cmd = command(km, corpus / "wav.scp", tmp_path)
    both = [processes.Process(target=label_each, args=[cmd]) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert contents(tmp_path) == contents(undisturbed)


def on_a_full_disk(main, cmd, most, told) -> None:
    """Writing fails within a file, as it does when a disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    labelling.SECONDS_AT_RISK = -1
    torch.set_num_threads(1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        main(cmd)
    except SystemExit as e:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        told.write_text(str(e))


@pytest.mark.parametrize("most", [150, 400, 700])
def test_a_full_disk_is_told(km, corpus, undisturbed, processes, tmp_path, most):
    """Of the labels, of their list, or of the note that begins a folder."""
    told, folder = tmp_path / "told", tmp_path / "labels"
    cmd = command(km, corpus / "wav.scp", folder)
    for _ in range(2):
        assert finish(processes, on_a_full_disk, label.main, cmd, most, told) == 0
        message = f"{folder}: labels cannot be written: File too large. Make room"
        assert told.read_text().startswith(message)
        told.unlink()
    label.main(cmd)
    assert contents(folder) == contents(undisturbed)


# --- what there is to label -----------------------------------------------------------


def test_what_cannot_be_labelled_is_skipped_by_name(km, corpus, undisturbed, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal((16000, 2))
    soundfile.write(tmp_path / "short.wav", noise[:399, 0], 16000)
    soundfile.write(tmp_path / "empty.wav", noise[:0, 0], 16000)
    soundfile.write(tmp_path / "stereo.wav", noise, 16000)
    soundfile.write(tmp_path / "cut.flac", noise[:, 0], 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:20000])
    (tmp_path / "text.wav").write_text("this is no audio")
    expected = {
        "short": "399 samples are too short for one frame",
        "empty": "is empty",
        "stereo": "has 2 channels",
        "cut": "is cut off|cannot be read",
        "text": "cannot be read",
        "missing": "no such file: .*/missing.wav",
    }
    lines = (corpus / "wav.scp").read_text().splitlines()
    for number, utt in enumerate(expected):
        file = tmp_path / ("cut.flac" if utt == "cut" else f"{utt}.wav")
        lines.insert(2 * number, f"{utt} {file}")
    wav_scp, folder = tmp_path / "wav.scp", tmp_path / "labels"
    wav_scp.write_text("\n".join(lines) + "\n")
    with pytest.raises(SystemExit, match="6 utterances have no labels .*max_skipped 0"):
        label.main(command(km, wav_scp, folder))
    for most in (5, 6):
        if most == 5:
            with pytest.raises(SystemExit, match="more than --max_skipped 5"):
                label.main(command(km, wav_scp, folder, "--max_skipped", most))
        else:
            label.main(command(km, wav_scp, folder, "--max_skipped", most))
        rows = [x.split(maxsplit=1) for x in (folder / "skipped").read_text().splitlines()]
        assert [x for x, _ in rows] == list(expected)
        for utt, why in rows:
            assert re.search(expected[utt], why), (utt, why)
    assert labels_of(folder) == labels_of(undisturbed)
    # Mended, and started again: it gets labels, the others keep theirs.
    shutil.copy(corpus / "utt0.wav", tmp_path / "short.wav")
    label.main(command(km, wav_scp, folder, "--max_skipped", "5"))
    found = labels_of(folder)
    assert found.pop("short") == found["utt0"] and found == labels_of(undisturbed)


def test_audio_of_all_kinds_has_the_same_labels(km, corpus, undisturbed, tmp_path):
    speech, rate = soundfile.read(corpus / "utt3.wav", dtype="int16")
    soundfile.write(tmp_path / "long.flac", np.pad(speech, (777, 999)), rate)
    end = 777 + len(speech)
    sources = {
        "cut": f"{tmp_path}/long.flac:777:{end}",
        "file": f"{corpus}/utt3.wav",
        "pipe": f"cat {corpus}/utt3.wav |",
    }
    wav_scp = tmp_path / "wav.scp"
    wav_scp.write_text("".join(f"{k} {v}\n" for k, v in sources.items()))
    label.main(command(km, wav_scp, tmp_path / "labels"))
    found = labels_of(tmp_path / "labels")
    expected = labels_of(undisturbed)["utt3"]
    assert found == dict.fromkeys(sources, expected)
    (tmp_path / "rec.scp").write_text(f"rec {tmp_path}/long.flac\n")
    (tmp_path / "segments").write_text(f"seg rec {777 / rate} {end / rate}\n")
    segments = ["--segments", tmp_path / "segments"]
    label.main(command(km, tmp_path / "rec.scp", tmp_path / "segmented", *segments))
    assert labels_of(tmp_path / "segmented") == {"seg": expected}


def test_audio_at_another_rate_is_resampled(km, corpus, tmp_path):
    speech, _ = soundfile.read(corpus / "utt3.wav", dtype="int16")
    soundfile.write(tmp_path / "a.wav", speech[::2], 8000)
    heard, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
    label.main(command(km, tmp_path / "wav.scp", tmp_path / "labels"))
    expected, _ = by_hand(
        Mfcc(16000),
        joblib.load(km).cluster_centers_,
        Mfcc(16000).grid,
        resample(heard, 8000, 16000),
    )
    found = Labels(tmp_path / "labels/labels.scp")["a"]
    assert len(found) == len(expected) and (found == expected).mean() > 0.98


@pytest.mark.parametrize(
    "options, message",
    [
        (("--max_skipped", "-1"), "max_skipped: -1 is not 0 or more"),
        (("--num_workers", "-1"), "num_workers: -1 is not 0 or more"),
        (("--fs", "100"), "fs: 100 is not 4000 or more"),
        (("--layer", "3"), "the layer: give --ssl_train_config, --ssl_model_file and"),
        (("--fs", "8000", "--ssl_config", "{}/train.yaml"), "fs is 16000, and .* 8000 Hz"),
        (("--wav_scp", "{}/empty"), "empty is empty: it has no utterances"),
        (("--wav_scp", "{}/twice"), "twice:2: utt is in line 1 already"),
        (("--km_path", "{}/empty"), "empty: holds no k-means"),
        (("--ssl_config", "{}/empty"), "empty: holds no options"),
    ],
)
def test_impossible_options_are_refused(km, corpus, tmp_path, options, message):
    write_config(tmp_path)
    (tmp_path / "empty").write_text("")
    (tmp_path / "twice").write_text("utt a.wav\nutt b.wav\n")
    options = [x.format(tmp_path) for x in options]
    with pytest.raises(UserError, match=message) as e:
        label.main(command(km, corpus / "wav.scp", tmp_path / "labels", *options))
    assert "\n" not in str(e.value) and not (tmp_path / "labels").exists()


def test_more_clusters_than_two_bytes_tell_are_refused(corpus, tmp_path):
    rng = np.random.default_rng(0)
    model = MiniBatchKMeans(2)
    model.cluster_centers_ = rng.random(((1 << 16) + 1, 39), dtype=np.float32)
    joblib.dump(model, tmp_path / "km")
    with pytest.raises(UserError, match="km: clusters: 65537 is too large: 65536 at most"):
        label.main(command(tmp_path / "km", corpus / "wav.scp", tmp_path / "labels"))


def test_a_fault_in_the_middle_is_no_end(km, corpus, tmp_path, monkeypatch):
    """What is written stays, and there is no list of what was skipped."""
    monkeypatch.setattr(labelling, "SECONDS_AT_RISK", -1)
    real = LabelWriter.write

    def fails(self, labels, audio):
        if self.records == 4:
            raise RuntimeError("a fault")
        real(self, labels, audio)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="a fault"):
        patched.setattr(LabelWriter, "write", fails)
        label.main(command(km, corpus / "wav.scp", tmp_path))
    assert (tmp_path / "labels.scp").read_text().count("\n") == 4
    assert not (tmp_path / "skipped").exists()
    label.main(command(km, corpus / "wav.scp", tmp_path))
