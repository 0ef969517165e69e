#!/usr/bin/env python3
"""Greedy CTC decoding of dev, or of the sets that are named: each utterance's character errors.

Writes JSON: for each model's folder name and set, the errors, in the order of the
utterances' ids.
"""

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path

import soundfile
import torch
from espnet2.tasks.asr import ASRTask
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "egs2/atm_librilight/ssl1/local")
)
from results import jiwer_counts, read_text  # noqa: E402

BATCH = 8  # utterances of like length


@torch.no_grad()
def transcribe(model: torch.nn.Module, speech: list[torch.Tensor]) -> list[str]:
    """The likeliest label of each frame, repeats and blanks left out.

    Args:
        speech: utterances (N,), float.
    """
    order = sorted(range(len(speech)), key=lambda i: len(speech[i]))
    said = [""] * len(speech)
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        batch = [speech[i] for i in chosen]
        lengths = torch.tensor([len(x) for x in batch])
        encoded, encoded_lengths = model.encode(pad_sequence(batch, True), lengths)
        for i, labels, n in zip(chosen, model.ctc.argmax(encoded), encoded_lengths):
            kept = [k for k, _ in groupby(labels[:n].tolist()) if k != model.blank_id]
            tokens = (model.token_list[k] for k in kept)
            said[i] = " ".join("".join(
                {"<space>": " ", "<unk>": "", "<sos/eos>": ""}.get(x, x) for x in tokens
            ).split())
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["dev"], help="in data_dir")
    parser.add_argument("models", type=Path, nargs="+", help="folders of asr_train")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[int]]] = {}
    for folder in args.models:
        model, _ = ASRTask.build_model_from_file(
            folder / "config.yaml", folder / "valid.cer_ctc.best.pth", "cpu"
        )
        model.eval()
        for name in args.sets:
            wavs = read_text(args.data_dir / name / "wav.scp")
            text = read_text(args.data_dir / name / "text")
            utts = sorted(wavs)
            speech = [
                torch.from_numpy(soundfile.read(wavs[u], dtype="float32")[0]) for u in utts
            ]
            said = transcribe(model, speech)
            counts = jiwer_counts([text[u] for u in utts], said, "cer")
            found.setdefault(folder.name, {})[name] = counts.errors.tolist()
            print(f"{folder.name}, {name}: CER {counts.rate:.2f} %", flush=True)
            print(f"  {utts[0]}: {said[0]!r} for {text[utts[0]]!r}")
    args.output.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
