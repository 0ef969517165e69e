#!/usr/bin/env python3
"""A data directory of noise without speech, of the kinds that the corpus mini has.

The same arguments give the same audio.
"""

import argparse
import re
import sys
from pathlib import Path

import mini
import numpy as np
from kaldi_data import SAMPLE_RATE, Utterance, write_data_dir, write_flac

CATEGORY = "purenoise"


def make_noise(count: int, audio_dir: Path) -> list[Utterance]:
    """Write the audio that is missing; return the utterances."""
    made = []
    for number in range(count):
        utt = f"noise-{number:05d}"
        rng = np.random.default_rng(mini.seed_of("noise", utt))
        # As in mini: a faint floor, because digital silence is found in no recording.
        x = mini.pure_noise(rng)
        x = x + rng.standard_normal(len(x)) * 10 ** (-78 / 20)
        x *= min(1.0, 0.98 / np.abs(x).max())
        wav = audio_dir / f"{utt}.flac"
        if not wav.is_file():
            write_flac(wav, np.round(x * 32767).astype(np.int16))
        made.append(
            Utterance(utt, "noise", str(wav), "-", CATEGORY, len(x) / SAMPLE_RATE)
        )
    return made


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, required=True)
    parser.add_argument("--audio_dir", type=Path, required=True)
    parser.add_argument("data_dir", type=Path)
    args = parser.parse_args(argv)
    if args.utterances < 1:
        sys.exit(f"--utterances {args.utterances}: is less than 1")
    if re.search(r"\s", str(args.audio_dir)):
        sys.exit(f"--audio_dir {args.audio_dir}: Kaldi's tables do not bear spaces")
    utterances = make_noise(args.utterances, args.audio_dir)
    write_data_dir(args.data_dir, utterances, labelled=False)
    minutes = sum(u.duration for u in utterances) / 60
    print(f"{args.data_dir}: {len(utterances)} utterances, {minutes:.1f} minutes of noise")


if __name__ == "__main__":
    main()
