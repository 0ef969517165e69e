#!/usr/bin/env python3
"""Confidence of a crop that is scored alone, against that of the whole utterance.

    . tools/activate_python.sh; python benchmarks/crop_confidence.py \\
        --asr_train_config exp/asr/config.yaml \\
        --asr_model_file exp/asr/valid.loss.best.pth --wav_scp dump/raw/train/wav.scp

With ``ssl_conf.scorer`` training scores what it hears, which is a crop where it crops; a
stored track was scored as a whole, and is cut. From each utterance that is longer one crop
is taken, from a random frame on, as training does. The track is rounded to bytes, as it is
stored.

    plain       as the scorer is
    gated       with the speech gate, the track too
    same mean   plain, but the crop's features are normalised by the mean of the whole
                utterance; of scorers with normalize: utterance_mvn
"""

import argparse
import math
import sys
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import torch
from espnet2.layers.utterance_mvn import UtteranceMVN
from tqdm import tqdm

from espnet_atm.audio import AudioDataset
from espnet_atm.scorer import Scorer

INNER_SECONDS = 0.5  # that frames in the column "inner" are from both ends of the crop


class SameMean(torch.nn.Module):
    """Takes the mean of one utterance from any features, in place of ``UtteranceMVN``."""

    def __init__(self, scorer: Scorer, speech: np.ndarray):
        super().__init__()
        feats, _ = scorer.model.frontend(*batch_of(speech, scorer.device))
        self.mean = feats.mean(dim=1, keepdim=True)  # (1, 1, C)

    def forward(
        self, feats: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """(B, T, C), (B,) -> the same."""
        return feats - self.mean, lengths


def batch_of(speech: np.ndarray, device: str) -> Tuple[torch.Tensor, torch.Tensor]:
    """An utterance alone: (N,) -> (1, N), (1,)."""
    speech = torch.from_numpy(speech)[None].to(device)
    return speech, torch.tensor([speech.size(1)], device=device)


def score(
    scorer: Scorer,
    speech: np.ndarray,
    gate: bool = False,
    normalize: Optional[torch.nn.Module] = None,
) -> np.ndarray:
    """Confidence of an utterance alone, (N,) -> (T,)."""
    stock = scorer.model.normalize
    scorer.model.normalize = normalize or stock
    confidence, _ = scorer.score(*batch_of(speech, scorer.device), speech_gate=gate)
    scorer.model.normalize = stock
    return confidence[0].cpu().numpy()


def random_crop(
    scorer: Scorer, samples: int, seconds: Optional[float], rng: np.random.Generator
) -> Optional[Tuple[int, int]]:
    """First frame and number of samples; None when the utterance is not longer."""
    if seconds is None:
        return 0, samples
    kept = round(seconds * scorer.sampling_rate)
    if samples <= kept:
        return None
    return int(rng.integers((samples - kept) // scorer.grid.shift + 1)), kept


def correlation(pairs: List[Tuple[np.ndarray, np.ndarray]]) -> str:
    """Of all frames together; a dash where there are none."""
    crops, tracks = (np.concatenate(x) for x in zip(*pairs))
    return f"{np.corrcoef(crops, tracks)[0, 1]:.3f}" if len(crops) else "-"


@torch.inference_mode()
def main() -> None:
    """Score, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asr_train_config", required=True)
    parser.add_argument("--asr_model_file", required=True)
    parser.add_argument("--wav_scp", type=Path, required=True)
    parser.add_argument("--crop_seconds", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ngpu", type=int, default=0)
    args = parser.parse_args()
    device = "cuda" if args.ngpu else "cpu"
    scorer = Scorer.from_files(args.asr_train_config, args.asr_model_file, device)
    dataset = AudioDataset(args.wav_scp, scorer.sampling_rate)
    rng = np.random.default_rng(args.seed)
    normalize, ways = scorer.model.normalize, ["plain", "gated"]
    if isinstance(normalize, UtteranceMVN) and not normalize.norm_vars:
        ways.append("same mean")
    found = {(x, way): [] for x in [*args.crop_seconds, None] for way in ways}
    for number in tqdm(range(len(dataset))):
        speech = dataset[number]
        if isinstance(speech, str):
            sys.exit(f"{args.wav_scp}: {dataset.utterances[number][0]}: {speech}")
        tracks = {way: score(scorer, speech, way == "gated") for way in ways[:2]}
        for seconds in [*args.crop_seconds, None]:
            place = random_crop(scorer, len(speech), seconds, rng)
            if place is None:
                continue
            first, samples = place
            crop = speech[first * scorer.grid.shift :][:samples]
            for way in ways:
                mean = SameMean(scorer, speech) if way == "same mean" else None
                alone = score(scorer, crop, way == "gated", mean)
                track = tracks["gated" if way == "gated" else "plain"]
                track = track[first : first + len(alone)]
                found[seconds, way].append((alone, (255 * track).round() / 255))

    edge = math.ceil(INNER_SECONDS * scorer.sampling_rate / scorer.grid.shift)
    print(f"{len(dataset)} utterances of {args.wav_scp}, seed {args.seed}")
    print(f"{'crop':<8}{'scored':<12}{'crops':>6}", end="")
    print(f"{'correlation':>13}{'inner':>8}{'difference':>12}")
    for (seconds, way), pairs in found.items():
        if not pairs:
            continue
        inner = [(x[edge:-edge], y[edge:-edge]) for x, y in pairs]
        difference = np.abs(np.concatenate([x - y for x, y in pairs])).mean()
        print(f"{'none' if seconds is None else f'{seconds:g} s':<8}{way:<12}", end="")
        print(f"{len(pairs):>6}{correlation(pairs):>13}", end="")
        print(f"{correlation(inner):>8}{difference:>12.3f}")


if __name__ == "__main__":
    main()
