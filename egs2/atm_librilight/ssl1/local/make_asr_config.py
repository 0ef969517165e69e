#!/usr/bin/env python3
"""Write the config of fine-tuning: an ASR config with a pre-trained model's encoder.

Prints what asr.sh is to be given as --pretrained_model.
"""

import argparse
from pathlib import Path

import yaml

from espnet_atm.export import asr_parts, huggingface_parts, init_params


def main(cmd=None) -> None:
    """Read, merge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asr_config", type=Path, required=True)
    parser.add_argument("--ssl_config", type=Path, help="of espnet_atm.bin.export_ssl")
    parser.add_argument("--ssl_model", help="the .pth beside it")
    parser.add_argument("--huggingface", help="or the folder of --format huggingface")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(cmd)
    config = yaml.safe_load(args.asr_config.read_text(encoding="utf-8"))
    if args.huggingface:
        config.update(huggingface_parts(args.huggingface))
        words = []  # the front end loads the folder itself
    else:
        exported = yaml.safe_load(args.ssl_config.read_text(encoding="utf-8"))
        config.update(asr_parts(exported))
        words = init_params(exported, args.ssl_model)
    args.output.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    print(*words)


if __name__ == "__main__":
    main()
