"""Data preparation of --corpus librilight, up to the audio and text of training."""

import os
import shutil
import subprocess
from pathlib import Path

import normalise_text
import numpy as np
import pytest
import soundfile
import trees
from conftest import copy_recipe
from scipy.signal import correlate

from espnet_atm.audio import read_audio

TEST_SETS = {
    "librispeech_dev_clean": 3,
    "librispeech_dev_other": 3,
    "librispeech_test_clean": 3,
    "librispeech_test_other": 3,
    "ami_ihm_eval": 6,
    "ami_sdm1_eval": 6,
    "tedlium2_dev": 4,
    "tedlium2_test": 4,
    "commonvoice_test": 4,
    "chime6_dev": 4,
    "chime6_eval": 4,
}
LABELLED = {
    **TEST_SETS,
    "librispeech_100_train": 3,
    "librispeech_100_dev": 6,
    "librispeech_960_train": 9,
    "librispeech_960_dev": 6,
    "ami_ihm_train": 6,
    "ami_ihm_dev": 6,
    "ami_sdm1_train": 6,
    "ami_sdm1_dev": 6,
    "tedlium2_train": 4,
    # Validated on less what stage 4 drops: not the evaluation set.
    "tedlium2_dev_labelled": 4,
    "commonvoice_train": 3,
    "commonvoice_dev": 2,
}
STEW = ("librispeech_960", "ami_ihm", "ami_sdm1", "tedlium2", "commonvoice")
for part in ("train", "dev"):
    # The dev set of TED-LIUM is an evaluation set too.
    LABELLED[f"{'+'.join(STEW)}_{part}"] = sum(LABELLED[f"{x}_{part}"] for x in STEW)
# What an AMI-scorer is trained on.
AMI = "ami_ihm+ami_sdm1"
LABELLED.update({f"{AMI}_train": 12, f"{AMI}_dev": 12})
POOL = {"librilight_unlabelled": 1, "librilight_unlabelled_dev": 1}
# None is needed: none is on the path of this test.
PROGRAMS = ("sox", "flac", "ffmpeg", "sph2pipe", "java")


def read(file: Path) -> dict[str, str]:
    rows = (x.rstrip("\n").partition(" ") for x in file.open(encoding="utf-8"))
    return {utt: value for utt, _, value in rows}


