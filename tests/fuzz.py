#!/usr/bin/env python3
"""Damage what users hand over, case by case, and look at how each command ends.

    python tests/fuzz.py [--cases N] [--seed N]     prints the table of docs/reliability.md

A case damages one thing (an archive, a table, a side file, audio, weights, an option) and
runs one command of ours in a process of its own. It may refuse, in one line and with an
exit code; or end with the result of the undamaged run. Anything else is a fault: another
result, a traceback, a hang, or an input that the refusing command has changed.
"""

import argparse
import collections
import copy
import hashlib
import multiprocessing
import os
import random
import re
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

import numpy as np
import soundfile
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ASR_CONFIG, LOSSES, SSL_CONFIG  # noqa: E402

import espnet_atm.__main__  # noqa: E402

TIMEOUT = 60
UTTERANCES = 4
# What commands leave beside their results; no input of anyone.
LEFTOVERS = (".lock", "skipped.partial", "skipped", "scoring", "exported.json")
COMMANDS = {
    "score": "espnet_atm.bin.score",
    "summary": "espnet_atm.bin.summary",
    "report": "espnet_atm.bin.report",
    "export": "espnet_atm.bin.export_ssl",
    "train": "espnet2.bin.ssl_train",
}


class Ended(NamedTuple):
    """How a process ended: exit code, None when it hung, and what it said."""

    code: Optional[int]
    said: str


class Case(NamedTuple):
    """One damaged input.

    Args:
        kind: the fault, as the table names it.
        command: one of :data:`COMMANDS`.
        what: what is damaged and how, for the report of a failure.
        arguments: of the command.
        result: reads the command's result, to compare with the undamaged one.
        undamaged: that one; None where the case must be refused.
    """

    kind: str
    command: str
    what: str
    arguments: List[str]
    result: Callable[[], object]
    undamaged: object


def run_here(command: str, arguments: List[str], log: str) -> None:
    """What the process of a case does: what ``python -m`` would."""
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    # Not what pytest has put in their places.
    sys.stdout = sys.stderr = open(2, "w", closefd=False)
    if command == "train":
        sys.argv = ["espnet_atm", "-m", COMMANDS[command], *arguments]
        espnet_atm.__main__.main()
    else:
        sys.argv = [command, *arguments]
        runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


def run(command: str, arguments: List[str], log: Path) -> Ended:
    """Run a command in a process of its own, for a minute at most."""
    process = multiprocessing.get_context("fork").Process(
        target=run_here, args=[command, arguments, str(log)]
    )
    process.start()
    process.join(TIMEOUT)
    code = process.exitcode
    if code is None:
        os.killpg(process.pid, 9)
        process.join()
    return Ended(code, log.read_text(errors="replace"))


def judge(case: Case, ended: Ended) -> str:
    """``refused``, ``harmless``, or what went wrong."""
    if ended.code is None:
        return "HANG"
    if "Traceback (most recent call last)" in ended.said:
        return "TRACEBACK"
    if ended.code < 0:
        return f"KILLED by signal {-ended.code}"
    if ended.code > 0:
        last = ended.said.strip().splitlines()[-1:] or [""]
        # Ours, argparse's, or score's count of what it skipped by name.
        if not re.search(r"error: \S|have no score \(see ", last[0]):
            return "WITHOUT A WORD"
        return "refused"
    if case.undamaged is None or case.result() != case.undamaged:
        return "ANOTHER RESULT"
    return "harmless"


