#!/usr/bin/env python3
"""Time and memory of cutting Libri-Light into segments, on JSON alone.

    . tools/activate_python.sh; python benchmarks/segment_speed.py

Writes synthetic JSON of the official format for --hours, and for a tenth of them, and runs
``local/librilight.py`` and ``sort`` on them as ``local/segment_librilight.sh`` does, with
--nj processes. What a corpus of 60,000 h takes is 60,000 / --hours times as much, plus the
reading of header and last sample of 219,000 FLACs, which is the disk's speed.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "egs2/atm_librilight/ssl1/local/librilight.py"
MINUTES = 16  # of a recording: 57,706 h in 219,041 files


def write_corpus(root: Path, hours: float) -> int:
    """Write JSON files; returns how many."""
    rng = random.Random(0)
    count = round(hours * 60 / MINUTES)
    for number in range(count):
        speaker = str(number // 30 + 1)
        folder = root / "small" / speaker / f"book_{number // 10}"
        folder.mkdir(parents=True, exist_ok=True)
        activity, now = [], 0.0
        while now < MINUTES * 60:
            onset = now + rng.uniform(0.5, 1.5)
            now = onset + rng.uniform(0.5, 15)
            activity.append([round(onset, 2), round(now, 2)])
        meta = {
            "speaker": speaker,
            "book_meta": {"id": str(number // 10), "title": "A book"},
            "snr": 11.4,
            "voice_activity": activity,
        }
        (folder / f"chapter_{number:06d}.json").write_text(json.dumps(meta))
    return count


def cut(root: Path, folder: Path, nj: int) -> None:
    """Find, cut in ``nj`` processes, merge and sort."""
    folder.mkdir()

    def command(*args) -> list[str]:
        return [sys.executable, str(SCRIPT), *map(str, args)]

    recordings = folder / "recordings"
    find = command("find", "--root", root, "--sizes", "small", "--output", recordings)
    subprocess.run(find, check=True, capture_output=True)
    stems = recordings.read_text().splitlines(keepends=True)
    parts, jobs = [], []
    for i in range(nj):
        part = folder / str(i)
        part.mkdir()
        (part / "recordings").write_text("".join(stems[i::nj]))
        parts.append(part)
        jobs.append(
            subprocess.Popen(
                command(
                    *("cut", "--recordings", part / "recordings", "--output_dir", part),
                    *("--check_audio", "false"),
                ),
                stderr=subprocess.DEVNULL,
            )
        )
    if any([job.wait() for job in jobs]):
        sys.exit("cutting failed")
    merged = folder / "merged"
    merge = command("merge", "--parts", *parts, "--output_dir", merged)
    subprocess.run(merge, check=True, stdout=sys.stderr)
    for table in ("wav.scp", "segments", "utt2spk", "utt2book"):
        file = merged / "train" / table
        sort = ["sort", "-S", "64M", "-o", file, file]
        subprocess.run(sort, check=True, env={"LC_ALL": "C"})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1000)
    parser.add_argument("--nj", type=int, default=2)
    args = parser.parse_args()
    seconds, peaks = [], []
    for hours in (args.hours / 10, args.hours):
        with tempfile.TemporaryDirectory() as name:
            count = write_corpus(Path(name) / "corpus", hours)
            begun = time.perf_counter()
            cut(Path(name) / "corpus", Path(name) / "out", args.nj)
            seconds.append(time.perf_counter() - begun)
        # The largest of all children so far: what the larger corpus adds is seen.
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
        print(
            f"{hours:8.0f} h, {count:6d} recordings: {seconds[-1]:7.1f} s, "
            f"peak of a process {peaks[-1]:6.1f} MiB"
        )
    rest = (seconds[1] - seconds[0]) / (0.9 * args.hours)  # start-up falls out
    print(f"time for 10 x the corpus: {seconds[1] / seconds[0]:.2f} x")
    print(f"memory for 10 x the corpus: {peaks[1] / peaks[0]:.2f} x")
    print(f"60,000 h at this rate: {60000 * rest:.0f} s with {args.nj} jobs")


if __name__ == "__main__":
    main()
