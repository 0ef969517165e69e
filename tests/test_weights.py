import re

import pytest
import torch
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

from espnet_atm.errors import UserError
from espnet_atm.weights import check_init_param, load_weights, read_weights


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

@pytest.fixture
def model_with_head():
    """A model whose head other models do not have."""
    layer = torch.nn.Linear
    encoder = torch.nn.ModuleDict({"embed": layer(2, 3), "layer": layer(3, 3)})
    return torch.nn.ModuleDict({"encoder": encoder, "ctc": layer(3, 5)})


def init_file(folder, model, drop=(), **new):
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(drop)}
    return saved(folder, {**state, **new})


@pytest.mark.parametrize(
    "drop, new, options, message",
    [
        (("no",), {}, ":encodr:encoder", "nothing in .*x.pth begins with 'encodr'"),
        (("no",), {}, ":encoder:encodr", "has no part 'encodr'; it has encoder, ctc"),
        (("encoder",), {}, ":encoder:encoder", "begins with 'encoder'"),
        (("no",), {}, ":encoder:encoder:encoder", "is not excluded by 'encoder'"),
        (("no",), {}, ":encoder", "not in the model: embed.weight"),
        (("no",), {}, ":ctc:encoder", "not in the model: weight, bias"),
        (("no",), {"lm.weight": torch.ones(1)}, "", "not in the model: lm.weight"),
        (("no",), {"ctc.bias": torch.ones(9)}, "", "another shape: ctc.bias"),
        (("no",), {}, ":a:b:c:d", "a file's name cannot have a colon there"),
    ],
)
def test_init_param_that_does_not_fit_is_refused(
    model_with_head, tmp_path, drop, new, options, message
):
    file = init_file(tmp_path, model_with_head, drop, **new)
    with pytest.raises(UserError, match=f"--init_param .*{message}"):
        check_init_param(model_with_head, [f"{file}{options}"], False)


@pytest.mark.parametrize("options", ["", ":encoder:encoder"])
def test_init_param_of_which_nothing_fits_is_refused(model_with_head, tmp_path, options):
    """Though mismatches are ignored, and the other part is loaded."""
    wide = {f"encoder.{k}": torch.ones(9) for k in model_with_head["encoder"].state_dict()}
    file = init_file(tmp_path, model_with_head, **wide)
    with pytest.raises(UserError, match="fits encoder, which would stay random: "):
        check_init_param(model_with_head, [f"{file}{options}"], True)
    other = {"encoder.other": torch.ones(1), "ctc.bias": torch.zeros(5)}
    with pytest.raises(UserError, match="fits encoder, .*stay random: encoder.other"):
        check_init_param(model_with_head, [str(saved(tmp_path, other))], True)
    strange = saved(tmp_path, {"lm.weight": torch.ones(2)})
    with pytest.raises(UserError, match="nothing in .* fits .*stay random: "):
        check_init_param(model_with_head, [str(strange)], True)


def test_init_param_of_the_trainers_state_is_refused(model_with_head, tmp_path):
    file = saved(tmp_path, {"model": {}, "optimizers": []})
    with pytest.raises(UserError, match="trainer's state"):
        check_init_param(model_with_head, [str(file)], False)


@pytest.mark.parametrize(
    "drop, new, options, ignore, random",
    [
        (("no",), {}, "", False, ""),
        (("ctc",), {}, "", False, "2 weights: ctc.weight, ctc.bias"),
        (("no",), {}, ":encoder:encoder", False, ""),
        (("encoder.embed",), {}, ":encoder:encoder", False, "2 weights: encoder.embed"),
        (("no",), {}, ":encoder:encoder:encoder.embed", False, "2 weights: encoder.embed"),
        (("no",), {"lm": torch.ones(1)}, "", True, ""),
        (("no",), {"ctc.weight": torch.ones(1), "ctc.bias": torch.ones(1)}, "", True, "2"),
        (("ctc",), {"encoder.embed.weight": torch.ones(9)}, "", True, "3 weights: "),
    ],
)
def test_init_param_of_a_part_says_what_stays_random(
    model_with_head, tmp_path, caplog, drop, new, options, ignore, random
):
    file = f"{init_file(tmp_path, model_with_head, drop, **new)}{options}"
    check_init_param(model_with_head, [file], ignore)
    assert random in caplog.text and bool(random) == bool(caplog.text)
    # What passes is what ESPnet loads.
    load_pretrained_model(file, model_with_head, ignore)
