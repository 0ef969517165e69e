"""Turn a pre-trained checkpoint into one that stock ESPnet loads.

Writes ``config.yaml`` and a ``.pth`` that need nothing of this package, and prints how an
ASR model starts from them: the parts of its config, and what ``asr.sh`` or ``asr_train``
is to be given. Or an ASR config takes the whole model as its front end:

    frontend: espnet_ssl
    frontend_conf: {frontend_conf: {path_or_url: DIR/NAME.pth}}
    normalize: null
    encoder: null

``--format huggingface`` writes a folder for transformers instead, of a wav2vec 2.0 or
HuBERT that :mod:`espnet_atm.bin.import_ssl` made a config of. Stock ESPnet, which has no
such encoder itself, takes the folder as ``frontend: huggingface``.

What only pre-training needs, losses and masks, is left out; for Hugging Face the mask's
embedding and the heads of wav2vec 2.0 are kept. The ``conv2d`` preencoder becomes the
encoder's own ``input_layer: conv2d``, which has the same weights, and zeros for the
channels that a narrower preencoder lacks.

The model must be the config's to the last weight. Files in the output folder that are
not an earlier export's of the same run are never overwritten; ``exported.json`` there
says which are.
"""

import argparse
import logging
from pathlib import Path

from espnet_atm.errors import one_line_errors
from espnet_atm.export import for_espnet, for_transformers, read_run, write_export


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ssl_train_config", required=True, help="config.yaml")
    parser.add_argument("--ssl_model_file", required=True, help=".pth of the same run")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--format", choices=("espnet", "huggingface"), default="espnet")
    return parser


def main(cmd=None) -> None:
    """Read, convert, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    config, state = read_run(args.ssl_train_config, args.ssl_model_file)
    folder = Path(args.output_dir)
    if args.format == "huggingface":
        what = folder
        made = for_transformers(config, state, folder)
    else:
        what = folder / Path(args.ssl_model_file).resolve().name
        made = for_espnet(config, state, what)
    write_export(folder, Path(args.ssl_train_config).parent, made.files)
    left_out = len(state) - made.tensors
    logging.info(f"{what}: {made.tensors} tensors, {left_out} of pre-training left out")
    print(made.start)


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.export_ssl"):
        main()
