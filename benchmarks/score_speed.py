#!/usr/bin/env python3
"""Speed and memory of scoring, side by side in one run.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/score_speed.py

A model and a corpus of yours (--asr_train_config, --asr_model_file, --wav_scp), or
untrained conformers with CTC and noise, in four ways:

- bare: encoder and CTC head on batches that are ready, and nothing else;
- score: ``espnet_atm.bin.score``, from wav.scp to confidence.ark;
- gated: the same with ``--speech_gate``;
- espnet: ``espnet2.bin.asr_inference`` with beam_size 1 and ctc_weight 1.0, on a few of
  the utterances.

Loading the model is left out everywhere. Then ``espnet_atm.bin.score`` runs as a process
of its own, with a small model, on three windows of utterances and on ten times as many,
for its peak memory.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Tuple

import numpy as np
import soundfile
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from measure import Rows, Times, get_parser, ratio, start

from espnet_atm import scoring
from espnet_atm.audio import AudioDataset
from espnet_atm.bin import score
from espnet_atm.scorer import Scorer
from espnet_atm.store import ScoreWriter

RATE = 16000
MODEL = """
frontend: default
frontend_conf: {{n_fft: 512, win_length: 400, hop_length: 160, fs: 16000}}
normalize: utterance_mvn
encoder: conformer
encoder_conf: {{input_layer: conv2d, output_size: {size}, attention_heads: {heads},
  linear_units: {units}, num_blocks: {blocks}, rel_pos_type: latest, macaron_style: true,
  cnn_module_kernel: 15}}
decoder: null
model_conf: {{ctc_weight: 1.0}}
"""
# 100 M parameters for a GPU, 30 M for a CPU core, 1 M like the scorer of the mini corpus.
SIZES = {
    "mini": dict(size=96, heads=4, units=384, blocks=4),
    "small": dict(size=256, heads=4, units=2048, blocks=12),
    "large": dict(size=512, heads=8, units=2560, blocks=12),
}
# Of noise for each: what is read before the first window can be scored is to be little.
MINUTES = {"mini": 60, "small": 12, "large": 120}
# Runs in a process of its own. (Its ru_maxrss would begin with this process's.)
PEAK = """
import sys
from pathlib import Path
from espnet_atm.bin.score import main
main(sys.argv[1:])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def make_model(folder: Path, size: str) -> list[str]:
    """Options of score for an untrained model."""
    (folder / "train.yaml").write_text(MODEL.format(**SIZES[size]))
    tokens = ["<blank>", "<unk>", *(f"x{i}" for i in range(1021)), "<sos/eos>"]
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n")
    args = ASRTask.get_parser().parse_args(
        ["--config", str(folder / "train.yaml")]
        + ["--token_list", str(folder / "tokens.txt"), "--token_type", "word"]
    )
    torch.manual_seed(0)
    model = ASRTask.build_model(args)
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return [
        *("--asr_train_config", str(folder / "config.yaml")),
        *("--asr_model_file", str(folder / "model.pth")),
    ]


def make_corpus(wav_scp: Path, minutes: float, seconds: tuple[float, float]) -> None:
    """Write flac files and a wav.scp."""
    rng = np.random.default_rng(0)
    lines, total = [], 0.0
    while total < 60 * minutes:
        length = rng.uniform(*seconds)
        file = wav_scp.parent / f"{len(lines):05d}.flac"
        noise = 0.1 * rng.standard_normal(int(length * RATE))
        soundfile.write(file, noise.clip(-1, 1), RATE)
        lines.append(f"{file.stem} {file}\n")
        total += length
    wav_scp.write_text("".join(lines))


def repeated(wav_scp: Path, times: int, output: Path) -> Path:
    """Write a wav.scp with every utterance so many times."""
    lines = wav_scp.read_text().splitlines()
    output.write_text("".join(f"{n}-{x}\n" for n in range(times) for x in lines))
    return output


def bare(scorer: Scorer, dataset: AudioDataset, batch_bins: int) -> Tuple[float, float]:
    """Wall and CPU seconds for encoder and CTC head, on the batches that score makes.

    They are ready, but not all at once: memory that lay idle is slow on some machines.
    """
    seconds, cpu = 0.0, 0.0
    for begin in range(0, len(dataset), scoring.WINDOW):
        window = range(begin, min(begin + scoring.WINDOW, len(dataset)))
        speech = {i: torch.from_numpy(dataset[i]) for i in window}
        lengths = {utt: len(x) for utt, x in speech.items()}
        batches = []
        for batch in scoring.make_batches(lengths, batch_bins, alone=False):
            padded = torch.nn.utils.rnn.pad_sequence(
                [speech[utt] for utt in batch], batch_first=True
            )
            batches.append((padded, torch.tensor([lengths[utt] for utt in batch])))
        if begin == 0:
            scorer.log_probs(*batches[-1])  # what the first call costs more
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for batch in batches:
            scorer.log_probs(*batch)
        if scorer.device == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - begin
        cpu += time.process_time() - cpu_begin
    return seconds, cpu


