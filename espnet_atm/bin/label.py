"""Label each frame of a corpus by the nearest cluster: HuBERT's pseudo-labels.

Writes into ``--output_dir``

- ``labels.scp``, ``labels.bin``: 2 bytes a frame, which training reads as
  ``DIR/labels.scp,text,pseudo_labels``, without a token list;
- ``labeller``: what made them, and when the frames are; others are not mixed in;
- ``skipped``: utterances without labels, and why.

With ``--ssl_config`` there is a label for each encoder frame of the model that is to be
trained: the cluster of the feature frame nearest in time. Without, for each feature frame.

Run it again after any end, and it goes on where it was.
"""

import argparse
import logging
import sys
from pathlib import Path

from espnet_atm.bin.learn_kmeans import add_options, find_dataset, find_features
from espnet_atm.devices import device_of
from espnet_atm.errors import UserError, one_line_errors, telling_full_disk
from espnet_atm.values import whole


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--km_path", required=True, help="of espnet_atm.bin.learn_kmeans, or ESPnet's"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--ssl_config", help="of the model that is to be trained, whose frames get labels"
    )
    parser.add_argument(
        "--max_skipped",
        type=int,
        default=0,
        help="more skipped utterances than this end with exit code 1",
    )
    return parser


def label_all(args: argparse.Namespace) -> int:
    """Label what is not labelled yet; return how many utterances have no labels."""
    from espnet_atm.corpus import Settings  # slow
    from espnet_atm.kmeans import Kmeans
    from espnet_atm.labelling import label_corpus
    from espnet_atm.labels import MOST_LABELS, LabelWriter

    whole("max_skipped", args.max_skipped, least=0, most=2**31)
    device = device_of(args)
    kmeans = Kmeans(args.km_path, device)
    whole(f"{args.km_path}: clusters", len(kmeans), most=MOST_LABELS)
    features = find_features(args, device)
    frames = features.grid
    if args.ssl_config is not None:
        settings = Settings.read(args.ssl_config)
        frames = settings.encoder
        if settings.fs != features.sampling_rate:
            raise UserError(
                f"{args.ssl_config}: frontend_conf.fs is {settings.fs}, and the features "
                f"are of audio at {features.sampling_rate} Hz"
            )
    dataset = find_dataset(args, features.sampling_rate)
    labeller = {
        **features.describe(),
        "kmeans": kmeans.digest,
        "num_classes": len(kmeans),
        "frame_shift": frames.shift,
        "frame_offset": frames.offset,
        "sampling_rate": features.sampling_rate,
    }
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with LabelWriter(output_dir, dataset.utterances, labeller) as writer:
        logging.info(
            f"{len(dataset)} utterances, {writer.records} of them labelled already"
        )
        label_corpus(features, kmeans, frames, dataset, writer, args.num_workers)
        logging.info(f"{writer.records} labelled, {writer.skipped} skipped")
    return writer.skipped


def main(cmd=None) -> None:
    """Label; exit with 1 when more than ``--max_skipped`` utterances had to be left."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    with telling_full_disk(f"{args.output_dir}: labels"):
        skipped = label_all(args)
    if skipped > args.max_skipped:
        sys.exit(
            f"{skipped} utterances have no labels (see {args.output_dir}/skipped), more "
            f"than --max_skipped {args.max_skipped}"
        )


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.label"):
        main()
