"""The runs that take a sample of a corpus for k-means, and that label all of it."""

import contextlib
import json
import logging
import os
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


class Sample:
    """Features of some utterances of a corpus, in a file that is gone on with.

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

    def collect(self, num_workers: int) -> np.ndarray:
        """Extract what is not there yet.

        Args:
            num_workers: processes that read audio.

        Returns:
            The features (F, D), float32, mapped.

        Raises:
            UserError: when no utterance has any.
        """
        with open(self.file, "ab") as data, open(self.list, "a+") as done:
            number, frames, size = self._take_up(done)
            data.truncate(frames * size * 4)
            left = np.ones(len(self.dataset), dtype=bool)
            left[self.chosen[number:]] = False
            rows, lines, pending, saved, skipped = [], [], 0, time.monotonic(), 0
            for index, found, _ in _read(self.dataset, left, num_workers, done):
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
                    self._save(data, done, rows, lines)
                    rows, lines, pending, saved = [], [], 0, time.monotonic()
            self._save(data, done, rows, lines)
        if skipped:
            logging.warning(f"{skipped} of {len(self.chosen)} utterances were left out")
        if not frames:
            raise UserError(f"{self.dataset.utterances.path}: has nothing to learn from")
        return np.memmap(self.file, np.float32, "r", shape=(frames, size))

    def _take_up(self, done) -> Tuple[int, int, int]:
        """Utterances, frames and dimensions that are there; cuts off half a line."""
        done.seek(0)
        end = number = frames = size = 0
        for line in done:
            columns = line.split()
            if not line.endswith("\n") or len(columns) != 3 or number == len(self.chosen):
                break
            if columns[0] != self.dataset.utterances[self.chosen[number]][0]:
                raise UserError(
                    f"{self.list}: is about other utterances: {columns[0]}; remove it"
                )
            frames += int(columns[1])
            size = int(columns[2]) or size
            number, end = number + 1, end + len(line.encode())
        done.truncate(end)
        return number, frames, size

    def _save(self, data, done, rows: Iterable[np.ndarray], lines: Iterable[str]) -> None:
        for row in rows:
            data.write(np.ascontiguousarray(row, np.float32).data)
        data.flush()
        os.fsync(data.fileno())
        done.writelines(lines)
        done.flush()

    def remove(self) -> None:
        """Make room: what was learned is kept elsewhere."""
        for file in (self.file, self.list):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
