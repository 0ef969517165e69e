#!/usr/bin/env python3
"""Read options of espnet_atm.bin.score, and print those that change the scores.

Two lines: what is not the default, in one form for what is the same; and what is said of
the speech gate, true or false, or nothing.
"""

import argparse
import shlex

from espnet_atm.errors import UserError, one_line_errors

# What the recipe says, or what has no part in the scores.
GIVEN = (
    *("scorer", "asr_train_config", "asr_model_file", "lang", "task"),
    *("wav_scp", "output_dir", "segments", "job"),
)
OWN = ("ngpu", "max_skipped")  # options of the recipe itself
COMPUTES = ("num_workers", "batch_bins")


def read_options(text: str) -> tuple[str, str]:
    """The two lines.

    Args:
        text: options as on a command line.

    Raises:
        UserError: naming what is wrong.
    """
    from espnet_atm.bin import score  # slow: not for no options

    parser = score.get_parser()
    required = ["--wav_scp=", "--output_dir="]

    def error(message: str) -> None:
        raise UserError(f"--score_opts {text}: {message}")

    parser.error = error
    usual = parser.parse_args(required)
    parser.set_defaults(speech_gate=None)
    try:
        args = parser.parse_args([*required, *shlex.split(text)])
        gate = args.speech_gate
        args.speech_gate = False
        score.check_options(args)
    except ValueError as e:
        message = str(e)
        start = f"--score_opts {text}"
        raise UserError(
            message if message.startswith(start) else f"{start}: {message}"
        ) from None
    words = []
    for name, value in vars(args).items():
        if value == getattr(usual, name) or name in COMPUTES:
            continue
        if name in (*GIVEN, *OWN):
            own = "an option of its own" if name in OWN else "what the recipe says itself"
            error(f"--{name} is {own}: take it out of --score_opts")
        words.append(f"--{name}")
        if value is not True:
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
    return " ".join(words), "" if gate is None else str(gate).lower()


def main(cmd=None) -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("score_opts", help="as one word, with a space before it")
    print(*read_options(parser.parse_args(cmd).score_opts.strip()), sep="\n")


if __name__ == "__main__":
    with one_line_errors("score_options.py"):
        main()
