"""Losses of masked speech models that take one weight for each masked frame.

A loss reads the weights (B, T) from ``mask_info["weight"]``, which is None when every
frame counts alike, and says so by ``accepts_weight = True``. Every term of a loss goes
through :func:`weighted_mean`, so that all of them are scaled and normalised alike.
``check_model(model)``, where a loss has it, refuses models that it cannot train.
"""

from typing import Any, Mapping, Optional

import torch

from espnet_atm.errors import UserError
from espnet_atm.values import number, whole


def check_sizes(loss: str, most: int, **options: Any) -> None:
    """Refuse options of a loss that are no positive whole numbers.

    Raises:
        UserError: naming the loss, the option, its value and the bound.
    """
    for name, value in options.items():
        whole(f"loss {loss}: {name}", value, most=most)


def check_weights(loss: str, **options: Any) -> None:
    """Refuse weights of the terms of a loss that are negative, or no numbers.

    Raises:
        UserError: naming the loss, the option and its value.
    """
    for name, value in options.items():
        if number(f"loss {loss}: {name}", value) < 0:
            raise UserError(f"loss {loss}: {name}: {value} is negative")


def weighted_mean(
    loss: torch.Tensor, weight: Optional[torch.Tensor], counted: torch.Tensor
) -> torch.Tensor:
    """Sum of the weighted losses over the *number* of frames, Eq. 6.

    Dividing by the sum of the weights would undo them: an utterance of low confidence
    must count less.

    Args:
        loss: of each masked frame (N,), float.
        weight: (N,), float, or None for 1.
        counted: whether a frame counts at all (N,), bool.

    Returns:
        Scalar, float32; 0 when no frame counts.
    """
    loss = loss.float()
    if weight is not None:
        loss = loss * weight
    return torch.where(counted, loss, 0).sum() / counted.sum().clamp(min=1)


def accuracy(
    logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """Part of the frames whose largest logit is the target's.

    Args:
        logits: (N, V), float.
        targets: (N,), int.
        counted: whether a frame counts at all (N,), bool.

    Returns:
        Scalar in [0, 1], float32, without gradient; 0 when no frame counts.
    """
    return weighted_mean(logits.detach().argmax(dim=-1) == targets, None, counted)


def places_of(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is true, counted through all rows: (B, T) -> (N,), int64.

    On an accelerator their number is waited for. So a loss asks once, and takes every
    tensor :func:`at` these places, which ``x[mask]`` would wait for each time.
    """
    return mask.flatten().nonzero()[:, 0]


def at(places: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What is in frames (B, T, ...) at places of a mask: (N, ...)."""
    return x.flatten(0, 1).index_select(0, places)


def weight_at(
    places: torch.Tensor, mask_info: Mapping[str, Any]
) -> Optional[torch.Tensor]:
    """The weight of each masked frame (N,), float32; None where all count alike."""
    weight = mask_info["weight"]
    return None if weight is None else at(places, weight)
