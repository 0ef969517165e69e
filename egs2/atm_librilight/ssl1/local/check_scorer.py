#!/usr/bin/env python3
"""Refuse a scorer that cannot score: its config, its weights, its CTC head."""

import argparse

from espnet_atm.errors import one_line_errors


def main(cmd=None) -> None:
    """Load it as scoring will."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scorer")
    parser.add_argument("--asr_train_config")
    parser.add_argument("--asr_model_file")
    parser.add_argument("--lang")
    parser.add_argument("--task")
    args = parser.parse_args(cmd)
    from espnet_atm.scorer import Scorer  # slow: not for a wrong command line

    model = args.scorer or args.asr_train_config
    Scorer.from_files(model, args.asr_model_file, lang=args.lang, task=args.task)


if __name__ == "__main__":
    with one_line_errors("--scorer_model"):
        main()
