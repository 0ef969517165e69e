#!/usr/bin/env python3
"""One training step, ours and other toolkits', in turns: time and peak memory.

    . tools/activate_python.sh; OMP_NUM_THREADS=1 python benchmarks/step_speed.py

A step is all that one batch of audio takes: masks, negatives where they are drawn by
themselves, forward, backward, clip and Adam. Those that are compared have the same
architecture, batch, optimizer and share of masked frames; SpeechBrain's BEST-RQ, whose
parts are its own, has the same sizes. Peaks are of a process for each, its gradients and
Adam's state included. Last, what masks, weights, loss and collation take of a step.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from espnet2.train.collate_fn import HuBERTCollateFn
from measure import (
    MIB,
    Rows,
    Times,
    find_peers,
    get_parser,
    host_syncs,
    interleave,
    peak_memory,
    ratio,
    start,
)
from training import (
    MASKED,
    RATE,
    Step,
    Training,
    build,
    make_batch,
    read,
    stock_mask_prob,
)

from espnet_atm.collate import SyncedCollateFn
from espnet_atm.frames import padding_mask
from espnet_atm.huggingface import to_espnet
from espnet_atm.model import _mask_stats
from espnet_atm.weighting import frame_weights

PARALLEL = ("ours, random", "ours, ATM+S")  # in several processes
CLASSES = 500  # of HuBERT's labels
ADAM = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6}
# Ways to mask and weight, as in ssl_conf.
OURS = {
    "ours, random": {"masker": "random", "masker_conf": {"mask_ratio": MASKED}},
    "ours, ATM": {"masker": "atm"},
    "ours, ATM+S": {"masker": "atm", "loss_scale": "utterance"},
}
# wav2vec 2.0's architecture: channels of the convolutions, two thirds of the width of what
# follows, as in base; then utterances, seconds of each. Of mini they are the recipe's.
SIZES = {
    "mini": {"channels": 64, "width": 96, "layers": 6, "heads": 4, "batch": (4, 5)},
    "small": {"channels": 176, "width": 256, "layers": 6, "heads": 4, "batch": (4, 5)},
    "base": {"channels": 512, "width": 768, "layers": 12, "heads": 12, "batch": (2, 8)},
}


# --- our own ----------------------------------------------------------------------------


def make_ours(
    config: Dict[str, Any], batch: Tuple[int, float], device: str, classes: int = 0
) -> Step:
    """A step of ``ssl_train`` by a config; stock ESPnet's where it has no ``ssl_conf``.

    Args:
        config: of the model.
        batch: utterances, seconds of each.
        device: where it runs.
        classes: of pseudo-labels.
    """
    config = {**config, "optim": "adam", "optim_conf": dict(ADAM, betas=[0.9, 0.98])}
    training = build(config, device, classes)
    rows, seconds = batch
    frames = frames_of(training.model, config, seconds)
    given = make_batch(frames, rows, seconds, device, classes)
    if not config.get("ssl_conf"):  # stock ESPnet takes no confidence
        given = {k: v for k, v in given.items() if not k.startswith("confidence")}
    return Step(training, lambda model=training.model: model(**given)[0], device)


def frames_of(model: torch.nn.Module, config: Dict[str, Any], seconds: float) -> int:
    """The encoder's, of an utterance."""
    if hasattr(model, "encoder_grid"):
        return model.encoder_grid().length(int(RATE * seconds))
    ours = build({**config, "ssl_conf": {"masker": "random"}}, "cpu", CLASSES).model
    return ours.encoder_grid().length(int(RATE * seconds))


def hubert_conformer(name: str, batch: Tuple[int, float], device: str) -> Step:
    """The recipe's mini HuBERT."""
    config = read("train_hubert_conformer_mini_atm")
    classes = config["loss"][0]["conf"]["num_classes"]
    config["ssl_conf"] = OURS.get(name)
    if name == "ESPnet":
        del config["ssl_conf"]
        rows, seconds = batch
        # 40 ms a frame
        mask = {"mask_prob": stock_mask_prob(rows, int(seconds / 0.04))}
        config["util"] = [{"name": "mask", "conf": mask}]
    return make_ours(config, batch, device, classes)


