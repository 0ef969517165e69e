"""The whole of --corpus librilight on miniature trees, by local/paper.sh and run.sh.

In order: each test goes on from what the one before has left.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import trees
import yaml
from cluster import slurm  # noqa: F401
from conftest import copy_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from espnet_atm.labels import Labels

AMI = "ami_ihm+ami_sdm1"
CONFIG = "conf/tuning/train_asr_conformer"
TINY = [
    *("--size", "small", "--nj", "1", "--nbpe", "40"),
    *("--ssl_max_epoch", "1", "--asr_max_epoch", "2", "--head_epochs", "1"),
]
# A line with one evaluation set: decoding and scoring another takes long.
LINE = "w2v-BERT-L ATM"
PAPER = ["local/paper.sh", "--figure", "5", "--row", LINE, "--model_size", "mini"]
MODEL = "w2v_bert_conformer_mini_atm_high_0.4x10"
SCORER = "scorer_bpe40_ep2"
# Validated on what figure 6 is of, with the masker of all.
VALID = "valid_random_0.49x10_librispeech_dev_other"
RUN = f"{MODEL}_{VALID}_bpe40_ep2_scorer_ep1"
# run.sh with the pre-training of PAPER
SAME = ["./run.sh", "--corpus", "librilight", "--model_size", "mini", *TINY]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A copy of the recipe, with db.sh for trees beside it; AMI's is not there yet."""
    root = tmp_path_factory.mktemp("tree")
    trees.librilight(
        root / "corpora/librilight",
        "small",
        {(name, "7", f"chapter_{i}"): 70 for name in ("100", "19") for i in (1, 2)},
    )
    trees.librispeech(root / "corpora")
    folder = copy_recipe(root)
    places = {"LIBRILIGHT": "librilight", "LIBRISPEECH": "", "AMI": "ami"}
    lines = [f"{name}={root}/corpora/{place}\n" for name, place in places.items()]
    (folder / "db.sh").write_text("".join(lines))
    # Without sclite: what ESPnet does for it takes longer than decoding.
    with (folder / "local/path.sh").open("a") as f:
        f.write('! sclite=$(type -P sclite) || PATH=${PATH//"${sclite%/*}"/}\n')
    return folder


