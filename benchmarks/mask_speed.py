#!/usr/bin/env python3
"""Time to make the masks of one batch, against ESPnet's own, side by side in one run.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/mask_speed.py

Both mask the same number of rows and frames; ESPnet's ``mask_prob`` is set so that it
masks about as much. Rounds alternate, so that what else the machine does hits both.
"""

import argparse
import statistics
import time

import torch
from espnet2.ssl.utils.mask import _compute_mask_indices

from espnet_atm.masking import STRATEGIES, sample_span_mask

MASK_PROB = 0.51  # with overlaps about 0.40 of the frames


def seconds(function) -> float:
    """Wall time of one call, the device's work included."""
    begin = time.perf_counter()
    mask = function()
    if mask.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exact", action="store_true", help="as of masker_conf")
    args = parser.parse_args()
    torch.manual_seed(0)
    confidence = torch.rand(args.batch, args.frames, device=args.device)
    lengths = torch.full((args.batch,), args.frames, device=args.device)
    padding = torch.zeros(args.batch, args.frames, dtype=torch.bool, device=args.device)

    functions = {
        "espnet": lambda: _compute_mask_indices(
            (args.batch, args.frames), padding, args.device, MASK_PROB, 10
        ),
        **{
            name: lambda name=name: sample_span_mask(
                *(confidence, lengths, 0.40, 10, name), exact=args.exact
            )
            for name in STRATEGIES
        },
    }
    times = {name: [] for name in functions}
    for round_ in range(args.rounds + 1):
        for name, function in functions.items():
            taken = seconds(function)
            if round_:  # the first warms up
                times[name].append(taken)

    print(f"{args.batch} x {args.frames} frames on {args.device}, ", end="")
    print(f"{torch.get_num_threads()} thread(s), median of {args.rounds}")
    print(f"{'masks':10}{'ms':>10}{'masked':>10}{'times faster':>15}")
    stock = statistics.median(times["espnet"])
    for name, function in functions.items():
        median = statistics.median(times[name])
        masked = function().float().mean().item()
        print(f"{name:10}{1000 * median:10.2f}{masked:10.3f}{stock / median:15.1f}")


if __name__ == "__main__":
    main()
