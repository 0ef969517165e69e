"""Runs that share data/, dump/ and exp/: none takes another's files for its own."""

import fcntl
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from conftest import copy_recipe

from espnet_atm.labels import Labels

WORDS = {"a": "abba", "b": "xyzzy"}


def write_set(folder, ids, audio, text):
    folder.mkdir(parents=True)
    for name, value in {
        "wav.scp": audio,
        "utt2spk": lambda utt: utt,
        "spk2utt": lambda utt: utt,
        "text": text,
    }.items():
        (folder / name).write_text("".join(f"{x} {value(x)}\n" for x in ids))


@pytest.fixture
def recipe(tmp_path):
    """A copy of the recipe with two labelled corpora, a and b, in data/."""
    recipe = copy_recipe(tmp_path / "tree")
    rng = np.random.default_rng(0)
    for name, word in WORDS.items():
        for part, count in (("train", 4), ("dev", 2)):
            ids = [f"{name}-{part}-{n}" for n in range(count)]
            for utt in ids:
                speech = 0.1 * rng.standard_normal(16000)
                soundfile.write(tmp_path / f"{utt}.wav", speech, 16000)
            folder = recipe / "data" / f"{name}_{part}"
            write_set(
                folder, ids, lambda utt: tmp_path / f"{utt}.wav", lambda utt: word
            )
    return recipe


def command(*options) -> list[str]:
    return [
        *("./atm.sh", "--corpus", "x", "--skip_data_prep", "true", "--nj", "1"),
        *("--train_set", "a_train", "--valid_set", "a_dev"),
        *("--test_sets", "a_dev", *map(str, options)),
    ]


def run(recipe, *options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*options),
        cwd=recipe,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def read(file) -> list[str]:
    return file.read_text().splitlines()


