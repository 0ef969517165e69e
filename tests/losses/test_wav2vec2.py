import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput

from espnet_atm.losses.contrastive import MaskedFrames, sample_negatives
from espnet_atm.losses.wav2vec2 import Wav2Vec2Loss

B, T, D = 3, 40, 16
LENGTHS = torch.tensor([40, 31, 25])
CONF = dict(num_groups=2, num_codes=6, code_dim=8, final_dim=10, num_negatives=7)


@pytest.fixture
def inputs():
    valid = torch.arange(T)[None] < LENGTHS[:, None]
    mask = (torch.rand(B, T) < 0.4) & valid
    return dict(
        encoder_output=[torch.randn(B, T, D) for _ in range(3)],
        preencoder=torch.randn(B, T, D),
        mask_info={"mask_m": mask, "weight": None, "generator": None},
        num_updates=torch.tensor(10),
    )


def run(loss, inputs, **mask_info):
    """The loss with negatives from a fixed seed."""
    generator = torch.Generator().manual_seed(9)
    info = {**inputs["mask_info"], "generator": generator, **mask_info}
    return loss(**{**inputs, "mask_info": info})


class GivenFrames(torch.nn.Module):
    """Stands for Hugging Face's encoder: the losses are what is compared."""

    def __init__(self, context, frames):
        super().__init__()
        self.outputs = Wav2Vec2BaseModelOutput(context, frames)

    def forward(self, *args, **kwargs):
        return self.outputs


def hugging_face(loss: Wav2Vec2Loss, inputs) -> Wav2Vec2ForPreTraining:
    """Hugging Face's model with the weights of ``loss``, on the same frames."""
    config = Wav2Vec2Config(
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(D,),
        conv_kernel=(10,),
        conv_stride=(5,),
        num_feat_extract_layers=1,
        num_conv_pos_embedding_groups=2,
        num_codevector_groups=loss.quantizer.num_groups,
        num_codevectors_per_group=loss.quantizer.num_codes,
        codevector_dim=CONF["code_dim"],
        proj_codevector_dim=CONF["final_dim"],
        contrastive_logits_temperature=loss.temperature,
        diversity_loss_weight=loss.diversity_weight,
        feat_quantizer_dropout=0.0,
    )
    model = Wav2Vec2ForPreTraining(config)
    model.quantizer.weight_proj = loss.quantizer.projection
    model.quantizer.codevectors = torch.nn.Parameter(
        # (G, V, d) -> (1, G * V, d)
        loss.quantizer.codes.detach().flatten(0, 1)[None]
    )
    model.quantizer.temperature = float(
        loss.quantizer.temperature_at(inputs["num_updates"])
    )
    model.project_hid = loss.context_projection
    model.project_q = loss.code_projection
    frames = loss.norm(inputs["preencoder"])
    model.wav2vec2 = GivenFrames(inputs["encoder_output"][-1], frames)
    return model.train(loss.training)


def negative_steps(mask: torch.Tensor) -> torch.Tensor:
    """The negatives that ``run`` draws, as Hugging Face wants them: b * T + t."""
    where = MaskedFrames.of(mask)
    ranks = sample_negatives(where, 7, torch.Generator().manual_seed(9))
    indices = torch.zeros(*mask.shape, 7, dtype=torch.long)
    drawn = []
    for row, rank in zip(where.row, ranks):
        drawn.append(row * mask.size(1) + mask[row].nonzero()[:, 0][rank])
    indices[mask] = torch.stack(drawn)
    return indices


@pytest.mark.parametrize("training", [False, True])
def test_equals_hugging_face(inputs, training):
    if training:  # the same noise falls on the same frames only if all are masked
        inputs["mask_info"]["mask_m"] = torch.ones(B, T, dtype=torch.bool)
    mask = inputs["mask_info"]["mask_m"]
    loss = Wav2Vec2Loss(D, **CONF).train(training)
    model = hugging_face(loss, inputs)
    torch.manual_seed(3)
    expected = model(
        None, mask_time_indices=mask, sampled_negative_indices=negative_steps(mask)
    )
    torch.manual_seed(3)
    ours, stats = run(loss, inputs)
    count = mask.sum()  # Hugging Face sums over frames
    torch.testing.assert_close(
        stats["wav2vec2_loss_contrastive"], expected.contrastive_loss / count
    )
    if training:  # in evaluation theirs is of hard choices, and has no gradient
        torch.testing.assert_close(
            stats["wav2vec2_loss_diversity"], expected.diversity_loss / count
        )
        torch.testing.assert_close(ours, expected.loss / count)


