import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import LOSSES, RECIPE
from test_task import WAV2VEC

from espnet_atm.export import asr_lines, export, for_espnet, read_run, write_export
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

ASR = {
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
    "specaug": None,
    "frontend_conf": {"fs": "16k"},  # asr.sh gives it
}

# As asr_train starts, to its first step.
BY_ASR = """
import sys
import numpy, torch
try:
    import espnet_atm
    sys.exit("espnet_atm is importable here")
except ImportError:
    pass
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
speech, out, *arguments = sys.argv[1:]
args = ASRTask.get_parser().parse_args(arguments)
model = ASRTask.build_model(args)
for word in args.init_param:
    load_pretrained_model(word, model, ignore_init_mismatch=False)
state = model.state_dict()
torch.save({k: v.clone() for k, v in state.items()}, out)
speech = torch.from_numpy(numpy.load(speech))
lengths = torch.full((len(speech),), speech.size(1))
text = torch.ones(len(speech), 2, dtype=torch.long)
optimizer = torch.optim.SGD(model.parameters(), 1.0)
loss, *_ = model(speech, lengths, text, torch.full((len(speech),), 2))
loss.backward()
optimizer.step()
assert torch.isfinite(loss)
assert not torch.equal(state["ctc.ctc_lo.weight"], torch.load(out)["ctc.ctc_lo.weight"])
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
    """Makes a model before its first step; it, its export, and how ASR starts from it."""

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
        file = folder / "export" / "valid.loss.best.pth"
        made = for_espnet(*read_run(folder / "config.yaml", folder / file.name), file)
        write_export(file.parent, folder, made.files)
        return model, file, made.start

    return make


@pytest.mark.parametrize("path", ["narrow", "wav2vec_cnn", "w2v_bert"])
def test_stock_espnet_computes_the_same_by_frontend(pretrained, tmp_path, path):
    loss = [{"name": "w2v_bert", "conf": LOSSES["w2v_bert"]}]
    configs = {
        "narrow": {"preencoder_conf": {"output_size": 16, "channels": 6}},
        "wav2vec_cnn": WAV2VEC,
        "w2v_bert": {"loss": loss, "token_list": []},
    }
    model, file, _ = pretrained(**configs[path])
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


@pytest.mark.slow
def test_size_l_computes_the_same_in_stock_espnet(tmp_path):
    config = RECIPE / "conf" / "tuning" / "train_w2v_bert_conformer_l_atm.yaml"
    args = ATMSSLTask.get_parser().parse_args(["--config", str(config)])
    args.token_list = []
    torch.manual_seed(0)
    model = ATMSSLTask.build_model(args).eval()
    speech = torch.randn(2, 16000)
    with torch.no_grad():
        expected, _, _ = model.inference_encode(speech, torch.full((2,), 16000))
    torch.save(model.state_dict(), tmp_path / "latest.pth")
    del model
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    file = tmp_path / "export" / "latest.pth"
    made = for_espnet(*read_run(tmp_path / "config.yaml", tmp_path / file.name), file)
    write_export(file.parent, tmp_path, made.files)
    del made
    np.save(tmp_path / "speech.npy", speech.numpy())
    run_without_the_package(
        BY_FRONTEND, file, tmp_path / "speech.npy", tmp_path / "feats.npy"
    )
    found = torch.from_numpy(np.load(tmp_path / "feats.npy"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def asr_train(config: dict, folder: Path, *arguments: str) -> dict:
    """Start to train an ASR model in stock ESPnet; its weights before the first step."""
    conf = {**ASR, **config}
    conf["frontend_conf"] = {**ASR["frontend_conf"], **config["frontend_conf"]}
    (folder / "asr.yaml").write_text(yaml.safe_dump(conf))
    (folder / "asr_tokens").write_text("<blank>\na\nb\n<sos/eos>\n")
    np.save(folder / "speech.npy", torch.randn(2, 16000))
    run_without_the_package(
        BY_ASR,
        *(folder / "speech.npy", folder / "before.pth", "--config", folder / "asr.yaml"),
        *("--token_list", folder / "asr_tokens", *arguments),
    )
    return torch.load(folder / "before.pth")


@pytest.mark.parametrize("path", ["conv2d", "wav2vec_cnn"])
def test_an_asr_model_has_all_that_was_learned(pretrained, tmp_path, path):
    """Built by the config and the words that were printed."""
    _, file, start = pretrained(**{"conv2d": {}, "wav2vec_cnn": WAV2VEC}[path])
    words = re.search("# or asr_train: (.*)", start)[1].split()
    to_asr_sh = '# and asr.sh: --feats_normalize none --pretrained_model "(.*)"'
    assert re.search(to_asr_sh, start)[1].split() == words[1:]
    parts = ["encoder"]
    if path == "wav2vec_cnn":
        parts = ["frontend", "preencoder", "encoder"]
    assert words == ["--init_param", *(f"{file}:{x}:{x}" for x in parts)]
    loaded = asr_train(yaml.safe_load(start), tmp_path, *words)
    learned = torch.load(file, weights_only=True)
    names = [x for x in loaded if x.startswith(("frontend.", "preencoder.", "encoder."))]
    assert {x.split(".")[0] for x in names} >= set(parts)
    for name in names:
        assert torch.equal(loaded[name], learned[name]), name


def test_the_export_says_what_the_encoder_was_made_for(pretrained):
    """Its input size, and no normalization where there was none; stock ESPnet's too."""
    _, file, _ = pretrained(**WAV2VEC, normalize=None)
    config = yaml.safe_load((file.parent / "config.yaml").read_text())
    assert config["preencoder_conf"] == {"input_size": 8, "output_size": 16}
    parts = yaml.safe_load(asr_lines(config, "x.pth"))
    assert parts["normalize"] is None and parts["preencoder_conf"]["input_size"] == 8


def test_only_the_model_is_left(pretrained):
    _, file, _ = pretrained()
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
