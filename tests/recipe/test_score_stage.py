"""Stages 6 to 9 on a set of which two utterances cannot be scored."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import copy_recipe

SETS = {"pool": 4, "pool_dev": 2, "labelled": 1}


@pytest.fixture
def recipe(corpus, tmp_path):
    """A copy of the recipe with a pool as stage 4 leaves it.

    The first and the last utterance of ``pool`` last 10 ms.
    """
    recipe = copy_recipe(tmp_path / "tree")
    soundfile.write(tmp_path / "short.wav", np.zeros(160), 16000)
    audio = iter(sorted(corpus.glob("*.wav")))
    for dset, count in SETS.items():
        ids = [f"{dset}-{n}" for n in range(count)]
        lines = {
            "wav.scp": [f"{utt} {next(audio)}" for utt in ids],
            "utt2spk": [f"{utt} {utt}" for utt in ids],
            "spk2utt": [f"{utt} {utt}" for utt in ids],
            "text": [f"{utt} unlabelled" for utt in ids],
        }
        if dset == "pool":
            for n in (0, 3):
                lines["wav.scp"][n] = f"{ids[n]} {tmp_path}/short.wav"
        folder = recipe / "data" / dset
        folder.mkdir(parents=True)
        for name, content in lines.items():
            (folder / name).write_text("\n".join(content) + "\n")
        dump = recipe / "dump/x/raw" / dset
        shutil.copytree(folder, dump)
        (dump / "feats_type").write_text("raw\n")
        (dump / "audio_format").write_text("wav\n")
    return recipe


@pytest.mark.slow
def test_a_scorer_of_hugging_faces_scores(recipe, make_ctc):
    """Named by its folder; a language makes another one of it, where it has languages."""
    folder = make_ctc()
    command = ["./atm.sh", "--corpus", "x", "--skip_data_prep", "true"]
    command += ["--train_set", "pool", "--valid_set", "pool_dev", "--objective", "best_rq"]
    command += ["--asr_train_set", "labelled", "--asr_valid_set", "labelled"]
    command += ["--test_sets", "labelled", "--scorer_tag", str(folder)]
    command += ["--max_skipped", "2", "--stage", "6", "--stop_stage", "6"]

    def run(*options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *options],
            cwd=recipe,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Scorer: {folder}" in done.stdout
    (scores,) = recipe.glob("exp/x/confidence_*")
    assert (scores / "pool/frame_shift").read_text() == "320\n"
    assert json.loads((scores / "pool/scorer").read_text())["lang"] is None
    assert len((scores / "pool/confidence.scp").read_text().splitlines()) == 2
    again = run()
    assert "score: done already" in again.stdout, again.stdout + again.stderr
    done = run("--scorer_lang", "eng")
    assert done.returncode == 1
    assert "lang: 'eng':" in done.stderr and "has no adapters" in done.stderr
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert run().returncode == 0
    assert len(list(recipe.glob("exp/x/confidence_*"))) == 2


def run_stages(recipe: Path, asr: tuple, *options) -> subprocess.CompletedProcess:
    """From stage 6 on."""
    return subprocess.run(
        [
            *("./atm.sh", "--corpus", "x", "--skip_data_prep", "true"),
            *("--train_set", "pool", "--valid_set", "pool_dev"),
            *("--asr_train_set", "labelled", "--asr_valid_set", "labelled"),
            *("--test_sets", "labelled", "--objective", "best_rq"),
            *("--scorer_config", str(asr[0]), "--scorer_model", str(asr[1])),
            *("--nj", "2", "--stage", "6", *options),
        ],
        cwd=recipe,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def scores_of(recipe: Path) -> Path:
    (found,) = recipe.glob("exp/x/confidence_*")
    return found


def test_pre_training_goes_on_without_what_cannot_be_scored(recipe, asr):
    # One in each of the two jobs.
    done = run_stages(recipe, asr, "--stop_stage", "6", "--max_skipped", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "2 utterances of pool have no score, more than --max_skipped 1: "
        f"{scores_of(recipe).relative_to(recipe)}/pool/skipped says which and why" in done.stderr
    )
    assert "by --max_skipped 2" in done.stderr
    summary = json.loads((scores_of(recipe) / "pool/summary.json").read_text())
    assert sum(summary["skipped"].values()) == 2 and summary["utterances"] == 2
    assert re.search(r"skipped: \{.*too short for one frame': 2", done.stdout)
    skipped = (scores_of(recipe) / "pool/skipped").read_text().splitlines()
    assert [line.split()[0] for line in skipped] == ["pool-0", "pool-3"]

    # With a wider bound, scores that are there stay, however they are computed now.
    options = ("--max_skipped", "2", "--score_opts", "--num_workers 2")
    done = run_stages(recipe, asr, "--stop_stage", "9", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (scores_of(recipe) / "pool/logdir/score.1.log").read_text()
    assert "2 utterances, 1 of them scored already" in log
    assert "2 of 4 utterances kept" in done.stdout
    assert "2 have no confidence in" in done.stdout
    kept = {"train": {"pool-1", "pool-2"}, "valid": {"pool_dev-0", "pool_dev-1"}}
    for mode, ids in kept.items():
        shape = recipe / f"exp/x/ssl_stats_raw/{mode}/speech_shape"
        assert {x.split()[0] for x in shape.read_text().splitlines()} == ids

    # Tracks in the folder of the utterances that are left are of those utterances.
    (subset,) = scores_of(recipe).glob("pool_min0_*")
    for name in ("confidence.scp", "utt2confidence", "utt2audio"):
        lines = (subset / name).read_text().splitlines()
        assert {x.split()[0] for x in lines} == kept["train"], name


@pytest.mark.slow
def test_statistics_of_other_data_are_not_taken_for_a_runs_own(recipe, asr):
    """Of other utterances, of another front end, or with other arguments."""
    options = ("--max_skipped", "2")
    done = run_stages(recipe, asr, "--stop_stage", "9", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    front_end = yaml.safe_load((recipe / "conf/train.yaml").read_text())
    front_end["frontend_conf"]["n_mels"] = 40
    (recipe / "train_own.yaml").write_text(yaml.safe_dump(front_end))
    for other in (
        ("--min_confidence", "0.01"),
        ("--ssl_args", "--use_preprocessor false"),
        ("--objective", "", "--train_config", "train_own.yaml", "--nclusters", "4"),
    ):
        done = run_stages(recipe, asr, "--stage", "10", "--stop_stage", "10", *options, *other)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "has no statistics of these data and settings" in done.stderr
        assert not list(recipe.glob("exp/x/ssl_*/train.log"))


def test_a_set_without_utterances_is_not_scored(recipe, asr):
    (recipe / "dump/x/raw/pool_dev/wav.scp").write_text("")
    done = run_stages(recipe, asr, "--stop_stage", "6")
    assert done.returncode == 1
    assert "raw/pool_dev/wav.scp is missing or empty" in done.stderr


@pytest.mark.slow
def test_another_config_of_the_scorer_means_other_scores(recipe, asr):
    done = run_stages(recipe, asr, "--stop_stage", "6", "--max_skipped", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    config = recipe / "config.yaml"
    config.write_text(asr[0].read_text() + "# changed\n")
    options = ("--stage", "7", "--stop_stage", "7", "--scorer_config", str(config))
    assert run_stages(recipe, asr, *options).returncode != 0  # nothing to report on
    assert len(list(recipe.glob("exp/x/confidence_*"))) == 2
    done = run_stages(recipe, asr, "--score_opts", "--max_skipped 2")
    assert done.returncode == 1
    assert "--max_skipped is an option of its own" in done.stderr
