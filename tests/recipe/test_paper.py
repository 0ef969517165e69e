"""Tables and figures of the paper: local/paper.py."""

import re
import shlex
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import make_ssl_config
import numpy as np
import paper
import pytest
import results
from conftest import RECIPE, copy_recipe
from torch.utils.tensorboard import SummaryWriter

# By hand, from the prose of the paper: of each table or figure its columns with their sets
# and what the models are fine-tuned on; then its rows: label, what differs from the
# baseline (w2v-BERT-L, 49 % of the frames masked at random), the row it is compared with,
# and the paper's number in each column.
AMI, LS = "ami_ihm+ami_sdm1", "librispeech_100"
STEW = "librispeech_960+ami_ihm+ami_sdm1+tedlium2+commonvoice"
IHM, SDM = ("IHM-eval", "ami_ihm_eval", AMI), ("SDM-eval", "ami_sdm1_eval", AMI)
OTHER = ("test-other", "librispeech_test_other", LS)
TEST = ("test", "librispeech_test_clean", LS)
SCALED = "loss_scale=utterance"
ATM = "masker=atm mask_ratio=0.4"
W2V, HUBERT, XL = "objective=wav2vec2", "objective=hubert", "model_size=xl"
BOTH = [("IHM-eval", "ami_ihm_eval", STEW), ("SDM-eval", "ami_sdm1_eval", STEW)]
BETTER = "better than AMI-scorer"
EXPECTED = {
    "figure 4": (
        [IHM, OTHER],
        [
            ("random 30 %", "mask_ratio=0.3", "random 49 %", "", ""),
            ("random 33 %", "mask_ratio=0.33", "random 49 %", "", ""),
            ("random 40 %", "mask_ratio=0.4", "random 49 %", "", ""),
            ("random 49 %", "", "random 49 %", "13.38", "8.86"),
            ("random 50 %", "mask_ratio=0.5", "random 49 %", "", ""),
            ("ATM 30 %", "masker=atm mask_ratio=0.3", "random 49 %", "", ""),
            ("ATM 33 %", "masker=atm mask_ratio=0.33", "random 49 %", "12.65", ""),
            ("ATM 40 %", "masker=atm mask_ratio=0.4", "random 49 %", "12.52", "8.79"),
            ("ATM 49 %", "masker=atm mask_ratio=0.49", "random 49 %", "", ""),
            ("ATM 50 %", "masker=atm mask_ratio=0.5", "random 49 %", "", ""),
        ],
    ),
    "table I": (
        [IHM, SDM],
        [
            ("random", "", "random", "13.38", ""),
            ("high", ATM, "random", "12.52", "27.34"),
            ("low", f"{ATM} strategy=low", "random", *["worse than random"] * 2),
            ("mixed", f"{ATM} strategy=mixed", "random", *["comparable"] * 2),
        ],
    ),
    "table II": (
        [IHM, SDM, TEST, OTHER],
        [
            ("baseline", "", "baseline", "13.38", "", "", ""),
            ("LS-scorer", ATM, "baseline", "12.52", "27.34", BETTER, BETTER),
            ("AMI-scorer", f"{ATM} scorer=ami", "baseline", "", "27.00", "", ""),
        ],
    ),
    "figure 5": (
        [IHM, SDM],
        [
            ("w2v2-cfr-L baseline", W2V, "w2v2-cfr-L baseline", "", ""),
            ("w2v2-cfr-L ATM", f"{W2V} {ATM}", "w2v2-cfr-L baseline", "-9 %", "-6.2 %"),
            ("HuBERT-cfr-L baseline", HUBERT, "HuBERT-cfr-L baseline", "", ""),
            ("HuBERT-cfr-L ATM", f"{HUBERT} {ATM}", "HuBERT-cfr-L baseline")
            + ("-4 %", "-7.9 %"),
            ("w2v-BERT-L baseline", "", "w2v-BERT-L baseline", "13.38", ""),
            ("w2v-BERT-L ATM", ATM, "w2v-BERT-L baseline")
            + ("12.52 (6.4 % below 13.38; the text says 5 %)", "27.34"),
        ],
    ),
    "table III": (
        [
            ("dev", "librispeech_dev_clean", LS),
            ("dev-other", "librispeech_dev_other", LS),
            *(TEST, OTHER),
        ],
        [
            ("w2v2-cfr-L baseline", W2V, "w2v2-cfr-L baseline", *[""] * 4),
            ("w2v2-cfr-L ATM", f"{W2V} {ATM}", "w2v2-cfr-L baseline", *[""] * 4),
            ("w2v2-cfr-XL baseline", f"{W2V} {XL}", "w2v2-cfr-XL baseline", *[""] * 4),
            ("w2v2-cfr-XL ATM", f"{W2V} {XL} {ATM}", "w2v2-cfr-XL baseline", *[""] * 4),
            ("w2v-BERT-L baseline", "", "w2v-BERT-L baseline", "", "", "", "8.86"),
            ("w2v-BERT-L ATM", ATM, "w2v-BERT-L baseline", "", "", "", "8.79"),
            ("w2v-BERT-XL baseline", XL, "w2v-BERT-XL baseline", *[""] * 4),
            ("w2v-BERT-XL ATM", f"{XL} {ATM}", "w2v-BERT-XL baseline", *[""] * 4),
        ],
    ),
    "table IV": (
        [IHM, SDM],
        [
            ("baseline", "", "baseline", "13.38", ""),
            ("baseline+S", SCALED, "baseline", "", ""),
            ("ATM", ATM, "baseline", "12.52", "27.34"),
            ("ATM+S", f"{ATM} {SCALED}", "baseline", "worse than ATM", "27.19"),
        ],
    ),
    "figure 6": (
        [("contrastive loss",), ("codes used %",), ("masked accuracy",)],
        [
            ("baseline", "", "baseline", "", "94-95", ""),
            ("ATM", ATM, "baseline", "", "94-95", ""),
            ("ATM+S", f"{ATM} {SCALED}", "baseline", "", "94-95", ""),
        ],
    ),
    "table V": (
        [IHM, SDM],
        [
            ("ATM", ATM, "ATM", "12.52", "27.34"),
            ("ATM+S", f"{ATM} {SCALED}", "ATM", "worse than ATM", "27.19"),
            ("frames, 100 % of utterances", f"{ATM} loss_scale=frame frame_prob=1")
            + ("ATM", "hurts", "hurts"),
            ("frames, 10 % of utterances", f"{ATM} loss_scale=frame frame_prob=0.1")
            + ("ATM", "helps", "helps"),
        ],
    ),
    "table VIII": (
        BOTH,
        [
            ("w2v2-cfr-XL baseline", f"{W2V} {XL}", "w2v2-cfr-XL baseline", "", ""),
            ("w2v2-cfr-XL ATM", f"{W2V} {XL} {ATM}", "w2v2-cfr-XL baseline", "", ""),
            ("w2v2-cfr-XL ATM+S", f"{W2V} {XL} {ATM} {SCALED}")
            + ("w2v2-cfr-XL baseline", "", ""),
            ("w2v-BERT-XL baseline", XL, "w2v-BERT-XL baseline", "", ""),
            ("w2v-BERT-XL ATM", f"{XL} {ATM}", "w2v-BERT-XL baseline")
            + ("", "21.0 (after SpeechStew)"),
            ("w2v-BERT-XL ATM+S", f"{XL} {ATM} {SCALED}", "w2v-BERT-XL baseline")
            + ("", "20.7 (after SpeechStew, whose own is 21.7)"),
        ],
    ),
    "table IX": (
        [
            *BOTH,
            ("CV", "commonvoice_test", STEW),
            ("TED-LIUM", "tedlium2_test", STEW),
            ("CHiME-6", "chime6_eval", STEW),
        ],
        [
            ("w2v2-cfr-XL baseline", f"{W2V} {XL}", "w2v2-cfr-XL baseline", *[""] * 5),
            ("w2v2-cfr-XL ATM", f"{W2V} {XL} {ATM}", "w2v2-cfr-XL baseline", *[""] * 5),
            ("w2v2-cfr-XL ATM+S", f"{W2V} {XL} {ATM} {SCALED}", "w2v2-cfr-XL baseline")
            + ("",) * 5,
            ("w2v-BERT-XL baseline", XL, "w2v-BERT-XL baseline")
            + ("", "", "-7.4 %", "", "-2.9 %"),
            ("w2v-BERT-XL ATM", f"{XL} {ATM}", "w2v-BERT-XL baseline")
            + ("", "", "-11.6 %", "", ""),
            ("w2v-BERT-XL ATM+S", f"{XL} {ATM} {SCALED}", "w2v-BERT-XL baseline")
            + ("", "-4.6 % (20.7, as in table VIII)", "", "", "-5.76 %"),
        ],
    ),
}
BASELINE = {"objective": "w2v_bert", "model_size": "l", "masker": "random"}
BASELINE |= {"mask_ratio": "0.49", "strategy": "", "loss_scale": "none"}
BASELINE |= {"frame_prob": "", "scorer": ""}


