"""Audio as Kaldi users have it: files, pipes, archives, segments."""

import io
import logging
import math
import subprocess
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import kaldiio
import numpy as np
import scipy.signal
import soundfile
import torch


class AudioError(ValueError):
    """Why an utterance has no usable audio."""


def read_table(path: Path, columns: int) -> List[List[str]]:
    """The rows of a Kaldi file, the first column an id that is seen once only.

    Args:
        path: e.g. ``wav.scp`` (two columns) or ``segments`` (four).
        columns: the last one takes the rest of the line.

    Raises:
        ValueError: naming file and line, on a line with too few columns or an id seen
            twice.
    """
    rows, seen = [], {}
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            row = line.split(maxsplit=columns - 1)
            if len(row) != columns:
                what = "path" if columns == 2 else f"{columns} columns"
                raise ValueError(f"{path}:{number}: no {what} in {line.strip()!r}")
            if row[0] in seen:
                raise ValueError(
                    f"{path}:{number}: {row[0]} is in line {seen[row[0]]} already"
                )
            seen[row[0]] = number
            rows.append([*row[:-1], row[-1].strip()])
    return rows


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
        last = len(audio) if end == math.inf else round(end * rate)
        return audio[round(start * rate) : last].astype(np.float32, copy=False), rate
    return _read_file(source, start, end)


def _read_file(
    file: Union[str, io.BytesIO], start: float, end: float
) -> Tuple[np.ndarray, int]:
    if isinstance(file, str) and not Path(file).is_file():
        hint = "; an id ends at its first space" if " " in file else ""
        raise AudioError(f"no such file: {file}{hint}")
    with soundfile.SoundFile(file) as f:
        first = round(start * f.samplerate)
        last = f.frames if end == math.inf else round(end * f.samplerate)
        if last > f.frames:
            raise AudioError(
                f"its segment ends at {end} s and the recording has "
                f"{f.frames / f.samplerate:.3f} s"
            )
        f.seek(first)
        audio = f.read(last - first, dtype="float32")
        if len(audio) < last - first:
            raise AudioError(
                f"is cut off: {len(audio)} of {last - first} samples can be read"
            )
        return audio, f.samplerate


class AudioDataset(torch.utils.data.Dataset):
    """Utterances of a ``wav.scp``, or of its ``segments``, at one sampling rate.

    Args:
        wav_scp: Kaldi's; its recordings are utterances unless there are segments.
        sampling_rate: in Hz; audio at other rates is resampled.
        segments: Kaldi's: utterance, recording, start and end in seconds.

    Raises:
        ValueError: on bad lines, naming file and line.
    """

    def __init__(
        self, wav_scp: Path, sampling_rate: int, segments: Optional[Path] = None
    ):
        self.sampling_rate = sampling_rate
        recordings = read_table(wav_scp, 2)
        self.parts: Dict[str, Tuple[float, float]] = {}
        if segments is None:
            self.utterances = recordings
            return
        sources = dict(recordings)
        self.utterances = []
        for number, (utt, recording, *times) in enumerate(read_table(segments, 4), 1):
            where = f"{segments}:{number}: {utt}"
            if recording not in sources:
                raise ValueError(f"{where}: recording {recording} is not in {wav_scp}")
            try:
                start, end = map(float, times)
            except ValueError:
                raise ValueError(f"{where}: {times} are not two times") from None
            if not 0 <= start < end:
                raise ValueError(f"{where}: from {start} s to {end} s is no segment")
            self.utterances.append([utt, sources[recording]])
            self.parts[utt] = (start, end)

    @property
    def ids(self) -> List[str]:
        """The utterance ids, in the order of the file."""
        return [utt for utt, _ in self.utterances]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Union[np.ndarray, str]:
        """The samples (N,), float32, in [-1, 1]; or why there are none."""
        utt, source = self.utterances[index]
        try:
            audio, rate = read_audio(source, *self.parts.get(utt, (0.0, math.inf)))
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
        if rate != self.sampling_rate:
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
