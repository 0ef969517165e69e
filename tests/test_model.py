import numpy as np
import pytest
import torch
from conftest import CNN, CONFORMER, LOSSES
from espnet2.ssl.espnet_model import ESPnetSSLModel
from test_task import WAV2VEC, arguments

from espnet_atm.confidence import align_track
from espnet_atm.config import SSLConf
from espnet_atm.model import ATMSSLModel
from espnet_atm.scorer import Scorer
from espnet_atm.speech import speech_probability
from espnet_atm.task import ATMSSLTask

SPEECH = torch.randn(3, 16000, generator=torch.Generator().manual_seed(2))
LENGTHS = torch.tensor([16000, 14000, 11000])
FRAMES = 24  # ((101 - 1) // 2 - 1) // 2
HUBERT = {"num_classes": 4, "final_dim": 8}
OBJECTIVES = ["hubert", *LOSSES]
# wav2vec 2.0's own path: convolutions on samples, then a transformer.
TRANSFORMER = dict(
    WAV2VEC,
    encoder="transformer",
    encoder_conf={
        "input_layer": "wav2vec",
        "pos_enc_layer_type": "conv",
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 2,
    },
)


def config(objective: str) -> dict:
    if objective == "hubert":
        return {}
    return dict(
        loss=[{"name": objective, "conf": LOSSES[objective]}],
        streams=("speech", "confidence"),
    )


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
    def make(objective="hubert", path={}, **ssl_conf) -> ATMSSLModel:
        torch.manual_seed(0)
        command = ssl_command(ssl_conf=ssl_conf, **{**config(objective), **path})
        return ATMSSLTask.build_model(arguments(command))

    return make


