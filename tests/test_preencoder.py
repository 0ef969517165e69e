import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
)

from espnet_atm.errors import UserError
from espnet_atm.preencoder import Conv2dPreEncoder, stock_weights


@pytest.fixture
def stock():
    """A narrow preencoder, and ESPnet's layer with its weights."""
    torch.manual_seed(0)
    ours = Conv2dPreEncoder(80, 16, channels=6)
    layer = Conv2dSubsampling(80, 16, 0.0, torch.nn.Identity())
    layer.load_state_dict(stock_weights(ours.embed.state_dict()))
    return ours, layer


def test_fewer_channels_have_fewer_parameters():
    def parameters(*sizes):
        return sum(p.numel() for p in Conv2dPreEncoder(*sizes).parameters())

    # conv (3 x 3 + bias), conv, and a layer over 19 bands
    assert parameters(80, 16, 6) == 6 * 10 + 6 * (9 * 6 + 1) + 16 * (19 * 6 + 1)
    assert parameters(80, 16) == parameters(80, 16, None) == parameters(80, 16, 16)


def test_espnets_layer_computes_the_same(stock):
    ours, layer = stock
    features, lengths = torch.randn(2, 50, 80), torch.tensor([50, 31])
    expected, expected_lengths = ours(features, lengths)
    mask = torch.arange(50) < lengths[:, None]
    found, mask = layer(features, mask[:, None])
    torch.testing.assert_close(found, expected)
    assert mask.sum(dim=(1, 2)).tolist() == expected_lengths.tolist() == [11, 7]


def test_what_was_added_stays_zero_in_training(stock):
    """So a model that is fine-tuned has as much to learn as was pre-trained."""
    _, layer = stock
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(2, 50, 80), None)[0].square().sum().backward()
        optimizer.step()
    state = layer.state_dict()
    added = [state["conv.0.weight"][6:], state["conv.0.bias"][6:]]
    added += [state["conv.2.weight"][6:], state["conv.2.weight"][:, 6:]]
    added += [state["conv.2.bias"][6:], state["out.weight"][:, 6 * 19 :]]
    assert all(x.numel() and not x.any() for x in added)


@pytest.mark.parametrize(
    "channels, message",
    [
        (0, "preencoder_conf.channels: 0 is not positive"),
        (17, "preencoder_conf.channels: 17 is too large: 16 at most"),
        (8.0, "preencoder_conf.channels: 8.0 is not a whole number; write 8"),
        ("8", "preencoder_conf.channels: '8' is not a whole number; write 8"),
        (True, "preencoder_conf.channels: True is not a whole number"),
    ],
)
def test_impossible_channels_are_refused(channels, message):
    with pytest.raises(UserError, match=message):
        Conv2dPreEncoder(80, 16, channels)
