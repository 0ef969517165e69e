"""Which frames are speech: the probability that silero-vad gives them.

A CTC model is sure of its blank, so its confidence ranks steady noise above speech.
Times this probability it does not (the speech gate, which is not in the paper).
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Tuple

import torch

from espnet_atm.audio import resample
from espnet_atm.confidence import align_tracks
from espnet_atm.errors import UserError
from espnet_atm.randomness import random_state_kept

if TYPE_CHECKING:  # what describes scores only must not wait for ESPnet's front ends
    from espnet_atm.frames import FrameGrid

MODEL = "silero_vad.jit"  # in the package's folder of data
# Chunks that go through the convolutions at once: more do not stay in a CPU's caches.
BLOCK = 256
GPU_BLOCK = 1 << 16


class _Kind(NamedTuple):
    """One of the two models in the file."""

    name: str
    chunk: int  # samples that get one probability
    context: int  # samples before a chunk that are heard with it


KINDS = {16000: _Kind("_model", 512, 64), 8000: _Kind("_model_8k", 256, 32)}
OTHER_RATES = 16000  # what audio at another rate is resampled to


def speech_probability(
    speech: torch.Tensor,
    lengths: torch.Tensor,
    sampling_rate: int,
    grid: "FrameGrid",
    frames: torch.Tensor,
) -> torch.Tensor:
    """The probability that a frame is speech, by silero-vad.

    silero-vad hears chunks of 32 ms, one after the other; here its convolutions take many
    chunks at once, and only its recurrent layer goes through them in order, with the same
    result. Audio at other rates than 8 and 16 kHz is resampled to 16 kHz.

    Args:
        speech: (B, N), float32, in [-1, 1]; what lies beyond ``lengths`` is not looked at.
        lengths: samples of each utterance (B,), int.
        sampling_rate: of ``speech``, in Hz.
        grid: the frames in samples of ``speech``.
        frames: how many of them each utterance has (B,), int.

    Returns:
        (B, T), float32, in [0, 1], on the device of ``speech``, without gradient; zero at
        padding.

    Raises:
        UserError: when silero-vad is not installed.
    """
    chunks = _Chunks.of(speech, lengths, sampling_rate)
    return chunks.on(chunks.probability, grid, frames)


def speech_frames(
    speech: torch.Tensor,
    lengths: torch.Tensor,
    sampling_rate: int,
    grid: "FrameGrid",
    frames: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Which frames are in silero-vad's segments of speech, by its own settings.

    A segment begins at a probability of 0.5 and ends below 0.35, lasts 250 ms or more,
    goes on over pauses of less than 100 ms and has 30 ms around it. A frame is in it
    when half of the frame or more is.

    Args:
        as of :func:`speech_probability`.

    Returns:
        What :func:`speech_probability` does, and (B, T), bool, False at padding.

    Raises:
        UserError: when silero-vad is not installed.
    """
    chunks = _Chunks.of(speech, lengths, sampling_rate)
    inside = torch.zeros_like(chunks.probability)
    for row, probability, count, samples in zip(
        inside, chunks.probability, chunks.counts.tolist(), chunks.samples.tolist()
    ):
        for segment in _silero_vad().get_speech_timestamps_from_probs(
            probability[:count].tolist(),
            sampling_rate=chunks.rate,
            audio_length_samples=samples,
        ):
            edges = [segment[x] / KINDS[chunks.rate].chunk for x in ("start", "end")]
            steps = torch.arange(len(row), device=row.device)
            row += (edges[1] - steps).clamp(0, 1) - (edges[0] - steps).clamp(0, 1)
    return (
        chunks.on(chunks.probability, grid, frames),
        chunks.on(inside, grid, frames) >= 0.5,
    )