def measure(
    rows: Rows, folder: Path, model: List[str], name: str, args: argparse.Namespace
) -> None:
    """One model.

    Args:
        folder: for the scores; has ``repeated.scp``, what is scored.
        model: options of score.
        name: what the table calls it.
    """
    on_gpu = args.device == "cuda"
    scorer = Scorer.from_files(model[1], model[3], args.device, half=on_gpu)
    wav_scp = folder / "repeated.scp"
    dataset = AudioDataset(wav_scp, RATE)
    total = sum(len(speech) for speech in dataset) / RATE
    batch_bins = scoring.BATCH_SECONDS[on_gpu] * RATE
    options = score.get_parser().parse_args(
        [*model, "--wav_scp", str(wav_scp), "--output_dir", "unused"]
        + ["--ngpu", str(int(on_gpu))]
        + (["--num_workers", str(args.num_workers)] if args.num_workers else [])
    )

    def score_all(gate: bool) -> Tuple[float, float]:
        options.speech_gate = gate
        with tempfile.TemporaryDirectory(dir=folder) as output:
            with ScoreWriter(Path(output), dataset.utterances) as writer:
                begin, cpu_begin = time.perf_counter(), time.process_time()
                scoring.score_corpus(
                    *(scorer, dataset, writer, score.measure_options(options)),
                    *(None, options.max_seconds, score.num_workers(options)),
                )
                cpu = time.process_time() - cpu_begin
                return time.perf_counter() - begin, cpu

    warm = torch.from_numpy(dataset[0])[None]
    scorer.score(warm, torch.tensor([warm.size(1)]), speech_gate=True)
    ways = {
        "bare": lambda: bare(scorer, dataset, batch_bins),
        "score": lambda: score_all(False),
        "gated": lambda: score_all(True),
    }
    times = {way: Times() for way in ways}
    for round_ in range(args.rounds):
        order = list(ways)[round_ % 3 :] + list(ways)[: round_ % 3]
        for way in order:
            wall, cpu = ways[way]()
            times[way].wall.append(wall)
            times[way].cpu.append(cpu)

    decode = Speech2Text(
        asr_train_config=model[1],
        asr_model_file=model[3],
        device=args.device,
        beam_size=1,
        ctc_weight=1.0,
        lm_weight=0.0,
    )
    some = [dataset[i] for i in range(args.espnet_utterances)]
    begin = time.perf_counter()
    for speech in some:
        decode(speech)
    seconds = time.perf_counter() - begin
    # As if it had decoded all of them, to be compared with.
    espnet = Times([seconds * total / (sum(map(len, some)) / RATE)] * args.rounds)

    found = {
        "bare": {},
        "score": {"ratio": times["bare"] / times["score"], "goal": ">= 0.9"},
        "gated": {"ratio": times["score"] / times["gated"]},
        "espnet": {"ratio": espnet / times["score"]},
    }
    if not on_gpu:
        for way, base in (("score", "bare"), ("gated", "score")):
            own = ratio(times[base], times[way], "cpu")
            found[way]["note"] = f"{own:.2f} by CPU time, reading processes left out"
    of = {"score": "bare's speed", "gated": "score's speed"}
    of["espnet"] = "its time over score's"
    for way, columns in found.items():
        given = times.get(way, espnet)
        rows.add(
            *(name, way, given, total),
            **{"unit": "s of audio/s", "of": of.get(way, ""), **columns},
        )


def measure_memory(rows: Rows, folder: Path) -> None:
    """Peaks of a process that scores three windows of utterances, and ten times as many."""
    model = make_model(folder, "mini")
    first = folder / "first.scp"
    first.write_text((folder / "repeated.scp").read_text().splitlines()[0] + "\n")
    peaks = {}
    for times_over in (1, 10):
        count = 3 * scoring.WINDOW * times_over
        more = repeated(first, count, folder / f"x{times_over}.scp")
        command = [sys.executable, "-c", PEAK, *model, "--wav_scp", str(more)]
        command += ["--output_dir", str(folder / f"x{times_over}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[times_over] = int(done.stdout.split()[-1]) / 1024
        rows.add(
            *("mini, as a process", f"{count} utterances"),
            memory=peaks[times_over],
            ratio=peaks[times_over] / peaks[1] if times_over > 1 else None,
            of="peak of a tenth of them" if times_over > 1 else "",
        )


def main() -> None:
    """Measure and print."""
    parser = get_parser(__doc__, rounds=3)
    parser.add_argument("--asr_train_config")
    parser.add_argument("--asr_model_file")
    parser.add_argument("--wav_scp", type=Path)
    parser.add_argument(
        "--repeat", type=int, default=1, help="how often to go through a short wav.scp"
    )
    parser.add_argument("--minutes", type=float, help="of noise")
    parser.add_argument("--seconds", type=float, nargs=2, default=(4.0, 16.0))
    parser.add_argument("--size", choices=SIZES, nargs="+", help="of untrained models")
    parser.add_argument("--num_workers", type=int, help="as of score")
    parser.add_argument("--espnet_utterances", type=int, default=20)
    args = parser.parse_args()
    start(args)
    sizes = args.size or (["large"] if args.device == "cuda" else ["small", "mini"])
    if args.quick:
        args.minutes, args.seconds, sizes = 0.1, (1.0, 2.0), ["mini"]
        args.espnet_utterances = 1
    rows = Rows("scoring", args)
    if args.asr_model_file:
        sizes = [None]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            wav_scp = args.wav_scp
            if wav_scp is None:
                wav_scp = folder / "wav.scp"
                minutes = args.minutes or MINUTES[size or "small"]
                make_corpus(wav_scp, minutes, args.seconds)
            repeated(wav_scp, args.repeat, folder / "repeated.scp")
            if size is None:
                model = ["--asr_train_config", args.asr_train_config]
                model += ["--asr_model_file", args.asr_model_file]
                measure(rows, folder, model, args.asr_model_file, args)
            else:
                model = make_model(folder, size)
                measure(rows, folder, model, f"untrained, {size}", args)
        if args.device == "cpu" and not args.quick:
            measure_memory(rows, folder)
    rows.finish()


if __name__ == "__main__":
    main()
