"""Learn the clusters of pseudo-labels from a part of a corpus.

The features are MFCC, as in HuBERT's first iteration, or of a layer of a pre-trained model,
as in its later ones. They are extracted into a file beside ``--km_path``, where a run that
was stopped goes on, and which is removed at the end; in memory are no more than they.

``--km_path`` is what ESPnet's ``learn_kmeans.py`` writes. ``espnet_atm.bin.label`` labels
by it.
"""

import argparse
import logging
from pathlib import Path

from espnet_atm.audio import AudioDataset
from espnet_atm.devices import add_device_options, device_of
from espnet_atm.errors import UserError, one_line_errors, telling_full_disk
from espnet_atm.track import MOST
from espnet_atm.values import MOST_CODES, whole

RATE = 16000  # Hz, where nothing says another
MIN_RATE = 4000  # whose MFCC have what they are named for


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--km_path", required=True, help="where the clusters go")
    parser.add_argument("--num_clusters", type=int, required=True)
    parser.add_argument(
        "--portion", type=float, default=0.1, help="of the utterances (0.1)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of utterances and clusters (0)"
    )
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is read, and the features of it."""
    parser.add_argument("--wav_scp", required=True)
    parser.add_argument("--segments", help="Kaldi's, when recordings are cut by it")
    parser.add_argument("--fs", type=int, help=f"of MFCC, in Hz ({RATE})")
    parser.add_argument("--ssl_train_config", help="instead: config.yaml of an SSL run,")
    parser.add_argument("--ssl_model_file", help="its weights,")
    parser.add_argument("--layer", type=int, help="and the layer, from 1")
    add_device_options(parser)
    parser.add_argument(
        "--num_workers", type=int, default=1, help="processes that read audio (1)"
    )


def find_features(args: argparse.Namespace, device: str):
    """The features that the command line names.

    Raises:
        UserError: naming the option that is missing or impossible.
    """
    from espnet_atm.features import Layer, Mfcc  # slow

    whole("num_workers", args.num_workers, least=0, most=MOST_CODES)
    model = args.ssl_train_config, args.ssl_model_file, args.layer
    if model == (None, None, None):
        return Mfcc(whole("fs", RATE if args.fs is None else args.fs, least=MIN_RATE, most=MOST))
    if None in model:
        raise UserError(
            "the layer: give --ssl_train_config, --ssl_model_file and --layer, or none of "
            "them for MFCC"
        )
    features = Layer(*model, device)
    if args.fs not in (None, features.sampling_rate):
        raise UserError(f"fs: {args.fs} is not {features.sampling_rate}, the model's")
    return features


def find_dataset(args: argparse.Namespace, sampling_rate: int) -> AudioDataset:
    """The utterances that the command line names.

    Raises:
        UserError: when there are none.
    """
    segments = None if args.segments is None else Path(args.segments)
    dataset = AudioDataset(Path(args.wav_scp), sampling_rate, segments)
    if not len(dataset):
        raise UserError(f"{dataset.utterances.path} is empty: it has no utterances")
    return dataset


def main(cmd=None) -> None:
    """Extract, learn, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    from espnet_atm.labels import MOST_LABELS  # slow

    whole("num_clusters", args.num_clusters, most=MOST_LABELS)
    whole("seed", args.seed, least=0, most=2**32 - 1)
    if not 0 < args.portion <= 1:
        raise UserError(f"portion: {args.portion} is not above 0 and at most 1")
    from espnet_atm.kmeans import learn_kmeans
    from espnet_atm.labelling import Sample

    features = find_features(args, device_of(args))
    dataset = find_dataset(args, features.sampling_rate)
    model_file = Path(args.km_path)
    model_file.parent.mkdir(parents=True, exist_ok=True)
    sample = Sample(model_file, features, dataset, args.portion, args.seed)
    with telling_full_disk(f"{model_file}: features and clusters"), sample:
        found = sample.collect(args.num_workers)
        learn_kmeans(found, args.num_clusters, model_file, args.seed)
        sample.remove()


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.learn_kmeans"):
        main()
