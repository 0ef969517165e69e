import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from conftest import CNN, ROOT, SSL_CONFIG
from espnet2.tasks.ssl import SSLTask as STOCK
from test_export import run_without_the_package
from test_huggingface import CASES, outputs_there, save
from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

from espnet_atm.bin import export_ssl
from espnet_atm.bin.import_ssl import main
from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.masking import sample_span_mask
from espnet_atm.task import ATMSSLTask


def run(folder, out, *more) -> dict:
    """Import, and return the config."""
    main(["--model", str(folder), "--output_dir", str(out), *more])
    return yaml.safe_load((out / "train.yaml").read_text())


def train(ssl_command, config, out, **more):
    """An epoch of ESPnet's training from the imported weights; its folder."""
    options = dict(
        optim_conf={"lr": 1e-6},
        collate_fn_conf={"label_downsampling": 2},
        init_param=[str(out / "model.pth")],
    )
    streams = ["speech", "confidence"]
    if config["loss"][0]["name"] == "hubert":
        streams.append("text")
    command = ssl_command(streams, **{**config, **options, **more})
    if "text" not in streams:
        at = command.index("--token_list")
        del command[at : at + 2]
    ATMSSLTask.main(cmd=command)
    return Path(command[command.index("--output_dir") + 1])


@pytest.mark.parametrize("kind, layout, normalize", CASES)
def test_from_hugging_face_through_training_and_back(
    tmp_path, ssl_command, capsys, spoken, kind, layout, normalize
):
    save(tmp_path / "there", kind, layout, normalize)
    out = tmp_path / "here"
    config = run(tmp_path / "there", out, "--num_classes", "4")
    assert f"--config {out}/train.yaml --init_param {out}/model.pth" in (
        capsys.readouterr().out
    )
    folder = train(ssl_command, config, out)
    before = torch.load(out / "model.pth", weights_only=True)
    after = torch.load(folder / "latest.pth", weights_only=True)
    assert before.keys() <= after.keys()
    moved = [k for k, v in before.items() if not torch.equal(after[k], v)]
    assert len(moved) > len(before) / 2
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-4, rtol=0)

    files = ["--ssl_train_config", str(folder / "config.yaml")]
    files += ["--ssl_model_file", str(folder / "latest.pth")]
    with pytest.raises(UserError, match="wav2vec2_cnn is in no stock ESPnet; write --fo"):
        export_ssl.main([*files, "--output_dir", str(tmp_path / "no")])
    back = tmp_path / "back"
    for _ in range(2):  # it may be repeated
        export_ssl.main(
            [*files, "--output_dir", str(back), "--format", "huggingface"]
        )
    assert f"model: {back}" in capsys.readouterr().out

    if kind == "hubert":  # for the others it is the same
        return
    # Stock ESPnet takes the folder, and computes what transformers does.
    speech = spoken[sorted(spoken)[0]][:16000]
    np.save(tmp_path / "speech.npy", speech.numpy()[None])
    run_without_the_package(
        BY_FRONTEND, back, tmp_path / "speech.npy", tmp_path / "feats.npy"
    )
    again = transformers.AutoModel.from_pretrained(back).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(back)
    expected = outputs_there(again, extractor, [speech], layout == "large")[-1]
    got = torch.from_numpy(np.load(tmp_path / "feats.npy"))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


BY_FRONTEND = """
import numpy, torch
from espnet2.tasks.asr import frontend_choices
model = frontend_choices.get_class("huggingface")(model=sys.argv[1], fs="16k").eval()
speech = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    feats, lengths = model(speech, torch.full((len(speech),), speech.size(1)))
numpy.save(sys.argv[3], feats.numpy())
"""


def pretrain(model, speech, steps):
    """Train with transformers, on masks that are drawn evenly."""
    torch.manual_seed(0)
    np.random.seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        frames = model._get_feat_extract_output_lengths(speech.size(1))
        lengths = torch.full((len(speech),), int(frames))
        mask = sample_span_mask(
            torch.ones(len(speech), int(frames)), lengths, 0.4, 10, "random"
        )
        negatives = _sample_negative_indices(mask.shape, 5, mask.numpy())
        out = model(
            speech,
            mask_time_indices=mask,
            sampled_negative_indices=torch.from_numpy(negatives).long(),
        )
        optimizer.zero_grad()
        (out.loss / mask.sum()).backward()
        optimizer.step()


