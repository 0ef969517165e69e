import logging
import math

import pytest
from espnet2.train.reporter import Reporter

from espnet_atm.errors import UserError
from espnet_atm.health import check_epoch


def check(mode="train", all_invalid=False, **stats):
    """Report the batches of epoch 3 and look at them."""
    reporter = Reporter()
    reporter.set_epoch(3)
    with reporter.observe(mode) as sub:
        for batch in zip(*stats.values()):
            sub.register(dict(zip(stats, batch)), weight=7)
            sub.next()
        check_epoch(sub, all_invalid)


@pytest.mark.parametrize("mode", ["train", "valid"])
@pytest.mark.parametrize(
    "stats, message",
    [
        (dict(loss=[math.nan, math.inf]), "loss of all 2 batches is not finite"),
        (dict(loss=[0.0, 0.0], weight=[0.0, 0.0]), "weighs every loss by 0"),
        (dict(loss=[0.3, 0.2], weight=[0.0, 0.0]), "weighs every loss by 0"),
        (dict(loss=[0.0, 0.0]), "loss of all 2 batches is 0"),
    ],
)
def test_an_epoch_that_teaches_nothing_is_refused(mode, stats, message):
    with pytest.raises(UserError, match=f"epoch 3, {mode}: .*{message}"):
        check(mode, **stats)


def test_an_epoch_without_an_update_is_refused():
    with pytest.raises(UserError, match="epoch 3, train: no step had finite gradients"):
        check(loss=[1.0], all_invalid=True)


def test_losses_that_are_left_out_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        check("valid", loss=[1.0, math.nan, 2.0])
    assert "epoch 3, valid: the loss of 1 of 3 batches is not finite" in caplog.text


@pytest.mark.parametrize(
    "stats", [dict(loss=[0.0, 1.0], weight=[0.0, 0.5]), dict(loss=[-1.0]), {}]
)
def test_what_teaches_something_is_let_be(stats, caplog):
    check(**stats)
    assert not caplog.records
