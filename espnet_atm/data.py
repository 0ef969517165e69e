"""What training reads: every utterance checked as it is read, and named."""

import copy
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

import numpy as np
import torch
from espnet2.fileio.sound_scp import soundfile_read
from espnet2.train import dataset
from omniio import kaldi

from espnet_atm.audio import Table, checksum, read_audio
from espnet_atm.config import TRACK
from espnet_atm.cuts import cut_from, samples_to_seek
from espnet_atm.errors import UserError, check_file
from espnet_atm.labels import Labels
from espnet_atm.losses.hubert import IGNORED
from espnet_atm.track import TrackReader

SPEECH, LABELS = "speech", "text"
# A data type of ESPnet's, as train_data_path_and_name_and_type names it: path, name of
# the stream, type.
Stream = Tuple[str, str, str]
Audio = Tuple[np.ndarray, Optional[int]]  # samples, and the rate in Hz if it is known

# Of an utterance of which a part is read: samples of all, the first that is read, and a
# number in [0, 1) that the place of the crop is drawn by.
PLACE = "place"
# So many crops for one utterance that is read whole, and compared with what was scored.
CROPS_TO_ONE_WHOLE = 64

PARTS = "num_splits"  # says of a folder that it is read part by part, and of how many
# Utterances that a message names.
NAMED = 3
# Lists of no more bytes than this are compared before a model is built: 0.3 s.
SMALL = 1 << 26
# Types whose file has a line for each utterance, which begins with its id.
LISTS = ("sound", "multi_columns_sound", "variable_columns_sound", "kaldi_ark", "npy")
LISTS += ("text", "text_int", "text_float", "csv_int", "csv_float", "pseudo_labels")
# For each option's list of files, what to do when one lacks utterances.
ADVICE = {
    TRACK: "score them, or train on those that have tracks only (a subset as the recipe "
    "makes where --max_skipped allows)",
    LABELS: "label them, or leave them out of the training",
}


@functools.lru_cache(maxsize=4)
def open_track(path: str) -> TrackReader:
    """The tracks of a ``confidence.scp``, opened once in each process.

    The files that go with one that was split into parts are beside the folder of parts.
    """
    return TrackReader(path, folder_of(path))


def folder_of(path: str) -> Path:
    """Where the files are that go with a list, or with all parts of one."""
    folder = Path(path).parent
    return folder.parent if (folder / PARTS).is_file() else folder


class Lines(Mapping):
    """The rest of each line by the id that it begins with; ESPnet's type ``text``.

    Of which ESPnet holds all in every process, and this where the lines are.
    """

    def __init__(self, path: str):
        self.table = Table(path, 2, checked=False)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self.table)

    def __getitem__(self, utt: str) -> str:
        row = self.table.get(utt)
        if row is None:
            raise KeyError(utt)
        return row[1]


# Read by ESPnet as its other types are, from a process of its own or not. (It takes the
# first of its types that a name begins with.)
LINES_TYPE = "mapped_lines"
dataset.DATA_TYPES[LINES_TYPE] = dict(
    func=Lines, kwargs=[], help="text, of which nothing is held in memory"
)
LABELS_TYPE = "pseudo_labels"
dataset.DATA_TYPES[LABELS_TYPE] = dict(
    func=Labels, kwargs=[], help="labels.scp of espnet_atm.bin.label"
)
TRACK_TYPE = "confidence_track"
dataset.DATA_TYPES[TRACK_TYPE] = dict(
    func=open_track, kwargs=[], help="confidence.scp of espnet_atm.bin.score"
)


def _read_ark(source: str) -> Audio:
    found = kaldi.load_mat(source)
    audio, rate = found, None
    if isinstance(found, tuple):
        rate, audio = sorted(found, key=lambda x: isinstance(x, np.ndarray))
    if audio.dtype.kind == "i":
        audio = audio / np.float32(1 << (8 * audio.dtype.itemsize - 1))
    return audio, rate


# How the audio of each type is read: from the right-hand side of a line. The types
# that are not here are read by ESPnet, and say no rate.
READERS: Dict[str, Callable[[str], Audio]] = {
    "sound": read_audio,
    "multi_columns_sound": lambda x: soundfile_read(x.split(), dtype="float32"),
    "kaldi_ark": _read_ark,
}


