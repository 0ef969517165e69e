import pytest
import torch

from espnet_atm.losses.best_rq import BestRQLoss, normalize

B, T, D, F = 3, 40, 16, 12
LENGTHS = torch.tensor([40, 31, 25])


@pytest.fixture
def inputs():
    valid = torch.arange(T)[None] < LENGTHS[:, None]
    mask = (torch.rand(B, T) < 0.4) & valid
    return dict(
        encoder_output=[torch.randn(B, T, D) for _ in range(3)],
        encoder_output_lengths=LENGTHS,
        stacked_features=5 + 3 * torch.randn(B, T, F),
        mask_info={"mask_m": mask, "weight": None},
    )


@pytest.fixture
def loss():
    return BestRQLoss(D, input_size=F, num_codes=20, code_dim=4)


def reference(loss, inputs, scale) -> tuple[float, float]:
    """Chiu et al. 2022, frame by frame: mean cross-entropy and accuracy."""
    total, right = 0.0, 0
    mask = inputs["mask_info"]["mask_m"]
    for row, step in mask.nonzero().tolist():
        x = inputs["stacked_features"][row, : LENGTHS[row]]
        x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
        projected = x[step] @ loss.quantizer.projection
        distance = [
            (projected / projected.norm() - code / code.norm()).norm()
            for code in loss.quantizer.codes
        ]
        target = int(torch.stack(distance).argmin())
        p = loss.prediction(inputs["encoder_output"][-1][row, step]).softmax(dim=0)
        total += scale[row] * -float(p[target].log())
        right += int(p.argmax()) == target
    return total / int(mask.sum()), right / int(mask.sum())


@pytest.mark.parametrize("scale", [None, (0.9, 0.5, 0.1)])
def test_equals_the_reference(loss, inputs, scale):
    if scale is not None:
        inputs["mask_info"]["weight"] = torch.tensor(scale)[:, None].expand(B, T)
    found, stats = loss(**inputs)
    with torch.no_grad():
        expected, accuracy = reference(loss, inputs, scale or (1, 1, 1))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert float(stats["best_rq_loss_m"]) == pytest.approx(expected, rel=1e-5)
    assert float(stats["best_rq_acc_m"]) == pytest.approx(accuracy)


def test_targets_do_not_depend_on_level_and_offset_of_the_features(loss, inputs):
    expected, _ = loss(**inputs)
    inputs["stacked_features"] = inputs["stacked_features"] * 7 - 100
    torch.testing.assert_close(loss(**inputs)[0], expected)


def test_padding_changes_nothing(loss, inputs):
    expected, _ = loss(**inputs)

    def pad(x):
        return torch.cat([x, torch.full_like(x[:, :9], 1e3)], dim=1)

    inputs["encoder_output"] = [pad(x) for x in inputs["encoder_output"]]
    inputs["stacked_features"] = pad(inputs["stacked_features"])
    mask = torch.nn.functional.pad(inputs["mask_info"]["mask_m"], (0, 9))
    inputs["mask_info"] = {"mask_m": mask, "weight": None}
    torch.testing.assert_close(loss(**inputs)[0], expected)


def test_normalize_gives_zero_mean_and_unit_variance_over_valid_frames():
    x = 5 + 3 * torch.randn(B, T, F)
    x[..., 0] = -23.02585  # the log-mel energy of digital silence
    found = normalize(x, LENGTHS)
    for row, length in zip(found, LENGTHS):
        torch.testing.assert_close(
            row[:length, 1:].mean(dim=0), torch.zeros(F - 1), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            row[:length, 1:].std(dim=0, correction=0), torch.ones(F - 1)
        )
        assert not row[length:].any() and row[:, 0].abs().max() < 0.01


def test_only_the_prediction_is_learnt_and_the_quantizer_is_saved(loss):
    assert {n.split(".")[0] for n, _ in loss.named_parameters()} == {"prediction"}
    assert "quantizer.codes" in loss.state_dict()


def test_a_batch_without_masked_frames_gives_gradients_all_the_same(loss, inputs):
    inputs["mask_info"]["mask_m"] = torch.zeros(B, T, dtype=torch.bool)
    found, _ = loss(**inputs)
    found.backward()
    assert found == 0 and all(p.grad is not None for p in loss.parameters())
