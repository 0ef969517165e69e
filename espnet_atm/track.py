"""What a stored track is: a confidence a frame, an id, a time grid, and its audio."""

import functools
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Dict, Iterator, Optional, Tuple, Union

import kaldiio
import numpy as np

from espnet_atm.audio import Table, checksum
from espnet_atm.confidence import check_track
from espnet_atm.errors import UserError, check_file, read_text

if TYPE_CHECKING:  # what reads tracks only must not wait for ESPnet's front ends
    from espnet_atm.frames import FrameGrid

# A scorer's frame may be longer than the model's, but not by so much that the track
# says nothing about single frames.
MAX_RATE_RATIO = 16
# Neither samples nor Hertz are more than this, nor is a first frame so many frames away.
MOST = 10**9
MOST_FRAMES_OFF = 100

SOURCE = re.compile(r"(.+):([0-9]{1,18})(\[[^]]*\])?")
ONE_BYTE = b"\0BCM3 "  # what begins a matrix of one byte a value, as score stores it
ONE_BYTE_HEADER = struct.Struct("<ffii")  # least value, range, rows, columns
STEPS = 255
AUDIO_COLUMNS = 6  # of utt2audio: utt, samples, Hz, checksum, source, track's checksum


class TrackReader(Mapping):
    """Tracks by utterance, each read and looked at when it is asked for.

    A read refuses what is not this utterance's: the archive has the id right before each
    track; beside tracks that ``espnet_atm.bin.score`` stored, ``utt2confidence`` has
    their means, and ``utt2audio`` their checksums and the audio's. None of the three
    files is held in memory.

    Args:
        confidence_scp: Kaldi's: utterance and ``FILE:OFFSET``, a file or a command.
            Relative paths are relative to the current directory.
        folder: has the files that go with the tracks; that of the scp if not given.

    Raises:
        UserError: on bad lines, naming file and line, and on files that are none.
        OSError: when there is no such file.
    """

    def __init__(
        self,
        confidence_scp: Union[str, Path],
        folder: Union[str, Path, None] = None,
    ):
        self.path = Path(confidence_scp)
        self.folder = self.path.parent if folder is None else Path(folder)
        self.tracks = Table(self.path, 2, checked=False)
        # Others' utt2confidence may be about something else.
        made_by_score = any(
            (self.folder / name).exists() for name in ("scorer", "utt2audio")
        )
        self.means = self._beside("utt2confidence", 2) if made_by_score else None
        self.audio = self._beside("utt2audio", AUDIO_COLUMNS)

    def _beside(self, name: str, columns: int) -> Optional[Table]:
        file = self.folder / name
        return Table(file, columns, checked=False) if file.exists() else None

    def __len__(self) -> int:
        return len(self.tracks)

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self.tracks)

    def __contains__(self, utt: object) -> bool:
        return isinstance(utt, str) and self.tracks.get(utt) is not None

    def __getitem__(self, utt: str) -> np.ndarray:
        """The confidence of each frame (S,), float32, in [0, 1].

        Raises:
            UserError: naming the utterance and the file, when there is no such track, or
                it is another utterance's, damaged, or no confidence.
        """
        row = self.tracks.get(utt)
        if row is None:
            raise UserError(f"{self.path}: has no track of {utt}")
        source = row[1]
        track, found = read_track(utt, source, f"{self.path}: {utt}")
        if self.audio is not None:
            expected = self._row(self.audio, utt)[5]
            if expected != found:
                raise UserError(
                    f"{self.path}: {utt}: {source} is not the track that was stored "
                    f"(checksum {found}, in {self.audio.path} {expected}): the archive "
                    "or one of the lists is damaged or exchanged; score again into an "
                    "empty folder"
                )
        if self.means is not None:
            text = self._row(self.means, utt)[1]
            if self.audio is None:
                check_mean(track, text, utt, self.means.path)
            elif text != mean_text(track):
                raise wrong_mean(track, text, utt, self.means.path)
        return track

    def check_complete(self) -> None:
        """Refuse a list that lacks tracks which the files beside it have.

        Raises:
            UserError: naming the two files, with their numbers of lines.
        """
        for table in (self.means, self.audio):
            if table is not None and len(table) != len(self.tracks):
                raise UserError(
                    f"{self.path}: has {len(self.tracks)} tracks, and {table.path} "
                    f"{len(table)} lines: lines are lost, or the run that scores is not "
                    "at its end; run espnet_atm.bin.score again"
                )

    def _row(self, table: Table, utt: str) -> list:
        row = table.get(utt)
        if row is None:
            raise UserError(
                f"{table.path}: has no line of {utt}, which {self.path} has: it is of "
                "another or an unfinished run; run espnet_atm.bin.score again"
            )
        return row

    def check_audio(
        self, utt: str, speech: np.ndarray, rate: int, found: Optional[str] = None
    ) -> bool:
        """Refuse audio that is not what was scored, where that is known.

        Audio of another length or rate may be another form of the same; what is of the
        same has to be the same. Costs some milliseconds for a minute of audio.

        Args:
            utt: its id.
            speech: all samples of the utterance (N,), float, in [-1, 1].
            rate: in Hz.
            found: their :func:`~espnet_atm.audio.checksum`, where it is known.

        Returns:
            Whether the samples were compared, and not only how long they last.

        Raises:
            UserError: naming the utterance, when it is other audio, or lasts longer or
                shorter by more than two of the track's frames.
        """
        if self.audio is None:
            return False
        samples, scored_rate, scored = self.scored_audio(utt)
        if (len(speech), rate) == (samples, scored_rate):
            found = found or checksum(speech)
            if found != scored:
                raise UserError(
                    f"{utt}: its audio is not what was scored: as long, but with "
                    f"checksum {found}, in {self.audio.path} {scored}; score this audio, "
                    "or train on that"
                )
            return True
        self.check_length(utt, len(speech), rate)
        return False

    def check_length(self, utt: str, length: int, rate: int) -> None:
        """Refuse audio that lasts longer or shorter than what was scored.

        Args:
            utt: its id.
            length: samples of the utterance.
            rate: in Hz.

        Raises:
            UserError: naming the utterance, when it is more than two of the track's
                frames.
        """
        if self.audio is None:
            return
        samples, scored_rate, _ = self.scored_audio(utt)
        lost = abs(length / rate - samples / scored_rate)
        shift, scorer_rate = self._frames
        if shift and lost > 2 * shift / (scorer_rate or scored_rate):
            raise UserError(
                f"{utt}: its audio is not what was scored: {length} samples at "
                f"{rate} Hz ({length / rate:.3f} s), in {self.audio.path} {samples} "
                f"at {scored_rate} Hz ({samples / scored_rate:.3f} s)"
            )

    def scored_audio(self, utt: str) -> Tuple[int, int, str]:
        """Samples, Hz and :func:`~espnet_atm.audio.checksum` of what was scored.

        Raises:
            UserError: when ``utt2audio`` does not say it.
        """
        _, samples, rate, scored, *_ = self._row(self.audio, utt)
        numbers = [_whole(x) for x in (samples, rate)]
        if None in numbers:
            raise UserError(
                f"{self.audio.path}: {utt}: {samples!r} samples at {rate!r} Hz is no "
                "audio: the file is damaged"
            )
        return *numbers, scored

    @functools.cached_property
    def _frames(self) -> Tuple[Optional[int], Optional[int]]:
        """Samples from one to the next, and the rate in Hz that they are counted at."""
        shift, _, rate = read_grid_files(self.path.parent)
        return shift, rate