class Crop(NamedTuple):
    """What training takes of a longer utterance.

    Args:
        samples: at most.
        shift: samples from one encoder frame to the next; crops begin at frames.
        random: whether they begin anywhere, or at the beginning.
    """

    samples: int
    shift: int
    random: bool


class Reading:
    """Reads an utterance's audio and checks all of it, before ESPnet's preprocessing.

    ESPnet's readers tell neither utterance nor rate, let NaN pass, and differ from
    dataset to dataset; so they hand over the right-hand side of the line, as text.

    Args:
        stock: the preprocessing that ESPnet built, if any.
        sampling_rate: that the audio must have, in Hz.
        num_classes: labels must be below; None where no loss has labels.

    Attributes:
        crop: where set, only what training takes is read of an utterance, if it can be.
    """

    def __init__(
        self,
        stock: Optional[Callable[[str, Dict], Dict]],
        sampling_rate: int,
        num_classes: Optional[int] = None,
    ):
        self.stock = stock
        self.sampling_rate = sampling_rate
        self.num_classes = num_classes
        self.kind: Optional[str] = None
        self.track: Optional[str] = None
        self.labels: Optional[Labels] = None
        self.crop: Optional[Crop] = None

    def of(
        self, streams: Collection[Stream], one_by_one: bool = False
    ) -> Tuple[List[Stream], "Reading"]:
        """The same streams with types of our own, and what reads them.

        Args:
            streams: as the data options name them.
            one_by_one: whether they are read once, line by line, as for statistics.
        """
        reading, ours = copy.copy(self), []
        lines = "text" if one_by_one else LINES_TYPE
        for path, name, kind in streams:
            if name == SPEECH and kind in READERS:
                reading.kind, kind = kind, lines
            if name == LABELS and kind == "text":
                kind = lines
            if name == LABELS and kind == LABELS_TYPE:
                reading.labels = Labels(path)
            if name == TRACK and kind == "kaldi_ark":
                reading.track, kind = path, TRACK_TYPE
            ours.append((path, name, kind))
        return ours, reading

    def __call__(self, utt: str, data: Dict) -> Dict:
        """Check an utterance.

        Args:
            utt: its id.
            data: its streams: ``speech`` (N,), or where it is to be read from;
                ``confidence`` (S,); ``text``, labels or ids.

        Returns:
            The streams, preprocessed; of audio that is read in part, ``place`` (3,) too.

        Raises:
            UserError: naming the utterance.
        """
        data = dict(data)
        # ESPnet's dataset for statistics comes twice: with some of the streams first.
        if SPEECH in data:
            source, place = self._choose(data[SPEECH])
            track = open_track(self.track) if self.track and TRACK in data else None
            labels = self.labels if LABELS in data else None
            if place is None:
                data[SPEECH] = self._read_whole(utt, source, track, labels)
            else:
                data[SPEECH], data[PLACE] = self._read_speech(utt, source), place
                if track is not None:
                    track.check_length(utt, int(place[0]), self.sampling_rate)
        words = data.get(LABELS)
        if self.stock is not None:
            data = self.stock(utt, data)
        if isinstance(data.get(LABELS), np.ndarray):
            self._check_labels(utt, data[LABELS], words)
        return data

    def _choose(self, speech) -> Tuple[Any, Optional[np.ndarray]]:
        """What to read, and its place in the utterance if it is a part of it."""
        if self.crop is None or self.kind != "sound" or not isinstance(speech, str):
            return speech, None
        length = samples_to_seek(speech)
        keep, shift, random = self.crop
        if length is None or length <= keep:
            return speech, None
        known = self.track is not None or self.labels is not None
        if known and not int(torch.randint(CROPS_TO_ONE_WHOLE, ())):
            return speech, None
        part = float(torch.rand((), dtype=torch.float64)) if random else 0.0
        first = crop_start(part, length, keep, shift)
        # Beside a shorter utterance a crop is shorter, and may begin a frame later.
        last = min(first + keep + shift, length)
        return cut_from(speech, first, last), np.array([length, first, part])

    def _read_whole(
        self, utt: str, source, track: Optional[TrackReader], labels: Optional[Labels]
    ) -> np.ndarray:
        """All of an utterance, compared with what was scored and labelled.

        Then a FLAC need not be compared with its own checksum, which takes longer.
        """
        known = labels is not None
        if track is not None and track.audio is not None:
            known = known or track.scored_audio(utt)[1] == self.sampling_rate
        speech = self._read_speech(utt, source, digest=not known)
        audio = speech.astype(np.float32, copy=False)
        found = checksum(audio) if known else None
        compared = labels is not None
        try:
            if track is not None:
                compared |= track.check_audio(utt, audio, self.sampling_rate, found)
            if labels is not None:
                labels.check_audio(utt, audio, found)
        except UserError:
            if known:
                self._read_speech(utt, source)  # tells of a damaged file
            raise
        if known and not compared:
            self._read_speech(utt, source)
        return speech

    def _read_speech(self, utt: str, speech, digest: bool = True) -> np.ndarray:
        rate, source = None, ""
        if isinstance(speech, str):
            source = f" ({speech})"
            if speech in ("", "None"):
                raise UserError(f"{utt}: has no audio")
            read = READERS[self.kind]
            if read is read_audio:
                read = functools.partial(read_audio, digest=digest)
            try:
                speech, rate = read(speech)
            except Exception as e:  # whatever the reader of this audio format raises
                raise UserError(f"{utt}: {_told(e)}{source}") from e
        if not isinstance(speech, np.ndarray):
            raise UserError(f"{utt}: has no audio")
        if rate not in (None, self.sampling_rate):
            raise UserError(
                f"{utt}: is sampled at {rate} Hz, and frontend_conf.fs is "
                f"{self.sampling_rate}{source}; resample the audio, e.g. by "
                "format_wav_scp.sh --fs, or write the rate of all of it there"
            )
        if speech.ndim != 1:
            raise UserError(
                f"{utt}: has {speech.shape[-1]} channels{source}; choose one, e.g. by "
                "format_wav_scp.sh"
            )
        if speech.size == 0:
            raise UserError(f"{utt}: is empty{source}")
        if not np.isfinite(speech).all():
            at = int(np.flatnonzero(~np.isfinite(speech))[0])
            raise UserError(
                f"{utt}: has samples that are not finite, {speech[at]} at sample {at} "
                f"first{source}"
            )
        return speech

    def _check_labels(self, utt: str, labels: np.ndarray, words) -> None:
        if labels.ndim != 1 or labels.dtype.kind != "i":
            raise UserError(
                f"{utt}: labels must be whole numbers, one for each frame, and these are "
                f"{labels.dtype} of shape {labels.shape}"
            )
        converter = getattr(self.stock, "token_id_converter", None)
        if isinstance(words, str) and converter is not None:
            unknown = np.flatnonzero(labels == converter.unk_id)
            if unknown.size:
                words = words.split()
                at = int(unknown[0])
                word = words[at] if len(words) == len(labels) else "one"
                raise UserError(
                    f"{utt}: label {word} (number {at + 1} of {len(labels)}) is not in "
                    f"the token list {converter.token_list_repr}"
                )
        if self.num_classes is None:
            return
        # -1 is what frames have that have no label.
        bad = np.flatnonzero((labels < IGNORED) | (labels >= self.num_classes))
        if bad.size:
            raise UserError(
                f"{utt}: label {labels[bad[0]]} (number {bad[0] + 1} of {len(labels)}) is "
                f"not in [0, {self.num_classes - 1}], and the loss hubert has num_classes: "
                f"{self.num_classes}"
            )


