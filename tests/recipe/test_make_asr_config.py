import make_asr_config
import pytest
import torch
import yaml
from conftest import RECIPE

from espnet_atm.export import export
from espnet_atm.transducer import ASRTask

TUNING = RECIPE / "conf" / "tuning"
ASR = TUNING / "train_asr_conformer_mini.yaml"
L = "train_w2v_bert_conformer_l_atm.yaml"


@pytest.fixture
def make(tmp_path, capsys):
    """From an SSL config to that of fine-tuning, and to what weights it starts from."""

    def run(ssl_config=TUNING / L, asr_config=ASR, **changes):
        ssl = {**yaml.safe_load(ssl_config.read_text()), **changes}
        exported, _ = export({**ssl, "token_list": []}, {})
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(exported))
        make_asr_config.main(
            [
                *("--asr_config", str(asr_config), "--ssl_model", "x.pth"),
                *("--ssl_config", str(tmp_path / "config.yaml")),
                *("--output", str(tmp_path / "asr.yaml")),
            ]
        )
        config = yaml.safe_load((tmp_path / "asr.yaml").read_text())
        return config, capsys.readouterr().out.split()

    return run


def test_fine_tuning_takes_the_encoder_from_pre_training(make):
    """An L model is fine-tuned as such, by the ASR config of the mini models."""
    config, pretrained = make()
    assert pretrained == ["x.pth:encoder:encoder"]
    assert config["encoder_conf"]["input_layer"] == "conv2d"
    assert config["encoder_conf"]["num_blocks"] == 4
    before = yaml.safe_load(ASR.read_text())
    kept = set(before) - {"frontend_conf", "encoder_conf"}
    assert all(config[key] == before[key] for key in kept) and "specaug" in kept


def test_a_learned_front_end_comes_along(make):
    config, pretrained = make(
        frontend="wav2vec_cnn",
        frontend_conf={
            "norm_mode": "layer_norm",
            "conv_mode": "standard",
            "bias": True,
            "shapes": [[8, 10, 5], [24, 3, 2]],
        },
        preencoder="linear",
        preencoder_conf={"output_size": 512},
    )
    parts = ("frontend", "preencoder", "encoder")
    assert pretrained == [f"x.pth:{part}:{part}" for part in parts]
    assert config["frontend"] == "wav2vec_cnn" and config["preencoder"] == "linear"
    # ESPnet's ASR task does not find out the size between the two.
    assert config["preencoder_conf"] == {"input_size": 24, "output_size": 512}


def test_the_transducer_of_size_l_fine_tunes_xl(make, tmp_path):
    """What local/paper.py names: the encoder is XL's, XL needs no config of its own."""
    make(
        TUNING / "train_w2v_bert_conformer_xl_atm.yaml",
        TUNING / "train_asr_conformer_l_rnnt.yaml",
    )
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("".join(f"{x}\n" for x in ["<blank>", *range(1024), "<sos/eos>"]))
    args = ["--config", str(tmp_path / "asr.yaml"), "--token_list", str(tokens)]
    args = ASRTask.get_parser().parse_args(args)
    with torch.device("meta"):
        model = ASRTask.build_model(args)
    assert len(model.encoder.encoders) == 24 and model.use_transducer_decoder
    assert 550 < sum(p.numel() for p in model.parameters()) / 1e6 < 650
