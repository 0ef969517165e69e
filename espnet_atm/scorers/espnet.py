"""What ESPnet's models have in common: ``config.yaml``, weights and frontend."""

import argparse
from pathlib import Path
from typing import Iterable, Tuple, Type, Union

import humanfriendly
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_atm.errors import UserError


def check_kind(
    config: dict, train_config: Union[str, Path], kind: str, names: Iterable[str]
) -> None:
    """Refuse a config without the options that all of its kind have.

    Raises:
        UserError: naming file, kind and option.
    """
    for name in names:
        if name not in config:
            raise UserError(
                f"{train_config}: is not the config.yaml of an {kind} model: it has "
                f"no {name}"
            )


def build_model(
    task: Type[AbsTask],
    kind: str,
    train_config: Union[str, Path],
    model_file: Union[str, Path],
    device: str,
) -> Tuple[AbsESPnetModel, argparse.Namespace]:
    """The model, and its options; the weights are still to be checked.

    Raises:
        UserError: naming the files, when ESPnet cannot build it.
    """
    try:
        model, args = task.build_model_from_file(
            str(train_config), str(model_file), device
        )
    except Exception as e:  # whatever ESPnet raises on a config that is none
        raise UserError(
            f"{train_config}: no {kind} model can be built from it and "
            f"{model_file}: {type(e).__name__}: {' '.join(str(e).split())[:300]}"
        ) from e
    # Scores are not to depend on what is installed; ESPnet's inference does the same.
    for module in model.modules():
        if hasattr(module, "use_flash_attn"):
            module.use_flash_attn = False
    return model, args


def frontend_rate(
    model: AbsESPnetModel, args: argparse.Namespace, train_config: Union[str, Path]
) -> int:
    """The sampling rate of the frontend in Hz.

    Raises:
        UserError: naming the file, when there is no frontend or no rate.
    """
    if getattr(model, "frontend", None) is None:
        raise UserError(
            f"{train_config}: the scorer has no frontend (input_size: "
            f"{args.input_size}); scoring starts from audio"
        )
    conf = args.frontend_conf if isinstance(args.frontend_conf, dict) else {}
    return parse_rate(conf.get("fs", 16000), "frontend_conf.fs", train_config)


def parse_rate(fs: object, name: str, train_config: Union[str, Path]) -> int:
    """A sampling rate in Hz, which ESPnet also writes as ``16k``.

    Raises:
        UserError: naming file and option, when it is none.
    """
    try:
        rate = humanfriendly.parse_size(str(fs))
    except humanfriendly.InvalidSize:
        rate = 0
    if rate < 1:
        raise UserError(f"{train_config}: {name}: {fs!r} is no sampling rate")
    return rate