def read_track(utt: str, source: str, where: str) -> Tuple[np.ndarray, str]:
    """A track of a Kaldi archive.

    Args:
        utt: whose it must be, where the source tells a place in an archive.
        source: the right-hand side of a ``confidence.scp`` line.
        where: what to begin an error with, e.g. file and utterance.

    Returns:
        (S,), float32, in [0, 1], and the checksum of what is stored; empty where it is
        not stored as ``espnet_atm.bin.score`` stores it.

    Raises:
        UserError: naming ``where`` and the source.
    """
    found = SOURCE.fullmatch(source)
    path, offset, part = found.groups() if found else (source, "0", None)
    try:
        if source.endswith("|") or source.startswith("|"):
            return check_track(np.asarray(kaldiio.load_mat(source)), where), ""
        check_file(path)
        with open(path, "rb") as ark:
            if found and not has_id(ark, int(offset), utt):
                raise UserError(
                    f"{where}: {source} is not its track: that place in the archive "
                    "does not have its id; lines are exchanged, or one of the two "
                    "files is damaged"
                )
            ark.seek(int(offset))
            track, stored = read_record(ark)
        if part:
            track, stored = kaldiio.load_mat(source), ""
    except UserError as e:
        message = str(e)
        raise UserError(
            message if message.startswith(where) else f"{where}: {message}"
        ) from None
    except OSError as e:
        raise UserError(f"{where}: {source}: {e.strerror or e}") from None
    except Exception as e:  # kaldiio raises all sorts of things on what is damaged
        raise UserError(
            f"{where}: {source} cannot be read as a track: {type(e).__name__}: {e}"
        ) from None
    return check_track(np.asarray(track), where), stored


