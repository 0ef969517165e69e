#!/usr/bin/env python3
"""Peak memory of scoring one long recording, by the length of the windows.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/long_memory.py

An untrained conformer of 30 M parameters and noise; each run is a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from score_speed import PEAK, make_corpus, make_model

from espnet_atm.bin.score import MAX_SECONDS


def main() -> None:
    """Score with each length of windows and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--max_seconds", nargs="+", default=[MAX_SECONDS, 120])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder, "small")
        make_corpus(folder / "wav.scp", args.minutes, (60 * args.minutes,) * 2)
        for seconds in args.max_seconds:
            command = [*model, "--wav_scp", str(folder / "wav.scp")]
            command += ["--output_dir", str(folder / f"scores_{seconds}")]
            command += ["--max_seconds", str(seconds)]
            done = subprocess.run(
                [sys.executable, "-c", PEAK, *command], capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stderr)
            peak = int(done.stdout.split()[-1]) / 1024
            print(f"{args.minutes:g} min, --max_seconds {seconds}: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
