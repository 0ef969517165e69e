import pytest
import torch
from test_wav2vec2 import D, inputs, run  # noqa: F401  inputs is a fixture

from espnet_atm.losses.contrastive import MaskedFrames, sample_negatives
from espnet_atm.losses.w2v_bert import W2vBertLoss

CONF = dict(context_layers=2, num_codes=6, code_dim=8, final_dim=10, num_negatives=7)


def reference(loss: W2vBertLoss, inputs, weight) -> dict:
    """Eq. of Chung et al. 2021, frame by frame: the three terms, each its mean."""
    mask = inputs["mask_info"]["mask_m"]
    where = MaskedFrames.of(mask)
    drawn = sample_negatives(where, 7, torch.Generator().manual_seed(9))
    terms = {"contrastive": [], "prediction": []}
    choices, weights = [], []
    for n, (row, step) in enumerate(mask.nonzero().tolist()):
        steps = mask[row].nonzero()[:, 0]
        logits = loss.quantizer.projection(loss.norm(inputs["preencoder"][row]))
        codes = logits.argmax(dim=-1)  # of each frame of the utterance
        choices.append(logits[step].softmax(dim=0))
        # Omega: the second layer; q: projected code vectors
        c = loss.context_projection(inputs["encoder_output"][1][row, step])
        q = loss.code_projection(loss.quantizer.codes[0, codes])
        others = [t for t in steps[drawn[n]] if codes[t] != codes[step]]
        similarity = [
            torch.dot(c, q[t]) / (c.norm() * q[t].norm()) / 0.1 for t in [step, *others]
        ]
        s = float(weight[row, step])
        weights.append(s)
        terms["contrastive"].append(
            -s * torch.log(similarity[0].exp() / sum(x.exp() for x in similarity))
        )
        # Lambda: the last layer
        p = loss.prediction(inputs["encoder_output"][-1][row, step]).softmax(dim=0)
        terms["prediction"].append(-s * p[codes[step]].log())
    p = torch.stack(choices).mean(dim=0)
    diversity = (6 - torch.exp(-(p * p.log()).sum())) / 6
    return {
        "contrastive": torch.stack(terms["contrastive"]).mean(),
        "diversity": diversity * sum(weights) / len(weights),
        "m": torch.stack(terms["prediction"]).mean(),
    }


@pytest.mark.parametrize("scale", [None, (0.9, 0.5, 0.1)])
def test_equals_the_reference(inputs, scale):  # noqa: F811
    mask = inputs["mask_info"]["mask_m"]
    weight = torch.tensor(scale or (1.0, 1.0, 1.0))[:, None].expand(mask.shape)
    loss = W2vBertLoss(D, **CONF).eval()
    found, stats = run(loss, inputs, weight=None if scale is None else weight)
    with torch.no_grad():
        expected = reference(loss, inputs, weight)
    for name, value in expected.items():
        torch.testing.assert_close(stats[f"w2v_bert_loss_{name}"], value)
    torch.testing.assert_close(
        found,
        expected["contrastive"] + 0.1 * expected["diversity"] + expected["m"],
    )


def test_both_layers_get_gradients(inputs):  # noqa: F811
    for output in inputs["encoder_output"]:
        output.requires_grad_()
    run(W2vBertLoss(D, **CONF), inputs)[0].backward()
    first, omega, last = inputs["encoder_output"]
    assert first.grad is None
    assert omega.grad.abs().sum() > 0 and last.grad.abs().sum() > 0


def test_the_prediction_has_no_gradient_to_its_targets(inputs):  # noqa: F811
    loss = W2vBertLoss(D, **{**CONF, "contrastive_weight": 0.0})
    inputs["preencoder"].requires_grad_()
    run(loss, inputs)[0].backward()
    assert not inputs["preencoder"].grad.any()


def test_accuracy_by_hand(inputs):  # noqa: F811
    loss = W2vBertLoss(D, **CONF).eval()
    mask = inputs["mask_info"]["mask_m"]
    with torch.no_grad():
        codes = loss.quantizer.projection(loss.norm(inputs["preencoder"][mask]))
        guess = loss.prediction(inputs["encoder_output"][-1][mask])
    right = codes.argmax(-1) == guess.argmax(-1)
    _, stats = run(loss, inputs)
    assert stats["w2v_bert_acc_m"] == pytest.approx(float(right.float().mean()))


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="prediction_weight: -1.0 must not be negative"):
        W2vBertLoss(D, **{**CONF, "prediction_weight": -1.0})
