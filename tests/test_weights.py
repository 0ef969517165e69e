import re

import pytest
import torch

from espnet_atm.errors import UserError
from espnet_atm.weights import load_weights, read_weights


@pytest.fixture
def model():
    return torch.nn.ModuleDict(
        {"encoder": torch.nn.Linear(2, 3), "decoder": torch.nn.Linear(3, 2)}
    )


def saved(folder, content):
    torch.save(content, folder / "x.pth")
    return folder / "x.pth"


@pytest.mark.parametrize("wrapper", [None, "module", "state_dict"])
def test_what_was_saved_is_read(model, tmp_path, wrapper):
    state = model.state_dict()
    file = saved(tmp_path, {wrapper: state} if wrapper else state)
    read = read_weights(file)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {}, "optimizers": [], "reporter": {}}, "trainer's state"),
        ({}, "holds no weights"),
        ([torch.ones(2)], "holds no weights"),
        ({"a": torch.ones(2), "b": 3}, "'b' is a int"),
        ({"module": {}}, "holds no weights"),
        ({"a": torch.tensor([1.0, torch.nan])}, "not finite: a"),
        ({"a": torch.tensor([-torch.inf])}, "not finite: a"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content, message):
    file = saved(tmp_path, content)
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: .*{message}"):
        read_weights(file)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 999, b"PK\3\4", b"encoder: 1"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(file))):
        read_weights(file)


def test_damage_anywhere_is_refused(model, tmp_path):
    whole = saved(tmp_path, model.state_dict()).read_bytes()
    for keep in range(0, len(whole) - 1, 97):
        (tmp_path / "cut.pth").write_bytes(whole[:keep])
        with pytest.raises(UserError, match="cut.pth"):
            read_weights(tmp_path / "cut.pth")


def test_a_flipped_bit_anywhere_is_refused_or_harmless(model, tmp_path):
    state = model.state_dict()
    whole = saved(tmp_path, state).read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "flipped.pth").write_bytes(flipped)
        try:
            read = read_weights(tmp_path / "flipped.pth")
        except UserError as e:
            assert "flipped.pth" in str(e)
            refused += 1
        else:
            assert read.keys() == state.keys()
            assert all(torch.equal(read[k], v) for k, v in state.items())
    assert refused > len(whole) // 14


def test_a_folder_is_told_as_one(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_weights(tmp_path)


def changed(state, **new):
    state = {k: v for k, v in state.items() if new.get(k, v) is not None}
    return {**state, **{k: v for k, v in new.items() if v is not None}}


@pytest.mark.parametrize(
    "new, message",
    [
        ({"encoder.bias": None}, "are not in it: encoder.bias"),
        ({"encoder.more": torch.ones(1)}, "not in the model: encoder.more"),
        ({"encoder.bias": torch.ones(4)}, "have another shape: encoder.bias"),
    ],
)
@pytest.mark.parametrize("used", [("",), ("encoder.",)])
def test_other_weights_are_refused_by_name(model, new, message, used):
    state = changed(model.state_dict(), **new)
    with pytest.raises(UserError, match=f"x.pth: is not the model of c.yaml.*{message}"):
        load_weights(model, state, "x.pth", "c.yaml", used)


@pytest.mark.parametrize(
    "new", [{"decoder.bias": None}, {"decoder.bias": torch.ones(4)}, {"lm": torch.ones(1)}]
)
def test_what_is_not_used_may_differ(model, new):
    wanted = {k: torch.full_like(v, 2) for k, v in model.state_dict().items()}
    load_weights(model, changed(wanted, **new), "x.pth", "c.yaml", ("encoder.",))
    assert torch.equal(model["encoder"].weight, torch.full((3, 2), 2.0))
