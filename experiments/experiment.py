#!/usr/bin/env python3
"""Prepare and run the experiment: scorer, scores, labels, and every run of every arm.

What is done is skipped; whatever was stopped goes on from its last epoch. Two runs of one
thread each go side by side. A run leaves `<results>/<run>.json`, with the errors of each
test utterance.
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

import soundfile
import yaml
from arms import ARMS, OBJECTIVES, PILOT_SEED, RATIO, Run, further_runs, main_runs, pilot_runs

from espnet_atm.export import asr_parts, init_params

HERE = Path(__file__).resolve().parent
TUNING = HERE.parent / "egs2/atm_librilight/ssl1/conf/tuning"
ASR_CONFIG = TUNING / "train_asr_conformer_mini.yaml"

# The budget, the same for all arms. An "epoch" is a number of steps.
SSL_STEPS, SSL_EPOCHS = 200, 6
ASR_STEPS = 200
ASR_EPOCHS = {"scorer": 30, "train30": 8, "train10": 5}
# 32 ms windows every 20 ms: at 12 characters a second, frames of 40 ms leave 2 a character,
# which CTC hardly learns from half an hour; and convolutions are over half of the cost.
FRONT_END = {"n_fft": 512, "win_length": 512, "hop_length": 320, "n_mels": 80}
# Drawing its zeros is a quarter to a third of a step on a CPU, and in so few steps it helped
# nothing, see README.md.
NO_DROPOUT = dict.fromkeys(
    ("dropout_rate", "positional_dropout_rate", "attention_dropout_rate"), 0.0
)
SPAN = 20  # frames: 400 ms, as the paper's 10 of 40 ms
# Peaks of the learning rate, which then falls to nothing, so that a run's end is no
# moment of a walk. At the recipe's 0.002, CTC learned nothing in 2600 steps.
SSL_RATES = {"hubert": 0.001, "best_rq": 0.001, "wav2vec2": 0.0005, "w2v_bert": 0.0005}
# The scorer begins with nothing, and all others with what it has learned.
ASR_RATES = {"scorer": 0.001, "train30": 0.0005, "train10": 0.0005}
# Beside the recipe's: with less, what is seen ten times is soon known by heart.
SPECAUG = {"freq_mask_width_range": [0, 20], "num_freq_mask": 2, "num_time_mask": 3}
LAYER, CLUSTERS = 3, 64  # of the scorer: HuBERT's labels
VALIDATION = {"mask_ratio": 0.40, "span": SPAN, "strategy": "random", "exact": True}
TRACKS = ("plain", "gated")
TRAINED_ON = ("train30", "train10", "dev", "pool")
TESTED_ON = ("test_clean", "test_degraded")
BEST = "valid.cer_ctc.best.pth"  # of the scorer
MADE_OF = "made_of.json"  # of a folder whose work is not done
AVERAGED = 3  # best epochs, in what is decoded, as in ESPnet's recipes
KINDS = {  # of audio in the pool, and the third that they are in
    "dutch": "target",
    "czech": "other speech",
    "prompts": "other speech",
    "music": "junk",
    "noise": "junk",
    "buried": "junk",
    "reversed": "junk",
    "silence": "junk",
}
NONE_LEFT = 3  # exit code of --left: 1 and 2 are those of faults
PACKAGES = ("espnet", "torch", "numpy", "silero-vad", "jiwer")


class Failed(RuntimeError):
    """A command that ended badly; the message says where its words are."""


class Work:
    """The folder of data and models, and how commands are run in it.

    Args:
        root: holds ``data`` of make_data.py.
        results: where finished runs leave theirs.
    """

    def __init__(self, root: Path, results: Path):
        self.root, self.results = root, results
        self.data = root / "data"
        self.lists = root / "lists"
        self.lock: IO | None = None  # held while anything is at work here
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def take(self) -> None:
        """Be the only one at work here.

        What is started holds the lock too: a process that outlives us goes on writing.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.root / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(
                f"{self.root}: another experiment.py is at work here, or what a killed one "
                "had started: wait for its end, or end it"
            )

    def stop(self, signum: int, _: Any) -> None:
        """End with all that was started: a handler of signals."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()
        sys.exit(128 + signum)

    def result(self, run: Run) -> Path:
        """Where a run leaves what it found, last of all."""
        return self.results / f"{run.name}.json"

    def wall_seconds(self, run: Run) -> float:
        """How long a run took that is done."""
        return sum(json.loads(self.result(run).read_text())["wall_seconds"].values())

    def command(self, log: Path, *words: Any) -> float:
        """Run a Python module to its end; its CPU seconds.

        Raises:
            Failed: when it ends badly.
        """
        if self.stopped:
            raise Failed("stopped")
        log.parent.mkdir(parents=True, exist_ok=True)
        given = [sys.executable, *map(str, words)]
        held = [self.lock.fileno()] if self.lock else []
        with open(log, "a", encoding="utf-8") as out:
            print("#", *given, file=out, flush=True)
            process = subprocess.Popen(
                given, stdout=out, stderr=subprocess.STDOUT, pass_fds=held
            )
            self.running.add(process)
            if self.stopped:  # since, by a signal that did not see it
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            self.running.remove(process)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Failed(f"exit code {process.returncode}, see {log}")
        return usage.ru_utime + usage.ru_stime

    def once(self, done: Path, *words: Any) -> None:
        """Run a module unless a file says that it has been; that file is written last."""
        if not done.is_file():
            print(f"{time.strftime('%H:%M:%S')} {done.relative_to(self.root)}", flush=True)
            self.command(done.with_suffix(".log"), *words)
            done.touch()


def stream(split: str, *streams: tuple) -> list:
    """The words of ``ssl_train`` or ``asr_train`` for the streams of ``train`` or ``valid``."""
    words = []
    for parts in streams:
        words += [f"--{split}_data_path_and_name_and_type", ",".join(map(str, parts))]
    return words


def processor() -> str:
    """The name of this machine's CPU."""
    lines = open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else ()
    names = (x.split(":")[1].strip() for x in lines if "model name" in x)
    return next(names, platform.processor())


