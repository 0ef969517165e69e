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
    *("--scorer_train_config", f"{CONF}_asr_conformer_mini.yaml"),
    *("--asr_config", f"{CONF}_asr_conformer_mini_rnnt.yaml"),
    *("--ssl_max_epoch", "1", "--asr_max_epoch", "1"),
    *("--asr_train_set", "librispeech_100_train"),
    *("--asr_valid_set", "librispeech_100_dev"),
    *("--finetune_sets", "ami_ihm+ami_sdm1"),
    *("--test_sets", "librispeech_test_clean ami_ihm_eval"),
]


def test_all_stages(tmp_path):
    """A CTC scorer on LibriSpeech; a transducer, fine-tuned on both of AMI's microphones."""
    root = tmp_path / "corpora"
    trees.librilight(
        root / "librilight",
        "small",
        {(name, "7", f"chapter_{i}"): 70 for name in ("100", "19") for i in (1, 2)},
    )
    trees.librispeech(root / "librispeech")
    trees.ami(root / "ami")
    recipe = copy_recipe(tmp_path)
    (recipe / "db.sh").write_text(
        f"LIBRILIGHT={root}/librilight\nLIBRISPEECH={root}/librispeech\nAMI={root}/ami\n"
    )
    done = subprocess.run(
        ["./run.sh", *OPTIONS],
        cwd=recipe,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "2 prepared ( librispeech ami)" in done.stdout
    run = "best_rq_conformer_mini_atm_high_0.4x10"
    rows = re.findall(
        r"^\| librilight \| (\S+) \| (\S+) \|", done.stdout, flags=re.MULTILINE
    )
    assert set(rows) == {
        (name, test)
        for name in ("scorer", f"{run}_ami_ihm+ami_sdm1_rnnt")
        for test in ("librispeech_test_clean", "ami_ihm_eval")
    }
    exp = recipe / "exp/librilight"
    finetuned = (exp / f"asr_{run}_ami_ihm+ami_sdm1_rnnt/config.yaml").read_text()
    assert "decoder: transducer" in finetuned and ":encoder:encoder" in finetuned
    tokens = Path(recipe / "data").glob("*token_list/bpe_unigram40/tokens.txt")
    assert len(list(tokens)) == 2  # of LibriSpeech, and of AMI
    train_log = (exp / f"ssl_{run}_raw/train.log").read_text()
    assert "mask_ratio=" in train_log