def settings(words: str) -> dict:
    """Of a run, of what differs from the baseline."""
    return BASELINE | dict(x.split("=") for x in words.split())


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
    name = f"{make_ssl_config.make_config(given)[0]}_librispeech_dev_other{scorer}"
    return f"{name}_{run.finetune}{suffix}"


def write_results(file: Path, rows: list[tuple[str, str, float]]) -> None:
    """Rows of a run, with ``#SEED`` behind its name or not, a test set and a WER."""
    cells = []
    for run, dset, wer in rows:
        name, seed = re.fullmatch(r"(.*?)(?:#(\d+))?", run).groups("0")
        cells.append(["librilight", name, seed, dset, "3", f"{wer}", "9.9", "sclite"])
    found = [dict(zip(results.HEADER, x)) for x in cells]
    results.write_parts(file, [results.TITLE + results.table(found)])


@pytest.fixture
def plan(capsys, tmp_path):
    """What --dry_run prints, where nothing has been run."""

    def run(*options: str) -> str:
        nothing = ["--results", str(tmp_path / "none")]
        paper.main(["--dry_run", *nothing, *options])
        return capsys.readouterr().out

    return run


def all_runs() -> set[paper.Run]:
    """Of every table and figure, with both heads and in two sizes."""
    return {
        run
        for asked in paper.EXPERIMENTS.values()
        for head in ("rnnt", "ctc")
        for settings in ({}, {"model_size": "mini"})
        for run in asked.replace_runs(head=head, **settings).runs(2)
    }


