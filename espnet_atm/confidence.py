"""Frame and utterance confidence (Ask2Mask, Sec. III; Baskar et al. 2022)."""

import math
from typing import TYPE_CHECKING, Optional, Union

import numpy as np
import torch

from espnet_atm.errors import UserError
from espnet_atm.values import is_positive

if TYPE_CHECKING:  # what scores only must not wait for ESPnet's front ends
    from espnet_atm.frames import FrameGrid

MEASURES = ("max", "entropy", "margin")


def frame_confidence(
    log_probs: torch.Tensor,
    measure: str = "max",
    include_blank: bool = True,
    blank_id: int = 0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """How sure a CTC model is of each frame.

    Args:
        log_probs: natural log-posteriors (B, T, V), float.
        measure: ``max``, the largest posterior, Eq. 2 and the paper's choice;
            ``entropy``, 1 - H / log V; ``margin``, the largest posterior minus the
            second largest.
        include_blank: whether the blank competes too, as in the paper. Without it
            ``max`` and ``margin`` look at the other labels' posteriors as they are,
            ``entropy`` at those posteriors renormalised.
        blank_id: index of the CTC blank; ESPnet's is 0.
        temperature: divides the log-posteriors, which are then renormalised. Above 1
            it spreads confidences that saturate at 1.

    Returns:
        Confidence in [0, 1], (B, T), float32.

    Raises:
        ValueError: on a shape other than (B, T, V), positive log-posteriors, an
            unknown measure or a temperature that is not positive.
    """
    if log_probs.dim() != 3:
        raise ValueError(f"log_probs must be (B, T, V), got {tuple(log_probs.shape)}")
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {MEASURES}, got {measure!r}")
    if not is_positive(temperature):
        raise ValueError(f"temperature must be positive, got {temperature}")
    if log_probs.numel() > 0 and not log_probs.max() <= 1e-3:  # NaN is not either
        raise ValueError(
            f"log_probs must not exceed 0, got {log_probs.max():.4g}: pass "
            "log-posteriors (log_softmax), not logits or probabilities"
        )
    log_probs = log_probs.float()
    if temperature != 1.0:
        log_probs = torch.log_softmax(log_probs / temperature, dim=-1)
    if not include_blank:
        # (B, T, V) -> (B, T, V - 1)
        kept = torch.arange(log_probs.size(-1), device=log_probs.device) != blank_id
        log_probs = log_probs[..., kept]
    if measure == "max":
        confidence = log_probs.amax(dim=-1).exp()
    elif measure == "margin":
        best = log_probs.topk(2, dim=-1).values.exp()  # (B, T, 2)
        confidence = best[..., 0] - best[..., 1]
    else:
        log_probs = torch.log_softmax(log_probs, dim=-1)
        # xlogy-like: labels of probability 0 add nothing
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(dim=-1)
        confidence = 1 - entropy / math.log(log_probs.size(-1))
    return confidence.clamp(0, 1)


def utterance_confidence(
    confidence: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Mean confidence s_u of each utterance, Eq. 5.

    Args:
        confidence: (B, T), float; what lies beyond ``lengths`` is not looked at.
        lengths: valid frames of each row (B,), int.

    Returns:
        (B,), float; 0 for a row without frames.
    """
    steps = torch.arange(confidence.size(1), device=confidence.device)
    valid = steps[None, :] < lengths[:, None]  # (B, T)
    total = torch.where(valid, confidence, 0).sum(dim=1)
    return total / lengths.clamp(min=1)


def frame_energy(
    speech: torch.Tensor, lengths: torch.Tensor, grid: "FrameGrid", frames: torch.Tensor
) -> torch.Tensor:
    """Energy of the samples around each frame's centre, against the loud frames.

    Args:
        speech: (B, N), float.
        lengths: samples of each utterance (B,), int.
        grid: the frames; each stands for ``grid.shift`` samples, rounded.
        frames: frames of each utterance (B,), int.

    Returns:
        (B, T), float32, in dB below the 95th percentile of the utterance's frames; NaN
        at padding.
    """
    steps = torch.arange(int(frames.max()), device=speech.device)
    # (T,) -> (B, T): a frame at the edge may reach beyond the samples
    first = (grid.offset + (steps - 0.5) * grid.shift).round().long()
    first = first.expand(len(speech), -1)
    ends = lengths[:, None].to(speech.device)
    last = (first + round(grid.shift)).clamp(min=0).minimum(ends)
    first = first.clamp(min=0).minimum(ends)
    # total[n]: energy of the first n samples
    total = torch.nn.functional.pad(speech.double().square().cumsum(dim=1), (1, 0))
    power = (total.gather(1, last) - total.gather(1, first)) / (last - first).clamp(
        min=1
    )
    db = 10 * (power + 1e-10).log10()
    db = db.masked_fill(steps >= frames[:, None].to(db.device), torch.nan)
    return (db - db.nanquantile(0.95, dim=1, keepdim=True)).float()


def smooth_confidence(
    confidence: torch.Tensor, lengths: torch.Tensor, smooth: int
) -> torch.Tensor:
    """Mean over ``smooth`` frames around each, fewer at an utterance's edges.

    Args:
        confidence: (B, T), float.
        lengths: valid frames of each row (B,), int.
        smooth: number of frames; 1 changes nothing.

    Returns:
        (B, T), float; zero at padding.
    """
    # More frames than there are: all of them, around each, as an odd window has it.
    smooth = min(smooth, 2 * confidence.size(1) + smooth % 2)
    steps = torch.arange(confidence.size(1), device=confidence.device)
    valid = (steps < lengths[:, None]).to(confidence.dtype)  # (B, T)
    window = confidence.new_ones(1, 1, smooth)
    both = torch.stack([confidence * valid, valid], dim=1).flatten(0, 1)  # (2B, T)
    left = (smooth - 1) // 2
    padded = torch.nn.functional.pad(both[:, None], (left, smooth - 1 - left))
    total = torch.nn.functional.conv1d(padded, window)  # (2B, 1, T)
    total, count = total.unflatten(0, (-1, 2))[:, :, 0].unbind(dim=1)  # (B, T) each
    return total / count.clamp(min=1) * valid


def check_refinement(smooth: int, energy_gate: Optional[float]) -> None:
    """Refuse impossible options of :func:`refine_confidence`.

    Raises:
        UserError: naming the option and its value.
    """
    if isinstance(smooth, bool) or not (isinstance(smooth, int) and smooth >= 1):
        raise UserError(
            f"smooth: {smooth!r} is not a positive number of frames; write e.g. 10"
        )
    if energy_gate is not None and not is_positive(energy_gate):
        raise UserError(
            f"energy_gate: {energy_gate!r} is not a positive number of dB; write e.g. 30"
        )


def refine_confidence(
    confidence: torch.Tensor,
    frames: torch.Tensor,
    speech: torch.Tensor,
    lengths: torch.Tensor,
    grid: "FrameGrid",
    smooth: int = 1,
    energy_gate: Optional[float] = None,
) -> torch.Tensor:
    """Smooth a confidence, and take it from frames that are silent.

    A CTC model is sure of its blank, so silence outranks speech; neither option is in
    the paper, and neither is on by default.

    Args:
        confidence: (B, T), float.
        frames: valid frames of each row (B,), int.
        speech: (B, N), float.
        lengths: samples of each utterance (B,), int.
        grid: the frames in samples of ``speech``.
        smooth: see :func:`smooth_confidence`.
        energy_gate: frames more than so many dB below the utterance's 95th percentile of
            frame energy get 0; None for no gate.

    Returns:
        (B, T), float.

    Raises:
        ValueError: on impossible options.
    """
    check_refinement(smooth, energy_gate)
    if smooth > 1:
        confidence = smooth_confidence(confidence, frames, smooth)
    if energy_gate is not None:
        energy = frame_energy(speech, lengths, grid, frames)
        confidence = confidence.masked_fill(energy < -energy_gate, 0)
    return confidence


def check_track(track: np.ndarray, name: str) -> np.ndarray:
    """Refuse a track that cannot be a confidence.

    Args:
        track: (S,) or (S, 1), as Kaldi archives hold it.
        name: what to call it in the error, e.g. the utterance id.

    Returns:
        (S,), float32.

    Raises:
        UserError: naming ``name``, the first bad frame and its value.
    """
    if track.dtype.kind not in "fiu":
        raise UserError(f"{name}: a confidence track has numbers, got {track.dtype}")
    if track.ndim == 2 and track.shape[1] == 1:
        track = track[:, 0]
    if track.ndim != 1 or track.size == 0:
        raise UserError(
            f"{name}: a confidence track has shape (frames,), got {track.shape}"
        )
    bad = np.flatnonzero(~((track >= 0) & (track <= 1)))  # NaN fails both
    if bad.size:
        raise UserError(
            f"{name}: confidence must be in [0, 1], got {track[bad[0]]} in frame "
            f"{bad[0]} ({bad.size} of {track.size} frames are bad)"
        )
    return track.astype(np.float32, copy=False)


def align_track(
    track: Union[np.ndarray, torch.Tensor],
    src_shift: int,
    dst_shift: int,
    dst_length: int,
    src_offset: Optional[float] = None,
    dst_offset: Optional[float] = None,
) -> Union[np.ndarray, torch.Tensor]:
    """Bring a frame-level track to another frame rate, by time.

    A frame stands for the ``shift`` samples around its centre. Each target frame gets
    the mean of the source over the samples that it stands for; where it reaches past
    the source, the nearest source frame counts.

    Args:
        track: (S,), float.
        src_shift: samples from one source frame to the next.
        dst_shift: the same for the target.
        dst_length: number of target frames.
        src_offset: centre of the first source frame in samples; half a shift if None.
        dst_offset: the same for the target.

    Returns:
        (dst_length,), of the type of ``track``.

    Raises:
        ValueError: when the two do not last equally long. On one grid they must have
            the same number of frames; between two grids the durations may differ by
            two of the longer frames, which front ends lose at the edges.
    """
    if isinstance(track, torch.Tensor):
        aligned = align_track(
            track.cpu().numpy(),
            src_shift,
            dst_shift,
            dst_length,
            src_offset,
            dst_offset,
        )
        return torch.as_tensor(aligned, dtype=track.dtype, device=track.device)
    if src_shift <= 0 or dst_shift <= 0:
        raise ValueError(
            f"frame shifts must be positive, got {src_shift} and {dst_shift} samples"
        )
    if src_offset is None:
        src_offset = src_shift / 2
    if dst_offset is None:
        dst_offset = dst_shift / 2
    length = len(track)
    same_grid = src_shift == dst_shift and src_offset == dst_offset
    if same_grid and length == dst_length:
        return track
    lost = abs(length * src_shift - dst_length * dst_shift)
    if same_grid or lost > 2 * max(src_shift, dst_shift):
        raise ValueError(
            f"a track of {length} frames of {src_shift} samples ({length * src_shift} "
            f"samples) does not fit {dst_length} frames of {dst_shift} samples "
            f"({dst_length * dst_shift} samples)"
        )
    return _means_over(track, src_shift, src_offset, dst_shift, dst_offset, dst_length)


def _means_over(
    track: np.ndarray,
    src_shift: float,
    src_offset: float,
    dst_shift: float,
    dst_offset: float,
    dst_length: int,
) -> np.ndarray:
    """What :func:`align_track` computes, whatever the two last: (S,) -> (dst_length,)."""
    # The integral of the piecewise constant track, taken at the target's frame edges.
    src_edges = src_offset + (np.arange(len(track) + 1) - 0.5) * src_shift
    integral = np.concatenate([[0.0], np.cumsum(track, dtype=np.float64)]) * src_shift
    dst_edges = dst_offset + (np.arange(dst_length + 1) - 0.5) * dst_shift
    inside = np.clip(dst_edges, src_edges[0], src_edges[-1])
    width = np.diff(inside)
    covered = width > 0
    mean = np.diff(np.interp(inside, src_edges, integral)) / np.where(covered, width, 1)
    before = dst_edges[:-1] < src_edges[0]
    aligned = np.where(covered, mean, np.where(before, track[0], track[-1]))
    return aligned.clip(track.min(), track.max()).astype(track.dtype)


def align_tracks(
    tracks: torch.Tensor,
    counts: torch.Tensor,
    src: "FrameGrid",
    lengths: torch.Tensor,
    dst: "FrameGrid",
    same_audio: bool = False,
) -> torch.Tensor:
    """:func:`align_track` for a batch.

    Args:
        tracks: (B, S), float.
        counts: source frames of each row (B,), int.
        src, dst: the two grids.
        lengths: target frames of each row (B,), int.
        same_audio: whether both are known to be of the same audio, so that how long they
            last is not compared.

    Returns:
        (B, T), float32, a tensor of its own, without gradient; zero at padding.

    Raises:
        ValueError: as :func:`align_track` does.
    """
    rows = []
    for track, count, length in zip(
        tracks.detach().float().cpu().numpy(), counts.tolist(), lengths.tolist()
    ):
        track = track[:count]
        if same_audio:
            row = _means_over(
                track, src.shift, src.offset, dst.shift, dst.offset, length
            )
        else:
            row = align_track(
                track, src.shift, dst.shift, length, src.offset, dst.offset
            )
        rows.append(torch.as_tensor(row))
    # One copy to the host and back: the alignment is a matter of few numbers.
    aligned = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return aligned.to(tracks.device)
