"""Audio as Kaldi users have it: files, pipes, archives, segments."""

import bisect
import contextlib
import functools
import hashlib
import io
import itertools
import logging
import math
import operator
import os
import re
import shutil
import signal
import subprocess
import tempfile
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Iterator, List, Optional, Tuple, Union

import kaldiio
import numpy as np
import scipy.signal
import soundfile
import torch

from espnet_atm.containers import UNKNOWN_LENGTH, Damaged, Length, check_length
from espnet_atm.cuts import ARCHIVED, split_cut
from espnet_atm.errors import UserError, check_file

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CHECKSUM_CHUNK = 1 << 20  # samples
BLOCK = 16  # rows, of whose first the place is known
SCANNED = 1 << 22  # bytes of a table that are looked at together
SEARCHED = 4096  # bytes in which rows are looked at one after the other
MP3 = rb"ID3|\xff[\xe0-\xff]"
MP3_SLACK = 2 * 1152  # samples by which a decoder's beginning and end may differ


class AudioError(UserError):
    """Why an utterance has no usable audio."""


class Table(Sequence):
    """The rows of a Kaldi file, each read from the file when it is asked for.

    In memory are 8 bytes for 16 rows, where the first of them begins; and 16 bytes a row,
    a hash of its id and the order of the hashes, where ids are not sorted as by
    ``LC_ALL=C sort``. Processes that are forked share them. A row is its columns, the
    first one an id that is seen once only. A byte-order mark, which some editors put
    before the first, is none of it.

    Args:
        path: e.g. ``wav.scp`` (two columns) or ``segments`` (four).
        columns: the last one takes the rest of the line; 1 for the ids alone.
        checked: whether all is read at once. If not, rows are found where they are in a
            sorted file, and all is read when one is not there, or asked for by number.

    Raises:
        UserError: naming file and line, on a line with too few columns or an id seen
            twice, and on what is no text; naming what is no file.
        OSError: when there is nothing of that name.
    """

    def __init__(self, path: Union[str, Path], columns: int, checked: bool = True):
        self.path, self.columns = Path(path), columns
        check_file(path)
        self.file = open(path, "rb")
        mark = self.file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK
        self.begin = len(BYTE_ORDER_MARK) if mark else 0
        self.end = os.fstat(self.file.fileno()).st_size
        self.after = self.begin  # the row that was found last
        self.found: List[str] = []  # that row
        self.scan: Optional[_Scan] = None
        if checked:
            self._read_all()

    def _read_all(self) -> "_Scan":
        """Look at each line once."""
        if self.scan is not None:
            return self.scan
        scan, at = _Scan(), self.begin
        while at < self.end:
            end = self._next_line(at + SCANNED)
            block = self._pread(at, end - at)
            scan.add(block, at, self._ids(block, scan.count))
            at = end
        scan.starts.append(self.end)
        self.scan = scan
        if not scan.sorted:
            self._hash_ids(scan)
            self._refuse_repeated(scan)
        return scan

    def _ids(self, block: bytes, before: int) -> List[str]:
        """The ids of whole lines, after so many others."""
        most = max(self.columns - 1, 1)
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        lines = text.removesuffix("\n").split("\n")
        # Rows that are kept, of all lines, would keep the garbage collector busy.
        ids = [
            row[0] if len(row) >= self.columns else ""
            for line in lines
            for row in [line.split(None, most)]
        ]
        if "" in ids or "\0" in text or "\ufeff" in text:
            self._refuse_bad(block, before)
        return ids

    def _refuse_bad(self, block: bytes, before: int) -> None:
        """Name the first bad line, if there is one."""
        for number, line in enumerate(io.BytesIO(block), before + 1):
            try:
                row = self._split(line)
            except UnicodeDecodeError:
                raise UserError(f"{self.path}:{number}: is no text in UTF-8") from None
            if len(row) != self.columns:
                what = "path" if self.columns == 2 else f"{self.columns} columns"
                raise UserError(
                    f"{self.path}:{number}: no {what} in {line.decode().strip()!r}"
                )
            if b"\0" in line or row[0].startswith("\ufeff"):
                what = "a null" if b"\0" in line else "a byte-order mark"
                raise UserError(f"{self.path}:{number}: holds {what} character")

    def _split(self, line: bytes) -> List[str]:
        row = line.decode("utf-8").split(maxsplit=max(self.columns - 1, 1))[: self.columns]
        return [*row[:-1], row[-1].strip()] if row else row

    def _hash_ids(self, scan: "_Scan") -> None:
        hashes = np.fromiter((_hash(row[0]) for row in self), np.uint64, scan.count)
        scan.order = np.argsort(hashes, kind="stable")
        scan.hashes = hashes[scan.order]

    def _refuse_repeated(self, scan: "_Scan") -> None:
        alike = np.flatnonzero(scan.hashes[1:] == scan.hashes[:-1])
        repeated = [
            (int(scan.order[at + 1]), int(scan.order[at]))
            for at in alike
            if self[scan.order[at]][0] == self[scan.order[at + 1]][0]
        ]
        if repeated:
            second, first = min(repeated)
            raise UserError(
                f"{self.path}:{second + 1}: {self[first][0]} is in line {first + 1} "
                "already"
            )

    def __reduce__(self) -> Tuple:
        return Table, (self.path, self.columns, self.scan is not None)

    def __len__(self) -> int:
        return self._count if self.scan is None else self.scan.count

    @functools.cached_property
    def _count(self) -> int:
        """Lines, whatever is in them: ESPnet asks each list whether it is empty."""
        places = range(self.begin, self.end, SCANNED)
        ends = sum(self._pread(at, SCANNED).count(b"\n") for at in places)
        return ends + (self.begin < self.end and self._pread(self.end - 1, 1) != b"\n")

    def __getitem__(self, index: int) -> List[str]:
        index = range(self._read_all().count)[index]  # as lists count
        return self._split(self._block(index // BLOCK)[index % BLOCK])

    def __iter__(self) -> Iterator[List[str]]:
        for number in range(len(self._read_all().starts) - 1):
            yield from map(self._split, self._block(number))

    def _block(self, number: int) -> List[bytes]:
        """The lines between two starts."""
        start, end = self.scan.starts[number : number + 2]
        return self._pread(start, end - start).removesuffix(b"\n").split(b"\n")

    def _pread(self, start: int, size: int) -> bytes:
        # Processes that read at the same time share the file's position.
        return os.pread(self.file.fileno(), size, start)

    @property
    def sorted(self) -> bool:
        """Whether ids are sorted as by ``LC_ALL=C sort``."""
        return self._read_all().sorted

    def has_ids_of(self, other: "Table") -> bool:
        """Whether all ids of another are here; of what is not sorted, it is not told."""
        own, wanted = self._read_all(), other._read_all()
        if not (own.sorted and wanted.sorted):
            return False
        if own.digest.digest() == wanted.digest.digest():
            return True
        ids = (row[0] for row in self)
        return all(row[0] in ids for row in other)  # each goes on where the last was

    def find(self, name: str) -> Optional[int]:
        """The number of the row with this id, from 0; None if there is none."""
        scan = self._read_all()
        found = self._locate(name)
        if found is None:
            return None if scan.sorted else self._find_hash(name)
        number = bisect.bisect(scan.starts, found[0]) - 1
        before = self._pread(scan.starts[number], found[0] - scan.starts[number])
        return number * BLOCK + before.count(b"\n")

    def get(self, name: str) -> Optional[List[str]]:
        """The row with this id; None if there is none.

        Found at once where it is the one that was found last, or the one after that.
        """
        last = self.found
        if last[:1] == [name]:
            return list(last)
        try:
            found = self._locate(name)
        except UnicodeDecodeError:  # to be named, by its line
            found = None
        if found is not None and len(found[1]) == self.columns:
            self.found = found[1]
            return list(found[1])
        if self._read_all().sorted:
            return None
        index = self._find_hash(name)
        return None if index is None else self[index]

    def _locate(self, name: str) -> Optional[Tuple[int, List[str]]]:
        """Where the row with this id begins, and the row, unless the order hides it."""
        found = self._row_at(self.after, name)
        if found is None and (self.scan is None or self.scan.sorted):
            found = self._search(name)
        return found

    def _find_hash(self, name: str) -> Optional[int]:
        hashes, order = self.scan.hashes, self.scan.order
        wanted = np.uint64(_hash(name))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            index = int(order[at])
            if self[index][0] == name:
                return index
            at += 1
        return None

    def _search(self, name: str) -> Optional[Tuple[int, List[str]]]:
        """As :meth:`_locate`, in a sorted file."""
        # The line begins at or after first, where a line does, and before last.
        first, last = self.begin, self.end
        while last - first > SEARCHED:
            middle = (first + last) // 2
            start, found = self._id_after(middle)
            if start >= last:
                last = middle + 1
            elif found <= name:
                first = start
            else:
                last = start
        wanted, at = name.encode("utf-8", "replace"), -1
        block = self._pread(first, last - first + len(wanted))
        while (at := block.find(wanted, at + 1)) >= 0:
            start = block.rfind(b"\n", 0, at) + 1
            if found := self._row_at(first + start, name):
                return found
        return None

    def _row_at(self, start: int, name: str) -> Optional[Tuple[int, List[str]]]:
        """The row that begins there, if it has this id."""
        line = self._line_at(start)
        row = self._split(line)
        if not row or row[0] != name:
            return None
        self.after = start + len(line)
        return start, row

    def _line_at(self, start: int) -> bytes:
        """The line that begins there, with its end."""
        size = SEARCHED
        while True:
            data = self._pread(start, min(size, self.end - start))
            end = data.find(b"\n") + 1
            if end or len(data) < size:
                return data[:end] if end else data
            size *= 8

    def _next_line(self, at: int) -> int:
        """Where the first line after a byte begins."""
        while at < self.end:
            data = self._pread(at, SEARCHED)
            found = data.find(b"\n")
            if found >= 0:
                return at + found + 1
            at += len(data) or self.end
        return self.end

    def _id_after(self, at: int) -> Tuple[int, str]:
        """Where the first line after a byte begins, and its id."""
        size = 256
        while True:
            data = self._pread(at, size)
            before, end, rest = data.partition(b"\n")
            line, whole, _ = rest.partition(b"\n")
            words = line.decode("utf-8", errors="ignore").split(None, 1)
            if len(words) == 2 or whole or len(data) < size:
                start = at + len(before) + 1 if end else self.end
                return start, words[0] if words else ""
            size *= 8


class _Scan:
    """What is kept of a file's lines: ``starts`` of each :data:`BLOCK`, and its end."""

    def __init__(self):
        self.starts, self.count, self.sorted = array("Q"), 0, True
        self.last = ""
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, block: bytes, at: int, ids: List[str]) -> None:
        """Take in lines that begin at a byte."""
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
        starts = np.concatenate([[0], ends])[: len(ids)]
        self.starts.extend((at + starts[-self.count % BLOCK :: BLOCK]).tolist())
        self.count += len(ids)
        self.sorted = (
            self.sorted
            and self.last < ids[0]
            and all(map(operator.lt, ids, itertools.islice(ids, 1, None)))
        )
        self.last = ids[-1]
        self.digest.update("\n".join([*ids, ""]).encode())


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
        part *= 32768
        np.rint(part, out=part)
        if not (part.min() >= -(2**31) and part.max() < 2**31):  # not in float32
            part = part.astype(np.float64).clip(-(2**31), 2**31 - 1)
        found = zlib.crc32(part.astype("<i4"), found)
    return f"{found:08x}"


def read_audio(
    source: str, start: float = 0.0, end: float = math.inf, digest: bool = True
) -> Tuple[np.ndarray, int]:
    """Read the right-hand side of a ``wav.scp`` line.

    Args:
        source: a file that libsndfile reads, ``archive.ark:offset``, a command that ends
            with ``|`` and writes an audio file, or ``FILE:first:last``, a cut. All parts
            of a pipeline have to succeed; bash runs it.
        start, end: the part to read, in seconds, of a cut counted from its beginning.
        digest: whether a FLAC that is read whole is compared with the checksum in it;
            who compares the samples with others may do without.

    Returns:
        Samples (N,) or (N, channels), float32, in [-1, 1], and the sampling rate in Hz.

    Raises:
        AudioError: when a file is missing or holds less than it says, or a command
            fails.
        Exception: whatever the reader of a broken file raises.
    """
    source, cut = split_cut(source)
    with _open(source) as file:
        if not isinstance(file, tuple):
            return _read_file(file, cut, start, end, digest)
    rate, audio = file
    first, last = _part(cut, start, end, len(audio), rate)
    return audio[first:last], rate


def check_whole(source: str) -> None:
    """Refuse audio that is cut off, by what its container says, without decoding it.

    For who reads audio by other means, ESPnet's say, which take what is there. Costs
    reading a header; of Ogg, reading the file.

    Args:
        source: see :func:`read_audio`; a command is not run, and passes; of a cut, the
            recording counts.

    Raises:
        AudioError: saying what is missing; name the utterance yourself.
    """
    if source.endswith("|"):
        return
    source, _ = split_cut(source)
    with _open(source) as file:
        if not isinstance(file, tuple):
            _check_length(file)


@contextlib.contextmanager
def _open(source: str) -> Iterator[Union[BinaryIO, Tuple[int, np.ndarray]]]:
    """The bytes of an audio file, or the rate and samples that an archive holds."""
    if source.endswith("|"):
        yield io.BytesIO(_run(source[:-1]))
        return
    found = re.fullmatch(ARCHIVED, source)
    path = found[1] if found else source
    if not os.path.exists(path):
        hint = "; an id ends at its first space" if " " in path else ""
        raise AudioError(f"no such file: {path}{hint}")
    try:
        check_file(path)
    except UserError as e:
        raise AudioError(str(e)) from None
    with open(path, "rb") as file:
        if found:
            file.seek(int(found[2]))
            yield _read_archive(file)
        else:
            yield file


def _run(command: str) -> bytes:
    """What a command writes."""
    shell = shutil.which("bash")
    process = subprocess.run(
        [shell, "-o", "pipefail", "-c", command] if shell else ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    # What a later part takes no more of is no failure of the earlier one.
    if process.returncode not in (0, 128 + signal.SIGPIPE):
        message = process.stderr.decode(errors="replace").strip()[-200:]
        raise AudioError(f"its command ends with {process.returncode}: {message}")
    if not process.stdout:
        message = process.stderr.decode(errors="replace").strip()[-200:]
        raise AudioError(f"its command writes nothing{message and ': ' + message}")
    return process.stdout


def _read_archive(file: BinaryIO) -> Union[BinaryIO, Tuple[int, np.ndarray]]:
    """The audio file at an archive's position, as Kaldi and ESPnet put it there."""
    begin = file.tell()
    head = file.read(8)
    size = None
    if head[:5] == b"AUDIO":
        file.seek(begin + 6)
        size = int.from_bytes(file.read(head[5]), "little")
    elif head[:4] == b"RIFF":
        size = 8 + int.from_bytes(head[4:8], "little")
        file.seek(begin)
    if size is not None and 44 <= size < UNKNOWN_LENGTH:
        data = file.read(size)
        if len(data) < size:
            raise AudioError(f"is cut off: {len(data)} of {size} bytes are there")
        return io.BytesIO(data)
    if head[:3] in (b"PKL", b""):
        what = "a pickle" if head else "no more"
        raise AudioError(f"is no audio: the archive has {what} there")
    file.seek(begin)
    rate, audio = kaldiio.matio.read_kaldi(file)
    if audio.dtype.kind == "i":
        audio = audio / np.float32(1 << (8 * audio.dtype.itemsize - 1))
    return rate, audio.astype(np.float32, copy=False)


def _check_length(file: BinaryIO) -> Length:
    try:
        return check_length(file)
    except Damaged as e:
        raise AudioError(str(e)) from None


def _read_file(
    file: BinaryIO,
    cut: Optional[Tuple[int, int]],
    start: float,
    end: float,
    digest: bool,
) -> Tuple[np.ndarray, int]:
    whole = cut is None and end == math.inf
    try:
        length = check_length(file)
    except Damaged as e:
        if whole:
            raise AudioError(str(e)) from None
        length = Length()  # the part may be there
    file.seek(0)
    with contextlib.ExitStack() as stack:
        if length.patch:
            data = bytearray(file.read())
            for at, patch in length.patch.items():
                data[at : at + len(patch)] = patch
            file = io.BytesIO(data)
        elif isinstance(file, io.BytesIO) and re.match(MP3, file.getbuffer()[:3]):
            # libsndfile knows it by its name.
            named = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".mp3"))
            named.write(file.getbuffer())
            named.flush()
            file = named
        # A name is read faster than what Python has opened.
        name = getattr(file, "name", None)
        f = stack.enter_context(soundfile.SoundFile(file if name is None else name))
        if length.samples is not None and abs(f.frames - length.samples) > MP3_SLACK:
            raise AudioError(
                f"does not say how long it is: {f.frames} samples are guessed from its "
                f"bit rate, and it has about {length.samples}; convert it, e.g. to FLAC"
            )
        first, last = _part(cut, start, end, f.frames, f.samplerate)
        if whole:
            _refuse_cut_off(f)
        try:
            if f.seekable():
                f.seek(first)
            else:
                _skip(f, first)
            audio = f.read(last - first, dtype="float32")
        except soundfile.LibsndfileError as e:
            raise AudioError(f"is cut off or damaged: {e}") from None
        if len(audio) < last - first and length.samples is None:
            raise AudioError(
                f"is cut off: {len(audio)} of {last - first} samples can be read"
            )
        if digest and whole and start == 0 and length.digest:
            _check_digest(audio, length)
        return audio, f.samplerate