def path_without(programs: tuple[str, ...], folder: Path) -> str:
    """A folder with links to all that is on the path but these."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for file in Path(place).glob("*") if place else ():
            link = folder / file.name
            if file.name not in programs and not link.is_symlink():
                link.symlink_to(file)
    return str(folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, str]:
    """The corpora, the recipe after stage 4, and what it said."""
    folder = tmp_path_factory.mktemp("stages")
    root = folder / "all the corpora"
    recordings = {(x, "7", "chapter_1"): 40 for x in ("100", "19")}
    trees.librilight(root / "Libri Light", "small", recordings)
    names = {"LIBRILIGHT": root / "Libri Light"}
    for name in ("librispeech", "ami", "tedlium2", "commonvoice", "chime6"):
        names[name.upper()] = root / f"the {name}"
        getattr(trees, name)(names[name.upper()])
    recipe = copy_recipe(folder)
    (recipe / "db.sh").write_text("".join(f"{k}='{v}'\n" for k, v in names.items()))
    run = subprocess.run(
        ["./run.sh", "--corpus", "librilight", "--size", "small", "--nj", "1"]
        + ["--stage", "1", "--stop_stage", "4", "--finetune_sets"]
        + [f"librispeech_100 {' '.join(STEW)} {'+'.join(STEW)}"]
        + ["--asr_train_set", f"{AMI}_train", "--asr_valid_set", f"{AMI}_dev"],
        cwd=recipe,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path_without(PROGRAMS, folder / "bin")},
    )
    assert run.returncode == 0, run.stdout[-5000:]
    return root, recipe, run.stdout


def test_every_set_is_complete(done):
    root, recipe, log = done
    assert "5 prepared" in log and "0 failed" in log
    clip = next(root.rglob("*.mp3"))
    assert soundfile.info(clip).samplerate == 48000  # as published
    raw = recipe / "dump/librilight/raw"
    for table in ("text", "wav.scp", "utt2spk"):
        found = {x.parent.name: len(read(x)) for x in raw.glob(f"*/{table}")}
        assert found == {**LABELLED, **POOL}, table
    tests = (recipe / "data/local/librilight/test_sets").read_text().split()
    assert sorted(tests) == sorted(TEST_SETS)
    for name in LABELLED:
        texts = read(raw / name / "text")
        assert texts == read(recipe / "data" / name.removesuffix("_labelled") / "text")
        assert all(x and x == normalise_text.normalise(x) for x in texts.values())
        wavs = read(raw / name / "wav.scp")
        assert set(texts) == set(wavs) == set(read(raw / name / "utt2spk"))
        for wav in wavs.values():
            info = soundfile.info(recipe / wav)
            assert (info.samplerate, info.channels) == (16000, 1), wav
            assert info.frames > 8000, wav


def test_the_open_stew_is_all_of_its_parts(done):
    """With and without segments, at 16 and 48 kHz, each utterance as in its own set."""
    _, recipe, _ = done
    raw = recipe / "dump/librilight/raw"
    assert LABELLED[f"{'+'.join(STEW)}_train"] == 9 + 6 + 6 + 4 + 3
    for part in ("train", "dev"):
        whole = raw / f"{'+'.join(STEW)}_{part}"
        texts, wavs = read(whole / "text"), read(whole / "wav.scp")
        for name in STEW:
            own = raw / f"{name}_{part}"
            assert texts.items() >= read(own / "text").items()
            for utt, wav in read(own / "wav.scp").items():
                alone, _ = soundfile.read(recipe / wav)
                np.testing.assert_array_equal(soundfile.read(recipe / wavs[utt])[0], alone)


def test_no_speaker_is_on_two_sides(done):
    _, recipe, _ = done
    for name in ("librispeech_960", "ami_ihm", "ami_sdm1", "tedlium2", "commonvoice"):
        sides = [f"{name}_train", f"{name}_dev"]
        sides += [x for x in TEST_SETS if x.startswith(name) and x not in sides]
        trained = set(read(recipe / f"data/{sides[0]}/spk2utt"))
        for side in sides[1:]:
            assert not trained & set(read(recipe / f"data/{side}/spk2utt")), side


def test_sets_that_share_utterances_are_not_combined(done):
    _, recipe, _ = done
    command = ["./run.sh", "--corpus", "librilight", "--size", "small", "--nj", "1"]
    command += ["--stop_stage", "1", "--finetune_sets", "librispeech_100+librispeech_960"]
    run = subprocess.run(command, cwd=recipe, text=True, capture_output=True)
    assert run.returncode == 1
    assert (
        "data/librispeech_100+librispeech_960_dev: 6 ids of utt2spk are in more than one "
        "of librispeech_100_dev librispeech_960_dev, the first: 116-1116-0000;"
    ) in run.stderr


def test_a_set_of_ones_own_that_is_called_so_stays(done):
    _, recipe, _ = done
    for part in ("train", "dev"):
        own = recipe / f"data/my+own_{part}"
        shutil.copytree(recipe / f"data/librispeech_100_{part}", own)
    command = ["./run.sh", "--corpus", "librilight", "--size", "small", "--nj", "1"]
    command += ["--stop_stage", "1", "--finetune_sets", "my+own"]
    run = subprocess.run(command, cwd=recipe, text=True, capture_output=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    assert len(read(own / "text")) == LABELLED["librispeech_100_dev"]


def test_the_pool_is_cut_where_there_is_speech(done):
    root, recipe, _ = done
    for name in POOL:
        ((utt, wav),) = read(recipe / f"dump/librilight/raw/{name}/wav.scp").items()
        speaker, _, _, start, end = utt.split("-")
        (flac,) = (root / "Libri Light/small" / speaker).rglob("*.flac")
        whole, rate = soundfile.read(flac, dtype="int16")
        assert not list((recipe / f"dump/librilight/raw/{name}").rglob("*.flac"))
        audio = (read_audio(wav)[0] * 32768).astype(np.int16)
        assert rate == 16000 and 32 * rate <= len(audio) <= 64 * rate
        assert (audio == whole[int(start) * 160 : int(end) * 160]).all()
        assert read(recipe / f"dump/librilight/raw/{name}/text") == {utt: "unlabelled"}


# By hand: a set, how the id of an utterance begins, who says which sentence and what
# comes after it, the speaker, and the seconds of silence at either end.
LINES = [
    ("librispeech_100_train", "103-1103-0000", "103", 0, "", "103-1103", 0.3),
    ("librispeech_100_dev", "116-1116-0002", "116", 2, "", "116-1116", 0.3),
    ("librispeech_960_train", "14-1014-0001", "14", 1, "", "14-1014", 0.3),
    ("librispeech_960_train", "20-1020-0002", "20", 2, "", "20-1020", 0.3),
    ("librispeech_test_other", "367-1367-0001", "367", 1, "", "367-1367", 0.3),
    ("ami_ihm_eval", "AMI_EN2002a_H00_FEE009_0000050", "EN2002aA", 0)
    + ("", "AMI_EN2002a_H00_FEE009", 0),
    ("ami_sdm1_eval", "AMI_EN2002a_SDM_FEE009_0000050", "EN2002aA", 0)
    + ("", "AMI_EN2002a_SDM_FEE009", 0),
    ("ami_sdm1_train", "AMI_EN2001a_SDM_FEE006", "EN2001aB", 0)
    + ("", "AMI_EN2001a_SDM_FEE006", 0),
    ("tedlium2_test", "BillGates_2010-0000100", "BillGates_2010", 0)
    + ("", "BillGates_2010-1", 0),
    ("tedlium2_train", "911Mothers_2010W-0000100", "911Mothers_2010W", 0)
    # ESPnet's recipe pads the training set.
    + ("", "911Mothers_2010W-1", (0.15, 0.1)),
    ("commonvoice_train", "c0ffee7-common_voice_en_107", "cv", 7, "", "c0ffee7", 0.25),
    ("commonvoice_test", "c0ffee1-common_voice_en_101", "cv", 1, "", "c0ffee1", 0.25),
    ("chime6_eval", "P01_S01_U01_KITCHEN.CH1-0000100", "P01", 0, " YEAH", "P01", 0),
]


@pytest.mark.parametrize(
    "dset, prefix, voice, number, after, speaker, silence",
    LINES,
    ids=[f"{dset}-{prefix}" for dset, prefix, *_ in LINES],
)
def test_line(done, dset, prefix, voice, number, after, speaker, silence):
    _, recipe, _ = done
    folder = recipe / "dump/librilight/raw" / dset
    texts = read(folder / "text")
    utt = min(x for x in texts if x.startswith(prefix))
    words, speech = trees.sentence(voice, number)
    assert texts[utt] == words + after
    assert read(folder / "utt2spk")[utt] == speaker
    audio, rate = soundfile.read(recipe / read(folder / "wav.scp")[utt])
    assert rate == 16000
    # The sentence, the whole of it and nothing but it, at its time.
    scores = correlate(audio, speech, mode="full")
    assert scores.max() > 0.95 * np.linalg.norm(audio) * np.linalg.norm(speech)
    begins = (int(scores.argmax()) - (len(speech) - 1)) / rate
    lead, trail = silence if isinstance(silence, tuple) else (silence, silence)
    assert begins == pytest.approx(lead, abs=0.06)  # MP3: where it starts is vague
    ends = len(audio) / rate - begins - len(speech) / rate
    assert ends == pytest.approx(trail, abs=0.06)
