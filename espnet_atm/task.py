"""ESPnet's SSL task with ``ssl_conf``."""

import argparse
import itertools
import json
import logging
from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Tuple

import espnet2.tasks.ssl
import humanfriendly
import numpy as np
import torch
from espnet2.ssl.espnet_model import ESPnetSSLModel
from espnet2.tasks.ssl import (
    SSLTask,
    frontend_choices,
    loss_choices,
    preencoder_choices,
)
from espnet2.train.dataset import ESPnetDataset
from espnet2.utils.nested_dict_action import NestedDictAction
from typeguard import typechecked

from espnet_atm.collate import SyncedCollateFn
from espnet_atm.config import (
    SCORER_FILES,
    TRACK,
    SSLConf,
    find_track,
)
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid, frontend_layers, subsampling_layers
from espnet_atm.losses.best_rq import BestRQLoss
from espnet_atm.losses.hubert import HuBERTLoss
from espnet_atm.losses.w2v_bert import W2vBertLoss
from espnet_atm.losses.wav2vec2 import Wav2Vec2Loss
from espnet_atm.model import ATMSSLModel
from espnet_atm.preencoder import Conv2dPreEncoder, check_encoder
from espnet_atm.track import read_track_grid
from espnet_atm.trainer import WholeFiles

# Utterances of each set that are looked at before training begins.
TRIED = 8

# Registered for everyone: without ssl_conf the loss hubert is ESPnet's own, and the
# others, with the preencoder, are choices more.
loss_choices.classes["hubert"] = HuBERTLoss
OWN_LOSSES = {"wav2vec2": Wav2Vec2Loss, "w2v_bert": W2vBertLoss, "best_rq": BestRQLoss}
loss_choices.classes.update(OWN_LOSSES)
preencoder_choices.classes["conv2d"] = Conv2dPreEncoder


def encoder_grid(args: argparse.Namespace) -> FrameGrid:
    """The frames that ``args`` masks: what front end and preencoder put out.

    Raises:
        UserError: when their frame times are not known.
    """
    if args.input_size is not None:
        raise UserError(
            f"ssl_conf needs audio, to know when a frame happens: input_size: "
            f"{args.input_size} reads features; write input_size: null and a frontend"
        )
    with torch.device("meta"):  # shapes only
        frontend = frontend_choices.get_class(args.frontend)(**args.frontend_conf)
        layers = frontend_layers(frontend)
        if args.preencoder == "conv2d":
            check_encoder(args.encoder, args.encoder_conf)
            conf = {"input_size": frontend.output_size(), **args.preencoder_conf}
            layers += subsampling_layers(Conv2dPreEncoder(**conf))
        elif args.preencoder not in (None, "linear"):
            raise UserError(
                f"preencoder: {args.preencoder} has frame times that are not known; "
                "write conv2d, linear or null"
            )
    return FrameGrid.from_layers(layers)


def sampling_rate(args: argparse.Namespace) -> int:
    """Of the audio, in Hz."""
    return humanfriendly.parse_size(str(args.frontend_conf.get("fs", 16000)))