# --- what is damaged ------------------------------------------------------------------


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, zero, insert, repeat or replace."""
    how = rng.randrange(8)
    at = rng.randrange(len(data))
    end = min(at + rng.choice((1, 4, 64, 1024)), len(data))
    if how <= 2:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 3:
        return data[:at]
    if how == 4:
        return data[:at] + bytes(end - at) + data[end:]
    if how == 5:
        return data[:at] + rng.randbytes(end - at) + data[at:]
    if how == 6:
        return data[:at] + data[end:]
    return rng.choice((b"", b"\0" * len(data), rng.randbytes(len(data))))


def damage_table(data: bytes, rng: random.Random) -> bytes:
    """Exchange, drop, repeat, cut or garble lines of a Kaldi table."""
    lines = data.splitlines(keepends=True)
    one, other = rng.sample(range(len(lines)), 2)
    first, second = (lines[x].split(maxsplit=1) for x in (one, other))
    how = rng.randrange(10)
    if how <= 1:  # the values of two ids
        lines[one] = first[0] + b" " + second[1]
        lines[other] = second[0] + b" " + first[1]
    elif how == 2:
        del lines[one]
    elif how == 3:
        lines.insert(other, lines[one])
    elif how == 4:
        lines[one] = first[0] + b"\n"
    elif how == 5:
        lines[one] = first[0] + b" " + rng.choice(JUNK).encode() + b"\n"
    elif how == 6:
        lines[one] = b"\xef\xbb\xbf" + lines[one]
    elif how == 7:
        lines[one] = lines[one].replace(b" ", b"\xff ", 1)
    elif how == 8:
        lines[one] = lines[one].rstrip() + rng.choice((b"7\n", b" x\n", b"\r\n", b"|\n"))
    else:
        return damage_bytes(data, rng)
    return b"".join(lines)


JUNK = [
    *("", " ", "nan", "inf", "-inf", "1e300", "-1", "0", "0x10", "1,5", "640 640", "x"),
    *("FIFO", "٣", "1" * 40, "None", "true", "[]", "{}", "640.5", "640\n641", "\0", "null", "-640"),
]
WRONG = [  # for a number
    *(True, False, "0.4", "x", [], {}, [1], {"a": 1}, float("nan"), float("inf"), -1, -0.5),
    *(10**30, "", "nan", [None]),
]
WRONG_WORD = [True, 1, 0.5, [], {}, "x", ["atm"], {"atm": None}, "", "ATM", float("nan")]
WRONG_FLAG = [0, 1, None, "true", "false", "yes", "", [], {}, [True], {"a": True}, float("nan")]
WRONG_MAP = [True, 1, "x", [], [1], "masker: atm", {"x": 1}, {1: 2}, {"": None}]


def settings(rng: random.Random) -> Dict:
    """An impossible value somewhere in ssl_conf or in a loss's options."""
    ssl = {"masker": "atm", "loss_scale": "utterance"}
    places = [
        (("masker",), WRONG_WORD),
        (("loss_scale",), WRONG_WORD),
        (("crop_seconds",), [x for x in WRONG if x != 10**30] + [0, 1e-9]),
        (("masker_conf",), WRONG_MAP),
        (("masker_conf", "mask_ratio"), [*WRONG, 0, 1.5, None]),
        (("masker_conf", "span"), [*WRONG, 0, 1.5, None]),
        (("masker_conf", "strategy"), WRONG_WORD),
        (("masker_conf", "exact"), WRONG_FLAG),
        (("validation_masker",), WRONG_MAP),
        (("validation_masker", "mask_ratio"), [*WRONG, 0, 1.5, None]),
        (("validation_masker", "strategy"), WRONG_WORD),
        (("loss_scale_conf",), WRONG_MAP),
        (("loss_scale_conf", "average"), WRONG_WORD),
        (("loss_scale_conf", "frame_prob"), [*WRONG, 1.5]),
        (("track_conf",), WRONG_MAP),
        (("track_conf", "smooth"), [x for x in WRONG if x != 10**30] + [0, 1.5]),
        (("track_conf", "energy_gate"), [x for x in WRONG if x != 10**30] + [0]),
        (("scorer",), [x for x in WRONG_MAP if x != []] + [{"asr_train_config": "x"}]),
        (("unknown",), [1, None, "x"]),
        ((), [False, True, 1, "x", ["masker"], "atm", 0.5]),
    ]
    config: Dict = {"ssl_conf": ssl}
    if rng.random() < 0.6:
        path, values = rng.choice(places)
        value = copy.deepcopy(rng.choice(values))
        if not path:
            config["ssl_conf"] = value
        else:
            where = ssl
            for name in path[:-1]:
                where = where.setdefault(name, {})
            where[path[-1]] = value
        return config
    name = rng.choice(sorted(LOSSES))
    conf = dict(LOSSES[name])
    if rng.random() < 0.7:
        conf[rng.choice(sorted(conf))] = copy.deepcopy(rng.choice(WRONG))
        config["loss"] = [{"name": name, "conf": conf}]
    else:
        config["loss"] = rng.choice(
            [
                *({"name": name}, name, 3, [], [name], [{"conf": conf}], [{"name": []}]),
                *([{"name": "nothing", "conf": {}}], [{"name": name, "conf": [1]}]),
                [{"name": name, "conf": {"nothing": 1}}],
            ]
        )
    return config


