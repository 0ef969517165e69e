"""local/make_noisy_pool.sh"""

import re
import subprocess

import numpy as np
import pytest
import soundfile
from conftest import RECIPE, ROOT


@pytest.fixture
def pool(tmp_path):
    """A data directory of 18 utterances."""
    if not (ROOT / "egs2" / "TEMPLATE").exists():
        pytest.fail("egs2/TEMPLATE is missing: run the tests by ./run_tests.sh")
    folder = tmp_path / "pool"
    folder.mkdir()
    utts = [f"spk-{n:02d}" for n in range(18)]
    for name, value in {
        "utt2spk": lambda utt: "spk",
        "wav.scp": lambda utt: f"{utt}.wav",
        "text": lambda utt: "unlabelled",
    }.items():
        (folder / name).write_text("".join(f"{utt} {value(utt)}\n" for utt in utts))
    (folder / "spk2utt").write_text(f"spk {' '.join(utts)}\n")
    return folder


def mix(pool, name, *options):
    command = ["local/make_noisy_pool.sh", "--audio_dir", str(pool.parent / "noise")]
    command += [*options, str(pool), str(pool.parent / name)]
    return subprocess.run(command, cwd=RECIPE, capture_output=True, text=True)


def table(file) -> dict:
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines())


def test_noise_is_a_tenth_and_the_pool_stays(pool, tmp_path):
    before = {x.name: x.read_bytes() for x in pool.iterdir()}
    done = mix(pool, "noisy")
    assert done.returncode == 0, done.stderr
    assert "20 utterances, 2 of them noise" in done.stdout
    assert before == {x.name: x.read_bytes() for x in pool.iterdir()}
    noisy = tmp_path / "noisy"
    categories = table(noisy / "utt2category")
    assert list(categories.values()).count("purenoise") == 2
    assert list(categories.values()).count("speech") == 18
    wavs = table(noisy / "wav.scp")
    assert wavs.keys() == categories.keys() == table(noisy / "utt2spk").keys()
    for utt, kind in categories.items():
        if kind == "purenoise":
            audio, rate = soundfile.read(wavs[utt])
            assert rate == 16000 and len(audio) > 16000 and np.abs(audio).max() > 0.001
    sound = {x.name: x.read_bytes() for x in (tmp_path / "noise").iterdir()}
    for file in (tmp_path / "noise").iterdir():
        file.unlink()
    assert mix(pool, "noisy").returncode == 0  # again: the same, in its place
    assert sound == {x.name: x.read_bytes() for x in (tmp_path / "noise").iterdir()}
    assert not list(tmp_path.glob("*.partial"))


def test_categories_and_segments_go_along(pool, tmp_path):
    utts = list(table(pool / "utt2spk"))
    (pool / "utt2category").write_text("".join(f"{utt} nl\n" for utt in utts))
    (pool / "wav.scp").write_text("rec rec.wav\n")
    (pool / "segments").write_text(
        "".join(f"{utt} rec {n}.0 {n}.5\n" for n, utt in enumerate(utts))
    )
    done = mix(pool, "noisy", "--share", "0.25")
    assert done.returncode == 0, done.stderr
    noisy = tmp_path / "noisy"
    kinds = list(table(noisy / "utt2category").values())
    assert (kinds.count("nl"), kinds.count("purenoise")) == (18, 6)
    segments, wavs = table(noisy / "segments"), table(noisy / "wav.scp")
    assert len(segments) == 24 and len(wavs) == 7
    for utt, where in segments.items():
        recording, start, end = where.split()
        assert recording in wavs and float(start) < float(end)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--share", "0"), "--share 0: is no number between 0 and 1"),
        (("--share", "1"), "--share 1: is no number between 0 and 1"),
        (("--share", "x"), "--share x: is no number between 0 and 1"),
        (("--share", "0.001"), "--share 0.001: of .*pool is no utterance"),
        (("--audio_dir", "a b"), "--audio_dir a b: Kaldi's tables do not bear spaces"),
    ],
)
def test_what_is_refused(pool, tmp_path, options, message):
    done = mix(pool, "noisy", *options)
    assert done.returncode != 0 and re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "noisy").exists()


def test_a_copy_in_its_own_place_is_refused(pool):
    done = mix(pool, "pool")
    assert done.returncode == 1 and "cannot be a copy of itself" in done.stderr
    assert (pool / "wav.scp").exists()
