"""The mini corpus: egs2/atm_librilight/ssl1/local/mini.py."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import kaldi_data
import mini
import numpy as np
import pytest
import soundfile
from conftest import RECIPE

SCALE = 0.03


def write_an4(archive: Path) -> None:
    """A stand-in for ESPnet's mini_an4: the same layout, noise for speech."""
    rng = np.random.default_rng(0)
    train = {
        "an253-fash-b": "GO",
        "cen8-fbbh-b": "MARCH THIRD",
        "cen8-mwhw-b": "ELEVEN",
    }
    test = {"cen8-fcaw-b": "ELEVEN TWENTY SEVEN FIFTY SEVEN"}
    lines = {
        "train": [f"<s> {text} </s> ({name})" for name, text in train.items()],
        "test": [f"{text} ({name})" for name, text in test.items()],
    }
    files = {
        f"downloads/an4/etc/an4_{part}.transcription": "\n".join(rows).encode()
        for part, rows in lines.items()
    }
    untranscribed = "cen7-fash-b"
    for folder, names in {
        "an4_clstk": [*train, untranscribed],
        "an4test_clstk": list(test),
    }.items():
        for name in names:
            audio = io.BytesIO()
            noise = rng.integers(-3000, 3000, 8000, dtype=np.int16)
            soundfile.write(audio, noise, 16000, format="NIST", subtype="PCM_16")
            speaker = name.split("-")[1]
            files[f"downloads/an4/wav/{folder}/{speaker}/{name}.sph"] = audio.getvalue()
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def generate(folder: Path, nj: int = 2, scale: float = SCALE) -> None:
    """Run mini.py in `folder`; the staged data stay in data/staging."""
    folder.mkdir(exist_ok=True)
    if not (folder / "an4.tar.gz").is_file():
        write_an4(folder / "an4.tar.gz")
    before = Path.cwd()
    os.chdir(folder)
    try:
        mini.main(
            "--data_dir data --staging_dir data/staging --download_dir downloads/mini "
            f"--an4 an4.tar.gz --scale {scale} --nj {nj}".split()
        )
    finally:
        os.chdir(before)


def publish(folder: Path) -> None:
    """What local/publish_data.sh does, without Kaldi's validation."""
    for path in (folder / "data" / "staging").iterdir():
        name = ".mini.done" if path.name == ".done" else path.name
        path.rename(folder / "data" / name)
    (folder / "data" / "staging").rmdir()


def table(folder: Path, part: str, name: str) -> dict[str, str]:
    return kaldi_data.read_scp(folder / "data" / "staging" / f"mini_{part}" / name)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for top in ("data", "downloads")
        for path in (folder / top).rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    generate(folder)
    return folder


PARTS = [*mini.MINUTES, "test_an4"]
LABELLED = [part for part in PARTS if not part.startswith("unlabelled")]


def test_every_set_is_complete(corpus):
    for part in PARTS:
        keys = list(table(corpus, part, "wav.scp"))
        assert keys == sorted(keys)
        assert len(keys) >= (1 if part == "test_an4" else mini.MIN_UTTERANCES)
        for name in ("text", "utt2spk", "utt2category", "utt2dur"):
            assert list(table(corpus, part, name)) == keys
        for utt_id, speaker in table(corpus, part, "utt2spk").items():
            assert utt_id.startswith(f"{speaker}-")


def test_audio_is_16_khz_mono_16_bit(corpus):
    for part in PARTS:
        durations = table(corpus, part, "utt2dur")
        for utt_id, wav in table(corpus, part, "wav.scp").items():
            assert not Path(wav).is_absolute()
            info = soundfile.info(str(corpus / wav))
            assert (info.samplerate, info.channels, info.subtype) == (
                16000,
                1,
                "PCM_16",
            )
            assert info.duration == pytest.approx(float(durations[utt_id]), abs=1e-3)
            if (
                part in mini.MINUTES
                and table(corpus, part, "utt2category")[utt_id] != "an4"
            ):
                assert 1.5 <= info.duration <= 8.0


