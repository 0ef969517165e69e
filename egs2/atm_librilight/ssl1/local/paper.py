#!/usr/bin/env python3
"""Reproduce a table or figure of the Ask2Mask paper.

Prints the runs that it needs and what they cost, runs what is missing, and puts the
numbers beside the paper's (Baskar et al., IEEE J-STSP 16(6):1357-1366, 2022).

    local/paper.sh --table IV --dry_run
    local/paper.sh --figure 4 -- --ngpu 8 --num_nodes 2

What follows -- goes to every ./run.sh.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from results import put_section, read_rows

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
# Objectives by the paper's names of the models.
MODELS = {"w2v2-cfr": "wav2vec2", "HuBERT-cfr": "hubert", "w2v-BERT": "w2v_bert"}
RANDOM_RATIO, ATM_RATIO = "0.49", "0.4"

# Parameters in millions, utterances of 32 s a batch, and updates, of conf/tuning.
SIZES = {"l": (108, 512, 400_000), "xl": (640, 2048, 400_000), "mini": (1.2, 1, 540)}
UPDATES = {("w2v_bert", "l"): 900_000}
FRAMES = 32 * 25  # of an utterance
# A multiply and an add for each parameter and frame, and twice that backward.
FLOP_PER_PARAMETER = 6
# What a GPU sustains: about a third of an A100's peak in bfloat16.
FLOP_PER_SECOND = 100e12
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

    def options(self) -> list[str]:
        """Of ./run.sh."""
        found = ["--corpus", "librilight", "--objective", self.objective]
        found += ["--model_size", self.model_size, "--masker", self.masker]
        found += ["--mask_ratio", self.mask_ratio, "--finetune_sets", self.finetune]
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

    def matches(self, name: str) -> bool:
        """Whether a row of RESULTS.md is this run's."""
        strategy = "" if self.masker == "random" else f"_{self.strategy or 'high'}"
        pattern = f"{self.objective}_conformer_{self.model_size}(_km[0-9]+)?"
        pattern += f"_{self.masker}{strategy}_{float(self.mask_ratio):g}x10"
        if self.loss_scale != "none":
            pattern += f"_scale_{self.loss_scale}{self.frame_prob}"
        pattern += f"_{self.scorer}_scorer" if self.scorer else ""
        pattern += "_" + re.escape(self.finetune) + "(_rnnt)?"
        return re.fullmatch(pattern, name) is not None

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
    """A line of a table: its label, its run, and what the paper says by set."""

    label: str
    run: Run
    paper: dict[str, float | None]


def rows(sets: str, *lines: tuple) -> list[Row]:
    """Lines of (label, run, number ...) with a number, or None, for each set."""
    names = sets.split()
    return [
        Row(label, run, dict(zip(names, [*numbers, *[None] * len(names)])))
        for label, run, *numbers in lines
    ]


# Word error rates in percent. None: only in a figure, or not known here.
EXPERIMENTS: dict[str, list[Row]] = {
    "figure 4": rows(
        "IHM-eval SDM-eval",
        *[
            (f"{masker} {float(ratio):.0%}", Run(masker=masker, mask_ratio=ratio))
            for masker in ("random", "atm")
            for ratio in ("0.3", "0.33", "0.4", "0.49")
        ],
    ),
    "table I": rows(
        "IHM-eval SDM-eval",
        ("high", atm(), 12.52, 27.34),
        ("low", atm(strategy="low")),
        ("mixed", atm(strategy="mixed")),
    ),
    "table II": rows(
        "IHM-eval SDM-eval",
        ("baseline", Run(), 13.38),
        ("LS-scorer", atm(), 12.52, 27.34),
        ("AMI-scorer", atm(scorer="ami"), None, 27.00),
    ),
    "figure 5": rows(
        "IHM-eval",
        *[
            (f"{model}-L {label}", make(objective=objective))
            for model, objective in MODELS.items()
            for label, make in (("baseline", Run), ("ATM", atm))
        ],
    ),
    "table III": rows(
        "test test-other",
        ("baseline", Run(finetune="librispeech_100"), None, 8.86),
        ("ATM", atm(finetune="librispeech_100"), None, 8.79),
    ),
    "table IV": rows(
        "IHM-eval SDM-eval",
        ("baseline", Run(), 13.38),
        ("baseline+S", Run(loss_scale="utterance")),
        ("ATM", atm(), 12.52, 27.34),
        ("ATM+S", atm(loss_scale="utterance"), None, 27.19),
    ),
    "figure 6": rows(
        "IHM-eval SDM-eval",
        ("baseline", Run(), 13.38),
        ("ATM", atm(), 12.52, 27.34),
        ("ATM+S", atm(loss_scale="utterance"), None, 27.19),
    ),
    "table V": rows(
        "IHM-eval SDM-eval",
        ("ATM", atm(), 12.52, 27.34),
        ("every utterance", atm(loss_scale="frame", frame_prob="1")),
        ("10 % of utterances", atm(loss_scale="frame", frame_prob="0.1")),
    ),
    "table VIII": rows(
        "IHM-eval SDM-eval",
        ("baseline", Run(model_size="xl")),
        ("ATM", atm(model_size="xl"), None, 21.0),
        ("ATM+S", atm(model_size="xl", loss_scale="utterance"), None, 20.7),
    ),
    "table IX": rows(
        "CV TED-LIUM CHiME-6",
        ("baseline", Run(model_size="xl")),
        ("ATM", atm(model_size="xl")),
        ("ATM+S", atm(model_size="xl", loss_scale="utterance")),
    ),
}


