"""How sure a scorer is of a corpus, and how strongly that guides masks and weights.

Writes report.html and the PNG files in it, prints the figures, and writes them into the
``summary.json`` beside the scores.
"""

import argparse
import logging
from pathlib import Path

from espnet_atm.config import SSLConf
from espnet_atm.corpus import Corpus, Settings
from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.guidance import as_text
from espnet_atm.track import MOST
from espnet_atm.values import whole

RATE = 16000  # Hz, where nothing says another


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--confidence_dir", required=True, help="of espnet_atm.bin.score"
    )
    parser.add_argument("--wav_scp", required=True, help="the audio that was scored")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--utt2category", help="condition of each utterance")
    parser.add_argument(
        "--ssl_config",
        help="the SSL config that is about to be used: its ssl_conf and its frames; else "
        "the defaults of ssl_conf, on the scorer's frames",
    )
    parser.add_argument("--mask_ratio", type=float, help="without --ssl_config")
    parser.add_argument("--span", type=int, help="without --ssl_config")
    parser.add_argument(
        "--fs", type=int, help=f"sampling rate in Hz, without --ssl_config ({RATE})"
    )
    parser.add_argument(
        "--max_utterances", type=int, default=1000, help="evenly taken for frame plots"
    )
    parser.add_argument("--num_examples", type=int, default=4, help="spectrograms")
    return parser


def read_settings(args: argparse.Namespace) -> Settings:
    """Check the options before anything is read or written.

    Raises:
        UserError: naming the option, and what is wrong with it.
    """
    whole("max_utterances", args.max_utterances, most=MOST)
    whole("num_examples", args.num_examples, least=0, most=MOST)
    given = {
        name: getattr(args, name)
        for name in ("mask_ratio", "span", "fs")
        if getattr(args, name) is not None
    }
    if args.ssl_config is None:
        fs = whole("fs", given.pop("fs", RATE), most=MOST)
        conf = SSLConf.parse({"masker_conf": given})
        conf.check_trainable()
        return Settings(conf, fs)
    if given:
        raise UserError(
            f"--{next(iter(given))}: is in --ssl_config {args.ssl_config}: leave it out"
        )
    return Settings.read(args.ssl_config)


def main(cmd=None) -> None:
    """Read, measure, plot, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    settings = read_settings(args)
    # Imported late: help must not wait for matplotlib.
    from espnet_atm.report import make_report, refuse_foreign

    page = Path(args.output_dir) / "report.html"
    refuse_foreign(page)
    folder = Path(args.confidence_dir)
    corpus = Corpus(folder, args.wav_scp, settings, args.utt2category)
    summary = make_report(corpus, page, args.max_utterances, args.num_examples)
    print("\n".join(as_text(summary)))
    logging.info(f"written: {page}")


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.report"):
        main()
