import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_atm import masking
from espnet_atm.masking import STRATEGIES, GuidedMasking, sample_span_mask

# Masks of 24 frames, one seed.
EARLIER = {
    "high": "..........xxxxxxxxxx....",
    "low": "...........xxxxxx.xxxx..",
    "mixed": "...........xxxxxxxxx.xxx",
    "random": "....xxxx.........xxxxxxx",
}


def sequential_mask(confidence, ratio, span, generator, exact=False):
    """Eq. 3, drawn one start after the other."""
    length = len(confidence)
    weight = confidence.clone().double()
    mask = torch.zeros(length, dtype=torch.bool)
    while mask.sum() < ratio * length:
        start = int(torch.multinomial(weight, 1, generator=generator))
        weight[start] = 0
        for frame in range(start, min(start + span, length)):
            if exact and mask.sum() >= ratio * length:
                break
            mask[frame] = True
    return mask


@settings(deadline=None, max_examples=60)
@given(
    strategy=st.sampled_from(STRATEGIES),
    ratio=st.sampled_from([0.0, 0.07, 0.3, 0.4, 0.49, 0.9, 1.0]),
    span=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=5),
    kind=st.sampled_from(["random", "zero", "one", "one-hot", "steps"]),
)
def test_ratio_is_met_on_every_row(strategy, ratio, span, lengths, kind):
    lengths = torch.tensor(lengths)
    shape = (len(lengths), int(lengths.max()) + 3)
    confidence = {
        "random": torch.rand(shape),
        "zero": torch.zeros(shape),
        "one": torch.ones(shape),
        "one-hot": torch.nn.functional.one_hot(lengths - 1, shape[1]).float(),
        "steps": (torch.rand(shape) * 4).round() / 4,
    }[kind]
    mask = sample_span_mask(confidence, lengths, ratio, span, strategy)
    assert mask.dtype == torch.bool and mask.shape == shape
    for row, length in zip(mask, lengths.tolist()):
        masked = int(row.sum())
        assert not row[length:].any()
        assert masked >= ratio * length
        assert masked == 0 if ratio == 0 else masked < ratio * length + span


def exact_and_not(confidence, lengths, *options):
    """The exact mask and the other, of the same draws."""
    return [
        sample_span_mask(
            *(confidence, lengths, *options),
            generator=torch.Generator().manual_seed(3),
            exact=exact,
        )
        for exact in (True, False)
    ]


@settings(deadline=None, max_examples=150)
@given(
    strategy=st.sampled_from(STRATEGIES),
    ratio=st.sampled_from([0.0, 1e-9, 0.07, 0.3, 0.4, 0.49, 0.9, 0.9999, 1.0]),
    span=st.sampled_from([1, 2, 3, 10, 40]),
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    kind=st.sampled_from(["random", "zero", "one", "steps"]),
)
def test_exact_masks_meet_the_ratio_to_the_frame(strategy, ratio, span, lengths, kind):
    """And are what is left of the others when the end of their last span goes."""
    lengths = torch.tensor(lengths)
    shape = (len(lengths), int(lengths.max()) + 3)
    confidence = {
        "random": torch.rand(shape),
        "zero": torch.zeros(shape),
        "one": torch.ones(shape),
        "steps": (torch.rand(shape) * 4).round() / 4,
    }[kind]
    exact, more = exact_and_not(confidence, lengths, ratio, span, strategy)
    assert exact.dtype == torch.bool and exact.shape == shape
    wanted = [math.ceil(ratio * length) for length in lengths.tolist()]
    assert exact.sum(dim=1).tolist() == wanted
    assert not (exact & ~more).any()
    for row, gone, length in zip(exact, more & ~exact, lengths.tolist()):
        assert not row[length:].any()
        where = gone.nonzero()[:, 0]
        # Less than a span, which all that is gone fits in.
        assert len(where) == 0 or where[-1] - where[0] < span - 1
    if strategy == "topk":
        assert torch.equal(exact, more)