def inputs(work: Work, run: Run) -> dict[str, str]:
    """MD5 of what a run is made with: each machine rounds labels and scores in its own way."""
    arm, files = ARMS[run.arm], {"scorer": work.results / "scorer" / BEST}
    if run.objective == "hubert" and run.arm != "N":
        files["labels"] = work.root / "kmeans/pool/labels.bin"
    if arm.needs_scores:
        track = "gated" if arm.pool == "gate" else arm.track
        files[f"{track} scores"] = work.root / "scores" / track / "pool/utt2confidence"
    return {name: checksum(file) for name, file in files.items()}


def checksum(file: Path) -> str:
    """Its MD5."""
    return hashlib.md5(file.read_bytes()).hexdigest()


def read_table(path: Path) -> dict[str, str]:
    """A Kaldi table."""
    rows = (line.rstrip("\n").partition(" ") for line in open(path, encoding="utf-8"))
    return {key: value for key, _, value in rows}


def write_text(path: Path, text: str) -> None:
    """Complete or absent, also where two runs write the same list at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{threading.get_ident()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_table(path: Path, rows: dict[str, Any]) -> None:
    """A Kaldi table, in the order of the keys."""
    write_text(path, "".join(f"{k} {v}\n" for k, v in sorted(rows.items())))


def write_json(path: Path, content: Any) -> None:
    """On one line."""
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def go_on(folder: Path, made_of: dict[str, Any]) -> None:
    """Keep what a folder holds if it is of the same settings and files; else begin anew.

    Args:
        made_of: whatever JSON can hold.
    """
    file = folder / MADE_OF
    made_of = json.loads(json.dumps(made_of))
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != made_of:
        if folder.exists():
            shutil.rmtree(folder)
        write_json(file, made_of)


def save(path: Path, weights: dict) -> None:
    """Complete or absent."""
    import torch

    partial = path.with_name(f"{path.name}.partial")
    torch.save(weights, partial)
    os.replace(partial, path)


def write_yaml(path: Path, content: Any) -> Path:
    """With its keys as they are given."""
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path


# ------------------------------------------------------------------------------------
# Configs
# ------------------------------------------------------------------------------------
def schedule(peak: float, steps: int) -> dict[str, Any]:
    """One cycle: up for a tenth of the steps, and down to nothing."""
    return {
        "optim_conf": {"lr": peak, "fused": True},
        "scheduler": "onecyclelr",
        "scheduler_conf": {"max_lr": peak, "total_steps": steps, "pct_start": 0.1},
        "num_workers": 0,
        "log_interval": 50,
        "use_matplotlib": False,
        "use_tensorboard": False,
    }


def ssl_config(run: Run) -> dict[str, Any]:
    """The recipe's config of this objective, with the arm's ``ssl_conf`` and our budget."""
    arm = ARMS[run.arm]
    base = TUNING / f"train_{run.objective}_conformer_mini_random.yaml"
    config = yaml.safe_load(base.read_text(encoding="utf-8"))
    masking = {"mask_ratio": run.ratio, "span": SPAN, "exact": True}
    if arm.strategy != "random":
        masking["strategy"] = arm.strategy
    config["ssl_conf"] = {
        "masker": "random" if arm.strategy == "random" else "atm",
        "masker_conf": masking,
        "loss_scale": "utterance" if arm.weighted else "none",
        "validation_masker": VALIDATION,
    }
    config["encoder_conf"].update(NO_DROPOUT)
    config.update(
        frontend_conf=FRONT_END,
        preencoder="linear",
        collate_fn_conf={"pad": True},  # no utterance is cut
        max_epoch=SSL_EPOCHS,
        num_iters_per_epoch=SSL_STEPS,
        seed=run.seed,
        best_model_criterion=[["train", "loss", "min"]],  # the last epoch is taken
        **schedule(SSL_RATES[run.objective], SSL_STEPS * SSL_EPOCHS),
    )
    if run.objective == "best_rq":
        config["loss"][0]["conf"]["input_size"] = FRONT_END["n_mels"]
    return config


def asr_config(exported: Path | None, name: str, seed: int) -> dict[str, Any]:
    """The recipe's ASR config; with the parts of an exported model, if one is given.

    Args:
        name: of the training, which has its own steps and rate.
    """
    config = yaml.safe_load(ASR_CONFIG.read_text(encoding="utf-8"))
    size = config["encoder_conf"]["output_size"]
    config["encoder_conf"]["input_layer"] = None
    config.update(
        frontend_conf=FRONT_END,
        preencoder="linear",
        preencoder_conf={"input_size": FRONT_END["n_mels"], "output_size": size},
    )
    if exported is not None:
        config.update(asr_parts(yaml.safe_load((exported / "config.yaml").read_text())))
    config["encoder_conf"].update(NO_DROPOUT)
    config["specaug_conf"].update(SPECAUG)
    config.update(
        max_epoch=ASR_EPOCHS[name],
        num_iters_per_epoch=ASR_STEPS,
        seed=seed,
        best_model_criterion=[["valid", "cer_ctc", "min"]],
        keep_nbest_models=AVERAGED,
        **schedule(ASR_RATES[name], ASR_STEPS * ASR_EPOCHS[name]),
    )
    return config


# ------------------------------------------------------------------------------------
# What all runs share
# ------------------------------------------------------------------------------------
def write_lists(work: Work) -> None:
    """Lengths in samples of every set, and the tokens.

    Raises:
        Failed: when the results are of other data, as another version of a package gives:
            its test may be what the scorer was trained on.
    """
    for old in work.lists.glob("pool_*_shape"):  # of data or scores that may be others now
        old.unlink()
    checksums = {}
    for name in (*TRAINED_ON, *TESTED_ON):
        wavs = read_table(work.data / name / "wav.scp")
        lengths = {u: soundfile.info(p).frames for u, p in wavs.items()}
        text = read_table(work.data / name / "text") if name != "pool" else {}
        rows = "".join(f"{u} {lengths[u]} {text.get(u, '')}\n" for u in sorted(wavs))
        checksums[name] = hashlib.md5(rows.encode()).hexdigest()
        if name in TRAINED_ON:
            write_table(work.lists / f"{name}_shape", lengths)
    known = work.results / "data.json"
    if not known.is_file():
        write_json(known, checksums)
    for name, recorded in json.loads(known.read_text(encoding="utf-8")).items():
        if checksums[name] != recorded:
            raise Failed(f"{work.data / name}: is not what {known} tells of, perhaps of "
                         "another version of a package: give another --results")
    letters = sorted(set("".join(read_table(work.data / "train30/text").values())) - {" "})
    lines = ["<blank>", "<unk>", "<space>", *letters, "<sos/eos>"]
    write_text(work.lists / "tokens.txt", "".join(f"{x}\n" for x in lines))


def train_asr(
    work: Work, folder: Path, train: str, seed: int, exported: Path | None = None
) -> float:
    """Train on a labelled set; CPU seconds. Leaves ``BEST``, and the mean of the best epochs.

    Args:
        folder: its name says for how long.
    """
    config = write_yaml(
        folder.with_suffix(".yaml"), asr_config(exported, folder.name, seed)
    )
    words = ["--config", config, "--output_dir", folder, "--ngpu", 0, "--resume", "true"]
    words += ["--token_type", "char", "--token_list", work.lists / "tokens.txt"]
    for split, name in (("train", train), ("valid", "dev")):
        words += stream(
            split, (work.data / name / "wav.scp", "speech", "sound"),
            (work.data / name / "text", "text", "text"),
        )
        words += [f"--{split}_shape_file", work.lists / f"{name}_shape"]
    if exported is not None:
        exported_config = yaml.safe_load((exported / "config.yaml").read_text())
        weights = next(exported.glob("*.pth"))
        words += ["--init_param", *init_params(exported_config, str(weights))]
    return work.command(
        folder.with_suffix(".log"), "-m", "espnet_atm", "-m", "espnet2.bin.asr_train",
        *words,
    )


def select_pool(work: Work, part: str, seed: int) -> Path:
    """The list of lengths of a part of the pool, which says what is trained on.

    Thirds are of the hours of the whole pool.
    """
    if part == "all":
        return work.lists / "pool_shape"
    shape = work.lists / (f"pool_random{seed}_shape" if part == "random" else f"pool_{part}_shape")
    if shape.is_file():
        return shape
    lengths = {u: int(n) for u, n in read_table(work.lists / "pool_shape").items()}
    if part == "dutch":
        category = read_table(work.data / "pool/utt2category")
        chosen = [u for u in lengths if category[u] == "dutch"]
    else:
        if part == "gate":
            score = {u: float(x) for u, x in read_table(
                work.root / "scores/gated/pool/utt2confidence").items()}
            order = sorted(lengths, key=lambda u: (-score[u], u))
        else:
            import numpy as np

            utts = sorted(lengths)
            order = [utts[i] for i in np.random.default_rng(seed).permutation(len(utts))]
        chosen, total, third = [], 0, sum(lengths.values()) / 3
        for utt in order:
            if total < third:
                chosen.append(utt)
                total += lengths[utt]
    write_table(shape, {u: lengths[u] for u in chosen})
    return shape


def train_scorer(work: Work) -> Path:
    """The folder of the model that scores, makes HuBERT's labels, and begins all runs.

    It is kept with the results, so that the runs of all machines have the same.

    Raises:
        Failed: when another one has been at work here.
    """
    scorer = work.results / "scorer"
    model, known = scorer / BEST, work.root / "scorer.md5"
    if known.is_file() and not (model.is_file() and known.read_text() == checksum(model)):
        raise Failed(f"{work.root}: is of another scorer than {scorer}: give another --work")
    if not model.is_file():
        import torch

        print(f"{time.strftime('%H:%M:%S')} scorer", flush=True)
        trained = work.root / "scorer"
        go_on(trained, asr_config(None, "scorer", PILOT_SEED))
        train_asr(work, trained, "train30", PILOT_SEED)
        config = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
        here = str(work.root)
        write_yaml(
            scorer / "config.yaml", {k: v for k, v in config.items() if here not in str(v)}
        )
        # In half precision, which is half as much to keep, for all that is made with it.
        save(model, {
            k: v.half() if v.is_floating_point() else v
            for k, v in torch.load(trained / BEST, "cpu").items()
        })
    if not known.is_file():
        write_text(known, checksum(model))
    return scorer


def score(work: Work) -> None:
    """Scores with and without the speech gate."""
    scorer = train_scorer(work)
    for track, options in zip(TRACKS, ([], ["--speech_gate"])):
        for name in ("pool", "dev"):
            folder = work.root / "scores" / track / name
            work.once(
                folder.with_suffix(".done"), "-m", "espnet_atm.bin.score",
                "--asr_train_config", scorer / "config.yaml",
                "--asr_model_file", scorer / BEST,
                "--wav_scp", work.data / name / "wav.scp", "--output_dir", folder, *options,
            )


def decode_scorer(work: Work) -> None:
    """How well the scorer itself reads, for a row to see N and the others beside."""
    found = work.results / "scorer.json"
    if not found.is_file():
        decoded = work.root / "scorer_decoded.json"
        work.command(
            decoded.with_suffix(".log"), HERE / "decode.py", "--data_dir", work.data,
            "--output", decoded, "--model_file", BEST, train_scorer(work),
            "--sets", *WHOLE.decoded,
        )
        write_json(found, json.loads(decoded.read_text(encoding="utf-8")))


def same_objectives(work: Work, objective: str, second: str) -> None:
    """End if the results are of others, which the analysis would leave out."""
    file, given = work.results / "setup.json", {"objective": objective, "second": second}
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != given:
        sys.exit(f"{file}: {file.read_text(encoding='utf-8').strip()}, but {given} are "
                 "asked for: give another --results")


def describe(work: Work, objective: str, second: str) -> None:
    """What the analysis needs besides the runs: of the utterances, the pool, guidance.

    With the scores of the first machine that runs are made on: they are not described anew.
    """
    if (work.results / "setup.json").is_file():
        return
    levels = read_table(work.data / "test_clean/utt2level")
    utterances = {}
    for name in TESTED_ON:
        text = read_table(work.data / name / "text")
        utterances[name] = {
            "levels": [levels[utt.replace("-degraded-", "-", 1)] for utt in sorted(text)],
            "characters": [len(text[utt]) for utt in sorted(text)],
        }
    write_json(work.results / "utterances.json", utterances)

    kinds = read_table(work.data / "pool/utt2category")
    samples = {u: int(n) for u, n in read_table(work.lists / "pool_shape").items()}
    chosen = read_table(select_pool(work, "gate", PILOT_SEED))
    scores = {
        track: read_table(work.root / "scores" / track / "pool/utt2confidence")
        for track in TRACKS
    }
    pool = {}
    for kind in KINDS:
        utts = [u for u in kinds if kinds[u] == kind]
        total = sum(samples[u] for u in utts)
        pool[kind] = {
            "third": KINDS[kind],
            "minutes": total / 16000 / 60,
            "chosen": sum(samples[u] for u in utts if u in chosen) / total,
            **{
                track: sum(float(score[u]) for u in utts) / len(utts)
                for track, score in scores.items()
            },
        }
    write_json(work.results / "pool.json", pool)

    guidance = {}
    for track in TRACKS:
        folder = work.root / "scores" / track / "pool"
        work.once(
            work.root / "reports" / f"{track}.done", "-m", "espnet_atm.bin.report",
            "--confidence_dir", folder, "--wav_scp", work.data / "pool/wav.scp",
            "--utt2category", work.data / "pool/utt2category",
            "--output_dir", work.root / "reports" / track, "--max_utterances", len(kinds),
            "--ssl_config", write_yaml(
                work.root / "reports/ssl.yaml",
                ssl_config(Run("best_rq", "B", RATIO, PILOT_SEED)),
            ),
        )
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        for name, arm in ARMS.items():
            if arm.track == track and arm.pool == "all" and name != "N":
                weights = summary["weights"] if arm.weighted else {}
                guidance[name] = summary["guidance"][arm.strategy] | {
                    "weights_spread": weights.get("spread", 0.0),
                    "effective_share": weights.get("effective_share", 1.0),
                }
    write_json(work.results / "guidance.json", dict(sorted(guidance.items())))
    write_json(work.results / "setup.json", {"objective": objective, "second": second})


def as_ssl_model(scorer: Path, folder: Path) -> list:
    """The scorer's parts as an SSL model's, and the words that name it.

    Args:
        folder: where it goes.
    """
    config, weights = folder / "scorer.yaml", folder / "scorer.pth"
    if not weights.is_file():
        import torch

        from espnet_atm.task import ATMSSLTask

        own = write_yaml(
            folder / "ssl.yaml", ssl_config(Run("hubert", "A", RATIO, PILOT_SEED))
        )
        args = ATMSSLTask.get_parser().parse_args(
            ["--config", str(own), "--output_dir", str(folder)]
        )
        args.token_list = []  # stored labels need none
        write_yaml(config, vars(args))
        model = ATMSSLTask.build_model(args)
        learned = torch.load(scorer / BEST, "cpu")
        for part in ("preencoder", "encoder"):
            head = f"{part}."
            getattr(model, part).load_state_dict(
                {k.removeprefix(head): v for k, v in learned.items() if k.startswith(head)}
            )
        save(weights, model.state_dict())
    return ["--ssl_train_config", config, "--ssl_model_file", weights]


def export_scorer(work: Work) -> None:
    """What arm N is fine-tuned from: the others' beginning."""
    work.once(
        work.root / "start.done", "-m", "espnet_atm.bin.export_ssl",
        *as_ssl_model(train_scorer(work), work.root / "kmeans"),
        "--output_dir", work.root / "start",
    )


