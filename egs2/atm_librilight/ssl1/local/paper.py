#!/usr/bin/env python3
"""Reproduce a table or figure of the Ask2Mask paper.

Prints the runs that it needs, what they cost, and which of the paper's differences chance
alone could make; runs what is missing; and puts the numbers beside the paper's (Baskar et
al., IEEE J-STSP 16(6):1357-1366, 2022), with an interval for each difference.

    local/paper.sh --table IV --dry_run
    local/paper.sh --table IV --seeds 3
    local/paper.sh --figure 4 -- --ngpu 8 --num_nodes 2
    local/paper.sh --table II --row LS-scorer

What follows -- goes to every ./run.sh. Tables VI and VII of the paper are not here: this
recipe's authors do not know what they compare.
"""

import argparse
import itertools
import math
import re
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from results import (
    DRAWS,
    Counts,
    count,
    count_alike,
    paired_interval,
    put_section,
    read_rows,
    read_text,
    read_units,
)
from scipy.stats import t as student
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

AMI = "ami_ihm+ami_sdm1"
LS = "librispeech_100"
# In place of SpeechStew, which has Switchboard/Fisher, WSJ and Broadcast News too: its
# parts, and what db.sh calls their corpora.
STEW = {
    "librispeech_960": "LIBRISPEECH",
    "ami_ihm": "AMI",
    "ami_sdm1": "AMI",
    "tedlium2": "TEDLIUM2",
    "commonvoice": "COMMONVOICE",
}
OPEN_STEW = "+".join(STEW)


@dataclass(frozen=True)
class TestSet:
    """An evaluation set.

    Args:
        name: of the folder in data/.
        corpus: what db.sh calls it.
        finetune: what models are fine-tuned on that it tests.
        words: of its references, as ESPnet's recipe of the corpus reports them; None
            where releases differ.
    """

    name: str
    corpus: str
    finetune: str
    words: int | None = None


# By their names in the paper.
SETS = {
    "IHM-eval": TestSet("ami_ihm_eval", "AMI", AMI, 89666),
    "SDM-eval": TestSet("ami_sdm1_eval", "AMI", AMI, 89666),
    "dev": TestSet("librispeech_dev_clean", "LIBRISPEECH", LS, 54402),
    "dev-other": TestSet("librispeech_dev_other", "LIBRISPEECH", LS, 50948),
    "test": TestSet("librispeech_test_clean", "LIBRISPEECH", LS, 52576),
    "test-other": TestSet("librispeech_test_other", "LIBRISPEECH", LS, 52343),
    "CV": TestSet("commonvoice_test", "COMMONVOICE", OPEN_STEW),
    "TED-LIUM": TestSet("tedlium2_test", "TEDLIUM2", OPEN_STEW, 27500),
    "CHiME-6": TestSet("chime6_eval", "CHIME6", OPEN_STEW),
}
# All pre-trainings are validated on the set of figure 6, with the same masks and without
# weights, so that their curves compare. It changes no weight of any model.
VALID_SET = "librispeech_dev_other"
VALIDATION_MASKER = "strategy=random mask_ratio=0.49 span=10"
# Figure 6: what ESPnet reports of the validation set.
STATISTICS = {
    "contrastive loss": "w2v_bert_loss_contrastive",
    "codes used %": "w2v_bert_codes_used",
    "masked accuracy": "w2v_bert_acc_m",
}
# Objectives by the paper's names of the models.
MODELS = {"w2v2-cfr": "wav2vec2", "HuBERT-cfr": "hubert", "w2v-BERT": "w2v_bert"}
RANDOM_RATIO, ATM_RATIO = "0.49", "0.4"

# Parameters in millions, utterances of 32 s a batch, and updates, of conf/tuning. Segments
# of 57 s in the mean fill the batches before they are cropped: 140, times accum_grad.
SIZES = {"l": (98, 560, 400_000), "xl": (612, 2240, 400_000), "mini": (1.2, 1, 540)}
OTHERS = {("w2v_bert", "l"): (108, 560, 900_000)}
FRAMES = 32 * 25  # of an utterance
# The ASR config by the size of the pre-trained model, as in run.sh. Front end and encoder
# of fine-tuning are the pre-trained model's (local/make_asr_config.py), so that XL needs
# none of its own; the paper's scorer has about 100 M parameters for both.
ASR_SIZES = {"l": "l", "xl": "l", "mini": "mini"}
# A multiply and an add for each parameter and frame, and twice that backward.
FLOP_PER_PARAMETER = 6
# What a GPU sustains: about a third of an A100's peak in bfloat16.
FLOP_PER_SECOND = 100e12
# Options of ./run.sh that are in no run's name.
NAMELESS = {"nj", "ngpu", "num_nodes", "python", "test_sets"}
# What the noise of a difference is estimated by: words err independently of each other, and
# two models have so much of the variance in common.
CORRELATION = 0.5
# A checkpoint in float32 with Adam's two moments, GB for a million parameters.
CHECKPOINT_GB = 0.012


