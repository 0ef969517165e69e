"""Audio that processes of their own read ahead, for what is computed of it."""

import ctypes
import functools
import logging
import os
import signal
from typing import Any, Iterable, TextIO, Tuple, Union

import numpy as np
import torch

from espnet_atm.audio import AudioDataset, AudioError

READ_AHEAD = 4  # utterances, of each process
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends


class Recordings(torch.utils.data.Dataset):
    """What the reading processes hand over of each utterance: audio and its record."""

    def __init__(self, dataset: AudioDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tuple[Union[np.ndarray, str], str]:
        source = self.dataset.source_hash(index)  # before it may change
        try:
            audio, record = self.dataset.load(index)
        except AudioError as e:
            return str(e), ""
        return pack(audio), f"{record} {source}"


class Records(Recordings):
    """The record alone, or why there is none."""

    def __getitem__(self, index: int) -> str:
        try:
            return self.dataset.load(index)[1]
        except AudioError as e:
            return str(e)


def reader_of(
    dataset: torch.utils.data.Dataset,
    indices: Iterable[int],
    num_workers: int,
    lock: TextIO,
) -> torch.utils.data.DataLoader:
    """What a dataset has, one by one, in the order of the indices.

    Args:
        dataset: :class:`Recordings`, or one like it.
        indices: which.
        num_workers: processes that read.
        lock: a file that they are not to hold open.
    """
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=functools.partial(_begin_reading, lock, os.getpid()),
        multiprocessing_context="fork" if num_workers else None,
        prefetch_factor=READ_AHEAD if num_workers else None,
    )


def _as_it_is(found: Any) -> Any:
    """Tensors would come through shared memory, which containers lack."""
    return found


def _begin_reading(lock: TextIO, parent: int, _: int) -> None:
    """Let a reading process neither hold the lock nor outlive a run that is killed.

    It would wait for ever for someone to take its audio.
    """
    lock.close()
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        logging.warning("reading processes may stay behind if this one is killed")
    if os.getppid() != parent:  # it was killed before that
        os.kill(os.getpid(), signal.SIGKILL)


def pack(found: np.ndarray) -> np.ndarray:
    """Halve what goes from process to process, where 16 bits say it all."""
    scaled = found * 32768
    with np.errstate(invalid="ignore"):
        pcm = scaled.astype(np.int16)
    return pcm if np.array_equal(pcm, scaled) else found


def unpack(found: np.ndarray) -> np.ndarray:
    return found if found.dtype == np.float32 else found.astype(np.float32) / 32768