def label(work: Work) -> None:
    """HuBERT's pseudo-labels: clusters of a layer of the scorer."""
    folder = work.root / "kmeans"
    layer = [*as_ssl_model(train_scorer(work), folder), "--layer", LAYER]
    work.once(
        folder / "learn.done", "-m", "espnet_atm.bin.learn_kmeans",
        "--wav_scp", work.data / "pool/wav.scp", "--km_path", folder / "km.mdl",
        "--num_clusters", CLUSTERS, "--portion", 1.0, *layer,
    )
    for name in ("pool", "dev"):
        work.once(
            folder / f"{name}.done", "-m", "espnet_atm.bin.label",
            "--km_path", folder / "km.mdl", "--ssl_config", folder / "ssl.yaml",
            "--wav_scp", work.data / name / "wav.scp", "--output_dir", folder / name, *layer,
        )


# ------------------------------------------------------------------------------------
# Runs
# ------------------------------------------------------------------------------------
class Plan(NamedTuple):
    """What follows a pre-training: the sets to fine-tune on, each from it, and to decode."""

    labelled: tuple[str, ...]
    decoded: tuple[str, ...]


PILOT = Plan(("train30",), ("dev",))  # the tests are for what is decided
WHOLE = Plan(("train30", "train10"), ("dev", *TESTED_ON))


