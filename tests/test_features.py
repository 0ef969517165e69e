"""What pseudo-labels are made of, beside ESPnet's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CNN, LOSSES, ROOT, SSL_CONFIG

from espnet_atm.errors import UserError
from espnet_atm.features import Layer, Mfcc
from espnet_atm.task import ATMSSLTask, encoder_grid

# In a process of its own: it sets up logging, and asks for folders by their place.
ESPNET = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from ssl_feature_utils import MfccFeatureReader
found = {}
for name, speech in np.load(sys.argv[2]).items():
    rate = int(name.split("_")[0])
    reader = MfccFeatureReader(sample_rate=rate, audio_sample_rate=rate)
    (feats,), _ = reader.get_feats(speech, len(speech))
    found[name] = feats.numpy()
np.savez(sys.argv[3], **found)
"""


def noise(samples, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(samples)).astype(np.float32)


def test_mfcc_are_espnets(spoken, tmp_path):
    speech = next(iter(spoken.values())).numpy()
    audio = {f"{rate}_{n}": noise(n) for rate in (8000, 16000) for n in (400, 561, 12345)}
    audio["16000_speech"] = speech
    audio["8000_speech"] = np.ascontiguousarray(speech[::2])
    np.savez(tmp_path / "audio.npz", **audio)
    folder = ROOT / "egs2/TEMPLATE/asr1/pyscripts/feats"
    files = [tmp_path / "audio.npz", tmp_path / "feats.npz"]
    subprocess.run([sys.executable, "-c", ESPNET, folder, *files], check=True)
    with np.load(tmp_path / "feats.npz") as expected:
        assert set(expected) == set(audio)
        for name, feats in expected.items():
            found = Mfcc(int(name.split("_")[0]))(audio[name])
            assert found.dtype == torch.float32 and found.shape[1] == 39
            np.testing.assert_allclose(found.numpy(), feats, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 44100, 48000])
def test_as_many_frames_as_the_grid_says(rate):
    """Kaldi cuts windows to whole samples: 275 of 11025 Hz."""
    features = Mfcc(rate)
    shift = int(rate * 0.01)
    window = int(rate * 0.025)
    assert features.grid.offset == (window - 1) / 2
    for samples in (window, window + 1, *(9 * shift + x for x in range(shift + 1))):
        assert len(features(noise(samples))) == features.grid.length(samples), samples
    assert [features.grid.length(x) for x in (0, 1, window - 1)] == [0, 0, 0]


def make_ssl(folder: Path, **config) -> tuple[Path, Path]:
    """An untrained SSL model: its config.yaml and .pth."""
    folder.mkdir()
    (folder / "train.yaml").write_text(yaml.safe_dump({**SSL_CONFIG, **config}))
    args = ATMSSLTask.get_parser().parse_args(["--config", str(folder / "train.yaml")])
    ATMSSLTask.check_labels(args)
    torch.manual_seed(0)
    model = ATMSSLTask.build_model(args)
    torch.save(model.state_dict(), folder / "latest.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return folder / "config.yaml", folder / "latest.pth"


PATHS = {
    "conformer": {},
    "wav2vec_cnn": {
        "loss": [{"name": "wav2vec2", "conf": LOSSES["wav2vec2"]}],
        "frontend": "wav2vec_cnn",
        "frontend_conf": CNN,
        "preencoder": "linear",
        "encoder": "transformer",
        "encoder_conf": {
            **{"output_size": 16, "attention_heads": 2, "linear_units": 16},
            **{"num_blocks": 3, "input_layer": "linear"},
        },
    },
    "w2v_bert": {"loss": [{"name": "w2v_bert", "conf": LOSSES["w2v_bert"]}]},
}


@pytest.fixture(scope="module", params=PATHS)
def ssl(request, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ssl") / "run"
    loss = [{"name": "best_rq", "conf": LOSSES["best_rq"]}]
    return make_ssl(
        folder, **{"loss": loss, **PATHS[request.param], "ssl_conf": {"masker": "random"}}
    )


def test_a_layer_is_what_the_model_puts_out(ssl):
    model, args = ATMSSLTask.build_model_from_file(*ssl)
    model.eval()
    grid = encoder_grid(args)
    for layer in range(1, len(model.encoder.encoders) + 1):
        features = Layer(*ssl, layer)
        assert features.grid == grid and features.sampling_rate == 16000
        for samples in (1600, 3999, 4000, 12345):
            speech = noise(samples, samples)
            found = features(speech)
            with torch.no_grad():
                _, layers, lengths = model.inference_encode(
                    torch.from_numpy(speech)[None], torch.tensor([samples])
                )
            assert len(found) == grid.length(samples) == int(lengths)
            assert found.dtype == torch.float32 and not found.requires_grad
            assert torch.equal(found, layers[layer - 1][0])
            # As if alone: whatever was there before, and again.
            assert torch.equal(found, features(speech))
    # What a layer says is its own.
    one, two = (Layer(*ssl, layer)(noise(4000)) for layer in (1, 2))
    assert len(one) == grid.length(4000) and not torch.allclose(one, two)


@pytest.mark.parametrize("layer", [0, -1, 99])
def test_a_layer_that_is_not_there_is_refused(ssl, layer):
    with pytest.raises(UserError, match=rf"layer: {layer} is none of the [23] layers of .*pth"):
        Layer(*ssl, layer)


def test_what_is_no_ssl_model_is_refused(ssl, asr, tmp_path):
    for files in (asr, (asr[0], ssl[1]), (ssl[0], asr[1])):
        with pytest.raises(UserError) as e:
            Layer(*files, 1)
        assert str(files[0]) in str(e.value) or str(files[1]) in str(e.value)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="train.yaml: the model's options: .*token_list"):
        Layer(ssl[0].with_name("train.yaml"), ssl[1], 1)
    (tmp_path / "model.pth").write_text("no model")
    with pytest.raises(UserError, match="model.pth"):
        Layer(ssl[0], tmp_path / "model.pth", 1)


def test_features_are_told_apart(ssl, tmp_path):
    first = Layer(*ssl, 1)
    assert first.describe() == Layer(*ssl, 1).describe()
    assert first.describe() != Layer(*ssl, 2).describe() != Mfcc(16000).describe()
    other = tmp_path / "other.pth"
    state = torch.load(ssl[1], weights_only=True)
    state[next(x for x in state if x.startswith("encoder") and state[x].dim() > 1)] += 1
    torch.save(state, other)
    assert Layer(ssl[0], other, 1).describe() != first.describe()
