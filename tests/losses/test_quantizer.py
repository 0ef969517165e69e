import pytest
import torch

from espnet_atm.losses.quantizer import GumbelQuantizer, RandomProjectionQuantizer

FRAMES = torch.randn(50, 6, generator=torch.Generator().manual_seed(4))


def test_in_evaluation_the_likeliest_codes_are_taken():
    quantizer = GumbelQuantizer(6, num_groups=2, num_codes=5, code_dim=8).eval()
    vectors, ids, _ = quantizer(FRAMES, torch.tensor(0))
    for frame, vector, (first, second) in zip(FRAMES, vectors, ids):
        logits = quantizer.projection(frame)
        assert first == logits[:5].argmax() and second == logits[5:].argmax()
        expected = torch.cat([quantizer.codes[0, first], quantizer.codes[1, second]])
        assert torch.equal(vector, expected)


def test_in_training_codes_are_drawn_as_their_probability():
    quantizer = GumbelQuantizer(6, 1, 3, 4).train()
    with torch.no_grad():
        quantizer.projection.weight.mul_(0.3)
        probs = quantizer.projection(FRAMES[:1]).softmax(-1)[0]
        ids = quantizer(FRAMES[:1].expand(20000, -1), torch.tensor(0)).ids
    share = torch.bincount(ids[:, 0], minlength=3) / 20000
    torch.testing.assert_close(share, probs, atol=0.015, rtol=0)


def test_vectors_are_codes_and_gradients_reach_projection_and_codes():
    quantizer = GumbelQuantizer(6, 2, 5, 8).train()
    vectors, ids, perplexity = quantizer(FRAMES, torch.tensor(0))
    expected = quantizer.codes[torch.arange(2), ids].flatten(1)
    torch.testing.assert_close(vectors, expected)
    (vectors.square().sum() + perplexity).backward()
    assert all(p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_perplexity_is_that_of_the_mean_choice():
    quantizer = GumbelQuantizer(6, 2, 5, 8).eval()
    with torch.no_grad():
        quantizer.projection.weight.zero_()
        assert quantizer(FRAMES, torch.tensor(0)).perplexity == pytest.approx(10)
        quantizer.projection.bias[[0, 5]] = 100.0
        assert quantizer(FRAMES, torch.tensor(0)).perplexity == pytest.approx(2)


def test_gradients_are_finite_where_a_code_is_as_good_as_impossible():
    quantizer = GumbelQuantizer(6, 1, 5, 4).train()
    with torch.no_grad():
        quantizer.projection.bias[0] = -1000.0
    quantizer(FRAMES, torch.tensor(0)).perplexity.backward()
    assert quantizer.projection.weight.grad.isfinite().all()


def test_temperature_falls_from_start_to_end():
    quantizer = GumbelQuantizer(6, 1, 3, 4, (2.0, 0.5, 0.999995))
    at = [float(quantizer.temperature_at(torch.tensor(n))) for n in (0, 100000, 400000)]
    assert at == pytest.approx([2.0, 2 * 0.999995**100000, 0.5])


@pytest.mark.parametrize(
    "conf, message",
    [
        (dict(num_groups=3), "code_dim: 8 is not a multiple of num_groups: 3"),
        (dict(temperature=(0.5, 2.0, 0.9)), "gumbel_temperature: .0.5, 2.0, 0.9."),
        (dict(temperature=(2.0, 0.5, 1.1)), "gumbel_temperature"),
        (dict(temperature=(2.0, 0.0, 0.9)), "gumbel_temperature"),
        (dict(temperature=(2.0, 0.5)), "gumbel_temperature"),
    ],
)
def test_impossible_settings_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        GumbelQuantizer(
            **{"input_size": 6, "num_groups": 2, **conf}, num_codes=5, code_dim=8
        )


def test_random_projection_finds_the_nearest_code_of_unit_length():
    quantizer = RandomProjectionQuantizer(6, num_codes=40, code_dim=4)
    ids = quantizer(FRAMES)
    projected = torch.nn.functional.normalize(FRAMES @ quantizer.projection, dim=-1)
    distance = (projected[:, None] - quantizer.codes[None]).norm(dim=-1)
    assert torch.equal(ids, distance.argmin(dim=1))
    assert not list(quantizer.parameters())
    assert set(quantizer.state_dict()) == {"projection", "codes"}
