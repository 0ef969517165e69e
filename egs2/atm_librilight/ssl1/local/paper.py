#!/usr/bin/env python3
"""Reproduce a table or figure of the Ask2Mask paper.

Prints the runs that it needs and what they cost, runs what is missing, and puts the
numbers beside the paper's (Baskar et al., IEEE J-STSP 16(6):1357-1366, 2022).

    local/paper.sh --table IV --dry_run
    local/paper.sh --figure 4 -- --ngpu 8 --num_nodes 2
    local/paper.sh --table II --row LS-scorer

What follows -- goes to every ./run.sh. Tables VI and VII of the paper are not here: this
recipe's authors do not know what they compare.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from results import put_section, read_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

AMI = "ami_ihm+ami_sdm1"
# Evaluation sets by their names in the paper.
SETS = {
    "IHM-eval": "ami_ihm_eval",
    "SDM-eval": "ami_sdm1_eval",
    "test": "librispeech_test_clean",
    "test-other": "librispeech_test_other",
    "CV": "commonvoice_test",
    "TED-LIUM": "tedlium2_test",
    "CHiME-6": "chime6_eval",
}
# Figure 6: what ESPnet reports of the validation set.
STATISTICS = {
    "validation loss": "loss",
    "codes used %": "w2v_bert_codes_used",
    "masked accuracy": "w2v_bert_acc_m",
}
# Objectives by the paper's names of the models.
MODELS = {"w2v2-cfr": "wav2vec2", "HuBERT-cfr": "hubert", "w2v-BERT": "w2v_bert"}
RANDOM_RATIO, ATM_RATIO = "0.49", "0.4"

# Parameters in millions, utterances of 32 s a batch, and updates, of conf/tuning. Segments
# of 57 s in the mean fill the batches before they are cropped: 140, times accum_grad.
SIZES = {"l": (108, 560, 400_000), "xl": (640, 2240, 400_000), "mini": (1.2, 1, 540)}
UPDATES = {("w2v_bert", "l"): 900_000}
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
NAMELESS = {"nj", "ngpu", "num_nodes", "expdir", "dumpdir", "python", "test_sets"}
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
        found += ["--asr_train_set", "librispeech_100_train"]
        found += ["--asr_valid_set", "librispeech_100_dev"]
        if self.scorer == "ami":
            found[-4:] = ["--scorer_name", "ami", "--asr_train_set", "ami_ihm_train"]
            found += ["--asr_valid_set", "ami_ihm_dev"]
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
        return pattern

    def gpu_hours(self) -> float:
        """An estimate for pre-training, which is nearly all."""
        millions, batch, updates = SIZES[self.model_size]
        updates = UPDATES.get((self.objective, self.model_size), updates)
        frames = updates * batch * FRAMES
        return frames * millions * 1e6 * FLOP_PER_PARAMETER / FLOP_PER_SECOND / 3600


def atm(**settings) -> Run:
    """The paper's ATM."""
    return Run(**{"masker": "atm", "mask_ratio": ATM_RATIO, **settings})


