"""Tables and figures of the paper: local/paper.py."""

import shlex
from argparse import Namespace
from pathlib import Path

import make_ssl_config
import paper
import pytest
import results
from conftest import RECIPE, copy_recipe
from torch.utils.tensorboard import SummaryWriter

# Each table's evaluation sets and runs, by hand from the paper.
AMI = "ami_ihm+ami_sdm1"
BOTH = "ami_ihm_eval ami_sdm1_eval"


def w2v_bert(masker, ratio, strategy="", scale="", prob="", scorer="", **changes):
    found = {"objective": "w2v_bert", "model_size": "l", "masker": masker}
    found |= {"mask_ratio": ratio, "strategy": strategy, "loss_scale": scale}
    found |= {"frame_prob": prob, "scorer_name": scorer, "finetune_sets": AMI}
    return found | changes


BASE, ATM = w2v_bert("random", "0.49"), w2v_bert("atm", "0.4")
SCALED = w2v_bert("atm", "0.4", scale="utterance")
XL = {"model_size": "xl"}
EXPECTED = {
    "table I": (
        BOTH,
        [ATM, w2v_bert("atm", "0.4", "low"), w2v_bert("atm", "0.4", "mixed")],
    ),
    "table II": (BOTH, [BASE, ATM, w2v_bert("atm", "0.4", scorer="ami")]),
    "table III": (
        "librispeech_test_clean librispeech_test_other",
        [
            run | {"finetune_sets": f"librispeech_{hours}"}
            for hours in ("100", "960")
            for run in (BASE, ATM)
        ],
    ),
    "table IV": (
        BOTH,
        [BASE, w2v_bert("random", "0.49", scale="utterance"), ATM, SCALED],
    ),
    "table V": (
        BOTH,
        [
            ATM,
            w2v_bert("atm", "0.4", scale="frame", prob="1"),
            w2v_bert("atm", "0.4", scale="frame", prob="0.1"),
        ],
    ),
    "table VIII": (BOTH, [BASE | XL, ATM | XL, SCALED | XL]),
    "table IX": (
        "commonvoice_test tedlium2_test chime6_eval",
        [BASE | XL, ATM | XL, SCALED | XL],
    ),
    "figure 4": (
        BOTH,
        [
            w2v_bert(masker, ratio)
            for masker in ("random", "atm")
            for ratio in ("0.3", "0.33", "0.4", "0.49", "0.5")
        ],
    ),
    "figure 5": (
        "ami_ihm_eval",
        [
            run | {"objective": objective}
            for objective in ("wav2vec2", "hubert", "w2v_bert")
            for run in (BASE, ATM)
        ],
    ),
    "figure 6": (
        "librispeech_dev_clean",
        [x | {"finetune_sets": "librispeech_100"} for x in (BASE, ATM, SCALED)],
    ),
}
LS = {
    "asr_train_set": "librispeech_100_train",
    "asr_valid_set": "librispeech_100_dev",
}
AMI_SCORER = {"asr_train_set": "ami_ihm_train", "asr_valid_set": "ami_ihm_dev"}


def row_name(run: paper.Run) -> str:
    """What the recipe calls the fine-tuned model."""
    config = RECIPE / "conf/tuning"
    config /= f"train_{run.objective}_conformer_{run.model_size}_{run.masker}.yaml"
    args = make_ssl_config.get_parser().parse_args(
        ["--config", str(config), "--output_dir", "unused"]
    )
    given = Namespace(**vars(args))
    options = run.options()
    for name, value in zip(options[::2], options[1::2]):
        if hasattr(given, name[2:]):
            setattr(given, name[2:], value)
    suffix = "" if run.head == "ctc" else "_rnnt"
    scorer = f"_{run.scorer}_scorer" if run.scorer else ""
    return f"{make_ssl_config.make_config(given)[0]}{scorer}_{run.finetune}{suffix}"


def write_results(file: Path, rows: list[tuple[str, str, float]]) -> None:
    cells = [["librilight", a, "0", b, "3", f"{x}", "9.9", "sclite"] for a, b, x in rows]
    found = [dict(zip(results.HEADER, x)) for x in cells]
    results.write_parts(file, [results.TITLE + results.table(found)])


@pytest.fixture
def plan(capsys, tmp_path):
    """What --dry_run prints, where nothing has been run."""

    def run(*options: str) -> str:
        nothing = ["--results", str(tmp_path / "none"), "--expdir", "exp/librilight"]
        paper.main(["--dry_run", *nothing, *options])
        return capsys.readouterr().out

    return run


