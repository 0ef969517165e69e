import make_asr_config
import yaml
from conftest import RECIPE

from espnet_atm.bin.export_ssl import export


def test_fine_tuning_takes_the_encoder_from_pre_training(tmp_path):
    """An L model is fine-tuned as such, by the ASR config of the mini models."""
    tuning = RECIPE / "conf" / "tuning"
    ssl = yaml.safe_load((tuning / "train_w2v_bert_conformer_l_atm.yaml").read_text())
    exported, _ = export({**ssl, "token_list": []}, {})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(exported))
    asr = tuning / "train_asr_conformer_mini.yaml"
    make_asr_config.main(
        [
            *("--asr_config", str(asr)),
            *("--ssl_config", str(tmp_path / "config.yaml")),
            *("--output", str(tmp_path / "asr.yaml")),
        ]
    )
    config = yaml.safe_load((tmp_path / "asr.yaml").read_text())
    assert config["encoder_conf"]["input_layer"] == "conv2d"
    assert config["encoder_conf"]["num_blocks"] == 6
    before = yaml.safe_load(asr.read_text())
    kept = set(before) - {"frontend_conf", "encoder_conf"}
    assert all(config[key] == before[key] for key in kept) and "specaug" in kept
