import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import LOSSES

from espnet_atm.bin.export_ssl import export, main
from espnet_atm.task import ATMSSLTask

# Runs where this package cannot be imported.
BY_FRONTEND = """
import sys
import numpy, torch
try:
    import espnet_atm
    sys.exit("espnet_atm is importable here")
except ImportError:
    pass
from espnet2.asr.frontend.espnet_ssl import ESPnetSSLFrontend
model = ESPnetSSLFrontend(frontend_conf={"path_or_url": sys.argv[1]}).eval()
speech = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    feats, lengths = model(speech, torch.full((len(speech),), speech.size(1)))
numpy.save(sys.argv[3], feats.numpy())
"""

ASR = """
frontend: default
frontend_conf: {n_fft: 512, win_length: 400, hop_length: 160}
encoder: conformer
encoder_conf: {input_layer: conv2d, output_size: 16, attention_heads: 2, linear_units: 16,
  num_blocks: 2, rel_pos_type: latest, macaron_style: true}
decoder: null
model_conf: {ctc_weight: 1.0}
normalize: utterance_mvn
"""

BY_INIT_PARAM = """
import sys
import torch
try:
    import espnet_atm
    sys.exit("espnet_atm is importable here")
except ImportError:
    pass
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
pth, config, tokens = sys.argv[1:]
args = ASRTask.get_parser().parse_args(["--config", config, "--token_list", tokens])
model = ASRTask.build_model(args)
load_pretrained_model(f"{pth}:encoder:encoder", model, ignore_init_mismatch=False)
state = torch.load(pth)
loaded = model.state_dict()
missing = [k for k in loaded if k.startswith("encoder.") and k not in state]
assert not missing, missing
assert all(torch.equal(loaded[k], v) for k, v in state.items() if k.startswith("encoder."))
"""


def run_without_the_package(code: str, *arguments) -> None:
    subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import site, sys\n{WITHOUT}\n{code}",
            *map(str, arguments),
        ],
        check=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )


# Site packages, less the folders that editable installs add.
WITHOUT = """
import os
before = set(sys.path)
site.main()
sys.meta_path[:] = [x for x in sys.meta_path if "editable" not in repr(x).lower()]
sys.path[:] = [x for x in sys.path if not os.path.isdir(os.path.join(x or ".", "espnet_atm"))]
"""


@pytest.fixture
def pretrained(ssl_command):
    """A model before its first step, its config, and the files of both."""

    def make(token_list=None, **config):
        command = ssl_command(ssl_conf={"masker": "atm"}, **config)
        folder = Path(command[command.index("--output_dir") + 1])
        args = ATMSSLTask.get_parser().parse_args(command)
        if token_list is not None:
            args.token_list = token_list
        torch.manual_seed(0)
        model = ATMSSLTask.build_model(args).eval()
        torch.save(model.state_dict(), folder / "valid.loss.best.pth")
        (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
        main(
            [
                *("--ssl_train_config", str(folder / "config.yaml")),
                *("--ssl_model_file", str(folder / "valid.loss.best.pth")),
                *("--output_dir", str(folder / "export")),
            ]
        )
        return model, folder / "export" / "valid.loss.best.pth"

    return make


@pytest.mark.parametrize("path", ["conv2d", "wav2vec_cnn", "w2v_bert"])
def test_stock_espnet_computes_the_same_by_frontend(pretrained, tmp_path, path):
    from test_task import WAV2VEC

    loss = [{"name": "w2v_bert", "conf": LOSSES["w2v_bert"]}]
    configs = {
        "conv2d": {},
        "wav2vec_cnn": WAV2VEC,
        "w2v_bert": {"loss": loss, "token_list": []},
    }
    model, file = pretrained(**configs[path])
    speech = torch.randn(2, 16000)
    with torch.no_grad():
        expected, _, _ = model.inference_encode(speech, torch.full((2,), 16000))
    np.save(tmp_path / "speech.npy", speech.numpy())
    run_without_the_package(
        BY_FRONTEND, file, tmp_path / "speech.npy", tmp_path / "feats.npy"
    )
    got = torch.from_numpy(np.load(tmp_path / "feats.npy"))
    torch.testing.assert_close(
        got, expected[0] if isinstance(expected, tuple) else expected
    )


def test_stock_espnet_loads_the_encoder_by_init_param(pretrained, corpus, tmp_path):
    _, file = pretrained()
    (tmp_path / "asr.yaml").write_text(ASR)
    run_without_the_package(
        BY_INIT_PARAM, file, tmp_path / "asr.yaml", corpus / "tokens.txt"
    )


def test_only_the_model_is_left(pretrained):
    _, file = pretrained()
    state = torch.load(file, weights_only=True)
    assert not [
        k for k in state if k.startswith(("losses.", "util_modules.", "preencoder."))
    ]
    config = yaml.safe_load((file.parent / "config.yaml").read_text())
    assert config["loss"] == [] and config["util"] == [] and config["init"] is None
    assert "ssl_conf" not in config and "train_shape_file" not in config
    assert config["preencoder"] is None
    assert config["encoder_conf"]["input_layer"] == "conv2d"


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(ValueError, match="no encoder, frontend: not an SSL run's"):
        export({"token_list": []}, {})
    config = {
        "token_list": [],
        "frontend": "default",
        "encoder": "conformer",
        "preencoder": "conv2d",
        "encoder_conf": {"input_layer": "linear"},
    }
    with pytest.raises(ValueError, match="input_layer: linear leaves no room"):
        export(config, {})
    # A transformer with input_layer: null has no positions, and with conv2d it has.
    config.update(encoder="transformer", encoder_conf={"input_layer": None})
    with pytest.raises(ValueError, match="encoder: transformer adds no positions"):
        export(config, {})
