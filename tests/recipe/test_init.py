"""--init: the recipe goes on from a published encoder."""

import re
import subprocess

import pytest
import torch
import transformers
import yaml
from conftest import copy_recipe
from test_huggingface import save


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe without data."""
    return copy_recipe(tmp_path_factory.mktemp("tree"))


def run(recipe, *options) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["./run.sh", *map(str, options), "--stop_stage", "0"],
        cwd=recipe,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_run_is_named_by_what_it_starts_from(recipe, tmp_path, kind):
    save(tmp_path / f"tiny-{kind}", kind)
    expdir = tmp_path / "exp"
    options = ("--init", tmp_path / f"tiny-{kind}", "--expdir", expdir)
    done = run(recipe, *options, "--nclusters", "8" if kind == "hubert" else "")
    assert done.returncode == 0, done.stderr[-3000:]
    (name,) = re.findall(r"Pre-training: \S+/ssl_(\S+)_raw$", done.stdout, re.M)
    clusters = "_km8" if kind == "hubert" else ""
    assert name == f"init_tiny-{kind}{clusters}_atm_high_0.4x10"
    config = yaml.safe_load((expdir / f"conf/{name}.yaml").read_text())
    assert config["frontend"] == "wav2vec2_cnn" and config["loss"][0]["name"] == kind
    (weights,) = expdir.glob("init/*/model.pth")
    assert "preencoder.linear_out.weight" in torch.load(weights, weights_only=True)
    # Again: it is imported once.
    assert "Importing" not in run(recipe, *options).stdout


def test_what_cannot_be_started_from_is_named(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    wavlm = transformers.WavLMConfig(hidden_size=16, num_attention_heads=2)
    wavlm.save_pretrained(tmp_path / "wavlm")
    for options, message in (
        (("--init", tmp_path / "empty"), f"--init {tmp_path}/empty: holds no config.json"),
        (
            ("--init", tmp_path / "wavlm", "--objective", "hubert"),
            "--init says what --objective and --model_size would",
        ),
        (("--init", tmp_path / "wavlm"), "model_type: wavlm is not known"),
    ):
        done = run(recipe, *options, "--expdir", tmp_path / "exp")
        assert done.returncode != 0 and message in done.stderr
        assert "Stage 1" not in done.stdout and "Traceback" not in done.stderr


def test_a_hubert_and_a_scorer_of_hugging_faces_through_all_stages(
    recipe, tmp_path, make_ctc
):
    """From data preparation to error rates, with nothing of ESPnet's zoo or our own."""
    save(tmp_path / "tiny", "hubert")
    command = ["./run.sh", "--init", tmp_path / "tiny", "--scorer_tag", make_ctc()]
    command += ["--nclusters", "8", "--ssl_max_epoch", "1", "--asr_max_epoch", "1"]
    command += ["--test_sets", "mini_test_an4"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=recipe,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    (scores,) = (recipe / "exp/mini").glob("confidence_*/mini_unlabelled")
    assert len((scores / "confidence.scp").read_text().splitlines()) == 450
    assert (scores / "frame_shift").read_text() == "320\n"
    assert "450 of 450 utterances scored" in done.stdout
    rows = [x for x in (recipe / "RESULTS.md").read_text().splitlines() if "init_tiny" in x]
    assert len(rows) == 1 and rows[0].count("mini_test_an4") == 1
