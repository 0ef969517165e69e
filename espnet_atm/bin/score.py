"""Score utterances with an ESPnet CTC model: one confidence a frame, one byte each.

Writes into ``--output_dir``

- ``confidence.ark``, ``confidence.scp``: (frames, 1), Kaldi's one-byte compression of
  [0, 1]; ESPnet reads them as ``DIR/confidence.scp,confidence,kaldi_ark``;
- ``utt2confidence``: the mean over each utterance, Eq. 5;
- ``frame_shift``, ``frame_offset``: samples between frames, centre of the first;
- ``scorer``: what made the scores; others are not mixed in;
- ``skipped``: utterances without a score, and why.

Run it again after any end, and it goes on where it was.
"""

import argparse
import fcntl
import hashlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import BinaryIO, Dict, List, Tuple

import kaldiio
import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet_atm.confidence import MEASURES

ONE_BYTE_ZERO_ONE = 7  # Kaldi's kOneByteZeroOne: steps of 1/255


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asr_train_config", required=True)
    parser.add_argument("--asr_model_file", required=True)
    parser.add_argument("--wav_scp", required=True, help="what to score")
    parser.add_argument(
        "--wav_type", default="sound", help="ESPnet's data type of --wav_scp"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--ngpu", type=int, default=0, help="0: CPU, 1: GPU")
    parser.add_argument("--measure", default="max", choices=MEASURES)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--exclude_blank", action="store_true", help="let the blank not compete"
    )
    parser.add_argument(
        "--max_skipped",
        type=int,
        default=0,
        help="more skipped utterances than this end with exit code 1",
    )
    return parser


def read_scp_ids(path: Path) -> List[str]:
    """The utterance ids of a Kaldi scp file.

    Raises:
        ValueError: naming file and line, on a line without a path or an id seen twice.
    """
    ids: Dict[str, int] = {}
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            fields = line.split(maxsplit=1)
            if len(fields) != 2:
                raise ValueError(f"{path}:{number}: no path in {line.strip()!r}")
            if fields[0] in ids:
                raise ValueError(
                    f"{path}:{number}: {fields[0]} is in line {ids[fields[0]]} already"
                )
            ids[fields[0]] = number
    return list(ids)


def measure_options(args: argparse.Namespace) -> Dict:
    """The command line's options of ``frame_confidence``."""
    return {
        "measure": args.measure,
        "temperature": args.temperature,
        "include_blank": not args.exclude_blank,
    }