@pytest.mark.parametrize(
    "second, kept", [(30, [30, 31]), (17, [17, 18]), (23, [26, 27]), (39, [39])]
)
def test_the_last_span_is_cut_from_its_end(second, kept):
    """Frames 20 to 25 first; then of the second span what only it masks."""
    confidence = torch.zeros(1, 40)
    confidence[0, 20], confidence[0, second] = 1, 1e-15
    exact, more = exact_and_not(
        confidence, torch.tensor([40]), (6 + len(kept)) / 40, 6, "high"
    )
    found = exact[0].nonzero()[:, 0].tolist()
    assert found == sorted([*range(20, 26), *kept])
    window = more.clone()
    window[0, second : second + 6] = window[0, 20:26] = False
    assert not window.any()


@pytest.mark.parametrize("strategy", ["high", "low", "random"])
def test_exact_masks_have_the_marginals_of_sequential_sampling(strategy, generator):
    """Drawn one start after the other, the last span cut from its end."""
    confidence = torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0, 0.3, 0.7, 0.2, 0.05, 0.6])
    weight = {"high": confidence, "low": 1 - confidence, "random": torch.ones(10)}[strategy]
    draws = 20000
    ours = sample_span_mask(
        *(confidence.expand(draws, -1), torch.full((draws,), 10), 0.5, 4, strategy),
        generator=generator,
        exact=True,
    )
    plain = torch.stack(
        [
            sequential_mask(weight, 0.5, 4, generator, exact=True)
            for _ in range(draws // 4)
        ]
    )
    bound = 4 * math.sqrt(0.25 / draws + 0.25 / (draws // 4))
    assert (ours.double().mean(0) - plain.double().mean(0)).abs().max() < bound


def test_random_exact_masks_favour_no_place_but_the_edge(generator):
    """A frame closer to the beginning than a span is reached by fewer starts."""
    lengths = torch.full((20000,), 60)
    mask = sample_span_mask(
        *(torch.zeros(20000, 60), lengths, 0.45, 6, "random", generator), exact=True
    )
    found = mask.double().mean(dim=0)
    noise = 4 * math.sqrt(0.25 / 20000)
    inner = found[10:]
    assert (inner - inner.mean()).abs().max() < noise + 0.01
    assert (found[:5].diff() > 0).all() and found[0] < inner.mean() / 2


def plain_mask(confidence, lengths, ratio, span, strategy, generator, sharpness, exact):
    """The masks by whole sorts of each row: what the fast way has to give."""
    rows, frames = confidence.shape
    valid = torch.arange(frames) < lengths[:, None]

    def uniform():
        return torch.rand(rows, frames, dtype=torch.float64, generator=generator)

    def draw(weight):
        exponential = -torch.log1p(-uniform())
        if sharpness == 1:
            return weight.double().clamp(min=1e-38) / exponential
        return (weight.double().log() * sharpness).clamp(min=-1e6) - exponential.log()

    def rank(key):
        return key.masked_fill(~valid, -math.inf).argsort(descending=True).argsort()

    if strategy == "topk":
        span = 1
    if strategy in ("random", "topk"):
        key = uniform()
        key = key if strategy == "random" else confidence + 1e-9 * key
    elif strategy == "mixed":
        first, second = rank(draw(confidence)), rank(draw(1 - confidence))
        coin = torch.randint(2, (rows, 1), generator=generator)
        key = -torch.minimum(2 * first + coin, 2 * second + 1 - coin).double()
    else:
        if strategy == "shuffled":
            key = uniform().masked_fill(~valid, math.inf)
            confidence = confidence.gather(1, key.argsort())
        key = draw(1 - confidence if strategy == "low" else confidence)
    key.masked_fill_(~valid, -math.inf)
    key = torch.cat([torch.full((rows, span - 1), -math.inf), key], dim=1)
    cover = key.unfold(1, span, 1).amax(dim=2).masked_fill_(~valid, -math.inf)
    mask = torch.zeros_like(valid)
    for row, length in enumerate(lengths.tolist()):
        wanted = math.ceil(ratio * length)
        if wanted:
            last = cover[row].sort(descending=True).values[wanted - 1]
            mask[row] = (cover[row] >= last) & valid[row]
            if exact:
                mask[row] = cover[row] > last
                rest = ((cover[row] == last) & valid[row]).nonzero()[:, 0]
                mask[row, rest[: wanted - int(mask[row].sum())]] = True
    return mask


@settings(deadline=None, max_examples=300)
@given(
    strategy=st.sampled_from((*STRATEGIES, "mixed", "mixed", "shuffled")),
    ratio=st.sampled_from([0.0, 1e-9, 0.07, 0.4, 0.49, 0.9, 0.99, 0.9999, 1.0]),
    span=st.sampled_from([1, 2, 3, 10, 40]),
    sharpness=st.sampled_from([1.0, 0.5, 100.0]),
    exact=st.booleans(),
    frames=st.sampled_from([1, 2, 3, 24, 200, 1100]),
    shorter=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    kind=st.sampled_from(["random", "zero", "one", "steps", "blocks", "spoiled"]),
    seed=st.integers(0, 2**30),
)
def test_masks_are_those_of_whole_sorts(
    strategy, ratio, span, sharpness, exact, frames, shorter, kind, seed
):
    lengths = torch.tensor([int(frames * (1 - x)) for x in shorter])
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(len(lengths), frames, generator=generator)
    if kind in ("zero", "one"):
        confidence.fill_(kind == "one")
    elif kind == "steps":
        confidence = (confidence * 4).round() / 4
    elif kind == "blocks":
        confidence[:] = (torch.arange(frames) // 50 % 2) * 0.98 + 0.01
    elif kind == "spoiled":
        confidence[torch.arange(frames) >= lengths[:, None]] = math.nan
    given = confidence.clone()
    plain, fast = (
        function(
            *(confidence, lengths, ratio, span, strategy),
            generator=torch.Generator().manual_seed(seed),
            sharpness=sharpness,
            exact=exact,
        )
        for function in (plain_mask, sample_span_mask)
    )
    assert torch.equal(plain, fast)
    torch.testing.assert_close(confidence, given, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_the_same_in_blocks(strategy, monkeypatch):
    """Of several rows, of one, and of one that is longer than a block."""
    confidence, lengths = torch.rand(7, 50), torch.tensor([50, 40, 50, 3, 0, 50, 20])
    masks = []
    for block in (masking.BLOCK, 150, 50, 7):
        monkeypatch.setattr(masking, "BLOCK", block)
        generator = torch.Generator().manual_seed(3)
        masks.append(sample_span_mask(confidence, lengths, 0.4, 5, strategy, generator))
        assert torch.equal(masks[-1], masks[0]) and masks[-1].any()
    no_rows = sample_span_mask(confidence[:0], lengths[:0], 0.4, 5, strategy)
    assert no_rows.shape == (0, 50)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_draw_overwrites_its_confidence(strategy):
    """Of a type, too, that needs no conversion, and of one that is learnt."""
    confidence = torch.rand(2, 50, dtype=torch.float64, requires_grad=True)
    given = confidence.clone()
    sample_span_mask(confidence, torch.tensor([50, 40]), 0.4, 5, strategy)
    sample_span_mask(confidence, torch.tensor([50, 40]), 0.4, 5, strategy, sharpness=2.0)
    assert torch.equal(confidence, given)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("length", range(1, 21))
def test_short_rows(strategy, length):
    mask = sample_span_mask(
        torch.rand(3, length), torch.full((3,), length), 0.4, 10, strategy
    )
    masked = mask.sum(dim=1)
    assert (masked >= 0.4 * length).all() and (masked < 0.4 * length + 10).all()


def test_high_has_the_marginals_of_sequential_sampling(generator):
    confidence = torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0, 0.3, 0.7, 0.2, 0.05, 0.6])
    draws = 20000
    ours = sample_span_mask(
        confidence.expand(draws, -1),
        torch.full((draws,), 10),
        0.4,
        3,
        "high",
        generator,
    )
    plain = torch.stack(
        [sequential_mask(confidence, 0.4, 3, generator) for _ in range(draws // 4)]
    )
    # 4 standard deviations of the difference of the two estimates
    bound = 4 * math.sqrt(0.25 / draws + 0.25 / (draws // 4))
    assert (ours.double().mean(0) - plain.double().mean(0)).abs().max() < bound


@pytest.mark.parametrize("strategy, certain", [("high", 1), ("low", 0)])
def test_first_starts_follow_the_confidence(strategy, certain, generator):
    # One span, one frame wide: drawn in proportion to s_t (1 - s_t).
    confidence = torch.tensor([0.1, 0.4, 0.25, 0.25])
    draws = 40000
    mask = sample_span_mask(
        confidence.expand(draws, -1),
        torch.full((draws,), 4),
        0.25,
        1,
        strategy,
        generator,
    )
    weight = confidence if certain else 1 - confidence
    expected = weight / weight.sum()
    got = mask.float().mean(0)
    assert (got - expected).abs().max() < 4 * math.sqrt(0.25 / draws)


def test_mixed_takes_half_of_the_spans_from_each(generator):
    # 50 sure frames, 50 unsure ones, spans of one frame: 10 spans, 5 from each side.
    confidence = torch.cat([torch.ones(50), torch.zeros(50)])[None]
    for _ in range(20):
        mask = sample_span_mask(
            confidence, torch.tensor([100]), 0.10, 1, "mixed", generator
        )
        assert mask[0, :50].sum() == 5 and mask[0, 50:].sum() == 5


def test_topk_masks_the_most_confident_frames():
    confidence = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.0, 0.4, 0.5]])
    for span in (1, 2, 10):
        mask = sample_span_mask(confidence, torch.tensor([8]), 0.5, span, "topk")
        assert mask.tolist() == [[False, True, False, False, True, False, True, True]]
    confidence, lengths = torch.rand(3, 50), torch.tensor([50, 33, 7])
    mask = sample_span_mask(confidence, lengths, 0.4, 10, "topk")
    assert mask.sum(dim=1).tolist() == [20, 14, 3]
    for row, masked, length in zip(confidence, mask, lengths):
        assert row[masked].min() >= row[:length][~masked[:length]].max()


def test_topk_breaks_ties_at_random(generator):
    confidence = torch.full((1000, 10), 0.5)
    mask = sample_span_mask(
        confidence, torch.full((1000,), 10), 0.3, 1, "topk", generator
    )
    assert (mask.sum(dim=1) == 3).all()
    assert (mask.float().mean(dim=0) - 0.3).abs().max() < 4 * math.sqrt(0.21 / 1000)


def test_shuffled_has_the_confidences_of_the_row_elsewhere(generator):
    """One sure frame: high masks it, and shuffled any frame as often."""
    lengths = torch.full((4000,), 8)
    confidence = torch.zeros(4000, 12)
    confidence[:, 2] = 1
    confidence[:, 8:] = 1  # padding, which must not be drawn by
    high = sample_span_mask(confidence, lengths, 0.125, 1, "high", generator)
    assert high[:, 2].all() and high.sum() == 4000
    mask = sample_span_mask(confidence, lengths, 0.125, 1, "shuffled", generator)
    assert not mask[:, 8:].any() and (mask.sum(dim=1) == 1).all()
    got = mask[:, :8].float().mean(dim=0)
    assert (got - 1 / 8).abs().max() < 4 * math.sqrt(1 / 8 / 4000)


def test_shuffled_masks_are_spread_as_those_of_high(generator):
    """The same weights, so as many spans; the mean confidence of all, not of the sure."""
    confidence = torch.cat([torch.full((50,), 0.9), torch.full((50,), 0.1)])
    lengths = torch.full((2000,), 100)
    means = {
        strategy: confidence[None]
        .expand(2000, -1)[
            sample_span_mask(
                confidence.expand(2000, -1), lengths, 0.3, 3, strategy, generator
            )
        ]
        .mean()
        for strategy in ("high", "shuffled")
    }
    assert means["high"] > 0.65 and abs(means["shuffled"] - 0.5) < 0.02


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("strategy", ["high", "low"])
def test_sharpness_is_an_exponent_on_what_is_drawn_by(strategy, sharpness, generator):
    confidence = torch.tensor([0.1, 0.4, 0.25, 0.25])
    draws = 40000
    mask = sample_span_mask(
        confidence.expand(draws, -1),
        torch.full((draws,), 4),
        *(0.25, 1, strategy, generator),
        sharpness=sharpness,
    )
    weight = (confidence if strategy == "high" else 1 - confidence) ** sharpness
    got = mask.float().mean(0)
    assert (got - weight / weight.sum()).abs().max() < 4 * math.sqrt(0.25 / draws)


@pytest.mark.parametrize("sharpness", [1e-3, 1.0, 100])
def test_the_surest_come_first_and_the_hopeless_last_however_sharp(sharpness, generator):
    confidence = torch.tensor([0.0, 1e-30, 1.0, 0.0]).expand(500, -1)
    lengths = torch.full((500,), 4)
    mask = sample_span_mask(
        confidence, lengths, 0.5, 1, "high", generator, sharpness=sharpness
    )
    assert mask[:, 1:3].all() and not mask[:, [0, 3]].any()
    mask = sample_span_mask(
        confidence, lengths, 0.75, 1, "high", generator, sharpness=sharpness
    )
    assert mask[:, 1:3].all() and 0.3 < mask[:, 0].float().mean() < 0.7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sharpness_of_1_changes_nothing(strategy):
    confidence, lengths = torch.rand(4, 60), torch.tensor([60, 50, 40, 7])
    masks = [
        sample_span_mask(
            *(confidence, lengths, 0.4, 10, strategy),
            generator=torch.Generator().manual_seed(3),
            **more,
        )
        for more in ({}, {"sharpness": 1}, {"sharpness": 1.0})
    ]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_masks_stay_what_they_were():
    """Of each strategy with this seed, as of its first version."""
    confidence = torch.rand(1, 24, generator=torch.Generator().manual_seed(5))
    found = {}
    for strategy in ("high", "low", "mixed", "random"):
        mask = sample_span_mask(
            *(confidence, torch.tensor([24]), 0.4, 4, strategy),
            torch.Generator().manual_seed(7),
        )
        found[strategy] = "".join("x" if x else "." for x in mask[0])
    assert found == EARLIER


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_value_is_waited_for(strategy, exact):
    """On an accelerator that would stall it; tensors without values have none to read."""
    confidence = torch.empty(3, 20, device="meta")
    lengths = torch.empty(3, dtype=torch.long, device="meta")
    mask = sample_span_mask(confidence, lengths, 0.4, 5, strategy, exact=exact)
    assert mask.shape == (3, 20) and mask.dtype == torch.bool


def test_random_needs_no_confidence():
    mask = sample_span_mask(
        torch.full((2, 50), math.nan), torch.tensor([50, 30]), 0.49, 10, "random"
    )
    assert mask.sum() >= 0.49 * 80


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_do_not_depend_on_each_other(strategy):
    confidence = torch.rand(4, 60)
    lengths = torch.tensor([60, 50, 40, 7])

    def draw(confidence, lengths):
        return sample_span_mask(
            confidence, lengths, 0.4, 10, strategy, torch.Generator().manual_seed(3)
        )

    other = confidence.clone()
    other[1:] = torch.rand(3, 60)
    assert torch.equal(
        draw(confidence, lengths)[0], draw(other, torch.tensor([60, 3, 60, 1]))[0]
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_and_draws_differ(strategy, generator):
    confidence = torch.full((2, 200), 0.5)
    lengths = torch.tensor([200, 200])
    first = sample_span_mask(confidence, lengths, 0.4, 10, strategy, generator)
    second = sample_span_mask(confidence, lengths, 0.4, 10, strategy, generator)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)


def test_what_lies_in_the_padding_does_not_matter():
    confidence = torch.rand(1, 40)
    spoiled = confidence.clone()
    spoiled[:, 30:] = math.nan
    masks = [
        sample_span_mask(
            c, torch.tensor([30]), generator=torch.Generator().manual_seed(0)
        )
        for c in (confidence, spoiled)
    ]
    assert torch.equal(*masks)


@pytest.mark.parametrize("bad", [math.nan, -0.5, 2.0])
def test_bad_confidence_is_refused_by_row(bad):
    confidence = torch.full((3, 5), 0.5)
    confidence[2, 4] = bad
    with pytest.raises(ValueError, match="row 2: .* frame 4"):
        sample_span_mask(confidence, torch.tensor([5, 5, 5]))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mask_ratio=1.5), r"mask_ratio: 1.5 is not in \[0, 1\]"),
        (dict(span=0), "span: 0 is not a positive number"),
        (dict(sharpness=0), "sharpness: 0 is not positive"),
        (dict(sharpness=-1.0), "sharpness: -1.0 is not positive"),
        (dict(sharpness=101), "sharpness: 101 is too large; write 100 or less"),
        (dict(sharpness=math.nan), "sharpness: nan is not a finite number"),
        (dict(exact=1), "exact: 1 is not true or false"),
        (dict(exact="true"), "exact: 'true' is not true or false"),
        (
            dict(strategy="best"),
            "strategy: 'best' is not known; write one of high, low",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_span_mask(torch.rand(1, 5), torch.tensor([5]), **options)


def test_lengths_beyond_the_tensor_are_refused():
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 5\], got \[6\]"):
        sample_span_mask(torch.rand(1, 5), torch.tensor([6]))


def test_module_replaces_masked_frames_only():
    embedding = torch.nn.Parameter(torch.full((3,), 7.0))
    module = GuidedMasking(embedding, 0.4, 4, "high")
    x = torch.randn(2, 30, 3)
    before = x.clone()
    padding = torch.arange(30)[None] >= torch.tensor([30, 20])[:, None]
    masked, info = module(x, padding, torch.rand(2, 30))
    assert torch.equal(x, before)
    assert (masked[info["mask_m"]] == 7).all()
    assert torch.equal(masked[info["mask_u"]], x[info["mask_u"]])
    assert not masked[padding].any()
    assert not (info["mask_m"] & padding).any() and not (info["mask_u"] & padding).any()
    assert torch.equal(info["mask_m"] | info["mask_u"], ~padding)
    masked.sum().backward()
    torch.testing.assert_close(
        embedding.grad, torch.full((3,), float(info["mask_m"].sum()))
    )


def test_module_casts_the_embedding_and_wants_confidence():
    module = GuidedMasking(torch.nn.Parameter(torch.zeros(3)), 0.4, 4, "high", 2.0, True)
    assert "sharpness=2.0, exact=True" in repr(module)
    x = torch.randn(1, 9, 3, dtype=torch.bfloat16)
    padding = torch.zeros(1, 9, dtype=torch.bool)
    masked, info = module(x, padding, torch.rand(1, 9))
    assert masked.dtype == torch.bfloat16 and info["mask_m"].sum() == 4
    with pytest.raises(ValueError, match="strategy: high needs confidence"):
        module(x, padding)


def test_module_has_a_masker_of_its_own_for_validation():
    other = {"mask_ratio": 0.2, "span": 2, "strategy": "random", "exact": True}
    embedding = torch.nn.Parameter(torch.zeros(3))
    module = GuidedMasking(embedding, 0.8, 4, "high", validation=other)
    assert list(module.state_dict()) == ["mask_embedding"]
    assert "validation: mask_ratio=0.2, span=2" in repr(module)
    x, padding = torch.randn(1, 30, 3), torch.zeros(1, 30, dtype=torch.bool)
    assert module(x, padding, torch.rand(1, 30))[1]["mask_m"].sum() >= 24
    assert module.eval()(x, padding)[1]["mask_m"].sum() == 6
    with pytest.raises(ValueError, match="span: 0 is not a positive"):
        GuidedMasking(embedding, 0.8, 4, "high", validation={**other, "span": 0})