def test_every_table_is_the_papers():
    """The whole of each: columns, rows, runs, numbers, what is compared with what."""
    assert list(paper.EXPERIMENTS) == list(EXPECTED)
    for name, (columns, rows) in EXPECTED.items():
        asked = paper.EXPERIMENTS[name]
        assert asked.columns == [x[0] for x in columns], name
        found = []
        for row in asked.rows:
            run = {x: getattr(row.run, x) for x in BASELINE}
            found.append((row.label, run, row.against, *row.paper.values()))
            assert list(row.paper) == asked.columns
            for column, *where in columns:
                tuned = asked.run_of(row, column).finetune
                if where:
                    assert [paper.SETS[column].name, tuned] == where, (name, column)
        assert found == [(x, settings(y), *more) for x, y, *more in rows], name


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("head", ["rnnt", "ctc"])
def test_plan(name, head, plan):
    """Each row and column is told; each run is in it once, with all of its sets."""
    kind, number = name.split()
    log = plan(f"--{kind}", number, "--head", head, "--", "--nj", "7")
    columns, rows = EXPECTED[name]
    told = "".join(f" {x[0]} | paper |" for x in columns)
    assert f"| |{told}\n" in log and "GPU hours" in log
    for label, _, _, *cells in rows:
        assert f"| {label} | " + " | ".join(f" | {x}" for x in cells) + " |" in log
    tuned = list(dict.fromkeys(x[2] for x in columns if x[2:])) or [LS]
    sets = {
        x: " ".join(y[1] for y in columns if y[2:] == (x,)) or "librispeech_dev_clean"
        for x in tuned
    }
    lines = [x for x in log.splitlines() if x.startswith("./run.sh")]
    assert f"{len(lines)} missing" in log and f"{len(rows)} pre-trainings" in log
    config = "conf/tuning/train_asr_conformer_l"
    for line, (words, finetune) in zip(
        lines, [(x[1], y) for x in rows for y in tuned], strict=True
    ):
        run = settings(words)
        words = shlex.split(line)[1:]
        given = {x[2:]: y for x, y in zip(words[::2], words[1::2], strict=True)}
        assert given.pop("nj") == "7" and given.pop("corpus") == "librilight"
        assert given.pop("expdir") == "exp/librilight"
        assert given.pop("dumpdir") == "dump/librilight"
        assert given.pop("finetune_sets") == finetune
        assert given.pop("test_sets") == sets[finetune]
        assert given.pop("valid_set") == "librispeech_dev_other"
        assert given.pop("validation_masker") == "strategy=random mask_ratio=0.49 span=10"
        assert given.pop("scorer_train_config") == f"{config}.yaml"
        suffix = "_rnnt" if head == "rnnt" else ""
        assert given.pop("asr_config") == f"{config}{suffix}.yaml"
        assert given.pop("stop_stage", "") == ("10" if name == "figure 6" else "")
        taught = "ami_ihm+ami_sdm1" if run["scorer"] else "librispeech_100"
        assert given.pop("asr_train_set") == f"{taught}_train"
        assert given.pop("asr_valid_set") == f"{taught}_dev"
        assert given.pop("scorer_name", "") == run.pop("scorer")
        assert given == {k: v for k, v in run.items() if v and v != "none"}
        ssl_config = "train_{objective}_conformer_{model_size}_{masker}.yaml"
        assert (RECIPE / "conf/tuning" / ssl_config.format(**run)).exists()
    assert (RECIPE / f"{config}_rnnt.yaml").exists()


