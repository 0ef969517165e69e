import itertools
import math
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ASR_CONFIG, ROOT

from espnet_atm.scorer import Scorer
from espnet_atm.transducer import RNNTLoss

TRANSDUCER = {
    "decoder": "transducer",
    "decoder_conf": {"rnn_type": "lstm", "hidden_size": 8, "num_layers": 1},
    "joint_net_conf": {"joint_space_size": 8},
    "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
}


def paths(frames: int, labels: int):
    """Every order of T blanks and U labels; the last step is a blank."""
    for chosen in itertools.combinations(range(frames - 1 + labels), labels):
        yield [i in chosen for i in range(frames - 1 + labels)] + [False]


def likelihood(log_probs: torch.Tensor, labels: list[int]) -> float:
    """The sum over all alignments, by going through each of them."""
    total = 0.0
    for steps in paths(len(log_probs), len(labels)):
        t = u = 0
        score = 0.0
        for is_label in steps:
            score += float(log_probs[t, u, labels[u] if is_label else 0])
            t, u = (t, u + 1) if is_label else (t + 1, u)
        total += math.exp(score)
    return total


def test_loss_is_the_sum_over_alignments(generator):
    logits = torch.randn(2, 4, 3, 5, generator=generator)
    labels = torch.tensor([[1, 3], [2, -1]])
    frames, lengths = torch.tensor([4, 3]), torch.tensor([2, 1])
    loss = RNNTLoss(blank=0, reduction="none")(logits, labels, frames, lengths)
    for row, (t, u) in enumerate(zip(frames, lengths)):
        log_probs = logits[row, :t, : u + 1].log_softmax(-1)
        expected = -math.log(likelihood(log_probs, labels[row, :u].tolist()))
        assert float(loss[row]) == pytest.approx(expected, rel=1e-5)


def test_mean_is_over_the_batch(generator):
    logits = torch.randn(2, 4, 3, 5, generator=generator, requires_grad=True)
    args = (torch.tensor([[1, 3], [2, 4]]), torch.tensor([4, 4]), torch.tensor([2, 2]))
    mean = RNNTLoss()(logits, *args)
    assert mean.item() == pytest.approx(
        RNNTLoss(reduction="none")(logits, *args).mean().item()
    )
    mean.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


def test_fastemit_is_refused():
    with pytest.raises(ValueError, match="fastemit_lambda: 0.1 is not 0"):
        RNNTLoss(fastemit_lambda=0.1)


def test_a_transducer_with_ctc_can_be_the_scorer(make_asr):
    scorer = Scorer.from_files(*make_asr(**TRANSDUCER))
    confidence, frames = scorer.score(
        torch.randn(1, 16000) * 0.1, torch.tensor([16000])
    )
    assert confidence.shape == (1, int(frames[0]))


def test_espnet_trains_a_transducer(corpus, tmp_path):
    """Without anything compiled; each parameter moves."""
    config = {
        **{k: v for k, v in ASR_CONFIG.items() if k != "token_list"},
        **TRANSDUCER,
        **dict(batch_type="unsorted", batch_size=5, optim="adam", max_epoch=1),
        **dict(num_workers=0, use_tensorboard=False, use_matplotlib=False),
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    tokens = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
    (tmp_path / "tokens.txt").write_text("\n".join(tokens) + "\n")
    (tmp_path / "text").write_text("".join(f"utt{n} a b a\n" for n in range(10)))
    command = [sys.executable, "-m", "espnet_atm", "-m", "espnet2.bin.asr_train"]
    command += ["--config", str(tmp_path / "train.yaml"), "--token_type", "word"]
    command += ["--token_list", str(tmp_path / "tokens.txt")]
    command += ["--output_dir", str(tmp_path / "exp")]
    for mode in ("train", "valid"):
        command += [f"--{mode}_shape_file", str(corpus / "shape")]
        for data in (f"{corpus}/wav.scp,speech,sound", f"{tmp_path}/text,text,text"):
            command += [f"--{mode}_data_path_and_name_and_type", data]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loss_transducer" in (done.stderr + done.stdout)