@dataclass(frozen=True)
class Run:
    """A pre-training and its fine-tuning; what differs from the paper's baseline."""

    masker: str = "random"
    mask_ratio: str = RANDOM_RATIO
    strategy: str = ""
    loss_scale: str = "none"
    frame_prob: str = ""
    objective: str = "w2v_bert"
    model_size: str = "l"
    scorer: str = ""
    finetune: str = AMI
    head: str = "rnnt"
    seed: int = 0

    def options(self) -> list[str]:
        """Of ./run.sh."""
        found = ["--corpus", "librilight", "--objective", self.objective]
        found += ["--model_size", self.model_size, "--masker", self.masker]
        found += ["--mask_ratio", self.mask_ratio, "--finetune_sets", self.finetune]
        config = f"conf/tuning/train_asr_conformer_{ASR_SIZES[self.model_size]}"
        found += ["--scorer_train_config", f"{config}.yaml"]
        found += ["--asr_config", config + self.head_suffix() + ".yaml"]
        for name in ("strategy", "loss_scale", "frame_prob"):
            value = getattr(self, name)
            if value and value != "none":
                found += [f"--{name}", value]
        found += ["--valid_set", VALID_SET, "--validation_masker", VALIDATION_MASKER]
        taught = LS
        if self.scorer == "ami":
            found += ["--scorer_name", "ami"]
            taught = AMI
        found += ["--asr_train_set", f"{taught}_train", "--asr_valid_set", f"{taught}_dev"]
        if self.seed:
            found += ["--seed", str(self.seed)]
        return found

    def head_suffix(self) -> str:
        """Of ASR configs and fine-tuned models."""
        return "" if self.head == "ctc" else f"_{self.head}"

    def pretraining(self) -> str:
        """A pattern for what the recipe calls the pre-trained model."""
        strategy = "" if self.masker == "random" else f"_{self.strategy or 'high'}"
        pattern = f"{self.objective}_conformer_{self.model_size}(?:_km[0-9]+)?"
        ratio = re.escape(f"{float(self.mask_ratio):g}")
        pattern += f"_{self.masker}{strategy}_{ratio}x10"
        if self.loss_scale != "none":
            pattern += f"_scale_{self.loss_scale}{re.escape(self.frame_prob)}"
        return pattern + r"_valid_random_0\.49x10"

    def gpu_hours(self) -> float:
        """An estimate for pre-training, which is nearly all."""
        size = self.objective, self.model_size
        millions, batch, updates = OTHERS.get(size, SIZES[self.model_size])
        frames = updates * batch * FRAMES
        return frames * millions * 1e6 * FLOP_PER_PARAMETER / FLOP_PER_SECOND / 3600


def atm(**settings) -> Run:
    """The paper's ATM."""
    return Run(**{"masker": "atm", "mask_ratio": ATM_RATIO, **settings})


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Args:
        label: its name.
        run: without what it is fine-tuned on, which a column says.
        paper: what the paper says, by column: a word error rate in percent (``12.52``), a
            relative gain (``-9 %``), and a remark behind either; or words; or nothing.
        against: the label of the row that it is compared with.
    """

    label: str
    run: Run
    paper: dict[str, str]
    against: str


def rate_of(cell: str) -> float | None:
    """The word error rate in percent, of what the paper says."""
    found = re.match(r"\d+\.\d+", cell)
    return float(found[0]) if found else None


def gain_of(cell: str) -> float | None:
    """The relative gain in percent, below 0, of what the paper says."""
    found = re.match(r"(-\d+(?:\.\d+)?) %", cell)
    return float(found[1]) if found else None


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Its columns are evaluation sets, word error rates in percent, or statistics of the
    validation set of pre-training, which then is all there is to run.

    Args:
        rows: its lines.
        note: what has to be known to read it.
        finetune: what all its models are fine-tuned on; else a column says.
        over: what the paper's relative gains are over, if not the baseline.
        rates: by column, the word error rate that these gains are taken of for an estimate
            of their noise, where the paper does not say.
    """

    rows: list[Row]
    note: str = ""
    finetune: str = ""
    over: str = ""
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0].paper)

    @property
    def only_pretraining(self) -> bool:
        return self.columns[0] in STATISTICS

    def row(self, label: str) -> Row | None:
        """The line of this name, if it has one."""
        return next((x for x in self.rows if x.label == label), None)

    def run_of(self, row: Row, column: str, seed: int = 0) -> Run:
        """The run that a number comes from."""
        finetune = self.finetune
        if not finetune:
            finetune = LS if self.only_pretraining else SETS[column].finetune
        return replace(row.run, finetune=finetune, seed=seed)

    def runs(self, seeds: int) -> dict[Run, list[str]]:
        """All runs, those of the first seed first, and the columns of each."""
        found: dict[Run, list[str]] = {}
        for seed, row, column in itertools.product(
            range(seeds), self.rows, self.columns
        ):
            columns = found.setdefault(self.run_of(row, column, seed), [])
            if column not in columns:
                columns.append(column)
        return found

    def replace_runs(self, **settings) -> "Experiment":
        """The same with other settings of all runs; each run once."""
        rows = {}
        for row in self.rows:
            run = replace(row.run, **settings)
            rows.setdefault(run, replace(row, run=run))
        return replace(self, rows=list(rows.values()))

    def within(self, named: set[str]) -> tuple["Experiment", list[str]]:
        """What the corpora that db.sh names allow.

        Returns:
            The rest of it, and what was left out, in words.

        Raises:
            ValueError: when nothing is left.
        """
        out = [x for x in self.columns if x in SETS and SETS[x].corpus not in named]
        said = [f"{x} ({SETS[x].corpus})" for x in out]
        finetune = self.finetune
        if finetune:
            kept = [x for x, corpus in STEW.items() if corpus in named]
            finetune = "+".join(kept)
            said += [f"{x} of the stew ({y})" for x, y in STEW.items() if x not in kept]
        if len(out) == len(self.columns) or (self.finetune and not finetune):
            raise ValueError(f"db.sh names no corpus for it; it needs {', '.join(said)}")
        rows = [
            replace(x, paper={k: v for k, v in x.paper.items() if k not in out})
            for x in self.rows
        ]
        return replace(self, rows=rows, finetune=finetune), said


