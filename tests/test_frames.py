import numpy as np
import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.frontend.cnn import CNNFrontend
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask

from espnet_atm.frames import (
    FrameGrid,
    frontend_layers,
    measured_grid,
    nearest_frames,
    padding_mask,
    subsampling_layers,
)
from espnet_atm.preencoder import Conv2dPreEncoder


def logmel() -> DefaultFrontend:
    return DefaultFrontend(n_fft=512, win_length=400, hop_length=160)


def wav2vec_cnn() -> CNNFrontend:
    return CNNFrontend("layer_norm", "standard", True)


def test_grids_by_hand():
    mel = FrameGrid.from_layers(frontend_layers(logmel()))
    assert (mel.shift, mel.offset) == (160, -0.5)
    assert [mel.length(n) for n in (1, 159, 160, 16000)] == [1, 1, 2, 101]
    cnn = FrameGrid.from_layers(frontend_layers(wav2vec_cnn()))
    assert (cnn.shift, cnn.offset) == (320, 199.5)
    assert [cnn.length(n) for n in (399, 400, 719, 720, 16000)] == [0, 1, 1, 2, 49]
    conv2d = FrameGrid.from_layers(
        frontend_layers(logmel()) + subsampling_layers(Conv2dPreEncoder(80, 8))
    )
    # frame 0 is seen through log-mel frames 0..6, whose middle is frame 3
    assert (conv2d.shift, conv2d.offset) == (640, 479.5)
    assert conv2d.length(959) == 0 and conv2d.length(960) == 1


@pytest.mark.parametrize("samples", [960, 1599, 1600, 12345, 16000, 48001])
@pytest.mark.parametrize("make", [logmel, wav2vec_cnn])
def test_lengths_are_those_of_the_front_ends(make, samples):
    frontend = make()
    grid = FrameGrid.from_layers(frontend_layers(frontend))
    feats, lengths = frontend(torch.randn(1, samples), torch.tensor([samples]))
    assert feats.size(1) == int(lengths) == grid.length(samples)


@pytest.mark.parametrize("frames", [7, 8, 9, 10, 11, 100, 101, 102, 103])
def test_lengths_are_those_of_conv2d(frames):
    preencoder = Conv2dPreEncoder(80, 8)
    grid = FrameGrid.from_layers(subsampling_layers(preencoder))
    output, lengths = preencoder(torch.randn(1, frames, 80), torch.tensor([frames]))
    assert output.size(1) == int(lengths) == grid.length(frames)


@pytest.mark.parametrize(
    "layer", ["conv2d1", "conv2d2", "conv2d", "conv2d6", "conv2d8"]
)
def test_lengths_are_those_of_espnets_subsampling(layer):
    encoder = ConformerEncoder(
        80, 8, attention_heads=2, linear_units=8, num_blocks=1, input_layer=layer
    ).eval()
    grid = FrameGrid.from_layers(subsampling_layers(encoder.embed))
    for frames in (40, 41, 42, 43, 44, 45, 46, 47, 100):
        _, lengths, _ = encoder(torch.randn(1, frames, 80), torch.tensor([frames]))
        assert int(lengths) == grid.length(frames)


def test_conv2d_does_not_depend_on_padding():
    preencoder = Conv2dPreEncoder(80, 8).eval()
    x = torch.randn(1, 50, 80)
    alone, frames = preencoder(x, torch.tensor([50]))
    padded = torch.cat([x, torch.zeros(1, 30, 80)], dim=1)
    both, lengths = preencoder(
        torch.cat([padded, torch.randn(1, 80, 80)]), torch.tensor([50, 80])
    )
    assert lengths[0] == frames[0]
    torch.testing.assert_close(both[0, : int(frames)], alone[0])


def test_measured_grid_agrees_with_the_layers():
    grid = FrameGrid.from_layers(frontend_layers(wav2vec_cnn()))
    measured = measured_grid(grid.length)
    assert measured.shift == grid.shift
    assert abs(measured.offset - grid.offset) <= grid.shift / 2


def test_a_model_without_frame_rate_is_refused():
    with pytest.raises(ValueError, match="128000 samples give 3 frames"):
        measured_grid(lambda samples: 3)


def test_unknown_front_ends_are_refused():
    with pytest.raises(ValueError, match="front end Linear are not known"):
        frontend_layers(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("there", [(160, 199.5), (640, 479.5), (320, 199.5), (88.2, 40.3)])
@pytest.mark.parametrize("frames", [(640, 479.5), (320, 199.5), (160, -0.5)])
def test_nearest_frames_are_nearest_in_time(there, frames):
    found = nearest_frames(FrameGrid(*there), FrameGrid(*frames), 50)
    assert found.dtype == np.int64 and found.shape == (50,)
    numbers = np.arange(-20, 1000)
    times = there[1] + there[0] * numbers
    for index, number in enumerate(found):
        distances = np.abs(times - (frames[1] + frames[0] * index))
        assert distances[numbers == number] == pytest.approx(distances.min(), abs=1e-9)
    assert len(nearest_frames(FrameGrid(*there), FrameGrid(*frames), 0)) == 0


def test_padding_is_what_lies_behind_an_utterance():
    lengths = torch.tensor([3, 0, 4])
    found = padding_mask(lengths, 4)
    assert found.dtype == torch.bool
    assert found.int().tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert torch.equal(found, make_pad_mask(lengths, maxlen=4))
    assert padding_mask(lengths, 9)[:, 4:].all()
    # No value is waited for: tensors without values have none to read.
    assert padding_mask(torch.empty(2, dtype=torch.long, device="meta"), 5).shape == (2, 5)