def pretrain_words(work: Work, run: Run, folder: Path, config: Path) -> list:
    """The words of ``ssl_train``; it goes on from the scorer."""
    arm = ARMS[run.arm]
    words = ["-m", "espnet_atm", "-m", "espnet2.bin.ssl_train", "--config", config]
    words += ["--output_dir", folder, "--ngpu", 0, "--resume", "true"]
    for split, name in (("train", "pool"), ("valid", "dev")):
        streams = [(work.data / name / "wav.scp", "speech", "sound")]
        if arm.reads_scores:
            scores = work.root / "scores" / arm.track / name
            streams.append((scores / "confidence.scp", "confidence", "kaldi_ark"))
        if run.objective == "hubert":
            streams.append(
                (work.root / "kmeans" / name / "labels.scp", "text", "pseudo_labels")
            )
        words += stream(split, *streams)
    words += ["--train_shape_file", select_pool(work, arm.pool, run.seed)]
    words += ["--valid_shape_file", work.lists / "dev_shape"]
    start = work.root / "kmeans/scorer.pth"
    words += ["--init_param", f"{start}:preencoder:preencoder", f"{start}:encoder:encoder"]
    return words


def curves(folder: Path) -> dict[str, dict[str, list]]:
    """Each epoch's statistics of a training, from its checkpoint.

    None where one is not a number; without those that never are, as of parts that the model
    does not have.
    """
    import torch

    state = torch.load(folder / "checkpoint.pth", "cpu", weights_only=False)
    stats = state["reporter"]["stats"]
    found: dict[str, dict[str, list]] = {}
    for epoch in sorted(stats):
        for split in ("train", "valid"):
            for name, value in stats[epoch].get(split, {}).items():
                if isinstance(value, float) and not name.endswith("_time"):
                    found.setdefault(split, {}).setdefault(name, []).append(
                        float(f"{value:.5g}") if math.isfinite(value) else None
                    )
    return {
        split: {name: values for name, values in named.items() if set(values) != {None}}
        for split, named in found.items()
    }


