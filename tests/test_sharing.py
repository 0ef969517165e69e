import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from espnet_atm import sharing
from espnet_atm.__main__ import cause


def can_mount() -> bool:
    return (
        subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
            capture_output=True,
        ).returncode
        == 0
    )


needs_mount = pytest.mark.skipif(
    not can_mount(), reason="needs leave to mount a small /dev/shm"
)


def with_shared_memory(size: str, command: list[str], timeout=120, limits=""):
    """Run a command with a /dev/shm of its own."""
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && {limits} exec \"$@\""
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


LOADER = """
import logging, sys, torch
from espnet_atm import sharing
logging.basicConfig(level="WARNING")

class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, number):
        noise = torch.arange(600_000, dtype=torch.float32) + number  # 2.4 MB
        return {
            "speech": noise.reshape(2, -1),
            "lengths": torch.tensor([number, 2]),
            "scalar": torch.tensor(number),
            "empty": torch.empty(0, 3),
            "half": noise[:7].to(torch.bfloat16),
            "flag": noise[:5] > 2,
            "part": noise[10:20:3],
        }

if "stock" not in sys.argv:
    sharing.install()
got = list(torch.utils.data.DataLoader(Batches(), None, num_workers=int(sys.argv[1])))
for number, batch in enumerate(got):
    for name, expected in Batches()[number].items():
        value = batch[name]
        assert value.dtype == expected.dtype and value.shape == expected.shape, name
        assert torch.equal(value, expected), name
print("got", len(got))
"""


@needs_mount
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("size", ["1m", "8m", "64m"])
def test_batches_arrive_whole_whatever_the_shared_memory(size, workers):
    done = with_shared_memory(size, [sys.executable, "-c", LOADER, str(workers)])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "got 12\n"
    warned = done.stderr.count("Batches go through pipes")
    assert warned == 1 if size == "1m" else warned <= 1


@needs_mount
def test_batches_arrive_whole_when_few_files_may_be_open():
    """Each tensor in shared memory is an open file until it is received."""
    done = with_shared_memory(
        "256m", [sys.executable, "-c", LOADER, "2"], limits="ulimit -n 40;"
    )
    words = ("got 12", "Too many open files")
    assert any(x in done.stdout + done.stderr for x in words), done.stderr


@needs_mount
@pytest.mark.parametrize("workers", [2])
def test_training_goes_through_with_little_shared_memory(ssl_command, workers):
    command = ssl_command(
        ssl_conf={"masker": "atm"}, num_workers=workers, batch_size=10
    )
    done = with_shared_memory(
        "256k",
        [sys.executable, "-m", "espnet_atm", "-m", "espnet2.bin.ssl_train", *command],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Raise the size of /dev/shm" in done.stderr


class Unsendable:
    def __reduce__(self):
        raise MemoryError("none left")


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return Unsendable()


def test_a_batch_that_cannot_be_sent_ends_the_loader(capfd):
    """torch drops it, and waits for it for ever."""
    sharing.install()
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly"):
        list(torch.utils.data.DataLoader(Broken(), None, num_workers=1))
    assert "A batch could not be handed over: none left" in capfd.readouterr().err


class Killed(torch.utils.data.Dataset):
    """Killed as the kernel kills what takes too much memory."""

    def __len__(self):
        return 4

    def __getitem__(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(2_000_000)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("room", [True, False])
def test_a_killed_worker_ends_the_loader(workers, room, monkeypatch):
    monkeypatch.setattr(sharing, "has_room", lambda nbytes: room)
    sharing.install()
    with pytest.raises((RuntimeError, EOFError)) as e:
        list(torch.utils.data.DataLoader(Killed(), None, num_workers=workers))
    assert "a process that reads data was killed" in cause(e.value)


def test_the_end_of_a_pipe_is_told():
    """Which torch may see before it sees that the process has ended."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.close()
    with pytest.raises(EOFError) as e:
        receiver.recv()
    assert "a process that reads data was killed" in cause(e.value)
    assert cause(EOFError()) is None
