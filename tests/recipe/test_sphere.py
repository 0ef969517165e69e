"""SPHERE files in place of sph2pipe: local/sphere.py."""

import io
import shlex
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import sphere
import trees

from espnet_atm.errors import UserError

RATE = 8000


def run(line: str) -> tuple[np.ndarray, int]:
    """What the pipe of a line of wav.scp prints."""
    _, _, pipe = line.partition(" ")
    assert pipe.startswith("python3 ") and pipe.endswith(" |\n")
    words = [sys.executable, *shlex.split(pipe[:-2])[1:]]
    done = subprocess.run(words, capture_output=True, check=True)
    return soundfile.read(io.BytesIO(done.stdout), dtype="int16")


def packed(samples: np.ndarray, coding: str = "pcm,embedded-shorten-v2.00") -> bytes:
    header = trees.nist_header(len(samples), 16000, 1, coding, 2)
    return header + trees.shortened(samples)


@pytest.fixture
def samples() -> np.ndarray:
    """Speech-like: (5000,), int16; not whole blocks."""
    walk = np.random.default_rng(0).integers(-300, 301, 5000).cumsum()
    return walk.clip(-32768, 32767).astype(np.int16)


def test_what_shorten_packed_is_bit_exact(tmp_path, samples):
    file = tmp_path / "a.wv1"
    file.write_bytes(packed(samples))
    audio, rate = run(sphere.direct(f"a sph2pipe -f wav {file} |\n"))
    assert rate == 16000
    np.testing.assert_array_equal(audio, samples)


def test_a_side_of_a_call(tmp_path, samples):
    file = tmp_path / "a.sph"
    sides = np.stack([samples, samples[::-1]], 1)
    soundfile.write(file, sides, RATE, format="NIST", subtype="ULAW")
    sides = soundfile.read(file, dtype="int16")[0]
    for channel in (1, 2):
        audio, rate = run(sphere.direct(f"a sph2pipe -f wav -p -c {channel} {file} |\n"))
        assert rate == RATE
        np.testing.assert_array_equal(audio, sides[:, channel - 1])
    with pytest.raises(UserError, match=r"a\.sph: has no channel 3"):
        sphere.direct(f"a sph2pipe -f wav -p -c 3 {file} |\n")


def test_what_needs_no_program(tmp_path, samples):
    file = tmp_path / "a.sph"
    soundfile.write(file, samples, RATE, format="NIST", subtype="PCM_16")
    assert sphere.direct(f"a sph2pipe -f wav -p {file} |\n") == f"a {file}\n"
    assert sphere.direct("a b.flac\n") == "a b.flac\n"


def test_what_is_wrong_is_named(tmp_path, samples):
    file = tmp_path / "a.wv1"
    line = f"a sph2pipe -f wav {file} |\n"
    with pytest.raises(UserError, match=r"a\.wv1: No such file"):
        sphere.direct(line)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.wv1: is no SPHERE file, or is empty"):
        sphere.direct(line)
    soundfile.write(file, samples, RATE, format="NIST", subtype="PCM_16")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"a\.wv1: is cut off: 11014 of 11024 bytes"):
        sphere.direct(line)
    file.write_bytes(packed(samples)[:-2000])
    with pytest.raises(UserError, match=r"a\.wv1: is cut off: \d+ of 5000 samples"):
        sphere.to_wav(str(file), 0)


def test_packed_mu_law_is_left_to_sph2pipe(tmp_path, samples, monkeypatch):
    file = tmp_path / "a.sph"
    file.write_bytes(packed(samples, "ulaw,embedded-shorten-v2.00"))
    line = f"a-A sph2pipe -f wav -p -c 1 {file} |\n"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"ulaw,embedded-shorten-v2\.00, which nothing"):
        sphere.direct(line)
    program = tmp_path / "sph2pipe"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert sphere.direct(line) == line
