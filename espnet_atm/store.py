"""The crash-safe store of scores: what is there is whole, and of one scorer."""

import fcntl
import functools
import io
import itertools
import json
import logging
import math
import os
from array import array
from pathlib import Path
from typing import BinaryIO, Dict, Iterable, Iterator, List, Sequence, Tuple

import kaldiio
import numpy as np
from tqdm import tqdm

from espnet_atm.audio import Table
from espnet_atm.errors import UserError
from espnet_atm.files import write_line
from espnet_atm.track import (
    AUDIO_COLUMNS,
    SOURCE,
    has_id,
    mean_text,
    read_grid_files,
    read_record,
    read_scorer,
)

# What is written here; with `scorer`, which comes first, all of it is this program's.
GROWING = ("confidence.ark", "confidence.scp", "utt2confidence", "utt2audio")
GRID = ("frame_shift", "frame_offset", "sampling_rate")
OUTPUTS = (*GROWING, *GRID, "skipped", "skipped.partial", "scoring")
ONE_BYTE_ZERO_ONE = 7  # Kaldi's kOneByteZeroOne: steps of 1/255


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

        @functools.cache
        def is_here(path: str) -> bool:
            return path == ark or os.path.exists(path) and os.path.samefile(path, ark)

        def rows() -> Iterator[Tuple[str, str, str]]:
            self.scp.seek(0)
            for line in self.scp:
                utt, source = line.decode().split(maxsplit=1)
                path, _, offset = source.rstrip().rpartition(":")
                yield utt, path, offset

        if all(is_here(path) for _, path, _ in rows()):
            return
        logging.info(f"{self.scp.name}: names another place of the ark: mended")
        mended = ((u, f"{p if is_here(p) else ark}:{offset}") for u, p, offset in rows())
        self.scp = self._rewrite(self.scp, mended)

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
        write_line(output_dir / "scorer", json.dumps({**there, **scorer}))


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


def check_grid(output_dir: Path) -> None:
    """Put back the files with single numbers that a run that was killed left out.

    Raises:
        UserError: when one says something else than ``scorer``.
    """
    scorer = read_scorer(output_dir) or {}
    for name in GRID:
        if name in scorer and not (output_dir / name).exists():
            write_line(output_dir / name, str(scorer[name]))
    read_grid_files(output_dir)
