"""Audio as Kaldi users have it: files, pipes, archives, segments."""

import hashlib
import io
import logging
import math
import os
import re
import subprocess
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional, Tuple, Union

import kaldiio
import numpy as np
import scipy.signal
import soundfile
import torch

from espnet_atm.errors import UserError, check_file

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CHECKSUM_CHUNK = 1 << 20  # samples
UNKNOWN_LENGTH = 0x7F000000


class AudioError(ValueError):
    """Why an utterance has no usable audio."""


class Table(Sequence):
    """The rows of a Kaldi file, each read from the file when it is asked for.

    In memory are 24 bytes a row: where its line begins, a hash of its id, and the order
    of the hashes. A row is its columns, the first one an id that is seen once only. A
    byte-order mark, which some editors put before the first, is none of it.

    Args:
        path: e.g. ``wav.scp`` (two columns) or ``segments`` (four).
        columns: the last one takes the rest of the line.

    Raises:
        UserError: naming file and line, on a line with too few columns or an id seen
            twice, and on what is no text; naming what is no file.
        OSError: when there is nothing of that name.
    """

    def __init__(self, path: Union[str, Path], columns: int):
        self.path, self.columns = Path(path), columns
        check_file(path)
        self.file = open(path, "rb")
        if self.file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            self.file.seek(0)
        starts, hashes = array("Q", [self.file.tell()]), array("Q")
        for number, line in enumerate(self.file, 1):
            try:
                row = self._split(line)
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: is no text in UTF-8") from None
            if len(row) != columns:
                what = "path" if columns == 2 else f"{columns} columns"
                raise UserError(
                    f"{path}:{number}: no {what} in {line.decode().strip()!r}"
                )
            if b"\0" in line or row[0].startswith("\ufeff"):
                what = "a null" if b"\0" in line else "a byte-order mark"
                raise UserError(f"{path}:{number}: holds {what} character")
            starts.append(starts[-1] + len(line))
            hashes.append(_hash(row[0]))
        self.starts = np.frombuffer(starts, np.uint64)
        unsorted = np.frombuffer(hashes, np.uint64)
        self.order = np.argsort(unsorted, kind="stable")
        self.hashes = unsorted[self.order]
        self._refuse_repeated()

    def _split(self, line: bytes) -> List[str]:
        row = line.decode("utf-8").split(maxsplit=self.columns - 1)
        return [*row[:-1], row[-1].strip()] if row else row

    def _refuse_repeated(self) -> None:
        alike = np.flatnonzero(self.hashes[1:] == self.hashes[:-1])
        repeated = [
            (int(self.order[at + 1]), int(self.order[at]))
            for at in alike
            if self[self.order[at]][0] == self[self.order[at + 1]][0]
        ]
        if repeated:
            second, first = min(repeated)
            raise UserError(
                f"{self.path}:{second + 1}: {self[first][0]} is in line {first + 1} "
                "already"
            )

    def __reduce__(self) -> Tuple:
        return Table, (self.path, self.columns)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> List[str]:
        index = range(len(self))[index]  # as lists count
        start, end = map(int, self.starts[index : index + 2])
        # Processes that read at the same time share the file's position.
        return self._split(os.pread(self.file.fileno(), end - start, start))

    def find(self, name: str) -> Optional[int]:
        """The number of the row with this id, from 0; None if there is none."""
        wanted = np.uint64(_hash(name))
        at = int(np.searchsorted(self.hashes, wanted))
        while at < len(self) and self.hashes[at] == wanted:
            index = int(self.order[at])
            if self[index][0] == name:
                return index
            at += 1
        return None


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def checksum(speech: np.ndarray) -> str:
    """A short name of some audio, the same for all readers of its file.

    Of samples rounded to 16 bits, whatever they are stored in.

    Args:
        speech: (N,), float32 or float64, in [-1, 1].
    """
    found = 0
    for start in range(0, len(speech), CHECKSUM_CHUNK):
        # float32, and then exactly: the product with a power of two is.
        part = speech[start : start + CHECKSUM_CHUNK].astype(np.float32)
        scaled = np.rint(part.astype(np.float64) * 32768).clip(-(2**31), 2**31 - 1)
        found = zlib.crc32(scaled.astype("<i4").tobytes(), found)
    return f"{found:08x}"


def read_audio(
    source: str, start: float = 0.0, end: float = math.inf
) -> Tuple[np.ndarray, int]:
    """Read the right-hand side of a ``wav.scp`` line.

    Args:
        source: a file that libsndfile reads, ``archive.ark:offset``, or a command that
            ends with ``|`` and writes an audio file.
        start, end: the part to read, in seconds.

    Returns:
        Samples (N,) or (N, channels), float32, in [-1, 1], and the sampling rate in Hz.

    Raises:
        AudioError: when a file is missing or holds less than its header says, or a
            command fails.
        Exception: whatever the reader of a broken file raises.
    """
    if source.endswith("|"):
        process = subprocess.run(source[:-1], shell=True, capture_output=True)
        if process.returncode != 0:
            message = process.stderr.decode(errors="replace").strip()[-200:]
            raise AudioError(f"its command ends with {process.returncode}: {message}")
        return _read_file(io.BytesIO(process.stdout), start, end)
    path, _, offset = source.rpartition(":")
    if path and offset.isdigit():
        rate, audio = kaldiio.load_mat(source)
        if audio.dtype.kind == "i":
            audio = audio / np.float32(1 << (8 * audio.dtype.itemsize - 1))
        first, last = _part(start, end, len(audio), rate)
        return audio[first:last].astype(np.float32, copy=False), rate
    return _read_file(source, start, end)