class Material:
    """A corpus, a scorer, scores and a pre-training of it, and all as it was undamaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log"
        rng = np.random.default_rng(0)
        wavs, labels, shapes = [], [], []
        for number in range(UTTERANCES):
            # Two and two are equally long, so that their tracks can be exchanged.
            samples = 16000 + 4000 * (number // 2)
            speech = 0.1 * rng.standard_normal(samples)
            file = folder / f"utt{number}.{'flac' if number % 2 else 'wav'}"
            soundfile.write(file, speech, 16000, subtype="PCM_16")
            wavs.append(f"utt{number} {file}\n")
            values = rng.integers(0, 4, (samples - 400) // 160 + 1)
            labels.append(f"utt{number} {' '.join(map(str, values))}\n")
            shapes.append(f"utt{number} {samples}\n")
        (folder / "wav.scp").write_text("".join(wavs))
        (folder / "text").write_text("".join(labels))
        (folder / "shape").write_text("".join(shapes))
        (folder / "tokens.txt").write_text("0\n1\n2\n3\n<unk>\n")
        self._make_asr()
        self.scores = folder / "scores"
        self.exp = folder / "exp"
        self.export = folder / "export"
        self.inputs: Dict[Path, bytes] = {}
        self.undamaged: Dict[str, object] = {}
        for command in ("score", "summary", "report", "train", "export"):
            ended = run(command, self.arguments(command), self.log)
            if ended.code != 0:
                raise RuntimeError(f"undamaged {command}: {ended.said}")
            # Now, as a report adds to the summary.
            self.undamaged[command] = self.result(command)
            if command == "train":
                for name in ("config.yaml", "1epoch.pth"):
                    shutil.copy(self.exp / name, folder / f"ssl_{name}")
        self.remember()

    def special(self, name: str) -> str:
        """A path that a user may give by mistake."""
        path = self.folder / f"{name}.special"
        if name == "fifo" and not path.exists():
            os.mkfifo(path)
        if name == "empty":
            path.write_bytes(b"")
        if name == "strange":
            path.write_bytes(bytes(range(256)))
        return str(path)

    def _make_asr(self) -> None:
        from espnet2.tasks.asr import ASRTask

        conf = {**ASR_CONFIG}
        tokens = conf.pop("token_list")
        (self.folder / "asr_tokens.txt").write_text("\n".join(tokens) + "\n")
        (self.folder / "asr.yaml").write_text(yaml.safe_dump(conf))
        args = ASRTask.get_parser().parse_args(
            [
                *("--config", str(self.folder / "asr.yaml")),
                *("--token_list", str(self.folder / "asr_tokens.txt")),
            ]
        )
        torch.manual_seed(0)
        torch.save(ASRTask.build_model(args).state_dict(), self.folder / "asr.pth")
        (self.folder / "asr.yaml").write_text(yaml.safe_dump(vars(args)))

    def arguments(self, command: str, **changed: object) -> List[str]:
        """Of a command; ``changed`` goes over the YAML settings of training."""
        f = self.folder
        if command == "score":
            return [
                *("--asr_train_config", f"{f}/asr.yaml"),
                *("--asr_model_file", f"{f}/asr.pth"),
                *("--wav_scp", f"{f}/wav.scp", "--output_dir", f"{self.scores}"),
                *("--num_workers", "0"),
            ]
        if command == "summary":
            return ["--confidence_dir", str(self.scores)]
        if command == "report":
            return [
                *("--confidence_dir", str(self.scores), "--wav_scp", f"{f}/wav.scp"),
                *("--output_dir", str(f / "report"), "--num_examples", "1"),
            ]
        if command == "export":
            return [
                *("--ssl_train_config", f"{f}/ssl_config.yaml"),
                *("--ssl_model_file", f"{f}/ssl_1epoch.pth"),
                *("--output_dir", str(self.export)),
            ]
        config = {**SSL_CONFIG, "ssl_conf": SCALED, "batch_size": 2, **changed}
        (f / "train.yaml").write_text(yaml.safe_dump(config))
        command_line = ["--config", f"{f}/train.yaml", "--output_dir", str(self.exp)]
        command_line += ["--token_list", f"{f}/tokens.txt", "--token_type", "word"]
        for mode in ("train", "valid"):
            command_line += [f"--{mode}_shape_file", f"{f}/shape"]
            for stream in (
                f"{f}/wav.scp,speech,sound",
                f"{f}/text,text,text",
                f"{self.scores}/confidence.scp,confidence,kaldi_ark",
            ):
                command_line += [f"--{mode}_data_path_and_name_and_type", stream]
        return command_line

    def result(self, command: str) -> object:
        """What a command came for."""
        if command == "score":
            names = ("confidence.ark", "confidence.scp", "utt2confidence", "frame_shift")
            return [(self.scores / x).read_bytes() for x in names]
        if command == "summary":
            return (self.scores / "summary.json").read_bytes()
        if command == "report":
            text = (self.folder / "report" / "report.html").read_text()
            return re.sub(r"base64,[^\"]*", "", text)
        if command == "export":
            return _digest(self.export / "ssl_1epoch.pth")
        return _digest(self.exp / "1epoch.pth")

    def remember(self) -> None:
        """Keep the bytes of all inputs."""
        folders = (self.folder, self.scores)
        self.inputs = {
            x: x.read_bytes()
            for folder in folders
            for x in folder.iterdir()
            if x.is_file() and x.name not in LEFTOVERS and x != self.log
        }

    def restore(self) -> None:
        """Put all inputs back, and take results away."""
        for folder in (self.exp, self.export, self.folder / "report"):
            shutil.rmtree(folder, ignore_errors=True)
        for x in self.scores.iterdir() if self.scores.is_dir() else ():
            if x not in self.inputs:
                x.unlink() if not x.is_dir() else shutil.rmtree(x)
        for file, data in self.inputs.items():
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            if not file.is_file() or file.read_bytes() != data:
                file.unlink(missing_ok=True)
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)

    def state(self) -> Dict[Path, bytes]:
        """What a refusing command must leave as it is."""
        return {x: _bytes(x) for x in self.inputs if x.name != "train.yaml"}


SCALED = {"masker": "atm", "loss_scale": "utterance"}


def _bytes(file: Path) -> Optional[bytes]:
    try:
        return file.read_bytes() if file.is_file() else None
    except OSError:
        return None


def _digest(file: Path) -> str:
    state = torch.load(file, weights_only=True)
    return hashlib.sha256(
        b"".join(k.encode() + state[k].numpy().tobytes() for k in sorted(state))
    ).hexdigest()


# --- the cases ------------------------------------------------------------------------


def spoil(file: Path, data: bytes) -> None:
    """Put damaged bytes in place; times as they were, as on a disk that fails."""
    there = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(there.st_atime_ns, there.st_mtime_ns))


def damage_file(
    material: Material, file: Path, kind: str, commands, damage, rng: random.Random
) -> Case:
    """A file's bytes are damaged, and one of the commands that read it runs."""
    command = rng.choice(commands)
    data = damage(material.inputs[file], rng)
    data = data.replace(b"FIFO", material.special("fifo").encode())
    spoil(file, data)
    return Case(
        kind,
        command,
        f"{file.name}: {data[:200]!r}",
        material.arguments(command),
        lambda: material.result(command),
        material.undamaged[command],
    )