def experiment(columns: str, *lines: tuple, against: str = "", **options) -> Experiment:
    """An experiment of (label, run, what the paper says in each column ...).

    Args:
        columns: their names.
        lines: cells that are missing at the end are empty.
        against: the label of the row that all are compared with; else the one that has
            ``baseline`` in place of a label's last word.
        options: of :class:`Experiment`.
    """
    names = columns.split(", ")
    rows = [
        Row(
            label,
            run,
            dict(zip(names, [*cells, *[""] * (len(names) - len(cells))], strict=True)),
            against or f"{label.rpartition(' ')[0]} baseline",
        )
        for label, run, *cells in lines
    ]
    return Experiment(rows, **options)


BASELINE, ATM = Run(), atm()
ATM_S = atm(loss_scale="utterance")


def xl_rows(cells: dict[str, tuple[str, ...]]) -> list[tuple]:
    """Of tables VIII and IX; the paper's numbers by label."""
    return [
        (label, replace(run, objective=objective, model_size="xl"), *cells.get(label, ()))
        for model, objective in MODELS.items()
        if objective != "hubert"
        for name, run in (("baseline", BASELINE), ("ATM", ATM), ("ATM+S", ATM_S))
        for label in (f"{model}-XL {name}",)
    ]


SPEECHSTEW = (
    f"Fine-tuned on an open stew, {OPEN_STEW}, where the paper has SpeechStew, which holds "
    "Switchboard/Fisher, WSJ and Broadcast News too. What is known of the paper's numbers "
    "does not say of which model they are: they stand beside w2v-BERT-XL."
)
EXPERIMENTS: dict[str, Experiment] = {
    "figure 4": experiment(
        "IHM-eval, test-other",
        *[
            (
                f"{name} {100 * float(ratio):.0f} %",
                Run(masker=masker, mask_ratio=ratio),
                *{
                    ("random", RANDOM_RATIO): ("13.38", "8.86"),
                    ("atm", "0.33"): ("12.65",),
                    ("atm", ATM_RATIO): ("12.52", "8.79"),
                }.get((masker, ratio), ()),
            )
            for name, masker in (("random", "random"), ("ATM", "atm"))
            for ratio in ("0.3", "0.33", ATM_RATIO, RANDOM_RATIO, "0.5")
        ],
        against="random 49 %",
        note="Two fine-tunings of each pre-training: on AMI, and on LibriSpeech's 100 h.",
    ),
    "table I": experiment(
        "IHM-eval, SDM-eval",
        ("random", BASELINE, "13.38"),
        ("high", ATM, "12.52", "27.34"),
        ("low", atm(strategy="low"), "worse than random", "worse than random"),
        ("mixed", atm(strategy="mixed"), "comparable", "comparable"),
        against="random",
    ),
    "table II": experiment(
        "IHM-eval, SDM-eval, test, test-other",
        ("baseline", BASELINE, "13.38"),
        ("LS-scorer", ATM, "12.52", "27.34", *["better than AMI-scorer"] * 2),
        ("AMI-scorer", atm(scorer="ami"), "", "27.00"),
        against="baseline",
    ),
    "figure 5": experiment(
        "IHM-eval, SDM-eval",
        ("w2v2-cfr-L baseline", Run(objective="wav2vec2")),
        ("w2v2-cfr-L ATM", atm(objective="wav2vec2"), "-9 %", "-6.2 %"),
        ("HuBERT-cfr-L baseline", Run(objective="hubert")),
        ("HuBERT-cfr-L ATM", atm(objective="hubert"), "-4 %", "-7.9 %"),
        ("w2v-BERT-L baseline", BASELINE, "13.38"),
        (
            "w2v-BERT-L ATM",
            ATM,
            "12.52 (6.4 % below 13.38; the text says 5 %)",
            "27.34",
        ),
        note="Percentages are the paper's relative gains over the baseline above.",
        rates={"IHM-eval": 13.38, "SDM-eval": 27.34},
    ),
    "table III": experiment(
        "dev, dev-other, test, test-other",
        *[
            (
                f"{model}-{size.upper()} {name}",
                replace(run, objective=MODELS[model], model_size=size),
                *([""] * 3 + [wer] if (model, size) == ("w2v-BERT", "l") else []),
            )
            for model in ("w2v2-cfr", "w2v-BERT")
            for size in ("l", "xl")
            for name, run, wer in (("baseline", BASELINE, "8.86"), ("ATM", ATM, "8.79"))
        ],
        note="Fine-tuned on LibriSpeech's 100 h.",
    ),
    "table IV": experiment(
        "IHM-eval, SDM-eval",
        ("baseline", BASELINE, "13.38"),
        ("baseline+S", Run(loss_scale="utterance")),
        ("ATM", ATM, "12.52", "27.34"),
        ("ATM+S", ATM_S, "worse than ATM", "27.19"),
        against="baseline",
    ),
    "figure 6": experiment(
        ", ".join(STATISTICS),
        ("baseline", BASELINE, "", "94-95"),
        ("ATM", ATM, "", "94-95"),
        ("ATM+S", ATM_S, "", "94-95"),
        against="baseline",
        note=f"Of validation on {VALID_SET} after the last epoch, with the same masks for "
        f"all ({VALIDATION_MASKER}) and no weights; the curves are in "
        "exp/librilight/ssl_*/tensorboard.",
    ),
    "table V": experiment(
        "IHM-eval, SDM-eval",
        ("ATM", ATM, "12.52", "27.34"),
        ("ATM+S", ATM_S, "worse than ATM", "27.19"),
        ("frames, 100 % of utterances", atm(loss_scale="frame", frame_prob="1"))
        + ("hurts", "hurts"),
        ("frames, 10 % of utterances", atm(loss_scale="frame", frame_prob="0.1"))
        + ("helps", "helps"),
        against="ATM",
    ),
    "table VIII": experiment(
        "IHM-eval, SDM-eval",
        *xl_rows(
            {
                "w2v-BERT-XL ATM": ("", "21.0 (after SpeechStew)"),
                "w2v-BERT-XL ATM+S": ("", "20.7 (after SpeechStew, whose own is 21.7)"),
            }
        ),
        note=SPEECHSTEW,
        finetune=OPEN_STEW,
    ),
    "table IX": experiment(
        "IHM-eval, SDM-eval, CV, TED-LIUM, CHiME-6",
        *xl_rows(
            {
                "w2v-BERT-XL baseline": ("", "", "-7.4 %", "", "-2.9 %"),
                "w2v-BERT-XL ATM": ("", "", "-11.6 %"),
                "w2v-BERT-XL ATM+S": (
                    *("", "-4.6 % (20.7, as in table VIII)", "", "", "-5.76 %"),
                ),
            }
        ),
        note=f"{SPEECHSTEW} Percentages are the paper's relative gains over SpeechStew. "
        "Its CHiME-6 is enhanced by guided source separation; the one here is the first "
        "channel of the first array.",
        finetune=OPEN_STEW,
        over="SpeechStew",
        rates={"SDM-eval": 21.7},
    ),
}


# ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Suffixes:
    """What names of runs have behind their paper's settings.

    Args:
        pretrained: of the folder of pre-training.
        before, after: of a fine-tuned model, before and after what it was tuned on.
        decode: of a row in RESULTS.md, behind that, and of the folder of hypotheses.
        seed_part: of both folders, at their end.
        seed: of the row.
    """

    pretrained: str
    before: str
    after: str
    decode: str = ""
    seed_part: str = ""
    seed: str = "0"


@cache
def suffixes(
    model_size: str, scorer: str, head: str, more: tuple[str, ...]
) -> Suffixes:
    """Those that ``more`` options of ./run.sh make, which is asked for them.

    Raises:
        ValueError: with what it says, when it refuses them.
    """
    run = atm(model_size=model_size, scorer=scorer, head=head)
    named = {x.lstrip("-").replace("-", "_") for x in more[::2]} - NAMELESS
    if not named:
        part = f"_{VALID_SET}" + (f"_{scorer}_scorer" if scorer else "")
        return Suffixes(part, part, run.head_suffix())
    asked = ["./run.sh", *run.options(), *more, "--stop_stage", "0"]
    done = subprocess.run(asked, capture_output=True, text=True)
    name = run.pretraining()
    pretrained = re.search(rf"Pre-training: \S*/ssl_{name}(\S*)_raw$", done.stdout, re.M)
    finetuned = re.search(
        rf"Fine-tuning on (\S+): \S*/asr_{name}(\S*) "
        rf"\(in RESULTS.md {name}(\S*), seed (\d+)\)$",
        done.stdout,
        re.M,
    )
    if done.returncode or not pretrained or not finetuned:
        raise ValueError(f"{shlex.join(asked)}: {done.stderr.strip()[-1000:]}")
    dataset, folder, row, seed = finetuned.groups()
    own = f"_seed{seed}"
    seed_part = own if pretrained[1].endswith(own) else ""
    model = folder.removesuffix(seed_part)
    before, _, after = model.rpartition(f"_{dataset}")
    return Suffixes(
        pretrained=pretrained[1].removesuffix(seed_part),
        before=before,
        after=after,
        decode=row.removeprefix(model),
        seed_part=seed_part,
        seed=seed,
    )


