import torch
from hypothesis import given
from hypothesis import strategies as st

from espnet_atm.losses.contrastive import (
    MaskedFrames,
    contrastive_logits,
    sample_negatives,
)

rows = st.lists(
    st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=5
)


@given(rows)
def test_negatives_are_masked_frames_of_the_same_row_and_never_the_target(rows):
    mask = torch.tensor(rows)
    where = MaskedFrames.of(mask)
    negatives = sample_negatives(where, 20)
    frames = mask.nonzero()
    assert negatives.shape == (len(frames), 20)
    for (row, step), drawn, count in zip(frames.tolist(), negatives, where.count):
        if count == 1:
            continue
        masked = mask[row].nonzero()[:, 0]
        steps = masked[drawn]  # fails when a rank is not one of this row
        assert mask[row, steps].all()
        assert (steps != step).all()


def test_negatives_are_drawn_evenly():
    mask = torch.tensor([[True, False, True, True, True, True]])
    where = MaskedFrames.of(mask)
    drawn = sample_negatives(where, 40000)
    for rank in range(5):
        share = torch.bincount(drawn[rank], minlength=5) / 40000
        expected = torch.full((5,), 0.25)
        expected[rank] = 0
        torch.testing.assert_close(share, expected, atol=0.01, rtol=0)


def test_negatives_follow_the_generator():
    where = MaskedFrames.of(torch.ones(3, 9, dtype=torch.bool))
    one, two, other = (
        sample_negatives(where, 7, torch.Generator().manual_seed(n)) for n in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_logits_are_the_similarities_gathered_one_by_one():
    mask = torch.rand(4, 15) < 0.5
    where = MaskedFrames.of(mask)
    count = int(mask.sum())
    context, targets = torch.randn(count, 6), torch.randn(count, 6)
    ids = torch.randint(4, (count,))
    negatives = sample_negatives(where, 5)
    logits = contrastive_logits(context, targets, ids, where, negatives)
    assert logits.shape == (count, 6)
    similarity = torch.nn.functional.cosine_similarity
    for n in range(count):
        same_row = (where.row == where.row[n]).nonzero()[:, 0]
        expected = similarity(context[n], targets[n], 0)
        torch.testing.assert_close(logits[n, 0], expected)
        for k, rank in enumerate(negatives[n], 1):
            other = same_row[rank]
            if ids[other] == ids[n]:
                assert logits[n, k] == -torch.inf
            else:
                expected = similarity(context[n], targets[other], 0)
                torch.testing.assert_close(logits[n, k], expected)


def test_no_masked_frames():
    where = MaskedFrames.of(torch.zeros(2, 5, dtype=torch.bool))
    nothing = torch.zeros(0, 6)
    logits = contrastive_logits(
        nothing, nothing, torch.zeros(0).long(), where, sample_negatives(where, 3)
    )
    assert logits.shape == (0, 4)
