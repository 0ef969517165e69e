"""ESPnet's SSL task with ``ssl_conf``."""

import argparse
import contextlib
import inspect
import itertools
import logging
import math
import re
import traceback
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Optional, Tuple, Union

import espnet2.tasks.ssl
import humanfriendly
import numpy as np
import torch
from espnet2.asr.frontend.cnn import CNNFrontend
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.ssl.espnet_model import ESPnetSSLModel
from espnet2.tasks.abs_task import IteratorOptions
from espnet2.tasks.ssl import (
    SSLTask,
    encoder_choices,
    frontend_choices,
    loss_choices,
    preencoder_choices,
)
from espnet2.train.dataset import ESPnetDataset
from espnet2.utils.nested_dict_action import NestedDictAction
from typeguard import typechecked

from espnet_atm.batches import numel_batches
from espnet_atm.collate import SyncedCollateFn
from espnet_atm.config import TRACK, SSLConf, find_track
from espnet_atm.data import (
    LABELS,
    LABELS_TYPE,
    LINES_TYPE,
    TRACK_TYPE,
    Crop,
    Reading,
    Stream,
    are_small,
    check_lists,
    check_not_all_zero,
    parts_of,
)
from espnet_atm.errors import UserError, read_config, read_text
from espnet_atm.frames import FrameGrid, frontend_layers, subsampling_layers
from espnet_atm.labels import read_label_grid, read_labeller
from espnet_atm.losses.best_rq import BestRQLoss
from espnet_atm.losses.hubert import HuBERTLoss
from espnet_atm.losses.w2v_bert import W2vBertLoss
from espnet_atm.losses.wav2vec2 import Wav2Vec2Loss
from espnet_atm.model import ATMSSLModel, load_scorer
from espnet_atm.preencoder import Conv2dPreEncoder, check_encoder
from espnet_atm.track import read_scorer, read_track_grid
from espnet_atm.trainer import WholeFiles
from espnet_atm.values import MOST_CODES, flag, known, mapping, one_of, whole
from espnet_atm.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2Frontend
from espnet_atm.weights import load_weights, read_weights

# Utterances of each set that are looked at before training begins.
TRIED = 8

# Registered for everyone: without ssl_conf the loss hubert is ESPnet's own, and the
# others, with front end, preencoder and encoder, are choices more.
loss_choices.classes["hubert"] = HuBERTLoss
OWN_LOSSES = {"wav2vec2": Wav2Vec2Loss, "w2v_bert": W2vBertLoss, "best_rq": BestRQLoss}
loss_choices.classes.update(OWN_LOSSES)
preencoder_choices.classes["conv2d"] = Conv2dPreEncoder
frontend_choices.classes["wav2vec2_cnn"] = Wav2Vec2Frontend
encoder_choices.classes["wav2vec2_transformer"] = Wav2Vec2Encoder


# What ESPnet's collate function reads of its options, and those with a kind to check.
COLLATE_FLAGS = ("pad", "rand_crop", "crop_audio", "mix_speech", "reverb_speech")
COLLATE_OPTIONS = COLLATE_FLAGS + (
    *("int_pad_value", "label_downsampling", "window_size", "window_shift"),
    *("noise_scp", "noise_apply_prob", "noise_db_range", "rir_scp", "rir_apply_prob"),
    *("dynamic_mixing_gain_db", "dynamic_mixing_prob"),
)


def ssl_conf(args: argparse.Namespace) -> Optional[SSLConf]:
    """The checked ``ssl_conf``; None where ESPnet is to behave as stock.

    Raises:
        UserError: on what is neither nothing nor settings.
    """
    given = getattr(args, "ssl_conf", None)  # not in configs of stock ESPnet
    # An empty list, or false, is a slip and not a wish for stock behaviour.
    return None if given is None or given == {} else SSLConf.parse(given)