def _read_file(
    file: Union[str, io.BytesIO], start: float, end: float
) -> Tuple[np.ndarray, int]:
    if isinstance(file, str) and not Path(file).is_file():
        hint = "; an id ends at its first space" if " " in file else ""
        raise AudioError(f"no such file: {file}{hint}")
    with soundfile.SoundFile(file) as f:
        first, last = _part(start, end, f.frames, f.samplerate)
        if end == math.inf:
            _refuse_cut_off(f)
        f.seek(first)
        audio = f.read(last - first, dtype="float32")
        if len(audio) < last - first:
            raise AudioError(
                f"is cut off: {len(audio)} of {last - first} samples can be read"
            )
        return audio, f.samplerate


def _part(start: float, end: float, samples: int, rate: int) -> Tuple[int, int]:
    """The first sample, and the one after the last."""
    if end == math.inf:
        return round(start * rate), samples
    first, last = round(start * rate), round(end * rate)
    if last > samples:
        raise AudioError(
            f"its segment ends at {end} s and the recording has {samples / rate:.3f} s"
        )
    return first, last


def _refuse_cut_off(file: soundfile.SoundFile) -> None:
    """Refuse a file whose header promises more; libsndfile only notes it in its log.

    What is written to a pipe promises 2 or 4 GiB, because its length is not known yet.
    """
    pattern = r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)"
    found = re.search(pattern, file.extra_info, re.MULTILINE)
    if found:
        promised, there = map(int, found.groups())
        if there < promised < UNKNOWN_LENGTH:
            raise AudioError(f"is cut off: {there} of {promised} bytes are there")


class AudioDataset(torch.utils.data.Dataset):
    """Utterances of a ``wav.scp``, or of its ``segments``, at one sampling rate.

    Args:
        wav_scp: Kaldi's; its recordings are utterances unless there are segments.
        sampling_rate: in Hz; audio at other rates is resampled. None leaves it.
        segments: Kaldi's: utterance, recording, start and end in seconds.

    Attributes:
        utterances: the :class:`Table` that has their ids, in the first column.

    Raises:
        ValueError: on bad lines, naming file and line.
    """

    def __init__(
        self,
        wav_scp: Path,
        sampling_rate: Optional[int] = None,
        segments: Optional[Path] = None,
    ):
        self.sampling_rate = sampling_rate
        self.recordings = Table(wav_scp, 2)
        self.segmented = segments is not None
        if not self.segmented:
            self.utterances = self.recordings
            return
        self.utterances = Table(segments, 4)
        for number, (utt, recording, *times) in enumerate(self.utterances, 1):
            where = f"{segments}:{number}: {utt}"
            if self.recordings.find(recording) is None:
                raise ValueError(f"{where}: recording {recording} is not in {wav_scp}")
            try:
                start, end = map(float, times)
            except ValueError:
                raise ValueError(f"{where}: {times} are not two times") from None
            if not 0 <= start < end:
                raise ValueError(f"{where}: from {start} s to {end} s is no segment")

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Union[np.ndarray, str]:
        """The samples (N,), float32, in [-1, 1]; or why there are none."""
        utt, source, *times = self.utterances[index]
        if self.segmented:
            source = self.recordings[self.recordings.find(source)][1]
        try:
            audio, rate = read_audio(source, *map(float, times))
        except AudioError as e:
            return str(e)
        except Exception as e:  # whatever the reader of this audio format raises
            return f"cannot be read: {type(e).__name__}: {e}"
        if audio.ndim != 1:
            return (
                f"has {audio.shape[1]} channels; choose one, e.g. by format_wav_scp.sh"
            )
        if audio.size == 0:
            return "is empty"
        if not np.isfinite(audio).all():
            return "has samples that are not finite"
        if self.sampling_rate not in (None, rate):
            _tell_once(utt, rate, self.sampling_rate)
            divisor = math.gcd(rate, self.sampling_rate)
            audio = scipy.signal.resample_poly(
                audio, self.sampling_rate // divisor, rate // divisor
            ).astype(np.float32)
        return audio


_told = set()


def _tell_once(utt: str, rate: int, wanted: int) -> None:
    if rate not in _told:
        _told.add(rate)
        logging.info(
            f"{utt}, and perhaps others, is sampled at {rate} Hz: resampled to {wanted} "
            "Hz, which the scorer wants"
        )
