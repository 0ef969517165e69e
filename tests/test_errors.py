import errno
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from espnet_atm.errors import (
    UserError,
    one_line_errors,
    read_config,
    read_text,
    telling_full_disk,
)


def said(error) -> str:
    with pytest.raises(SystemExit) as e, one_line_errors("program"):
        raise error
    return e.value.code


def test_a_users_mistake_is_one_line():
    assert said(UserError("x:\n  is bad")) == "program: error: x: is bad"


@pytest.mark.parametrize("word", ["{}", "{},speech,sound", "--config={}"])
def test_a_named_pipe_is_refused_before_it_is_waited_for(tmp_path, monkeypatch, word):
    os.mkfifo(tmp_path / "x")
    words = ["x" * 9999, "\0", "", word.format(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as e, one_line_errors("program"):
        raise AssertionError("nothing is begun")
    assert e.value.code == f"program: error: {tmp_path}/x: is a named pipe (FIFO), and no file"


def test_a_pipe_with_a_writer_is_read():
    code = "import sys; from espnet_atm.errors import *\n"
    code += "with one_line_errors('x'): print(open(sys.argv[1]).read())"
    command = f"{sys.executable} -c \"{code}\" <(echo all)"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "all\n\n"), done.stderr


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_that_the_run_can_go_on(code):
    with pytest.raises(SystemExit) as e, telling_full_disk("exp/labels: labels"):
        raise OSError(code, os.strerror(code), "exp/labels/labels.bin")
    message = f"exp/labels: labels cannot be written: {os.strerror(code)}. Make room and run"
    assert str(e.value).startswith(message)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), UserError("x"), OSError("x")])
def test_what_is_no_full_disk_is_told_elsewhere(error):
    with pytest.raises(type(error)) as e, telling_full_disk("labels"):
        raise error
    assert e.value is error
