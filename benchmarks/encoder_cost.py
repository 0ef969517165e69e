#!/usr/bin/env python3
"""Parameters and multiplications a frame of an SSL config with ``preencoder: conv2d``.

    . tools/activate_python.sh; python benchmarks/encoder_cost.py

Beside them ESPnet's convolutions, which are as wide as the encoder, and what of the
attention would be left in windows. Nothing is computed: torch's meta device tells shapes.
"""

import argparse
from pathlib import Path
from typing import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_atm.preencoder import Conv2dPreEncoder
from espnet_atm.task import ATMSSLTask

CONF = Path(__file__).resolve().parents[1] / "egs2/atm_librilight/ssl1/conf/tuning"
BANDS = 80  # mel energies a frame of 10 ms


def multiplications(function: Callable, frames: int) -> dict[str, float]:
    """By kind of operation, in millions a frame."""
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    return {str(name): flop / 2 / frames / 1e6 for name, flop in counts.items()}


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=Path, default=CONF / "train_w2v_bert_conformer_l_atm.yaml"
    )
    parser.add_argument("--frames", type=int, default=800, help="of 40 ms")
    parser.add_argument("--window", type=int, default=128, help="frames to each side")
    args = parser.parse_args()
    given = ["--config", str(args.config), "--output_dir", "unused"]
    config = ATMSSLTask.get_parser().parse_args(given)
    config.token_list = []
    lengths = torch.tensor([args.frames])
    with torch.device("meta"):
        model = ATMSSLTask.build_model(config).to("meta").eval()  # ESPnet's biases too
        size = config.encoder_conf["output_size"]
        parts = {
            "convolutions": model.preencoder,
            "ESPnet's convolutions": Conv2dPreEncoder(BANDS, size),
            "encoder": model.encoder,
        }
        features = torch.empty(1, 4 * args.frames + 3, BANDS)
        encoded = torch.empty(1, args.frames, size)
    print(f"{args.config.name}, {args.frames} frames")
    print(f"{'millions':28}{'parameters':>12}{'multiplications a frame':>26}")
    for name, part in parts.items():
        x, n = (encoded, lengths) if name == "encoder" else (features, 4 * lengths + 3)
        found = multiplications(lambda: part(x, n), args.frames)
        parameters = sum(p.numel() for p in part.parameters()) / 1e6
        print(f"{name:28}{parameters:12.1f}{sum(found.values()):26.1f}")
    attention = found["aten.bmm"]
    left = attention * min(1, (2 * args.window + 1) / args.frames)
    print(f"{'  attention to all frames':28}{attention:38.1f}")
    print(f"{f'  in windows of +-{args.window}':28}{left:38.1f}")


if __name__ == "__main__":
    main()
