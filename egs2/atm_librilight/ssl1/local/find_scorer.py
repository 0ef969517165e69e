#!/usr/bin/env python3
"""Find a scorer by its tag, folder or packed file; print a checksum and where it is.

Three lines: the checksum, 8 letters; the weights and the config of an ESPnet model, or the
folder of one of Hugging Face's and an empty line.
"""

import argparse
import contextlib
import hashlib
import sys

from espnet_atm.errors import one_line_errors
from espnet_atm.scorers.find import HELP, find_scorer


def main(cmd=None) -> None:
    """Download, unless it was before, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scorer", help=HELP)
    parser.add_argument("--lang")
    parser.add_argument("--task")
    args = parser.parse_args(cmd)
    with contextlib.redirect_stdout(sys.stderr):
        source = find_scorer(args.scorer, lang=args.lang, task=args.task)
        found = source.fingerprint()
    sums = f"{found['config']} {found['model']}"
    print(hashlib.sha256(sums.encode()).hexdigest()[:8])
    print(*reversed(source.arguments), sep="\n", end="\n" * (3 - len(source.arguments)))


if __name__ == "__main__":
    with one_line_errors("--scorer_tag"):
        main()