@pytest.mark.slow
def test_a_set_as_pool_and_labelled_and_each_models_tokens(recipe, asr):
    """The pool is what the first model is fine-tuned on; a model for a, one for b."""
    options = (
        *("--finetune_sets", "a b", "--objective", "best_rq"),
        *("--scorer_config", asr[0], "--scorer_model", asr[1]),
    )
    done = run(recipe, *options, "--stage", "1", "--stop_stage", "5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    raw = recipe / "dump/x/raw"
    for name, word in WORDS.items():
        for part in ("train", "dev"):
            texts = [line.split()[1] for line in read(raw / f"{name}_{part}/text")]
            assert set(texts) == {word}, (name, part)
    for part, count in (("train", 4), ("dev", 2)):
        texts = [line.split()[1] for line in read(raw / f"a_{part}_pool/text")]
        assert texts == ["unlabelled"] * count
        assert len(read(raw / f"a_{part}_pool/wav.scp")) == count
    # The tokens of the first model are of its own transcripts, whatever came last.
    (tokens,) = recipe.glob("data/x_*token_list/char/tokens.txt")
    assert sorted(x for x in read(tokens) if len(x) == 1) == ["a", "b"]
    (shape,) = recipe.glob("exp/x/asr_stats*/train/text_shape.char")
    assert read(shape)[0].endswith(" 4,5")

    # In the same place: another dump would change it under the first run.
    for other in (
        ("--max_wav_duration", "20"),
        ("--min_wav_duration", "0.5"),
        ("--audio_format", "wav"),
    ):
        done = run(recipe, *options, *other, "--stage", "3", "--stop_stage", "3")
        assert done.returncode == 1
        assert "dump/x was made with --fs 16k --audio_format flac" in done.stderr
    done = run(recipe, "--asr_train_set", "b_train", "--asr_valid_set", "b_dev")
    assert done.returncode == 1
    assert "data/a_train is a pool set here, and a labelled set" in done.stderr

    # Data that changed since they were formatted.
    text = recipe / "data/b_train/text"
    text.write_text(text.read_text().replace("xyzzy", "zyxxy"))
    done = run(recipe, *options, "--stage", "5", "--stop_stage", "5")
    assert done.returncode == 1
    assert "dump/x/raw/b_train is not made of data/b_train as it is" in done.stderr

    # The line ends of Windows are named before anything is formatted.
    shutil.rmtree(recipe / "dump")
    text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    done = run(recipe, *options, "--stage", "3", "--stop_stage", "3")
    assert done.returncode == 1
    assert "data/b_train/text:1: has the line ends of Windows" in done.stderr
    assert not (recipe / "dump/x/raw").exists()


@pytest.fixture
def dumped(recipe):
    """The recipe with the pool as stage 4 leaves it."""
    for dset in ("a_train", "a_dev"):
        dump = recipe / "dump/x/raw" / dset
        shutil.copytree(recipe / "data" / dset, dump)
        ids = [line.split()[0] for line in read(dump / "wav.scp")]
        (dump / "utt2num_samples").write_text("".join(f"{x} 16000\n" for x in ids))
        (dump / "feats_type").write_text("raw\n")
        (dump / "audio_format").write_text("wav\n")
        shutil.copytree(dump, dump.with_name(f"{dset}_pool"))
    for dset in ("b_train", "b_dev"):
        shutil.copytree(recipe / "data" / dset, recipe / "dump/x/raw" / dset)
    # Validated on, and a test set.
    shutil.copytree(recipe / "data/b_dev", recipe / "dump/x/raw/b_dev_labelled")
    return recipe


@pytest.mark.slow
def test_pseudo_labels_of_runs_that_are_started_at_once(dumped, asr, monkeypatch):
    """Other numbers of clusters, and another part of the pool that they are learned from."""
    options = (
        *("--asr_train_set", "b_train", "--asr_valid_set", "b_dev"),
        *("--test_sets", "b_dev", "--audio_format", "wav"),
        *("--scorer_config", asr[0], "--scorer_model", asr[1]),
        *("--stage", "8", "--stop_stage", "8"),
    )
    arms = (("4", "0.5"), ("6", "0.5"), ("4", "1"))
    logs = [dumped / f"log{n}" for n in range(len(arms))]
    processes = [
        subprocess.Popen(
            command(*options, "--nclusters", clusters, "--km_portion", portion),
            cwd=dumped,
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for (clusters, portion), log in zip(arms, logs)
    ]
    for process, log in zip(processes, logs):
        assert process.wait(300) == 0, log.read_text()[-3000:]
    monkeypatch.chdir(dumped)  # paths in the lists are relative to the recipe
    folders = sorted(dumped.glob("exp/x/kmeans_*"))
    assert len(folders) == 3
    assert {"kmeans_4", "kmeans_6"} < {x.name for x in folders}
    for folder in folders:
        clusters = int(folder.name.split("_")[1])
        assert [x.name for x in folder.glob("km_*")] == [f"km_{clusters}.mdl"]
        for dset, count in (("a_train", 4), ("a_dev", 2)):
            labels = Labels(folder / dset / "labels.scp")
            assert len(labels) == count
            # A second has 24 of the encoder's frames.
            assert all(len(row) == 24 and row.max() < clusters for row in labels.values())
    # Each learned from its own part.
    learned = [
        int(re.search(r"clusters of (\d+) frames", log.read_text())[1])
        for log in dumped.glob("exp/x/kmeans_*/logdir/learn_kmeans.log")
    ]
    assert sorted(learned) == [2 * 98, 2 * 98, 4 * 98]

    # Statistics of another's labels are not taken: none of these settings has any yet.
    done = run(dumped, *options[:-4], "--stage", "9", "--nclusters", "5")
    assert done.returncode == 1
    assert "has no scores of these data" in done.stderr


@pytest.mark.slow
def test_a_part_of_the_pool_has_the_labels_of_the_whole(dumped, asr):
    """Whatever --min_confidence leaves out: nothing is labelled again."""
    options = (
        *("--asr_train_set", "b_train", "--asr_valid_set", "b_dev"),
        *("--audio_format", "wav", "--nclusters", "4", "--exact", "true"),
        *("--scorer_config", asr[0], "--scorer_model", asr[1]),
        *("--stage", "6", "--stop_stage", "9"),
    )
    done = run(dumped, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (means,) = dumped.glob("exp/x/confidence_*/a_train/utt2confidence")
    rows = sorted((line.split() for line in read(means)), key=lambda row: row[1])
    labels = dumped / "exp/x/kmeans_4/a_train/labels.scp"
    before = labels.stat().st_mtime_ns
    done = run(dumped, *options, "--min_confidence", rows[2][1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "Labelling" not in done.stdout and "Learning" not in done.stdout
    assert labels.stat().st_mtime_ns == before and len(Labels(labels)) == 4
    assert [x.name for x in dumped.glob("exp/x/kmeans_*")] == ["kmeans_4"]
    shape = read(dumped / "exp/x/ssl_stats_raw/train/speech_shape")
    sure = {utt for utt, mean in rows if mean >= rows[2][1]}
    assert {line.split()[0] for line in shape} == sure and len(sure) < 4


MAKE_DATA = """#!/usr/bin/env bash
set -euo pipefail
nj=1
letters=ab
. local/parse_options.sh
for dset in x_unlabelled x_unlabelled_dev x_train x_dev x_test; do
    mkdir -p data/${dset}
    echo "utt ${letters}" > data/${dset}/text
    echo "utt nothing.wav" > data/${dset}/wav.scp
    echo "utt utt" > data/${dset}/utt2spk
    echo "utt utt" > data/${dset}/spk2utt
done
"""


def test_data_are_not_made_anew_under_another_run(tmp_path):
    recipe = copy_recipe(tmp_path)
    script = recipe / "local/data_x.sh"
    script.write_text(MAKE_DATA)
    script.chmod(0o755)

    def prepare(*options):
        return subprocess.run(
            ["./atm.sh", "--corpus", "x", "--stop_stage", "2", *options],
            cwd=recipe,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    assert prepare().returncode == 0
    text = recipe / "data/x_train/text"
    with (recipe / "data/.x.use").open("w") as lock:  # as a run holds it
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert prepare().returncode == 0  # they are there
        done = prepare("--local_data_opts", "--letters cd")
        assert done.returncode == 1
        assert "another run of --corpus x is at work" in done.stderr
        assert text.read_text() == "utt ab\n"
    done = prepare("--local_data_opts", "--letters cd")
    assert done.returncode == 0 and text.read_text() == "utt cd\n"
    done = prepare("--stage", "3", "--stop_stage", "3", "--local_data_opts", "--letters ab")
    assert done.returncode == 1
    assert "data/ was prepared with --size all --local_data_opts --letters cd" in done.stderr
    # Audio that is not there is named before it is formatted.
    done = prepare("--stage", "3", "--stop_stage", "3")
    assert done.returncode == 1 and "no such file: nothing.wav" in done.stderr
    assert not (recipe / "dump/x/raw").exists()