def all_runs() -> set[paper.Run]:
    """Of every table and figure, with both heads and in two sizes."""
    return {
        row.run
        for asked in paper.EXPERIMENTS.values()
        for head in ("rnnt", "ctc")
        for settings in ({}, {"model_size": "mini"})
        for row in asked.replace_runs(head=head, **settings).rows
    }


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("head", ["rnnt", "ctc"])
def test_plan(name, head, plan):
    """Every run is in it once, with the paper's settings, and with every set."""
    kind, number = name.split()
    log = plan(f"--{kind}", number, "--head", head, "--", "--nj", "7")
    lines = [x for x in log.splitlines() if x.startswith("./run.sh")]
    sets, runs = EXPECTED[name]
    assert f"{len(runs)} missing" in log and "GPU hours" in log
    config = "conf/tuning/train_asr_conformer_l"
    for line, run in zip(lines, runs, strict=True):
        words = shlex.split(line)[1:]
        given = {x[2:]: y for x, y in zip(words[::2], words[1::2], strict=True)}
        assert given.pop("nj") == "7" and given.pop("corpus") == "librilight"
        assert given.pop("expdir") == "exp/librilight"
        assert given.pop("test_sets") == sets
        assert given.pop("scorer_train_config") == f"{config}.yaml"
        suffix = "_rnnt" if head == "rnnt" else ""
        assert given.pop("asr_config") == f"{config}{suffix}.yaml"
        assert given.pop("stop_stage", "") == ("10" if name == "figure 6" else "")
        scorer = AMI_SCORER if run["scorer_name"] else LS
        assert given == {k: v for k, v in run.items() if v} | scorer
        ssl_config = "train_{objective}_conformer_{model_size}_{masker}.yaml"
        assert (RECIPE / "conf/tuning" / ssl_config.format(**run)).exists()
    assert (RECIPE / f"{config}_rnnt.yaml").exists()
    assert set(EXPECTED) == set(paper.EXPERIMENTS)


def test_what_stands_in_for_speechstew_is_said(plan):
    for number in ("VIII", "IX"):
        assert "AMI stands in" in plan("--table", number)


def test_one_row(plan):
    log = plan("--table", "II", "--row", "AMI-scorer")
    assert "1 runs, 1 missing" in log and log.count("./run.sh") == 1
    assert "--scorer_name ami" in log


def test_the_papers_numbers():
    """A few, from the paper's text."""
    cells = {
        (name, row.label, column): number
        for name, asked in paper.EXPERIMENTS.items()
        for row in asked.rows
        for column, number in row.paper.items()
    }
    assert cells["figure 5", "w2v-BERT-L baseline", "IHM-eval"] == 13.38
    assert cells["figure 5", "w2v-BERT-L ATM", "IHM-eval"] == 12.52
    assert cells["figure 5", "HuBERT-cfr-L ATM", "IHM-eval"] == "-4 %"
    assert cells["table II", "AMI-scorer", "SDM-eval"] == 27.00
    assert cells["table III", "baseline 100 h", "test-other"] == 8.86
    assert cells["table III", "ATM 100 h", "test-other"] == 8.79
    assert cells["table III", "ATM 960 h", "test-other"] is None
    assert cells["table VIII", "ATM+S", "SDM-eval"] == 20.7
    assert cells["table IX", "ATM", "CV"] == "-11.6 %"
    assert cells["table IX", "ATM+S", "CHiME-6"] == "-5.76 %"
    assert cells["figure 6", "ATM", "codes used %"] == "94-95"


def test_each_run_finds_its_own_row_and_no_other(tmp_path):
    runs = list(all_runs())
    file = tmp_path / "RESULTS.md"
    found = paper.Found(file, tmp_path)
    write_results(file, [(row_name(x), "test", n) for n, x in enumerate(runs)])
    assert len({row_name(x) for x in runs}) == len(runs)
    for n, run in enumerate(runs):
        assert found.wer(run) == {"test": str(n)}


@pytest.mark.parametrize("scorer", ["", "ami"])
def test_names_with_further_options(tmp_path, monkeypatch, scorer):
    """The recipe says what they are called."""
    monkeypatch.chdir(copy_recipe(tmp_path))
    more = ("--ssl_max_epoch", "1", "--nbpe", "40", "--seed", "3", "--nj", "7")
    assert paper.suffixes("mini", scorer, "rnnt", more) == paper.Suffixes(
        pretrained=("_ami" if scorer else "") + "_bpe40_scorer_ep1_seed3",
        before=("_ami" if scorer else "") + "_bpe40_scorer_ep1",
        after="_rnnt",
        seed="3",
    )
    with pytest.raises(ValueError, match="--seed x: is no whole number"):
        paper.suffixes("mini", scorer, "rnnt", ("--seed", "x"))