@dataclass(frozen=True)
class Difference:
    """How far a row is from the one that it is compared with.

    Args:
        change: of the means over seeds, in percentage points or in the statistic's own.
        low, high: its 95 % interval; None where there is none.
        relative: the change in percent of the other row; None where that is 0.
        by: what the interval is of.
    """

    change: float
    low: float | None
    high: float | None
    relative: float | None
    by: str


@cache
def last_values(folder: Path) -> dict[str, float]:
    """The statistics of the last epoch, by name, from TensorBoard's events.

    Raises:
        ValueError: when the events lack one.
    """
    events = EventAccumulator(str(folder)).Reload()
    missing = set(STATISTICS.values()) - set(events.Tags()["scalars"])
    if missing:
        raise ValueError(f"{folder} has no {min(missing)}")
    return {x: events.Scalars(x)[-1].value for x in STATISTICS.values()}


@dataclass(frozen=True)
class Found:
    """Where the numbers of the runs are, and what options they were made with."""

    results: Path
    expdir: Path
    dumpdir: Path = Path("dump/librilight")
    more: tuple[str, ...] = ()

    def suffixes(self, run: Run) -> Suffixes:
        """Of its names."""
        own = suffixes(run.model_size, run.scorer, run.head, self.more)
        if run.seed:
            own = replace(own, seed_part=f"_seed{run.seed}", seed=str(run.seed))
        return own

    def wer(self, run: Run) -> dict[str, str]:
        """WER by evaluation set, from RESULTS.md."""
        own = self.suffixes(run)
        behind = re.escape(f"{own.before}_{run.finetune}{own.after}{own.decode}")
        return {
            row["test set"]: row["WER %"]
            for row in read_rows(self.results)
            if row["corpus"] == "librilight"
            and row["seed"] == own.seed
            and re.fullmatch(run.pretraining() + behind, row["run"])
        }

    def hypotheses(self, run: Run, column: str) -> Path | None:
        """The folder of what was decoded, if it is there."""
        own = self.suffixes(run)
        behind = re.escape(f"{own.before}_{run.finetune}{own.after}{own.seed_part}")
        for folder in sorted(self.expdir.glob("asr_*")):
            decoded = folder / f"decode{own.decode}" / SETS[column].name
            if not re.fullmatch(f"asr_{run.pretraining()}{behind}", folder.name):
                continue
            if (decoded / "text").is_file() and (self.data(column) / "text").is_file():
                return decoded
        return None

    def data(self, column: str) -> Path:
        """The evaluation set with its references."""
        return self.dumpdir / "raw" / SETS[column].name

    def pretrained(self, run: Run) -> Path | None:
        """The folder of its pre-training, if that is at its end."""
        own = self.suffixes(run)
        behind = re.escape(own.pretrained + own.seed_part)
        pattern = f"ssl_{run.pretraining()}{behind}_raw"
        for folder in sorted(self.expdir.glob("ssl_*_raw")):
            done = (folder / ".steps/train.done").exists()
            if done and re.fullmatch(pattern, folder.name):
                return folder
        return None

    def statistics(self, run: Run) -> dict[str, float]:
        """The last epoch's by name, of the validation set; empty before training's end."""
        folder = self.pretrained(run)
        return last_values(folder / "tensorboard/valid") if folder else {}

    def has(self, run: Run, columns: list[str]) -> bool:
        """Whether all of these numbers are there."""
        if columns[0] in STATISTICS:
            return bool(self.statistics(run))
        there = self.wer(run)
        return all(SETS[x].name in there for x in columns)

    def value(self, run: Run, column: str) -> float | None:
        """A number of a table; from the hypotheses, with all its digits, if it can be."""
        if column in STATISTICS:
            return self.statistics(run).get(STATISTICS[column])
        rate = self.wer(run).get(SETS[column].name)
        if rate is None:
            return None
        folder = self.hypotheses(run, column)
        if folder is None:
            return float(rate)
        return count(self.data(column) / "text", folder)[0]["wer"].rate

    def difference(
        self, ones: list[Run], others: list[Run], column: str
    ) -> Difference | None:
        """How far the runs of a row are from another's, of the seeds that both have."""
        look = self.value if column in STATISTICS else self.hypotheses
        pairs = [(look(x, column), look(y, column)) for x, y in zip(ones, others)]
        pairs = [x for x in pairs if None not in x]
        if not pairs:
            return None
        if column in STATISTICS:
            return over_seeds(pairs)
        return over_test_set(self.data(column), pairs)