@dataclass(frozen=True)
class Row:
    """A line of a table: its label, its run, and what the paper says by column."""

    label: str
    run: Run
    paper: dict[str, float | str | None]


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Its columns are evaluation sets, word error rates in percent, or statistics of the
    validation set of pre-training, which then is all there is to run.
    """

    rows: list[Row]
    note: str = ""

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0].paper)

    @property
    def only_pretraining(self) -> bool:
        return self.columns[0] in STATISTICS

    def replace_runs(self, **settings) -> "Experiment":
        """The same with other settings of all runs."""
        rows = [replace(x, run=replace(x.run, **settings)) for x in self.rows]
        return replace(self, rows=rows)


def experiment(columns: str, *lines: tuple, note: str = "") -> Experiment:
    """Lines of (label, run, number ...) with a number, or None, for each column."""
    names = columns.split(", ")
    found = [
        Row(label, run, dict(zip(names, [*numbers, *[None] * len(names)])))
        for label, run, *numbers in lines
    ]
    return Experiment(found, note)


SPEECHSTEW = (
    "The paper fine-tunes on SpeechStew, for which ESPnet has no recipe: AMI stands in "
    "for it here. Percentages are the paper's relative gains over SpeechStew."
)
# None: only in a figure, or not known here.
EXPERIMENTS: dict[str, Experiment] = {
    "figure 4": experiment(
        "IHM-eval, SDM-eval",
        *[
            (f"{masker} {float(ratio):.0%}", Run(masker=masker, mask_ratio=ratio))
            for masker in ("random", "atm")
            for ratio in ("0.3", "0.33", ATM_RATIO, RANDOM_RATIO, "0.5")
        ],
    ),
    "table I": experiment(
        "IHM-eval, SDM-eval",
        ("high", atm(), 12.52, 27.34),
        ("low", atm(strategy="low")),
        ("mixed", atm(strategy="mixed")),
    ),
    "table II": experiment(
        "IHM-eval, SDM-eval",
        ("baseline", Run(), 13.38),
        ("LS-scorer", atm(), 12.52, 27.34),
        ("AMI-scorer", atm(scorer="ami"), None, 27.00),
    ),
    "figure 5": experiment(
        "IHM-eval",
        ("w2v2-cfr-L baseline", Run(objective="wav2vec2")),
        ("w2v2-cfr-L ATM", atm(objective="wav2vec2"), "-9 %"),
        ("HuBERT-cfr-L baseline", Run(objective="hubert")),
        ("HuBERT-cfr-L ATM", atm(objective="hubert"), "-4 %"),
        ("w2v-BERT-L baseline", Run(), 13.38),
        ("w2v-BERT-L ATM", atm(), 12.52),
        note="Percentages are the paper's relative gains over the baseline above.",
    ),
    # Which of the two sets the paper's numbers are for is not known here; they look like
    # 100 h.
    "table III": experiment(
        "test, test-other",
        *[
            (f"{label} {hours} h", make(finetune=f"librispeech_{hours}"), None, *wer)
            for hours, wers in (("100", ([8.86], [8.79])), ("960", ([], [])))
            for label, make, wer in zip(("baseline", "ATM"), (Run, atm), wers)
        ],
    ),
    "table IV": experiment(
        "IHM-eval, SDM-eval",
        ("baseline", Run(), 13.38),
        ("baseline+S", Run(loss_scale="utterance")),
        ("ATM", atm(), 12.52, 27.34),
        ("ATM+S", atm(loss_scale="utterance"), None, 27.19),
    ),
    "figure 6": experiment(
        ", ".join(STATISTICS),
        *[
            (label, replace(run, finetune="librispeech_100"), None, "94-95")
            for label, run in (
                ("baseline", Run()),
                ("ATM", atm()),
                ("ATM+S", atm(loss_scale="utterance")),
            )
        ],
        note="After the last epoch; exp/librilight/ssl_*/tensorboard has all of them. "
        "Other masks are other tasks, and ATM+S has weights in its loss.",
    ),
    "table V": experiment(
        "IHM-eval, SDM-eval",
        ("ATM", atm(), 12.52, 27.34),
        ("every utterance", atm(loss_scale="frame", frame_prob="1")),
        ("10 % of utterances", atm(loss_scale="frame", frame_prob="0.1")),
    ),
    "table VIII": experiment(
        "IHM-eval, SDM-eval",
        ("baseline", Run(model_size="xl")),
        ("ATM", atm(model_size="xl"), None, 21.0),
        ("ATM+S", atm(model_size="xl", loss_scale="utterance"), None, 20.7),
        note=SPEECHSTEW,
    ),
    "table IX": experiment(
        "CV, TED-LIUM, CHiME-6",
        ("baseline", Run(model_size="xl"), "-7.4 %", None, "-2.9 %"),
        ("ATM", atm(model_size="xl"), "-11.6 %"),
        ("ATM+S", atm(model_size="xl", loss_scale="utterance"), None, None, "-5.76 %"),
        note=SPEECHSTEW,
    ),
}


# ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Suffixes:
    """What names of runs have behind their paper's settings.

    Args:
        pretrained: of the folder of pre-training.
        before, after: of a row in RESULTS.md, before and after what was fine-tuned on.
        seed: of the row.
    """

    pretrained: str
    before: str
    after: str
    seed: str


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
        part = f"_{scorer}_scorer" if scorer else ""
        return Suffixes(part, part, run.head_suffix(), "0")
    asked = ["./run.sh", *run.options(), *more, "--stop_stage", "0"]
    done = subprocess.run(asked, capture_output=True, text=True)
    pretrained = re.search(
        rf"Pre-training: \S*/ssl_{run.pretraining()}(\S*)_raw$", done.stdout, re.M
    )
    finetuned = re.search(
        rf"Fine-tuning on (\S+): .*RESULTS.md {run.pretraining()}(\S*), seed (\d+)\)$",
        done.stdout,
        re.M,
    )
    if done.returncode or not pretrained or not finetuned:
        raise ValueError(f"{shlex.join(asked)}: {done.stderr.strip()[-1000:]}")
    dataset, name, seed = finetuned.groups()
    before, _, after = name.rpartition(f"_{dataset}")
    return Suffixes(pretrained[1], before, after, seed)


@dataclass(frozen=True)
class Found:
    """Where the numbers of the runs are, and what options they were made with."""

    results: Path
    expdir: Path
    more: tuple[str, ...] = ()

    def suffixes(self, run: Run) -> Suffixes:
        """Of its names."""
        return suffixes(run.model_size, run.scorer, run.head, self.more)

    def wer(self, run: Run) -> dict[str, str]:
        """WER by evaluation set, from RESULTS.md."""
        own = self.suffixes(run)
        behind = re.escape(f"{own.before}_{run.finetune}{own.after}")
        return {
            row["test set"]: row["WER %"]
            for row in read_rows(self.results)
            if row["corpus"] == "librilight"
            and row["seed"] == own.seed
            and re.fullmatch(run.pretraining() + behind, row["run"])
        }

    def statistics(self, run: Run) -> dict[str, str]:
        """The last epoch's by name, of the validation set; empty before training's end.

        Raises:
            ValueError: when TensorBoard's events lack one.
        """
        behind = re.escape(self.suffixes(run).pretrained)
        pattern = f"ssl_{run.pretraining()}{behind}_raw"
        for folder in sorted(self.expdir.glob("ssl_*_raw")):
            done = (folder / ".steps/train.done").exists()
            if not done or not re.fullmatch(pattern, folder.name):
                continue
            events = EventAccumulator(str(folder / "tensorboard/valid")).Reload()
            missing = set(STATISTICS.values()) - set(events.Tags()["scalars"])
            if missing:
                raise ValueError(f"{folder}/tensorboard/valid has no {min(missing)}")
            last = {x: events.Scalars(x)[-1].value for x in STATISTICS.values()}
            return {x: f"{value:.3g}" for x, value in last.items()}
        return {}

    def numbers(self, row: Row) -> dict[str, str]:
        """By column; those that are there."""
        wanted = {x: STATISTICS.get(x) or SETS[x] for x in row.paper}
        statistics = any(x in STATISTICS for x in wanted)
        there = self.statistics(row.run) if statistics else self.wer(row.run)
        return {x: there[name] for x, name in wanted.items() if name in there}


def missing(asked: Experiment, found: Found) -> list[Run]:
    """The runs of which a number is not there, each once."""
    runs = [x.run for x in asked.rows if len(found.numbers(x)) < len(x.paper)]
    return list(dict.fromkeys(runs))


def command(run: Run, asked: Experiment, more: list[str]) -> list[str]:
    """./run.sh with the evaluation sets."""
    found = ["./run.sh", *run.options()]
    if asked.only_pretraining:  # a set that is there wherever the labelled data are
        found += ["--test_sets", "librispeech_dev_clean", "--stop_stage", "10"]
        return [*found, *more]
    return [*found, "--test_sets", " ".join(SETS[x] for x in asked.columns), *more]


def table(asked: Experiment, found: Found) -> str:
    """Markdown: for each column, ours and the paper's."""
    columns = asked.columns
    lines = ["| | " + " | ".join(f"{x} | paper" for x in columns) + " |"]
    lines.append("|---|" + "---:|" * (2 * len(columns)))
    for row in asked.rows:
        ours = found.numbers(row)
        cells = []
        for name, paper in row.paper.items():
            cells.append(ours.get(name, ""))
            cells.append(f"{paper:.2f}" if isinstance(paper, float) else paper or "")
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    what = "Pre-training" if asked.only_pretraining else "WER %"
    head = f"{what}, by `local/paper.sh`. {asked.note}".strip()
    return f"{head}\n\n" + "\n".join(lines)