def _skip(file: soundfile.SoundFile, samples: int) -> None:
    """Read over what comes before; GSM 6.10, say, cannot be sought in."""
    while samples > 0 and len(file.read(min(samples, 1 << 20), dtype="float32")):
        samples -= 1 << 20


def _check_digest(audio: np.ndarray, length: Length) -> None:
    """Compare what a FLAC is decoded to with what was encoded."""
    if length.bits not in (16, 24):
        return
    digest = hashlib.md5(usedforsecurity=False)
    for start in range(0, len(audio), CHECKSUM_CHUNK):
        part = audio[start : start + CHECKSUM_CHUNK].ravel() * 2.0 ** (length.bits - 1)
        if length.bits == 16:
            digest.update(part.astype("<i2"))  # exactly
            continue
        pcm = part.astype("<i4")[:, None].view(np.uint8)
        digest.update(pcm[:, : length.bits // 8].tobytes())
    if digest.digest() != length.digest:
        raise AudioError("is damaged: its samples do not have the checksum of the FLAC")


def _part(
    cut: Optional[Tuple[int, int]], start: float, end: float, samples: int, rate: int
) -> Tuple[int, int]:
    """The first sample, and the one after the last."""
    begin, stop = cut or (0, samples)
    if not begin < stop <= samples and cut is not None:
        raise AudioError(
            f"is a cut of the samples {begin} to {stop}, and the recording has {samples}"
        )
    first = begin + round(start * rate)
    if end == math.inf:
        return first, stop
    last = begin + round(end * rate)
    if last > stop:
        raise AudioError(
            f"its segment ends at {end} s and the recording has "
            f"{(stop - begin) / rate:.3f} s"
        )
    return first, last


def _refuse_cut_off(file: soundfile.SoundFile) -> None:
    """Refuse a file of which libsndfile notes in its log that there is less.

    What is written to a pipe promises 2 or 4 GiB, because its length is not known yet.
    """
    info = file.extra_info
    for pattern in (
        r"^ *(?:data|SSND|Data Size|BODY) *: (\d+) \(should be (\d+)\)",
        r"^Data length (\d+) should be (\d+)",
    ):
        found = re.search(pattern, info, re.MULTILINE)
        if found:
            promised, there = map(int, found.groups())
            if there < promised < UNKNOWN_LENGTH:
                raise AudioError(f"is cut off: {there} of {promised} bytes are there")
    found = re.search(r"File seems to be truncated\. (\d+) <--> (\d+)", info)
    if found:
        raise AudioError(f"is cut off: {found[1]} of {found[2]} bytes are there")


def resample(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Bring audio to another sampling rate.

    Args:
        audio: (..., N), float.
        rate: of ``audio``, in Hz.
        wanted: in Hz.

    Returns:
        (..., ceil(N * wanted / rate)), float32.
    """
    divisor = math.gcd(rate, wanted)
    return scipy.signal.resample_poly(
        audio, wanted // divisor, rate // divisor, axis=-1
    ).astype(np.float32)


class AudioDataset(torch.utils.data.Dataset):
    """Utterances of a ``wav.scp``, or of its ``segments``, at one sampling rate.

    Args:
        wav_scp: Kaldi's; its recordings are utterances unless there are segments.
        sampling_rate: in Hz; audio at other rates is resampled. None leaves it.
        segments: Kaldi's: utterance, recording, start and end in seconds.

    Attributes:
        utterances: the :class:`Table` that has their ids, in the first column.

    Raises:
        UserError: on bad lines, naming file and line.
    """

    def __init__(
        self,
        wav_scp: Path,
        sampling_rate: Optional[int] = None,
        segments: Optional[Path] = None,
    ):
        _file_state.cache_clear()
        self.sampling_rate = sampling_rate
        self.recordings = Table(wav_scp, 2)
        self.segmented = segments is not None
        if not self.segmented:
            self.utterances = self.recordings
            return
        self.utterances = Table(segments, 4)
        for number, (utt, recording, *times) in enumerate(self.utterances, 1):
            where = f"{segments}:{number}: {utt}"
            if self.recordings.get(recording) is None:
                raise UserError(f"{where}: recording {recording} is not in {wav_scp}")
            try:
                start, end = map(float, times)
            except ValueError:
                raise UserError(f"{where}: {times} are not two times") from None
            if not 0 <= start < end < math.inf:
                raise UserError(f"{where}: from {start} s to {end} s is no segment")

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Union[np.ndarray, str]:
        """The samples (N,), float32, in [-1, 1]; or why there are none."""
        try:
            return self.load(index)[0]
        except AudioError as e:
            return str(e)

    def load(self, index: int) -> Tuple[np.ndarray, str]:
        """The samples, and what tells this audio from other.

        Returns:
            (N,), float32, in [-1, 1]; and how many samples were read, at how many Hz,
            with which :func:`checksum`, before they were resampled.

        Raises:
            AudioError: saying why there are none.
        """
        utt = self.utterances[index][0]
        source, times = self._source(index)
        try:
            audio, rate = read_audio(source, *times)
        except AudioError:
            raise
        except Exception as e:  # whatever the reader of this audio format raises
            raise AudioError(f"cannot be read: {type(e).__name__}: {e}") from None
        if audio.ndim != 1:
            raise AudioError(
                f"has {audio.shape[1]} channels; choose one, e.g. by format_wav_scp.sh"
            )
        if audio.size == 0:
            raise AudioError("is empty")
        if not np.isfinite(audio).all():
            raise AudioError("has samples that are not finite")
        record = f"{len(audio)} {rate} {checksum(audio)}"
        if self.sampling_rate not in (None, rate):
            _tell_once(utt, rate, self.sampling_rate)
            audio = resample(audio, rate, self.sampling_rate)
        return audio, record

    def _source(self, index: int) -> Tuple[str, List[float]]:
        """What to read, and from when to when, in seconds."""
        _, source, *times = self.utterances[index]
        if self.segmented:
            _, source = self.recordings.get(source)
        return source, list(map(float, times))

    def source_hash(self, index: int) -> str:
        """Changes when audio may have: with its file's place, size or time, or its part.

        Of a command only the words are looked at.
        """
        source, times = self._source(index)
        what = [source, *map(repr, times)]
        if not source.endswith("|"):
            file, cut = split_cut(source)
            found = re.fullmatch(ARCHIVED, file)
            what.append(_file_state(found[1] if found and cut is None else file))
        return hashlib.blake2b("\0".join(what).encode(), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=64)  # utterances share archives and recordings
def _file_state(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


_told = set()


def _tell_once(utt: str, rate: int, wanted: int) -> None:
    if rate not in _told:
        _told.add(rate)
        logging.info(
            f"{utt}, and perhaps others, is sampled at {rate} Hz: resampled to {wanted} "
            "Hz, which the scorer wants"
        )