def over_seeds(pairs: list[tuple[float, float]]) -> Difference:
    """Of statistics of one seed each, with Student's t."""
    changes = [x - y for x, y in pairs]
    change, base = statistics.mean(changes), statistics.mean(y for _, y in pairs)
    low = high = None
    if len(changes) > 1:
        half = float(student.ppf(0.975, len(changes) - 1))
        half *= statistics.stdev(changes) / math.sqrt(len(changes))
        low, high = change - half, change + half
    by = f"{len(pairs)} seeds" if len(pairs) > 1 else "1 seed"
    return Difference(change, low, high, 100 * change / base if base else None, by)


def over_test_set(data: Path, pairs: list[tuple[Path, Path]]) -> Difference:
    """Of word error rates: the test set is drawn anew, all seeds' errors added up.

    Args:
        data: the test set.
        pairs: what was decoded, of one seed each.
    """
    sides = list(zip(*pairs))
    found = count_alike(data / "text", [x for side in sides for x in side])
    units = read_units(data)
    one, other = (
        units.together(Counts(*(sum(x) for x in zip(*(y["wer"] for y in side)))))
        for side in (found[: len(pairs)], found[len(pairs) :])
    )
    change, low, high = paired_interval(one, other)
    relative = 100 * change / other.rate if other.rate else None
    by = f"{units}, too few to tell" if units.too_few else str(units)
    return Difference(change, low, high, relative, by)


def missing(asked: Experiment, found: Found, seeds: int = 1) -> list[Run]:
    """The runs of which a number is not there, each once."""
    return [run for run, x in asked.runs(seeds).items() if not found.has(run, x)]


def command(run: Run, asked: Experiment, more: list[str]) -> list[str]:
    """./run.sh with the evaluation sets."""
    found = ["./run.sh", *run.options()]
    if asked.only_pretraining:  # a set that is there wherever the labelled data are
        found += ["--test_sets", "librispeech_dev_clean", "--stop_stage", "10"]
        return [*found, *more]
    columns = asked.runs(run.seed + 1)[run]
    return [*found, "--test_sets", " ".join(SETS[x].name for x in columns), *more]


def cell(values: list[float], seeds: int, digits: str) -> str:
    """A number, or the mean and standard deviation of several."""
    if not values:
        return ""
    said = f"{statistics.mean(values):{digits}}"
    if len(values) > 1:
        said += f" ± {statistics.stdev(values):{digits}}"
    return said if len(values) == seeds else f"{said} ({len(values)} of {seeds} seeds)"


def table(asked: Experiment, found: Found, seeds: int = 1) -> str:
    """Markdown: for each column, ours and the paper's."""
    columns = asked.columns
    lines = ["| | " + " | ".join(f"{x} | paper" for x in columns) + " |"]
    lines.append("|---|" + "---:|" * (2 * len(columns)))
    digits = ".3g" if asked.only_pretraining else ".2f"
    for row in asked.rows:
        cells = []
        for name, paper in row.paper.items():
            values = [
                found.value(asked.run_of(row, name, seed), name) for seed in range(seeds)
            ]
            cells.append(cell([x for x in values if x is not None], seeds, digits))
            cells.append(paper)
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    what = "Pre-training" if asked.only_pretraining else "WER %"
    what += ", by `local/paper.sh`"
    if seeds > 1:
        what += f", mean ± standard deviation of {seeds} seeds"
    return f"{what}. {asked.note}".strip() + "\n\n" + "\n".join(lines)


def papers_difference(asked: Experiment, row: Row, base: Row, column: str) -> str:
    """What the paper has of it."""
    cells = row.paper[column], base.paper[column]
    one, other = map(rate_of, cells)
    if one and other:
        return f"{one - other:+.2f} ({100 * (one / other - 1):+.1f} %)"
    one, other = map(gain_of, cells)
    if one and other:
        return f"{100 * ((100 + one) / (100 + other) - 1):+.1f} %"
    return f"{one:+g} %" if one and not asked.over else ""


