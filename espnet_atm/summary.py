"""The summary of a corpus's scores: hours, mean, deciles, and what was skipped and why."""

import collections
import json
import re
from array import array
from pathlib import Path
from typing import Any, Dict

import numpy as np
from tqdm import tqdm

from espnet_atm.errors import UserError, read_text
from espnet_atm.track import MOST, STEPS, TrackReader, read_grid_files
from espnet_atm.values import whole


def summarize(folder: Path, fs: int) -> Dict[str, Any]:
    """Count the scores in a folder.

    Args:
        folder: holds confidence.scp, frame_shift and, where anything was skipped,
            ``skipped``.
        fs: sampling rate in Hz, where the file ``sampling_rate`` does not say it.

    Returns:
        ``utterances``, ``frames``, ``hours``; ``mean`` and ``deciles`` (9) of frame
        confidence and ``utterance_deciles`` of its mean over each utterance; ``skipped``,
        how many utterances for each reason.

    Raises:
        UserError: when nothing is scored, a file is missing or damaged, or a track is
            another utterance's or no confidence.
    """
    tracks = TrackReader(folder / "confidence.scp")
    if not tracks:
        raise UserError(f"{folder}/confidence.scp is empty: nothing is scored")
    tracks.check_complete()
    shift, _, rate = read_grid_files(folder)
    if shift is None:
        raise UserError(f"{folder}/frame_shift is missing")
    fs = whole("--fs", fs, most=MOST) if rate is None else rate
    counts = np.zeros(STEPS + 1, dtype=np.int64)
    means = array("d")
    for index in tqdm(range(len(tracks)), unit="utt", mininterval=5):
        steps = np.rint(tracks.at(index) * STEPS).astype(np.int64)
        counts += np.bincount(steps, minlength=STEPS + 1)
        means.append(steps.mean() / STEPS)
    frames = int(counts.sum())
    values = np.arange(STEPS + 1) / STEPS
    shares = np.arange(1, 10) / 10
    deciles = values[np.searchsorted(counts.cumsum(), shares * frames)]
    reasons = collections.Counter()
    if (folder / "skipped").exists():
        with (folder / "skipped").open(encoding="utf-8", errors="replace") as f:
            reasons.update(_kind(line) for line in f if line.strip())
    return {
        "utterances": len(tracks),
        "frames": frames,
        "hours": round(frames * shift / fs / 3600, 3),
        "mean": round(float((counts * values).sum() / frames), 4),
        "deciles": [round(float(x), 3) for x in deciles],
        "utterance_deciles": [round(float(x), 3) for x in np.quantile(means, shares)],
        "skipped": dict(reasons),
    }


def read_summary(folder: Path, fs: int, utterances: int) -> Dict[str, Any]:
    """What ``espnet_atm.bin.summary`` has written; or would, where that is not there.

    Args:
        folder, fs: as of :func:`summarize`.
        utterances: that have scores; a summary of another number is of earlier ones.

    Raises:
        UserError: when a ``summary.json`` is there that is none.
    """
    file = folder / "summary.json"
    refuse_foreign(file)
    found = json.loads(read_text(file)) if file.exists() else {}
    return found if found.get("utterances") == utterances else summarize(folder, fs)


def refuse_foreign(file: Path) -> None:
    """Refuse to write over a file that is no summary.

    Raises:
        UserError: naming it.
    """
    if not file.exists():
        return
    try:
        there = json.loads(read_text(file))
    except ValueError:
        there = None
    if not isinstance(there, dict) or not {"utterances", "deciles"} <= there.keys():
        raise UserError(
            f"{file} was not made by espnet_atm.bin.summary, and is not written over; "
            "move it away"
        )


def _kind(line: str) -> str:
    """A reason less the numbers and names that differ between utterances."""
    _, _, reason = line.strip().partition(" ")
    return re.sub(r"[0-9]+(\.[0-9]+)?", "N", reason.split(":")[0]) or "?"
