#!/usr/bin/env python3
"""Utterances a second through ESPnet's iterator, with the track and without, in turns.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/data_speed.py

HuBERT's streams, audio and labels, of noise in FLAC, 4 to 16 s each, from the first batch
on:

- ESPnet: stock, a file for each utterance;
- ours: checked as it is read, as with ``ssl_conf: {masker: random}``;
- ours, track: with ``masker: atm``, tracks of random numbers as
  ``espnet_atm.bin.score`` stores them;
- ours, long, and ours, long, track: the same out of recordings of half an hour.

CPU time is that of the processes that read, too.
"""

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import soundfile
import yaml
from espnet2.tasks.ssl import SSLTask
from espnet2.train.distributed_utils import DistributedOption
from measure import Rows, get_parser, interleave, ratio, start

from espnet_atm.audio import AudioDataset
from espnet_atm.reading import Recordings
from espnet_atm.store import ScoreWriter
from espnet_atm.task import ATMSSLTask

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "conf/tuning/train_hubert_conformer_mini_atm.yaml"
RATE, HOP = 16000, 160  # of the audio; of ESPnet's labels, in samples
SHIFT, OFFSET = 640, 479.5  # of the track, in samples
RECORDING = 1800  # seconds
CLASSES = 64
WAYS = {  # folder of the audio, whether it is ours, with the track
    "ESPnet": ("short", False, False),
    "ours": ("short", True, False),
    "ours, track": ("short", True, True),
    "ours, long": ("long", True, False),
    "ours, long, track": ("long", True, True),
}
BASES = {"ours": "ESPnet", "ours, long": "ours"}  # what is compared with what


