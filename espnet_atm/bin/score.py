"""Score utterances with an ESPnet CTC model: one confidence a frame, one byte each.

Writes into ``--output_dir``

- ``confidence.ark``, ``confidence.scp``: (frames, 1), Kaldi's one-byte compression of
  [0, 1]; ESPnet reads them as ``DIR/confidence.scp,confidence,kaldi_ark``;
- ``utt2confidence``: the mean over each utterance, Eq. 5;
- ``frame_shift``, ``frame_offset``: samples between frames, centre of the first, at
  the ``sampling_rate`` of the scorer, in Hz;
- ``scorer``: what made the scores; others are not mixed in;
- ``skipped``: utterances without a score, and why.

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
    BinaryIO,
    Dict,
    Hashable,
    Iterator,
    List,
    TextIO,
    Tuple,
    Union,
)

import kaldiio
import numpy as np
import torch
from espnet2.utils.types import float_or_none, str2bool
from tqdm import tqdm

from espnet_atm.audio import AudioDataset, Table
from espnet_atm.confidence import MEASURES, check_refinement

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
        "--max_skipped",
        type=int,
        default=0,
        help="more skipped utterances than this end with exit code 1",
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before anything is loaded or written.

    Raises:
        ValueError: naming the option and its value.
    """
    check_refinement(args.smooth, args.energy_gate)
    if not 0 < args.temperature < math.inf:
        raise ValueError(
            f"temperature: {args.temperature} is not a positive number; write e.g. 2"
        )
    for name, least in (("batch_bins", 1), ("num_workers", 0), ("max_skipped", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} is less than {least}")


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
    }