def test_what_stands_in_for_speechstew_is_said(plan):
    for number in ("VIII", "IX"):
        log = plan("--table", number)
        assert f"on an open stew, {STEW}, where the paper has SpeechStew" in log
    assert "CHiME-6 is enhanced by guided source separation" in log


@pytest.fixture
def db(tmp_path, monkeypatch):
    """Writes db.sh, and goes where it is."""
    monkeypatch.chdir(tmp_path)

    def write(*names: str) -> None:
        (tmp_path / "db.sh").write_text("".join(f"{x}='/a b'\n" for x in names) + "WSJ=\n")

    return write


def test_what_is_not_there_is_left_out(plan, db):
    db("LIBRISPEECH", "AMI", "TEDLIUM2")
    log = plan("--table", "IX")
    out = "CV (COMMONVOICE), CHiME-6 (CHIME6), commonvoice of the stew (COMMONVOICE)"
    assert f"Left out, because db.sh does not say where it is: {out}." in log
    assert "| | IHM-eval | paper | SDM-eval | paper | TED-LIUM | paper |\n" in log
    given = "--finetune_sets librispeech_960+ami_ihm+ami_sdm1+tedlium2 "
    assert log.count(given) == 6 and "commonvoice_test" not in log
    log = plan("--table", "III")
    assert "Left out" not in log and "8 missing" in log
    db("LIBRISPEECH")
    with pytest.raises(SystemExit, match="table IV: db.sh names no corpus .* IHM-eval"):
        plan("--table", "IV")
    assert "6 missing" in plan("--figure", "6", "--seeds", "2")


def test_one_row(plan):
    log = plan("--table", "II", "--row", "AMI-scorer")
    assert "2 runs, 2 missing" in log and log.count("./run.sh") == 2
    assert log.count("--scorer_name ami") == 2 and "1 pre-trainings" in log


def test_in_another_size_each_run_is_there_once(plan):
    log = plan("--table", "III", "--model_size", "mini")
    assert "4 runs, 4 missing" in log and "-XL" not in log


def test_seeds(plan, capsys):
    """Those of the first seed come first; they are pre-trainings of their own."""
    log = plan("--table", "IV", "--seeds", "3")
    lines = [x for x in log.splitlines() if x.startswith("./run.sh")]
    seeds = [re.findall(r"--seed (\d+)", x) for x in lines]
    assert seeds == [[]] * 4 + [["1"]] * 4 + [["2"]] * 4
    assert "12 pre-trainings" in log and "baseline+S                   3 missing" in log
    for wrong, message in (
        (("--seeds", "0"), "0 is no whole number from 1 to 999"),
        (("--seeds", "2", "--", "--seed", "4"), "--seed behind --: --seeds says it"),
        (("--", "--expdir", "x"), "--expdir behind --: --expdir, before the --, says"),
    ):
        with pytest.raises(SystemExit):
            plan("--table", "IV", *wrong)
        assert message in capsys.readouterr().err


