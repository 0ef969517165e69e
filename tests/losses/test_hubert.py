import pytest
import torch
from espnet2.ssl.loss.hubert import HuBERTLoss as ESPnetHuBERTLoss

from espnet_atm.losses import weighted_mean
from espnet_atm.losses.hubert import HuBERTLoss

B, T, D, CLASSES = 3, 40, 16, 12


@pytest.fixture
def inputs():
    lengths = torch.tensor([40, 31, 25])
    valid = torch.arange(T)[None] < lengths[:, None]
    mask = (torch.rand(B, T) < 0.4) & valid
    text = torch.randint(CLASSES, (B, T)).masked_fill(~valid, -1)
    return dict(
        encoder_output=[torch.randn(B, T, D) for _ in range(3)],
        encoder_output_lengths=lengths,
        text=text,
        text_lengths=lengths,
        mask_info={"mask_m": mask, "mask_u": ~mask & valid},
    )


def make_loss(cls=HuBERTLoss, **conf):
    torch.manual_seed(5)
    return cls(encoder_output_size=D, num_classes=CLASSES, final_dim=8, **conf)


@pytest.mark.parametrize("conf", [{}, {"layers": [1, -1], "loss_weights": [0.5, 1.0]}])
@pytest.mark.parametrize("weight", [None, torch.ones(B, T)])
def test_unweighted_loss_equals_espnets(inputs, conf, weight):
    def gradients(loss):
        outputs = [x.clone().requires_grad_() for x in inputs["encoder_output"]]
        value, stats = loss(**{**inputs, "encoder_output": outputs})
        value.backward()
        parameters = [x.grad for x in loss.parameters()]
        return value, stats, [x.grad for x in outputs if x.grad is not None] + parameters

    expected, expected_stats, theirs = gradients(make_loss(ESPnetHuBERTLoss, **conf))
    inputs["mask_info"]["weight"] = weight
    loss, stats, ours = gradients(make_loss(**conf))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    name = "hubert_acc_m_2"
    assert float(stats[name]) == pytest.approx(expected_stats[name], abs=1e-6)


def test_without_weight_entry_it_is_espnets_to_the_bit(inputs):
    expected, expected_stats = make_loss(ESPnetHuBERTLoss)(**inputs)
    loss, stats = make_loss()(**inputs)
    assert torch.equal(loss, expected) and stats == expected_stats


def test_gradients_scale_with_the_weight_of_the_utterance(inputs):
    scale = torch.tensor([0.9, 0.5, 0.1])

    def gradient(weight):
        output = inputs["encoder_output"][-1].clone().requires_grad_()
        info = {**inputs["mask_info"], "weight": weight}
        loss, _ = make_loss()(
            **{**inputs, "encoder_output": [output], "mask_info": info}
        )
        loss.backward()
        return output.grad

    plain = gradient(None)
    assert (plain.abs().sum(dim=(1, 2)) > 0).all()
    scaled = gradient(scale[:, None].expand(B, T))
    torch.testing.assert_close(scaled, scale[:, None, None] * plain)


def test_accuracies_of_masked_and_unmasked_frames_by_hand(inputs):
    loss = make_loss()
    mask_m, mask_u = inputs["mask_info"]["mask_m"], inputs["mask_info"]["mask_u"]
    with torch.no_grad():
        logits = loss.decoder(
            inputs["encoder_output"][-1], torch.ones(B, T, dtype=bool), mask_u
        )[0].reshape(B, T, -1)
    right = logits.argmax(-1) == inputs["text"]
    inputs["mask_info"]["weight"] = None
    _, stats = loss(**inputs)
    assert stats["hubert_acc_m_2"] == pytest.approx(right[mask_m].float().mean())
    assert stats["hubert_acc_u_2"] == pytest.approx(right[mask_u].float().mean())


def test_loss_is_in_float32_under_mixed_precision(inputs):
    inputs["mask_info"]["weight"] = torch.rand(B, T)
    expected, _ = make_loss()(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = make_loss()(**inputs)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_padding_does_not_matter(inputs):
    inputs["mask_info"]["weight"] = torch.rand(B, T)
    expected, _ = make_loss()(**inputs)
    padding = torch.arange(T)[None] >= inputs["encoder_output_lengths"][:, None]
    for output in inputs["encoder_output"]:
        output[padding] = 1e4
    inputs["mask_info"]["weight"][padding] = 1e4
    assert torch.equal(make_loss()(**inputs)[0], expected)


def test_a_batch_without_masked_frames_gives_zero(inputs):
    nothing = torch.zeros(B, T, dtype=torch.bool)
    inputs["mask_info"] = {"mask_m": nothing, "mask_u": nothing, "weight": None}
    loss, _ = make_loss()(**inputs)
    assert loss == 0


def test_labels_that_do_not_fit_are_refused(inputs):
    inputs["mask_info"]["weight"] = None
    inputs["text"] = inputs["text"][:, :-1]
    with pytest.raises(ValueError, match=r"labels of shape \(3, 39\) .* \(3, 40\)"):
        make_loss()(**inputs)


def test_weighted_mean_divides_by_the_count():
    loss = torch.tensor([1.0, 2.0, 4.0, 100.0])
    counted = torch.tensor([True, True, True, False])
    assert weighted_mean(loss, torch.tensor([1.0, 0.5, 0.25, 1.0]), counted) == 1.0
    assert weighted_mean(loss, None, counted) == pytest.approx(7 / 3)
