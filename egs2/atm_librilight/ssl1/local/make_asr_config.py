#!/usr/bin/env python3
"""Write the config of fine-tuning: an ASR config with a pre-trained model's encoder."""

import argparse
from pathlib import Path

import yaml

# What the pre-trained weights are made for.
ENCODER_KEYS = ("frontend", "frontend_conf", "encoder", "encoder_conf")


def main(cmd=None) -> None:
    """Read, merge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asr_config", type=Path, required=True)
    parser.add_argument(
        "--ssl_config", type=Path, required=True, help="of espnet_atm.bin.export_ssl"
    )
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(cmd)
    config = yaml.safe_load(args.asr_config.read_text(encoding="utf-8"))
    exported = yaml.safe_load(args.ssl_config.read_text(encoding="utf-8"))
    config.update({key: exported[key] for key in ENCODER_KEYS})
    args.output.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