def test_noise_of_the_papers_differences(plan, db, tmp_path):
    """95 % half-widths by hand: 0.22 on IHM, 0.29 on SDM, 0.24 on test-other."""
    log = plan("--figure", "4")
    assert "ATM 40 % against random 49 %: -0.86: noise ±0.22: outside" in log
    assert "ATM 40 % against ATM 33 %: -0.13: noise ±0.22: inside" in log
    assert "test-other, ATM 40 % against random 49 %: -0.07: noise ±0.24: inside" in log
    log = plan("--table", "IV")
    assert "SDM-eval, ATM+S against ATM: -0.15: noise ±0.29: inside" in log
    log = plan("--figure", "5")
    assert "HuBERT-cfr-L ATM -4 %: -0.54 at 13.38: noise ±0.22: outside" in log
    log = plan("--table", "IX")
    assert "ATM+S -4.6 % (20.7, as in table VIII): -1.00 at 21.70: noise ±0.27" in log
    assert "CV, w2v-BERT-XL baseline -7.4 %, w2v-BERT-XL ATM -11.6 %: not told" in log
    assert "noise" not in plan("--figure", "6")
    # Of the words that there are.
    text = tmp_path / "data/ami_ihm_eval/text"
    text.parent.mkdir(parents=True)
    text.write_text("".join(f"u{x} a b c d\n" for x in range(1000)))
    assert paper.count_words("IHM-eval") == 4000
    assert "noise ±1.04: inside" in plan("--figure", "4")


def test_each_run_finds_its_own_row_and_no_other(tmp_path):
    runs = list(all_runs())
    file = tmp_path / "RESULTS.md"
    found = paper.Found(file, tmp_path)
    names = [f"{row_name(x)}#{x.seed}" for x in runs]
    write_results(file, [(x, "test", n) for n, x in enumerate(names)])
    assert len(set(names)) == len(runs) and max(map(len, names)) < 230
    for n, run in list(enumerate(runs))[::20]:
        assert found.wer(run) == {"test": str(n)}


def test_names_with_further_options(tmp_path, monkeypatch):
    """The recipe says what they are called."""
    monkeypatch.chdir(copy_recipe(tmp_path))
    more = ("--ssl_max_epoch", "1", "--nbpe", "40", "--seed", "3", "--nj", "7")
    more += ("--inference_asr_model", "latest.pth")
    name = "_librispeech_dev_other_ami_bpe40_scorer_ep1"
    assert paper.suffixes("mini", "ami", "rnnt", more) == paper.Suffixes(
        pretrained=name,
        before=name,
        after="_rnnt",
        decode="_latest",
        seed_part="_seed3",
        seed="3",
    )
    with pytest.raises(ValueError, match="--seed x: is no whole number"):
        paper.suffixes("mini", "ami", "rnnt", ("--seed", "x"))


def test_what_is_done_is_not_run_again(plan, tmp_path):
    file = tmp_path / "RESULTS.md"
    atm = row_name(paper.atm())
    write_results(file, [(atm, "ami_ihm_eval", 12.6), (atm, "ami_sdm1_eval", 27.5)])
    log = plan("--table", "I", "--results", str(file))
    assert "4 runs, 3 missing" in log and "--strategy low" in log
    found = paper.Found(file, tmp_path)
    table = paper.table(paper.EXPERIMENTS["table I"], found)
    assert "| high | 12.60 | 12.52 | 27.50 | 27.34 |" in table
    assert "| low |  | worse than random |  | worse than random |" in table
    # Of two fine-tunings of one pre-training, which is paid once.
    log = plan("--figure", "4", "--results", str(file))
    assert "20 runs, 19 missing" in log and "10 pre-trainings" in log
    pretrained(tmp_path, paper.atm(), STATS)
    there = ["--results", str(file), "--expdir", str(tmp_path)]
    log = plan("--figure", "4", *there)
    assert "20 runs, 19 missing" in log and "9 pre-trainings" in log
    assert re.search(r"ATM 40 % +1 missing +about +0 GPU hours", log)


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


