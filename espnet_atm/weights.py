"""Weights of models: read whole, or refused by name."""

import io
import logging
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Union

import torch

from espnet_atm.errors import UserError, check_file

TRAINER_STATE = {"model", "optimizers"}  # of ESPnet's checkpoint.pth
# Under which other toolkits keep the weights that ESPnet reads.
WRAPPERS = ("module", "state_dict")


def read_checkpoint(file: Union[str, Path]) -> Any:
    """What ``torch.save`` wrote, on the CPU, and only if it is as it was written.

    torch does not look at the checksums in its files, so that a flipped bit would be
    another weight.

    Raises:
        UserError: naming the file, when it is damaged, or holds what only unpickling
            would tell.
        OSError: when it cannot be opened.
    """
    check_file(file)
    with open(file, "rb") as f:
        if not f.read(1):
            raise UserError(f"{file}: is empty")
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if (part := archive.testzip()) is not None:
                    raise UserError(f"{file}: is damaged: the checksum of {part} differs")
        return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as e:  # whatever unpickling raises on what is no checkpoint
        raise UserError(
            f"{file}: cannot be read as weights: it is damaged, or no .pth of ESPnet's "
            f"({type(e).__name__})"
        ) from None


def read_weights(file: Union[str, Path]) -> Dict[str, torch.Tensor]:
    """The weights in a ``.pth`` of ESPnet's, on the CPU.

    Raises:
        UserError: naming the file, when it holds no weights, the trainer's state, what
            only unpickling would tell, or values that are not finite.
        OSError: when it cannot be opened.
    """
    state = read_checkpoint(file)
    if isinstance(state, dict) and state.keys() >= TRAINER_STATE:
        raise UserError(
            f"{file}: is the trainer's state (checkpoint.pth), which no model is loaded "
            "from; give an epoch's weights beside it, e.g. latest.pth"
        )
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{file}: holds no weights")
    strange = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise UserError(
            f"{file}: holds no weights: {strange[0]!r} is a "
            f"{type(state[strange[0]]).__name__}"
        )
    bad = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise UserError(f"{file}: weights that are not finite: {_some(bad)}")
    return state


def load_weights(
    model: torch.nn.Module,
    state: Dict[str, torch.Tensor],
    file: Union[str, Path],
    config: Union[str, Path],
    used: Iterable[str] = ("",),
) -> None:
    """Load weights, all of them and no others.

    ESPnet loads with ``strict=False``: what a file lacks stays random without a word.

    Args:
        model: gets the weights.
        state: of :func:`read_weights`.
        file: where they are from.
        config: what the model was built from; both are for the message.
        used: beginnings of the names that matter; all when not given.

    Raises:
        UserError: naming the weights that are missing, or not in the model, or of
            another shape.
    """
    used = tuple(used)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    other = {k: v.shape for k, v in state.items() if v.shape != shapes.get(k, v.shape)}
    found = model.load_state_dict(
        {k: v for k, v in state.items() if k not in other}, strict=False
    )
    for what, names in (
        ("have another shape", list(other)),
        ("are not in it", found.missing_keys),
        ("are in it and not in the model", found.unexpected_keys),
    ):
        names = [k for k in names if k.startswith(used)]
        if names:
            raise UserError(
                f"{file}: is not the model of {config}: weights {what}: {_some(names)}"
            )


def check_init_param(
    model: torch.nn.Module, init_param: Iterable[str], ignore_init_mismatch: bool
) -> None:
    """Refuse ``--init_param`` that leaves random what it is to initialise.

    ESPnet copies what it finds: a beginning that no name has, and weights that are
    missing or of another shape, pass in silence. A part of a model may stay random, and
    is named in the log; the part that was asked for may not.

    Args:
        model: what is to be initialised; it is only looked at.
        init_param: each ``FILE[:FROM[:TO[:EXCLUDED,...]]]``.
        ignore_init_mismatch: whether weights of another name or shape are left out.

    Raises:
        UserError: naming file, part and weights.
        OSError: when a file cannot be opened.
    """
    for item in init_param:
        _check_init(model, item, ignore_init_mismatch)


def _check_init(model: torch.nn.Module, item: str, ignore: bool) -> None:
    given = item.split(":")
    if len(given) > 4:
        raise UserError(
            f"--init_param {item}: is not FILE[:FROM[:TO[:EXCLUDED]]]; a file's name "
            "cannot have a colon there"
        )
    file, source, target, excluded = (*given, "", "", "")[:4]
    state = read_weights(file)
    # ESPnet takes every name that begins so, and cuts it after the dot.
    state = {
        k[len(source) + 1 :] if source else k: v
        for k, v in state.items()
        if k.startswith(source)
        and not (excluded and k.startswith(tuple(excluded.split(","))))
    }
    if not state:
        raise UserError(
            f"--init_param {item}: nothing in {file} begins with {source!r}"
            + (f" and is not excluded by {excluded!r}" if excluded else "")
        )
    try:
        part = model.get_submodule(target)
    except AttributeError:
        parts = ", ".join(name for name, _ in model.named_children())
        raise UserError(
            f"--init_param {item}: the model has no part {target!r}; it has {parts}"
        ) from None
    shapes = {k: v.shape for k, v in part.state_dict().items()}
    strange = [k for k in state if k not in shapes]
    other = [k for k in state if k in shapes and state[k].shape != shapes[k]]
    for what, names in (("are not in the model", strange), ("have another shape", other)):
        if names and not ignore:
            raise UserError(
                f"--init_param {item}: weights {what}: {_some(names)}; name the part "
                "to take, e.g. FILE:encoder:encoder, or write ignore_init_mismatch: true"
            )
    loaded = state.keys() - set(strange) - set(other)
    # Heads may differ from model to model; an encoder that takes nothing is a mistake.
    asked = [""]
    if not target and any(k.startswith("encoder.") for k in state):
        asked.append("encoder.")
    for name in asked:
        wanted = [k for k, _ in part.named_parameters() if k.startswith(name)]
        if wanted and not loaded.intersection(wanted):
            raise UserError(
                f"--init_param {item}: nothing in {file} fits "
                f"{target or name.strip('.') or 'the model'}, which would stay random: "
                f"{_some(other or strange)}"
            )
    random = [
        f"{target}.{k}" if target else k
        for k, _ in part.named_parameters()
        if k not in loaded
    ]
    if random:
        logging.warning(
            f"--init_param {item}: not in {file}, and as random as before: "
            f"{len(random)} weights: {_some(random)}"
        )


def pth_bytes(state: Dict[str, torch.Tensor]) -> bytes:
    """What a ``.pth`` of these weights holds."""
    pth = io.BytesIO()
    torch.save(state, pth)
    return pth.getvalue()


def _some(names: List[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