def differences(asked: Experiment, found: Found, seeds: int = 1) -> str:
    """Markdown: how far each row is from the one that it is compared with."""
    lines = []

    def signed(x: float) -> str:
        return f"{x:+.3g}" if asked.only_pretraining else f"{round(x, 2) + 0.0:+.2f}"

    for row, column in itertools.product(asked.rows, asked.columns):
        base = asked.row(row.against)
        if base is None or base is row:
            continue
        ones, others = (
            [asked.run_of(x, column, seed) for seed in range(seeds)] for x in (row, base)
        )
        there = found.difference(ones, others, column)
        if there is None:
            continue
        interval = relative = ""
        if there.low is not None:
            interval = f"[{signed(there.low)}, {signed(there.high)}]"
        if there.relative is not None:
            relative = f"{there.relative:+.1f} %"
        cells = [f"{row.label} against {base.label}, {column}"]
        cells += [signed(there.change), interval, relative, there.by]
        cells.append(papers_difference(asked, row, base, column))
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ""
    if asked.only_pretraining:
        said = (
            "Differences, with 95 % intervals of Student's t over the seeds, paired; one "
            "seed has none."
        )
    else:
        said = (
            "Differences in percentage points (below 0: fewer errors), of the errors of "
            f"all seeds together, with 95 % intervals of {DRAWS} paired draws of what is "
            "named: they are of the test set, not of the seeds."
        )
    head = "| | difference | 95 % interval | relative | drawn | paper |"
    return "\n".join([said, "", head, "|---|---:|---:|---:|---|---:|", *lines])


def half_width(one: float, other: float, words: int) -> float:
    """Of the 95 % interval of a difference, estimated: all in percent but ``words``."""
    variance = sum(x / 100 * (1 - x / 100) for x in (one, other)) / words
    return 100 * 1.96 * math.sqrt(variance * (1 - CORRELATION))


def count_words(column: str) -> int | None:
    """Of a test set's references: in data/, or as published."""
    file = Path("data") / SETS[column].name / "text"
    if file.is_file():
        return sum(len(x.split()) for x in read_text(file).values())
    return SETS[column].words


def noise(asked: Experiment) -> list[str]:
    """Which of the paper's differences chance could make, in lines."""
    lines = []
    for column in asked.columns if not asked.only_pretraining else []:
        words = count_words(column)

        def tell(what: str, one: float, other: float) -> None:
            width = half_width(one, other, words)
            where = "inside" if abs(one - other) <= width else "outside"
            lines.append(f"{column}, {what}: noise ±{width:.2f}: {where}")

        cells = {x.label: x.paper[column] for x in asked.rows}
        rates = {x: rate_of(y) for x, y in cells.items() if rate_of(y)}
        gains = {x: y for x, y in cells.items() if gain_of(y)}
        untold = [f"{x} {y.partition(' (')[0]}" for x, y in gains.items()]
        if words:
            for (base, other), (label, one) in itertools.combinations(rates.items(), 2):
                tell(f"{label} against {base}: {one - other:+.2f}", one, other)
            rate = asked.rates.get(column)
            for label, gain in gains.items() if rate else []:
                one = rate * (1 + gain_of(gain) / 100)
                tell(f"{label} {gain}: {one - rate:+.2f} at {rate:.2f}", one, rate)
            untold = [] if rate else untold
        if untold:
            lines.append(
                f"{column}, {', '.join(untold)}: not told, for want of a word error rate"
                + ("" if words else f" and of data/{SETS[column].name}")
            )
    return lines


def print_plan(
    name: str,
    asked: Experiment,
    runs: list[Run],
    more: list[str],
    found: Found,
    seeds: int = 1,
) -> None:
    """Rows and columns, the runs, which of them are missing, and what these cost."""
    print(f"{name}: {len(asked.runs(seeds))} runs, {len(runs)} missing\n")
    print(table(asked, found, seeds) + "\n")
    if not asked.only_pretraining:
        for column in asked.columns:
            tuned = asked.run_of(asked.rows[0], column).finetune
            print(f"  {column}: {SETS[column].name}, fine-tuned on {tuned}")
        print()
    # One pre-training serves several fine-tunings; it is paid once.
    models = {replace(x, finetune="") for x in runs if not found.pretrained(x)}
    for row in asked.rows:
        own = {asked.run_of(row, x, n) for x in asked.columns for n in range(seeds)}
        left = len(own & set(runs))
        state = f"{left} missing" if left else "done"
        own = {replace(x, finetune="") for x in own} & models
        hours = sum(x.gpu_hours() for x in own)
        print(f"  {row.label:28} {state:10} about {hours:8.0f} GPU hours")
    told = noise(asked)
    if told:
        print(
            "\nThe paper's differences and the sampling noise of the test sets (95 %), if\n"
            "words err independently and two models have half of the variance in common:"
        )
        print("\n".join(f"  {x}" for x in told))
    for run in runs:
        print(f"\n{shlex.join(command(run, asked, more))}")
    hours = sum(x.gpu_hours() for x in models)
    disk = sum(2 * CHECKPOINT_GB * SIZES[x.model_size][0] for x in models)
    print(
        f"\n{len(models)} pre-trainings, about {hours:.0f} GPU hours at "
        f"{FLOP_PER_SECOND / 1e12:.0f} TFLOP/s a GPU, {disk:.0f} GB of checkpoints"
    )