class Decoded:
    """Two seeds of two models, of 40 utterances by 20 speakers in each of two sets."""

    def __init__(self, root: Path):
        self.found = paper.Found(root / "RESULTS.md", root / "exp", root / "dump")
        self.asked = paper.EXPERIMENTS["table IV"]
        self.utts = [f"u{n:02d}" for n in range(40)]
        for dset in ("ami_ihm_eval", "ami_sdm1_eval"):
            data = root / "dump/raw" / dset
            data.mkdir(parents=True)
            (data / "text").write_text("".join(f"{x} a b c d\n" for x in self.utts))
            speakers = (f"{x} s{n // 2:02d}\n" for n, x in enumerate(self.utts))
            (data / "utt2spk").write_text("".join(speakers))

    def run(self, label: str, seed: int) -> paper.Run:
        return self.asked.run_of(self.asked.row(label), "IHM-eval", seed)

    def decode(self, label: str, seed: int, wrong: int) -> tuple[str, str, float]:
        """With a wrong word in so many utterances of IHM; the row for RESULTS.md."""
        run = self.run(label, seed)
        name = row_name(run)
        folder = self.found.expdir / f"asr_{name}{f'_seed{seed}' if seed else ''}"
        decoded = folder / "decode/ami_ihm_eval"
        decoded.mkdir(parents=True)
        said = [f"a b c {'x' if n < wrong else 'd'}" for n in range(len(self.utts))]
        lines = (f"{x} {words}\n" for x, words in zip(self.utts, said))
        (decoded / "text").write_text("".join(lines))
        return f"{name}#{seed}", "ami_ihm_eval", round(100 * wrong / 160, 1)


def test_means_over_seeds_and_intervals(tmp_path):
    decoded = Decoded(tmp_path)
    rows = [decoded.decode(*x) for x in (("baseline", 0, 21), ("baseline", 1, 25))]
    rows += [decoded.decode(*x) for x in (("ATM", 0, 10), ("ATM", 1, 12))]
    rows.append(decoded.decode("ATM+S", 1, 3))
    write_results(decoded.found.results, rows)
    table = paper.table(decoded.asked, decoded.found, 2)
    mean = np.mean([21, 25]) / 1.6, np.std([21, 25], ddof=1) / 1.6
    assert f"| baseline | {mean[0]:.2f} ± {mean[1]:.2f} | 13.38 |  |  |" in table
    assert "| ATM+S | 1.88 (1 of 2 seeds) | worse than ATM |  | 27.19 |" in table
    found = paper.differences(decoded.asked, decoded.found, 2)
    lines = [x.strip("| ").split(" | ") for x in found.splitlines() if "against" in x]
    assert [x[0] for x in lines] == [
        f"{x} against baseline, IHM-eval" for x in ("ATM", "ATM+S")
    ]
    (_, change, interval, relative, drawn, papers), (_, scaled, *_) = lines
    low, high = map(float, interval.strip("[]").split(", "))
    assert change == f"{100 * (22 - 46) / 320:+.2f}" and low < float(change) < high < 0
    assert relative == f"{100 * (22 - 46) / 46:+.1f} %"
    assert (drawn, papers) == ("20 speakers", "-0.86 (-6.4 %)")
    assert scaled == f"{100 * (3 - 25) / 160:+.2f}"  # of the seed that both have
    # All runs of the first seed are there; of the second, those that are not.
    assert paper.missing(decoded.asked, decoded.found, 1) == [
        decoded.run(x, 0) for x in ("baseline", "baseline+S", "ATM", "ATM+S")
    ]  # SDM is nowhere
    one = replace(
        decoded.asked,
        rows=[replace(x, paper={"IHM-eval": ""}) for x in decoded.asked.rows],
    )
    assert paper.missing(one, decoded.found, 2) == [
        decoded.run(*x) for x in (("baseline+S", 0), ("ATM+S", 0), ("baseline+S", 1))
    ]


def test_no_part_of_nothing(tmp_path):
    assert paper.over_seeds([(0.5, 0.0), (0.25, 0.0)]).relative is None
    (tmp_path / "text").write_text("a b c\n")
    for side in ("one", "other"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "text").write_text("a b c\n")
    found = paper.over_test_set(tmp_path, [(tmp_path / "one", tmp_path / "other")])
    assert (found.change, found.relative) == (0, None)


