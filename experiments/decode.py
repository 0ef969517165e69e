#!/usr/bin/env python3
"""Character errors of greedy CTC decoding, and CTC losses, of each utterance of dev or other sets.

Writes JSON: ``errors`` and ``losses`` (in nats), for each model's folder name and set, in the
order of the utterances' ids.
"""

import argparse
import json
import math
import sys
from itertools import groupby
from pathlib import Path

import soundfile
import torch
from espnet2.tasks.asr import ASRTask
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter
from torch.nn.functional import ctc_loss

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "egs2/atm_librilight/ssl1/local")
)
from results import jiwer_counts, read_text  # noqa: E402



def label_ids(model: torch.nn.Module, text: str) -> torch.Tensor:
    """The labels of a text (L,), characters as in the model's training."""
    characters = build_tokenizer("char").text2tokens(text)
    return torch.tensor(TokenIDConverter(model.token_list).tokens2ids(characters))


@torch.no_grad()
def transcribe(
    model: torch.nn.Module, speech: torch.Tensor, labels: torch.Tensor
) -> tuple[str, float]:
    """What is heard, and how unlikely what was said is.

    Args:
        speech: one utterance (N,), float; in a batch, padding would change its scores.
        labels: of what was said (L,).

    Returns:
        The likeliest label of each frame, repeats and blanks left out; and the CTC loss in
        nats, infinite if there are fewer frames than labels.
    """
    encoded, lengths = model.encode(speech[None], torch.tensor([len(speech)]))
    scores = model.ctc.log_softmax(encoded)
    loss = ctc_loss(
        scores.transpose(0, 1), labels[None], lengths, torch.tensor([len(labels)]),
        model.blank_id, "sum",
    )
    kept = [k for k, _ in groupby(scores[0].argmax(1).tolist()) if k != model.blank_id]
    tokens = (model.token_list[k] for k in kept)
    heard = "".join({"<space>": " ", "<unk>": "", "<sos/eos>": ""}.get(x, x) for x in tokens)
    return " ".join(heard.split()), loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["dev"], help="in data_dir")
    parser.add_argument("--model_file", default="valid.cer_ctc.ave.pth", help="in each folder")
    parser.add_argument("models", type=Path, nargs="+", help="folders of asr_train")
    args = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[str, dict[str, list[int]]] = {}
    losses: dict[str, dict[str, list[float]]] = {}
    for folder in args.models:
        model, _ = ASRTask.build_model_from_file(
            folder / "config.yaml", folder / args.model_file, "cpu"
        )
        model.eval()
        for name in args.sets:
            wavs = read_text(args.data_dir / name / "wav.scp")
            text = read_text(args.data_dir / name / "text")
            utts = sorted(wavs)
            heard, found = [], []
            for utt in utts:
                speech = torch.from_numpy(soundfile.read(wavs[utt], dtype="float32")[0])
                words, loss = transcribe(model, speech, label_ids(model, text[utt]))
                if not math.isfinite(loss):
                    raise ValueError(f"{name}, {utt}: has fewer frames than characters")
                heard.append(words)
                found.append(float(f"{loss:.5g}"))
            counts = jiwer_counts([text[u] for u in utts], heard, "cer")
            errors.setdefault(folder.name, {})[name] = counts.errors.tolist()
            losses.setdefault(folder.name, {})[name] = found
            print(f"{folder.name}, {name}: CER {counts.rate:.2f} %", flush=True)
            print(f"  {utts[0]}: {heard[0]!r} for {text[utts[0]]!r}")
    args.output.write_text(json.dumps({"errors": errors, "losses": losses}) + "\n")


if __name__ == "__main__":
    main()
