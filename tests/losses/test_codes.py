import logging

import pytest
import torch

from espnet_atm.losses.codes import CHECK_INTERVAL, CodeUsage


def stats(usage, ids, training=True):
    found = usage(torch.as_tensor(ids), training)
    return float(found["x_codes_used"]), float(found["x_code_perplexity"])


def test_used_codes_and_perplexity_by_hand():
    usage = CodeUsage("x", num_groups=2, num_codes=4, learned=True)
    # Group 0 chooses codes 0 and 1 alike, group 1 only code 3.
    used, perplexity = stats(usage, [[0, 3], [1, 3]])
    assert used == pytest.approx(100 * 3 / 8)
    assert perplexity == pytest.approx(2 + 1)


def test_what_was_chosen_long_ago_is_forgotten():
    usage = CodeUsage("x", 1, 4, True)
    stats(usage, [[0], [1]])
    assert stats(usage, [[2]])[0] == 75
    assert stats(usage, [[3]] * 39)[0] == 50  # the window is 40 frames: 2 and 3
    assert stats(usage, [[3]] * 100)[0] == 25


def test_training_and_validation_are_counted_apart():
    usage = CodeUsage("x", 1, 4, True)
    stats(usage, [[0]])
    assert stats(usage, [[1]], training=False) == (25, 1)
    assert stats(usage, [[2]], training=False)[0] == 50
    assert stats(usage, [[1]])[0] == 50
    assert stats(usage, [[3]], training=False)[0] == 75


def test_a_validation_after_the_first_is_not_counted_low():
    """What is logged is the mean over a validation's batches."""
    usage = CodeUsage("x", 1, 64, True)
    even = torch.arange(64)[:, None]
    for validation in range(2):
        stats(usage, even[:1])
        used = [stats(usage, x, training=False)[0] for x in even.chunk(8)]
    assert used == [100] * 8


def test_no_frames():
    used, perplexity = stats(
        CodeUsage("x", 2, 4, True), torch.zeros(0, 2, dtype=torch.long)
    )
    assert used == 0 and perplexity == 2  # exp(0) for each group


def test_collapse_raises_an_alarm_once_and_recovery_is_told(caplog):
    caplog.set_level(logging.INFO)
    usage = CodeUsage("w2v_bert", 1, 20, learned=True)
    even = torch.arange(20)[:, None]
    for _ in range(2 * CHECK_INTERVAL):
        usage(even, True)
    assert not caplog.records
    for _ in range(3 * CHECK_INTERVAL):
        usage(torch.zeros_like(even), True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "w2v_bert: 1 of 20 codes" in record.message
    assert "THE CODEBOOK HAS COLLAPSED" in record.message
    for _ in range(CHECK_INTERVAL):
        usage(even, True)
    assert "recovered" in caplog.records[-1].message and len(caplog.records) == 2


def alarms(usage, ids, caplog) -> bool:
    for _ in range(CHECK_INTERVAL):
        usage(ids, True)
    return "COLLAPSED" in caplog.text


def test_a_learned_code_that_takes_nearly_all_frames_is_a_collapse(caplog):
    """Noise touches half of the codes, and means nothing."""
    ids = torch.zeros(400, 1, dtype=torch.long)
    ids[:20, 0] = torch.arange(20)
    assert alarms(CodeUsage("w2v_bert", 1, 40, learned=True), ids, caplog)
    assert "raise diversity_weight" in caplog.text


def test_given_codes_may_be_used_unevenly(caplog):
    """Random projections are far from even, and fine."""
    ids = torch.zeros(400, 1, dtype=torch.long)
    ids[:20, 0] = torch.arange(20)
    assert not alarms(CodeUsage("best_rq", 1, 40, learned=False), ids, caplog)
    ids[:] = 3
    assert alarms(CodeUsage("best_rq", 1, 40, learned=False), ids, caplog)
    assert "look at the features or labels" in caplog.text


def test_one_group_that_collapses_is_not_made_good_by_another(caplog):
    ids = torch.stack([torch.zeros(320), torch.arange(320)], dim=1).long()
    assert alarms(CodeUsage("wav2vec2", 2, 32, learned=True), ids % 32, caplog)
    assert "perplexity 1.0 + 32.0" in caplog.text


def test_two_codes_can_collapse_too(caplog):
    ids = torch.zeros(20, 1, dtype=torch.long)
    assert alarms(CodeUsage("wav2vec2", 1, 2, learned=True), ids, caplog)