class ATMSSLTask(WholeFiles, SSLTask):
    """ESPnet's SSL task; with ``ssl_conf``, masks and loss weights follow confidence."""

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        """Add ``--ssl_conf`` to ESPnet's arguments."""
        super().add_task_arguments(parser)
        # Asked for in main_worker, when a loss has labels to read.
        parser.get_default("required").remove("token_list")
        parser.add_argument(
            "--ssl_conf",
            action=NestedDictAction,
            default=dict(),
            help="Ask2Mask: masker, masker_conf, loss_scale, loss_scale_conf, scorer, "
            "track_conf, crop_seconds. "
            "Without it, ESPnet's own masking.",
        )

    @classmethod
    @typechecked
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        return super().optional_data_names(train, inference) + (TRACK,)

    @classmethod
    @typechecked
    def main_worker(cls, args: argparse.Namespace):
        """Refuse what cannot train before anything is built or written."""
        cls.check_labels(args)
        if args.ssl_conf:
            cls.check_ssl_conf(args)
        super().main_worker(args)

    @classmethod
    def check_labels(cls, args: argparse.Namespace) -> None:
        """Ask for labels and their token list only where a loss reads them.

        Raises:
            UserError: naming the option that is missing, or not wanted.
        """
        args.token_list = args.token_list or None  # ssl.sh gives "" for none
        needing = [x["name"] for x in args.loss if x["name"] not in OWN_LOSSES]
        if needing and args.token_list is None:
            raise UserError(
                f"the loss {needing[0]} reads labels: give their --token_list"
            )
        for mode in ("train", "valid"):
            option = f"{mode}_data_path_and_name_and_type"
            names = [name for _, name, _ in getattr(args, option)]
            if needing and "text" not in names and not args.collect_stats:
                raise UserError(
                    f"the loss {needing[0]} reads labels, and --{option} names none: "
                    f"add --{option} FILE,text,text"
                )
            if args.token_list is None and "text" in names:
                raise UserError(
                    f"--{option} names labels, which no loss reads: leave them out, or "
                    "give their --token_list"
                )
        if args.token_list is None:
            args.token_list = []

    @classmethod
    @typechecked
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Optional[Callable[[str, Dict[str, np.ndarray]], Dict[str, np.ndarray]]]:
        """ESPnet's, which reads no labels when there is no token list."""
        if not args.token_list:
            args = argparse.Namespace(**{**vars(args), "token_type": None})
        return super().build_preprocess_fn(args, train)

    @classmethod
    def check_ssl_conf(cls, args: argparse.Namespace) -> None:
        """Try the settings on the first utterances of each set.

        Raises:
            UserError: on impossible settings, on a missing track, and on labels or
                confidence that do not fit the audio.
        """
        conf = SSLConf.parse(args.ssl_conf)
        encoder_grid(args)
        for name in SCORER_FILES if conf.scorer else ():
            if not Path(conf.scorer[name]).is_file():
                raise UserError(
                    f"ssl_conf.scorer.{name}: no such file: {conf.scorer[name]}"
                )
        for mode in ("train", "valid"):
            option = f"{mode}_data_path_and_name_and_type"
            if conf.needs_track:
                find_track(getattr(args, option), option)
            elif conf.scorer and any(x[1] == TRACK for x in getattr(args, option)):
                raise UserError(
                    f"ssl_conf.scorer and --{option} both give confidences: leave one out"
                )
            if mode == "train" and args.multiple_iterator:
                continue  # the paths are folders of parts
            dataset = ESPnetDataset(
                getattr(args, option), preprocess=cls.build_preprocess_fn(args, False)
            )
            collate = cls.build_collate_fn(args, train=False)
            for utt in itertools.islice(dataset.loader_dict["speech"], TRIED):
                collate([dataset[utt]])

    @classmethod
    @typechecked
    def build_collate_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[
        [Collection[Tuple[str, Dict[str, np.ndarray]]]],
        Tuple[List[str], Dict[str, torch.Tensor]],
    ]:
        """Collate as ESPnet does, or in step with the encoder's frames."""
        stock = super().build_collate_fn(args, train)
        if not args.ssl_conf:
            return stock
        grid = encoder_grid(args)
        conf = SSLConf.parse(args.ssl_conf)
        crop = conf.crop_seconds
        return SyncedCollateFn(
            stock,
            grid,
            cls.track_grid(args, grid),
            conf.smooth,
            conf.energy_gate,
            None if crop is None else round(crop * sampling_rate(args)),
        )

    @classmethod
    def track_grid(
        cls, args: argparse.Namespace, grid: FrameGrid
    ) -> Optional[FrameGrid]:
        """The time grid of the confidence that the data options name, if any.

        ESPnet collects the statistics of both sets with ``train=False``, so both must
        be on one grid.
        """
        paths = {
            mode: path
            for mode in ("train", "valid")
            for path, name, _ in getattr(args, f"{mode}_data_path_and_name_and_type")
            if name == TRACK
        }
        grids = {
            mode: read_track_grid(path, sampling_rate(args), grid)
            for mode, path in paths.items()
        }
        files = [Path(path).parent / "scorer" for path in paths.values()]
        makers = [json.loads(file.read_text()) for file in files if file.is_file()]
        if len(makers) < 2:  # made by hand, or one set only
            makers = [{}, {}]
        first, second = makers
        differ = [x for x in first.keys() & second if first[x] != second[x]]
        if len(set(grids.values())) > 1 or differ:
            raise UserError(
                f"the confidences of the training set ({grids['train']}, {files[0]}) "
                f"and of the validation set ({grids['valid']}, {files[1]}) come from "
                f"different scorers or measures{': ' * bool(differ)}"
                f"{', '.join(sorted(differ))}; score both alike"
            )
        return next(iter(grids.values()), None)

    @classmethod
    @typechecked
    def build_model(cls, args: argparse.Namespace) -> ESPnetSSLModel:
        """Build ESPnet's model and, with ``ssl_conf``, hand it to ours."""
        ssl_conf = getattr(args, "ssl_conf", None)  # not in configs of stock ESPnet
        own = [x["name"] for x in args.loss if x["name"] in OWN_LOSSES]
        if own and not ssl_conf:
            raise UserError(
                f"the loss {own[0]} needs ssl_conf, because ESPnet's own masking "
                "overwrites what the loss is to find again; write ssl_conf: masker: "
                "random, or atm"
            )
        model = super().build_model(args)
        if not ssl_conf:
            return model
        conf = SSLConf.parse(ssl_conf)
        logging.info(f"Ask2Mask: {conf}")
        return ATMSSLModel(model, conf, args.accum_grad, sampling_rate(args))


def install() -> None:
    """Make every user of ``espnet2.tasks.ssl.SSLTask`` get ours."""
    espnet2.tasks.ssl.SSLTask = ATMSSLTask