class _Chunks(NamedTuple):
    """What silero-vad hears in a batch.

    Args:
        probability: of each chunk (B, S), float32.
        counts: chunks of each utterance (B,), int.
        samples: of each utterance, at ``rate`` (B,), int.
        rate: of the model, in Hz.
        grid: the chunks in samples of the audio as it came.
    """

    probability: torch.Tensor
    counts: torch.Tensor
    samples: torch.Tensor
    rate: int
    grid: "FrameGrid"

    @classmethod
    def of(
        cls, speech: torch.Tensor, lengths: torch.Tensor, sampling_rate: int
    ) -> "_Chunks":
        """Hear a batch; arguments as of :func:`speech_probability`."""
        from espnet_atm.frames import FrameGrid

        device = speech.device
        rate = sampling_rate if sampling_rate in KINDS else OTHER_RATES
        samples = lengths.cpu()
        speech = _without_padding(speech.detach().float(), samples)
        if rate != sampling_rate:
            resampled = resample(speech.cpu().numpy(), sampling_rate, rate)
            # Rounded up, as resampling does. The filter rings beyond an utterance's end.
            samples = -(samples * -rate // sampling_rate)
            speech = _without_padding(torch.from_numpy(resampled).to(device), samples)
        chunk = KINDS[rate].chunk
        shift = chunk * sampling_rate / rate
        return cls(
            _probability(speech, rate),
            -(-samples // chunk),
            samples,
            rate,
            FrameGrid(shift, (shift - 1) / 2),
        )

    def on(
        self, track: torch.Tensor, grid: "FrameGrid", frames: torch.Tensor
    ) -> torch.Tensor:
        """A track of the chunks, brought to other frames: (B, S) -> (B, T)."""
        # The last chunk is filled up, while a scorer loses frames at the edges.
        return align_tracks(
            track, self.counts, self.grid, frames, grid, same_audio=True
        )


def _without_padding(speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Zeros beyond an utterance's end: (B, N), (B,) -> (B, N)."""
    steps = torch.arange(speech.size(1), device=speech.device)
    return speech.masked_fill(steps >= lengths[:, None].to(speech.device), 0)


@torch.no_grad()
def _probability(speech: torch.Tensor, rate: int) -> torch.Tensor:
    """Of each chunk, the last one filled up with zeros: (B, N) -> (B, S)."""
    with torch.autocast(speech.device.type, enabled=False):  # training may be in it
        return _hear(speech, rate)


def _hear(speech: torch.Tensor, rate: int) -> torch.Tensor:
    _, chunk, context = KINDS[rate]
    net, recurrent = _model(rate, speech.device)
    padding = (context, -speech.size(1) % chunk)
    # (B, N) -> (B, S, context + chunk)
    chunks = torch.nn.functional.pad(speech, padding).unfold(1, context + chunk, chunk)
    rows, count, size = chunks.shape
    # Its own features are a convolution with windowed cosines and sines, the first of
    # which is the window; by FFT they take a quarter of the time.
    window = net.stft.forward_basis_buffer[0, 0]
    features = []
    for block in chunks.reshape(-1, size).split(
        BLOCK if speech.device.type == "cpu" else GPU_BLOCK
    ):
        block = torch.nn.functional.pad(block, (0, context), mode="reflect")
        frames = block.unfold(1, len(window), len(window) // 2) * window
        # (BLOCK, 4, F, 2) -> (BLOCK, F, 4); abs() would take twice as long
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        spectrum = spectrum.square().sum(dim=-1).sqrt().transpose(1, 2)
        features.append(net.encoder(spectrum))  # (BLOCK, C, 1)
    hidden, _ = recurrent(torch.cat(features).reshape(rows, count, -1))  # (B, S, C)
    return net.decoder.decoder(hidden.transpose(1, 2))[:, 0]  # (B, 1, S) -> (B, S)


@functools.lru_cache(maxsize=None)
@random_state_kept()
def _model(
    rate: int, device: torch.device
) -> Tuple[torch.jit.ScriptModule, torch.nn.LSTM]:
    """silero-vad for a sampling rate, and its recurrent layer for whole sequences."""
    with warnings.catch_warnings():
        # torch.jit.load's and importlib.resources', to silero-vad
        warnings.simplefilter("ignore")
        net = getattr(_silero_vad().load_silero_vad(), KINDS[rate].name)
    net = net.to(device).eval()
    cell = net.decoder.rnn
    recurrent = torch.nn.LSTM(
        cell.weight_ih.size(1), cell.weight_hh.size(1), batch_first=True
    )
    recurrent.load_state_dict(
        {f"{name}_l0": value for name, value in cell.state_dict().items()}
    )
    return net, recurrent.to(device).eval().requires_grad_(False)


def _silero_vad() -> ModuleType:
    """The package, imported with torch's number of threads kept, which it sets to one."""
    check_installed()
    threads = torch.get_num_threads()
    try:
        import silero_vad
    finally:
        torch.set_num_threads(threads)
    return silero_vad


def check_installed() -> None:
    """Refuse to go on without silero-vad.

    Raises:
        UserError: saying how to install it.
    """
    if importlib.util.find_spec("silero_vad") is None:
        raise UserError(
            "the package silero-vad is not installed, which speech_gate and the report "
            "need; run python -m pip install 'silero-vad>=6,<7'"
        )


def describe_gate() -> str:
    """Release and checksum of the model: what scores that went through it depend on.

    Raises:
        UserError: when silero-vad is not installed.
    """
    check_installed()
    # Without importing it, which changes torch's number of threads.
    release = importlib.metadata.distribution("silero-vad")
    file = release.locate_file(f"silero_vad/data/{MODEL}")
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return f"silero-vad {release.version} {digest}"
