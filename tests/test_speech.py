import json
import subprocess
import sys
import warnings

import pytest
import torch

from espnet_atm import speech
from espnet_atm.audio import resample
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.speech import _silero_vad as silero
from espnet_atm.speech import describe_gate, speech_frames, speech_probability

# silero-vad's own frames
CHUNKS = {16000: FrameGrid(512, 255.5), 8000: FrameGrid(256, 127.5)}


def library(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """By the package itself, one chunk after the other: (N,) -> (S,)."""
    missing = -len(samples) % CHUNKS[rate].shift  # of one chunk alone it is refused
    samples = torch.nn.functional.pad(samples, (0, missing))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return silero().load_silero_vad().audio_forward(samples[None], sr=rate)[0]


@pytest.fixture(scope="module")
def voices(spoken):
    """At each rate: (N,), float32."""
    wide = spoken["clean"]
    return {
        rate: torch.from_numpy(resample(wide.numpy(), 16000, rate))
        for rate in (4000, 8000, 11025, 16000, 22050, 44100, 48000)
    }


def chunks_of(samples: int, rate: int) -> int:
    return -(-samples // CHUNKS[rate].shift)


def alone(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Ours, on silero-vad's own frames: (N,) -> (S,)."""
    length = torch.tensor([len(samples)])
    frames = torch.tensor([chunks_of(len(samples), rate)])
    return speech_probability(samples[None], length, rate, CHUNKS[rate], frames)[0]


@pytest.mark.parametrize("rate", CHUNKS)
@pytest.mark.parametrize("samples", [1, 300, 512, 16000, 20001])
def test_one_utterance_is_as_in_the_package(rate, samples, voices):
    x = voices[rate][:samples]
    expected = library(x, rate)
    found = alone(x, rate)
    assert len(x) == samples and len(found) == len(expected)
    assert (found - expected).abs().max() < 1e-4
    assert samples < 16000 or expected.max() > 0.9


@pytest.mark.parametrize("rate", CHUNKS)
def test_a_batch_is_as_each_alone_whatever_is_beyond_its_end(rate, voices):
    voice = voices[rate][: 2 * rate]
    x = torch.stack([voice, 0.1 * torch.randn(2 * rate), voice])
    lengths = torch.tensor([2 * rate, 7001, 1000])
    frames = torch.tensor([chunks_of(n, rate) for n in lengths.tolist()])
    together = speech_probability(x, lengths, rate, CHUNKS[rate], frames)
    for row, samples, length, count in zip(together, x, lengths, frames):
        assert (row[count:] == 0).all()
        assert (row[:count] - library(samples[:length], rate)).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_segments_are_the_packages_own(rate, voices, spoken):
    noise = torch.from_numpy(resample(spoken["purenoise"].numpy(), 16000, rate))
    voice = voices[rate]
    pairs = [torch.cat([noise[:rate], voice, noise[:rate]]), noise]
    speech = torch.nn.utils.rnn.pad_sequence(pairs, batch_first=True)
    lengths = torch.tensor([len(x) for x in pairs])
    grid = FrameGrid(rate // 100, rate / 200)  # of 10 ms
    frames = lengths // (rate // 100)
    probability, inside = speech_frames(speech, lengths, rate, grid, frames)
    expected = speech_probability(speech, lengths, rate, grid, frames)
    assert torch.equal(probability, expected)
    own = rate if rate in CHUNKS else 16000
    for row, count, samples in zip(inside, frames.tolist(), pairs):
        x = torch.from_numpy(resample(samples.numpy(), rate, own))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vad = silero().load_silero_vad()
        segments = silero().get_speech_timestamps(x, vad, sampling_rate=own)
        assert bool(segments) == (samples is not noise)
        assert not row[count:].any()
        centres = (torch.arange(count) + 0.5) * own / 100
        wanted = torch.zeros(count, dtype=torch.bool)
        for segment in segments:
            wanted |= (centres > segment["start"]) & (centres < segment["end"])
        # A frame at an edge may fall on either side.
        assert (wanted != row[:count]).sum() <= 4 * len(segments)


def test_speech_is_told_from_noise(spoken):
    for condition, x in spoken.items():
        share = (alone(x, 16000) > 0.5).float().mean()
        assert share < 0.05 if condition == "purenoise" else share > 0.5, condition


@pytest.mark.parametrize("rate", [4000, 11025, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate, voices):
    x = voices[rate]
    grid = FrameGrid(512 * rate / 16000, (512 * rate / 16000 - 1) / 2)
    expected = library(torch.from_numpy(resample(x.numpy(), rate, 16000)), 16000)
    lengths = torch.tensor([len(x), len(x) // 2])
    frames = -(-(lengths * 16000) // (512 * rate))
    found = speech_probability(torch.stack([x, x]), lengths, rate, grid, frames)
    # The two centres differ by up to half a sample.
    assert (found[0] - expected).abs().max() < 0.01
    half = speech_probability(
        x[None, : lengths[1]], lengths[1:], rate, grid, frames[1:]
    )
    assert (found[1, : frames[1]] - half[0]).abs().max() < 1e-4


def test_it_comes_to_the_scorers_frames_by_time(voices):
    x = voices[16000][:64000].clone()
    x[32000:] = 0.001 * torch.randn(len(x) - 32000)
    grid = FrameGrid(640, 879.5)
    frames = (len(x) - 1000) // 640
    length = torch.tensor([len(x)])
    found = speech_probability(x[None], length, 16000, grid, torch.tensor([frames]))
    own = alone(x, 16000)
    for frame, value in enumerate(found[0]):
        first = (grid.offset + (frame - 0.5) * 640) / 512
        near = own[max(int(first) - 1, 0) : int(first) + 3]
        assert near.min() - 1e-6 <= value <= near.max() + 1e-6


def test_the_same_frames_without_the_last_one_are_fine(voices):
    x = voices[16000][:5000]
    expected = alone(x, 16000)[:9]
    lengths, frames = torch.tensor([5000]), torch.tensor([9])
    found = speech_probability(x[None], lengths, 16000, CHUNKS[16000], frames)
    torch.testing.assert_close(found[0], expected)


def test_torch_keeps_its_threads_and_the_audio_its_samples():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from espnet_atm.frames import FrameGrid\n"
        "from espnet_atm.speech import speech_probability\n"
        "x = torch.randn(1, 5120, requires_grad=True); y = x.detach().clone()\n"
        "p = speech_probability(x, torch.tensor([4000]), 16000, FrameGrid(512, 255.5), "
        "torch.tensor([8]))\n"
        "print(torch.get_num_threads(), bool((x == y).all()), p.requires_grad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "True", "False"], done.stderr
    assert "Warning" not in done.stderr


def test_training_in_half_precision_does_not_reach_it(voices):
    x = voices[16000][:20000]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = alone(x, 16000)
    assert found.dtype == torch.float32 and torch.equal(found, alone(x, 16000))


def test_what_it_depends_on_is_named_without_importing_it():
    code = (
        "import sys, json; from espnet_atm.speech import describe_gate\n"
        "print(json.dumps([describe_gate(), 'silero_vad' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found, imported = json.loads(done.stdout)
    assert found == describe_gate() and not imported
    name, release, digest = found.split()
    assert name == "silero-vad" and release[0].isdigit() and len(digest) == 64


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(speech.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="silero-vad is not installed, .* python -m pip"):
        describe_gate()
