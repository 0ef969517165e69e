import pytest
import torch

from espnet_atm.errors import UserError, one_line_errors, read_config, read_text


def said(error) -> str:
    with pytest.raises(SystemExit) as e, one_line_errors("program"):
        raise error
    return e.value.code


def test_a_users_mistake_is_one_line():
    assert said(UserError("x:\n  is bad")) == "program: error: x: is bad"


def test_what_the_system_says_names_the_file(tmp_path):
    with pytest.raises(SystemExit) as e, one_line_errors("program"):
        open(tmp_path / "none")
    assert e.value.code == f"program: error: {tmp_path}/none: No such file or directory"


@pytest.mark.parametrize("fault", [ValueError("x"), KeyError("x"), OSError("x")])
def test_our_own_faults_keep_their_traceback(fault):
    with pytest.raises(type(fault)), one_line_errors("program"):
        raise fault


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("utt1: is bad")


def test_a_mistake_found_by_a_reading_process_is_one_line_too():
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(SystemExit) as e, one_line_errors("program"):
        list(loader)
    assert e.value.code == "program: error: utt1: is bad"


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x").write_bytes("\ufeffa b\n".encode())
    assert read_text(tmp_path / "x") == "a b\n"


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a: [", b"- a", b"3", b"", b"1: 2", b"a: 2001-13-45", b"&a"]
)
def test_what_is_no_config_is_refused_by_name(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match="c.yaml: "):
        read_config(tmp_path / "c.yaml")
