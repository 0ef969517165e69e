import pytest
import torch

from espnet_atm.wav2vec2 import Wav2Vec2Frontend, _convolve

SHAPES = [[8, 10, 5], [8, 3, 2], [8, 2, 2]]


def frontend(norm="group_norm", bias=True) -> Wav2Vec2Frontend:
    made = Wav2Vec2Frontend(norm, bias, SHAPES, normalize_audio=True)
    for parameter in made.parameters():  # norms too
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("bias", [False, True])
def test_one_channel_is_convolved_by_a_product(bias):
    conv = torch.nn.Conv1d(1, 6, 10, 5, bias=bias).double()
    x = torch.randn(3, 1, 78, dtype=torch.double, requires_grad=True)
    gradients = []
    for function in (conv, lambda x: _convolve(conv, x)):
        output = function(x)
        gradient = torch.autograd.grad(
            (output * torch.arange(output.size(2))).sum(), [x, *conv.parameters()]
        )
        gradients.append([output, *gradient])
    torch.testing.assert_close(*gradients)
    assert gradients[1][0].is_contiguous()


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_utterances_are_the_same_beside_a_longer_one_and_without(norm):
    """Without padding torch's norms are used, with it our own; gradients too."""
    made = frontend(norm)
    speech, lengths = torch.randn(2, 400), torch.tensor([400, 400])
    longer = torch.nn.functional.pad(speech, (0, 100))
    longer = torch.cat([longer, torch.randn(1, 500)])
    found = []
    for audio, samples in ((speech, lengths), (longer, torch.tensor([400, 400, 500]))):
        output, frames = made(audio, samples)
        assert frames[:2].tolist() == [19, 19]
        output = output[:2, :19]
        weights = torch.arange(output.numel()).reshape(output.shape) / output.numel()
        gradients = torch.autograd.grad((output * weights).sum(), made.parameters())
        found.append([output, *gradients])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