def test_parameters_are_those_of_the_stock_model(build, ssl_command):
    torch.manual_seed(0)
    stock = ATMSSLTask.build_model(arguments(ssl_command()))
    assert type(stock) is ESPnetSSLModel
    ours = build(masker="atm").state_dict()
    expected = stock.state_dict()
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    "objective, path",
    [(name, {}) for name in OBJECTIVES]
    + [(name, TRANSFORMER) for name in ("wav2vec2", "w2v_bert")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_every_parameter(build, objective, path, dtype):
    model = build(objective, path, masker="random", loss_scale="utterance").train()
    data = batch()
    if path:  # 49 frames of 20 ms
        data["confidence"] = torch.rand(3, 49)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        loss = model(**data)[0]
    assert loss.dtype == torch.float32
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_scales_with_the_utterances_confidence(build, objective):
    """With s_u the loss of each utterance alone is s_u times the plain one (Eq. 6)."""
    plain = build(objective, masker="atm").eval()
    scaled = build(objective, masker="atm", loss_scale="utterance").eval()
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


@pytest.mark.parametrize("objective", LOSSES)
def test_validation_loss_does_not_change_from_one_call_to_the_next(build, objective):
    model = build(objective, masker="atm").eval()
    data = batch()
    with torch.no_grad():
        assert torch.equal(model(**data)[0], model(**data)[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_health_of_the_training_is_logged(build, objective):
    model = build(objective, masker="atm", loss_scale="utterance").train()
    _, stats, _ = model(**batch(torch.full((3, FRAMES), 0.5)))
    names = {"hubert": ["acc_m_1"], "best_rq": ["acc_m"]}
    for name in names.get(objective, ["acc_contrastive", "gumbel_temperature"]):
        assert f"{objective}_{name}" in stats
    if objective == "w2v_bert":
        assert "w2v_bert_acc_m" in stats
    assert 0 < float(stats[f"{objective}_codes_used"]) <= 100
    assert float(stats[f"{objective}_code_perplexity"]) >= 1
    assert float(stats["weight"]) == 0.5


def test_the_gumbel_temperature_falls_with_updates_not_batches(ssl_command):
    conf = {**LOSSES["wav2vec2"], "gumbel_temperature": [2.0, 0.1, 0.5]}
    command = ssl_command(
        streams=("speech", "confidence"),
        loss=[{"name": "wav2vec2", "conf": conf}],
        ssl_conf={"masker": "random"},
        accum_grad=2,
    )
    model = ATMSSLTask.build_model(arguments(command)).train()
    name = "wav2vec2_gumbel_temperature"
    found = [float(model(**batch())[1][name]) for _ in range(5)]
    assert found == pytest.approx([2, 2, 1, 1, 0.5])
    model.eval()
    assert float(model(**batch())[1][name]) == pytest.approx(0.5)
    # The count is part of the checkpoint.
    assert int(model.state_dict()["global_step"]) == 5


def test_stacked_features_are_those_of_the_audio_at_the_encoders_frames(ssl_command):
    """A click lies in the stack of the frame whose centre is nearest to it."""
    command = ssl_command(
        streams=("speech", "confidence"),
        loss=[{"name": "best_rq", "conf": LOSSES["best_rq"]}],
        ssl_conf={"masker": "random"},
        specaug="specaug",
        specaug_conf={
            "apply_time_warp": False,
            "apply_freq_mask": True,
            "apply_time_mask": False,
            "freq_mask_width_range": [80, 81],
        },
    )
    model = ATMSSLTask.build_model(arguments(command)).train()
    assert model.stacking() == (1, 4)
    for frame in (0, 9, FRAMES - 1):
        speech = torch.zeros(1, 16000)
        speech[0, int(479.5 + 640 * frame)] = 1.0
        data = model.encode(speech, torch.tensor([16000]))
        energy = data["stacked_features"].sum(dim=-1)[0]
        assert int(energy.argmax()) == frame
        assert data["stacked_features"].shape == (1, FRAMES, 320)


@pytest.mark.parametrize(
    "loss, path, message",
    [
        (
            ("w2v_bert", {"context_layers": 2}),
            {},
            "context_layers: 2 must be at least 1 and leave layers behind it, and "
            "encoder_conf.num_blocks is 2",
        ),
        (("w2v_bert", {"context_layers": 0}), {}, "context_layers: 0 must be"),
        (
            ("hubert", {**HUBERT, "layers": [2]}),
            {},
            r"layers: \[2\] must be in \[-2, 1\], with the last one among them, since "
            "encoder_conf.num_blocks is 2",
        ),
        (("hubert", {**HUBERT, "layers": [0]}), {}, "the last one among them"),
        (("best_rq", {"input_size": 80}), {}, "have 320 dimensions; write input_size"),
        (("best_rq", {}), WAV2VEC, "frontend is CNNFrontend; write frontend: default"),
    ],
)
def test_losses_that_the_model_cannot_train_are_refused(
    ssl_command, loss, path, message
):
    command = ssl_command(
        loss=[{"name": loss[0], "conf": loss[1]}],
        ssl_conf={"masker": "random"},
        **path,
    )
    with pytest.raises(ValueError, match=message):
        ATMSSLTask.build_model(arguments(command))


def test_statistics_are_those_of_the_mask(build):
    lengths = torch.tensor([24, 21, 16])
    valid = torch.arange(FRAMES)[None] < lengths[:, None]
    confidence = torch.rand(3, FRAMES).masked_fill(~valid, 1)
    model = build(masker="atm", loss_scale="utterance").eval()
    _, stats, weight = model(**batch(confidence))
    masked = model.encode(SPEECH, LENGTHS, confidence=confidence)["mask_info"]["mask_m"]
    means = torch.stack([c[:n].mean() for c, n in zip(confidence, lengths)])
    expected = {
        "mask_ratio": masked.sum() / lengths.sum(),
        "confidence_masked": confidence[masked].mean(),
        "confidence_unmasked": confidence[valid & ~masked].mean(),
        "confidence_utterance": means.mean(),
        "weight": (masked.sum(dim=1) * means).sum() / masked.sum(),
    }
    assert float(weight) == int(masked.sum())
    assert all(0.40 <= x < 0.40 + 10 / 16 for x in masked.sum(dim=1) / lengths)
    for name, value in expected.items():
        assert float(stats[name]) == pytest.approx(float(value)), name


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


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_common_masker_of_validation(build, objective):
    """Models of the same weights have the same losses, however they are trained."""
    common = {"strategy": "random", "mask_ratio": 0.3, "span": 4}
    models = [
        build(objective, validation_masker=common, **conf)
        for conf in (
            {"masker": "random"},
            {"masker": "atm", "masker_conf": {"strategy": "low"}},
            {"masker": "atm", "loss_scale": "utterance"},
            {"masker": "random", "loss_scale": "frame"},
        )
    ]
    alike = build(objective, masker="random", masker_conf=common)
    data = batch()
    with torch.no_grad():
        expected, stats, _ = alike.eval()(**data)
        for model in models:
            loss, found, _ = model.eval()(**data)
            assert torch.equal(loss, expected)
            assert {k: float(v) for k, v in found.items()} == pytest.approx(
                {k: float(v) for k, v in stats.items()}
            )
    stats = [model.train()(**data)[1] for model in models]
    assert all(0.4 < float(x["mask_ratio"]) for x in stats)
    assert "weight" in stats[2] and "weight" in stats[3]


@pytest.mark.parametrize("path", [{}, TRANSFORMER], ids=["conformer", "transformer"])
def test_an_utterance_beside_a_longer_one_is_encoded_as_alone(build, path):
    model = build(path=path, masker="random", masker_conf={"mask_ratio": 0.0}).eval()
    speech = SPEECH.clone()
    speech[2, 11000 - 512 :] = 0  # a centred STFT mirrors the end, or sees padding
    with torch.no_grad():
        together = model.encode(speech, LENGTHS)
        alone = model.encode(speech[2:, :11000], LENGTHS[2:])
    frames = int(together["encoder_output_lengths"][2])
    found = together["encoder_output"][-1][2, :frames]
    assert (found - alone["encoder_output"][-1][0]).abs().max() < 1e-4


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


def scorer_conf(asr, **options) -> dict:
    return {"asr_train_config": str(asr[0]), "asr_model_file": str(asr[1]), **options}


@pytest.mark.parametrize("path, shift", [({}, 640), (WAV2VEC, 320)])
def test_scores_inside_training_are_those_of_the_stored_track(build, asr, path, shift):
    """To within half a stored byte, brought to the encoder's frames alike."""
    model = build(path=path, masker="atm", scorer=scorer_conf(asr)).eval()
    assert model.encoder_grid().shift == shift
    scorer = Scorer.from_files(*asr)
    frames = torch.tensor([model.encoder_grid().length(int(n)) for n in LENGTHS])
    found = model.score(SPEECH, LENGTHS, frames)
    assert not found.requires_grad and not found.is_inference()
    for row, (speech, samples, count) in enumerate(zip(SPEECH, LENGTHS, frames)):
        track, _ = scorer.score(speech[None, :samples], samples[None])
        stored = np.rint(track[0].numpy() * 255) / 255
        expected = align_track(
            stored, 640, shift, int(count), 479.5, model.encoder_grid().offset
        )
        assert np.abs(found[row, :count].numpy() - expected).max() <= 0.51 / 255
        assert not found[row, count:].any()


def test_a_scorer_inside_training_is_neither_trained_nor_saved(build, asr):
    model = build(masker="atm", loss_scale="utterance", scorer=scorer_conf(asr))
    assert set(model.state_dict()) == set(build(masker="atm").state_dict())
    model.train()
    data = {k: v for k, v in batch().items() if k != "confidence"}
    loss, stats, _ = model(**data)
    loss.backward()
    assert 0 < float(stats["confidence_utterance"]) <= 1
    assert not model.scorer.model.training
    assert all(p.grad is None for p in model.scorer.model.parameters())
    assert set(model.state_dict()) == set(build(masker="atm").state_dict())


def test_scores_inside_training_count_as_a_track_does(build, asr):
    conf = {"masker": "atm", "loss_scale": "utterance"}
    model = build(**conf, scorer=scorer_conf(asr)).eval()
    data = {k: v for k, v in batch().items() if k != "confidence"}
    confidence = model.score(SPEECH, LENGTHS, torch.tensor([24, 21, 16]))
    with torch.no_grad():
        expected = build(**conf).eval()(**data, confidence=confidence)[0]
        torch.testing.assert_close(model(**data)[0], expected)


def test_options_of_the_measure_reach_the_scorer(build, asr):
    frames = torch.tensor([24, 21, 16])
    found = [
        build(masker="atm", scorer=scorer_conf(asr, **options)).score(
            SPEECH, LENGTHS, frames
        )
        for options in ({}, {"measure": "entropy"}, {"temperature": 2.0})
    ]
    assert not torch.allclose(found[0], found[1])
    assert (found[2] < found[0])[0].all()


def test_the_speech_gate_inside_training(build, asr, spoken):
    pairs = [spoken["clean"], spoken["purenoise"]]
    speech = torch.nn.utils.rnn.pad_sequence(pairs, batch_first=True)
    lengths = torch.tensor([len(x) for x in pairs])
    found = []
    for gate in ({}, {"speech_gate": False}, {"speech_gate": True}):
        model = build(masker="atm", scorer=scorer_conf(asr, **gate))
        frames = torch.tensor([model.encoder_grid().length(len(x)) for x in pairs])
        found.append(model.score(speech, lengths, frames))
    assert torch.equal(found[0], found[1])
    probability = speech_probability(
        speech, lengths, 16000, model.encoder_grid(), frames
    )
    torch.testing.assert_close(found[2], found[0] * probability, atol=0.02, rtol=0)
    assert not found[2].requires_grad and not found[2].is_inference()
    assert found[2][1].mean() < found[2][0].mean() / 10


def test_a_scorer_of_another_rate_is_refused(build, make_asr):
    asr = make_asr(frontend_conf={"fs": 8000, "n_fft": 256, "hop_length": 80})
    model = build(masker="atm", scorer=scorer_conf(asr))
    with pytest.raises(ValueError, match="wants audio at 8000 Hz, .*fs is 16000"):
        model.score(SPEECH, LENGTHS, LENGTHS // 640)


def test_padding_does_not_leak_into_scores_inside_training(build, make_asr, caplog):
    """As it would through group norm over time."""
    asr = make_asr(
        frontend="wav2vec_cnn",
        frontend_conf={**CNN, "norm_mode": "group_norm"},
        encoder_conf={**CONFORMER, "input_layer": "linear"},
        normalize=None,
    )
    model = build(masker="atm", scorer=scorer_conf(asr)).eval()
    frames = torch.tensor([model.encoder_grid().length(int(n)) for n in LENGTHS])
    found = model.score(SPEECH, LENGTHS, frames)
    assert "its scores depend on the padding of a batch" in caplog.text
    for row, (speech, samples, count) in enumerate(zip(SPEECH, LENGTHS, frames)):
        alone = model.score(speech[None, :samples], samples[None], count[None])
        torch.testing.assert_close(found[row, :count], alone[0])
        assert not found[row, count:].any()
