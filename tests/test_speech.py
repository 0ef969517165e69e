import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from espnet_atm import speech
from espnet_atm.audio import resample
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.speech import describe_gate, speech_probability

# silero-vad's own frames
CHUNKS = {16000: FrameGrid(512, 255.5), 8000: FrameGrid(256, 127.5)}


def library(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """By the package itself, one chunk after the other: (N,) -> (S,)."""
    missing = -len(samples) % CHUNKS[rate].shift  # of one chunk alone it is refused
    samples = torch.nn.functional.pad(samples, (0, missing))
    threads = torch.get_num_threads()
    from silero_vad import load_silero_vad

    torch.set_num_threads(threads)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", FutureWarning)
        return load_silero_vad().audio_forward(samples[None], sr=rate)[0]


def voice(seconds: float, rate: int) -> torch.Tensor:
    """What silero-vad takes for speech: vowels in syllables; not all of it."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 1.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = (700, 1200, 2600)
    x = sum(
        np.sin(n * phase) * sum(np.exp(-(((120 * n - f) / 150) ** 2)) for f in formants)
        for n in range(1, 28)
    )
    x = 0.1 * x * (np.sin(2 * np.pi * 2 * t) > -0.3)
    return torch.from_numpy(x.astype(np.float32))


def chunks_of(samples: int, rate: int) -> int:
    return -(-samples // CHUNKS[rate].shift)


@pytest.mark.parametrize("rate", CHUNKS)
@pytest.mark.parametrize("samples", [1, 300, 512, 16000, 40001])
def test_one_utterance_is_as_in_the_package(rate, samples):
    x = voice(3, rate)[:samples] + 0.001 * torch.randn(samples)
    expected = library(x, rate)
    found = speech_probability(
        x[None],
        torch.tensor([samples]),
        rate,
        CHUNKS[rate],
        torch.tensor([chunks_of(samples, rate)]),
    )
    assert found.shape == (1, len(expected))
    assert (found[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("rate", CHUNKS)
def test_a_batch_is_as_each_alone_whatever_is_beyond_its_end(rate):
    x = torch.stack([voice(2, rate), 0.1 * torch.randn(2 * rate), voice(2, rate)])
    lengths = torch.tensor([2 * rate, 7001, 1000])
    frames = torch.tensor([chunks_of(n, rate) for n in lengths.tolist()])
    together = speech_probability(x, lengths, rate, CHUNKS[rate], frames)
    for row, samples, length, count in zip(together, x, lengths, frames):
        assert (row[count:] == 0).all()
        expected = library(samples[:length], rate)
        assert (row[:count] - expected).abs().max() < 1e-5


def test_speech_is_told_from_noise():
    x = torch.stack([voice(4, 16000), 0.1 * torch.randn(64000)])
    lengths = torch.tensor([64000, 64000])
    probability = speech_probability(
        x, lengths, 16000, CHUNKS[16000], torch.tensor([125, 125])
    )
    assert probability[0].mean() > 0.4 and probability[1].max() < 0.3


@pytest.mark.parametrize("rate", [4000, 11025, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate):
    x = voice(3, rate)
    grid = FrameGrid(512 * rate / 16000, 511 / 2 * rate / 16000)
    wide = torch.from_numpy(resample(x.numpy(), rate, 16000))
    expected = library(wide, 16000)
    found = speech_probability(
        torch.stack([x, x]),
        torch.tensor([len(x), len(x) // 2]),
        rate,
        grid,
        torch.tensor([len(expected), len(expected) // 2]),
    )
    assert (found[0] - expected).abs().max() < 1e-3
    half = speech_probability(
        x[None, : len(x) // 2],
        torch.tensor([len(x) // 2]),
        rate,
        grid,
        torch.tensor([len(expected) // 2]),
    )
    assert (found[1, : len(expected) // 2] - half[0]).abs().max() < 1e-5


def test_it_comes_to_the_scorers_frames_by_time():
    x = voice(4, 16000)
    x[32000:] = 0.001 * torch.randn(32000)  # from the second second on
    grid = FrameGrid(640, 879.5)
    found = speech_probability(
        x[None], torch.tensor([64000]), 16000, grid, torch.tensor([98])
    )[0]
    own = speech_probability(
        x[None], torch.tensor([64000]), 16000, CHUNKS[16000], torch.tensor([125])
    )[0]
    for frame in range(98):
        first = (grid.offset + (frame - 0.5) * 640) / 512
        near = own[max(int(first) - 1, 0) : int(first) + 3]
        assert near.min() - 1e-6 <= found[frame] <= near.max() + 1e-6


def test_frames_that_do_not_fit_the_audio_are_refused():
    with pytest.raises(ValueError, match="does not fit 20 frames of 640"):
        speech_probability(
            *(torch.randn(1, 64000), torch.tensor([64000]), 16000),
            *(FrameGrid(640, 320), torch.tensor([20])),
        )


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
    with pytest.raises(UserError, match="silero-vad is not installed; run python -m pip"):
        describe_gate()