def carry_out(work: Work, run: Run, plan: Plan) -> None:
    """Pre-train, fine-tune on each labelled set, decode; leave the results."""
    folder = work.root / "runs" / run.name
    go_on(folder, {
        "inputs": inputs(work, run),
        "ssl": None if run.arm == "N" else ssl_config(run),
        **{name: asr_config(None, name, run.seed) for name in plan.labelled},
    })
    file = folder / "steps.json"  # what is done, and how long it took
    steps = json.loads(file.read_text()) if file.is_file() else {"cpu": {}, "wall": {}}

    def step(name: str, do: Callable[[], float]) -> None:
        if name not in steps["cpu"]:
            begin = time.time()
            steps["cpu"][name] = round(do(), 1)
            steps["wall"][name] = round(time.time() - begin, 1)
            write_json(file, steps)

    exported = work.root / "start"
    if run.arm != "N":
        ssl = folder / "ssl"
        config = write_yaml(folder / "ssl.yaml", ssl_config(run))
        step("pretrain", lambda: work.command(
            folder / "ssl.log", *pretrain_words(work, run, ssl, config)
        ))
        exported = folder / "export"
        step("export", lambda: work.command(
            folder / "export.log", "-m", "espnet_atm.bin.export_ssl",
            "--ssl_train_config", ssl / "config.yaml",
            "--ssl_model_file", ssl / "latest.pth", "--output_dir", exported,
        ))
    for name in plan.labelled:
        step(name, lambda: train_asr(work, folder / name, name, run.seed, exported))
    decoded = folder / "decoded.json"
    step("decode", lambda: work.command(
        folder / "decode.log", HERE / "decode.py", "--data_dir", work.data,
        "--output", decoded, *(folder / name for name in plan.labelled),
        "--sets", *plan.decoded,
    ))
    pretrained = run.arm != "N"
    trained = [folder / name for name in (*(["ssl"] if pretrained else []), *plan.labelled)]
    write_json(work.result(run), {
        "objective": run.objective if pretrained else None,
        "arm": run.arm,
        "ratio": run.ratio if pretrained else None,
        "seed": run.seed,
        "cpu_seconds": steps["cpu"],
        "wall_seconds": steps["wall"],  # after a stop: since then
        "processor": processor(),
        "inputs": inputs(work, run),
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "curves": {x.name: curves(x) for x in trained},
        **json.loads(decoded.read_text(encoding="utf-8")),
    })
    (folder / MADE_OF).unlink()  # first: of half a folder nothing goes on
    for path in folder.iterdir():  # logs and configs stay, weights of 40 MB go
        if path.is_dir():
            shutil.rmtree(path)