def crop_start(part: float, length: int, keep: int, shift: int) -> int:
    """Where a crop begins, in samples: at a multiple of the shift, each as likely.

    Args:
        part: in [0, 1); of one part, shorter crops lie in the longer ones, or begin or
            end one shift beside.
        length, keep: samples of the utterance and of the crop.
        shift: samples.
    """
    return int(part * ((length - keep) // shift + 1)) * shift


def _told(error: Exception) -> str:
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return str(error)  # read_audio's own words among others
    return f"cannot be read: {type(error).__name__}: {error}"


def check_lists(streams: Collection[Stream], shape_files: Collection[str]) -> None:
    """Refuse a set in which an utterance lacks a stream.

    ESPnet finds out when the utterance's turn comes, with a ``KeyError``. Reads the
    lists of ids only, whatever they name.

    Args:
        streams: of one set, as the data options name them.
        shape_files: those that the batches are made from; without any, the ids of
            the audio are the set's.

    Raises:
        UserError: naming the file, how many are missing and the first of them.
    """
    files = {path: name for path, name, kind in streams if kind in LISTS}
    speech = [path for path, name in files.items() if name == SPEECH]
    keys = [*shape_files, *speech][:1]
    if not keys:
        return  # ESPnet asks for speech, and a type of another kind makes up its ids
    others = [*shape_files[1:], *files]
    if others and _are_sorted(keys[0], others):
        return
    wanted = {utt for _, utt, _ in _lines(keys[0])}
    if not wanted:
        raise UserError(f"{keys[0]}: names no utterances")
    for path in others:
        left = set(wanted)
        for number, utt, value in _lines(path):
            if utt not in wanted:
                continue
            if utt not in left:
                raise UserError(f"{path}:{number}: {utt} is in a line before already")
            if not value:
                raise UserError(f"{path}:{number}: {utt} has nothing behind its id")
            left.discard(utt)
        if left:
            advice = ADVICE.get(files.get(path), "make it of the same utterances")
            raise UserError(
                f"{path}: lacks {len(left)} of the {len(wanted)} utterances in "
                f"{keys[0]}: {', '.join(sorted(left)[:NAMED])}"
                f"{' ...' if len(left) > NAMED else ''}; {advice}"
            )


def are_small(parts: Collection[Tuple[Collection[Stream], Collection[str]]]) -> bool:
    """Whether the lists of a set, or of its parts, are compared in no time.

    Args:
        parts: streams and shape files of each.
    """
    files = [
        file
        for streams, shape_files in parts
        for file in [*shape_files, *(path for path, _, kind in streams if kind in LISTS)]
    ]
    return sum(os.path.getsize(x) for x in files if os.path.isfile(x)) <= SMALL


def _are_sorted(first: str, others: Collection[str]) -> bool:
    """Whether lists have the ids of the first, sorted, each with something behind it.

    As those of a recipe have: then none of them need be held in memory.
    """
    try:
        wanted = Table(first, 1)
        tables = (Table(path, 2) for path in others)
        return len(wanted) > 0 == wanted.begin and all(
            table.begin == 0 and table.has_ids_of(wanted) for table in tables
        )
    except UserError:  # told below in other words
        return False


def check_not_all_zero(confidence_scp: str, shape_files: Collection[str]) -> None:
    """Refuse a set whose every utterance has the confidence 0.

    As far as ``utt2confidence``, which scoring leaves beside the tracks, tells.

    Raises:
        UserError: naming the file.
    """
    file = Path(confidence_scp).parent / "utt2confidence"
    if not file.is_file():
        return
    wanted = Table(shape_files[0], 1, checked=False) if shape_files else None
    found = 0
    for number, utt, value in _lines(str(file)):
        try:
            mean = float(value)
        except ValueError:
            raise UserError(f"{file}:{number}: {value!r} is not a confidence") from None
        if wanted is not None and wanted.get(utt) is None:
            continue
        if mean != 0:
            return
        found += 1
    if found:
        raise UserError(
            f"{file}: all {found} utterances have the confidence 0: it can neither guide "
            "masks nor weigh losses; look at the scorer and its options"
        )


def parts_of(path: str) -> List[str]:
    """The files of a folder that ``multiple_iterator`` reads part by part.

    Raises:
        UserError: naming what is missing.
    """
    file = Path(path) / PARTS
    if not file.is_file():
        raise UserError(
            f"{path}: is no folder of parts, as multiple_iterator wants it: {file} is "
            "missing"
        )
    text = file.read_text().strip()
    if not text.isdigit() or int(text) == 0:
        raise UserError(f"{file}: {text!r} is not a positive whole number of parts")
    return [str(Path(path) / f"split.{number}") for number in range(int(text))]


def _lines(path: str) -> Iterator[Tuple[int, str, str]]:
    """Number, id and the rest of each line, as ESPnet takes them apart."""
    check_file(path)
    with open(path, encoding="utf-8") as f:
        try:
            for number, line in enumerate(f, 1):
                columns = line.rstrip().split(maxsplit=1)
                if not columns:
                    raise UserError(f"{path}:{number}: is an empty line")
                if number == 1 and columns[0].startswith("\ufeff"):
                    raise UserError(
                        f"{path}: begins with a byte-order mark, which would be part of "
                        "the first id; write it without"
                    )
                yield number, columns[0], columns[1] if len(columns) == 2 else ""
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: is no text in UTF-8: {e.reason}") from None
