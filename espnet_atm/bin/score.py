"""Score utterances with an ESPnet CTC model: one confidence a frame, one byte each.

Writes into ``--output_dir``

- ``confidence.ark``, ``confidence.scp``: (frames, 1), Kaldi's one-byte compression of
  [0, 1]; ESPnet reads them as ``DIR/confidence.scp,confidence,kaldi_ark``;
- ``utt2confidence``: the mean over each utterance, Eq. 5;
- ``frame_shift``, ``frame_offset``: samples between frames, centre of the first, at
  the ``sampling_rate`` of the scorer, in Hz;
- ``scorer``: what made the scores; others are not mixed in;
- ``utt2audio``: what audio was scored, and a checksum of each track: ``utt samples Hz
  checksum source track``; where a source is another by now, its audio is compared;
- ``skipped``: utterances without a score, and why;
- ``scoring``, while it runs: the utterances at work and their seconds.

Nothing that is there and was not made by this program is written over.

Utterances above ``--max_seconds`` are scored in overlapping windows, an approximation
that bounds the memory: a scorer that sees the whole may differ a little in each frame.

Reads what Kaldi users have: ``wav.scp`` with files, pipes and archives, and
``segments``. Audio at another rate than the scorer's is resampled.

Run it again after any end, and it goes on where it was.
"""

import argparse
import ctypes
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import signal
import sys
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    Dict,
    Hashable,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Sequence,
    TextIO,
    Tuple,
    Union,
)

import kaldiio
import numpy as np
import torch
from espnet2.utils.types import float_or_none, str2bool
from tqdm import tqdm

from espnet_atm.audio import AudioDataset, AudioError, Table
from espnet_atm.confidence import MEASURES, check_refinement, is_positive
from espnet_atm.errors import UserError, check_file, one_line_errors
from espnet_atm.speech import describe_gate
from espnet_atm.track import (
    AUDIO_COLUMNS,
    SOURCE,
    mean_text,
    has_id,
    read_grid_files,
    read_record,
    read_scorer,
)

if TYPE_CHECKING:
    from espnet_atm.scorer import Scorer

