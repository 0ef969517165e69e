#!/usr/bin/env python3
"""Refuse configs that do not fit the sampling rate of the audio.

Their front ends are in samples: at another rate, frames would have another length.
"""

import argparse
import json
import math
from pathlib import Path

import humanfriendly

from espnet_atm.errors import UserError, one_line_errors, read_config

RATE = 16000  # Hz, where a config says nothing, as in ESPnet
LABEL_RATE = 100  # labels a second that perform_kmeans.sh makes of MFCC, at any rate
# Of conv2d, ESPnet's, x4.
PREENCODER_STRIDE = {None: 1, "linear": 1, "conv2d": 4}
# ESPnet's defaults.
HOP_LENGTH = 128
CNN_SHAPES = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]


def check_rate(file: Path, config: dict, fs: int) -> None:
    """Refuse a config for another sampling rate.

    Raises:
        UserError: naming the file and both rates in Hz.
    """
    conf = config.get("frontend_conf") or {}
    try:
        rate = humanfriendly.parse_size(str(conf.get("fs", RATE)))
    except humanfriendly.InvalidSize:
        raise UserError(f"{file}: frontend_conf.fs: {conf['fs']!r} is no rate") from None
    if rate != fs:
        raise UserError(
            f"{file}: its front end is for audio of {rate} Hz (frontend_conf.fs), and "
            f"--fs is {fs} Hz: leave out --fs, which resamples in stage 3, or give a "
            f"config with fs: {fs} and windows and hops in samples of it"
        )


def check_labels(file: Path, config: dict, fs: int) -> None:
    """Refuse a HuBERT config whose frames are not as long as it says in labels of 10 ms.

    Stage 8 makes one label a frame, whatever it says; ESPnet's scripts make those.

    Raises:
        UserError: naming the file and both lengths.
    """
    losses = config.get("loss") or []
    if not any(isinstance(x, dict) and x.get("name") == "hubert" for x in losses):
        return
    conf = config.get("frontend_conf") or {}
    frontend, preencoder = config.get("frontend", "default"), config.get("preencoder")
    if frontend in ("wav2vec_cnn", "wav2vec2_cnn"):
        hop = math.prod(stride for *_, stride in conf.get("shapes", CNN_SHAPES))
    elif frontend == "default":
        hop = conf.get("hop_length", HOP_LENGTH)
    else:
        return  # training knows its frames, or refuses
    if preencoder not in PREENCODER_STRIDE:
        return
    shift = hop * PREENCODER_STRIDE[preencoder]
    labels = (config.get("collate_fn_conf") or {}).get("label_downsampling", 1)
    if labels != 1 and shift * LABEL_RATE != labels * fs:
        raise UserError(
            f"{file}: a frame takes {shift} samples of {fs} Hz, {1000 * shift / fs:g} ms,"
            f" but label_downsampling: {labels} makes one pseudo-label of "
            f"{1000 * labels / LABEL_RATE:g} ms: change hop_length or label_downsampling"
        )


def check_kind(file: Path, config: dict, ssl: bool) -> None:
    """Refuse a config of the other task.

    Raises:
        UserError: naming the file and what tells.
    """
    of_ssl = "loss" in config or "ssl_conf" in config
    if ssl and not of_ssl:
        raise UserError(f"{file}: is no SSL config: it has no loss")
    if of_ssl and not ssl:
        raise UserError(f"{file}: is an SSL config, with a loss, and no ASR config")


def front_end(config: dict) -> str:
    """What ESPnet's statistics depend on, of a config."""
    names = ("input_size", "frontend", "frontend_conf", "specaug", "normalize")
    return json.dumps([config.get(x) for x in names], sort_keys=True, default=str)


def frames(config: dict, *more: str) -> str:
    """What the encoder's frames depend on, of an SSL config, and more of it."""
    names = ("input_size", "frontend", "frontend_conf", "preencoder", "preencoder_conf")
    return json.dumps(
        [config.get(x) for x in (*names, *more)], sort_keys=True, default=str
    )


def guidance(config: dict) -> str:
    """What the figures of stage 7 depend on, of an SSL config."""
    return frames(config, "ssl_conf")


def settings(config: dict, prefix: str = "") -> list[str]:
    """What makes a training another one, of its config: lines of ``name: value``.

    Epochs and seed are options of the recipe.
    """
    lines = []
    for name, value in config.items():
        if isinstance(value, dict) and value:
            lines += settings(value, f"{prefix}{name}.")
        elif prefix or name not in ("max_epoch", "seed"):
            lines.append(f"{prefix}{name}: {json.dumps(value, default=str)}")
    return sorted(lines)


def main(cmd=None) -> None:
    """Check all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fs", type=int, help="of the audio, in Hz")
    parser.add_argument("--ssl_config", type=Path)
    parser.add_argument("--asr_configs", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--front_end", type=Path, help="print what statistics depend on, of this config"
    )
    parser.add_argument(
        "--guidance", type=Path, help="print what stage 7 depends on, of this config"
    )
    parser.add_argument(
        "--frames", type=Path, help="print what pseudo-labels depend on, of this config"
    )
    parser.add_argument(
        "--settings", type=Path, help="print what makes another training, of this config"
    )
    args = parser.parse_args(cmd)
    if args.settings:
        print("\n".join(settings(read_config(args.settings))))
        return
    if args.front_end:
        print(front_end(read_config(args.front_end)))
        return
    if args.frames:
        print(frames(read_config(args.frames)))
        return
    if args.guidance:
        print(guidance(read_config(args.guidance)))
        return
    config = read_config(args.ssl_config)
    check_kind(args.ssl_config, config, ssl=True)
    check_rate(args.ssl_config, config, args.fs)
    check_labels(args.ssl_config, config, args.fs)
    for file in args.asr_configs:
        config = read_config(file)
        check_kind(file, config, ssl=False)
        check_rate(file, config, args.fs)


if __name__ == "__main__":
    with one_line_errors("check_configs.py"):
        main()
