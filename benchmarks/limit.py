#!/usr/bin/env python3
"""One training step against what no step can do without: the encoder, there and back.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/limit.py

The limit is forward and backward of the same preencoder and encoder, with a mean-square
loss, on normalised features that are ready. The step is the recipe's with ATM+S: front end,
normalisation, masks, weights, statistics, the objective's loss, clip and Adam. Below it is
what its parts take by themselves, each as a share of the limit. On a CPU a batch is 20 s of
audio at the mini size, as in the recipe, and one crop of 32 s at size L, where in the recipe
each GPU has 16 and an update comes every fourth batch; on a GPU, 16 x 32 s in bf16.
"""

import argparse
from typing import Any, Callable, Dict

import torch
import torch.nn.functional as F
from measure import Rows, get_parser, host_syncs, interleave, ratio, start
from training import (
    GRAD_CLIP,
    RATE,
    Step,
    build,
    make_batch,
    mixed_precision,
    read,
)

from espnet_atm.frames import padding_mask
from espnet_atm.model import _mask_stats
from espnet_atm.weighting import frame_weights

OBJECTIVES = ("hubert", "wav2vec2", "w2v_bert", "best_rq")
GOALS = {"mini": 1.15, "l": 1.05}
CROPS = 64  # of size L between two updates, on each of 8 GPUs
BATCHES = {  # utterances, seconds of each
    "cpu": {"mini": (4, 5), "l": (1, 32)},
    "cuda": {"mini": (4, 5), "l": (16, 32)},
}


def make_calls(
    objective: str, size: str, rows: int, seconds: float, device: str
) -> Dict[str, Callable[[], Any]]:
    """The limit, the step and its parts, by name."""
    config = read(f"train_{objective}_conformer_{size}_atm")
    config["ssl_conf"]["loss_scale"] = "utterance"
    (loss_conf,) = config["loss"]
    classes = loss_conf["conf"].get("num_classes", 0)
    training = build(config, device, classes)
    model, optimizer = training
    frames = model.encoder_grid().length(int(RATE * seconds))
    batch = make_batch(frames, rows, seconds, device, classes)
    parameters = list(model.parameters())

    # What each part is given.
    with torch.no_grad(), mixed_precision(device):
        audio = batch["speech"], batch["speech_lengths"]
        raw, raw_lengths = model._extract_feats(*audio)
        features, feature_lengths = model.normalize(raw.clone(), raw_lengths)
        data = model.encode(*audio, batch.get("text"), confidence=batch["confidence"])
    lengths = batch["confidence_lengths"]
    padding = padding_mask(lengths, frames)
    # Leaves, so that a part's backward ends where the part does.
    leaves = {
        name: [x.detach().requires_grad_() for x in data[name]]
        if isinstance(data[name], list)
        else data[name].detach().requires_grad_()
        for name in ("encoder_output", "preencoder", "frontend")
    }
    data.update(leaves, text=batch.get("text"), text_lengths=batch.get("text_lengths"))
    (loss,) = model.losses
    given = {name: data[name] for name in loss.required_inputs}
    info, confidence = data["mask_info"], batch["confidence"]
    target = torch.randn_like(leaves["preencoder"].float())
    gradient = torch.ones_like(leaves["preencoder"])

    def forget() -> None:
        for parameter in parameters:
            parameter.grad = None

    def limit() -> None:
        with mixed_precision(device):
            x, x_lengths = model.preencoder(features, feature_lengths)
            x, *_ = model.encoder(x, x_lengths, masks=padding)
            total = F.mse_loss(x.float(), target)
        total.backward()
        forget()

    def both_ways() -> None:
        with mixed_precision(device):
            total, *_ = model(**batch)
        total.backward()
        forget()

    def masks() -> None:
        masked, _ = model.util_modules["mask"](leaves["preencoder"], padding, confidence)
        masked.backward(gradient)

    def weights() -> None:
        frame_weights(confidence, lengths, info["mask_m"], "utterance")
        _mask_stats(info, lengths, confidence)

    def objectives_loss() -> None:
        with mixed_precision(device):
            total, _ = loss(**given)
        total.backward()

    kept = [torch.full_like(parameter, 1e-6) for parameter in parameters]

    def gradients() -> None:
        """For what needs them, none of its time."""
        for parameter, gradient in zip(parameters, kept):
            parameter.grad = gradient

    def clip() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)

    def adam() -> None:
        gradients()
        optimizer.step()

    return {
        "encoder there and back": limit,
        "step": Step(training, lambda: model(**batch)[0], device),
        "step without clip and update": both_ways,
        "front end": lambda: model._extract_feats(*audio),
        # In place, so that each call normalises what is normalised: as much work.
        "normalisation": lambda: model.normalize(raw, raw_lengths),
        "masks": masks,
        "weights and statistics of the masks": weights,
        "loss": objectives_loss,
        "clip": clip,
        "Adam": adam,
    }


def measure(rows: Rows, objective: str, size: str, args: argparse.Namespace) -> None:
    """One objective at one size."""
    number, seconds = BATCHES[args.device][size]
    if args.quick:
        number, seconds = 1, 1
    calls = make_calls(objective, size, number, seconds, args.device)
    base, *others = calls
    rounds = args.rounds if size == "mini" else max(args.rounds // 2, 1)
    times = interleave(calls, rounds, device=args.device)
    case = f"{objective} {size}, {number} x {seconds} s"
    rows.add(case, base, times[base])
    strict = size == "l" and objective in ("best_rq", "hubert")
    goal = "" if args.quick else f"<= {1.03 if strict else GOALS[size]}"
    for name in others:
        over = ratio(times[name], times[base], args.device)
        columns: Dict[str, Any] = {"ratio": over, "of": "its time over the encoder's"}
        if name == "step":
            columns.update(goal=goal, syncs=host_syncs(calls[name], args.device))
        rows.add(case, name, times[name], **columns)
    if size == "l":
        shares = {name: ratio(times[name], times[base], args.device) for name in others}
        over = shares["clip"] + shares["Adam"]
        over = shares["step without clip and update"] + over * number / CROPS
        told = f"step, an update every {CROPS} crops"
        rows.add(case, told, ratio=over, of="as in the recipe, from the shares", goal=goal)


def main() -> None:
    """Measure and print."""
    parser = get_parser(__doc__, rounds=30)
    parser.add_argument("--sizes", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    args = parser.parse_args()
    start(args)
    rows = Rows("limit", args)
    for size in ["mini"] if args.quick else args.sizes:
        for objective in args.objectives:
            measure(rows, objective, size, args)
    rows.finish()


if __name__ == "__main__":
    main()