# Utterances that are sorted by length into batches, of no more audio than this at a
# time, while as many again are taken over, and so many are read by each process.
WINDOW = 128
PART_SECONDS = 3600
READ_AHEAD = 4
MAX_WORKERS = 8
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends
# Audio of a batch, padding included, on a CPU and on a GPU. What a larger batch computes
# does not stay in a CPU's caches: 100 s are a quarter slower than 30 s.
BATCH_SECONDS = (30, 1000)
# Audio that is encoded at once: memory grows with its square (benchmarks/long_memory.py).
# The recipe's longest utterances are not cut.
MAX_SECONDS = 65
LEAST_SECONDS = 10
# What is written here; with `scorer`, which comes first, all of it is this program's.
GROWING = ("confidence.ark", "confidence.scp", "utt2confidence", "utt2audio")
GRID = ("frame_shift", "frame_offset", "sampling_rate")
OUTPUTS = (*GROWING, *GRID, "skipped", "skipped.partial", "scoring")
ONE_BYTE_ZERO_ONE = 7  # Kaldi's kOneByteZeroOne: steps of 1/255
TOO_SHORT = "{} samples are too short for one frame"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--asr_train_config", required=True)
    parser.add_argument("--asr_model_file", required=True)
    parser.add_argument("--wav_scp", required=True, help="what to score")
    parser.add_argument("--segments", help="Kaldi's, when recordings are cut by it")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--ngpu", type=int, default=0, help="0: CPU, 1: GPU")
    parser.add_argument(
        "--half",
        type=str2bool,
        default=True,
        help="on a GPU, compute in bfloat16 or float16",
    )
    parser.add_argument(
        "--batch_bins",
        type=int,
        help="samples of a batch, padding included (default: {} s, on a GPU {} s)".format(
            *BATCH_SECONDS
        ),
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=MAX_SECONDS,
        help="score what is longer in overlapping windows of so many seconds; inf: "
        "whatever the length",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        help="processes that read audio (default: 1; with a GPU one for each core that "
        f"may be used, {MAX_WORKERS} at most)",
    )
    parser.add_argument("--measure", default="max", choices=MEASURES)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--exclude_blank", action="store_true", help="let the blank not compete"
    )
    parser.add_argument(
        "--smooth", type=int, default=1, help="average over so many frames"
    )
    parser.add_argument(
        "--energy_gate",
        type=float_or_none,
        help="no confidence for frames so many dB below the utterance's loud ones",
    )
    parser.add_argument(
        "--speech_gate",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="take the confidence times the probability, by silero-vad, that a frame is "
        "speech",
    )
    parser.add_argument(
        "--max_skipped",
        type=int,
        default=0,
        help="more skipped utterances than this end with exit code 1",
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before anything is loaded or written.

    Raises:
        UserError: naming the option and its value.
    """
    check_refinement(args.smooth, args.energy_gate)
    if not is_positive(args.temperature):
        raise UserError(
            f"temperature: {args.temperature} is not a positive number; write e.g. 2"
        )
    if not args.max_seconds >= LEAST_SECONDS:
        raise UserError(f"max_seconds: {args.max_seconds} is less than {LEAST_SECONDS}")
    for name, least in (("batch_bins", 1), ("num_workers", 0), ("max_skipped", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{name}: {value} is less than {least}")


def num_workers(args: argparse.Namespace) -> int:
    """Processes that read audio: a GPU is not to wait for a single one."""
    if args.num_workers is not None:
        return args.num_workers
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if args.ngpu else 1


def measure_options(args: argparse.Namespace) -> Dict:
    """The command line's options of ``Scorer.score``."""
    return {
        "measure": args.measure,
        "temperature": args.temperature,
        "include_blank": not args.exclude_blank,
        "smooth": args.smooth,
        "energy_gate": args.energy_gate,
        "speech_gate": args.speech_gate,
    }


def describe_scorer(args: argparse.Namespace) -> Dict:
    """Checksums of the models, and the measure: what the scores depend on."""

    def digest(file: str) -> str:
        check_file(file)
        with open(file, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    return {
        "model": digest(args.asr_model_file),
        "config": digest(args.asr_train_config),
        **measure_options(args),
        "speech_gate": describe_gate() if args.speech_gate else None,
    }


def write_once(file: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as f:
        f.write(text + "\n")
        f.flush()
        os.fsync(f.fileno())
    partial.replace(file)


def refuse_foreign(output_dir: Path) -> None:
    """Refuse a folder with files that this program would change and did not make.

    Raises:
        UserError: naming the first of them.
    """
    scorer = read_scorer(output_dir)
    if scorer is not None:
        if not {"model", "config"} <= scorer.keys():
            raise UserError(
                f"{output_dir / 'scorer'}: does not say what made the scores; give "
                "another --output_dir, or remove that one"
            )
        return
    for name in OUTPUTS:
        file = output_dir / name
        # Empty ones are of a run that ended at once.
        if file.is_symlink() or file.exists() and (
            not file.is_file() or file.stat().st_size
        ):
            raise UserError(
                f"{file} was not made by espnet_atm.bin.score, which leaves a file "
                "scorer beside it, and is not written over; give another --output_dir"
            )


class ScoreWriter:
    """The growing files, kept in step however the last run ended.

    Records go to the ark, then to the scp, to ``utt2confidence`` and to ``utt2audio``;
    on opening, each is looked at, and all are cut back to the records that all four hold
    whole. Cut is what a run that was killed leaves: an end that is not whole. One
    process at a time: another one waits until this one has ended, however it ends.

    Args:
        output_dir: where the files are.
        utterances: what is to be scored.

    Attributes:
        records: how many utterances are scored.
        done: which ones (len(utterances),), bool.
        longest: seconds of the longest one that is scored, and its id.
        skipped: how many were left out since this was opened.

    Raises:
        UserError: when there are scores of other utterances, or something is damaged
            that is followed by whole records, or was not made here.
    """

    def __init__(self, output_dir: Path, utterances: Table):
        self.dir = output_dir
        self.utterances = utterances
        refuse_foreign(output_dir)
        self.lock = open(output_dir / ".lock", "a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logging.warning(f"{output_dir}: another process scores here; waiting")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.skipped = 0
        try:
            self._open()
        except BaseException:
            self.lock.close()  # not only when this is collected
            raise

    def _open(self) -> None:
        """Open the files at the end of what is whole."""
        refuse_foreign(self.dir)  # again: another process may have begun it
        self._refuse_earlier_version()
        self.ark, self.scp, self.means, self.audio = (
            open(self.dir / name, "a+b") for name in GROWING
        )
        lists = (self.scp, self.means, self.audio)
        ends = [_line_ends(f) for f in lists]
        self.longest = (0.0, "")
        self.records, size = self._find_whole(min(map(len, ends)) - 1)
        self.done = self._find_done()
        self.ark.truncate(size)
        for f, places in zip(lists, ends):
            f.truncate(places[self.records])
        self._name_the_ark()
        for f in (self.ark, self.scp, self.means, self.audio):
            f.seek(0, os.SEEK_END)
        self.reasons = open(self.dir / "skipped.partial", "w", encoding="utf-8")

    def _refuse_earlier_version(self) -> None:
        scp = self.dir / "confidence.scp"
        there = scp.exists() and scp.stat().st_size
        if there and not (self.dir / "utt2audio").exists():
            raise UserError(
                f"{self.dir} holds scores and no utt2audio: they are of an earlier "
                "version, which did not note what audio it scored, or of another place; "
                "they can be trained with, and not gone on with: give another "
                "--output_dir, or remove that one"
            )

    def _find_whole(self, records: int) -> Tuple[int, int]:
        """How many records are whole, and where the last one ends in the ark."""
        for f in (self.scp, self.means, self.audio):
            f.seek(0)
        whole, size, bad = 0, 0, None
        lines = zip(self.scp, self.means, self.audio)
        for number, columns in enumerate(
            tqdm(
                itertools.islice(lines, records),
                total=records,
                unit="utt",
                mininterval=5,
                delay=5,
                desc="looking at what is scored",
            ),
            1,
        ):
            there, end, why = self._look_at(number, columns, size)
            if bad is None and not why:
                whole, size = number, end
                continue
            if bad is None:
                bad = why
            if there:  # and so it was not cut off
                raise UserError(
                    f"{bad}; the scores in {self.dir} are damaged: take that file from "
                    "a backup, or remove the folder and score again"
                )
        if bad:
            logging.warning(f"{bad}: {records - whole} at the end are scored again")
            self._refuse_others(whole)
        return whole, size

    def _look_at(
        self, number: int, columns: Tuple[bytes, ...], begin: int
    ) -> Tuple[bool, int, str]:
        """Whether a record's track is in the ark, where it ends, and what is wrong."""
        scp, means, audio = (
            line.decode("utf-8", errors="replace").strip().split(maxsplit=most)
            for line, most in zip(columns, (1, -1, -1))
        )
        utt = scp[0] if scp else "?"
        where = f"{self.scp.name}:{number}: {utt}"
        found = SOURCE.fullmatch(scp[1]) if len(scp) == 2 else None
        if not found or found[3]:
            return False, 0, f"{where}: its line is damaged"
        offset = int(found[2])
        try:
            if not has_id(self.ark, offset, utt):
                return False, 0, f"{where}: its track is not in {self.ark.name}"
            self.ark.seek(offset)
            track, checksum = read_record(self.ark)
        except Exception as e:  # kaldiio raises all sorts of things on what is cut off
            return False, 0, f"{where}: its track in {self.ark.name} is damaged: {e}"
        end = self.ark.tell()
        for name, line, width in (
            ("utt2confidence", means, 2),
            ("utt2audio", audio, AUDIO_COLUMNS),
        ):
            if len(line) != width or line[0] != utt:
                return True, end, f"{self.dir / name}:{number}: is not the line of {utt}"
        if checksum != audio[5]:
            return True, end, (
                f"{where}: its track in {self.ark.name} does not have the checksum that "
                f"utt2audio says"
            )
        if offset - len(utt.encode()) - 1 != begin:
            return True, end, f"{where}: its track is not the next one in {self.ark.name}"
        if columns[1] != f"{utt} {mean_text(track)}\n".encode():
            return True, end, (
                f"{self.dir / 'utt2confidence'}:{number}: {utt}: {means[1]} is not the "
                f"mean of its track, {mean_text(track)}"
            )
        try:
            seconds = int(audio[1]) / int(audio[2])
        except (ValueError, ZeroDivisionError):
            return True, end, f"{self.dir / 'utt2audio'}:{number}: {utt}: is damaged"
        self.longest = max(self.longest, (seconds, utt))
        return True, end, ""

    def _refuse_others(self, number: int) -> None:
        """Leave a list that others made of several folders' tracks alone."""
        self.scp.seek(0)
        line = next(itertools.islice(self.scp, number, None))
        text = line.decode("utf-8", errors="replace").strip()
        found = SOURCE.fullmatch(text.partition(" ")[2])
        if found and os.path.exists(found[1]):
            if not os.path.samefile(found[1], self.ark.name):
                raise UserError(
                    f"{self.scp.name} lists tracks of another folder, {found[1]}, and is "
                    "not written over; give another --output_dir"
                )

    def _find_done(self) -> np.ndarray:
        done = np.zeros(len(self.utterances), dtype=bool)
        strangers, first = 0, None
        self.scp.seek(0)
        for line in itertools.islice(self.scp, self.records):
            name = line.split()[0].decode("utf-8")
            index = self.utterances.find(name)
            if index is None:
                strangers += 1
                first = name if first is None else min(first, name)
            elif done[index]:
                raise UserError(f"{self.scp.name}: {name} is in it twice: it is damaged")
            else:
                done[index] = True
        if strangers:
            raise UserError(
                f"{self.dir} holds scores of utterances that are not in "
                f"{self.utterances.path}: {first} and {strangers - 1} more; give another "
                "--output_dir, or remove that folder"
            )
        return done

    def sources(self) -> Iterator[Tuple[int, List[str]]]:
        """Number and row in ``utt2audio`` of each utterance that is scored."""
        self.audio.seek(0)
        for line in self.audio:
            row = line.decode().split()
            yield self.utterances.find(row[0]), row

    def replace_sources(self, hashes: Dict[str, str]) -> None:
        """Note that the same audio comes from elsewhere, by utterance."""
        if not hashes:
            return
        rows = (
            (*row[:4], hashes.get(row[0], row[4]), row[5]) for _, row in self.sources()
        )
        self.audio = self._rewrite(self.audio, rows)

    def _name_the_ark(self) -> None:
        """Let the scp name the ark where it is by now, in a folder that was moved."""
        ark = str(self.dir / "confidence.ark")
        places = {ark: True}
        self.scp.seek(0)
        rows = []
        for line in self.scp:
            utt, source = line.decode().split(maxsplit=1)
            path, _, offset = source.rstrip().rpartition(":")
            if path not in places:
                places[path] = os.path.exists(path) and os.path.samefile(path, ark)
            rows.append((utt, f"{path if places[path] else ark}:{offset}"))
        if not all(places.values()):
            logging.info(f"{self.scp.name}: names another place of the ark: mended")
            self.scp = self._rewrite(self.scp, rows)

    def _rewrite(self, file: BinaryIO, rows: Iterable[Sequence[str]]) -> BinaryIO:
        """Exchange a file's lines, all at once; returns it open at its end."""
        partial = Path(file.name + ".partial")
        with partial.open("w", encoding="utf-8") as f:
            f.writelines(" ".join(row) + "\n" for row in rows)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(file.name)
        file.close()
        file = open(file.name, "a+b")
        file.seek(0, os.SEEK_END)
        return file

    def write(self, scores: Dict[int, np.ndarray], audio: Dict[int, str]) -> None:
        """Store utterances, by their numbers.

        Args:
            scores: (T,), float32 in [0, 1].
            audio: samples, Hz, checksum and source of what was scored.
        """
        places, means, records = [], [], []
        for index, confidence in scores.items():
            utt = self.utterances[index][0]
            buffer = io.BytesIO()
            kaldiio.save_ark(
                buffer,
                {utt: confidence[:, None].astype(np.float32)},
                compression_method=ONE_BYTE_ZERO_ONE,
            )
            name = len(utt.encode()) + 1
            position = self.ark.tell() + name
            self.ark.write(buffer.getbuffer())
            places.append(f"{utt} {self.dir / 'confidence.ark'}:{position}\n")
            buffer.seek(name)
            track, checksum = read_record(buffer)
            means.append(f"{utt} {mean_text(track)}\n")
            records.append(f"{utt} {audio[index]} {checksum}\n")
        self.ark.flush()
        # Even if the machine breaks down, the scp names nothing that is not there.
        os.fsync(self.ark.fileno())
        for f, lines in (
            (self.scp, places),
            (self.means, means),
            (self.audio, records),
        ):
            f.write("".join(lines).encode())
            f.flush()
        self.done[list(scores)] = True
        self.records += len(scores)

    def note(self, utterances: Dict[str, float]) -> None:
        """Write down what is at work, and how many seconds each lasts."""
        lines = (f"{utt} {seconds:.3f}\n" for utt, seconds in utterances.items())
        (self.dir / "scoring").write_text("".join(lines), encoding="utf-8")

    def tell_of_the_last(self) -> None:
        """Name what was being scored when the last run died."""
        file = self.dir / "scoring"
        if not file.exists():
            return
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            utt, _, seconds = lines[0].rpartition(" ")
            more = f" and {len(lines) - 1} more" if lines[1:] else ""
            logging.warning(
                f"the last run ended while it scored {utt}, {seconds} s long,{more}; if "
                "it was killed for its memory, smaller --max_seconds and --batch_bins "
                "need less"
            )

    def skip(self, index: int, why: str) -> None:
        """Note why an utterance has no score, in one line."""
        line = f"{self.utterances[index][0]} {' '.join(why.split())}"
        logging.warning(f"skipped {line}")
        self.reasons.write(line + "\n")
        self.skipped += 1

    def __enter__(self) -> "ScoreWriter":
        return self

    def __exit__(self, error, *_) -> None:
        with self.lock:  # let go last, and also when the disk is full
            for f in (self.ark, self.scp, self.means, self.audio, self.reasons):
                f.close()
            if error is None:
                (self.dir / "scoring").unlink(missing_ok=True)
                (self.dir / "skipped.partial").replace(self.dir / "skipped")


def _line_ends(file: BinaryIO) -> array:
    """0, and where each line that is whole ends."""
    ends = array("Q", [0])
    file.seek(0)
    for line in file:
        if line.endswith(b"\n"):
            ends.append(ends[-1] + len(line))
    return ends


def claim(output_dir: Path, scorer: Dict, anew: bool = False) -> None:
    """Tie a folder to what makes its scores; refuse one of another scorer.

    Args:
        output_dir: where the scores are.
        scorer: what is known of their maker; goes into the file ``scorer``.
        anew: whether nothing is scored, so that an earlier claim is void.

    Raises:
        UserError: naming what differs.
    """
    there = {} if anew else read_scorer(output_dir) or {}
    other = [x for x in scorer if x in there and there[x] != scorer[x]]
    if other:
        differences = ", ".join(
            f"{x}: {json.dumps(there[x])}, now {json.dumps(scorer[x])}" for x in other
        )
        raise UserError(
            f"{output_dir} holds scores of another scorer or measure ({differences}); "
            "give another --output_dir, or remove that one"
        )
    if not scorer.keys() <= there.keys():
        write_once(output_dir / "scorer", json.dumps({**there, **scorer}))


def claim_length(output_dir: Path, max_seconds: float, longest: Tuple[float, str]) -> None:
    """Refuse to mix utterances scored in windows of other lengths, or as a whole.

    Args:
        output_dir: where the scores are.
        max_seconds: the longest that is to be scored as a whole.
        longest: seconds of the longest utterance that is scored, and its id.

    Raises:
        UserError: naming both lengths.
    """
    seconds, utt = longest
    there = (read_scorer(output_dir) or {}).get("max_seconds", math.inf)
    if seconds > min(max_seconds, there) and max_seconds != there:
        how = "as a whole" if there == math.inf else f"in windows of {there} s"
        raise UserError(
            f"max_seconds: {output_dir} holds scores of utterances that were scored "
            f"{how}, e.g. {utt} of {seconds:.1f} s, and is not gone on with at "
            f"{max_seconds}; give --max_seconds {there} or another --output_dir"
        )


def compare_sources(
    args: argparse.Namespace, dataset: AudioDataset, writer: ScoreWriter
) -> None:
    """Refuse scores of other audio than the lists name by now.

    Where a source is the one that was scored, its audio is not read; where it is
    elsewhere or was written again, the samples are compared.

    Args:
        args: the command line.
        dataset: the utterances, at their own sampling rates.
        writer: has those that are scored.

    Raises:
        UserError: naming the first that differs.
    """
    changed = {}
    for index, row in writer.sources():
        if dataset.source_hash(index) != row[4]:
            changed[index] = row
    if not changed:
        return
    logging.info(f"{len(changed)} scored utterances come from elsewhere: comparing")
    hashes, other, gone = {}, [], []
    records = torch.utils.data.DataLoader(
        _Records(dataset),
        batch_size=None,
        sampler=list(changed),
        collate_fn=_as_it_is,
        **reading(args, writer),
    )
    for (index, row), found in zip(
        changed.items(),
        tqdm(records, total=len(changed), unit="utt", mininterval=5, delay=5),
    ):
        if found.startswith("no such file"):
            gone.append(row[0])
        elif found == " ".join(row[1:4]):
            hashes[row[0]] = dataset.source_hash(index)
        else:
            other.append((row[0], found, " ".join(row[1:4])))
    if gone:
        logging.warning(
            f"the audio of {len(gone)} scored utterances is not there any more, e.g. of "
            f"{gone[0]}: their scores stay"
        )
    if other:
        utt, found, scored = other[0]
        raise UserError(
            f"{writer.dir} holds scores of other audio for {len(other)} utterances, e.g. "
            f"{utt}: what {dataset.recordings.path} names now is not what was scored "
            f"({found}; scored: {scored}: samples, Hz, checksum); give another "
            "--output_dir, or remove that one"
        )
    writer.replace_sources(hashes)


def check_grid(output_dir: Path) -> None:
    """Put back the files with single numbers that a run that was killed left out.

    Raises:
        UserError: when one says something else than ``scorer``.
    """
    scorer = read_scorer(output_dir) or {}
    for name in GRID:
        if name in scorer and not (output_dir / name).exists():
            write_once(output_dir / name, str(scorer[name]))
    read_grid_files(output_dir)


def score_all(args: argparse.Namespace) -> int:
    """Score what is not scored yet; return how many utterances have no score."""
    check_options(args)
    segments = None if args.segments is None else Path(args.segments)
    dataset = AudioDataset(Path(args.wav_scp), segments=segments)
    if not len(dataset):
        raise UserError(f"{dataset.utterances.path} is empty: there is nothing to score")
    scorer = describe_scorer(args)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with ScoreWriter(output_dir, dataset.utterances) as writer:
        claim(output_dir, scorer, anew=not writer.records)
        if writer.records:
            check_grid(output_dir)
            claim_length(output_dir, args.max_seconds, writer.longest)
            compare_sources(args, dataset, writer)
        writer.tell_of_the_last()
        logging.info(
            f"{len(dataset)} utterances, {writer.records} of them scored already"
        )
        if not writer.done.all():
            score_corpus(args, load_scorer(args), dataset, writer)
        logging.info(f"{writer.records} scored, {writer.skipped} skipped")
    return writer.skipped


def load_scorer(args: argparse.Namespace) -> "Scorer":
    """The model that the command line names."""
    # Imported late: a finished folder must not wait for ESPnet's imports.
    from espnet_atm.scorer import Scorer

    return Scorer.from_files(
        args.asr_train_config,
        args.asr_model_file,
        "cuda" if args.ngpu else "cpu",
        half=args.half and args.ngpu > 0,
    )


def score_corpus(
    args: argparse.Namespace,
    scorer: "Scorer",
    dataset: AudioDataset,
    writer: ScoreWriter,
) -> None:
    """Score window by window.

    Windows begin at the same utterances in each run, and a window is batched as a
    whole, even where a part of it is scored already: so the scores do not depend on
    where an earlier run ended, to the last bit.

    Args:
        args: the command line.
        scorer: the model.
        dataset: the utterances; from here on they have the scorer's sampling rate.
        writer: has those that are scored already, and gets the others.
    """
    dataset.sampling_rate = scorer.sampling_rate
    grid = {
        "frame_shift": scorer.grid.shift,
        "frame_offset": scorer.grid.offset,
        "sampling_rate": scorer.sampling_rate,
    }
    claim(writer.dir, grid)
    for name, value in grid.items():
        write_once(writer.dir / name, str(value))
    logging.info(
        f"scorer frames: every {scorer.grid.shift} samples at {scorer.sampling_rate} Hz"
    )
    alone = scorer.depends_on_padding(**measure_options(args))
    if alone:
        logging.warning(
            "the scorer's scores depend on the padding of a batch: only utterances of "
            "the same length are scored together"
        )
    seconds = BATCH_SECONDS[args.ngpu > 0]
    batch_bins = args.batch_bins or seconds * scorer.sampling_rate
    max_samples = args.max_seconds * scorer.sampling_rate
    options = measure_options(args)

    windows = [
        range(start, min(start + WINDOW, len(dataset)))
        for start in range(0, len(dataset), WINDOW)
        if not writer.done[start : start + WINDOW].all()
    ]
    audio = iter(
        torch.utils.data.DataLoader(
            _Recordings(dataset),
            batch_size=None,
            sampler=itertools.chain.from_iterable(windows),
            collate_fn=_as_it_is,
            **reading(args, writer),
        )
    )
    bar = tqdm(
        initial=len(dataset) - sum(map(len, windows)),
        total=len(dataset),
        unit="utt",
        mininterval=5,
    )

    def read() -> Iterator[Part]:
        """Parts of windows, with their audio."""
        for window in windows:
            first, samples, part = window.start, 0, Part({}, {}, {})
            for index in window:
                found, record = next(audio)
                if isinstance(found, str):
                    part.skipped[index] = found
                elif scorer.is_too_short(len(found)):
                    part.skipped[index] = TOO_SHORT.format(len(found))
                else:
                    part.speech[index], part.records[index] = found, record
                    samples += len(found)
                if samples > PART_SECONDS * scorer.sampling_rate or index == window[-1]:
                    yield part._replace(utterances=range(first, index + 1))
                    first, samples, part = index + 1, 0, Part({}, {}, {})

    def note(batch: List[int], lengths: Dict[int, int]) -> None:
        if lengths[batch[0]] > max_samples:
            # Now it matters, and not before.
            claim(writer.dir, {"max_seconds": args.max_seconds})
        writer.note(
            {
                dataset.utterances[index][0]: lengths[index] / scorer.sampling_rate
                for index in batch
            }
        )

    # Taking audio over from the reading processes must not wait for the scorer either.
    with ThreadPoolExecutor(1) as reader:
        parts = read()
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            scores = score_window(
                *(scorer, part.speech, batch_bins, alone, options, part.skipped),
                *(max_samples, note),
            )
            writer.write(
                {
                    index: scores[index]
                    for index in part.utterances
                    if index in scores and not writer.done[index]
                },
                part.records,
            )
            for index in sorted(part.skipped):
                writer.skip(index, part.skipped[index])
            bar.update(len(part.utterances))
    bar.close()


class Part(NamedTuple):
    """A part of a window.

    Args:
        speech: samples of each utterance (N,), as :func:`_pack` leaves them.
        records: what tells its audio from other, as ``utt2audio`` has it.
        skipped: why others have no score.
        utterances: the numbers of all of them.
    """

    speech: Dict[int, np.ndarray]
    records: Dict[int, str]
    skipped: Dict[int, str]
    utterances: range = range(0)


class _Recordings(torch.utils.data.Dataset):
    """What the reading processes hand over of each utterance: audio and its record."""

    def __init__(self, dataset: AudioDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tuple[Union[np.ndarray, str], str]:
        source = self.dataset.source_hash(index)  # before it may change
        try:
            audio, record = self.dataset.load(index)
        except AudioError as e:
            return str(e), ""
        return _pack(audio), f"{record} {source}"


class _Records(_Recordings):
    """The record alone, or why there is none."""

    def __getitem__(self, index: int) -> str:
        try:
            return self.dataset.load(index)[1]
        except AudioError as e:
            return str(e)


def reading(args: argparse.Namespace, writer: ScoreWriter) -> Dict[str, Any]:
    """Options of a DataLoader that reads audio."""
    workers = num_workers(args)
    return {
        "num_workers": workers,
        "worker_init_fn": functools.partial(_begin_reading, writer.lock, os.getpid()),
        "multiprocessing_context": "fork" if workers else None,
        "prefetch_factor": READ_AHEAD if workers else None,
    }


def _as_it_is(found: Any) -> Any:
    """Tensors would come through shared memory, which containers lack."""
    return found


def _begin_reading(lock: TextIO, parent: int, _: int) -> None:
    """Let a reading process neither hold the lock nor outlive a run that is killed.

    It would wait for ever for someone to take its audio.
    """
    lock.close()
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        logging.warning("reading processes may stay behind if this one is killed")
    if os.getppid() != parent:  # it was killed before that
        os.kill(os.getpid(), signal.SIGKILL)


def _pack(found: np.ndarray) -> np.ndarray:
    """Halve what goes from process to process, where 16 bits say it all."""
    scaled = found * 32768
    with np.errstate(invalid="ignore"):
        pcm = scaled.astype(np.int16)
    return pcm if np.array_equal(pcm, scaled) else found


def _unpack(found: np.ndarray) -> np.ndarray:
    return found if found.dtype == np.float32 else found.astype(np.float32) / 32768


def make_batches(
    lengths: Dict[Hashable, int], batch_bins: int, alone: bool
) -> List[List[Hashable]]:
    """Fill batches with utterances of about the same length.

    Args:
        lengths: samples of each utterance.
        batch_bins: samples of a batch, padding included; a longer utterance is a batch
            of its own.
        alone: let only utterances of the same length be together.
    """
    batches: List[List[Hashable]] = []
    longest = 0
    for utt in sorted(lengths, key=lambda utt: (-lengths[utt], utt)):
        full = not batches or (len(batches[-1]) + 1) * longest > batch_bins
        if full or (alone and lengths[utt] != longest):
            batches.append([])
            longest = lengths[utt]
        batches[-1].append(utt)
    return batches


def score_window(
    scorer: "Scorer",
    speech: Dict[int, np.ndarray],
    batch_bins: int,
    alone: bool,
    measure: Dict,
    skipped: Dict[int, str],
    max_samples: float = math.inf,
    note: Callable[[List[int], Dict[int, int]], None] = lambda *_: None,
) -> Dict[int, np.ndarray]:
    """Score utterances in batches.

    Args:
        scorer: the model.
        speech: samples of each utterance (N,), as :func:`_pack` leaves them.
        batch_bins, alone: see :func:`make_batches`.
        measure: options of ``Scorer.score``.
        skipped: gets the utterances that the scorer fails on, and why.
        max_samples: what is longer is scored in windows.
        note: is told of each batch, and of the lengths of all utterances, before it is
            scored.

    Returns:
        Confidence of each frame (T,), float32.
    """
    scores = {}
    lengths = {utt: len(x) for utt, x in speech.items()}
    long = sorted(utt for utt in lengths if lengths[utt] > max_samples)
    short = {utt: length for utt, length in lengths.items() if length <= max_samples}
    for utt in long:
        note([utt], lengths)
        samples = torch.from_numpy(_unpack(speech[utt]))
        try:
            scores[utt] = scorer.score_long(
                samples, int(max_samples), **measure
            ).numpy()
        except torch.AcceleratorError:
            raise
        except Exception as e:
            skipped[utt] = f"the scorer fails: {e or type(e).__name__}"
    batches = make_batches(short, batch_bins, alone)
    while batches:
        batch = batches.pop(0)
        note(batch, lengths)
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(_unpack(speech[utt])) for utt in batch], batch_first=True
        )
        samples = torch.tensor([lengths[utt] for utt in batch])
        try:
            confidence, frames = scorer.score(padded, samples, **measure)
            confidence = confidence.cpu().numpy()
        except torch.AcceleratorError:
            raise  # the GPU itself is broken, and all that followed would fail too
        except Exception as e:  # whatever a model raises on audio that it cannot take
            if len(batch) == 1:
                skipped[batch[0]] = f"the scorer fails: {e or type(e).__name__}"
            elif isinstance(e, torch.OutOfMemoryError):
                half = len(batch) // 2
                logging.warning(
                    f"{len(batch)} utterances of up to {padded.size(1)} samples do not "
                    "fit the GPU's memory: half as many; a smaller --batch_bins is faster"
                )
                batches = [batch[:half], batch[half:], *batches]
            else:  # one of them is to blame
                batches = [[utt] for utt in batch] + batches
            continue
        for utt, row, end in zip(batch, confidence, frames.tolist()):
            if end:
                scores[utt] = row[:end]
            else:
                skipped[utt] = TOO_SHORT.format(lengths[utt])
    return scores


def main(cmd=None) -> None:
    """Score; exit with 1 when more than ``--max_skipped`` utterances had to be left."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        skipped = score_all(args)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(
            f"{args.output_dir}: scores cannot be written: {e.strerror}. Make room and "
            "run this again: it goes on where it was"
        )
    if skipped > args.max_skipped:
        sys.exit(
            f"{skipped} utterances have no score (see {args.output_dir}/skipped), more "
            f"than --max_skipped {args.max_skipped}"
        )


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.score"):
        main()