def has_id(ark: BinaryIO, offset: int, utt: str) -> bool:
    """Whether an archive has the id right before what is stored at ``offset``."""
    name = utt.encode() + b" "
    if offset < len(name):
        return False
    ark.seek(offset - len(name))
    return ark.read(len(name)) == name


def read_record(ark: BinaryIO) -> Tuple[np.ndarray, str]:
    """What is stored at an archive's position, and its checksum as in ``utt2audio``.

    Raises:
        Exception: whatever is raised on what is damaged.
    """
    begin = ark.tell()
    head = ark.read(len(ONE_BYTE) + ONE_BYTE_HEADER.size)
    if head[:3] == b"PKL":
        raise UserError("is a pickle, which may run anything, and is not read")
    if not head.startswith(ONE_BYTE):
        ark.seek(begin)
        return kaldiio.matio.read_kaldi(ark), ""
    least, extent, rows, columns = ONE_BYTE_HEADER.unpack(head[len(ONE_BYTE) :])
    if rows < 1 or columns != 1:
        raise UserError(f"is no track: a matrix of {rows} by {columns}")
    data = ark.read(rows)
    if len(data) < rows:
        raise UserError(f"is cut off: {len(data)} of {rows} frames are there")
    steps = np.frombuffer(data, np.uint8).astype(np.float32)
    # As Kaldi has it, to the bit.
    return least + steps * extent / STEPS, record_checksum(head + data)


def record_checksum(record: bytes) -> str:
    """Of what is stored of a track, from its ``\\\\0B`` on."""
    return f"{zlib.crc32(record):08x}"


def mean_text(track: np.ndarray) -> str:
    """What ``utt2confidence`` says of a stored track."""
    return f"{np.rint(track * STEPS).mean() / STEPS:.6f}"


def check_mean(track: np.ndarray, text: str, utt: str, file: Path) -> None:
    """Compare a track with its mean in ``utt2confidence`` of an earlier version.

    That is the mean of values rounded to steps of 1/255. kaldiio rounds up from 0.501
    steps on, so that one in a thousand of the stored values is a step below, or all that
    are the same.

    Raises:
        UserError: naming the utterance, both means and the file.
    """
    steps = np.rint(track * STEPS)
    mean = float(steps.mean() / STEPS)
    said = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else math.nan
    alike = np.bincount(steps.astype(np.int64))[:STEPS].max(initial=0)
    below = (2 + 0.01 * len(track) + alike) / STEPS / len(track)
    if not mean - 2e-6 <= said <= mean + 2e-6 + below:
        raise wrong_mean(track, text, utt, file)


def wrong_mean(track: np.ndarray, text: str, utt: str, file: Path) -> UserError:
    """What to say of a track that is not the one of its mean."""
    return UserError(
        f"{file}: {utt}: {text} is not the mean of its track, which is "
        f"{mean_text(track)}: the archive or one of the lists is damaged or exchanged; "
        "score again into an empty folder"
    )


def read_scorer(folder: Path) -> Optional[Dict[str, Any]]:
    """What ``espnet_atm.bin.score`` notes of a scorer; None where there is no note.

    Raises:
        UserError: when the file ``scorer`` holds none.
    """
    file = folder / "scorer"
    if not file.exists():
        return None
    try:
        found = json.loads(read_text(file))
    except (ValueError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        found = None
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{file}: is damaged, or not what espnet_atm.bin.score writes there: it does "
            "not say what made the scores; score again into an empty folder"
        )
    if "model" in found:  # of a version that knew no speech gate
        found.setdefault("speech_gate", None)
    return found


