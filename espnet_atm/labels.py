"""Pseudo-labels of frames as they are stored: 2 bytes a label, found by utterance.

A folder has ``labels.scp``, Kaldi's list of utterances and ``FILE:OFFSET``; ``labels.bin``,
with for each utterance its id, a space, a header and the labels; and ``labeller``, which
says what made them and when each frame is.
"""

import contextlib
import fcntl
import json
import logging
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Tuple, Union

import numpy as np

from espnet_atm.audio import Table, checksum
from espnet_atm.errors import UserError, check_file, read_text
from espnet_atm.files import write_line
from espnet_atm.frames import FrameGrid
from espnet_atm.track import MOST, MOST_FRAMES_OFF, SOURCE, has_id
from espnet_atm.values import number, whole

# How many labels, a checksum of all that follows, and that of the audio that they are of.
HEADER = struct.Struct("<III")
LABEL = np.dtype("<u2")
MOST_LABELS = 1 << 16
# What ``labeller`` has to say for the labels to be used.
NEEDED = ("num_classes", "frame_shift", "frame_offset", "sampling_rate")


class Labels(Mapping):
    """Labels by utterance, each read and looked at when it is asked for.

    Args:
        labels_scp: of a folder that ``espnet_atm.bin.label`` made.

    Raises:
        UserError: on bad lines, naming file and line, and on files that are none.
        OSError: when there is no such file.
    """

    def __init__(self, labels_scp: Union[str, Path]):
        self.table = Table(labels_scp, 2, checked=False)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self.table)

    def __getitem__(self, utt: str) -> np.ndarray:
        """The label of each frame (T,), int64.

        Raises:
            KeyError: when there is no such utterance.
            UserError: naming the utterance and the file, when these are another
                utterance's labels, or damaged.
        """
        return self._read(utt)[0].astype(np.int64)

    def check_audio(
        self, utt: str, speech: np.ndarray, found: Optional[str] = None
    ) -> None:
        """Refuse other audio than the labels are of.

        Args:
            utt: its id.
            speech: all samples of the utterance (N,), float, in [-1, 1].
            found: their :func:`~espnet_atm.audio.checksum`, where it is known.

        Raises:
            UserError: naming the utterance.
        """
        _, expected = self._read(utt)
        found = found or checksum(speech)
        if found != expected:
            raise UserError(
                f"{utt}: its audio is not what was labelled: it has checksum {found}, in "
                f"{self.table.path} {expected}; label this audio, or train on that"
            )

    def _read(self, utt: str) -> Tuple[np.ndarray, str]:
        row = self.table.get(utt)
        if row is None:
            raise KeyError(utt)
        where = f"{self.table.path}: {utt}: {row[1]}"
        found = SOURCE.fullmatch(row[1])
        if found is None or found[3]:
            raise UserError(f"{where} is no place of labels in a file")
        try:
            check_file(found[1])
            with open(found[1], "rb") as file:
                if not has_id(file, int(found[2]), utt):
                    raise UserError(
                        f"{where} is not the place of its labels: its id is not there; "
                        "lines are exchanged, or one of the two files is damaged"
                    )
                file.seek(int(found[2]))
                return read_record(file)
        except OSError as e:
            raise UserError(f"{where}: {e.strerror or e}") from None
        except Damaged as e:
            raise UserError(f"{where}: {e}: label into an empty folder") from None
        except UserError as e:
            message = str(e)
            raise UserError(
                message if message.startswith(where) else f"{where}: {message}"
            ) from None


class Damaged(Exception):
    """What is wrong with a record."""


def read_record(file: BinaryIO) -> Tuple[np.ndarray, str]:
    """The labels (T,), uint16, at a file's position, and the checksum of their audio.

    Raises:
        Damaged: saying how.
    """
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise Damaged("is cut off")
    frames, expected, audio = HEADER.unpack(head)
    there = (os.fstat(file.fileno()).st_size - file.tell()) // LABEL.itemsize
    if there < frames:
        raise Damaged(f"is cut off: {there} of {frames} labels")
    data = file.read(frames * LABEL.itemsize)
    if zlib.crc32(data, audio) != expected:
        raise Damaged("is damaged: its labels do not have their checksum")
    return np.frombuffer(data, LABEL), f"{audio:08x}"


