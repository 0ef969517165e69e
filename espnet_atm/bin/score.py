"""Score utterances with a CTC model: one confidence a frame, one byte each.

Writes into ``--output_dir``

- ``confidence.ark``, ``confidence.scp``: (frames, 1), Kaldi's one-byte compression of
  [0, 1]; ESPnet reads them as ``DIR/confidence.scp,confidence,kaldi_ark``;
- ``utt2confidence``: the mean over each utterance, Eq. 5;
- ``frame_shift``, ``frame_offset``: samples between frames, centre of the first, at
  the ``sampling_rate`` of the scorer, in Hz;
- ``scorer``: what made the scores; others are not mixed in;
- ``utt2audio``: what audio was scored, and a checksum of each track: ``utt samples Hz
  checksum source track``; where a source is another by now, its audio is compared;
- ``skipped``: utterances without a score, and why;
- ``scoring``, while it runs: the utterances at work and their seconds.

Nothing that is there and was not made by this program is written over.

Utterances above ``--max_seconds`` are scored in overlapping windows, an approximation
that bounds the memory: a scorer that sees the whole may differ a little in each frame.

Reads what Kaldi users have: ``wav.scp`` with files, pipes and archives, and
``segments``. Audio at another rate than the scorer's is resampled.

Run it again after any end, and it goes on where it was.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Dict

from espnet2.utils.types import float_or_none, str2bool

from espnet_atm.audio import AudioDataset
from espnet_atm.confidence import MEASURES, check_refinement
from espnet_atm.devices import add_device_options, device_of
from espnet_atm.errors import UserError, one_line_errors, telling_full_disk
from espnet_atm.scorers.find import HELP, Source, find_scorer
from espnet_atm.scoring import BATCH_SECONDS, compare_sources, score_corpus
from espnet_atm.speech import describe_gate
from espnet_atm.store import ScoreWriter, check_grid, claim, claim_length
from espnet_atm.values import is_positive

MAX_WORKERS = 8
# Audio that is encoded at once: memory grows with its square (benchmarks/long_memory.py).
# The recipe's longest utterances are not cut.
MAX_SECONDS = 65
LEAST_SECONDS = 10


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--scorer", metavar="TAG_OR_FOLDER", help=HELP)
    parser.add_argument(
        "--asr_train_config", help="instead: config.yaml of an ESPnet model, and"
    )
    parser.add_argument("--asr_model_file", help="its weights")
    parser.add_argument(
        "--lang",
        help="of OWSM-CTC, e.g. eng (default: unknown); of the adapters of MMS",
    )
    parser.add_argument("--task", help="of OWSM-CTC (default: asr)")
    parser.add_argument("--wav_scp", required=True, help="what to score")
    parser.add_argument("--segments", help="Kaldi's, when recordings are cut by it")
    parser.add_argument("--output_dir", required=True)
    add_device_options(parser)
    parser.add_argument(
        "--half",
        type=str2bool,
        default=True,
        help="on a GPU, compute in bfloat16 or float16",
    )
    parser.add_argument(
        "--batch_bins",
        type=int,
        help="samples of a batch, padding included (default: {} s, on a GPU {} s)".format(
            *BATCH_SECONDS
        ),
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=MAX_SECONDS,
        help="score what is longer in overlapping windows of so many seconds; inf: "
        "whatever the length",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        help="processes that read audio (default: 1; with a GPU one for each core that "
        f"may be used, {MAX_WORKERS} at most)",
    )
    parser.add_argument("--measure", default="max", choices=MEASURES)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--exclude_blank", action="store_true", help="let the blank not compete"
    )
    parser.add_argument(
        "--smooth", type=int, default=1, help="average over so many frames"
    )
    parser.add_argument(
        "--energy_gate",
        type=float_or_none,
        help="no confidence for frames so many dB below the utterance's loud ones",
    )
    parser.add_argument(
        "--speech_gate",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="take the confidence times the probability, by silero-vad, that a frame is "
        "speech",
    )
    parser.add_argument(
        "--max_skipped",
        type=int,
        default=0,
        help="more skipped utterances than this end with exit code 1",
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before anything is loaded or written.

    Raises:
        UserError: naming the option and its value.
    """
    check_refinement(args.smooth, args.energy_gate)
    if not is_positive(args.temperature):
        raise UserError(
            f"temperature: {args.temperature} is not a positive number; write e.g. 2"
        )
    if not args.max_seconds >= LEAST_SECONDS:
        raise UserError(f"max_seconds: {args.max_seconds} is less than {LEAST_SECONDS}")
    for name, least in (
        *(("batch_bins", 1), ("num_workers", 0), ("max_skipped", 0), ("job", 1)),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{name}: {value} is less than {least}")


def num_workers(args: argparse.Namespace) -> int:
    """Processes that read audio: a GPU is not to wait for a single one."""
    if args.num_workers is not None:
        return args.num_workers
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if args.ngpu else 1


def measure_options(args: argparse.Namespace) -> Dict:
    """The command line's options of ``Scorer.score``."""
    return {
        "measure": args.measure,
        "temperature": args.temperature,
        "include_blank": not args.exclude_blank,
        "smooth": args.smooth,
        "energy_gate": args.energy_gate,
        "speech_gate": args.speech_gate,
    }


def find(args: argparse.Namespace) -> Source:
    """The scorer that the command line names.

    Raises:
        UserError: when it names none, or more than one, or it cannot be had.
        OSError: when a file is not there.
    """
    pair = args.asr_train_config, args.asr_model_file
    if args.scorer is not None and pair == (None, None):
        return find_scorer(args.scorer, lang=args.lang, task=args.task)
    if args.scorer is not None or None in pair:
        raise UserError(
            "the scorer: give --scorer TAG_OR_FOLDER, or both --asr_train_config and "
            "--asr_model_file"
        )
    return find_scorer(*pair, args.lang, args.task)


def score_all(args: argparse.Namespace) -> int:
    """Score what is not scored yet; return how many utterances have no score."""
    check_options(args)
    segments = None if args.segments is None else Path(args.segments)
    dataset = AudioDataset(Path(args.wav_scp), segments=segments)
    if not len(dataset):
        raise UserError(f"{dataset.utterances.path} is empty: there is nothing to score")
    source = find(args)
    # What the scores depend on.
    scorer = {
        **source.fingerprint(),
        **measure_options(args),
        "speech_gate": describe_gate() if args.speech_gate else None,
    }
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with ScoreWriter(output_dir, dataset.utterances) as writer:
        claim(output_dir, scorer, anew=not writer.records)
        if writer.records:
            check_grid(output_dir)
            claim_length(output_dir, args.max_seconds, writer.longest)
            compare_sources(dataset, writer, num_workers(args))
        writer.tell_of_the_last()
        logging.info(
            f"{len(dataset)} utterances, {writer.records} of them scored already"
        )
        if not writer.done.all():
            score_corpus(
                source.load(device_of(args), args.half and args.ngpu > 0),
                dataset,
                writer,
                measure_options(args),
                args.batch_bins,
                args.max_seconds,
                num_workers(args),
            )
        logging.info(f"{writer.records} scored, {writer.skipped} skipped")
    return writer.skipped


def main(cmd=None) -> None:
    """Score; exit with 1 when more than ``--max_skipped`` utterances had to be left."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    with telling_full_disk(f"{args.output_dir}: scores"):
        skipped = score_all(args)
    if skipped > args.max_skipped:
        sys.exit(
            f"{skipped} utterances have no score (see {args.output_dir}/skipped), more "
            f"than --max_skipped {args.max_skipped}"
        )


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.score"):
        main()
