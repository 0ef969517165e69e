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


SETTINGS = """max_epoch: {epochs}
encoder_conf.output_size: {size}
--ssl_args: """


def train(folder, name, key, epochs=3, size=96, step="train() { touch trained; }"):
    settings = SETTINGS.format(epochs=epochs, size=size)
    script = f"{step}; run_once exp/{name} train {key} train latest.pth '{settings}'"
    return bash(script, folder)


def test_a_refusal_says_what_differs(training, tmp_path):
    training()
    assert train(tmp_path, ".", "key").returncode == 0
    done = train(tmp_path, ".", "other", size=144)
    assert done.returncode == 1
    assert "  encoder_conf.output_size: 96 there, 144 now\n" in done.stderr
    assert "max_epoch" not in done.stderr and "--ssl_args" not in done.stderr
    assert "To keep both, give this run another --expdir" in done.stderr
    (tmp_path / "exp/.steps/train.settings").unlink()
    done = train(tmp_path, ".", "other", size=144)
    assert done.returncode == 1 and "an earlier version of the recipe" in done.stderr


def test_a_training_that_has_learned_nothing_blocks_nothing(tmp_path):
    done = train(tmp_path, "one", "key", step="train() { false; }")
    assert done.returncode == 1
    assert (tmp_path / "exp/one/.steps/train.begun").read_text() == "key\n"
    done = train(tmp_path, "one", "other", size=144)
    assert "holds a training" not in done.stderr and (tmp_path / "trained").exists()


@pytest.fixture
def shorter(training, tmp_path):
    """A training of three epochs that has ended, in exp/short."""
    folder = training(best=2)
    folder.rename(tmp_path / "short")
    (tmp_path / "exp").mkdir()
    (tmp_path / "short").rename(tmp_path / "exp/short")
    folder = tmp_path / "exp/short"
    (folder / "checkpoint.pth").write_bytes(b"state")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard/events").write_bytes(b"events")
    assert train(tmp_path, "short", "key").returncode == 0
    return folder


# Looks at what it begins with, and ends as a training does.
GO_ON = """train() {
    ls exp/long > found
    echo 'max_epoch: 5' > exp/long/config.yaml
    echo weights > exp/long/5epoch.pth
    ln -sf 5epoch.pth exp/long/latest.pth
}"""


def test_more_epochs_go_on_from_a_copy(shorter, tmp_path):
    before = {x: x.read_bytes() for x in shorter.rglob("*") if x.is_file()}
    done = train(tmp_path, "long", "longer", epochs=5, step=GO_ON)
    assert done.returncode == 0, done.stderr
    assert "Going on from a copy of exp/short, the same after 3 epochs" in done.stdout
    there = (tmp_path / "found").read_text().split()
    assert {"checkpoint.pth", "3epoch.pth", "tensorboard", "latest.pth"} <= set(there)
    assert "config.yaml" not in there and "train.log" not in there
    assert (tmp_path / "exp/long/valid.loss.best.pth").readlink().name == "2epoch.pth"
    assert before == {x: x.read_bytes() for x in before}


@pytest.mark.parametrize("other", ["fewer", "settings", "busy", "itself"])
def test_no_other_run_is_gone_on_from(shorter, tmp_path, other):
    epochs = {"fewer": 2}.get(other, 5)
    size = {"settings": 144}.get(other, 96)
    step = GO_ON.replace("5", str(epochs))
    if other == "busy":
        step = f"exec 6> {shorter}/.steps/train.lock; flock 6; {step}"
    if other == "itself":
        (tmp_path / "exp/long").mkdir()
        (tmp_path / "exp/long/checkpoint.pth").write_bytes(b"own")
    done = train(tmp_path, "long", "longer", epochs=epochs, size=size, step=step)
    assert done.returncode == 0, done.stderr
    assert "Going on from" not in done.stdout
    assert "3epoch.pth" not in (tmp_path / "found").read_text()
    assert ("is being trained: not gone on from" in done.stdout) == (other == "busy")


def test_a_copy_that_is_cut_off_is_made_again(shorter, tmp_path):
    """What ESPnet resumes from comes last."""
    cut = f"cp() {{ [ $1 != -a ] || command cp \"$@\" || return; [ $1 = -a ]; }}; {GO_ON}"
    assert train(tmp_path, "long", "longer", epochs=5, step=cut).returncode == 1
    assert not (tmp_path / "exp/long/checkpoint.pth").exists()
    assert (tmp_path / "exp/long/3epoch.pth").exists()
    done = train(tmp_path, "long", "longer", epochs=5, step=GO_ON)
    assert done.returncode == 0 and "checkpoint.pth" in (tmp_path / "found").read_text()


def test_progress_is_shown_to_the_last_line(tmp_path):
    step = """train() {
        echo ' INFO: 1/1epoch started' > exp/one/train.log
        echo ' INFO: 1epoch results: [train] loss_x=9, loss=4.5, t=1 minute, [valid] loss=5.25' \\
            >> exp/one/train.log
        echo 'max_epoch: 1' > exp/one/config.yaml
        echo weights > exp/one/1epoch.pth
        ln -s 1epoch.pth exp/one/latest.pth
    }"""
    done = train(tmp_path, "one", "key", epochs=1, step=step)
    assert done.returncode == 0, done.stderr
    assert "(one) epoch 1 of 1 begins" in done.stdout
    assert "(one) epoch 1 of 1: loss 4.5, validation 5.25" in done.stdout


def test_a_command_that_fails_within_a_step_ends_it(tmp_path):
    script = "step() { false; echo went on; }; run_once exp step key step; echo went on"
    step_that_fails = "train() { false; echo went on; }"
    done = bash(script, tmp_path)
    assert done.returncode == 1 and "went on" not in done.stdout
    assert (tmp_path / "exp/.steps/step.begun").exists()
    assert not (tmp_path / "exp/.steps/step.done").exists()
    done = train(tmp_path, "one", "key", step=step_that_fails)
    assert done.returncode == 1 and "went on" not in done.stdout
    inner = "inner() { (false; echo went on); echo went on; }; step() { inner | cat; }; "
    done = bash(f"{inner}run_once exp step key step", tmp_path)
    assert done.returncode == 1 and "went on" not in done.stdout