def test_the_papers_own_differences():
    def papers(name: str, label: str, column: str) -> str:
        asked = paper.EXPERIMENTS[name]
        row = asked.row(label)
        return paper.papers_difference(asked, row, asked.row(row.against), column)

    assert papers("figure 5", "HuBERT-cfr-L ATM", "SDM-eval") == "-7.9 %"
    assert papers("figure 5", "w2v-BERT-L ATM", "IHM-eval") == "-0.86 (-6.4 %)"
    assert papers("table III", "w2v-BERT-L ATM", "test-other") == "-0.07 (-0.8 %)"
    assert papers("table IX", "w2v-BERT-XL ATM", "CV") == "-4.5 %"  # 0.884 / 0.926
    assert papers("table IX", "w2v-BERT-XL ATM+S", "SDM-eval") == ""  # is over SpeechStew
    assert papers("table IV", "ATM+S", "SDM-eval") == ""


def pretrained(expdir: Path, run: paper.Run, values: dict[str, list[float]]) -> Path:
    """A pre-training's folder with ESPnet's events, of one value an epoch."""
    name = row_name(run).removesuffix(f"_{run.finetune}_rnnt")
    folder = expdir / f"ssl_{name}{f'_seed{run.seed}' if run.seed else ''}_raw"
    with SummaryWriter(str(folder / "tensorboard/valid")) as writer:
        for key, numbers in values.items():
            for epoch, number in enumerate(numbers, 1):
                writer.add_scalar(key, number, 5000 * epoch)
    (folder / ".steps").mkdir()
    (folder / ".steps/train.done").touch()
    return folder


STATS = {
    "loss": [9.0, 8.0],
    "w2v_bert_loss_contrastive": [9.0, 5.25],
    "w2v_bert_codes_used": [60.0, 94.4],
    "w2v_bert_acc_m": [0.1, 0.375],
}


def test_figure_6_is_of_pre_training(tmp_path):
    asked = paper.EXPERIMENTS["figure 6"]
    found = paper.Found(tmp_path / "none", tmp_path)
    run = paper.atm(finetune=LS)
    folder = pretrained(tmp_path, run, STATS)
    pretrained(tmp_path, paper.atm(finetune=LS, strategy="low"), STATS)
    table = paper.table(asked, found)
    assert "| ATM | 5.25 |  | 94.4 | 94-95 | 0.375 |  |" in table
    assert "| ATM+S |  |  |  | 94-95 |  |  |" in table
    assert run not in paper.missing(asked, found)
    assert len(paper.missing(asked, found)) == 2
    (folder / ".steps/train.done").unlink()  # not at its end
    assert len(paper.missing(asked, found)) == 3


def test_intervals_over_seeds_of_figure_6(tmp_path):
    asked = paper.EXPERIMENTS["figure 6"]
    found = paper.Found(tmp_path / "none", tmp_path)
    losses = {("baseline", 0): 5.0, ("baseline", 1): 6.0, ("ATM", 0): 4.5, ("ATM", 1): 5.7}
    for (label, seed), loss in losses.items():
        run = asked.run_of(asked.row(label), "contrastive loss", seed)
        pretrained(tmp_path, run, STATS | {"w2v_bert_loss_contrastive": [loss]})
    table = paper.table(asked, found, 2)
    assert "| baseline | 5.5 ± 0.707 |  | 94.4 ± 0 | 94-95 |" in table
    text = paper.differences(asked, found, 2)
    (line,) = (x for x in text.splitlines() if "contrastive loss" in x)
    # Of -0.5 and -0.3: -0.4, and 12.706 (Student's t, one degree of freedom) times 0.1.
    told = "| ATM against baseline, contrastive loss | -0.4 | [-1.67, +0.871] | -7.3 % |"
    assert line == f"{told} 2 seeds |  |"
    assert "| -0.5 |  | -10.0 % | 1 seed |" in paper.differences(asked, found, 1)


def test_statistics_that_are_not_there_are_named(tmp_path):
    run = paper.atm(finetune=LS)
    folder = pretrained(
        tmp_path, run, {"w2v_bert_loss_contrastive": [1.0], "w2v_bert_acc_m": [0.5]}
    )
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