def describe_scorer(args: argparse.Namespace) -> Dict:
    """Checksums of the model, and the measure: what the scores depend on."""

    def digest(file: str) -> str:
        with open(file, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    return {
        "model": digest(args.asr_model_file),
        "config": digest(args.asr_train_config),
        **measure_options(args),
    }


def write_once(file: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)


class ScoreWriter:
    """The growing files, kept in step however the last run ended.

    Records go to the ark, then to the scp, then to ``utt2confidence``; on opening, all
    are cut back to the records that all three hold whole. One process at a time:
    another one waits until this one has ended, however it ends.

    Args:
        output_dir: where the files are.
        utterances: what is to be scored.

    Attributes:
        records: how many utterances are scored.
        done: which ones (len(utterances),), bool.
        skipped: how many were left out since this was opened.

    Raises:
        ValueError: when there are scores of other utterances.
    """

    def __init__(self, output_dir: Path, utterances: Table):
        self.dir = output_dir
        self.utterances = utterances
        self.lock = open(output_dir / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logging.warning(f"{output_dir}: another process scores here; waiting")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.ark, self.scp, self.means = (
            open(output_dir / name, "a+b")
            for name in ("confidence.ark", "confidence.scp", "utt2confidence")
        )
        scp, means = _line_ends(self.scp), _line_ends(self.means)
        self.records = min(len(scp), len(means)) - 1
        end = 0
        # Normally the last record is whole, and nothing more is looked at.
        while self.records and not (
            end := self._record_end(scp[self.records - 1], scp[self.records])
        ):
            self.records -= 1
        for f, size in (
            (self.ark, end),
            (self.scp, scp[self.records]),
            (self.means, means[self.records]),
        ):
            f.truncate(size)
        self.done = self._find_done()
        for f in (self.ark, self.scp, self.means):
            f.seek(0, os.SEEK_END)
        self.skipped = 0
        self.reasons = open(output_dir / "skipped.partial", "w", encoding="utf-8")

    def _record_end(self, start: int, end: int) -> int:
        """Where the record of the scp's line ends in the ark; 0 if it is not whole."""
        self.scp.seek(start)
        line = self.scp.read(end - start)
        try:
            name = line.split()[0] + b" "
            position = int(line.rsplit(b":", 1)[1])
            self.ark.seek(position - len(name))
            if self.ark.read(len(name) + 2) != name + b"\0B":
                return 0
            self.ark.seek(position)
            kaldiio.matio.read_matrix_or_vector(self.ark)
        except Exception:  # kaldiio raises all sorts of things on what is cut off
            return 0
        return self.ark.tell()

    def _find_done(self) -> np.ndarray:
        done = np.zeros(len(self.utterances), dtype=bool)
        strangers, first = 0, None
        self.scp.seek(0)
        for line in self.scp:
            name = line.split()[0].decode("utf-8")
            index = self.utterances.find(name)
            if index is None:
                strangers += 1
                first = name if first is None else min(first, name)
            else:
                done[index] = True
        if strangers:
            raise ValueError(
                f"{self.dir} holds scores of utterances that are not in "
                f"{self.utterances.path}: {first} and {strangers - 1} more; remove that "
                "folder"
            )
        return done

    def write(self, scores: Dict[int, np.ndarray]) -> None:
        """Store utterances, by their numbers: (T,), float32 in [0, 1]."""
        places, means = [], []
        for index, confidence in scores.items():
            utt = self.utterances[index][0]
            position = self.ark.tell() + len(utt.encode()) + 1
            kaldiio.save_ark(
                self.ark,
                {utt: confidence[:, None].astype(np.float32)},
                compression_method=ONE_BYTE_ZERO_ONE,
            )
            places.append(f"{utt} {self.dir / 'confidence.ark'}:{position}\n")
            # The mean of what is stored, so that it can be had from the track again.
            mean = np.rint(confidence * 255).mean() / 255
            means.append(f"{utt} {mean:.6f}\n")
        self.ark.flush()
        # Even if the machine breaks down, the scp names nothing that is not there.
        os.fsync(self.ark.fileno())
        for f, lines in ((self.scp, places), (self.means, means)):
            f.write("".join(lines).encode())
            f.flush()
        self.done[list(scores)] = True
        self.records += len(scores)

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
            for f in (self.ark, self.scp, self.means, self.reasons):
                f.close()
            if error is None:
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
    """
    file = output_dir / "scorer"
    there = json.loads(file.read_text()) if file.exists() and not anew else {}
    if any(there[key] != scorer[key] for key in there.keys() & scorer.keys()):
        raise ValueError(
            f"{output_dir} holds scores of another scorer or measure\n"
            f"  there: {json.dumps(there)}\n  now:   {json.dumps(scorer)}\n"
            "give another --output_dir, or remove that one"
        )
    if not scorer.keys() <= there.keys():
        write_once(file, json.dumps({**there, **scorer}))


def score_all(args: argparse.Namespace) -> int:
    """Score what is not scored yet; return how many utterances have no score."""
    check_options(args)
    segments = None if args.segments is None else Path(args.segments)
    dataset = AudioDataset(Path(args.wav_scp), segments=segments)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with ScoreWriter(output_dir, dataset.utterances) as writer:
        claim(output_dir, describe_scorer(args), anew=not writer.records)
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
    workers = num_workers(args)

    windows = [
        range(start, min(start + WINDOW, len(dataset)))
        for start in range(0, len(dataset), WINDOW)
        if not writer.done[start : start + WINDOW].all()
    ]
    audio = iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=itertools.chain.from_iterable(windows),
            collate_fn=_pack,
            num_workers=workers,
            worker_init_fn=functools.partial(_begin_reading, writer.lock, os.getpid()),
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=READ_AHEAD if workers else None,
        )
    )
    bar = tqdm(
        initial=len(dataset) - sum(map(len, windows)),
        total=len(dataset),
        unit="utt",
        mininterval=5,
    )

    def read() -> Iterator[Tuple[range, Dict[int, np.ndarray], Dict[int, str]]]:
        """Parts of windows: the utterances, their audio, and what was skipped."""
        for window in windows:
            first, samples, speech, skipped = window.start, 0, {}, {}
            for index in window:
                found = next(audio)
                if isinstance(found, str):
                    skipped[index] = found
                elif scorer.is_too_short(len(found)):
                    skipped[index] = TOO_SHORT.format(len(found))
                else:
                    speech[index] = found
                    samples += len(found)
                if samples > PART_SECONDS * scorer.sampling_rate or index == window[-1]:
                    yield range(first, index + 1), speech, skipped
                    first, samples, speech, skipped = index + 1, 0, {}, {}

    # Taking audio over from the reading processes must not wait for the scorer either.
    with ThreadPoolExecutor(1) as reader:
        parts = read()
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            utterances, speech, skipped = part
            scores = score_window(
                scorer, speech, batch_bins, alone, measure_options(args), skipped
            )
            writer.write(
                {
                    index: scores[index]
                    for index in utterances
                    if index in scores and not writer.done[index]
                }
            )
            for index in sorted(skipped):
                writer.skip(index, skipped[index])
            bar.update(len(utterances))
    bar.close()


def _begin_reading(lock: TextIO, parent: int, _: int) -> None:
    """Let a reading process neither hold the lock nor outlive a run that is killed.

    It would wait for ever for someone to take its audio.
    """
    lock.close()
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        logging.warning("reading processes may stay behind if this one is killed")
    if os.getppid() != parent:  # it was killed before that
        os.kill(os.getpid(), signal.SIGKILL)


def _pack(found: Union[np.ndarray, str]) -> Union[np.ndarray, str]:
    """Halve what goes from process to process, where 16 bits say it all.

    Tensors would come through shared memory, which containers lack.
    """
    if isinstance(found, str):
        return found
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
) -> Dict[int, np.ndarray]:
    """Score utterances in batches.

    Args:
        scorer: the model.
        speech: samples of each utterance (N,), as :func:`_pack` leaves them.
        batch_bins, alone: see :func:`make_batches`.
        measure: options of ``Scorer.score``.
        skipped: gets the utterances that the scorer fails on, and why.

    Returns:
        Confidence of each frame (T,), float32.
    """
    scores = {}
    lengths = {utt: len(x) for utt, x in speech.items()}
    batches = make_batches(lengths, batch_bins, alone)
    while batches:
        batch = batches.pop(0)
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
    main()