def make_corpus(folder: Path, utterances: int) -> None:
    """Write ``short`` and ``long``, each with lists, labels, audio and tracks."""
    rng = np.random.default_rng(0)
    short, long = folder / "short", folder / "long"
    short.mkdir()
    long.mkdir()
    lines = {"short": [], "long": [], "shape": [], "text": []}
    recording: List[np.ndarray] = []
    written = 0

    def write_recording() -> None:
        audio = np.concatenate(recording)
        soundfile.write(long / f"{written:03d}.flac", audio, RATE)

    for number in range(utterances):
        samples = int(rng.integers(4 * RATE, 16 * RATE))
        audio = (0.1 * rng.standard_normal(samples)).clip(-1, 1)
        utt = f"{number:05d}"
        soundfile.write(short / f"{utt}.flac", audio, RATE)
        first = sum(map(len, recording))
        if first + samples > RECORDING * RATE:
            write_recording()
            recording, written, first = [], written + 1, 0
        recording.append(audio)
        labels = rng.integers(CLASSES, size=samples // HOP + 1)
        lines["short"].append(f"{utt} {short}/{utt}.flac\n")
        cut = f"{long}/{written:03d}.flac:{first}:{first + samples}"
        lines["long"].append(f"{utt} {cut}\n")
        lines["shape"].append(f"{utt} {samples}\n")
        lines["text"].append(f"{utt} {' '.join(map(str, labels))}\n")
    write_recording()
    tokens = [*range(CLASSES), "<unk>"]
    (folder / "tokens.txt").write_text("".join(f"{x}\n" for x in tokens))
    for way in (short, long):
        (way / "wav.scp").write_text("".join(lines[way.name]))
        for name in ("shape", "text"):
            (way / name).write_text("".join(lines[name]))
        make_tracks(way)


def make_tracks(folder: Path) -> None:
    """Store tracks as scoring does."""
    for name, value in (("frame_shift", SHIFT), ("frame_offset", OFFSET)):
        (folder / name).write_text(f"{value}\n")
    (folder / "sampling_rate").write_text(f"{RATE}\n")
    (folder / "scorer").write_text('{"model": "none", "config": "none"}\n')
    dataset = AudioDataset(folder / "wav.scp", RATE)
    recordings, rng = Recordings(dataset), np.random.default_rng(1)
    with ScoreWriter(folder, dataset.utterances) as writer:
        for index in range(len(dataset)):
            audio, record = recordings[index]
            frames = ((len(audio) // HOP) // 2 - 1) // 2  # of two convolutions
            track = rng.random(frames, dtype=np.float32)
            writer.write({index: track}, {index: record})


def make_iterator(
    folder: Path, way: str, num_workers: int, batch: int
) -> Callable[[], Any]:
    """What starts an epoch: a function that makes an iterator."""
    place, ours, track = WAYS[way]
    data = folder / place
    config = yaml.safe_load(CONFIG.read_text())
    del config["ssl_conf"]
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    options = ["--config", str(file), "--output_dir", str(folder / "exp")]
    options += ["--token_list", str(folder / "tokens.txt"), "--token_type", "word"]
    options += ["--num_workers", str(num_workers), "--batch_bins", str(batch * RATE)]
    streams = ["wav.scp,speech,sound", "text,text,text"]
    if track:
        streams.append("confidence.scp,confidence,kaldi_ark")
    for mode in ("train", "valid"):
        options += [f"--{mode}_shape_file", str(data / "shape")]
        for stream in streams:
            options += [f"--{mode}_data_path_and_name_and_type", f"{data}/{stream}"]
    task = ATMSSLTask if ours else SSLTask
    args = task.get_parser().parse_args(options)
    if ours:
        args.ssl_conf = {"masker": "atm" if track else "random"}
    factory = task.build_iter_factory(args, DistributedOption(), "train")
    return lambda: iter(factory.build_iter(1))


class Epochs:
    """One epoch after the other; each is begun before its time is taken."""

    def __init__(self, start_epoch: Callable[[], Any]):
        self.start_epoch = start_epoch

    def begin(self) -> None:
        """Wait for the first batch."""
        self.batches = self.start_epoch()
        next(self.batches)

    def __call__(self) -> int:
        """Read the rest; returns how many utterances."""
        count = sum(len(utts) for utts, _ in self.batches)
        del self.batches  # its processes end
        return count


def measure(
    rows: Rows, folder: Path, num_workers: int, args: argparse.Namespace
) -> None:
    """All ways with so many reading processes."""
    epochs = {
        way: Epochs(make_iterator(folder, way, num_workers, args.batch)) for way in WAYS
    }
    counts = {}
    for way, epoch in epochs.items():
        epoch.begin()
        counts[way] = epoch()
    times = interleave(
        epochs, args.rounds, warm_up=0, before=lambda way: epochs[way].begin()
    )
    case = f"{num_workers} workers" if num_workers != 1 else "1 worker"
    for way in WAYS:
        columns = {}
        if way != "ESPnet":
            track = way.endswith("track")
            base = way.removesuffix(", track") if track else BASES[way]
            pair = times[way], times[base]
            columns["ratio"] = pair[0] / pair[1] if num_workers else ratio(*pair, "cpu")
            columns["of"] = f"time of '{base}'"
            columns["goal"] = "<= 1.03" if track else ""
        rows.add(case, way, times[way], per=counts[way], unit="utt/s", **columns)


def main() -> None:
    """Measure and print."""
    parser = get_parser(__doc__, rounds=7)
    parser.add_argument("--utterances", type=int, default=240)
    parser.add_argument("--batch", type=int, default=280, help="seconds of audio")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    args = parser.parse_args()
    start(args)
    # 100 labels a second are many words to it.
    logging.getLogger("espnet2.train.preprocessor").setLevel(logging.ERROR)
    if args.quick:
        args.utterances, args.batch, args.workers = 12, 40, [0, 1]
    rows = Rows("data", args)
    with tempfile.TemporaryDirectory() as name:
        make_corpus(Path(name), args.utterances)
        for num_workers in args.workers:
            measure(rows, Path(name), num_workers, args)
    rows.finish()


if __name__ == "__main__":
    main()