def test_unlabelled_sets_hold_no_transcript(corpus):
    for part in ("unlabelled", "unlabelled_dev"):
        assert set(table(corpus, part, "text").values()) == {kaldi_data.PLACEHOLDER}
    words = {
        word
        for part in LABELLED
        for text in table(corpus, part, "text").values()
        for word in text.split()
    }
    assert len(words) > 50 and kaldi_data.PLACEHOLDER not in words
    assert not list(corpus.rglob("*.txt"))


def test_sets_share_neither_sentences_nor_voices():
    # Planned at a fair size: planning makes no audio.
    refused = frozenset(["ELEVEN TWENTY SEVEN FIFTY SEVEN"])
    plans = {part: mini.make_plan(part, 3.0, refused) for part in mini.MINUTES}
    sentences = {part: {p.text for p in rows if p.text} for part, rows in plans.items()}
    voices = {
        part: {p.speaker.variant for p in rows if p.speaker}
        for part, rows in plans.items()
    }
    for a in plans:
        assert not sentences[a] & refused
        for b in plans:
            if a < b:
                assert not sentences[a] & sentences[b], (a, b)
                if (a, b) != ("test_clean", "test_mismatched"):
                    assert not voices[a] & voices[b], (a, b)


def test_sentence_of_real_test_speech_is_never_drawn():
    part = "train"
    key = "some utterance"
    drawn = mini.draw_sentence(part, key, rate=150)
    other = mini.draw_sentence(part, key, rate=150, refused=frozenset([drawn]))
    assert other != drawn and mini.owner_of(other) == part


def test_conditions(corpus):
    expected = {
        "unlabelled": {"clean", "noise", "room", "telephone", "purenoise"},
        "unlabelled_dev": {"clean", "noise", "room", "telephone"},
        "test_clean": {"clean"},
        "test_mismatched": {"noise", "room", "telephone"},
        "test_an4": {"an4"},
    }
    for part, conditions in expected.items():
        assert set(table(corpus, part, "utt2category").values()) == conditions
    assert "an4" in table(corpus, "train", "utt2category").values()
    shares = Counter(p.condition for p in mini.make_plan("unlabelled", 20.0))
    total = sum(shares.values())
    assert {k: round(20 * n / total) for k, n in shares.items()} == {
        "clean": 10, "noise": 3, "room": 3, "telephone": 2, "purenoise": 2,
    }  # fmt: skip


def test_telephone_is_narrow_band():
    rng = np.random.default_rng(0)
    power = (
        np.abs(np.fft.rfft(mini.telephone(rng.standard_normal(16000)))) ** 2
    )  # 1 Hz a bin
    inside = power[500:3000].mean()
    assert power[:150].mean() < 0.05 * inside
    assert power[4200:].mean() < 0.01 * inside


@pytest.mark.parametrize("snr_db", [0.0, 15.0])
def test_noise_is_added_at_the_snr(snr_db):
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(16000) * 0.1
    noise = mini.coloured_noise(16000, 1.0, rng)
    added = mini.add_noise(speech, noise, snr_db, mini.rms(speech)) - speech
    assert 20 * np.log10(mini.rms(speech) / mini.rms(added)) == pytest.approx(snr_db)


def test_an4_keeps_its_split_and_counts_what_it_drops(corpus):
    assert table(corpus, "test_an4", "text") == {
        "fcaw-cen8-b": "ELEVEN TWENTY SEVEN FIFTY SEVEN"
    }
    assert table(corpus, "dev", "text")[mini.AN4_DEV] == "MARCH THIRD"
    assert {"fash-an253-b", "mwhw-cen8-b"} <= set(table(corpus, "train", "text"))
    done = json.loads((corpus / "data" / "staging" / ".done").read_text())
    assert done["dropped"]["train"]["AN4 recording without a transcript"] == 1


