"""The whole pipeline on a scrap of the mini corpus: killed, finished, run again."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import kaldiio
import pytest
import torch
import yaml
from cluster import slurm  # noqa: F401
from conftest import copy_recipe

from espnet_atm.labels import Labels

OPTIONS = [
    *("--nj", "2"),
    *("--stage", "1", "--stop-stage", "12", "--local_data_opts", "--scale 0.04"),
    *("--ssl_max_epoch", "1", "--asr_max_epoch", "2", "--nclusters", "8"),
    # One of the three that there are: decoding takes long.
    *("--loss_scale", "utterance", "--test_sets", "mini_test_clean"),
]
SCORER, EPOCHS = "scorer_ep2", "_ep2_scorer_ep1"  # what is not the corpus's own
RUN = f"hubert_conformer_mini_km8_atm_high_0.4x10_scale_utterance{EPOCHS}"
TIMEOUT = 900


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A copy of the recipe."""
    return copy_recipe(tmp_path_factory.mktemp("tree"))


def start(recipe: Path, *options: str, backend: str = "local") -> subprocess.Popen:
    """Run the recipe in a process group of its own, its output in ``log``."""
    return subprocess.Popen(
        ["./run.sh", *OPTIONS, *options],
        cwd=recipe,
        env={**os.environ, "cmd_backend": backend},
        stdout=(recipe / "log").open("w"),
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(recipe: Path, *options: str, backend: str = "local") -> str:
    process = start(recipe, *options, backend=backend)
    try:
        process.wait(TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    log = (recipe / "log").read_text()
    assert process.returncode == 0, log[-5000:]
    return log


def kill_when(recipe: Path, there, group: bool) -> None:
    """SIGKILL the recipe, alone or with all it started, once ``there()`` is true."""
    process = start(recipe)
    end = time.time() + TIMEOUT
    while not there():
        assert process.poll() is None, (recipe / "log").read_text()[-5000:]
        assert time.time() < end
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def test_pipeline(recipe):
    # Killed with everything it started, at the first score.
    kill_when(
        recipe,
        lambda: any(
            x.stat().st_size
            for x in recipe.glob("exp/mini/confidence_*/*/*/*/*.scp")
            if x.name == "confidence.scp"
        ),
        group=True,
    )
    # Killed alone, while pre-training goes on behind its back.
    train_log = recipe / f"exp/mini/ssl_{RUN}_raw/train.log"
    kill_when(
        recipe,
        lambda: train_log.exists() and "1/1epoch started" in train_log.read_text(),
        group=False,
    )
    # Killed once more, with everything, in fine-tuning.
    train_log = recipe / f"exp/mini/asr_{RUN}/train.log"
    kill_when(
        recipe,
        lambda: train_log.exists() and "1/2epoch started" in train_log.read_text(),
        group=True,
    )
    assert "an earlier run still works in" in (recipe / "log").read_text()
    log = finish(recipe)

    # Every utterance has one score, in the training set and in the validation set.
    for dset in ("mini_unlabelled", "mini_unlabelled_dev"):
        (scp,) = recipe.glob(f"exp/mini/confidence_*/{dset}/confidence.scp")
        wavs = (recipe / f"dump/mini/raw/{dset}/wav.scp").read_text().splitlines()
        scored = [line.split()[0] for line in scp.read_text().splitlines()]
        assert scored == [line.split()[0] for line in wavs] and len(scored) >= 4
        os.chdir(recipe)  # paths in the scp are relative to the recipe
        assert all(len(x) for x in kaldiio.load_scp(str(scp)).values())

    # The whole pool has pseudo-labels, and what they were learned from is gone.
    for dset in ("mini_unlabelled", "mini_unlabelled_dev"):
        labels = Labels(recipe / f"exp/mini/kmeans_8/{dset}/labels.scp")
        wavs = (recipe / f"dump/mini/raw/{dset}/wav.scp").read_text().splitlines()
        assert list(labels) == [line.split()[0] for line in wavs]
        assert all(len(row) and row.max() < 8 for row in labels.values())
    kmeans = recipe / "exp/mini/kmeans_8"
    assert [x.name for x in kmeans.glob("km_8*")] == ["km_8.mdl"]

    # What one came for: error rates, the report, and a model for stock ESPnet.
    end = log[log.index("The results of this run:") :]
    rows = re.findall(r"^\| (\S+) \| 0 \| (\S+) \|.*\| [\d.]+ \| [\d.]+ \|", end, re.M)
    # In this order, and perhaps twice: what was killed alone goes on, and ends too.
    assert rows[:2] == [(run, "mini_test_clean") for run in (RUN, SCORER)]
    assert set(rows[:2]) == set(rows)
    interval = r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]"
    assert re.search(rf"^  mini_test_clean: WER {interval}, CER {interval}", end, re.M)
    assert f"against {SCORER}, the same model and labelled data without pre-training" in end
    same = r"./run.sh --nj 2 --local_data_opts --scale\ 0.04 --ssl_max_epoch 1"
    assert f"random masks, the baseline:  {same}" in end
    assert f"tensorboard --logdir {recipe}/exp/mini/ssl_{RUN}_raw/tensorboard" in end
    assert (recipe / "RESULTS.md").read_text().count(RUN) == 1
    (report,) = recipe.glob("exp/mini/confidence_*/report/report.html")
    assert report.read_text().count("<img") >= 3
    assert str(report) in log
    (exported,) = recipe.glob(f"exp/mini/ssl_{RUN}_raw/export/*.pth")
    assert (
        f"{exported.name}:encoder:encoder"
        in (recipe / f"exp/mini/asr_{RUN}/config.yaml").read_text()
    )

    # Again: nothing is done, and it does not take long.
    files = {x: x.stat().st_mtime for x in recipe.rglob("exp/**/*.pth")}
    begin = time.time()
    log = finish(recipe)
    assert time.time() - begin < 60
    assert files == {x: x.stat().st_mtime for x in recipe.rglob("exp/**/*.pth")}
    assert "training started" not in log.lower() and "Decoding started" not in log


@pytest.mark.slow
def test_an_objective_without_pseudo_labels(recipe):
    """After the first pipeline, in the same place: scorer and scores are there.

    Fine-tuning begins with the encoder frozen.
    """
    shutil.rmtree(recipe / "exp/mini/kmeans_8", ignore_errors=True)
    results = recipe / "RESULTS.md"
    others = results.read_text().count(f"| {RUN} |") if results.exists() else 0
    options = ("--masker", "random", "--head_epochs", "1")
    log = finish(recipe, "--objective", "wav2vec2", *options)
    pretrained = f"wav2vec2_conformer_mini_random_0.49x10_scale_utterance{EPOCHS}"
    run = f"{pretrained}_head1"
    assert "the objective has no pseudo-labels" in log
    assert f"(ssl_{pretrained}_raw) epoch 1 of 1: loss " in log
    assert not (recipe / "exp/mini/kmeans_8").exists()
    assert results.read_text().count(f"| {run} |") == 1
    assert results.read_text().count(f"| {RUN} |") == others
    train_log = (recipe / f"exp/mini/ssl_{pretrained}_raw/train.log").read_text()
    assert "wav2vec2_codes_used=" in train_log
    (exported,) = recipe.glob(f"exp/mini/ssl_{pretrained}_raw/export/*.pth")
    exp = recipe / "exp/mini"
    head = yaml.safe_load((exp / f"asr_{run}_head/config.yaml").read_text())
    whole = yaml.safe_load((exp / f"asr_{run}/config.yaml").read_text())
    assert head["init_param"][0].endswith(f"{exported.name}:encoder:encoder")
    assert head["freeze_param"] == ["encoder"] and head["max_epoch"] == 1
    assert whole["init_param"] == [f"exp/mini/asr_{run}_head/latest.pth"]
    assert whole["freeze_param"] == [] and whole["max_epoch"] == 1
    before, after = (
        torch.load(file, weights_only=True)
        for file in (exported, exp / f"asr_{run}_head/latest.pth")
    )
    frozen = [x for x in after if x.startswith("encoder.") and "num_batches" not in x]
    learned = [x for x in frozen if not torch.equal(before[x], after[x])]
    assert frozen and all("running" in x for x in learned)  # batch norm's statistics


@pytest.mark.slow
def test_sure_utterances_only(recipe):
    finish(recipe, "--stop-stage", "6")
    (scores,) = recipe.glob("exp/mini/confidence_*/mini_unlabelled")
    means = [line.split() for line in (scores / "utt2confidence").open()]
    least = sorted(x for _, x in means)[len(means) // 2]
    log = finish(recipe, "--stop-stage", "9", "--min_confidence", least)
    sure = {utt for utt, x in means if x >= least}
    assert f"{len(sure)} of {len(means)} utterances kept" in log
    shape = recipe / "exp/mini/ssl_stats_raw/train/speech_shape"
    assert {line.split()[0] for line in shape.read_text().splitlines()} == sure
    # Their labels are among those of the whole pool, which the first run that needs them makes.
    (labels,) = recipe.glob("exp/mini/kmeans_8*/mini_unlabelled/labels.scp")
    assert len(Labels(labels)) == len(means)


def scoring_pids(job: str) -> list[int]:
    """The processes of a scoring job, e.g. ``2.1``: the first of two."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"espnet_atm.bin.score" in words:
            if words[words.index(b"--output_dir") + 1].endswith(f"/{job}".encode()):
                found.append(int(file.parent.name))
    return found


def wait_until(true, process: subprocess.Popen, recipe: Path) -> None:
    end = time.time() + TIMEOUT
    while not true():
        assert process.poll() is None, (recipe / "log").read_text()[-5000:]
        assert time.time() < end
        time.sleep(0.05)


def test_on_slurm(recipe, slurm):
    """Scoring, with a task killed and the node down and up."""

    def scores(folder: Path) -> dict:
        names = ("confidence.ark", "confidence.scp", "utt2confidence", "scorer")
        found = {
            x.relative_to(folder): x.read_bytes()
            for name in names
            for x in folder.rglob(name)
            if "_min" not in str(x)  # of test_sure_utterances_only
        }
        assert len(found) == 22  # two sets, two jobs each; the merged files
        return found

    finish(recipe, "--stop-stage", "6")
    (folder,) = recipe.glob("exp/mini/confidence_*")
    expected = scores(folder)
    shutil.rmtree(folder)
    score_only = ("--stage", "6", "--stop-stage", "6")

    process = start(recipe, *score_only, backend="slurm")
    wait_until(lambda: scoring_pids("2.1"), process, recipe)
    # After SIGKILL, slurm.pl would wait minutes for the scheduler to start it again.
    os.kill(scoring_pids("2.1")[0], signal.SIGTERM)
    assert process.wait(TIMEOUT) != 0
    assert not (folder / ".steps/score.done").exists()

    process = start(recipe, *score_only, backend="slurm")
    wait_until(lambda: scoring_pids("2.1"), process, recipe)
    scontrol = ["scontrol", "update", "NodeName=localhost"]
    subprocess.run([*scontrol, "State=DOWN", "Reason=test"], check=True)
    wait_until(lambda: not scoring_pids("2.1"), process, recipe)
    subprocess.run([*scontrol, "State=RESUME"], check=True)
    assert process.wait(TIMEOUT) == 0, (recipe / "log").read_text()[-5000:]
    assert scores(folder) == expected
    jobs = (slurm / "jobs.txt").read_text()
    assert "JobState=NODE_FAIL" in jobs
    assert re.search(r"^JobId=.* Name=\S*score\S* JobState=COMPLETED", jobs, re.M)


@pytest.mark.slow
def test_training_and_decoding_on_slurm(recipe, slurm):
    """Pseudo-labels, statistics, pre-training, fine-tuning and decoding, anew."""
    finish(recipe, "--stop-stage", "7")
    for name in ("ssl_stats_raw", f"ssl_{RUN}_raw", f"asr_{RUN}"):
        shutil.rmtree(recipe / "exp/mini" / name, ignore_errors=True)
    finish(recipe, "--stage", "8", backend="slurm")
    assert (recipe / f"exp/mini/asr_{RUN}/decode/mini_test_clean/text").stat().st_size
    done = re.findall(
        r"^JobId=.* Name=(\S+) JobState=COMPLETED",
        (slurm / "jobs.txt").read_text(),
        re.M,
    )
    # ESPnet's names of the jobs of stages 9, 10 and 11, and 12.
    for name in ("stats", "train", "asr_inference"):
        assert any(name in job for job in done), (name, done)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--corpus", "nothing"), "no data preparation for --corpus nothing"),
        (
            ("--skip_data_prep", "true", "--train_set", "mine", "--test_sets", "t"),
            "data/mine/wav.scp is missing",
        ),
        (("--masker", "best"), "ssl_conf.masker: 'best' is not known"),
        (
            ("--model_size", "l", "--masker", "best"),
            "--masker best (atm or random) name no config",
        ),
        (("--strategy", "best"), "strategy: 'best' is not known"),
        (("--mask_ratio", "1.5"), "mask_ratio: 1.5 is not in"),
        (
            ("--scorer_config", "x.yaml"),
            "--scorer_config and --scorer_model go together",
        ),
        (("--head_epochs", "2"), "--head_epochs 2 leaves nothing of the 2 epochs"),
        (("--objective", "data2vec"), "--objective data2vec (hubert,"),
        (("--model_size", "xxl"), "--model_size xxl (mini, l or xl)"),
        (
            ("--train_config", "conf/train.yaml", "--objective", "best_rq"),
            "--train_config says what --objective and --model_size would",
        ),
    ],
)
def test_wrong_options_are_refused(recipe, options, message):
    process = start(recipe, *options)
    assert process.wait(TIMEOUT) != 0
    assert message in (recipe / "log").read_text()
