#!/usr/bin/env python3
"""Get a published ESPnet ASR model, and print its config and its weights, a line each."""

import argparse
import contextlib
import sys

from espnet_model_zoo.downloader import ModelDownloader


def main() -> None:
    """Download, unless it was before, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tag", help="name in the model zoo or on Hugging Face, URL, or packed file"
    )
    tag = parser.parse_args().tag
    with contextlib.redirect_stdout(sys.stderr):
        files = ModelDownloader().download_and_unpack(tag)
    missing = [x for x in ("asr_train_config", "asr_model_file") if x not in files]
    if missing:
        sys.exit(f"{tag} is no ASR model: it has no {missing[0]}, only {sorted(files)}")
    print(files["asr_train_config"])
    print(files["asr_model_file"])


if __name__ == "__main__":
    main()
