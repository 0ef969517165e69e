"""Turn a pre-trained checkpoint into one that stock ESPnet loads.

Writes ``config.yaml`` and a ``.pth`` that need nothing of this package: use them with
``--init_param DIR/NAME.pth:encoder:encoder`` (or ``asr.sh --pretrained_model``), or with
``frontend: espnet_ssl`` and ``frontend_conf: {path_or_url: DIR/NAME.pth}``.

What only pre-training needs, losses and masks, is left out. The ``conv2d`` preencoder
becomes the encoder's own ``input_layer: conv2d``, which has the same weights.
"""

import argparse
import logging
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
import yaml

from espnet_atm.preencoder import check_encoder

MODEL_KEYS = (
    "token_list",
    "input_size",
    "num_classes",
    "frontend",
    "frontend_conf",
    "specaug",
    "specaug_conf",
    "normalize",
    "normalize_conf",
    "preencoder",
    "preencoder_conf",
    "encoder",
    "encoder_conf",
    "model",
    "model_conf",
)
# Parameters of pre-training only.
DROPPED = ("losses.", "util_modules.")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ssl_train_config", required=True, help="config.yaml")
    parser.add_argument("--ssl_model_file", required=True, help=".pth of the same run")
    parser.add_argument("--output_dir", required=True)
    return parser


def export(
    config: Dict[str, Any], state: Dict[str, torch.Tensor]
) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor]]:
    """Config and weights for stock ESPnet.

    Args:
        config: of the training run, as ESPnet wrote it.
        state: its model's ``state_dict``.

    Raises:
        ValueError: when the config is not that of an SSL model, or an encoder cannot
            take the preencoder in.
    """
    missing = [
        key for key in ("token_list", "encoder", "frontend") if key not in config
    ]
    if missing:
        raise ValueError(f"the config has no {', '.join(missing)}: not an SSL run's")
    new = {key: config[key] for key in MODEL_KEYS if key in config}
    # Weights are loaded, not drawn; and ESPnet knows neither our losses nor our masks.
    new.update(init=None, loss=[], util=[])
    state = {k: v for k, v in state.items() if not k.startswith(DROPPED)}
    if config.get("preencoder") == "conv2d":
        check_encoder(config["encoder"], config["encoder_conf"])
        encoder_conf = {**config["encoder_conf"], "input_layer": "conv2d"}
        new.update(preencoder=None, preencoder_conf={}, encoder_conf=encoder_conf)
        state = {
            # encoder.embed.0 is the positional encoding, here and there
            k.replace("preencoder.embed.", "encoder.embed.", 1).replace(
                "encoder.embed.0.", "encoder.embed.pos_enc.", 1
            ): v
            for k, v in state.items()
        }
    return new, state


def main(cmd=None) -> None:
    """Read, convert, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with open(args.ssl_train_config, encoding="utf-8") as f:
        config = yaml.safe_load(f)
    state = torch.load(args.ssl_model_file, map_location="cpu", weights_only=True)
    try:
        config, exported = export(config, state)
    except ValueError as e:
        raise ValueError(f"{args.ssl_train_config}: {e}") from None
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / "config.yaml").open("w", encoding="utf-8") as f:
        yaml.safe_dump(config, f, sort_keys=False)
    file = output_dir / Path(args.ssl_model_file).resolve().name
    partial = file.with_name(file.name + ".partial")
    torch.save(exported, partial)
    partial.replace(file)
    logging.info(
        f"{file}: {len(exported)} tensors, {len(state) - len(exported)} of pre-training "
        "left out"
    )


if __name__ == "__main__":
    main()
