#!/usr/bin/env python3
"""Write the config of fine-tuning: an ASR config with a pre-trained model's encoder.

Prints what asr.sh is to be given as --pretrained_model.
"""

import argparse
from pathlib import Path

import yaml

# What the pre-trained weights are made for.
PARTS = ("frontend", "preencoder", "encoder")


def main(cmd=None) -> None:
    """Read, merge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asr_config", type=Path, required=True)
    parser.add_argument(
        "--ssl_config", type=Path, required=True, help="of espnet_atm.bin.export_ssl"
    )
    parser.add_argument("--ssl_model", required=True, help="the .pth beside it")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(cmd)
    config = yaml.safe_load(args.asr_config.read_text(encoding="utf-8"))
    exported = yaml.safe_load(args.ssl_config.read_text(encoding="utf-8"))
    for part in PARTS:
        config[part] = exported.get(part)
        config[f"{part}_conf"] = exported.get(f"{part}_conf") or {}
    if config["preencoder"] is not None:
        # The SSL task finds it out; the ASR task wants to be told.
        from espnet2.tasks.asr import frontend_choices  # slow, and seldom needed

        frontend = frontend_choices.get_class(config["frontend"])
        size = frontend(**config["frontend_conf"]).output_size()
        config["preencoder_conf"]["input_size"] = size
    args.output.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    # Log-mel energies have nothing to learn.
    learned = [x for x in PARTS if config[x] not in (None, "default")]
    print(*(f"{args.ssl_model}:{part}:{part}" for part in learned))


if __name__ == "__main__":
    main()
