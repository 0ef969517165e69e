"""Which frames are speech: the probability that silero-vad gives them.

A CTC model is sure of its blank, so its confidence ranks steady noise above speech.
Times this probability it does not (the speech gate, which is not in the paper).
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import warnings
from typing import TYPE_CHECKING, NamedTuple, Tuple

import torch

from espnet_atm.audio import resample
from espnet_atm.confidence import align_tracks
from espnet_atm.errors import UserError

if TYPE_CHECKING:  # what describes scores only must not wait for ESPnet's front ends
    from espnet_atm.frames import FrameGrid

MODEL = "silero_vad.jit"  # in the package's folder of data
# Chunks that go through the convolutions at once: more do not stay in a CPU's caches.
BLOCK = 512
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
    from espnet_atm.frames import FrameGrid

    device = speech.device
    rate = sampling_rate if sampling_rate in KINDS else OTHER_RATES
    counts = lengths.cpu()
    speech = _without_padding(speech.detach().float(), counts)
    if rate != sampling_rate:
        resampled = resample(speech.cpu().numpy(), sampling_rate, rate)
        counts = -(counts * -rate // sampling_rate)  # rounded up, as resampling does
        speech = _without_padding(torch.from_numpy(resampled).to(device), counts)
    chunk = KINDS[rate].chunk
    shift = chunk * sampling_rate / rate  # in samples of the audio as it came
    return align_tracks(
        _probability(speech, rate),
        -(-counts // chunk),
        FrameGrid(shift, (shift - 1) / 2),
        frames,
        grid,
        same_audio=True,  # whose last chunk is filled up, while a scorer loses frames
    )


def _without_padding(speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Zeros beyond an utterance's end: (B, N), (B,) -> (B, N)."""
    steps = torch.arange(speech.size(1), device=speech.device)
    return speech.masked_fill(steps >= lengths[:, None].to(speech.device), 0)


@torch.no_grad()
def _probability(speech: torch.Tensor, rate: int) -> torch.Tensor:
    """Of each chunk, the last one filled up with zeros: (B, N) -> (B, S)."""
    _, chunk, context = KINDS[rate]
    net, recurrent = _model(rate, speech.device)
    padding = (context, -speech.size(1) % chunk)
    # (B, N) -> (B, S, context + chunk)
    chunks = torch.nn.functional.pad(speech, padding).unfold(1, context + chunk, chunk)
    rows, count, size = chunks.shape
    features = []
    for block in chunks.reshape(-1, size).split(
        BLOCK if speech.device.type == "cpu" else GPU_BLOCK
    ):
        features.append(net.encoder(net.run_extractors(block)))  # (BLOCK, C, 1)
    hidden, _ = recurrent(torch.cat(features).reshape(rows, count, -1))  # (B, S, C)
    return net.decoder.decoder(hidden.transpose(1, 2))[:, 0]  # (B, 1, S) -> (B, S)


@functools.lru_cache(maxsize=None)
def _model(
    rate: int, device: torch.device
) -> Tuple[torch.jit.ScriptModule, torch.nn.LSTM]:
    """silero-vad for a sampling rate, and its recurrent layer for whole sequences."""
    check_installed()
    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad  # leaves torch with one thread
    finally:
        torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load's, to silero-vad
        net = getattr(load_silero_vad(), KINDS[rate].name).to(device).eval()
    cell = net.decoder.rnn
    recurrent = torch.nn.LSTM(
        cell.weight_ih.size(1), cell.weight_hh.size(1), batch_first=True
    )
    recurrent.load_state_dict(
        {f"{name}_l0": value for name, value in cell.state_dict().items()}
    )
    return net, recurrent.to(device).eval().requires_grad_(False)


def check_installed() -> None:
    """Refuse to go on without silero-vad.

    Raises:
        UserError: saying how to install it.
    """
    if importlib.util.find_spec("silero_vad") is None:
        raise UserError(
            "speech_gate: the package silero-vad is not installed; run python -m pip "
            "install silero-vad, or leave speech_gate out"
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