def named_corpora(db: Path) -> set[str]:
    """The variables that db.sh sets."""
    if not db.is_file():
        return set()
    names = sorted({*STEW.values(), *(x.corpus for x in SETS.values())})
    say = 'file=$1; shift; . "${file}"; for x; do [ -z "${!x:-}" ] || echo "${x}"; done'
    done = subprocess.run(
        ["bash", "-c", say, "bash", str(db.absolute()), *names],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def whole(text: str) -> int:
    """A positive number of the command line."""
    if not re.fullmatch(r"[1-9]\d{0,2}", text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 to 999")
    return int(text)


def get_parser() -> argparse.ArgumentParser:
    """The command line, but for what follows --."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    known = {kind: [] for kind in ("table", "figure")}
    for name in EXPERIMENTS:
        known[name.split()[0]].append(name.split()[1])
    what.add_argument("--table", choices=known["table"])
    what.add_argument("--figure", choices=known["figure"])
    parser.add_argument("--row", action="append", help="run this one only; repeatable")
    parser.add_argument(
        "--seeds", type=whole, default=1, metavar="N", help="of each run: 0 to N - 1"
    )
    parser.add_argument("--model_size", choices=SIZES, help="instead of the paper's")
    parser.add_argument(
        "--head", choices=("rnnt", "ctc"), default="rnnt", help="of fine-tuning"
    )
    parser.add_argument("--dry_run", action="store_true", help="only print the plan")
    parser.add_argument("--results", type=Path, default=Path("RESULTS.md"))
    parser.add_argument("--expdir", type=Path, default=Path("exp/librilight"))
    parser.add_argument("--dumpdir", type=Path, default=Path("dump/librilight"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Plan, or run and collect."""
    argv = sys.argv[1:] if argv is None else argv
    more = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = get_parser()
    args = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    for option in ("--expdir", "--dumpdir", *["--seed"] * (args.seeds > 1)):
        if option in more:
            own = "--seeds" if option == "--seed" else f"{option}, before the --,"
            parser.error(f"{option} behind --: {own} says it already; leave it out there")
    name = f"table {args.table}" if args.table else f"figure {args.figure}"
    asked = EXPERIMENTS[name].replace_runs(head=args.head)
    if args.model_size:
        asked = asked.replace_runs(model_size=args.model_size)
    labels = [x.label for x in asked.rows]
    for label in args.row or []:
        if label not in labels:
            parser.error(f"--row {label}: {name} has {', '.join(labels)}")
    found = Found(args.results, args.expdir, args.dumpdir, tuple(more))
    try:
        named = named_corpora(Path("db.sh"))
        if named:
            asked, out = asked.within(named)
            if out:
                said = "Left out, because db.sh does not say where it is: "
                said += f"{', '.join(out)}."
                asked = replace(asked, note=f"{asked.note} {said}".strip())
        wanted = [x for x in asked.rows if x.label in (args.row or labels)]
        planned = replace(asked, rows=wanted)
        runs = missing(planned, found, args.seeds)
        more = ["--expdir", str(args.expdir), "--dumpdir", str(args.dumpdir), *more]
        print_plan(name, planned, runs, more, found, args.seeds)
    except ValueError as e:
        sys.exit(f"{name}: {e}")
    if args.dry_run:
        return
    for number, run in enumerate(runs, 1):
        print(f"\n{name}: run {number} of {len(runs)}", flush=True)
        done = subprocess.run(command(run, asked, more))
        if done.returncode:
            sys.exit(
                f"{name}: run {number} failed; the same command goes on from there"
            )
    title = f"{name[0].upper()}{name[1:]} of the paper"
    title += f", size {args.model_size}" if args.model_size else ""
    title += ", CTC" if args.head == "ctc" else ""
    parts = [f(asked, found, args.seeds) for f in (table, differences)]
    body = "\n\n".join(x for x in parts if x)
    put_section(args.results, title, body)
    print(f"\n{title}\n\n{body}\n\nIn {args.results}.")


if __name__ == "__main__":
    main()