# ------------------------------------------------------------------------------------
def measured(run: Run, results: Path) -> dict[str, float]:
    """WER by evaluation set, from RESULTS.md."""
    return {
        row[2]: float(row[4])
        for row in read_rows(results)
        if row[0] == "librilight" and run.matches(row[1])
    }


def missing(experiment: list[Row], results: Path) -> list[Run]:
    """The runs that are not in RESULTS.md with every set that is asked for, each once."""
    found = []
    for row in experiment:
        done = measured(row.run, results)
        if row.run not in found and not all(SETS[x] in done for x in row.paper):
            found.append(row.run)
    return found


def command(run: Run, experiment: list[Row], more: list[str]) -> list[str]:
    """./run.sh with the evaluation sets of all lines that share the run."""
    sets = sorted({SETS[x] for row in experiment if row.run == run for x in row.paper})
    return ["./run.sh", *run.options(), "--test_sets", " ".join(sets), *more]


def table(experiment: list[Row], results: Path) -> str:
    """Markdown: for each set, ours and the paper's."""
    sets = list(experiment[0].paper)
    lines = ["| | " + " | ".join(f"{x} | paper" for x in sets) + " |"]
    lines.append("|---|" + "---:|" * (2 * len(sets)))
    for row in experiment:
        done = measured(row.run, results)
        cells = []
        for name in sets:
            ours, paper = done.get(SETS[name]), row.paper[name]
            cells.append("" if ours is None else f"{ours:.1f}")
            cells.append("" if paper is None else f"{paper:.2f}")
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return "WER %, by `local/paper.sh`.\n\n" + "\n".join(lines)


def print_plan(
    name: str, experiment: list[Row], runs: list[Run], more: list[str]
) -> None:
    """The runs, which of them are missing, and an estimate of what these cost."""
    print(f"{name}: {len({row.run for row in experiment})} runs, {len(runs)} missing\n")
    for row in experiment:
        state = "missing" if row.run in runs else "done"
        print(f"  {row.label:22} {state:8} about {row.run.gpu_hours():8.0f} GPU hours")
    for run in runs:
        print(f"\n{shlex.join(command(run, experiment, more))}")
    # One pre-training serves several fine-tunings; it is paid once.
    models = {pretraining(x): x for x in runs}
    hours = sum(x.gpu_hours() for x in models.values())
    disk = sum(2 * CHECKPOINT_GB * SIZES[x.model_size][0] for x in models.values())
    print(
        f"\n{len(models)} pre-trainings, about {hours:.0f} GPU hours at "
        f"{FLOP_PER_SECOND / 1e12:.0f} TFLOP/s a GPU, {disk:.0f} GB of checkpoints"
    )


def pretraining(run: Run) -> tuple:
    """What a pre-training depends on."""
    return tuple(v for k, v in vars(run).items() if k != "finetune")


def main(argv: list[str] | None = None) -> None:
    """Plan, or run and collect."""
    argv = sys.argv[1:] if argv is None else argv
    more = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    known = {kind: [] for kind in ("table", "figure")}
    for name in EXPERIMENTS:
        known[name.split()[0]].append(name.split()[1])
    what.add_argument("--table", choices=known["table"])
    what.add_argument("--figure", choices=known["figure"])
    parser.add_argument("--model_size", choices=SIZES, help="instead of the paper's")
    parser.add_argument("--dry_run", action="store_true", help="only print the plan")
    parser.add_argument("--results", type=Path, default=Path("RESULTS.md"))
    args = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    name = f"table {args.table}" if args.table else f"figure {args.figure}"
    experiment = EXPERIMENTS[name]
    if args.model_size:
        experiment = [
            replace(row, run=replace(row.run, model_size=args.model_size))
            for row in experiment
        ]
    runs = missing(experiment, args.results)
    print_plan(name, experiment, runs, more)
    if args.dry_run:
        return
    for number, run in enumerate(runs, 1):
        print(f"\n{name}: run {number} of {len(runs)}", flush=True)
        done = subprocess.run(command(run, experiment, more))
        if done.returncode:
            sys.exit(
                f"{name}: run {number} failed; the same command goes on from there"
            )
    title = f"{name[0].upper()}{name[1:]} of the paper"
    if args.model_size:
        title += f", size {args.model_size}"
    put_section(args.results, title, table(experiment, args.results))
    print(f"\n{title}\n\n{table(experiment, args.results)}\n\nIn {args.results}.")


if __name__ == "__main__":
    main()
