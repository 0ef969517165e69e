import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from espnet_atm.audio import AudioDataset, AudioError, read_audio, read_table

RATE = 16000
PYSCRIPTS = ROOT / "egs2" / "TEMPLATE" / "asr1" / "pyscripts"


@pytest.fixture
def speech():
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(RATE)).astype(np.float32)


@pytest.fixture
def wav(tmp_path, speech):
    file = tmp_path / "a b.wav"  # a path may hold spaces
    soundfile.write(file, speech, RATE, subtype="PCM_16")
    return file


def close(a, b) -> bool:
    return a.shape == b.shape and np.abs(a - b).max() <= 1 / 32768


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_files(tmp_path, speech, form):
    file = tmp_path / f"x.{form}"
    soundfile.write(file, speech, RATE)
    audio, rate = read_audio(str(file))
    assert rate == RATE and audio.dtype == np.float32
    assert len(audio) == RATE and (form == "ogg" or close(audio, speech))


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_pipes(tmp_path, speech, form):
    soundfile.write(tmp_path / f"x.{form}", speech, RATE)
    audio, rate = read_audio(f"cat {tmp_path}/x.{form} |")
    assert rate == RATE and close(audio, speech)


def test_a_pipe_that_fails_is_told(tmp_path):
    with pytest.raises(AudioError, match="its command ends with 1: .*No such file"):
        read_audio(f"cat {tmp_path}/nothing.wav |")


@pytest.mark.parametrize("form", ["wav.ark", "flac.ark"])
def test_archives_as_format_wav_scp_writes_them(tmp_path, speech, form):
    soundfile.write(tmp_path / "x.wav", speech, RATE)
    (tmp_path / "wav.scp").write_text(f"utt {tmp_path}/x.wav\n")
    subprocess.run(
        [
            *(sys.executable, f"{PYSCRIPTS}/audio/format_wav_scp.py"),
            *(str(tmp_path / "wav.scp"), str(tmp_path / "out")),
            *("--audio-format", form, "--fs", "16k"),
        ],
        check=True,
        capture_output=True,
    )
    ((_, source),) = read_table(tmp_path / "out" / "wav.scp", 2)
    assert ".ark:" in source
    audio, rate = read_audio(source)
    assert rate == RATE and audio.dtype == np.float32 and close(audio, speech)


def test_segments(tmp_path, wav, speech):
    (tmp_path / "wav.scp").write_text(f"rec {wav}\npipe cat '{wav}' |\n")
    (tmp_path / "segments").write_text(
        "u1 rec 0.25 0.5\nu2 pipe 0.5 1.0\nu3 rec 0.75 1.5\n"
    )
    dataset = AudioDataset(tmp_path / "wav.scp", RATE, tmp_path / "segments")
    assert dataset.ids == ["u1", "u2", "u3"] and len(dataset) == 3
    assert close(dataset[0], speech[4000:8000])
    assert close(dataset[1], speech[8000:])
    assert "its segment ends at 1.5 s and the recording has 1.000 s" in dataset[2]


@pytest.mark.parametrize(
    "line, message",
    [
        ("u x 0 1", "segments:1: u: recording x is not in .*wav.scp"),
        ("u rec 1 1", "from 1.0 s to 1.0 s is no segment"),
        ("u rec 0 end", "are not two times"),
        ("u rec 0", "segments:1: no 4 columns in 'u rec 0'"),
    ],
)
def test_bad_segments_are_named(tmp_path, wav, line, message):
    (tmp_path / "wav.scp").write_text(f"rec {wav}\n")
    (tmp_path / "segments").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        AudioDataset(tmp_path / "wav.scp", RATE, tmp_path / "segments")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a x.wav\nb\n", "wav.scp:2: no path in 'b'"),
        ("a x\nb y\na z\n", ":3: a is in line 1"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    (tmp_path / "wav.scp").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "wav.scp", 2)


def test_a_truncated_flac_is_told(tmp_path, speech):
    file = tmp_path / "x.flac"
    soundfile.write(file, speech, RATE)
    file.write_bytes(file.read_bytes()[:20000])
    (tmp_path / "wav.scp").write_text(f"u {file}\n")
    found = AudioDataset(tmp_path / "wav.scp", RATE)[0]
    assert isinstance(found, str)
    assert "is cut off" in found or "cannot be read" in found


def test_resampled_audio_lasts_as_long(tmp_path, speech):
    file = tmp_path / "x.wav"
    soundfile.write(file, speech, 22050)
    (tmp_path / "wav.scp").write_text(f"u {file}\n")
    audio = AudioDataset(tmp_path / "wav.scp", RATE)[0]
    assert abs(len(audio) - RATE * len(speech) / 22050) <= 1
    assert audio.dtype == np.float32
