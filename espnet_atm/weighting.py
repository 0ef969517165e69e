"""How much each frame's loss counts (Ask2Mask+S, Eq. 5 and 6)."""

from typing import Optional

import torch

from espnet_atm.confidence import utterance_confidence

SCALES = ("none", "utterance", "frame")


def frame_weights(
    confidence: torch.Tensor,
    lengths: torch.Tensor,
    mask: torch.Tensor,
    loss_scale: str,
    average: str = "utterance",
    frame_prob: float = 0.1,
    generator: Optional[torch.Generator] = None,
    sharpness: float = 1.0,
) -> torch.Tensor:
    """The factor of each masked frame's loss.

    Args:
        confidence: s_t (B, T), float.
        lengths: valid frames (B,), int.
        mask: the masked frames (B, T), bool.
        loss_scale: ``utterance``, s_u for every frame of utterance u (Eq. 6);
            ``frame``, s_t itself in a random part of the utterances and 1 in the others.
        average: what s_u is the mean over: the ``utterance`` (Eq. 5), or the ``masked``
            frames only, as the patent text has it.
        frame_prob: that part. The paper found 1.0 to hurt and 0.1 to help.
        generator: source of randomness for ``frame``.
        sharpness: exponent on s_u of ``utterance``.

    Returns:
        (B, T), float32, without gradient.
    """
    confidence = confidence.detach().float()
    if loss_scale == "utterance":
        if average == "masked":
            total = torch.where(mask, confidence, 0).sum(dim=1)
            scale = total / mask.sum(dim=1).clamp(min=1)
        else:
            scale = utterance_confidence(confidence, lengths)
        if sharpness != 1:
            scale = scale**sharpness
        return scale[:, None].expand_as(confidence)
    if loss_scale == "frame":
        drawn = torch.rand(
            (len(lengths), 1), device=confidence.device, generator=generator
        )
        return torch.where(drawn < frame_prob, confidence, torch.ones_like(confidence))
    raise ValueError(f"loss_scale: {loss_scale!r} has no weights")