def test_same_bytes_with_one_process(corpus, tmp_path):
    generate(tmp_path / "again", nj=1)
    assert contents(tmp_path / "again") == contents(corpus)


def test_resumes_and_repairs(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus, folder)
    before = contents(folder)
    audio = sorted((folder / "downloads").rglob("*.flac"))
    audio[0].unlink()
    audio[-1].rename(
        audio[-1].with_name(f"{audio[-1].name}.partial")
    )  # cut off while writing
    kept = {path: path.stat().st_mtime_ns for path in audio[1:-1]}
    shutil.rmtree(folder / "data" / "staging" / "mini_dev")
    generate(folder)
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_finished_corpus_returns_at_once_and_other_parameters_do_not(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus, folder)
    publish(folder)
    staging = folder / "data" / "staging"

    generate(folder)
    assert not staging.exists()

    (folder / "data" / "mini_dev" / "text").unlink()
    generate(folder)
    assert (staging / ".done").is_file()
    shutil.rmtree(staging)

    generate(folder, scale=SCALE * 1.1)
    assert json.loads((staging / ".done").read_text())["params"]["scale"] == SCALE * 1.1


def test_table(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    publish(tmp_path / "copy")
    text = kaldi_data.format_table(tmp_path / "copy" / "data", "mini")
    assert "mini_test_mismatched" in text and "telephone" in text
    assert "mini_train: 1 x AN4 recording without a transcript" in text


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.tar.gz .* ATM_ESPNET_ROOT"):
        mini.read_an4(tmp_path / "nowhere.tar.gz", tmp_path)
    with pytest.raises(ValueError, match="--scale must be above 0, not -1"):
        generate(tmp_path / "bad", scale=-1.0)
    row = kaldi_data.Utterance("spk-utt", "other", "a.flac", "A", "clean", 1.0)
    with pytest.raises(
        ValueError, match="spk-utt must be ASCII and start with its speaker"
    ):
        kaldi_data.write_data_dir(tmp_path / "x", [row], labelled=True)
    with pytest.raises(ValueError, match="mini_dev has no utterance"):
        kaldi_data.write_data_dir(tmp_path / "mini_dev", [], labelled=True)


@pytest.mark.skipif(
    "ATM_ESPNET_ROOT" not in os.environ,
    reason="needs ATM_ESPNET_ROOT, an ESPnet source tree",
)
def test_data_sh(tmp_path):
    """Through the shell, with Kaldi's validation and the real AN4 utterances."""
    template = Path(os.environ["ATM_ESPNET_ROOT"]) / "egs2" / "TEMPLATE" / "asr1"
    for name in ("utils", "cmd.sh"):
        (tmp_path / name).symlink_to(template / name)
    (tmp_path / "local").symlink_to(RECIPE / "local")
    (tmp_path / "path.sh").write_text(
        f'export PATH="$PWD/utils:{Path(sys.executable).parent}:$PATH" LC_ALL=C\n'
    )

    def data_sh(*options: str) -> subprocess.CompletedProcess:
        command = ["local/data.sh", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    first = data_sh("--corpus", "mini", "--scale", "0.01")
    assert first.returncode == 0, first.stdout + first.stderr
    assert {p.name for p in (tmp_path / "data").iterdir()} == {
        ".mini.done", *(f"mini_{part}" for part in PARTS),
    }  # fmt: skip
    texts = kaldi_data.read_scp(tmp_path / "data" / "mini_test_an4" / "text")
    assert texts["fcaw-cen8-b"] == "ELEVEN TWENTY SEVEN FIFTY SEVEN"

    second = data_sh("--corpus", "mini", "--scale", "0.01")
    assert second.returncode == 0 and "already prepared" in second.stdout

    unknown = data_sh("--corpus", "nothing")
    assert unknown.returncode != 0
    assert {"fillets", "mini"} <= set(unknown.stdout.split())