def test_what_is_done_is_not_run_again(plan, tmp_path):
    file = tmp_path / "RESULTS.md"
    atm = row_name(paper.atm())
    write_results(file, [(atm, "ami_ihm_eval", 12.6), (atm, "ami_sdm1_eval", 27.5)])
    log = plan("--table", "I", "--results", str(file))
    assert "3 runs, 2 missing" in log and "--strategy low" in log
    found = paper.Found(file, tmp_path)
    table = paper.table(paper.EXPERIMENTS["table I"], found)
    assert "| high | 12.6 | 12.52 | 27.5 | 27.34 |" in table
    assert "| low |  |  |  |  |" in table


def test_heads_are_told_apart(tmp_path):
    """A model of one head neither is, nor stands for, that of the other."""
    ctc, rnnt = paper.atm(head="ctc"), paper.atm()
    file = tmp_path / "RESULTS.md"
    found = paper.Found(file, tmp_path)
    write_results(file, [(row_name(ctc), "ami_ihm_eval", 1.5)])
    assert found.wer(ctc) == {"ami_ihm_eval": "1.5"} and found.wer(rnnt) == {}
    rows = [(row_name(ctc), "ami_ihm_eval", 1.5), (row_name(rnnt), "ami_ihm_eval", 2.5)]
    write_results(file, rows)
    assert found.wer(ctc) == {"ami_ihm_eval": "1.5"}
    assert found.wer(rnnt) == {"ami_ihm_eval": "2.5"}


def pretrained(expdir: Path, run: paper.Run, values: dict[str, list[float]]) -> Path:
    """A pre-training's folder with ESPnet's events, of one value an epoch."""
    name = row_name(run).removesuffix(f"_{run.finetune}_rnnt")
    folder = expdir / f"ssl_{name}_raw"
    with SummaryWriter(str(folder / "tensorboard/valid")) as writer:
        for key, numbers in values.items():
            for epoch, number in enumerate(numbers, 1):
                writer.add_scalar(key, number, 5000 * epoch)
    (folder / ".steps").mkdir()
    (folder / ".steps/train.done").touch()
    return folder


STATS = {
    "loss": [9.0, 5.25],
    "w2v_bert_codes_used": [60.0, 94.4],
    "w2v_bert_acc_m": [0.1, 0.375],
}


def test_figure_6_is_of_pre_training(tmp_path):
    asked = paper.EXPERIMENTS["figure 6"]
    found = paper.Found(tmp_path / "none", tmp_path)
    run = paper.atm(finetune="librispeech_100")
    folder = pretrained(tmp_path, run, STATS)
    pretrained(tmp_path, paper.atm(finetune=run.finetune, strategy="low"), STATS)
    table = paper.table(asked, found)
    assert "| ATM | 5.25 |  | 94.4 | 94-95 | 0.375 |  |" in table
    assert "| ATM+S |  |  |  | 94-95 |  |  |" in table
    assert run not in paper.missing(asked, found)
    assert len(paper.missing(asked, found)) == 2
    (folder / ".steps/train.done").unlink()  # not at its end
    assert len(paper.missing(asked, found)) == 3


def test_statistics_that_are_not_there_are_named(tmp_path):
    run = paper.atm(finetune="librispeech_100")
    folder = pretrained(tmp_path, run, {"loss": [1.0], "w2v_bert_acc_m": [0.5]})
    with pytest.raises(ValueError, match=f"{folder}.* has no w2v_bert_codes_used"):
        paper.Found(tmp_path / "none", tmp_path).statistics(run)


def test_sections_live_beside_the_rows(tmp_path):
    file = tmp_path / "RESULTS.md"
    write_results(file, [("a", "b", 1.0)])
    results.put_section(file, "Table I of the paper", "| x |\n|---|\n| 1 |")
    results.put_section(file, "Table I of the paper", "| x |\n|---|\n| 2 |")
    results.put_section(file, "Figure 4 of the paper", "| y |\n|---|\n| 3 |")
    text = file.read_text()
    assert text.count("## Table I of the paper") == 1 and "| 2 |" in text
    assert text.index("## Figure 4") < text.index("## Table I")
    assert [row["run"] for row in results.read_rows(file)] == ["a"]


def test_unknown_tables_are_refused(capsys):
    with pytest.raises(SystemExit):
        paper.main(["--table", "XII"])
    assert "invalid choice: 'XII'" in capsys.readouterr().err


def test_unknown_rows_are_refused(capsys):
    with pytest.raises(SystemExit):
        paper.main(["--table", "II", "--row", "ATM", "--dry_run"])
    error = capsys.readouterr().err
    assert "--row ATM: table II has baseline, LS-scorer, AMI-scorer" in error
