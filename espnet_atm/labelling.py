"""The runs that take a sample of a corpus for k-means, and that label all of it."""

import contextlib
import fcntl
import json
import logging
import os
import re
import time
import zlib
from pathlib import Path
from typing import Iterable, Iterator, Tuple, Union

import numpy as np
import torch
from tqdm import tqdm

from espnet_atm.audio import AudioDataset
from espnet_atm.errors import UserError
from espnet_atm.features import Features
from espnet_atm.frames import FrameGrid, nearest_frames
from espnet_atm.kmeans import Kmeans
from espnet_atm.labels import LabelWriter
from espnet_atm.reading import Recordings, reader_of, unpack

# What a killed run loses, unless an utterance takes longer; and features in memory.
SECONDS_AT_RISK = 20
BYTES_AT_RISK = 1 << 26
BYTES = 4  # of a number of a feature
# What the list of a sample says: utterance, frames and dimensions; 0 and 0 without any.
LINE = re.compile(rb"(\S+) ([0-9]{1,12}) ([0-9]{1,9})\n")


def label_corpus(
    features: Features,
    kmeans: Kmeans,
    frames: FrameGrid,
    dataset: AudioDataset,
    writer: LabelWriter,
    num_workers: int,
) -> None:
    """Label what has no labels yet.

    Args:
        features: what is labelled by.
        kmeans: its clusters are the labels.
        frames: that get one label each.
        dataset: the utterances, at the features' sampling rate.
        writer: has those that are labelled already, and gets the others.
        num_workers: processes that read audio.
    """
    labels, audio = {}, {}
    saved = time.monotonic()
    for index, found, record in _read(dataset, writer.done, num_workers, writer.lock):
        if isinstance(found, str):
            writer.skip(index, found)
            continue
        speech = unpack(found)
        count = frames.length(len(speech))
        own = features(speech) if features.grid.length(len(speech)) else ()
        if not count or not len(own):
            writer.skip(index, f"{len(speech)} samples are too short for one frame")
            continue
        kmeans.check_size(own.size(1))
        nearest = nearest_frames(features.grid, frames, count).clip(0, len(own) - 1)
        labels[index] = kmeans(own[torch.from_numpy(nearest)])
        audio[index] = record.split()[2]
        if time.monotonic() - saved > SECONDS_AT_RISK:
            writer.write(labels, audio)
            labels, audio, saved = {}, {}, time.monotonic()
    writer.write(labels, audio)


def _read(
    dataset: AudioDataset, done: np.ndarray, num_workers: int, lock
) -> Iterator[Tuple[int, Union[np.ndarray, str], str]]:
    """Number, audio or why there is none, and its record, of what is not done."""
    todo = np.flatnonzero(~done)
    audio = reader_of(Recordings(dataset), map(int, todo), num_workers, lock)
    bar = tqdm(
        zip(todo.tolist(), audio),
        initial=len(done) - len(todo),
        total=len(done),
        unit="utt",
        mininterval=5,
    )
    for index, (found, record) in bar:
        yield index, found, record


class Sample(contextlib.AbstractContextManager):
    """Features of some utterances of a corpus, in a file that is gone on with.

    To be entered, which waits for another run that has the same file.

    Args:
        model_file: that is learned from them; two files beside it have the features, and
            the list of what is there.
        features: what to extract.
        dataset: the utterances, at the features' sampling rate.
        portion: of the utterances, drawn at random.
        seed: that they are drawn by.
    """

    def __init__(
        self,
        model_file: Path,
        features: Features,
        dataset: AudioDataset,
        portion: float,
        seed: int = 0,
    ):
        self.features, self.dataset = features, dataset
        kind = json.dumps([features.describe(), features.sampling_rate])
        name = f"{model_file.name}.{zlib.crc32(kind.encode()):08x}"
        self.file = model_file.with_name(f"{name}.features")
        self.list = model_file.with_name(f"{name}.list")
        count = max(round(portion * len(dataset)), 1)
        order = np.random.default_rng(seed).permutation(len(dataset))
        self.chosen = np.sort(order[:count])

    def __enter__(self) -> "Sample":
        while True:
            self.done = open(self.list, "a+b")
            fcntl.flock(self.done, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):  # removed while this one waited
                there = os.stat(self.list)
                if os.path.samestat(there, os.fstat(self.done.fileno())):
                    return self
            self.done.close()

    def __exit__(self, *_) -> None:
        self.done.close()

    def collect(self, num_workers: int) -> np.ndarray:
        """Extract what is not there yet.

        Args:
            num_workers: processes that read audio.

        Returns:
            The features (F, D), float32, mapped.

        Raises:
            UserError: when no utterance has any.
        """
        with open(self.file, "ab") as data:
            number, frames, size = self._take_up()
            data.truncate(frames * size * BYTES)
            left = np.ones(len(self.dataset), dtype=bool)
            left[self.chosen[number:]] = False
            rows, lines, pending, saved, skipped = [], [], 0, time.monotonic(), 0
            for index, found, _ in _read(self.dataset, left, num_workers, self.done):
                utt = self.dataset.utterances[index][0]
                own = torch.zeros(0, 0)
                if isinstance(found, str):
                    logging.warning(f"not learned from: {utt}: {found}")
                    skipped += 1
                elif self.features.grid.length(len(speech := unpack(found))):
                    own = self.features(speech).cpu()
                    size = own.size(1)
                rows.append(own.numpy())
                lines.append(f"{utt} {len(own)} {size}\n")
                frames += len(own)
                pending += own.nbytes
                if time.monotonic() - saved > SECONDS_AT_RISK or pending > BYTES_AT_RISK:
                    self._save(data, rows, lines)
                    rows, lines, pending, saved = [], [], 0, time.monotonic()
            self._save(data, rows, lines)
        if skipped:
            logging.warning(f"{skipped} of {len(self.chosen)} utterances were left out")
        if not frames:
            raise UserError(f"{self.dataset.utterances.path}: has nothing to learn from")
        return np.memmap(self.file, np.float32, "r", shape=(frames, size))

    def _take_up(self) -> Tuple[int, int, int]:
        """Utterances, frames and dimensions that are there; cuts off what is not whole."""
        there = os.path.getsize(self.file)
        self.done.seek(0)
        end = number = frames = size = 0
        for line in self.done:
            found = LINE.fullmatch(line)
            if found is None or number == len(self.chosen):
                break
            utt = found[1].decode(errors="replace")
            if utt != self.dataset.utterances[self.chosen[number]][0]:
                raise UserError(f"{self.list}: is about other utterances: {utt}; remove it")
            count, width = int(found[2]), int(found[3]) or size
            if (frames + count) * width * BYTES > there or size not in (0, width):
                break
            frames, size = frames + count, width
            number, end = number + 1, end + len(line)
        self.done.truncate(end)
        return number, frames, size

    def _save(self, data, rows: Iterable[np.ndarray], lines: Iterable[str]) -> None:
        for row in rows:
            data.write(np.ascontiguousarray(row, np.float32).data)
        data.flush()
        os.fsync(data.fileno())
        self.done.write("".join(lines).encode())
        self.done.flush()

    def remove(self) -> None:
        """Make room: what was learned is kept elsewhere."""
        for file in (self.file, self.list):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