def test_terms_are_scaled_by_the_same_weights_and_counts(inputs):
    loss = Wav2Vec2Loss(D, **CONF).eval()
    names = ("wav2vec2_loss_contrastive", "wav2vec2_loss_diversity")
    _, plain = run(loss, inputs)
    _, scaled = run(loss, inputs, weight=torch.full((B, T), 0.3))
    for name in names:
        torch.testing.assert_close(scaled[name], 0.3 * plain[name])
    # One utterance's weight moves each term by that utterance's share of the frames.
    mask = inputs["mask_info"]["mask_m"]
    weight = torch.tensor([1.0, 0.0, 1.0])[:, None].expand(B, T)
    _, without = run(loss, inputs, weight=weight)
    share = 1 - mask[1].sum() / mask.sum()
    torch.testing.assert_close(without[names[1]], share * plain[names[1]])


def test_gradients_scale_with_the_weight_of_the_utterance(inputs):
    loss = Wav2Vec2Loss(D, **CONF).eval()

    def gradient(weight):
        context = inputs["encoder_output"][-1].clone().requires_grad_()
        run(loss, {**inputs, "encoder_output": [context]}, weight=weight)[0].backward()
        return context.grad

    scale = torch.tensor([0.9, 0.5, 0.1])
    plain = gradient(None)
    assert (plain.abs().sum(dim=(1, 2)) > 0).all()
    scaled = gradient(scale[:, None].expand(B, T))
    torch.testing.assert_close(scaled, scale[:, None, None] * plain)


def test_padding_changes_nothing(inputs):
    loss = Wav2Vec2Loss(D, **CONF).eval()
    expected, _ = run(loss, inputs)

    def pad(x):
        return torch.cat([x, torch.full_like(x[:, :9], 1e3)], dim=1)

    padded = {
        **inputs,
        "encoder_output": [pad(x) for x in inputs["encoder_output"]],
        "preencoder": pad(inputs["preencoder"]),
    }
    mask = torch.nn.functional.pad(inputs["mask_info"]["mask_m"], (0, 9))
    assert torch.equal(run(loss, padded, mask_m=mask)[0], expected)


def test_accuracy_of_a_context_that_knows_and_of_a_collapsed_codebook(inputs):
    loss = Wav2Vec2Loss(D, **{**CONF, "final_dim": D, "code_dim": D}).eval()
    for projection in (loss.code_projection, loss.context_projection):
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    mask = inputs["mask_info"]["mask_m"]
    known = torch.zeros(B, T, D)
    known[mask] = loss.quantizer(
        loss.norm(inputs["preencoder"][mask]), torch.tensor(0)
    ).vectors
    _, stats = run(loss, {**inputs, "encoder_output": [known]})
    assert stats["wav2vec2_acc_contrastive"] == 1
    torch.nn.init.zeros_(loss.quantizer.projection.weight)
    found, stats = run(loss, inputs)
    assert stats["wav2vec2_acc_contrastive"] == 0
    torch.testing.assert_close(found, 0.1 * stats["wav2vec2_loss_diversity"])


def test_an_utterance_with_one_masked_frame_counts_for_nothing(inputs):
    loss = Wav2Vec2Loss(D, **CONF).eval()
    mask = inputs["mask_info"]["mask_m"].clone()
    mask[2] = False
    _, expected = run(loss, inputs, mask_m=mask)
    mask[2, 5] = True
    _, stats = run(loss, inputs, mask_m=mask)
    name = "wav2vec2_loss_contrastive"
    torch.testing.assert_close(stats[name], expected[name])


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_without_masked_frames_gives_gradients_all_the_same(inputs, training):
    loss = Wav2Vec2Loss(D, **CONF).train(training)
    found, stats = run(loss, inputs, mask_m=torch.zeros(B, T, dtype=torch.bool))
    found.backward()
    assert found == 0
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in loss.parameters()
    )


def test_terms_are_in_float32_under_mixed_precision(inputs):
    loss = Wav2Vec2Loss(D, **CONF).eval()
    expected, _ = run(loss, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, stats = run(loss, inputs)
    assert torch.equal(found, expected)
    assert all(x.dtype == torch.float32 for x in stats.values())


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"num_negatives": 0}, "loss wav2vec2: num_negatives: 0 is not positive"),
        ({"temperature": -1.0}, "loss wav2vec2: temperature: -1.0 is not positive"),
        ({"num_codes": 0}, "loss wav2vec2: num_codes: 0 is not positive"),
        ({"num_groups": 0}, "loss wav2vec2: num_groups: 0 is not positive"),
        ({"diversity_weight": -1.0}, "diversity_weight: -1.0 is negative"),
    ],
)
def test_impossible_settings_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        Wav2Vec2Loss(D, **conf)