@contextlib.contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Tell what ESPnet refuses in a config, by its option, as a user's mistake.

    Args:
        where: what to name when the place of the error does not tell the option.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as e:
        lines = [x.line or "" for x in traceback.extract_tb(e.__traceback__)]
        found = [re.match(r"(\w+) = \1_class\(", line) for line in lines]
        part = next((x[1] for x in found if x), None)
        part = where if part is None else part if part == "loss" else f"{part}_conf"
        raise UserError(f"{part}: {type(e).__name__}: {e}") from e


def check_choices(args: argparse.Namespace) -> None:
    """Refuse parts that the SSL task does not have: another task's, most often.

    Raises:
        UserError: naming the part, and the parts that there are.
    """
    for choice in SSLTask.class_choices_list:
        given = getattr(args, choice.name)
        if given in choice.choices() or (given is None and choice is frontend_choices):
            continue  # with input_size, no front end is wanted
        there = ", ".join(str(x or "null") for x in choice.choices())
        words = (
            f"{choice.name}: {given!r} is not known to the SSL task; write one of: {there}"
        )
        if re.search("hubert|beats", str(given)):
            words = (
                f"{choice.name}: {given!r} is of another of ESPnet's tasks "
                f"(hubert1, beats), which cannot be guided: its encoder masks by itself; "
                "write the model as in egs2/librispeech/ssl1/conf/tuning/"
                "train_hubert.yaml, which is HuBERT in the SSL task: frontend: "
                "wav2vec_cnn, preencoder: linear, encoder: transformer, model: espnet, "
                "and loss: [{name: hubert, conf: {num_classes: N}}]"
            )
        raise UserError(words)


def check_losses(losses: Any) -> None:
    """Refuse a ``loss`` that is not a list of known losses with known options.

    Raises:
        UserError: naming the loss and the option.
    """
    if not isinstance(losses, list):
        raise UserError(
            f"loss: {losses!r} is not a list; write loss: [{{name: hubert, conf: ...}}]"
        )
    for loss in losses:
        loss = mapping("loss", loss)
        known("loss", loss, ("name", "conf"))
        name = loss.get("name")
        one_of("loss: name", name, tuple(loss_choices.classes))
        conf = loss.get("conf", {})
        if conf is None:
            raise UserError(f"loss {name}: conf: is empty; write its options, or no conf")
        conf = mapping(f"loss {name}: conf", conf)
        options = _options(loss_choices.classes[name])
        known(f"loss {name}", conf, tuple(options))
        for option, needed in options.items():
            if needed and option not in conf:
                raise UserError(f"loss {name}: {option} is missing: it has no default")


def _options(loss: type) -> Dict[str, bool]:
    """The options of a loss, and whether each must be given."""
    found = {}
    for cls in loss.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        for x in parameters:
            if x.kind is x.POSITIONAL_OR_KEYWORD:
                found.setdefault(x.name, x.default is x.empty)
        if all(x.kind is not x.VAR_KEYWORD for x in parameters):
            break
    return {k: v for k, v in found.items() if k not in ("self", "encoder_output_size")}


def num_classes(args: argparse.Namespace) -> Optional[int]:
    """What all labels must be below; None where no loss reads labels."""
    classes = [
        x["conf"]["num_classes"] for x in args.loss if x["name"] not in OWN_LOSSES
    ]
    for x in classes:
        whole("loss hubert: num_classes", x, most=MOST_CODES)
    return min(classes, default=None)


