import pytest
import torch

from espnet_atm.weighting import frame_weights

CONFIDENCE = torch.tensor([[0.2, 0.4, 0.6, 0.0], [1.0, 0.5, 0.0, 0.0]])
LENGTHS = torch.tensor([3, 2])
MASK = torch.tensor([[False, True, True, False], [False, True, False, False]])


def test_utterance_weights_by_hand():
    got = frame_weights(CONFIDENCE, LENGTHS, MASK, "utterance")
    torch.testing.assert_close(got, torch.tensor([[0.4] * 4, [0.75] * 4]))


def test_average_over_the_masked_frames_by_hand():
    got = frame_weights(CONFIDENCE, LENGTHS, MASK, "utterance", average="masked")
    torch.testing.assert_close(got, torch.tensor([[0.5] * 4, [0.5] * 4]))


def test_frame_weights_for_a_part_of_the_utterances(generator):
    always = frame_weights(CONFIDENCE, LENGTHS, MASK, "frame", frame_prob=1.0)
    assert torch.equal(always, CONFIDENCE)
    never = frame_weights(CONFIDENCE, LENGTHS, MASK, "frame", frame_prob=0.0)
    assert (never == 1).all()
    many = frame_weights(
        torch.zeros(5000, 2),
        torch.full((5000,), 2),
        torch.ones(5000, 2),
        "frame",
        frame_prob=0.1,
        generator=generator,
    )
    assert torch.equal(many[:, 0], many[:, 1])
    assert abs((many[:, 0] == 0).float().mean() - 0.1) < 0.02


def test_sharper_weights():
    plain = frame_weights(CONFIDENCE, LENGTHS, MASK, "utterance")
    squared = frame_weights(CONFIDENCE, LENGTHS, MASK, "utterance", sharpness=2.0)
    torch.testing.assert_close(squared, plain**2)


def test_no_weights_without_scale():
    with pytest.raises(ValueError, match="loss_scale: 'none' has no weights"):
        frame_weights(CONFIDENCE, LENGTHS, MASK, "none")
