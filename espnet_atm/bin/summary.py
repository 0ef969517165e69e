"""Summarise the scores of a corpus: hours, mean, deciles, and what was skipped and why.

Reads what ``espnet_atm.bin.score`` wrote, one track at a time, prints the summary and
writes it to ``summary.json`` beside the scores, where ``espnet_atm.bin.report`` adds how
strongly they guide.
"""

import argparse
import json
from pathlib import Path

from espnet_atm.errors import one_line_errors
from espnet_atm.files import write_line
from espnet_atm.summary import refuse_foreign, summarize


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--confidence_dir", required=True, type=Path)
    parser.add_argument(
        "--fs",
        type=int,
        default=16000,
        help="sampling rate of the scorer in Hz, where no sampling_rate is beside the "
        "scores",
    )
    return parser


def main(cmd=None) -> None:
    """Summarise, print and write."""
    args = get_parser().parse_args(cmd)
    refuse_foreign(args.confidence_dir / "summary.json")
    summary = summarize(args.confidence_dir, args.fs)
    write_line(args.confidence_dir / "summary.json", json.dumps(summary, indent=2))
    print(f"{args.confidence_dir}:")
    for name, value in summary.items():
        print(f"  {name}: {value if value != {} else 'none'}")


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.summary"):
        main()
