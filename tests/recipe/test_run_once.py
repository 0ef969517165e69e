"""local/run_once.sh: steps that are done once, and trainings that are whole."""

import subprocess

import pytest
from conftest import RECIPE

HEAD = f"""
set -euo pipefail
log() {{ echo "$*"; }}
die() {{ echo "Error: $*" 1>&2; exit 1; }}
. {RECIPE}/local/run_once.sh
"""


def bash(script: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", HEAD + script], cwd=cwd, capture_output=True, text=True
    )


@pytest.fixture
def training(tmp_path):
    """Leaves what ESPnet does of a training that ended with an epoch."""

    def make(last=3, max_epoch=3, log="", best=None):
        folder = tmp_path / "exp"
        folder.mkdir()
        (folder / "config.yaml").write_text(f"optim: adam\nmax_epoch: {max_epoch}\n")
        (folder / "train.log").write_text(log)
        for epoch in range(1, last + 1):
            (folder / f"{epoch}epoch.pth").write_bytes(b"weights %d" % epoch)
        (folder / "latest.pth").symlink_to(f"{last}epoch.pth")
        if best:
            (folder / "valid.loss.best.pth").symlink_to(f"{best}epoch.pth")
        return folder

    return make


TRAIN = "train() { :; }; run_once exp train key train"


def test_a_whole_training_is_gone_on_with(training, tmp_path):
    folder = training(best=2)
    done = bash(f"{TRAIN} valid.loss.best.pth; need 10 exp key latest.pth", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / ".steps/train.done").read_text() == "key\n"


def test_weights_one_epoch_back_are_refused(training, tmp_path):
    folder = training(last=2)
    done = bash(TRAIN, tmp_path)
    assert done.returncode == 1
    assert "exp/latest.pth is 2epoch.pth, but training has max_epoch: 3" in done.stderr
    assert not (folder / ".steps/train.done").exists()


def test_patience_may_end_a_training(training, tmp_path):
    line = "[Early stopping] valid.loss has not been improved 2 epochs continuously. "
    training(last=2, log=f"{line}The training was stopped at 2epoch\n")
    assert bash(TRAIN, tmp_path).returncode == 0
    (tmp_path / "exp/train.log").write_text(f"{line}The training was stopped at 1epoch")
    assert bash(TRAIN.replace("key", "other"), tmp_path).returncode == 1
    # So does an epoch without a finite gradient: not in peace.
    (tmp_path / "exp/train.log").write_text("This training was stopped at 2epoch\n")
    assert bash(TRAIN, tmp_path).returncode == 1


def test_a_copy_in_place_of_the_link_is_taken(training, tmp_path):
    folder = training()
    (folder / "latest.pth").unlink()
    (folder / "latest.pth").write_bytes((folder / "3epoch.pth").read_bytes())
    assert bash(TRAIN, tmp_path).returncode == 0


@pytest.mark.parametrize("lost", ["latest.pth", "3epoch.pth", "valid.loss.best.pth"])
@pytest.mark.parametrize("when", ["trained", "again", "built on"])
def test_weights_that_are_lost_are_named(training, tmp_path, lost, when):
    folder = training(best=3)
    if when != "trained":
        assert bash(f"{TRAIN} valid.loss.best.pth", tmp_path).returncode == 0
    (folder / lost).unlink()
    script = {"built on": "need 10 exp key"}.get(when, TRAIN) + " valid.loss.best.pth"
    done = bash(script, tmp_path)
    assert done.returncode == 1
    assert ".pth is missing or empty, though the training has ended" in done.stderr
    (folder / "3epoch.pth").write_bytes(b"")  # as a full disk leaves it
    assert bash(script, tmp_path).returncode == 1


def test_a_command_that_fails_within_a_step_ends_it(tmp_path):
    script = "step() { false; echo went on; }; run_once exp step key step; echo went on"
    done = bash(script, tmp_path)
    assert done.returncode == 1 and "went on" not in done.stdout
    assert (tmp_path / "exp/.steps/step.begun").exists()
    assert not (tmp_path / "exp/.steps/step.done").exists()
    inner = "inner() { (false; echo went on); echo went on; }; step() { inner | cat; }; "
    done = bash(f"{inner}run_once exp step key step", tmp_path)
    assert done.returncode == 1 and "went on" not in done.stdout