def call(recipe: Path, command: list[str], backend: str = "local") -> str:
    """What it prints."""
    done = subprocess.run(
        command,
        cwd=recipe,
        env={**os.environ, "cmd_backend": backend},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.parametrize(
    "options, config, head_epochs",
    [
        ((), "l", "12"),
        (("--model_size", "xl", "--asr_max_epoch", "40"), "l", "5"),
        (("--model_size", "mini"), "mini", "2"),
    ],
)
def test_settings(recipe, options, config, head_epochs):
    """The ASR config fits the model's size; the encoder is frozen for an eighth."""
    run = ["./run.sh", "--corpus", "librilight", *options, "--stop_stage", "0"]
    (line,) = (x for x in call(recipe, run).splitlines() if " ./atm.sh " in x)
    given = dict(re.findall(r"--(\w+) (\S+)", line))  # the last one wins
    assert given["asr_config"] == f"{CONFIG}_{config}.yaml"
    assert given["head_epochs"] == head_epochs and given["km_portion"] == "0.002"
    assert "--head_args --scheduler none" in line


@pytest.mark.slow
def test_data_are_prepared_once(recipe):
    """And what could not be prepared, again."""
    prepare = [*SAME, "--stop_stage", "2"]
    log = call(recipe, prepare)
    assert "1 prepared ( librispeech), 1 failed ( ami)" in log
    assert "what could not be prepared is tried again" in log
    trees.ami(recipe.parents[2] / "corpora/ami")
    log = call(recipe, prepare)
    assert "2 prepared ( librispeech ami), 0 failed" in log
    assert "segment_librilight: done already" in log
    sets = ("librilight_unlabelled", "librispeech_100_train", "ami_ihm_eval")
    files = [recipe / f"data/{x}/wav.scp" for x in sets]
    before = [x.stat() for x in files]
    log = call(recipe, prepare)
    assert "prepare_librilight: done already" in log and "prepared (" not in log
    assert [x.stat() for x in files] == before

    places = (recipe / "db.sh").read_text()
    (recipe / "db.sh").write_text("")
    with pytest.raises(AssertionError, match="set LIBRILIGHT in db.sh"):
        call(recipe, prepare)
    (recipe / "db.sh").write_text(places)
    files[0].unlink()
    log = call(recipe, prepare)
    assert "2 prepared ( librispeech ami)" in log and files[0].stat().st_size


def section(recipe: Path, title: str) -> dict[str, list[str]]:
    """The lines of a section of RESULTS.md: cells by label."""
    parts = re.split(r"^## ", (recipe / "RESULTS.md").read_text(), flags=re.M)
    (found,) = (x for x in parts if x.startswith(f"{title}\n"))
    lines = [x[2:-2].split(" | ") for x in found.splitlines() if x.startswith("| ")]
    return {label: [x.strip() for x in cells] for label, *cells in lines[1:]}


def is_number(cell: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", cell) is not None


@pytest.mark.slow
def test_lines_of_the_paper(recipe):
    """Scorer, scores, pre-training, RNN-T with a frozen start, RESULTS.md."""
    log = call(recipe, [*PAPER, "--", *TINY])
    assert "1 missing" in log and "Stage 12: Decode and score" in log
    # No second copy of the pool's audio, and nothing is decoded for its lengths.
    assert "cuts into the recordings; no audio is written" in log
    assert not list(recipe.glob("dump/librilight/raw/**/librilight_*/**/*.flac"))
    sets = {"train": "librilight_unlabelled", "valid": "librispeech_dev_other_pool"}
    for mode, dset in sets.items():
        dumped = recipe / f"dump/librilight/raw/{dset}"
        shape = recipe / f"exp/librilight/ssl_stats_raw/{mode}/speech_shape"
        assert shape.read_bytes() == (dumped / "utt2num_samples").read_bytes()
    assert "| jiwer |" in log and "| sclite |" not in log
    assert f"{AMI}_rnnt_head1, seed 0, against {SCORER}, without pre-training, trained on" in log
    exp = recipe / "exp/librilight"
    name, scorer = f"asr_{RUN}_{AMI}_rnnt_head1", f"asr_{SCORER}"
    configs = {
        x: yaml.safe_load((exp / x / "config.yaml").read_text())
        for x in (scorer, f"{name}_head", name)
    }
    assert configs[scorer]["decoder"] is None
    assert configs[scorer]["encoder_conf"]["output_size"] == 96
    assert configs[name]["decoder"] == "transducer" and configs[name]["max_epoch"] == 1
    head = configs[f"{name}_head"]
    assert head["freeze_param"] == ["encoder"] and head["scheduler"] is None
    assert head["init_param"][0].endswith(".pth:encoder:encoder")
    assert "mask_ratio=" in (exp / f"ssl_{RUN}_raw/train.log").read_text()
    cells = section(recipe, "Figure 5 of the paper, size mini")
    assert all(map(is_number, cells[LINE][::2])) and cells[LINE][3] == "27.34"
    assert cells[LINE][1] == "12.52 (6.4 % below 13.38; the text says 5 %)"
    assert cells["w2v-BERT-L baseline"] == ["", "13.38", "", ""]

    begin = time.time()
    log = call(recipe, [*PAPER, "--", *TINY])
    assert time.time() - begin < 30
    assert "0 missing" in log and "./run.sh" not in log
    assert section(recipe, "Figure 5 of the paper, size mini") == cells


@pytest.mark.slow
def test_figure_6_of_the_pre_training_that_is_there(recipe):
    figure = ["local/paper.sh", "--figure", "6", "--row", "ATM", "--model_size", "mini"]
    log = call(recipe, [*figure, "--", *TINY])
    assert "0 missing" in log
    cells = section(recipe, "Figure 6 of the paper, size mini")["ATM"]
    loss, used, accuracy = map(float, cells[::2])
    assert loss > 0 and 0 < used <= 100 and 0 <= accuracy <= 1


@pytest.mark.slow
def test_the_other_head_and_a_further_set(recipe):
    """CTC on LibriSpeech and on AMI, from the same pre-training, with its own line."""
    log = call(
        recipe,
        [*PAPER, "--head", "ctc", "--", *TINY]
        + ["--finetune_sets", f"librispeech_100 {AMI}"],
    )
    for step in ("prepare_librilight", f"combine_{AMI}_train", "score", "train"):
        assert f"{step}: done already" in log
    rows = r"^\| librilight \| (\S+) \| 0 \| ami_ihm_eval \| \d+ \| (\S+) \|"
    wer = dict(re.findall(rows, (recipe / "RESULTS.md").read_text(), flags=re.M))
    finetuned = ("librispeech_100", AMI, f"{AMI}_rnnt")
    assert wer.keys() == {SCORER, *(f"{RUN}_{x}_head1" for x in finetuned)}
    cells = section(recipe, "Figure 5 of the paper, size mini, CTC")
    # With more digits, from the hypotheses.
    assert float(cells[LINE][0]) == pytest.approx(
        float(wer[f"{RUN}_{AMI}_head1"]), abs=0.051
    )


@pytest.mark.slow
def test_a_published_scorer_beside_the_other(recipe, tmp_path):
    """A packed file as the tag, with a name: here of the same model and scores."""
    scorer = recipe / "exp/librilight" / f"asr_{SCORER}"
    packed = tmp_path / "scorer.zip"
    pack = [sys.executable, "-m", "espnet2.bin.pack", "asr", "--outpath", str(packed)]
    pack += ["--asr_train_config", str(scorer / "config.yaml")]
    pack += ["--asr_model_file", str(scorer / "valid.loss.best.pth")]
    call(recipe, pack)
    options = ["--scorer_tag", str(packed), "--scorer_name", "published"]
    options += ["--valid_set", "librispeech_dev_other"]  # PAPER's, which is in dump/
    log = call(recipe, [*SAME, *options, "--stage", "6", "--stop_stage", "6"])
    assert "Stage 6: Score librilight_unlabelled librispeech_dev_other_pool" in log
    name = f"{MODEL}_librispeech_dev_other_published_scorer_ep1"
    assert (recipe / f"exp/librilight/conf/{name}.yaml").exists()
    scores = recipe.glob("exp/librilight/confidence_*/librilight_unlabelled")
    assert len({(x / "utt2confidence").read_text() for x in scores}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, backend", [("hubert", "local"), ("hubert", "slurm"), ("w2v_bert", "slurm")]
)
def test_all_stages(recipe, request, objective, backend):
    """In a place of its own, from cuts to a fine-tuned model; an epoch in two parts."""
    ami = recipe.parents[2] / "corpora/ami"
    if not ami.exists():  # alone, without the tests before
        trees.ami(ami)
    if backend == "slurm":
        slurm = request.getfixturevalue("slurm")
    place = f"{objective}_{backend}"
    options = ["--objective", objective, "--test_sets", "ami_ihm_eval", "--nj", "2"]
    options += ["--dumpdir", f"dump/{place}", "--expdir", f"exp/{place}"]
    options += ["--num_splits_ssl", "2", "--km_portion", "0.5"]
    if objective == "hubert":
        options += ["--nclusters", "8"]
    log = call(recipe, [*SAME, *options], backend)
    assert "no audio is written" in log and "Stage 12: Decode and score" in log
    sets = ("librilight_unlabelled", "librilight_unlabelled_dev")
    for dset in sets:
        assert not list(recipe.glob(f"dump/{place}/**/{dset}/**/*.flac"))
    assert not list(recipe.glob(f"dump/{place}/feats"))
    (model,) = recipe.glob(f"exp/{place}/ssl_{objective}_*_splits2_raw")
    assert "Building 1th iter-factory" in (model / "train.log").read_text()
    if objective == "hubert":
        for dset in sets:
            labels = Labels(recipe / f"exp/{place}/kmeans_8/{dset}/labels.scp")
            wav_scp = recipe / f"dump/{place}/raw/{dset}/wav.scp"
            os.chdir(recipe)  # paths in the list are relative to the recipe
            found = {utt: x.max() for utt, x in labels.items()}
            assert list(found) == [x.split()[0] for x in wav_scp.read_text().splitlines()]
            assert all(x < 8 for x in found.values())
    if backend == "slurm":
        jobs = (slurm / "jobs.txt").read_text()
        wanted = ("score", "train", *(["label", "learn_kmeans"] * (objective == "hubert")))
        for name in wanted:
            assert re.search(rf"^JobId=.* Name=\S*{name}\S* JobState=COMPLETED", jobs, re.M)
    begin = time.time()
    call(recipe, [*SAME, *options], backend)
    assert time.time() - begin < 60


@pytest.mark.slow
def test_the_open_stew(recipe):
    """Six corpora, at 8, 16 and 48 kHz, are one set; a model is tuned on all of it."""
    root = recipe.parents[2] / "corpora"
    if not (root / "ami").exists():  # alone, without the tests before
        trees.ami(root / "ami")
    with (recipe / "db.sh").open("a") as f:
        for name in ("tedlium2", "commonvoice", "wsj", "swbd"):
            getattr(trees, name)(root / name)
            parts = ("wsj/wsj0", "wsj/wsj1") if name == "wsj" else (name,)
            f.writelines(f"{x.split('/')[-1].upper()}={root}/{x}\n" for x in parts)
    stew = f"librispeech_960+{AMI}+tedlium2+commonvoice+wsj+swbd"
    options = ["--finetune_sets", stew, "--test_sets", "tedlium2_dev wsj_eval92"]
    options += ["--dumpdir", "dump/stew", "--expdir", "exp/stew"]
    # A scorer that is validated on one of the test sets.
    options += ["--asr_train_set", "tedlium2_train", "--asr_valid_set", "tedlium2_dev"]
    log = call(recipe, [*SAME, *options])
    assert "6 prepared ( librispeech ami tedlium2 commonvoice wsj swbd), 0 failed" in log
    assert (recipe / "dump/stew/raw/tedlium2_dev_labelled/wav.scp").exists()
    counts = {"train": 9 + 6 + 6 + 4 + 3 + 12 + 8, "dev": 6 + 6 + 6 + 4 + 2 + 4 + 4}
    for part, count in counts.items():
        lines = (recipe / f"dump/stew/raw/{stew}_{part}/wav.scp").read_text().splitlines()
        assert len(lines) == count
        for line in lines:
            info = soundfile.info(recipe / line.split()[1])
            assert (info.samplerate, info.channels) == (16000, 1) and info.frames > 8000
    rows = re.findall(
        rf"^\| librilight \| \S+_{re.escape(stew)}\S* \| 0 \| (\S+) \| \d+ \|",
        (recipe / "RESULTS.md").read_text(),
        flags=re.M,
    )
    assert sorted(rows) == ["tedlium2_dev", "wsj_eval92"]


@pytest.mark.slow
def test_a_table_and_figure_6_with_seeds(recipe):
    """Means over two seeds, and an interval for each difference to the baseline."""
    ami = recipe.parents[2] / "corpora/ami"
    if not ami.exists():  # alone, without the tests before
        trees.ami(ami)
    seeds = ["--model_size", "mini", "--seeds", "2"]
    log = call(recipe, ["local/paper.sh", "--table", "III", *seeds, "--", *TINY])
    assert "8 runs, 8 missing" in log
    found = section(recipe, "Table III of the paper, size mini")
    models = ("w2v2-cfr-L", "w2v-BERT-L")
    labels = [f"{x} {y}" for x in models for y in ("baseline", "ATM")]
    mean = r"\d+\.\d\d ± \d+\.\d\d"
    for label in labels:
        assert all(re.fullmatch(mean, x) for x in found[label][::2]), found[label]
    sets = ("dev", "dev-other", "test", "test-other")
    compared = [f"{x} ATM against {x} baseline, {y}" for x in models for y in sets]
    assert [x for x in found if not x.startswith("|")] == [*labels, *compared]
    for label in compared:
        change, interval, relative, drawn, _ = found[label]
        low, high = map(float, re.fullmatch(r"\[(\S+), (\S+)\]", interval).groups())
        assert low <= float(change) <= high and re.fullmatch(r"\S+ %|", relative)
        assert drawn == "3 utterances, too few to tell"
    assert found[compared[-1]][-1] == "-0.07 (-0.8 %)"

    # Its baseline and its ATM are those of the table.
    log = call(recipe, ["local/paper.sh", "--figure", "6", *seeds, "--", *TINY])
    assert "6 runs, 2 missing" in log
    found = section(recipe, "Figure 6 of the paper, size mini")
    for label in ("baseline", "ATM", "ATM+S"):
        assert all(" ± " in x for x in found[label][::2]), found[label]
    for label in ("ATM", "ATM+S"):
        for statistic in ("contrastive loss", "codes used %", "masked accuracy"):
            cells = found[f"{label} against baseline, {statistic}"]
            change, interval, _, drawn, _ = cells
            low, high = map(float, re.fullmatch(r"\[(\S+), (\S+)\]", interval).groups())
            assert low <= float(change) <= high and drawn == "2 seeds"
    # Validation masked the same frames for all, which training did not.
    ratios = {"train": set(), "valid": set()}
    for mode, seen in ratios.items():
        for run in recipe.glob("exp/librilight/ssl_w2v_bert_*_raw"):
            events = EventAccumulator(str(run / f"tensorboard/{mode}")).Reload()
            seen.update(x.value for x in events.Scalars("mask_ratio"))
    assert len(ratios["valid"]) == 1 < len(ratios["train"])
