"""Telling a frame's own target from those of its utterance's other masked frames."""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F

from espnet_atm.losses import at, places_of


class MaskedFrames(NamedTuple):
    """Where the N masked frames of a batch are, in the order of ``x[mask]``."""

    places: torch.Tensor  # counted through all utterances (N,), int64
    num_rows: int  # utterances B of the batch
    row: torch.Tensor  # utterance (N,), int64
    rank: torch.Tensor  # place among the utterance's masked frames (N,), int64
    count: torch.Tensor  # masked frames of the utterance (N,), int64

    @property
    def counted(self) -> torch.Tensor:
        """Which count (N,), bool: an utterance's only one has no negatives."""
        return self.count > 1

    @classmethod
    def of(cls, mask: torch.Tensor) -> "MaskedFrames":
        """From a mask (B, T), bool."""
        places = places_of(mask)
        row = places // mask.size(1)
        rank = at(places, mask.cumsum(dim=1) - 1)
        return cls(places, len(mask), row, rank, mask.sum(dim=1)[row])


def sample_negatives(
    where: MaskedFrames, num: int, generator: Optional[torch.Generator] = None
) -> torch.Tensor:
    """Draw for each masked frame ``num`` others of its utterance, with replacement.

    Args:
        where: the masked frames.
        num: negatives K for each.
        generator: source of randomness, on the same device.

    Returns:
        Ranks of masked frames within the same utterance (N, K), int64: never the
        frame's own, except where an utterance has one masked frame only and so no
        negative.
    """
    uniform = torch.rand(
        len(where.rank), num, device=where.rank.device, generator=generator
    )
    others = (where.count - 1)[:, None]
    drawn = (uniform * others).long().minimum((others - 1).clamp(min=0))
    return drawn + ((drawn >= where.rank[:, None]) & (others > 0))


def contrastive_logits(
    context: torch.Tensor,
    targets: torch.Tensor,
    ids: torch.Tensor,
    where: MaskedFrames,
    negatives: torch.Tensor,
) -> torch.Tensor:
    """Cosine similarity to a frame's target and to its negatives.

    All pairs within an utterance are compared by one product, from which the drawn ones
    are taken: (B, M, M) numbers for up to M masked frames, where gathering the negatives
    themselves would take (N, K, D).

    Args:
        context: c_t (N, D), float32.
        targets: q_t (N, D), float32.
        ids: the code of each target (N,), int64.
        where: the frames' places.
        negatives: from :func:`sample_negatives` (N, K).

    Returns:
        (N, 1 + K), the target first; -inf where a negative is the same code as the
        target, or where there is none.
    """
    row, rank = where.row, where.rank
    # utterances B, most masked frames M
    shape = (where.num_rows, int(where.count.max()) if len(row) else 0)

    def by_utterance(x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B, M, ...), zeros behind shorter utterances."""
        return x.new_zeros(*shape, *x.shape[1:]).index_put((row, rank), x)

    context = by_utterance(F.normalize(context, dim=-1))
    targets = by_utterance(F.normalize(targets, dim=-1))
    similarity = (context @ targets.transpose(1, 2))[row, rank]  # (N, M)
    picked = torch.cat([rank[:, None], negatives], dim=1)  # (N, 1 + K)
    logits = similarity.gather(1, picked)
    same = by_utterance(ids)[row[:, None], negatives] == ids[:, None]  # (N, K)
    return torch.cat(
        [logits[:, :1], logits[:, 1:].masked_fill(same, -torch.inf)], dim=1
    )
