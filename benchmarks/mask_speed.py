#!/usr/bin/env python3
"""Time to make the masks of one batch: ours, ESPnet's and other toolkits', in turns.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/mask_speed.py

All mask about 0.40 of the same rows and frames, in spans of 10; masks that are made on the
CPU are taken to the device. Only ours follow anything. SpeechBrain's for BEST-RQ is one for
the whole batch; ESPnet, torchaudio, fairseq2 and SpeechBrain mask as many frames of each
row as of the one with the fewest.
"""

import argparse
import statistics
from typing import Any, Callable, Dict

import torch
from measure import (
    Rows,
    find_peers,
    get_parser,
    host_syncs,
    interleave,
    ratio,
    start,
)

from espnet_atm.masking import STRATEGIES, sample_span_mask

SPAN, RATIO = 10, 0.40
WITH_OVERLAPS = 0.51  # of frames, as spans are counted: about 0.40 are masked
SIZES = ("16x400", "64x800", "64x1600", "8x100000")  # rows and frames
LONG = 10000  # frames from which on a third of the rounds has to do
GOAL_AT = "64x800"


def load_espnet() -> Callable:
    from espnet2.ssl.utils.mask import _compute_mask_indices

    return lambda rows, frames, padding: _compute_mask_indices(
        (rows, frames), padding, padding.device, WITH_OVERLAPS, SPAN
    )


def load_huggingface() -> Callable:
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    return lambda rows, frames, padding: torch.from_numpy(
        _compute_mask_indices((rows, frames), WITH_OVERLAPS, SPAN)
    )


def load_torchaudio() -> Callable:
    from torchaudio.models.wav2vec2.components import _compute_mask_indices

    return lambda rows, frames, padding: _compute_mask_indices(
        (rows, frames), padding, WITH_OVERLAPS, SPAN
    )


def load_speechbrain() -> Callable:
    from speechbrain.lobes.models.wav2vec import compute_mask

    return lambda rows, frames, padding: torch.from_numpy(
        compute_mask((rows, frames), [frames] * rows, RATIO, SPAN)
    )


def load_speechbrain_best_rq() -> Callable:
    from speechbrain.lobes.models.BESTRQ import compute_mask

    def make(rows: int, frames: int, padding: torch.Tensor) -> torch.Tensor:
        index = compute_mask((rows, frames, 1), [frames] * rows, RATIO / SPAN, SPAN)
        mask = torch.zeros(rows, frames, dtype=torch.bool)
        mask[:, index] = True
        return mask

    return make


def load_fairseq2() -> Callable:
    from fairseq2.nn.utils.mask import compute_row_mask

    return lambda rows, frames, padding: compute_row_mask(
        (rows, frames), SPAN, WITH_OVERLAPS, device=padding.device
    )


PEERS = {
    "ESPnet": load_espnet,
    "Hugging Face": load_huggingface,
    "torchaudio": load_torchaudio,
    "SpeechBrain, wav2vec 2.0": load_speechbrain,
    "SpeechBrain, BEST-RQ": load_speechbrain_best_rq,
    "fairseq2": load_fairseq2,
}


def measure(rows: Rows, size: str, peers: Dict[str, Any], args: argparse.Namespace) -> None:
    """One size of batch."""
    batch, frames = map(int, size.split("x"))
    confidence = torch.rand(batch, frames, device=args.device)
    lengths = torch.full((batch,), frames, device=args.device)
    padding = torch.zeros(batch, frames, dtype=torch.bool, device=args.device)
    functions = {
        name: lambda make=make: make(batch, frames, padding).to(args.device)
        for name, make in peers.items()
    }
    ours = {
        f"ours, {name}": lambda name=name: sample_span_mask(
            *(confidence, lengths, RATIO, SPAN, name), exact=args.exact
        )
        for name in STRATEGIES
    }
    functions.update(ours)
    rounds = max(1, args.rounds // 3) if frames >= LONG else args.rounds
    times = interleave(functions, rounds, device=args.device)
    slowest = max(ours, key=lambda name: statistics.median(times[name].cpu))
    case = f"{size} frames"
    for name, function in functions.items():
        masked = function().float().mean().item()
        columns = {"note": f"{masked:.3f} masked"}
        if name not in ours:
            columns["ratio"] = ratio(times[name], times[slowest], args.device)
            columns["of"] = f"its time over that of {slowest}"
            if name == "Hugging Face":
                columns["goal"] = ">= 1"
        elif "ESPnet" in times:
            columns["ratio"] = ratio(times["ESPnet"], times[name], args.device)
            columns["of"] = "ESPnet's time over ours"
            if size == GOAL_AT:
                columns["goal"] = ">= 50"
        if name in ours and "Hugging Face" in times:
            faster = ratio(times["Hugging Face"], times[name], args.device)
            columns["note"] += f"; Hugging Face's takes {faster:.2f} of its time"
        syncs = host_syncs(function, args.device)
        rows.add(case, name, times[name], syncs=syncs, **columns)


def main() -> None:
    """Measure and print."""
    parser = get_parser(__doc__, rounds=15)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x frames")
    parser.add_argument("--exact", action="store_true", help="as of masker_conf")
    args = parser.parse_args()
    start(args)
    rows = Rows("masks", args)
    peers, missing = find_peers(PEERS)
    for size in ["4x50"] if args.quick else args.sizes:
        measure(rows, size, peers, args)
    rows.add_missing(missing)
    rows.finish()


if __name__ == "__main__":
    main()
