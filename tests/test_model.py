import pytest
import torch
from espnet2.ssl.espnet_model import ESPnetSSLModel
from test_task import arguments

from espnet_atm.config import SSLConf
from espnet_atm.model import ATMSSLModel
from espnet_atm.task import ATMSSLTask

SPEECH = torch.randn(3, 16000, generator=torch.Generator().manual_seed(2))
LENGTHS = torch.tensor([16000, 14000, 11000])
FRAMES = 24  # ((101 - 1) // 2 - 1) // 2


def batch(confidence=None) -> dict:
    return dict(
        speech=SPEECH,
        speech_lengths=LENGTHS,
        text=torch.randint(4, (3, FRAMES), generator=torch.Generator().manual_seed(3)),
        text_lengths=torch.tensor([24, 21, 16]),
        confidence=torch.rand(3, FRAMES) if confidence is None else confidence,
    )


@pytest.fixture
def build(ssl_command):
    def make(**ssl_conf) -> ATMSSLModel:
        torch.manual_seed(0)
        return ATMSSLTask.build_model(arguments(ssl_command(ssl_conf=ssl_conf)))

    return make


def test_parameters_are_those_of_the_stock_model(build, ssl_command):
    torch.manual_seed(0)
    stock = ATMSSLTask.build_model(arguments(ssl_command()))
    assert type(stock) is ESPnetSSLModel
    ours = build(masker="atm").state_dict()
    expected = stock.state_dict()
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[k], expected[k]) for k in expected)


def test_gradients_reach_every_parameter(build):
    model = build(masker="atm", loss_scale="utterance").train()
    model(**batch())[0].backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_loss_scales_with_the_utterances_confidence(build):
    """With s_u the loss of each utterance alone is s_u times the plain one (Eq. 6)."""
    plain = build(masker="atm").eval()
    scaled = build(masker="atm", loss_scale="utterance").eval()
    for row in range(3):
        one = {
            k: v[row : row + 1] if torch.is_tensor(v) else v for k, v in batch().items()
        }
        frames = int(one["text_lengths"])
        one["speech"] = one["speech"][:, : int(one["speech_lengths"])]
        one["text"], one["confidence"] = (
            one["text"][:, :frames],
            one["confidence"][:, :frames],
        )
        with torch.no_grad():
            expected = plain(**one)[0] * one["confidence"].mean()
            torch.testing.assert_close(scaled(**one)[0], expected)


def test_statistics_are_logged(build):
    confidence = torch.full((3, FRAMES), 0.5)
    _, stats, weight = build(masker="atm", loss_scale="utterance").train()(
        **batch(confidence)
    )
    assert float(weight) == 3
    assert 0.40 <= float(stats["mask_ratio"]) < 0.40 + 10 / 16
    for name in ("masked", "unmasked", "utterance"):
        assert float(stats[f"confidence_{name}"]) == pytest.approx(0.5)


def test_validation_masks_do_not_change_and_training_masks_do(build):
    model = build(masker="atm").eval()
    data = batch()
    with torch.no_grad():
        assert torch.equal(model(**data)[0], model(**data)[0])
    model.train()
    masks = [
        model.encode(SPEECH, LENGTHS, confidence=data["confidence"])["mask_info"][
            "mask_m"
        ]
        for _ in range(2)
    ]
    assert not torch.equal(*masks)


def test_features_for_others_are_never_masked(build):
    model = build(masker="atm").eval()
    _, layers, lengths = model.inference_encode(SPEECH, LENGTHS)
    assert lengths.tolist() == [24, 21, 16] and len(layers) == 2


def test_confidence_that_does_not_fit_the_frames_is_refused(build):
    with pytest.raises(
        ValueError, match=r"shape \(3, 5\) for encoder frames of shape \(3, 24\)"
    ):
        build(masker="atm")(**batch(torch.rand(3, 5)))


def test_losses_that_take_no_weights_are_refused(ssl_command):
    model = ATMSSLTask.build_model(arguments(ssl_command()))
    model.losses[0].accepts_weight = False
    with pytest.raises(
        ValueError, match="loss_scale: utterance is not possible with HuBERT"
    ):
        ATMSSLModel(model, SSLConf.parse({"loss_scale": "utterance"}))
    model.util_attributes = {"mask", "ema"}
    with pytest.raises(ValueError, match="these use .'ema', 'mask'."):
        ATMSSLModel(model, SSLConf.parse({}))
