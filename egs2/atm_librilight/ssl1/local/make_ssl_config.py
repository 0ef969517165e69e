#!/usr/bin/env python3
"""Write a run's SSL config, named by its settings, and print the file's path.

Options that are empty keep what ``--config`` says, or the default of ``ssl_conf``.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import yaml

from espnet_atm.config import MASKERS, SSLConf

MOST = 180  # characters of a name: fine-tuning's is longer, and a file's has 255


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--masker", default="")
    parser.add_argument("--mask_ratio", default="")
    parser.add_argument("--span", default="")
    parser.add_argument("--strategy", default="")
    parser.add_argument("--sharpness", default="", help="of the strategy's draws")
    parser.add_argument("--exact", default="", help="cut the last span of each row")
    parser.add_argument(
        "--validation_masker", default="", help="of validation: NAME=VALUE ..."
    )
    parser.add_argument("--loss_scale", default="")
    parser.add_argument("--frame_prob", default="", help="of --loss_scale frame")
    parser.add_argument("--num_classes", default="", help="of the HuBERT loss")
    parser.add_argument(
        "--km_portion", default="", help="of the pseudo-labels; for the name only"
    )
    parser.add_argument("--name_part", default="", help="of what no config says")
    return parser


def given_masker(words: str) -> dict:
    """``NAME=VALUE ...`` as ``ssl_conf.validation_masker`` has it."""
    found = {}
    for word in words.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(
                f"--validation_masker {words}: write e.g. strategy=random mask_ratio=0.49"
            )
        found[name] = yaml.safe_load(value)
    return found


def masks_part(what: str, masking: dict) -> str:
    """What a name says of masks, the arguments of ``sample_span_mask``."""
    part = f"_{what}_{masking['mask_ratio']:g}"
    if masking["strategy"] != "topk":  # which masks single frames
        part += f"x{masking['span']}"
    if masking["exact"]:
        part += "_exact"
    if masking["sharpness"] != 1:
        part += f"_sharp{masking['sharpness']:g}"
    return part


def make_config(args: argparse.Namespace) -> tuple[str, dict]:
    """The run's name and its config."""
    with args.config.open(encoding="utf-8") as f:
        config = yaml.safe_load(f)
    ssl_conf = dict(config.get("ssl_conf") or {})
    masker_conf = dict(ssl_conf.get("masker_conf") or {})
    for name in ("mask_ratio", "span", "strategy", "sharpness", "exact"):
        value = getattr(args, name)
        if value:
            masker_conf[name] = yaml.safe_load(value)
    if args.strategy == "topk" and not args.span:
        masker_conf.pop("span", None)  # the config's: it would have no part
    for name in ("masker", "loss_scale"):
        if getattr(args, name):
            ssl_conf[name] = getattr(args, name)
    ssl_conf["masker_conf"] = masker_conf
    if args.frame_prob:
        scale_conf = dict(ssl_conf.get("loss_scale_conf") or {})
        scale_conf["frame_prob"] = yaml.safe_load(args.frame_prob)
        ssl_conf["loss_scale_conf"] = scale_conf
    if args.validation_masker:
        ssl_conf["validation_masker"] = given_masker(args.validation_masker)
    conf = SSLConf.parse(ssl_conf)
    # Written out, so that a default and the same value given are one run.
    masker_conf.update(mask_ratio=conf.mask_ratio, span=conf.span)
    masker_conf["sharpness"] = conf.sharpness
    if conf.sharpness == 1:
        del masker_conf["sharpness"]
    if not conf.exact:
        masker_conf.pop("exact", None)
    if conf.strategy == "topk":  # masks single frames
        del masker_conf["span"]
    if conf.validation_masker is not None:
        ssl_conf["validation_masker"] = dict(conf.validation_masker)
        if conf.validation_masker["strategy"] == "topk":
            del ssl_conf["validation_masker"]["span"]
    if conf.masker == "atm":
        masker_conf["strategy"] = conf.strategy
    config["ssl_conf"] = ssl_conf
    name = args.config.resolve().stem.removeprefix("train_")
    for masker in MASKERS:  # named below, as it is now
        name = name.removesuffix(f"_{masker}")
    for loss in config.get("loss") or []:
        if loss["name"] == "hubert":
            loss_conf = loss.setdefault("conf", {})
            if args.num_classes:
                loss_conf["num_classes"] = int(args.num_classes)
            if "num_classes" not in loss_conf:
                raise ValueError("the loss hubert has no num_classes; write how many")
            name += f"_km{loss_conf['num_classes']}"
            name += f"_portion{args.km_portion}" if args.km_portion else ""
    strategy = "" if conf.masker == "random" else f"_{conf.strategy}"
    name += masks_part(f"{conf.masker}{strategy}", conf.masking())
    if conf.loss_scale != "none":
        name += f"_scale_{conf.loss_scale}{args.frame_prob}"
    if conf.validation_masker is not None:
        name += masks_part(
            f"valid_{conf.validation_masker['strategy']}", conf.validation_masker
        )
    name += args.name_part
    if len(name) > MOST:
        digest = hashlib.md5(name.encode()).hexdigest()
        name = f"{name[: MOST - 9]}_{digest[:8]}"
    return name, config


def main() -> None:
    """Write the config and print its path."""
    args = get_parser().parse_args()
    try:
        name, config = make_config(args)
    except ValueError as e:
        sys.exit(f"{args.config} with the given options: {e}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