def encoder_grid(args: argparse.Namespace) -> FrameGrid:
    """The frames that ``args`` masks: what front end and preencoder put out.

    Raises:
        UserError: when their frame times are not known.
    """
    if args.input_size is not None or args.frontend is None:
        given = f"input_size: {args.input_size} reads features"
        if args.input_size is None:
            given = "frontend: null makes none"
        raise UserError(
            f"ssl_conf needs features that are made of audio, to know when a frame "
            f"happens, and {given}; write input_size: null, and frontend: wav2vec_cnn "
            "with preencoder: linear, or frontend: default with preencoder: conv2d"
        )
    with torch.device("meta"), config_errors("frontend_conf"):  # shapes only
        frontend = frontend_choices.get_class(args.frontend)(**args.frontend_conf)
        layers = frontend_layers(frontend)
        if args.preencoder == "conv2d":
            check_encoder(args.encoder, args.encoder_conf)
            conf = {"input_size": frontend.output_size(), **args.preencoder_conf}
            with config_errors("preencoder_conf"):
                layers += subsampling_layers(Conv2dPreEncoder(**conf))
        elif args.preencoder not in (None, "linear"):
            known_ones = "linear or null"
            if not isinstance(frontend, CNNFrontend):  # which has subsampled enough
                known_ones = f"conv2d, {known_ones}"
            raise UserError(
                f"preencoder: {args.preencoder} has frame times that are not known; "
                f"write {known_ones}"
            )
    return FrameGrid.from_layers(layers)


