"""Score utterances with an ESPnet CTC model: one confidence a frame, one byte each.

Writes into ``--output_dir``

- ``confidence.ark``, ``confidence.scp``: (frames, 1), Kaldi's one-byte compression of
  [0, 1]; ESPnet reads them as ``DIR/confidence.scp,confidence,kaldi_ark``;
- ``utt2confidence``: the mean over each utterance, Eq. 5;
- ``frame_shift``, ``frame_offset``: samples between frames, centre of the first;
- ``scorer``: what made the scores; others are not mixed in;
- ``skipped``: utterances without a score, and why.

Reads what Kaldi users have: ``wav.scp`` with files, pipes and archives, and
``segments``. Audio at another rate than the scorer's is resampled.

Run it again after any end, and it goes on where it was.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Dict, List, Union

import kaldiio
import numpy as np
import torch
from espnet2.utils.types import float_or_none, str2bool
from tqdm import tqdm

from espnet_atm.audio import AudioDataset, read_table
from espnet_atm.confidence import MEASURES, check_refinement

if TYPE_CHECKING:
    from espnet_atm.scorer import Scorer

# Utterances that are read ahead, and sorted by length into batches.
WINDOW = 128
# Audio of a batch, padding included, on a CPU and on a GPU. What a larger batch computes
# does not stay in a CPU's caches: 100 s are a quarter slower than 30 s.
BATCH_SECONDS = (30, 1000)
ONE_BYTE_ZERO_ONE = 7  # Kaldi's kOneByteZeroOne: steps of 1/255
TOO_SHORT = "{} samples are too short for one frame"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
        "--num_workers", type=int, default=1, help="processes that read audio"
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
    """The three growing files, kept in step however the last run ended.

    A record goes to the ark, then to the scp, then to ``utt2confidence``; on opening,
    all are cut back to the records that all three hold. One process at a time: another
    one waits until this one has ended, however it ends.
    """

    def __init__(self, output_dir: Path):
        self.dir = output_dir
        self.lock = open(output_dir / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logging.warning(f"{output_dir}: another process scores here; waiting")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        scp = self._whole_lines("confidence.scp")
        means = self._whole_lines("utt2confidence")
        kept = min(len(scp), len(means))
        self.done = {line.split()[0] for line in scp[:kept]}
        end = 0
        if kept:
            with (output_dir / "confidence.ark").open("rb") as f:
                f.seek(int(scp[kept - 1].rsplit(":", 1)[1]))
                kaldiio.matio.read_kaldi(f)
                end = f.tell()
        self.ark = self._open("confidence.ark", end)
        self.scp = self._open("confidence.scp", _size(scp[:kept]))
        self.means = self._open("utt2confidence", _size(means[:kept]))

    def _whole_lines(self, name: str) -> List[str]:
        file = self.dir / name
        if not file.exists():
            return []
        text = file.read_bytes().decode("utf-8", errors="ignore")
        return [x for x in text.splitlines(keepends=True) if x.endswith("\n")]

    def _open(self, name: str, size: int) -> BinaryIO:
        f = open(self.dir / name, "ab")
        f.truncate(size)
        f.seek(0, os.SEEK_END)
        return f

    def write(self, utt: str, confidence: np.ndarray) -> None:
        """Store one utterance, (T,), float32 in [0, 1]."""
        position = self.ark.tell() + len(utt.encode()) + 1
        kaldiio.save_ark(
            self.ark,
            {utt: confidence[:, None].astype(np.float32)},
            compression_method=ONE_BYTE_ZERO_ONE,
        )
        self.ark.flush()
        self.scp.write(f"{utt} {self.dir / 'confidence.ark'}:{position}\n".encode())
        self.scp.flush()
        # The mean of what is stored, so that it can be had from the track again.
        mean = np.rint(confidence * 255).mean() / 255
        self.means.write(f"{utt} {mean:.6f}\n".encode())
        self.means.flush()

    def __enter__(self) -> "ScoreWriter":
        return self

    def __exit__(self, *error) -> None:
        with self.lock:  # let go last, and also when the disk is full
            for f in (self.ark, self.scp, self.means):
                f.close()


def _size(lines: List[str]) -> int:
    return sum(len(line.encode()) for line in lines)


def claim(output_dir: Path, scorer: Dict) -> None:
    """Tie a folder to what makes its scores; refuse one of another scorer.

    Args:
        output_dir: where the scores are.
        scorer: what is known of their maker; goes into the file ``scorer``.
    """
    file = output_dir / "scorer"
    there = json.loads(file.read_text()) if file.exists() else {}
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
    output_dir = Path(args.output_dir)
    check_refinement(args.smooth, args.energy_gate)
    utterances, columns = args.wav_scp, 2
    if args.segments is not None:
        utterances, columns = args.segments, 4
    ids = [row[0] for row in read_table(Path(utterances), columns)]
    output_dir.mkdir(parents=True, exist_ok=True)
    skipped: Dict[str, str] = {}
    with ScoreWriter(output_dir) as writer:
        claim(output_dir, describe_scorer(args))
        strangers = sorted(writer.done.difference(ids))
        if strangers:
            raise ValueError(
                f"{output_dir} holds scores of utterances that are not in {utterances}: "
                f"{strangers[0]} and {len(strangers) - 1} more; remove that folder"
            )
        done = len(writer.done)
        logging.info(f"{len(ids)} utterances, {done} of them scored already")
        if done < len(ids):
            skipped = score_corpus(args, load_scorer(args), ids, writer)
    write_once(
        output_dir / "skipped", "\n".join(f"{x} {why}" for x, why in skipped.items())
    )
    logging.info(f"{len(ids) - len(skipped)} scored, {len(skipped)} skipped")
    for utt, why in skipped.items():
        logging.warning(f"skipped {utt}: {why}")
    return len(skipped)


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
    args: argparse.Namespace, scorer: "Scorer", ids: List[str], writer: ScoreWriter
) -> Dict[str, str]:
    """Score window by window; return the utterances that have no score, and why.

    Windows begin at the same utterances in each run, and a window is batched as a
    whole, even where a part of it is scored already: so the scores do not depend on
    where an earlier run ended, to the last bit.

    Args:
        args: the command line.
        scorer: the model.
        ids: the utterances, in the order of their file.
        writer: has those that are scored already, and gets the others.
    """
    grid = {"frame_shift": scorer.grid.shift, "frame_offset": scorer.grid.offset}
    claim(writer.dir, grid)
    for name, samples in grid.items():
        write_once(writer.dir / name, str(samples))
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
    segments = None if args.segments is None else Path(args.segments)
    dataset = AudioDataset(Path(args.wav_scp), scorer.sampling_rate, segments)

    skipped: Dict[str, str] = {}
    first = [
        start
        for start in range(0, len(ids), WINDOW)
        if any(utt not in writer.done for utt in ids[start : start + WINDOW])
    ]
    order = [i for start in first for i in range(start, min(start + WINDOW, len(ids)))]
    audio = iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            collate_fn=_pack,
            num_workers=args.num_workers,
            # A reader that outlives a killed run must not hold its lock.
            worker_init_fn=lambda _: writer.lock.close(),
            multiprocessing_context="fork" if args.num_workers else None,
            # The next window is read while this one is scored.
            prefetch_factor=-(-WINDOW // args.num_workers)
            if args.num_workers
            else None,
        )
    )
    bar = tqdm(initial=len(ids) - len(order), total=len(ids), unit="utt", mininterval=5)

    def read(start: int) -> Dict[str, np.ndarray]:
        speech = {}
        for utt in ids[start : start + WINDOW]:
            found = next(audio)
            if isinstance(found, str):
                skipped[utt] = found
            elif scorer.is_too_short(len(found)):
                skipped[utt] = TOO_SHORT.format(len(found))
            else:
                speech[utt] = _unpack(found)
        return speech

    # Taking audio over from the reading processes must not wait for the scorer either.
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, start) for start in first[:1]]
        for number, start in enumerate(first):
            window = ids[start : start + WINDOW]
            speech = coming.pop().result()
            coming = [reader.submit(read, x) for x in first[number + 1 : number + 2]]
            scores = score_window(
                scorer, speech, batch_bins, alone, measure_options(args), skipped
            )
            for utt in window:
                if utt in scores and utt not in writer.done:
                    writer.write(utt, scores[utt])
            bar.update(len(window))
    bar.close()
    return skipped


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
    lengths: Dict[str, int], batch_bins: int, alone: bool
) -> List[List[str]]:
    """Fill batches with utterances of about the same length.

    Args:
        lengths: samples of each utterance.
        batch_bins: samples of a batch, padding included; a longer utterance is a batch
            of its own.
        alone: let only utterances of the same length be together.
    """
    batches: List[List[str]] = []
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
    speech: Dict[str, np.ndarray],
    batch_bins: int,
    alone: bool,
    measure: Dict,
    skipped: Dict[str, str],
) -> Dict[str, np.ndarray]:
    """Score utterances in batches.

    Args:
        scorer: the model.
        speech: samples of each utterance (N,), float32.
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
            [torch.from_numpy(speech[utt]) for utt in batch], batch_first=True
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