def best_rq_conformer(name: str, batch: Tuple[int, float], device: str) -> Step:
    """The recipe's mini BEST-RQ."""
    config = read("train_best_rq_conformer_mini_atm")
    if name == "SpeechBrain":
        return speechbrain_best_rq(config, batch, device)
    config["ssl_conf"] = OURS[name]
    return make_ours(config, batch, device)


# --- wav2vec 2.0's architecture ---------------------------------------------------------


def huggingface_config(
    kind: type, channels: int, width: int, layers: int, heads: int, batch: Any
) -> Any:
    """Of the layout of base."""
    return kind(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        conv_dim=(channels,) * 7,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )


def wav2vec2(size: str, name: str, batch: Tuple[int, float], device: str) -> Step:
    """wav2vec 2.0, with its convolutions on samples."""
    from transformers import Wav2Vec2Config

    config = huggingface_config(Wav2Vec2Config, **SIZES[size])
    config.codevector_dim = config.proj_codevector_dim = 256
    config.feat_quantizer_dropout = 0.0
    if name == "Hugging Face":
        return huggingface_wav2vec2(config, batch, device)
    ours, _ = to_espnet(config, False, {})
    return make_ours({**ours, "ssl_conf": OURS[name]}, batch, device)


def hubert(size: str, name: str, batch: Tuple[int, float], device: str) -> Step:
    """HuBERT, with its convolutions on samples."""
    if name == "torchaudio":
        return torchaudio_hubert(size, batch, device)
    from transformers import HubertConfig

    config = huggingface_config(HubertConfig, **SIZES[size])
    ours, _ = to_espnet(config, False, {}, CLASSES)
    return make_ours({**ours, "ssl_conf": OURS[name]}, batch, device, CLASSES)


# --- other toolkits ---------------------------------------------------------------------


def huggingface_wav2vec2(config: Any, batch: Tuple[int, float], device: str) -> Step:
    """Masks and negatives are drawn as the toolkit's own trainers do, in NumPy."""
    from transformers import Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2 import modeling_wav2vec2 as module

    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(config).to(device).train()
    rows, seconds = batch
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(RATE * seconds)))
    speech = make_batch(frames, rows, seconds, device)["speech"]

    def loss() -> torch.Tensor:
        shape = (rows, frames)
        mask = module._compute_mask_indices(shape, 0.5, 10, min_masks=2)
        drawn = module._sample_negative_indices(shape, config.num_negatives, mask)
        mask = torch.from_numpy(mask).to(device)
        total = model(
            speech,
            mask_time_indices=mask,
            sampled_negative_indices=torch.from_numpy(drawn).long().to(device),
        ).loss
        return total / mask.sum()

    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    return Step(Training(model, optimizer), loss, device)


def torchaudio_hubert(size: str, batch: Tuple[int, float], device: str) -> Step:
    """With the weight of the penalty on features that its recipe has."""
    import torchaudio

    conf = SIZES[size]
    width, channels = conf["width"], conf["channels"]
    layers = [(channels, 10, 5), *[(channels, 3, 2)] * 4, *[(channels, 2, 2)] * 2]
    rows, seconds = batch
    frames = int(RATE * seconds - 400) // 320 + 1
    torch.manual_seed(0)
    model = torchaudio.models.hubert_pretrain_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=layers,
        extractor_conv_bias=False,
        encoder_embed_dim=width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=128,
        encoder_pos_conv_groups=16,
        encoder_num_layers=conf["layers"],
        encoder_num_heads=conf["heads"],
        encoder_attention_dropout=0.1,
        encoder_ff_interm_features=4 * width,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.1,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        mask_prob=stock_mask_prob(rows, frames),
        mask_selection="static",
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=0,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=0,
        skip_masked=False,
        skip_nomask=False,
        num_classes=CLASSES,
        final_dim=256,
        feature_grad_mult=None,
    )
    model = model.to(device).train()
    given = make_batch(frames, rows, seconds, device, CLASSES)

    def loss() -> torch.Tensor:
        # The target's logit comes first.
        masked, _, penalty = model(given["speech"], given["text"])
        target = torch.zeros(len(masked), dtype=torch.long, device=device)
        return F.cross_entropy(masked, target) + 10 * penalty

    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    return Step(Training(model, optimizer), loss, device)


