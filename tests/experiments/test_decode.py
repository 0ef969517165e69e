"""What is heard of an utterance, and how unlikely what was said is."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from espnet2.tasks.asr import ASRTask

sys.path.insert(0, str(ROOT / "experiments"))
import decode  # noqa: E402
import experiment  # noqa: E402


@pytest.fixture
def model(tmp_path):
    """The scorer, with nothing learned."""
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\n<space>\na\nb\n<sos/eos>\n")
    config = experiment.write_yaml(
        tmp_path / "a.yaml", experiment.asr_config(None, "scorer", 0)
    )
    torch.manual_seed(0)
    return ASRTask.build_model(ASRTask.get_parser().parse_args(
        ["--config", str(config), "--output_dir", str(tmp_path), "--token_type", "char",
         "--token_list", str(tmp_path / "tokens.txt")]
    )).eval()


def utterance(samples):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=samples).astype(np.float32) / 10)


@pytest.mark.parametrize("text, ids", [("ab a", [3, 4, 2, 3]), ("b", [4]), ("a?b", [3, 1, 4])])
def test_a_loss_is_the_models_own(model, text, ids):
    """With a space, and with what is no token."""
    speech, labels = utterance(16000), decode.label_ids(model, text)
    assert labels.tolist() == ids
    _, loss = decode.transcribe(model, speech, labels)
    with torch.no_grad():
        own, _, _ = model(
            speech[None], torch.tensor([len(speech)]), labels[None], torch.tensor([len(labels)])
        )
    assert loss == pytest.approx(own.item(), rel=1e-5)


def test_repeats_and_blanks_are_left_out(model):
    """The likeliest label is made to be one of the time, not of the audio."""
    labels = torch.tensor([0, 3, 3, 0, 3, 2, 4, 4, 1, 0])
    frames = torch.nn.functional.one_hot(labels, 6).float()[None]
    model.encode = lambda speech, lengths: (frames, torch.tensor([len(labels)]))
    model.ctc.ctc_lo = torch.nn.Identity()
    heard, _ = decode.transcribe(model, utterance(1000), torch.tensor([3, 4]))
    assert heard == "aa b"


def test_more_characters_than_frames_have_no_loss(model):
    _, loss = decode.transcribe(model, utterance(1600), torch.full((100,), 3))
    assert loss == np.inf
