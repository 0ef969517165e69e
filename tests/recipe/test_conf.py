"""The SSL configs in conf/tuning: they build, in the sizes that they are named for."""

import pytest
import torch
import yaml
from conftest import RECIPE

from espnet_atm.task import ATMSSLTask, encoder_grid
from espnet_atm.transducer import ASRTask

TUNING = RECIPE / "conf" / "tuning"
OBJECTIVES = ("hubert", "wav2vec2", "w2v_bert", "best_rq")
MILLIONS = {"mini": (1.0, 1.5), "l": (90, 110), "xl": (540, 660)}


CONFIGS = [
    *((x, "conformer", size) for x in OBJECTIVES for size in MILLIONS),
    ("wav2vec2", "transformer", "mini"),  # its own path, from samples
]


def path(objective: str, encoder: str, size: str, masker: str):
    return TUNING / f"train_{objective}_{encoder}_{size}_{masker}.yaml"


def arguments(objective: str, encoder: str, size: str, masker: str, tmp_path):
    command = ["--config", str(path(objective, encoder, size, masker))]
    command += ["--output_dir", str(tmp_path)]
    args = ATMSSLTask.get_parser().parse_args(command)
    args.token_list = []
    return args


@pytest.mark.parametrize("objective, encoder, size", CONFIGS)
def test_number_of_parameters(objective, encoder, size, tmp_path):
    args = arguments(objective, encoder, size, "atm", tmp_path)
    with torch.device("meta"):
        model = ATMSSLTask.build_model(args)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    low, high = MILLIONS[size]
    assert low <= millions <= high
    # The file's head gives the number, so that nobody has to build it to know.
    text = path(objective, encoder, size, "atm").read_text()
    assert f"({millions:.{1 if size == 'mini' else 0}f} M parameters)" in text
    # 40 ms as in the paper, 20 ms as in wav2vec 2.0.
    assert encoder_grid(args).shift == {"conformer": 640, "transformer": 320}[encoder]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_of_size_l(objective, tmp_path):
    model = ATMSSLTask.build_model(
        arguments(objective, "conformer", "l", "random", tmp_path)
    )
    loss, stats, _ = model.train()(
        speech=0.1 * torch.randn(2, 24000),
        speech_lengths=torch.tensor([24000, 20000]),
        text=torch.randint(1024, (2, 37)),
        text_lengths=torch.tensor([37, 30]),
        confidence=torch.rand(2, 37),
    )
    loss.backward()
    assert loss.isfinite()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.parameters()
    )


@pytest.mark.parametrize("objective, encoder, size", CONFIGS)
def test_atm_and_random_differ_in_the_masker_only(objective, encoder, size):
    atm, random = (
        yaml.safe_load(path(objective, encoder, size, masker).read_text())
        for masker in ("atm", "random")
    )
    crop = {} if size == "mini" else {"crop_seconds": 32}
    assert atm.pop("ssl_conf") == {"masker": "atm", **crop}
    assert random.pop("ssl_conf") == {"masker": "random", **crop}
    assert atm == random


@pytest.mark.parametrize(
    "name, millions",
    [("mini", 1.2), ("mini_rnnt", 1.4), ("l", 106), ("l_rnnt", 115)],
)
def test_asr_configs_build(name, millions, tmp_path):
    tokens = tmp_path / "tokens.txt"
    count = 30 if "mini" in name else 1024
    tokens.write_text(
        "".join(f"{x}\n" for x in ["<blank>", *range(count), "<sos/eos>"])
    )
    file = TUNING / f"train_asr_conformer_{name}.yaml"
    args = ASRTask.get_parser().parse_args(
        ["--config", str(file), "--token_list", str(tokens)]
    )
    with torch.device("meta"):
        model = ASRTask.build_model(args)
    found = sum(p.numel() for p in model.parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.1)


def test_train_yaml_is_what_the_recipe_takes_by_default():
    default = (RECIPE / "conf" / "train.yaml").resolve()
    assert default == path("hubert", "conformer", "mini", "atm")


def test_every_config_is_named_for_what_it_is():
    named = {
        path(*config, masker) for config in CONFIGS for masker in ("atm", "random")
    }
    assert {x for x in TUNING.glob("train_*") if "_asr_" not in x.name} == named