def sampling_rate(args: argparse.Namespace) -> int:
    """Of the audio, in Hz.

    Raises:
        UserError: when ``frontend_conf.fs`` is no rate.
    """
    given = mapping("frontend_conf", args.frontend_conf).get("fs", 16000)
    try:
        rate = humanfriendly.parse_size(str(given))
    except humanfriendly.InvalidSize:
        rate = 0
    if isinstance(given, bool) or rate <= 0:
        raise UserError(f"frontend_conf.fs: {given!r} is not a sampling rate in Hz")
    return rate


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
    def check_args(cls, args: argparse.Namespace) -> None:
        """Refuse what cannot train, before anything is built or written."""
        check_choices(args)
        check_losses(args.loss)
        if not args.loss:
            raise UserError("loss: names none: there is nothing to train")
        conf = ssl_conf(args)
        cls.check_labels(args)
        if conf is not None:
            cls.check_ssl_conf(args, conf)
        else:
            for mode in ("train", "valid"):
                option = f"{mode}_data_path_and_name_and_type"
                streams = getattr(args, option)
                if TRACK in [name for _, name, _ in streams]:
                    raise UserError(
                        f"--{option} gives confidences, and without ssl_conf masks do not "
                        "follow them: write ssl_conf: {masker: atm}, or leave them out"
                    )
                if LABELS_TYPE in [kind for _, _, kind in streams]:
                    raise UserError(
                        f"--{option} gives {LABELS_TYPE}, which ESPnet does not bring to "
                        "the encoder's frames: write ssl_conf: {masker: random}, or atm"
                    )

    @classmethod
    def check_labels(cls, args: argparse.Namespace) -> None:
        """Ask for labels, and of text for its token list, only where a loss reads them.

        Raises:
            UserError: naming the option that is missing, or not wanted.
        """
        args.token_list = args.token_list or None  # ssl.sh gives "" for none
        needing = [x["name"] for x in args.loss if x["name"] not in OWN_LOSSES]
        streams = [
            *args.train_data_path_and_name_and_type,
            *args.valid_data_path_and_name_and_type,
        ]
        labels = [(path, kind) for path, name, kind in streams if name == LABELS]
        stored = [kind == LABELS_TYPE for _, kind in labels]
        if len(set(stored)) > 1:
            raise UserError(
                "labels of both sets must be of one type, and these are: "
                f"{', '.join(f'{path} {kind}' for path, kind in labels)}"
            )
        all_stored = True in stored
        if needing and args.token_list is None and not all_stored:
            raise UserError(
                f"the loss {needing[0]} reads labels: give their --token_list"
            )
        for mode in ("train", "valid"):
            option = f"{mode}_data_path_and_name_and_type"
            names = [name for _, name, _ in getattr(args, option)]
            if needing and LABELS not in names and not args.collect_stats:
                raise UserError(
                    f"the loss {needing[0]} reads labels, and --{option} names none: "
                    f"add --{option} FILE,text,text"
                )
            if LABELS in names and not needing and all_stored:
                raise UserError(
                    f"--{option} names labels, which no loss reads: leave them out"
                )
            if LABELS in names and args.token_list is None and not all_stored:
                raise UserError(
                    f"--{option} names labels, which no loss reads: leave them out, or "
                    "give their --token_list"
                )
        if args.token_list is None:
            args.token_list = []

    @classmethod
    def check_tokens(cls, file: Union[str, List[str]], classes: int) -> None:
        """Refuse a token list of labels that the loss has no class for.

        ``<unk>`` and its like are no labels.

        Raises:
            UserError: naming the label and ``num_classes``.
        """
        tokens = read_text(file).splitlines() if isinstance(file, str) else file
        labels = [
            (number, token)
            for number, token in enumerate(tokens)
            if not re.fullmatch(r"<.*>", token.strip())
        ]
        if not labels:
            raise UserError(f"{file}: holds no labels")
        last, label = labels[-1]
        if last >= classes:
            raise UserError(
                f"{file}: label {label!r} is number {last}, counted from 0, and the loss "
                f"hubert has num_classes: {classes}; write num_classes: {last + 1} or more"
            )
        if last + 1 < classes:
            logging.warning(
                f"{file}: labels end at number {last}, and the loss hubert has "
                f"num_classes: {classes}: {classes - last - 1} of them are never seen"
            )

    @classmethod
    @typechecked
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Optional[Callable[[str, Dict[str, np.ndarray]], Dict[str, np.ndarray]]]:
        """ESPnet's, which reads no labels when there is no token list, after checks."""
        given = args
        if not args.token_list:
            args = argparse.Namespace(**{**vars(args), "token_type": None})
        with config_errors("--token_list, --token_type or another option of preprocessing"):
            stock = super().build_preprocess_fn(args, train)
        if ssl_conf(given) is None:
            return stock
        return Reading(stock, sampling_rate(given), num_classes(given))

    @classmethod
    def build_iter_factory(
        cls,
        args: argparse.Namespace,
        distributed_option: Any,
        mode: str,
        kwargs: Optional[Dict[str, Any]] = None,
    ):
        """ESPnet's, over streams that are checked as they are read.

        ``args``, and so the config that is written, keep the types that the user gave.
        """
        if ssl_conf(args) is not None:
            option = "train" if mode == "train" else "valid"
            if kwargs is None and mode == option:
                cls.check_large_lists(args, mode)
            kwargs = dict(kwargs or {})
            streams = kwargs.get(
                "data_path_and_name_and_type",
                getattr(args, f"{option}_data_path_and_name_and_type"),
            )
            reading = cls.build_preprocess_fn(args, mode == "train")
            if mode == "train":
                reading.crop = cls.crop_to_read(args, reading)
            streams, reading = reading.of(streams)
            kwargs.update(data_path_and_name_and_type=streams, preprocess_fn=reading)
        return super().build_iter_factory(args, distributed_option, mode, kwargs)

    @classmethod
    def build_multiple_iter_factory(
        cls, args: argparse.Namespace, distributed_option: Any, mode: str
    ):
        """ESPnet's, which finds out what a part lacks when its turn comes."""
        if ssl_conf(args) is not None:
            cls.check_large_lists(args, mode)
        return super().build_multiple_iter_factory(args, distributed_option, mode)

    @classmethod
    def check_large_lists(cls, args: argparse.Namespace, mode: str) -> None:
        """What :meth:`check_ssl_conf` had no time for, before training."""
        if not are_small(cls.parts(args, mode)):
            logging.info(f"[{mode}] comparing the lists")
            cls.check_all_lists(args, mode)

    @classmethod
    def build_sequence_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> AbsIterFactory:
        """ESPnet's, of the same batches, whose ids stay in their file where they can."""
        files, distributed = iter_options.shape_files, iter_options.distributed
        world, rank = 1, 0
        if distributed:
            world = torch.distributed.get_world_size()
            rank = torch.distributed.get_rank()
        batches = None
        if (
            ssl_conf(args) is not None
            and iter_options.batch_type == "numel"
            and len(files) == 1
            and not args.multi_task_dataset
        ):
            batches = numel_batches(
                files[0],
                iter_options.batch_bins,
                world if distributed else args.min_batch_size,
                args.sort_in_batch,
                args.sort_batch,
                args.drop_last_iter,
            )
        if batches is None:
            return super().build_sequence_iter_factory(args, iter_options, mode)
        batches = batches[: iter_options.num_batches]
        sizes = [len(batch) for batch in batches]
        logging.info(
            f"[{mode}] mini-batch sizes summary: N-batch={len(sizes)}, "
            f"mean={np.mean(sizes):.1f}, min={min(sizes)}, max={max(sizes)}, "
            f"batch_bins={iter_options.batch_bins}"
        )
        if min(sizes) < world:
            raise UserError(
                f"[{mode}] a batch has {min(sizes)} utterances, fewer than the {world} "
                "processes that share it: raise batch_bins"
            )
        batches = [batch[rank::world] for batch in batches]
        kinds = {kind for _, _, kind in iter_options.data_path_and_name_and_type}
        # Of its own types ESPnet holds in memory what is to be read here.
        mapped = kinds <= {LINES_TYPE, TRACK_TYPE, LABELS_TYPE}
        keys = None if mapped else set(itertools.chain.from_iterable(batches))
        dataset = cls.build_dataset(args, iter_options, keys)
        logging.info(f"[{mode}] dataset:\n{dataset}")
        return SequenceIterFactory(
            dataset=dataset,
            batches=batches,
            seed=args.seed,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            shuffle=iter_options.train,
            shuffle_within_batch=args.shuffle_within_batch,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def crop_to_read(
        cls, args: argparse.Namespace, reading: Reading
    ) -> Optional[Crop]:
        """How much training takes of an utterance, where nothing else is to be heard.

        How loud the utterance is, which the energy gate and ESPnet's
        ``speech_volume_normalize`` ask for, only all of it tells.
        """
        conf = ssl_conf(args)
        loud = getattr(reading.stock, "speech_volume_normalize", None)
        if conf.crop_seconds is None or conf.energy_gate is not None or loud is not None:
            return None
        collate = cls.build_collate_fn(args, train=True)
        return Crop(collate.longest, collate.grid.shift, collate.random_crop)

    @classmethod
    def build_streaming_iterator(
        cls, data_path_and_name_and_type, preprocess_fn, *args, **kwargs
    ):
        """ESPnet's, for statistics, over streams that are checked as they are read."""
        streams = data_path_and_name_and_type
        if isinstance(preprocess_fn, Reading):
            streams, preprocess_fn = preprocess_fn.of(streams, one_by_one=True)
        return super().build_streaming_iterator(streams, preprocess_fn, *args, **kwargs)

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> List[torch.optim.Optimizer]:
        """ESPnet's, whose errors name no option."""
        with config_errors("optim_conf"):
            return super().build_optimizers(args, model)

    @classmethod
    def check_ssl_conf(cls, args: argparse.Namespace, conf: SSLConf) -> None:
        """Try the settings: on the lists of both sets, and on their first utterances.

        Raises:
            UserError: on impossible settings, on utterances without a track, and on
                audio, labels or confidence that do not fit.
        """
        conf.check_trainable()
        for choice in cls.class_choices_list:
            if getattr(args, choice.name) is not None:
                name = f"{choice.name}_conf"
                given = getattr(args, name)
                if given is None:
                    raise UserError(f"{name}: is empty; write its options, or leave it out")
                mapping(name, given)
        classes = num_classes(args)
        if classes is not None and args.token_list:
            cls.check_tokens(args.token_list, classes)
        rate = sampling_rate(args)
        grid = encoder_grid(args)
        cls.check_crop(conf, grid, rate)
        if conf.scorer:
            load_scorer(conf, grid, rate)
        for mode in ("train", "valid"):
            option = f"{mode}_data_path_and_name_and_type"
            streams = getattr(args, option)
            track = None
            if conf.needs_track:
                track = find_track(streams, option)
            elif conf.scorer and any(x[1] == TRACK for x in streams):
                raise UserError(
                    f"ssl_conf.scorer and --{option} both give confidences: leave one out"
                )
            parts = cls.parts(args, mode)
            if are_small(parts):
                cls.check_all_lists(args, mode)
            streams, shape_files = parts[0]
            if track is not None:
                check_not_all_zero(track, shape_files if len(parts) == 1 else [])
            streams, reading = cls.build_preprocess_fn(args, False).of(streams)
            dataset = ESPnetDataset(streams, preprocess=reading)
            collate = cls.build_collate_fn(args, train=False)
            utterances = dataset.loader_dict["speech"]
            if shape_files:
                with open(shape_files[0], encoding="utf-8") as f:
                    utterances = [x.split()[0] for x in itertools.islice(f, TRIED)]
            try:
                for utt in itertools.islice(utterances, TRIED):
                    collate([dataset[utt]])
            except Exception:
                cls.check_all_lists(args, mode)  # says more, if one of them lacks it
                raise

    @classmethod
    def parts(
        cls, args: argparse.Namespace, mode: str
    ) -> List[Tuple[List[Stream], List[str]]]:
        """Streams and shape files of a set, of each part that is trained on by itself.

        Raises:
            UserError: when the folders of ``multiple_iterator`` have not as many parts.
        """
        option = f"{mode}_data_path_and_name_and_type"
        streams = list(getattr(args, option))
        shape_files = list(getattr(args, f"{mode}_shape_file"))
        if mode != "train" or not args.multiple_iterator:
            return [(streams, shape_files)]
        paths = [parts_of(path) for path, _, _ in streams]
        shapes = [parts_of(path) for path in shape_files]
        if len({len(x) for x in [*paths, *shapes]}) > 1:
            raise UserError(
                f"--{option} and --{mode}_shape_file: their folders have "
                f"{[len(x) for x in [*paths, *shapes]]} parts: split all alike"
            )
        return [
            (
                [(x[number], *stream[1:]) for x, stream in zip(paths, streams)],
                [x[number] for x in shapes],
            )
            for number in range(len(paths[0]))
        ]

    @classmethod
    def check_all_lists(cls, args: argparse.Namespace, mode: str) -> None:
        """Refuse a set in which an utterance lacks a stream.

        Raises:
            UserError: naming the file, and some of them.
        """
        for streams, shape_files in cls.parts(args, mode):
            check_lists(streams, shape_files)

    @classmethod
    def check_crop(cls, conf: SSLConf, grid: FrameGrid, rate: int) -> None:
        """Refuse crops that a single span may cover: they teach nothing.

        Raises:
            UserError: naming the length, and one that will do.
        """
        if conf.crop_seconds is None:
            return
        frames = grid.length(round(conf.crop_seconds * rate))
        if frames > conf.span:
            return
        needed = (conf.span + 1) * grid.shift
        while grid.length(needed) <= conf.span:
            needed += grid.shift
        raise UserError(
            f"ssl_conf.crop_seconds: {conf.crop_seconds} is {frames} frames, which one "
            f"span of {conf.span} may mask, so that nothing is left to predict from; "
            f"write {math.ceil(100 * needed / rate) / 100} or more, or a shorter span"
        )

    @classmethod
    @typechecked
    def build_collate_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[
        [Collection[Tuple[str, Dict[str, np.ndarray]]]],
        Tuple[List[str], Dict[str, torch.Tensor]],
    ]:
        """Collate as ESPnet does, or in step with the encoder's frames."""
        conf = ssl_conf(args)
        if conf is not None:
            options = mapping("collate_fn_conf", args.collate_fn_conf)
            known("collate_fn_conf", options, COLLATE_OPTIONS)
            for option in COLLATE_FLAGS:
                flag(f"collate_fn_conf.{option}", options.get(option, False))
        with config_errors("collate_fn_conf"):
            stock = super().build_collate_fn(args, train)
        if conf is None:
            return stock
        grid = encoder_grid(args)
        crop = conf.crop_seconds
        return SyncedCollateFn(
            stock,
            grid,
            cls.track_grid(args, grid),
            conf.smooth,
            conf.energy_gate,
            None if crop is None else round(crop * sampling_rate(args)),
            cls.label_grid(args),
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
        makers = [read_scorer(file.parent) for file in files]
        makers = [x for x in makers if x is not None]
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
    def label_grid(cls, args: argparse.Namespace) -> Optional[FrameGrid]:
        """The time grid of the stored labels that the data options name, if any.

        Raises:
            UserError: when the two sets are not labelled alike, or the loss has too few
                classes.
        """
        paths = [
            path
            for mode in ("train", "valid")
            for path, name, kind in getattr(args, f"{mode}_data_path_and_name_and_type")
            if (name, kind) == (LABELS, LABELS_TYPE)
        ]
        if not paths:
            return None
        grids = [read_label_grid(path, sampling_rate(args)) for path in paths]
        files = [Path(path).parent / "labeller" for path in paths]
        makers = [read_labeller(file.parent) for file in files]
        first, last = makers[0], makers[-1]
        differ = sorted(x for x in {**first, **last} if first.get(x) != last.get(x))
        if differ:
            raise UserError(
                f"the labels of the training set ({files[0]}) and of the validation set "
                f"({files[-1]}) come from different labellers: {', '.join(differ)}; label "
                "both alike"
            )
        wanted, there = num_classes(args), first["num_classes"]
        if wanted is not None and there > wanted:
            raise UserError(
                f"{files[0]}: there are {there} labels, and the loss hubert has "
                f"num_classes: {wanted}; write num_classes: {there} or more"
            )
        return grids[0]

    @classmethod
    @typechecked
    def build_model(cls, args: argparse.Namespace) -> ESPnetSSLModel:
        """Build ESPnet's model and, with ``ssl_conf``, hand it to ours."""
        check_losses(args.loss)
        conf = ssl_conf(args)
        own = [x["name"] for x in args.loss if x["name"] in OWN_LOSSES]
        if own and conf is None:
            raise UserError(
                f"the loss {own[0]} needs ssl_conf, because ESPnet's own masking "
                "overwrites what the loss is to find again; write ssl_conf: masker: "
                "random, or atm"
            )
        with config_errors("the model's options"):
            model = super().build_model(args)
        if conf is None:
            return model
        logging.info(f"Ask2Mask: {conf}")
        return ATMSSLModel(model, conf, args.accum_grad, sampling_rate(args))

    @classmethod
    def build_model_from_file(
        cls,
        config_file: Union[Path, str, None] = None,
        model_file: Union[Path, str, None] = None,
        device: str = "cpu",
    ) -> Tuple[ESPnetSSLModel, argparse.Namespace]:
        """ESPnet's, which leaves random what the file lacks, without that.

        Raises:
            UserError: naming the files, when the config is none of an SSL run, or these
                weights are not its model's.
        """
        if config_file is None:
            config_file = Path(model_file).parent / "config.yaml"
        if not isinstance(read_config(config_file).get("loss"), list):
            raise UserError(f"{config_file}: has no loss: it is not of an SSL run")
        try:
            model, args = super().build_model_from_file(config_file, None, device)
        except UserError as e:
            raise UserError(f"{config_file}: {e}") from None
        if model_file is not None:
            # How many updates were made says nothing of the model.
            used = [k for k in model.state_dict() if k != "global_step"]
            state = read_weights(model_file)
            load_weights(model, state, model_file, config_file, used)
        return model, args


def install() -> None:
    """Make every user of ``espnet2.tasks.ssl.SSLTask`` get ours."""
    espnet2.tasks.ssl.SSLTask = ATMSSLTask