def test_training_goes_on_where_hugging_face_stopped(tmp_path, spoken):
    speech = torch.stack([x[:32000] for x in spoken.values() if len(x) >= 32000])
    speech = (speech - speech.mean(1, keepdim=True)) / speech.std(1, keepdim=True)
    # A codebook that collapsed would have a low loss of no meaning.
    there = save(
        tmp_path / "there",
        layout="large",
        diversity_loss_weight=1.0,
        num_codevectors_per_group=16,
    )
    pretrain(there, speech, steps=25)
    there.save_pretrained(tmp_path / "there")
    config = run(tmp_path / "there", tmp_path / "here")
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump({**config, "ssl_conf": {"masker": "random"}}))
    args = ATMSSLTask.get_parser().parse_args(["--config", str(file)])
    args.token_list = []
    lengths = torch.full((len(speech),), speech.size(1))

    def loss_of(model):
        with torch.no_grad():
            return model.eval()(speech, lengths)[0].item()

    random = loss_of(ATMSSLTask.build_model(args))  # 3.0, then 1.85 and 1.82
    model = ATMSSLTask.build_model(args)
    state = torch.load(tmp_path / "here" / "model.pth", weights_only=True)
    model.load_state_dict(state, strict=False)
    start = loss_of(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for _ in range(10):
        optimizer.zero_grad()
        model(speech, lengths)[0].backward()
        optimizer.step()
    end = loss_of(model)
    assert end < start < random, (random, start, end)


def test_training_options_are_those_of_a_config(tmp_path):
    save(tmp_path / "there")
    base = tmp_path / "base.yaml"
    mine = {"optim": "adam", "ssl_conf": {"masker": "random"}, "encoder": "conformer"}
    base.write_text(yaml.safe_dump(mine))
    config = run(tmp_path / "there", tmp_path / "here", "--base_config", str(base))
    assert config["optim"] == "adam" and config["ssl_conf"] == {"masker": "random"}
    assert config["encoder"] == "wav2vec2_transformer"
    config = run(tmp_path / "there", tmp_path / "plain")
    assert config["ssl_conf"] == {"masker": "atm"} and "optim" not in config


# In the shapes of egs2/librispeech/ssl1's HuBERT, and of XEUS as ESPnet 202611 builds it.
ZOO = {
    "hubert": {
        "encoder": "transformer",
        "encoder_conf": {
            **{"output_size": 32, "attention_heads": 4, "linear_units": 32},
            **{"num_blocks": 2, "input_layer": "wav2vec", "pos_enc_layer_type": "conv"},
            "normalize_before": False,
        },
    },
    "xeus": {
        "encoder": "e_branchformer",
        "encoder_conf": {
            **{"output_size": 32, "attention_heads": 4, "linear_units": 32},
            **{"num_blocks": 2, "input_layer": None, "pos_enc_layer_type": "conv"},
            **{"attention_layer_type": "selfattn", "cgmlp_linear_units": 64},
            **{"cgmlp_conv_kernel": 3, "merge_conv_kernel": 3, "macaron_ffn": True},
            **{"rel_pos_type": "latest", "use_ffn": True},
        },
    },
}


@pytest.mark.parametrize("name", ZOO)
def test_models_of_espnets_own_zoo_are_loaded_directly(tmp_path, ssl_command, name):
    norm = "group_norm" if name == "hubert" else "layer_norm"
    config = {
        **ZOO[name],
        "frontend": "wav2vec_cnn",
        "frontend_conf": {**CNN, "norm_mode": norm},
        "normalize": None,
        "preencoder": "linear",
        "preencoder_conf": {"output_size": 32},
    }
    stock = STOCK.build_model(STOCK.get_parser().parse_args(ssl_command(**config)))
    torch.save(stock.state_dict(), tmp_path / "model.pth")
    folder = train(
        ssl_command, {**SSL_CONFIG, **config, "ssl_conf": {"masker": "atm"}}, tmp_path
    )
    after = torch.load(folder / "latest.pth", weights_only=True)
    for key, weight in stock.state_dict().items():
        if key in dict(stock.named_parameters()):
            torch.testing.assert_close(after[key], weight, atol=1e-4, rtol=0)


def test_another_file_is_not_overwritten(tmp_path):
    save(tmp_path / "a")
    run(tmp_path / "a", tmp_path / "out")
    run(tmp_path / "a", tmp_path / "out")
    torch.manual_seed(5)
    save(tmp_path / "b")
    with pytest.raises(UserError, match="model.pth: is there, and is another"):
        run(tmp_path / "b", tmp_path / "out")


def test_the_encoder_alone_under_another_loss(tmp_path, ssl_command):
    save(tmp_path / "there", layout="large")
    out = tmp_path / "out"
    config = run(tmp_path / "there", out)
    parts = [f"{out}/model.pth:{x}:{x}" for x in ("frontend", "preencoder", "encoder")]
    loss = [{"name": "hubert", "conf": {"num_classes": 4, "final_dim": 8}}]
    folder = train(ssl_command, {**config, "loss": loss}, out, init_param=parts)
    after = torch.load(folder / "latest.pth", weights_only=True)
    before = torch.load(out / "model.pth", weights_only=True)
    for name, weight in before.items():
        if name.startswith("encoder."):
            torch.testing.assert_close(after[name], weight, atol=1e-4, rtol=0)


def test_export_of_another_encoder_is_refused(tmp_path, ssl_command):
    command = ssl_command(ssl_conf={"masker": "atm"})
    folder = Path(command[command.index("--output_dir") + 1])
    args = ATMSSLTask.get_parser().parse_args(command)
    model = ATMSSLTask.build_model(args)
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    with pytest.raises(UserError, match="huggingface: frontend: default is in no wav2vec"):
        export_ssl.main(
            [
                *("--ssl_train_config", str(folder / "config.yaml")),
                *("--ssl_model_file", str(folder / "model.pth")),
                *("--output_dir", str(tmp_path / "out")),
                *("--format", "huggingface"),
            ]
        )


def test_without_transformers_one_line_says_so(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as e, one_line_errors("import_ssl"):
        run(tmp_path / "a", tmp_path / "out")
    assert "pip install transformers" in str(e.value)


def test_mistakes_are_one_line(tmp_path):
    def line(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "espnet_atm.bin.import_ssl", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    out = ("--output_dir", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in line("--model", tmp_path / "empty", *out)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "empty")
    assert "empty: is no folder" in line("--model", tmp_path / "empty", *out)