def read_labeller(folder: Path) -> Optional[Dict[str, Any]]:
    """What made a folder's labels; None where there is no note.

    Raises:
        UserError: when the note is damaged.
    """
    file = folder / "labeller"
    if not file.exists():
        return None
    try:
        found = json.loads(read_text(file))
    except (ValueError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        found = None
    if not isinstance(found, dict) or not _is_possible(*map(found.get, NEEDED)):
        raise UserError(
            f"{file}: is damaged, or not what espnet_atm.bin.label writes there: it does "
            "not say what made the labels; label into an empty folder"
        )
    return found


def _is_possible(num_classes, shift, offset, rate) -> bool:
    """Whether these are numbers of :data:`NEEDED`, as JSON may give anything."""
    try:
        whole("num_classes", num_classes, most=MOST_LABELS)
        whole("sampling_rate", rate, most=MOST)
        number("frame_shift", shift, positive=True, within=(0, MOST))
        away = MOST_FRAMES_OFF * shift
        number("frame_offset", offset, within=(-away, away))
    except UserError:
        return False
    return True


def read_label_grid(labels_scp: str, sampling_rate: int) -> FrameGrid:
    """When the frames are that have labels, in samples of audio at a rate in Hz.

    Raises:
        UserError: when there is no note of it, or it is of audio at another rate.
    """
    folder = Path(labels_scp).parent
    labeller = read_labeller(folder)
    if labeller is None:
        raise UserError(
            f"{folder / 'labeller'} is missing: {labels_scp} does not say when its frames "
            "are; label by espnet_atm.bin.label"
        )
    if labeller["sampling_rate"] != sampling_rate:
        raise UserError(
            f"{folder / 'labeller'}: the labels are of audio at "
            f"{labeller['sampling_rate']} Hz, and frontend_conf.fs is {sampling_rate}"
        )
    return FrameGrid(labeller["frame_shift"], labeller["frame_offset"])


class LabelWriter(contextlib.AbstractContextManager):
    """Adds labels to a folder, which may have some of an earlier run.

    Whatever ends a run, what the list names is whole. The utterances that could not be
    labelled are in the file ``skipped``, at its end.

    Args:
        output_dir: the folder, which is there.
        utterances: what is to be labelled.
        labeller: what makes the labels; see :data:`NEEDED`.

    Attributes:
        done: whether each utterance has its labels (U,), bool.
        records, skipped: how many have, and how many cannot have any.

    Raises:
        UserError: naming the file, when the folder has labels of another labeller, of
            other utterances, or not of this program.
    """

    def __init__(self, output_dir: Path, utterances: Table, labeller: Dict[str, Any]):
        self.dir, self.utterances = output_dir, utterances
        self.lock = open(output_dir / ".lock", "a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logging.warning(f"{output_dir}: another process labels here; waiting")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.skipped = 0
        try:
            self._open(labeller)
        except BaseException:
            self.lock.close()
            raise

    def _open(self, labeller: Dict[str, Any]) -> None:
        there = read_labeller(self.dir)
        for name in ("labels.scp", "labels.bin"):
            file = self.dir / name
            if there is None and file.exists() and file.stat().st_size:
                raise UserError(
                    f"{file} was not made by espnet_atm.bin.label, which leaves a file "
                    "labeller beside it, and is not written over; give another --output_dir"
                )
        self.scp, self.bin = (
            open(self.dir / name, "a+b") for name in ("labels.scp", "labels.bin")
        )
        self.done = np.zeros(len(self.utterances), dtype=bool)
        self._take_up()
        self.records = int(self.done.sum())
        if self.records and there != labeller:
            told = ", ".join(
                f"{x}: {json.dumps(there.get(x))}, now {json.dumps(labeller.get(x))}"
                for x in sorted({**there, **labeller})
                if there.get(x) != labeller.get(x)
            )
            raise UserError(
                f"{self.dir} holds labels of another labeller ({told}); give another "
                "--output_dir, or remove that one"
            )
        if there != labeller:
            write_line(self.dir / "labeller", json.dumps(labeller))
        self.reasons = open(self.dir / "skipped.partial", "w", encoding="utf-8")

    def _take_up(self) -> None:
        """Find what is done, and cut off what is behind it."""
        end, size, path = 0, 0, self.dir / "labels.bin"
        self.scp.seek(0)
        for line_number, line in enumerate(self.scp, 1):
            if not line.endswith(b"\n"):
                break
            row = line.decode("utf-8", errors="replace").split(maxsplit=1)
            found = SOURCE.fullmatch(row[1].strip()) if len(row) == 2 else None
            where = f"{self.scp.name}:{line_number}"
            index = self.utterances.find(row[0]) if found else None
            if index is None or self.done[index]:
                raise UserError(
                    f"{where}: is no line of an utterance in {self.utterances.path}, or "
                    "the second; give another --output_dir, or remove that one"
                )
            if not os.path.exists(found[1]) or not os.path.samefile(found[1], path):
                raise UserError(
                    f"{where}: lists labels of another folder, {found[1]}, and is not "
                    "written over; give another --output_dir"
                )
            self.done[index] = True
            size += len(line)
            if int(found[2]) > end:
                end, last = int(found[2]), row[0]
        if size:
            # They are written one after the other: where the last is whole, so are others.
            if not has_id(self.bin, end, last):
                raise UserError(f"{self.bin.name}: has no labels of {last}: it is damaged")
            self.bin.seek(end)
            try:
                read_record(self.bin)
            except Damaged as e:
                raise UserError(f"{self.bin.name}: {last}: {e}") from None
            end = self.bin.tell()
        self.bin.truncate(end)
        self.scp.truncate(size)
        for file in (self.bin, self.scp):
            file.seek(0, os.SEEK_END)

    def write(self, labels: Dict[int, np.ndarray], audio: Dict[int, str]) -> None:
        """Store utterances, by their numbers.

        Args:
            labels: (T,), int, below :data:`MOST_LABELS`.
            audio: :func:`~espnet_atm.audio.checksum` of what was labelled.
        """
        lines: List[str] = []
        for index, row in labels.items():
            utt, data = self.utterances[index][0], row.astype(LABEL).tobytes()
            self.bin.write(f"{utt} ".encode())
            lines.append(f"{utt} {self.bin.name}:{self.bin.tell()}\n")
            found = int(audio[index], 16)
            head = HEADER.pack(len(row), zlib.crc32(data, found), found)
            self.bin.write(head + data)
        self.bin.flush()
        # Even if the machine breaks down, the list names nothing that is not there.
        os.fsync(self.bin.fileno())
        self.scp.write("".join(lines).encode())
        self.scp.flush()
        self.done[list(labels)] = True
        self.records += len(labels)

    def skip(self, index: int, why: str) -> None:
        """Note why an utterance has no labels, in one line."""
        line = f"{self.utterances[index][0]} {' '.join(why.split())}"
        logging.warning(f"skipped {line}")
        self.reasons.write(line + "\n")
        self.skipped += 1

    def __exit__(self, error, *_) -> None:
        with self.lock:
            for file in (self.bin, self.scp, self.reasons):
                file.close()
            if error is None:
                (self.dir / "skipped.partial").replace(self.dir / "skipped")