def speechbrain_best_rq(
    config: Dict[str, Any], batch: Tuple[int, float], device: str
) -> Step:
    """Its modules in the sizes of a config, put together as in its recipe.

    One mask serves the whole batch, and what is masked are features, by noise.
    """
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.BESTRQ import compute_mask
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.TransformerASR import (
        EncoderWrapper,
        TransformerASR,
    )
    from speechbrain.nnet.quantisers import RandomProjectionQuantizer
    from speechbrain.processing.features import InputNormalization

    encoder, bands, stack, span = config["encoder_conf"], 80, 4, 40
    width, codes = encoder["output_size"], config["loss"][0]["conf"]["num_codes"]
    torch.manual_seed(0)
    transformer = TransformerASR(
        tgt_vocab=codes,
        input_size=width * bands // stack,
        d_model=width,
        nhead=encoder["attention_heads"],
        num_encoder_layers=encoder["num_blocks"],
        num_decoder_layers=0,
        d_ffn=encoder["linear_units"],
        dropout=encoder["dropout_rate"],
        kernel_size=encoder["cnn_module_kernel"],
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
        normalize_before=True,
        causal=False,
    )
    convolutions = ConvolutionFrontEnd(
        input_shape=(8, 10, bands),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=(width, width),
        kernel_sizes=(3, 3),
        strides=(2, 2),
        residuals=(False, False),
    )
    quantizer = RandomProjectionQuantizer(stack * bands, 16, codes).to(device)
    fbank = Fbank(sample_rate=RATE, n_fft=400, n_mels=bands).to(device)
    normalize = InputNormalization(norm_type="sentence").to(device)
    model = torch.nn.ModuleDict(
        {
            "convolutions": convolutions,
            "encoder": EncoderWrapper(transformer),
            "prediction": torch.nn.Linear(width, codes),
        }
    )
    model = model.to(device).train()
    rows, seconds = batch
    speech = make_batch(1, rows, seconds, device)["speech"]
    share = torch.ones(rows, device=device)

    def loss() -> torch.Tensor:
        features = normalize(fbank(speech), share)
        features = F.pad(features, (0, 0, 0, -features.size(1) % stack))
        frames = features.size(1)
        # Chances of a span to begin at a frame; spans do not overlap.
        mask = compute_mask(features.shape, [frames] * rows, MASKED / span, span)
        mask = mask.to(device)
        where = mask[::stack] // stack
        stacked = features.view(rows, frames // stack, -1)
        targets = quantizer(stacked[:, where])
        features[:, mask] = 0.1 * torch.randn(
            *(rows, len(mask), bands), device=device, dtype=features.dtype
        )
        output = model["encoder"](model["convolutions"](features), share)
        logits = model["prediction"](output)[:, where]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    return Step(Training(model, optimizer), loss, device)


# --- measuring --------------------------------------------------------------------------

CASES = {
    "hubert mini": hubert_conformer,
    "hubert small": lambda *a: hubert("small", *a),
    "wav2vec2 mini": lambda *a: wav2vec2("mini", *a),
    "wav2vec2 small": lambda *a: wav2vec2("small", *a),
    "wav2vec2 base": lambda *a: wav2vec2("base", *a),
    "best_rq mini": best_rq_conformer,
}
# What each is compared with.
PEERS = {
    "hubert mini": "ESPnet",
    "hubert small": "torchaudio",
    "wav2vec2 mini": "Hugging Face",
    "wav2vec2 small": "Hugging Face",
    "wav2vec2 base": "Hugging Face",
    "best_rq mini": "SpeechBrain",
}


def make_call(case: str, name: str, batch: Tuple[int, float], device: str) -> Step:
    """The step of one, ready to run; at the top of the module for other processes."""
    return CASES[case](name, batch, device)


def batch_of(case: str, args: argparse.Namespace) -> Tuple[int, float]:
    """Utterances, seconds of each."""
    if args.quick:
        return 2, 1
    if args.batch:
        return args.batch[0], args.batch[1]
    return SIZES[case.split()[1]]["batch"]


def compare(rows: Rows, case: str, args: argparse.Namespace) -> Dict[str, Times]:
    """One case; what of it could be timed."""
    batch = batch_of(case, args)
    peer = PEERS[case]
    names = [peer, *(OURS if case == "hubert mini" else ["ours, ATM+S"])]
    calls, missing = find_peers(
        {
            name: lambda name=name: make_call(case, name, batch, args.device)
            for name in names
        }
    )
    rounds = args.rounds if case.split()[1] != "base" else max(args.rounds // 6, 1)
    times = interleave(calls, rounds, device=args.device)
    syncs = {name: host_syncs(call, args.device) for name, call in calls.items()}
    sizes = {name: call.parameters / 1e6 for name, call in calls.items()}
    del calls
    memory = {
        name: peak_memory(make_call, case, name, batch, args.device, device=args.device)
        for name in times
    }
    told = f"{case}, {batch[0]} x {batch[1]} s"
    rows.add_missing(missing, told)

    def add(name: str, other: str, goal: str, turned: bool = False) -> None:
        if name not in times or other not in times:
            return
        pair, order = (times[name], times[other]), "the first over the second"
        if turned:
            pair, order = pair[::-1], "the second over the first"
        rows.add(
            *(told, f"{name} and {other}"),
            ratio=ratio(*pair, args.device),
            of=f"time of {order}",
            goal="" if args.quick else goal,
        )

    for name, found in times.items():
        rows.add(
            *(told, name, found),
            memory=memory[name] / MIB,
            syncs=syncs[name],
            note=f"{sizes[name]:.1f} M parameters",
        )
    if case == "hubert mini":
        add("ours, ATM+S", "ours, random", "<= 1.01")
        add("ours, ATM+S", peer, "<= 1.00")
    else:
        add("ours, ATM+S", peer, ">= 3" if "wav2vec2" in case else "", turned=True)
    if peer in times and "wav2vec2" in case:
        rows.add(
            *(told, f"ours, ATM+S and {peer}"),
            ratio=memory["ours, ATM+S"] / max(memory[peer], 1),
            of="peak memory of the first over the second",
            goal="" if args.quick else "<= 0.5",
        )
    return times


def shares(rows: Rows, args: argparse.Namespace) -> None:
    """What parts of an ATM+S step take of it, by themselves."""
    batch = batch_of("hubert mini", args)
    config = read("train_hubert_conformer_mini_atm")
    config["ssl_conf"] = OURS["ours, ATM+S"]
    classes = config["loss"][0]["conf"]["num_classes"]
    training = build(config, args.device, classes)
    model = training.model
    frames = frames_of(model, config, batch[1])
    given = make_batch(frames, *batch, args.device, classes)
    lengths, confidence = given["confidence_lengths"], given["confidence"]
    padding = padding_mask(lengths, frames)
    with torch.no_grad():
        data = model.encode(
            *(given["speech"], given["speech_lengths"]), confidence=confidence
        )
    data.update(
        text=given["text"],
        text_lengths=lengths,
        encoder_output=[x.detach().requires_grad_() for x in data["encoder_output"]],
    )
    encoded = data["preencoder"].detach().requires_grad_()
    gradient = torch.ones_like(encoded)
    (loss,) = model.losses
    for_loss = {k: data[k] for k in loss.required_inputs}
    info = data["mask_info"]

    stock = HuBERTCollateFn(int_pad_value=-1, crop_audio=False)
    grid = model.encoder_grid()
    collate = SyncedCollateFn(stock, grid, grid, label_grid=grid)
    plain = [
        (f"utt{i}", {"speech": speech.numpy(), "text": text.numpy()})
        for i, (speech, text) in enumerate(zip(given["speech"].cpu(), given["text"].cpu()))
    ]
    track = confidence.cpu().numpy().astype(np.float32)
    scored = [
        (utt, {**sample, "confidence": values})
        for (utt, sample), values in zip(plain, track)
    ]
    calls = {
        "step of ATM+S": Step(training, lambda: model(**given)[0], args.device),
        "masks": lambda: model.util_modules["mask"](encoded, padding, confidence)[
            0
        ].backward(gradient),
        "weights": lambda: frame_weights(confidence, lengths, info["mask_m"], "utterance"),
        "statistics of the masks": lambda: _mask_stats(info, lengths, confidence),
        "loss": lambda: loss(**for_loss)[0].backward(),
        "ESPnet's collation": lambda: stock(plain),
        "ours with the track": lambda: collate(scored),
    }
    times = interleave(calls, args.rounds, device=args.device)
    base = times["step of ATM+S"]
    for name, found in times.items():
        rows.add(
            *(f"hubert mini, {batch[0]} x {batch[1]} s, shares", name, found),
            ratio=ratio(found, base, args.device),
            of="its time over the step's",
        )


def one_of(
    rank: int, size: int, batch: Tuple[int, float], device: str, rounds: int, folder: str
) -> None:
    """One of several processes that train together; the first leaves its times."""
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=torch.distributed.FileStore(f"{folder}/store{size}", size),
        rank=rank,
        world_size=size,
    )
    calls = {}
    for name in PARALLEL:
        step = make_call("hubert mini", name, batch, device)
        model = torch.nn.parallel.DistributedDataParallel(step.training.model)
        calls[name] = step.with_model(model)
    times = interleave(calls, rounds, device=device)
    if rank == 0:
        seconds = {name: found.wall for name, found in times.items()}
        Path(folder, f"{size}.json").write_text(json.dumps(seconds))
    torch.distributed.destroy_process_group()


def side_by_side(rows: Rows, args: argparse.Namespace) -> None:
    """Two processes of one training, with a GPU or a CPU thread each."""
    batch = batch_of("hubert mini", args)
    case = f"hubert mini, {batch[0]} x {batch[1]} s each, two processes"
    there = torch.cuda.device_count() if args.device == "cuda" else 2
    if there < 2:
        rows.add(case, "ours", note="missing: there is one GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            given = (size, batch, args.device, args.rounds, folder)
            torch.multiprocessing.spawn(one_of, given, nprocs=size)
        alone, both = (json.loads(Path(folder, f"{n}.json").read_text()) for n in (1, 2))
    alone, both = ({k: Times(wall=x) for k, x in found.items()} for found in (alone, both))
    for name in PARALLEL:
        rows.add(
            *(case, name, both[name]),
            ratio=both[name].median / alone[name].median,
            of="its time over one process's",
        )
    rows.add(
        *(case, "ours, ATM+S and ours, random"),
        ratio=both["ours, ATM+S"] / both["ours, random"],
        of="time of the first over the second",
        goal="" if args.quick or args.device == "cpu" else "<= 1.01",
    )


def main() -> None:
    """Measure and print."""
    parser = get_parser(__doc__, rounds=30)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--batch", nargs=2, type=int, help="utterances and seconds of each, in all cases"
    )
    args = parser.parse_args()
    start(args)
    rows = Rows("step", args)
    for case in args.cases:
        if not (args.quick and case.endswith("base")):
            compare(rows, case, args)
    shares(rows, args)
    side_by_side(rows, args)
    none = "missing: no toolkit that was found trains it; SpeechBrain loads published ones"
    rows.add("w2v_bert", "other toolkits", note=none)
    rows.finish()


if __name__ == "__main__":
    main()
