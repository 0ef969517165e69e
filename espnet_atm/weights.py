"""Weights of models: read whole, or refused by name."""

import zipfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Union

import torch

from espnet_atm.errors import UserError

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
    with open(file, "rb") as f:  # a folder is told as one
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


def _some(names: List[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
