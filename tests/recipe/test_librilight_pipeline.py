"""The whole of --corpus librilight on miniature trees."""

import os
import re
import subprocess
from pathlib import Path

import trees
from conftest import copy_recipe

CONF = "conf/tuning/train"
OPTIONS = [
    *("--corpus", "librilight", "--size", "small", "--nbpe", "40"),
    *("--train_config", f"{CONF}_best_rq_conformer_mini_atm.yaml"),
    *("--asr_config", f"{CONF}_asr_conformer_mini_rnnt.yaml"),
    *("--ssl_max_epoch", "1", "--asr_max_epoch", "1"),
    *("--finetune_sets", "ami_ihm+ami_sdm1", "--test_sets", "ami_ihm_eval"),
]


def test_all_stages(tmp_path, asr):
    """A scorer from elsewhere; a transducer, fine-tuned on both of AMI's microphones."""
    root = tmp_path / "corpora"
    trees.librilight(
        root / "librilight",
        "small",
        {(name, "7", f"chapter_{i}"): 70 for name in ("100", "19") for i in (1, 2)},
    )
    trees.ami(root / "ami")
    recipe = copy_recipe(tmp_path)
    (recipe / "db.sh").write_text(f"LIBRILIGHT={root}/librilight\nAMI={root}/ami\n")
    done = subprocess.run(
        ["./run.sh", *OPTIONS]
        + ["--scorer_config", str(asr[0]), "--scorer_model", str(asr[1])],
        cwd=recipe,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 prepared ( ami)" in done.stdout
    run = "best_rq_conformer_mini_atm_high_0.4x10"
    rows = re.findall(
        r"^\| librilight \| (\S+) \| (\S+) \|", done.stdout, flags=re.MULTILINE
    )
    assert rows == [(f"{run}_ami_ihm+ami_sdm1_rnnt", "ami_ihm_eval")]
    exp = recipe / "exp/librilight"
    finetuned = (exp / f"asr_{run}_ami_ihm+ami_sdm1_rnnt/config.yaml").read_text()
    assert "decoder: transducer" in finetuned and ":encoder:encoder" in finetuned
    tokens = Path(recipe / "data").glob("*token_list/bpe_unigram40/tokens.txt")
    assert len(list(tokens)) == 1
    train_log = (exp / f"ssl_{run}_raw/train.log").read_text()
    assert "mask_ratio=" in train_log
