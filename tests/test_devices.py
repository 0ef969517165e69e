import argparse

import pytest

from espnet_atm.devices import add_device_options, device_of
from espnet_atm.errors import UserError


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ngpu", "-1"], "ngpu: -1 is not 0 or more"),
        (["--job", "0"], "job: 0 is not positive"),
    ],
)
def test_numbers_that_are_none(options, message):
    parser = argparse.ArgumentParser()
    add_device_options(parser)
    assert device_of(parser.parse_args([])) == "cpu"
    with pytest.raises(UserError, match=message):
        device_of(parser.parse_args(options))