def describe_scorer(args: argparse.Namespace) -> str:
    """What the scores depend on, as one line of JSON."""

    def digest(file: str) -> str:
        with open(file, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    return json.dumps(
        {
            "model": digest(args.asr_model_file),
            "config": digest(args.asr_train_config),
            **measure_options(args),
        }
    )


def write_once(file: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)


def check_rate(wav_scp: Path, sampling_rate: int) -> None:
    """Refuse audio at another rate than the scorer's, looking at the first readable file.

    Raises:
        ValueError: naming the file and both rates.
    """
    with wav_scp.open(encoding="utf-8") as f:
        for line in f:
            utt, path = line.split(maxsplit=1)
            try:
                rate = soundfile.info(path.strip()).samplerate
            except soundfile.LibsndfileError:
                continue  # reported when its turn comes
            if rate != sampling_rate:
                raise ValueError(
                    f"{utt}: {path.strip()} is sampled at {rate} Hz and the scorer wants "
                    f"{sampling_rate} Hz; convert it, e.g. by format_wav_scp.sh --fs"
                )
            return


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

    def close(self) -> None:
        """Close the files."""
        for f in (self.ark, self.scp, self.means, self.lock):
            f.close()


def _size(lines: List[str]) -> int:
    return sum(len(line.encode()) for line in lines)


def prepare(args: argparse.Namespace, output_dir: Path) -> List[str]:
    """Check input and folder; return the ids to score."""
    ids = read_scp_ids(Path(args.wav_scp))
    output_dir.mkdir(parents=True, exist_ok=True)
    scorer = describe_scorer(args)
    file = output_dir / "scorer"
    if not file.exists():
        write_once(file, scorer)
    elif file.read_text().strip() != scorer:
        raise ValueError(
            f"{output_dir} holds scores of another scorer or measure\n"
            f"  there: {file.read_text().strip()}\n  now:   {scorer}\n"
            "give another --output_dir, or remove that one"
        )
    return ids


def score_all(args: argparse.Namespace) -> int:
    """Score what is not scored yet; return how many utterances have no score."""
    output_dir = Path(args.output_dir)
    ids = prepare(args, output_dir)
    writer = ScoreWriter(output_dir)
    known = set(ids)
    strangers = [utt for utt in writer.done if utt not in known]
    if strangers:
        raise ValueError(
            f"{output_dir} holds scores of utterances that are not in {args.wav_scp}: "
            f"{strangers[0]} and {len(strangers) - 1} more; remove that folder"
        )
    todo = [utt for utt in ids if utt not in writer.done]
    logging.info(f"{len(ids)} utterances, {len(writer.done)} of them scored already")
    skipped: List[Tuple[str, str]] = []
    if todo:
        skipped = _score(args, todo, len(ids), writer)
    writer.close()
    write_once(
        output_dir / "skipped", "\n".join(f"{utt} {why}" for utt, why in skipped)
    )
    logging.info(f"{len(ids) - len(skipped)} scored, {len(skipped)} skipped")
    for utt, why in skipped:
        logging.warning(f"skipped {utt}: {why}")
    return len(skipped)


def _score(
    args: argparse.Namespace, todo: List[str], total: int, writer: ScoreWriter
) -> List[Tuple[str, str]]:
    # Imported late: a finished folder must not wait for ESPnet's imports.
    from espnet2.train.dataset import ESPnetDataset

    from espnet_atm.scorer import Scorer

    scorer = Scorer.from_files(
        args.asr_train_config, args.asr_model_file, "cuda" if args.ngpu else "cpu"
    )
    write_once(writer.dir / "frame_shift", str(scorer.grid.shift))
    write_once(writer.dir / "frame_offset", str(scorer.grid.offset))
    logging.info(
        f"scorer frames: every {scorer.grid.shift} samples at {scorer.sampling_rate} Hz"
    )
    dataset = ESPnetDataset([(args.wav_scp, "speech", args.wav_type)])
    if args.wav_type == "sound":
        check_rate(Path(args.wav_scp), scorer.sampling_rate)
    skipped = []
    bar = tqdm(todo, initial=total - len(todo), total=total, unit="utt", mininterval=5)
    for utt in bar:
        try:
            speech = dataset[utt][1]["speech"]
        except Exception as e:  # whatever the reader of this audio format raises
            skipped.append((utt, f"cannot be read: {type(e).__name__}: {e}"))
            continue
        why = _problem(speech)
        if why is None and scorer.grid.layers and not scorer.grid.length(len(speech)):
            why = f"{len(speech)} samples are too short for one frame"
        if why is not None:
            skipped.append((utt, why))
            continue
        try:
            # One at a time: with some front ends a score depends on a batch's padding.
            confidence, frames = scorer.score(
                torch.from_numpy(speech)[None].float(),
                torch.tensor([len(speech)]),
                **measure_options(args),
            )
        except ValueError as e:
            skipped.append((utt, f"the scorer fails: {e}"))
            continue
        writer.write(utt, confidence[0, : int(frames[0])].cpu().numpy())
    return skipped


def _problem(speech: np.ndarray) -> str | None:
    if speech.ndim != 1:
        return f"has {speech.shape[1]} channels; choose one, e.g. by format_wav_scp.sh"
    if speech.size == 0:
        return "is empty"
    if not np.isfinite(speech).all():
        return "has samples that are not finite"
    return None


def main(cmd=None) -> None:
    """Score; exit with 1 when more than ``--max_skipped`` utterances had to be left."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    skipped = score_all(args)
    if skipped > args.max_skipped:
        sys.exit(
            f"{skipped} utterances have no score (see {args.output_dir}/skipped), more "
            f"than --max_skipped {args.max_skipped}"
        )


if __name__ == "__main__":
    main()
