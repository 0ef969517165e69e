import make_ssl_config
import pytest
from conftest import RECIPE

from espnet_atm.config import SSLConf

TUNING = RECIPE / "conf" / "tuning"


def make(masker: str, *options: str) -> tuple[str, dict]:
    file = TUNING / f"train_w2v_bert_conformer_l_{masker}.yaml"
    command = ["--config", str(file), "--output_dir", "unused", *options]
    return make_ssl_config.make_config(
        make_ssl_config.get_parser().parse_args(command)
    )


@pytest.mark.parametrize(
    "masker, given",
    [
        ("atm", ["--mask_ratio", "0.4", "--span", "10", "--strategy", "high"]),
        ("random", ["--mask_ratio", "0.49"]),
    ],
)
def test_a_default_and_the_same_value_given_are_one_run(masker, given):
    """Else a table of the paper would refuse the pre-training that is there."""
    assert make(masker) == make(masker, *given)


def test_settings_that_differ_are_other_runs():
    name, config = make("atm", "--mask_ratio", "0.3", "--strategy", "low")
    assert name == "w2v_bert_conformer_l_atm_low_0.3x10"
    conf = SSLConf.parse(config["ssl_conf"])
    assert (conf.mask_ratio, conf.strategy, conf.span) == (0.3, "low", 10)
    assert conf.crop_seconds == 32  # what the config said stays
    assert name != make("atm")[0]


def test_sharpness_and_topk_in_the_name():
    name, config = make("atm", "--sharpness", "2")
    assert name == "w2v_bert_conformer_l_atm_high_0.4x10_sharp2"
    assert SSLConf.parse(config["ssl_conf"]).sharpness == 2
    assert make("atm", "--sharpness", "1") == make("atm")
    name, config = make("atm", "--strategy", "topk")
    assert name == "w2v_bert_conformer_l_atm_topk_0.4"
    assert "span" not in config["ssl_conf"]["masker_conf"]
    assert make("atm", "--strategy", "shuffled")[0].endswith("_atm_shuffled_0.4x10")
    assert make("atm", "--name_part", "_gated")[0].endswith("_high_0.4x10_gated")
    with pytest.raises(ValueError, match="sharpness: 2 changes nothing with strategy"):
        make("random", "--sharpness", "2")


def test_a_long_name_is_cut_and_stays_its_own():
    names = [make("atm", "--name_part", "_" + 300 * "a" + x)[0] for x in "bc"]
    assert names[0] != names[1] and {len(x) for x in names} == {make_ssl_config.MOST}


def test_exact_in_the_name():
    name, config = make("atm", "--mask_ratio", "0.45", "--exact", "true", "--sharpness", "2")
    assert name == "w2v_bert_conformer_l_atm_high_0.45x10_exact_sharp2"
    assert SSLConf.parse(config["ssl_conf"]).exact
    name, config = make("random", "--mask_ratio", "0.45", "--exact", "true")
    assert name == "w2v_bert_conformer_l_random_0.45x10_exact"
    assert config["ssl_conf"]["masker_conf"]["exact"] is True
    assert make("atm", "--exact", "false") == make("atm")
    assert "exact" not in make("atm")[1]["ssl_conf"]["masker_conf"]
    with pytest.raises(ValueError, match="masker_conf.exact: 1 is not true or false"):
        make("atm", "--exact", "1")


def test_the_masker_of_validation_in_the_name():
    name, config = make("atm", "--validation_masker", "mask_ratio=0.49 strategy=random")
    assert name == "w2v_bert_conformer_l_atm_high_0.4x10_valid_random_0.49x10"
    assert SSLConf.parse(config["ssl_conf"]).validation_masker["mask_ratio"] == 0.49
    assert make("atm", "--validation_masker", "strategy=random") == (name, config)
    options = ["--validation_masker", "strategy=topk exact=true"]
    name, _ = make("random", *options, "--loss_scale", "utterance")
    assert name.endswith("_random_0.49x10_scale_utterance_valid_topk_0.4_exact")
    with pytest.raises(ValueError, match="--validation_masker random: write e.g."):
        make("atm", "--validation_masker", "random")
    with pytest.raises(ValueError, match="validation_masker.span: 'x' is not a number"):
        make("atm", "--validation_masker", "span=x")