def read_track_grid(
    confidence_scp: str, sampling_rate: int, encoder: Optional["FrameGrid"] = None
) -> "FrameGrid":
    """The time grid of a stored track, from the files beside its scp.

    ``frame_shift`` and, where the scorer's first frame is not centred at half a shift,
    ``frame_offset`` hold one number each, in samples at the ``sampling_rate`` of the
    scorer, in Hz; ``espnet_atm.bin.score`` writes them, and the same into ``scorer``.
    Without that rate they count samples of the audio.

    Args:
        confidence_scp: path of ``confidence.scp``.
        sampling_rate: of the audio, in Hz.
        encoder: the grid of the frames that are masked, which the track must suit.

    Returns:
        The grid in samples of that audio; its shift need not be whole where the scorer
        has another rate.

    Raises:
        UserError: when a number is missing or impossible, or not what ``scorer`` says,
            naming file and numbers.
    """
    from espnet_atm.frames import FrameGrid

    folder = Path(confidence_scp).parent
    if not (folder / "frame_shift").exists():
        raise UserError(
            f"{folder / 'frame_shift'} is missing: {confidence_scp} does not say how "
            "many samples a frame lasts; write that number there, e.g. echo 640 > "
            f"{folder / 'frame_shift'}"
        )
    shift, offset, scorer_rate = read_grid_files(folder)
    scorer_rate = scorer_rate or sampling_rate
    offset = shift / 2 if offset is None else offset
    if scorer_rate != sampling_rate:
        shift, offset = (x * sampling_rate / scorer_rate for x in (shift, offset))
        shift = int(shift) if shift.is_integer() else shift
    if encoder is not None and shift > MAX_RATE_RATIO * encoder.shift:
        raise UserError(
            f"{folder / 'frame_shift'}: a track of one value in {shift} samples is too "
            f"coarse for encoder frames of {encoder.shift} samples; write the scorer's "
            "frame shift in samples there, or score with a model of a finer frame rate"
        )
    return FrameGrid(shift, offset)


def read_grid_files(
    folder: Path,
) -> Tuple[Optional[int], Optional[float], Optional[int]]:
    """``frame_shift``, ``frame_offset`` and ``sampling_rate`` of a folder.

    Returns:
        Samples, samples and Hz; None where there is no such file.

    Raises:
        UserError: on what is no such number, or not what ``scorer`` says.
    """
    shift = _positive(folder / "frame_shift", "samples")
    rate = _positive(folder / "sampling_rate", "Hz")
    file = folder / "frame_offset"
    offset = None
    if file.exists():
        text = read_text(file).strip()
        try:
            offset = float(text) if re.fullmatch(r"[-+0-9.eE]+", text) else math.nan
        except ValueError:
            offset = math.nan
        # NaN is not within either.
        if not abs(offset) <= MOST_FRAMES_OFF * (shift or MOST):
            raise UserError(
                f"{file}: {text[:40]!r} is not a number of samples at which a first "
                f"frame of {shift} can be"
            )
    scorer = read_scorer(folder) or {}
    for name, value in (
        ("frame_shift", shift),
        ("frame_offset", offset),
        ("sampling_rate", rate),
    ):
        if name in scorer and value is not None and scorer[name] != value:
            raise UserError(
                f"{folder / name}: {value} is not {scorer[name]}, which "
                f"{folder / 'scorer'} says: one of the two is damaged"
            )
        if name in scorer and value is None:
            raise UserError(
                f"{folder / name} is missing; {folder / 'scorer'} says {scorer[name]}"
            )
    return shift, offset, rate


def _positive(file: Path, unit: str) -> Optional[int]:
    if not file.exists():
        return None
    text = read_text(file).strip()
    value = _whole(text)
    if not value:
        raise UserError(
            f"{file}: {text[:40]!r} is not a positive whole number of {unit}, of {MOST} "
            "at most"
        )
    return value


def _whole(text: str) -> Optional[int]:
    """A whole number in plain digits, of :data:`MOST` at most; else None."""
    value = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else MOST + 1
    return value if value <= MOST else None