def print_plan(name: str, asked: Experiment, runs: list[Run], more: list[str]) -> None:
    """The runs, which of them are missing, and an estimate of what these cost."""
    print(f"{name}: {len({x.run for x in asked.rows})} runs, {len(runs)} missing")
    print(f"{asked.note}\n")
    for row in asked.rows:
        state = "missing" if row.run in runs else "done"
        print(f"  {row.label:22} {state:8} about {row.run.gpu_hours():8.0f} GPU hours")
    for run in runs:
        print(f"\n{shlex.join(command(run, asked, more))}")
    # One pre-training serves several fine-tunings; it is paid once.
    models = {(x.pretraining(), x.scorer): x for x in runs}
    hours = sum(x.gpu_hours() for x in models.values())
    disk = sum(2 * CHECKPOINT_GB * SIZES[x.model_size][0] for x in models.values())
    print(
        f"\n{len(models)} pre-trainings, about {hours:.0f} GPU hours at "
        f"{FLOP_PER_SECOND / 1e12:.0f} TFLOP/s a GPU, {disk:.0f} GB of checkpoints"
    )


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
    parser.add_argument("--model_size", choices=SIZES, help="instead of the paper's")
    parser.add_argument(
        "--head", choices=("rnnt", "ctc"), default="rnnt", help="of fine-tuning"
    )
    parser.add_argument("--dry_run", action="store_true", help="only print the plan")
    parser.add_argument("--results", type=Path, default=Path("RESULTS.md"))
    parser.add_argument("--expdir", type=Path, default=Path("exp/librilight"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Plan, or run and collect."""
    argv = sys.argv[1:] if argv is None else argv
    more = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = get_parser()
    args = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    name = f"table {args.table}" if args.table else f"figure {args.figure}"
    asked = EXPERIMENTS[name].replace_runs(head=args.head)
    if args.model_size:
        asked = asked.replace_runs(model_size=args.model_size)
    labels = [x.label for x in asked.rows]
    for label in args.row or []:
        if label not in labels:
            parser.error(f"--row {label}: {name} has {', '.join(labels)}")
    wanted = [x for x in asked.rows if x.label in (args.row or labels)]
    planned = replace(asked, rows=wanted)
    found = Found(args.results, args.expdir, tuple(more))
    try:
        runs = missing(planned, found)
    except ValueError as e:
        sys.exit(f"{name}: {e}")
    more = ["--expdir", str(args.expdir), *more]
    print_plan(name, planned, runs, more)
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
    put_section(args.results, title, table(asked, found))
    print(f"\n{title}\n\n{table(asked, found)}\n\nIn {args.results}.")


if __name__ == "__main__":
    main()
