"""Losses of masked speech models that take one weight for each masked frame.

A loss reads the weights (B, T) from ``mask_info["weight"]``, which is None when every
frame counts alike, and says so by ``accepts_weight = True``.
"""

from typing import Optional

import torch


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
