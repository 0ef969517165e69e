"""The SSL configs in conf/tuning: they build, in the sizes that they are named for."""

import pytest
import torch
import yaml
from conftest import RECIPE
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_atm.export import export
from espnet_atm.task import ATMSSLTask, encoder_grid
from espnet_atm.transducer import ASRTask

TUNING = RECIPE / "conf" / "tuning"
OBJECTIVES = ("hubert", "wav2vec2", "w2v_bert", "best_rq")
SIZES = ("mini", "l", "xl")
PAPER = {"l": 100, "xl": 600}  # millions of parameters
GPUS = {"l": 8, "xl": 32}

CONFIGS = [
    *((x, "conformer", size) for x in OBJECTIVES for size in SIZES),
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


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("objective, encoder, size", CONFIGS)
def test_number_of_parameters(objective, encoder, size, tmp_path):
    args = arguments(objective, encoder, size, "atm", tmp_path)
    with torch.device("meta"):
        model = ATMSSLTask.build_model(args)
    total = millions(model)
    # The file's head gives the numbers, so that nobody has to build it to know.
    text = path(objective, encoder, size, "atm").read_text()
    if size == "mini":
        assert 1.0 <= total <= 1.5
        assert f"({total:.1f} M parameters)" in text
    else:
        kept = millions(model.preencoder) + millions(model.encoder)
        assert kept == pytest.approx(PAPER[size], rel=0.05)
        assert (
            f"# {kept:.0f} M parameters in convolutions and encoder, "
            f"{total:.0f} M with the loss's.\n"
        ) in text
        updates = args.num_iters_per_epoch / args.accum_grad
        # 140 crops of 800 frames at a time; 6 operations a parameter and frame, 1e14 a
        # second and GPU: README.md
        seconds = updates * 140 * args.accum_grad * 800 * 6e6 * total / 1e14 / GPUS[size]
        said = f"{updates:.0f} updates, {seconds / 60:.0f} minutes on {GPUS[size]} GPUs"
        assert said in text
    ATMSSLTask.build_optimizers(args, model)  # takes the options
    # 40 ms as in the paper, 20 ms as in wav2vec 2.0.
    assert encoder_grid(args).shift == {"conformer": 640, "transformer": 320}[encoder]


# Conformer layers, those of them before the contrastive loss, and updates of the paper.
LAYERS = {
    ("wav2vec2", "l"): (12, None, 400_000),
    ("wav2vec2", "xl"): (24, None, 400_000),
    ("hubert", "l"): (12, None, 400_000),
    ("hubert", "xl"): (24, None, 400_000),
    ("best_rq", "l"): (12, None, 400_000),
    ("best_rq", "xl"): (24, None, 400_000),
    ("w2v_bert", "l"): (4, 2, 900_000),
    ("w2v_bert", "xl"): (24, 8, 400_000),
}


@pytest.mark.parametrize("objective, size", LAYERS)
def test_l_and_xl_are_as_the_paper_has_them(objective, size):
    layers, context_layers, updates = LAYERS[objective, size]
    text = path(objective, "conformer", size, "atm").read_text()
    config = yaml.safe_load(text)
    encoder, (loss,) = config["encoder_conf"], config["loss"]
    assert encoder["num_blocks"] == layers
    assert loss["conf"].get("context_layers") == context_layers
    assert encoder["attention_heads"] == 8 and encoder["cnn_module_kernel"] == 5
    assert encoder["linear_units"] == 4 * encoder["output_size"]
    if size == "xl" or objective == "w2v_bert":
        assert encoder["output_size"] == 1024
    assert config["optim"] == "adam"
    papers = {"lr": 2e-3, "betas": [0.9, 0.98], "eps": 1e-9}
    assert config["optim_conf"] == {**papers, "fused": True}
    assert config["scheduler_conf"] == {"warmup_steps": 25_000}
    iterations = config["num_iters_per_epoch"] * config["max_epoch"]
    assert iterations / config["accum_grad"] == updates
    assert f"# {updates // 1000}k updates" in text
    quantizer = ("num_codes", "code_dim", "final_dim", "gumbel_temperature")
    quantizer = [loss["conf"].get(x) for x in quantizer]
    if objective == "w2v_bert":
        assert quantizer == [1024, 1024, 768, [2.0, 0.1, 0.999995]]
    if objective == "wav2vec2" and size == "l":  # BASE of Baevski et al.
        assert quantizer == [320, 256, 256, [2.0, 0.5, 0.999995]]
    if objective == "wav2vec2" and size == "xl":  # LARGE
        assert quantizer == [320, 768, 768, [2.0, 0.1, 0.999995]]


@pytest.mark.parametrize("objective, size", LAYERS)
def test_stock_espnet_has_a_place_for_every_weight(objective, size, tmp_path):
    args = arguments(objective, "conformer", size, "atm", tmp_path)
    config = {**vars(args), "token_list": ["<unk>"]}
    with torch.device("meta"):
        exported, state = export(config, ATMSSLTask.build_model(args).state_dict())
        encoder = ConformerEncoder(80, **exported["encoder_conf"]).state_dict()
    found = {k: v.shape for k, v in state.items() if k.startswith("encoder.")}
    assert found == {f"encoder.{k}": v.shape for k, v in encoder.items()}


@pytest.mark.parametrize(
    "objective",
    ["w2v_bert"]
    + [pytest.param(x, marks=pytest.mark.slow) for x in OBJECTIVES if x != "w2v_bert"],
)
def test_one_step_of_size_l(objective, tmp_path):
    args = arguments(objective, "conformer", "l", "random", tmp_path)
    model = ATMSSLTask.build_model(args)
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
    "name, expected",
    [("mini", 1.2), ("mini_rnnt", 1.3), ("l", 131), ("l_rnnt", 140)],
)
def test_asr_configs_build(name, expected, tmp_path):
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
    assert millions(model) == pytest.approx(expected, rel=0.05)
    if name.startswith("l"):
        assert f"{millions(model):.0f} M parameters" in " ".join(
            file.read_text().replace("\n#", "").split()
        )
        # The same model without pre-training, but for ESPnet's wide convolutions.
        ssl = yaml.safe_load(path("w2v_bert", "conformer", "l", "atm").read_text())
        expected = {**ssl["encoder_conf"], "input_layer": "conv2d"}
        assert args.encoder_conf == expected
        assert args.optim_conf["betas"] == [0.9, 0.98] and args.optim_conf["eps"] == 1e-9


def test_train_yaml_is_what_the_recipe_takes_by_default():
    default = (RECIPE / "conf" / "train.yaml").resolve()
    assert default == path("hubert", "conformer", "mini", "atm")


def test_every_config_is_named_for_what_it_is():
    named = {
        path(*config, masker) for config in CONFIGS for masker in ("atm", "random")
    }
    assert {x for x in TUNING.glob("train_*") if "_asr_" not in x.name} == named
