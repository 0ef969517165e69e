"""Values of a wrong kind in the losses' options."""

import pytest
from conftest import LOSSES

from espnet_atm.errors import UserError
from espnet_atm.losses.best_rq import BestRQLoss
from espnet_atm.losses.hubert import HuBERTLoss
from espnet_atm.losses.w2v_bert import W2vBertLoss
from espnet_atm.losses.wav2vec2 import Wav2Vec2Loss

CLASSES = {
    "hubert": HuBERTLoss,
    "wav2vec2": Wav2Vec2Loss,
    "w2v_bert": W2vBertLoss,
    "best_rq": BestRQLoss,
}
CONFS = {**LOSSES, "hubert": {"num_classes": 4, "final_dim": 8}}
WHOLE = {
    "hubert": ["num_classes", "final_dim"],
    "wav2vec2": ["num_groups", "num_codes", "code_dim", "final_dim", "num_negatives"],
    "w2v_bert": ["num_codes", "code_dim", "final_dim"],
    "best_rq": ["input_size", "num_codes", "code_dim"],
}
NUMBERS = {
    "wav2vec2": ["temperature", "diversity_weight"],
    "w2v_bert": ["contrastive_weight", "prediction_weight", "temperature"],
}
NAN, INF = float("nan"), float("inf")


def build(name, **conf):
    return CLASSES[name](encoder_output_size=16, **{**CONFS[name], **conf})


def pairs(options):
    return [(name, option) for name, found in options.items() for option in found]


@pytest.mark.parametrize("value", [True, "8", 8.0, 0, -1, 10**12, None, [], {}, NAN])
@pytest.mark.parametrize("name, option", pairs(WHOLE))
def test_sizes_are_positive_whole_numbers(name, option, value):
    with pytest.raises(UserError, match=f"loss {name}: {option}: .* is "):
        build(name, **{option: value})


@pytest.mark.parametrize("value", [True, "0.1", NAN, INF, -1, None, [], {}])
@pytest.mark.parametrize("name, option", pairs(NUMBERS))
def test_weights_and_temperatures_are_finite_numbers(name, option, value):
    with pytest.raises(UserError, match=f"loss {name}: {option}: .* (is|must) "):
        build(name, **{option: value})


@pytest.mark.parametrize(
    "name, conf, message",
    [
        ("wav2vec2", {"gumbel_temperature": 2.0}, "gumbel_temperature: 2.0 is not a list"),
        ("wav2vec2", {"gumbel_temperature": "high"}, "'high' is not a list"),
        ("wav2vec2", {"gumbel_temperature": [2.0, 0.5]}, "is not a start, an end and"),
        ("wav2vec2", {"gumbel_temperature": [2.0, "0.5", 1]}, "'0.5' is not a number"),
        ("w2v_bert", {"gumbel_temperature": [NAN, NAN, NAN]}, "nan is not a finite"),
        ("w2v_bert", {"gumbel_temperature": [2.0, True, 1]}, "True is not a number"),
        ("wav2vec2", {"num_groups": 4, "num_codes": 100_000}, "more combinations than"),
        ("w2v_bert", {"contrastive_weight": 0, "prediction_weight": 0}, "are both 0"),
        ("w2v_bert", {"context_layers": True}, "context_layers: True is not a whole"),
        ("w2v_bert", {"context_layers": "1"}, "context_layers: '1' is not a whole"),
        ("w2v_bert", {"context_layers": -1}, "context_layers: -1 is not 0 or more"),
        ("w2v_bert", {"context_layers": 10**12}, "context_layers: .* is too large"),
        ("hubert", {"layers": -1}, "layers: -1 is not a list"),
        ("hubert", {"layers": "all"}, "layers: 'all' is not a list"),
        ("hubert", {"layers": ["-1"]}, "layers: '-1' is not a whole number"),
        ("hubert", {"layers": [True]}, "layers: True is not a whole number"),
        ("hubert", {"layers": [-1, 0]}, "are not one weight for each layer"),
        ("hubert", {"layers": [], "loss_weights": []}, "are not one weight for each"),
        ("hubert", {"loss_weights": 1.0}, "loss_weights: 1.0 is not a list"),
        ("hubert", {"loss_weights": [NAN]}, "loss_weights: nan is not a finite number"),
        ("hubert", {"loss_weights": ["1.0"]}, "loss_weights: '1.0' is not a number"),
        ("hubert", {"loss_weights": [-1.0]}, "loss_weights: -1.0 is negative"),
        ("hubert", {"loss_weights": [0.0]}, r"loss_weights: \[0.0\] are all 0"),
    ],
)
def test_lists_and_combinations(name, conf, message):
    with pytest.raises(UserError, match=f"loss {name}: .*{message}"):
        build(name, **conf)


@pytest.mark.parametrize("name", CLASSES)
def test_what_was_possible_still_is(name):
    build(name)
    if name in NUMBERS:
        build(name, temperature=1, diversity_weight=0, gumbel_temperature=(2, 1, 1))