def carry_out_all(
    work: Work,
    runs: list[Run],
    nj: int,
    plan: Plan,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """All runs that are not done, ``nj`` at a time, and when they will be.

    Args:
        prepare: done first, if any run is left.
    """
    left = [run for run in runs if not work.result(run).is_file()]
    earlier = [work.wall_seconds(run) for run in runs if run not in left]
    took: list[float] = []
    failed = []

    def forecast() -> str:
        remain = len(left) - len(took) - len(failed)
        known = took or earlier  # of this machine, if possible
        hours = f"{remain * sum(known) / len(known) / nj / 3600:.1f} h" if known else "? h"
        return f"{remain} to go, {hours}"

    print(f"{len(runs)} runs, {len(earlier)} done already; {forecast()}", flush=True)

    def one(run: Run) -> None:
        try:
            print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
            carry_out(work, run, plan)
        except Exception as error:  # the others go on, whatever it is
            if not isinstance(error, Failed):
                traceback.print_exc()
            failed.append(f"{run.name}: {error}")
            print(f"{time.strftime('%H:%M:%S')} {failed[-1]}", flush=True)
            return
        took.append(work.wall_seconds(run))
        print(f"{time.strftime('%H:%M:%S')} {run.name}: done in {took[-1] / 60:.1f} min; "
              f"{forecast()}", flush=True)

    if left:
        try:
            prepare()
        except Failed as error:
            sys.exit(f"before the runs: {error}")
    with ThreadPoolExecutor(nj) as pool:
        list(pool.map(one, left))
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


def show_pilot(work: Work) -> None:
    """CER on dev of each objective."""
    for run in pilot_runs():
        found = json.loads(work.result(run).read_text())
        curve = found["curves"]["train30"]["valid"]["cer_ctc"]
        print(f"{run.objective}: best CER on dev {100 * min(curve):.2f} %")


def time_steps(work: Work) -> None:
    """CPU seconds of 100 steps of pre-training, by objective, start-up included."""
    for objective in OBJECTIVES:
        run = Run(objective, "A", 0.40, PILOT_SEED)
        folder = work.root / "timing" / objective
        shutil.rmtree(folder, ignore_errors=True)
        config = ssl_config(run) | {"max_epoch": 1, "num_iters_per_epoch": 100}
        path = write_yaml(folder.with_suffix(".yaml"), config)
        seconds = work.command(
            folder.with_suffix(".log"), *pretrain_words(work, run, folder, path)
        )
        print(f"{objective}: 100 steps in {seconds:.1f} CPU seconds", flush=True)


def runs_of(stage: str, objective: str, second: str) -> list[Run]:
    """The runs of a stage: ``pilot``, ``main``, or ``further``, which has main's too."""
    if stage == "pilot":
        return pilot_runs()
    runs = main_runs(objective)
    return runs if stage == "main" else runs + further_runs(objective, second)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["time", "pilot", "main", "further"])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--work", type=Path, help="data and models, of one scorer; default: work in --results"
    )
    parser.add_argument("--nj", type=int, default=2, help="runs at a time")
    parser.add_argument("--objective", choices=OBJECTIVES, default="hubert")
    parser.add_argument("--second", choices=OBJECTIVES, default="best_rq")
    parser.add_argument(
        "--left", action="store_true",
        help=f"only say whether runs are left: exit code 0, else {NONE_LEFT}",
    )
    args = parser.parse_args(argv)
    work = Work((args.work or args.results / "work").resolve(), args.results.resolve())
    runs = [] if args.stage == "time" else runs_of(args.stage, args.objective, args.second)
    if args.stage in ("main", "further"):
        same_objectives(work, args.objective, args.second)
    if args.left:
        left = sum(not work.result(run).is_file() for run in runs)
        print(f"{len(runs)} runs, of which {len(runs) - left} are done")
        if args.stage == "pilot" and not left:
            show_pilot(work)
        sys.exit(0 if left else NONE_LEFT)
    os.environ["OMP_NUM_THREADS"] = "1"
    work.take()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, work.stop)
    try:
        write_lists(work)
    except Failed as error:
        sys.exit(str(error))
    if args.stage == "time":
        label(work)
        time_steps(work)
    elif args.stage == "pilot":
        carry_out_all(work, runs, args.nj, PILOT, lambda: label(work))
        show_pilot(work)
    else:
        def prepare() -> None:
            label(work)
            export_scorer(work)
            score(work)
            decode_scorer(work)
            describe(work, args.objective, args.second)

        carry_out_all(work, runs, args.nj, WHOLE, prepare)


if __name__ == "__main__":
    main()
