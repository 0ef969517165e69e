#!/usr/bin/env python3
"""Time and peak memory of the contrastive loss alone: ours and other toolkits', in turns.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/contrastive_speed.py

From contexts and code vectors that are ready to the gradient of both: negatives are drawn,
the masked frames are compared with them, and cross entropy is taken. Hugging Face's is what
Wav2Vec2ForPreTraining.forward does, without the rest of that method, and SpeechBrain's what
its recipe for wav2vec 2.0 does. Peaks are of a process for each.
"""

import argparse
import math
from typing import Any, Callable, Dict, NamedTuple

import torch
import torch.nn.functional as F
from measure import (
    MIB,
    Rows,
    find_peers,
    free_memory,
    get_parser,
    host_syncs,
    interleave,
    peak_memory,
    ratio,
    start,
)

from espnet_atm.losses.contrastive import (
    MaskedFrames,
    contrastive_logits,
    sample_negatives,
)
from espnet_atm.masking import sample_span_mask

SIZES = ("4x400x100", "8x800x100", "32x800x100")  # rows, frames, negatives
DIM, TEMPERATURE = 256, 0.1
CODES = 5000  # that are in use: some negatives are the target's own code


class Batch(NamedTuple):
    """What the losses are given."""

    context: torch.Tensor  # (B, T, D), leaf
    targets: torch.Tensor  # (B, T, D), leaf
    ids: torch.Tensor  # code of each target (B, T), int64
    mask: torch.Tensor  # (B, T), bool: as many frames of each row
    num_negatives: int


def make_batch(size: str, device: str) -> Batch:
    """Vectors at random; 0.40 of the frames are masked."""
    rows, frames, num_negatives = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(CODES, (rows, frames), generator=generator)
    codes = torch.randn(CODES, DIM, generator=generator)
    context = torch.randn(rows, frames, DIM, generator=generator)
    mask = sample_span_mask(
        *(torch.zeros(rows, frames), torch.full((rows,), frames)),
        strategy="random",
        generator=generator,
        exact=True,
    )
    return Batch(
        context.to(device).requires_grad_(),
        codes[ids].to(device).requires_grad_(),
        *(ids.to(device), mask.to(device), num_negatives),
    )


def load_ours() -> Callable[[Batch], torch.Tensor]:
    def loss(batch: Batch) -> torch.Tensor:
        where = MaskedFrames.of(batch.mask)
        logits = contrastive_logits(
            *(batch.context[batch.mask], batch.targets[batch.mask]),
            *(batch.ids[batch.mask], where),
            sample_negatives(where, batch.num_negatives),
        )
        return F.cross_entropy(logits / TEMPERATURE, torch.zeros_like(where.rank))

    return loss


def load_huggingface() -> Callable[[Batch], torch.Tensor]:
    from transformers import Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

    def loss(batch: Batch) -> torch.Tensor:
        context, targets, _, mask, num_negatives = batch
        rows, frames, dim = targets.shape
        drawn = _sample_negative_indices((rows, frames), num_negatives, mask.cpu().numpy())
        drawn = torch.from_numpy(drawn).long().to(mask.device)
        # (B, T, K) -> (K, B, T, D)
        negatives = targets.view(-1, dim)[drawn.view(-1)]
        negatives = negatives.view(rows, frames, -1, dim).permute(2, 0, 1, 3)
        logits = Wav2Vec2ForPreTraining.compute_contrastive_logits(
            targets[None, :], negatives, context, TEMPERATURE
        )
        same = (targets == negatives).all(-1)
        if same.any():
            logits[1:][same] = float("-inf")
        # (1 + K, B, T) -> (T * B, 1 + K)
        logits = logits.transpose(0, 2).reshape(-1, logits.size(0))
        target = ((1 - mask.long()) * -100).transpose(0, 1).flatten()
        total = F.cross_entropy(logits.float(), target, reduction="sum")
        return total / mask.sum()  # as its trainers do

    return loss


def load_speechbrain() -> Callable[[Batch], torch.Tensor]:
    from speechbrain.lobes.models.wav2vec import sample_negatives
    from speechbrain.nnet.losses import ContrastiveLoss

    contrast = ContrastiveLoss(TEMPERATURE)

    def loss(batch: Batch) -> torch.Tensor:
        shape = (len(batch.mask), -1, DIM)  # (B, M, D)
        targets = batch.targets[batch.mask].view(shape)
        negatives = sample_negatives(targets, batch.num_negatives)
        total, _ = contrast(batch.context[batch.mask].view(shape), targets, negatives)
        return total / batch.mask.sum()

    return loss


LOSSES = {
    "Hugging Face": load_huggingface,
    "SpeechBrain": load_speechbrain,
    "ours": load_ours,
}


def make_call(name: str, size: str, device: str) -> Callable[[], Any]:
    """Forward and backward of one loss."""
    loss, batch = LOSSES[name](), make_batch(size, device)

    def call() -> float:
        batch.context.grad = batch.targets.grad = None
        total = loss(batch)
        total.backward()
        return total.detach()

    return call


def numbers(size: str) -> int:
    """How many pairs of frame and negative a size has."""
    return math.prod(map(int, size.split("x")))


def measure(
    rows: Rows,
    size: str,
    found: Dict[str, Any],
    args: argparse.Namespace,
    each: Dict[str, float],
) -> None:
    """One size of batch.

    Args:
        each: bytes that a loss took for a pair at the size before; it gets this one's.
            What would not fit is not run.
    """
    case = f"{size} negatives"
    for name in list(found):
        needed, free = each.get(name, 0) * numbers(size), free_memory(args.device)
        if needed > 0.8 * free:
            reason = f"about {needed / MIB:.0f} MiB needed, {free / MIB:.0f} free"
            rows.add(case, name, note=f"not run: {reason}")
            found = {k: v for k, v in found.items() if k != name}
    calls = {name: make_call(name, size, args.device) for name in found}
    told = {name: f"loss {call().item():.3f}" for name, call in calls.items()}
    times = interleave(calls, args.rounds, warm_up=0, device=args.device)
    syncs = {name: host_syncs(call, args.device) for name, call in calls.items()}
    del calls
    memory = {
        name: peak_memory(make_call, name, size, args.device, device=args.device)
        for name in found
    }
    each.update({name: memory[name] / numbers(size) for name in found})
    for name in found:
        columns = {}
        if name != "ours":
            columns["ratio"] = ratio(times[name], times["ours"], args.device)
            columns["of"] = "its time over ours"
            told[name] += f"; {memory[name] / max(memory['ours'], 1):.1f} x our memory"
        rows.add(
            *(case, name, times[name]),
            memory=memory[name] / MIB,
            syncs=syncs[name],
            note=told[name],
            **columns,
        )


def main() -> None:
    """Measure and print."""
    parser = get_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x frames x K")
    args = parser.parse_args()
    start(args)
    rows = Rows("contrastive", args)
    found, missing = find_peers(LOSSES)
    each = {}
    for size in ["2x40x5"] if args.quick else args.sizes:
        measure(rows, size, found, args, each)
    rows.add_missing(missing)
    rows.finish()


if __name__ == "__main__":
    main()
