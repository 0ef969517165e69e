"""Start from a published encoder: wav2vec 2.0 or HuBERT of Hugging Face's.

Writes ``train.yaml`` and ``model.pth``, from which this package's SSL task continues to
train, and prints how. The config's loss is the model's own: ``wav2vec2`` with the heads
of pre-training, where the folder has them, or ``hubert``, whose output layer starts
random. Any other loss may take its place: then give the parts that are to be loaded,
FILE:frontend:frontend FILE:preencoder:preencoder FILE:encoder:encoder.

Batches, optimiser and ``ssl_conf`` are those of ``--base_config``, or else ESPnet's
defaults. LayerDrop is not carried over: ESPnet's transformer has none.
"""

import argparse
import logging
from pathlib import Path

import yaml

from espnet_atm.errors import UserError, one_line_errors, read_config
from espnet_atm.files import write_new


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="folder that save_pretrained wrote, or a hub's tag"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--base_config", help="what no model says is taken from it")
    parser.add_argument(
        "--num_classes",
        type=int,
        help="of HuBERT's labels (default: those of --base_config, or 500)",
    )
    parser.add_argument(
        "--label_downsampling", type=int, default=1, help="labels to a frame of 20 ms"
    )
    return parser


def main(cmd=None) -> None:
    """Read, convert, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    for option in ("num_classes", "label_downsampling"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option}: {value} is no number of at least 1")
    base = read_config(args.base_config) if args.base_config else {}
    # Imported late: help must not wait for ESPnet's imports.
    from espnet_atm.huggingface import import_model
    from espnet_atm.weights import pth_bytes

    train, weights, left_out = import_model(
        args.model, base, args.num_classes, args.label_downsampling
    )
    folder = Path(args.output_dir)
    contents = {
        "model.pth": pth_bytes(weights),
        "train.yaml": yaml.safe_dump(train, sort_keys=False).encode(),
    }
    write_new(folder, contents)
    logging.info(f"{folder / 'model.pth'}: {len(weights)} tensors of {args.model}")
    if left_out:
        logging.info(f"left out, not of pre-training: {', '.join(left_out)}")
    loss = train["loss"][0]["name"]
    if not any(k.startswith("losses.") for k in weights):
        logging.warning(f"the head of the loss {loss} is not in {args.model}: it starts random")
    print(
        "python -m espnet_atm -m espnet2.bin.ssl_train "
        f"--config {folder / 'train.yaml'} --init_param {folder / 'model.pth'} ..."
    )


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.import_ssl"):
        main()
