#!/usr/bin/env python3
"""Refuse configs and arguments that ESPnet's training does not take.

They are read by the commands' own parsers, now and not after days of other stages.
"""

import argparse
from pathlib import Path

from espnet_atm.errors import UserError, one_line_errors

ANY = "any"  # in place of what is required and not known yet


def parse(
    parser: argparse.ArgumentParser, what: str, words: list[str]
) -> argparse.Namespace:
    """Read arguments as a command will.

    Raises:
        UserError: naming where they are from, and what is wrong.
    """

    def error(message: str) -> None:
        raise UserError(f"{what}: {message}")

    parser.error = error
    return parser.parse_args(words)


def main(cmd=None) -> None:
    """Read all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ssl_config", type=Path, required=True)
    parser.add_argument("--asr_config", type=Path, action="append", required=True)
    for name in ("ssl_args", "asr_args", "head_args"):
        parser.add_argument(f"--{name}", default="")
    args = parser.parse_args(cmd)
    # Slow: not for a wrong command line.
    from espnet_atm.task import ATMSSLTask
    from espnet_atm.transducer import ASRTask

    tasks = [(ATMSSLTask, args.ssl_config, {"--ssl_args": args.ssl_args})]
    asr_args = {"--asr_args": args.asr_args, "--head_args": args.head_args}
    tasks += [(ASRTask, x, asr_args) for x in args.asr_config]
    for task, config, more in tasks:
        command = ["--config", str(config), "--output_dir", ANY]
        parse(task.get_parser(), str(config), command)
        for name, words in more.items():
            parse(task.get_parser(), f"{name}{words}", [*command, *words.split()])


if __name__ == "__main__":
    with one_line_errors("check_arguments.py"):
        main()
