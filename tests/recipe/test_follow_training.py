"""local/follow_training.py: how far a training is, from ESPnet's log."""

import subprocess
import sys

import pytest
from conftest import RECIPE
from follow_training import Progress

# As ESPnet writes it.
HEAD = "[vm] 2026-11-25 14:25:33,220 (trainer:392) INFO: "
BATCH = (
    "3epoch:train:101-150batch: iter_time=0.035, forward_time=0.130, loss_ctc=7.5, "
    "loss=6.25, backward_time=0.163, grad_norm=654.397"
)


@pytest.mark.parametrize(
    "line, said",
    [
        ("1/6epoch started", "epoch 1 of 6 begins"),
        (
            "2/6epoch started. Estimated time to finish: 3 minutes and 5.1 seconds",
            "epoch 2 of 6 begins, about 3 minutes and 5.1 seconds left",
        ),
        (
            "2epoch results: [train] iter_time=0.03, loss_ctc=1.0, loss=159.6, time=1.3 "
            "seconds, total_count=6, [valid] loss_ctc=2.0, loss=161.2, time=0.2 seconds, "
            "[att_plot] time=0 seconds",
            "epoch 2 of ?: loss 159.6, validation 161.2",
        ),
        ("2epoch results: [train] time=1.3 seconds", "epoch 2 of ?: loss ?, validation ?"),
        (BATCH, "epoch 3 of ?, batch 150: loss 6.25"),
        ("The training was finished at 2 epochs", None),
        ("loss=4", None),
    ],
)
def test_words(line, said):
    assert Progress()(HEAD + line, 0.0) == said


def test_batches_are_told_of_now_and_then():
    progress = Progress(every=60)
    assert progress(HEAD + "3/6epoch started", 100.0)
    told = [bool(progress(HEAD + BATCH, t)) for t in (101.0, 159.0, 160.0, 200.0, 221.0)]
    assert told == [False, False, True, False, True]


def test_a_log_that_is_replaced_is_followed_to_its_end(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(f"{HEAD}8/9epoch started\n")
    there = log.stat()
    with log.open("a") as f:
        f.write(f"{HEAD}9/9epoch started\n")
    command = [sys.executable, str(RECIPE / "local/follow_training.py"), str(log)]
    with subprocess.Popen(
        [*command, str(there.st_ino), str(there.st_size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shown:
        said = f"({tmp_path.name}) epoch "
        assert shown.stdout.readline().endswith(f"{said}9 of 9 begins\n")
        log.rename(tmp_path / "train.1.log")
        log.write_text(f"{HEAD}1/2epoch started\n{HEAD}2/2epoch ")
        assert shown.stdout.readline().endswith(f"{said}1 of 2 begins\n")
        with log.open("a") as f:
            f.write("started\n")
        assert shown.communicate()[0].endswith(f"{said}2 of 2 begins\n")
    assert shown.returncode == 0