READERS = ("score", "summary", "train", "train", "report")


def damaged_ark(m: Material, rng: random.Random) -> Case:
    file = m.scores / "confidence.ark"
    return damage_file(m, file, "archive of tracks", READERS, damage_bytes, rng)


def damaged_scp(m: Material, rng: random.Random) -> Case:
    file = m.scores / "confidence.scp"
    return damage_file(m, file, "confidence.scp", READERS, damage_table, rng)


def damaged_means(m: Material, rng: random.Random) -> Case:
    file = m.scores / rng.choice(("utt2confidence", "utt2audio"))
    return damage_file(m, file, file.name, ("score", "train"), damage_table, rng)


def damaged_side_file(m: Material, rng: random.Random) -> Case:
    def damage(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return damage_bytes(data, rng)
        return (rng.choice((*JUNK, "639", "641", "320", "8000", "480.5")) + "\n").encode()

    names = ("frame_shift", "frame_offset", "sampling_rate", "scorer")
    file = m.scores / rng.choice(names)
    return damage_file(m, file, "side files", READERS, damage, rng)


def damaged_wav_scp(m: Material, rng: random.Random) -> Case:
    file = m.folder / "wav.scp"
    return damage_file(m, file, "wav.scp", ("score", "train"), damage_table, rng)


def damaged_labels(m: Material, rng: random.Random) -> Case:
    def damage(data: bytes, rng: random.Random) -> bytes:
        lines = data.splitlines(keepends=True)
        one = rng.randrange(len(lines))
        utt, _, labels = lines[one].partition(b" ")
        how = rng.randrange(6)
        if how == 0:
            del lines[one]
        elif how == 1:
            lines[one] = utt + b"\n"
        elif how == 2:
            lines[one] = utt + b" " + labels[: len(labels) // 2].rstrip() + b"\n"
        elif how == 3:
            junk = rng.choice((b"4", b"-1", b"x", b"1000000", b"\xff", b"1.5", b"<unk>"))
            lines[one] = utt + b" " + junk + labels[1:]
        elif how == 4:
            lines.insert(0, lines[one])
        else:
            lines[one] = utt + b" " + labels.rstrip() + labels
        return b"".join(lines)

    return damage_file(m, m.folder / "text", "labels", ("train",), damage, rng)


def damaged_audio(m: Material, rng: random.Random) -> Case:
    """Cut off, emptied, or replaced; of a WAV, a changed sample is another recording."""
    file = m.folder / f"utt{rng.randrange(UTTERANCES)}.wav"
    if not file.exists():
        file = file.with_suffix(".flac")

    def damage(data: bytes, rng: random.Random) -> bytes:
        how = rng.randrange(5)
        if how == 0:
            return data[: rng.randrange(len(data))]
        if how == 1:
            return rng.choice((b"", b"this is no audio", bytes(len(data))))
        if how == 2:
            return rng.randbytes(len(data))
        if how == 3 and file.suffix == ".flac":
            at = rng.randrange(200, len(data) - 100)
            return data[:at] + rng.randbytes(50) + data[at + 50 :]
        if command == "score":  # which knows no other audio of it yet
            return b""
        other = m.folder / f"utt{rng.randrange(UTTERANCES)}"
        for x in (other.with_suffix(".wav"), other.with_suffix(".flac")):
            if x in m.inputs:
                return m.inputs[x]
        return b""

    command = rng.choice(("score", "train"))
    case = damage_file(m, file, "audio", (command,), damage, rng)
    if command == "score":
        shutil.rmtree(m.scores)  # from the beginning: what is scored is not read again
    return case


def damaged_model(m: Material, rng: random.Random) -> Case:
    command = rng.choice(("score", "export"))
    if command == "score":
        names = ("asr.yaml", "asr.pth", "asr.pth")
    else:
        names = ("ssl_config.yaml", "ssl_1epoch.pth", "ssl_1epoch.pth")
    file = m.folder / rng.choice(names)
    if file.suffix == ".yaml":  # a changed value may be another legitimate config

        def damage(data: bytes, rng: random.Random) -> bytes:
            how = rng.randrange(6)
            if how == 0:
                return data[: rng.randrange(200)]
            if how == 1:
                key = rng.choice((b"encoder_conf:", b"frontend:", b"token_list:"))
                return data.replace(b"\n" + key, b"\n- " + key, 1)
            if how == 2:
                return data.replace(b"conformer", b"confromer")
            if how == 3:
                return re.sub(rb"num_blocks: \d+", b"num_blocks: 3", data)
            if how == 4:
                return re.sub(rb"output_size: \d+", b"output_size: x", data)
            return rng.choice((b"", b"\xff\xfe", b"a: [", b"- 1", b"x", b"\0"))

    else:
        damage = damage_bytes
    case = damage_file(m, file, "model and config", (command,), damage, rng)
    if command == "score":
        shutil.rmtree(m.scores)
    return case


def wrong_settings(m: Material, rng: random.Random) -> Case:
    config = settings(rng)
    arguments = m.arguments("train", **config)
    return Case("settings", "train", str(config), arguments, lambda: None, None)


def wrong_command_line(m: Material, rng: random.Random) -> Case:
    """A path that is none, a folder, a FIFO, empty or another's; a value of a wrong kind."""
    command = rng.choice(("score", "score", "summary", "report", "export", "train"))
    arguments = m.arguments(command)
    if rng.random() < 0.6 or command in ("summary", "export", "train"):
        paths = [
            i
            for i, x in enumerate(arguments)
            if x.startswith(str(m.folder)) and "output_dir" not in arguments[i - 1]
        ]
        at = rng.choice(paths)
        path, *stream = arguments[at].split(",")
        new = [str(m.folder)]
        new += [m.special(x) for x in ("none", "fifo", "empty", "strange")]
        if "," not in arguments[at]:
            new += ["", "/dev/null", "~"]
        arguments[at] = ",".join([rng.choice(new), *stream])
    else:
        options = {
            "--temperature": ["0", "-1", "nan", "inf", "x", ""],
            "--smooth": ["0", "-1", "1.5", "x", "nan"],
            "--energy_gate": ["0", "-1", "nan", "inf", "x", "true"],
            "--measure": ["x", "", "MAX"],
            "--batch_bins": ["0", "-1", "x", "nan"],
            "--num_workers": ["-1", "x"],
            "--max_skipped": ["-1", "x"],
            "--ngpu": ["x", "-1"],
            "--half": ["x", ""],
            "--nothing": ["1"],
        }
        if command == "report":
            options = {
                "--mask_ratio": ["-1", "2", "nan", "x"],
                "--span": ["0", "-1", "x", "1.5"],
                "--fs": ["0", "-1", "x"],
                "--max_utterances": ["0", "-1", "x"],
                "--num_examples": ["-1", "x"],
                "--utt2category": [m.special("none"), str(m.folder)],
            }
        name = rng.choice(sorted(options))
        arguments += [name, rng.choice(options[name])]
    if command == "score" and rng.random() < 0.5:
        shutil.rmtree(m.scores)
    return Case(
        "command line", command, str(arguments), arguments, lambda: None, None
    )


# Cases of each hundred.
KINDS = [
    (damaged_ark, 18),
    (damaged_scp, 12),
    (damaged_means, 8),
    (damaged_side_file, 12),
    (damaged_wav_scp, 8),
    (damaged_labels, 6),
    (damaged_audio, 8),
    (damaged_model, 10),
    (wrong_settings, 10),
    (wrong_command_line, 8),
]


class Outcome(NamedTuple):
    """A case and how it ended."""

    seed: str
    case: Case
    verdict: str
    said: str


def preload() -> None:
    """Import what the processes need, which they inherit."""
    import importlib

    torch.set_num_threads(1)
    for module in (*COMMANDS.values(), "espnet_atm.scorer", "espnet_atm.task"):
        importlib.import_module(module)


def fuzz(cases: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """Run so many cases; the same for the same seed."""
    preload()
    material = Material(folder)
    weights = [weight for _, weight in KINDS]
    for number in range(cases):
        rng = random.Random(f"{seed}-{number}")
        make = rng.choices([kind for kind, _ in KINDS], weights)[0]
        material.restore()
        case = make(material, rng)
        before = material.state()
        ended = run(case.command, case.arguments, material.log)
        verdict = judge(case, ended)
        after = material.state()
        lost = [x.name for x, y in before.items() if y not in (None, after[x])]
        if verdict == "refused" and lost:
            verdict = f"CHANGED {', '.join(lost)}"
        yield Outcome(f"{seed}-{number}", case, verdict, ended.said)


def table(outcomes: List[Outcome]) -> str:
    """Counts by kind, in Markdown."""
    rows = ["| what is damaged | tried | refused by name | harmless | wrong |"]
    rows.append("| --- | ---: | ---: | ---: | ---: |")
    counts = collections.defaultdict(collections.Counter)
    for x in outcomes:
        good = x.verdict in ("refused", "harmless")
        counts[x.case.kind][x.verdict if good else "wrong"] += 1
        counts["all"][x.verdict if good else "wrong"] += 1
    for kind in sorted(counts, key=lambda x: (x == "all", x)):
        row = [counts[kind][x] for x in ("refused", "harmless", "wrong")]
        rows.append(f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} |")
    return "\n".join(rows)


def main() -> None:
    """Run, show what is wrong, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin, outcomes = time.time(), []
    with tempfile.TemporaryDirectory() as folder:
        for x in fuzz(args.cases, args.seed, Path(folder)):
            outcomes.append(x)
            if x.verdict not in ("refused", "harmless"):
                print(f"{x.seed} {x.verdict}: {x.case.command}, {x.case.what}")
                print("    " + "\n    ".join(x.said.strip().splitlines()[-3:]))
                sys.stdout.flush()
    print(f"\n{table(outcomes)}\n\n{len(outcomes)} cases, seed {args.seed},", end=" ")
    print(f"{time.time() - begin:.0f} s")
    if any(x.verdict not in ("refused", "harmless") for x in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
