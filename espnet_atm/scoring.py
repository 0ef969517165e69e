"""The run that scores a corpus, window by window of its list."""

import itertools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Hashable,
    Iterator,
    List,
    NamedTuple,
    Optional,
)

import numpy as np
import torch
from tqdm import tqdm

from espnet_atm.audio import AudioDataset
from espnet_atm.errors import UserError
from espnet_atm.files import write_line
from espnet_atm.reading import Recordings, Records, reader_of, unpack
from espnet_atm.store import ScoreWriter, claim

if TYPE_CHECKING:
    from espnet_atm.scorer import Scorer

# Utterances that are sorted by length into batches, of no more audio than this at a
# time, while as many again are taken over.
WINDOW = 128
PART_SECONDS = 3600
# Audio of a batch, padding included, on a CPU and on a GPU. What a larger batch computes
# does not stay in a CPU's caches: 100 s are a quarter slower than 30 s.
BATCH_SECONDS = (30, 1000)
TOO_SHORT = "{} samples are too short for one frame"


def compare_sources(
    dataset: AudioDataset, writer: ScoreWriter, num_workers: int
) -> None:
    """Refuse scores of other audio than the lists name by now.

    Where a source is the one that was scored, its audio is not read; where it is
    elsewhere or was written again, the samples are compared.

    Args:
        dataset: the utterances, at their own sampling rates.
        writer: has those that are scored.
        num_workers: processes that read audio.

    Raises:
        UserError: naming the first that differs.
    """
    changed = {}
    for index, row in writer.sources():
        if dataset.source_hash(index) != row[4]:
            changed[index] = row
    if not changed:
        return
    logging.info(f"{len(changed)} scored utterances come from elsewhere: comparing")
    hashes, other, gone = {}, [], []
    records = reader_of(Records(dataset), list(changed), num_workers, writer.lock)
    for (index, row), found in zip(
        changed.items(),
        tqdm(records, total=len(changed), unit="utt", mininterval=5, delay=5),
    ):
        if found.startswith("no such file"):
            gone.append(row[0])
        elif found == " ".join(row[1:4]):
            hashes[row[0]] = dataset.source_hash(index)
        else:
            other.append((row[0], found, " ".join(row[1:4])))
    if gone:
        logging.warning(
            f"the audio of {len(gone)} scored utterances is not there any more, e.g. of "
            f"{gone[0]}: their scores stay"
        )
    if other:
        utt, found, scored = other[0]
        raise UserError(
            f"{writer.dir} holds scores of other audio for {len(other)} utterances, e.g. "
            f"{utt}: what {dataset.recordings.path} names now is not what was scored "
            f"({found}; scored: {scored}: samples, Hz, checksum); give another "
            "--output_dir, or remove that one"
        )
    writer.replace_sources(hashes)


def score_corpus(
    scorer: "Scorer",
    dataset: AudioDataset,
    writer: ScoreWriter,
    measure: Dict[str, Any],
    batch_bins: Optional[int],
    max_seconds: float,
    num_workers: int,
) -> None:
    """Score window by window.

    Windows begin at the same utterances in each run, and a window is batched as a
    whole, even where a part of it is scored already: so the scores do not depend on
    where an earlier run ended, to the last bit.

    Args:
        scorer: the model.
        dataset: the utterances; from here on they have the scorer's sampling rate.
        writer: has those that are scored already, and gets the others.
        measure: options of ``Scorer.score``.
        batch_bins: samples of a batch, padding included; None for as much as suits the
            device.
        max_seconds: what is longer is scored in windows of so much.
        num_workers: processes that read audio.
    """
    dataset.sampling_rate = scorer.sampling_rate
    grid = {
        "frame_shift": scorer.grid.shift,
        "frame_offset": scorer.grid.offset,
        "sampling_rate": scorer.sampling_rate,
    }
    claim(writer.dir, grid)
    for name, value in grid.items():
        write_line(writer.dir / name, str(value))
    logging.info(
        f"scorer frames: every {scorer.grid.shift} samples at {scorer.sampling_rate} Hz"
    )
    alone = scorer.depends_on_padding(**measure)
    if alone:
        logging.warning(
            "the scorer's scores depend on the padding of a batch: only utterances of "
            "the same length are scored together"
        )
    seconds = BATCH_SECONDS[scorer.device != "cpu"]
    batch_bins = batch_bins or seconds * scorer.sampling_rate
    whole_samples = max_seconds * scorer.sampling_rate
    max_samples = min(whole_samples, scorer.window or math.inf)

    windows = [
        range(start, min(start + WINDOW, len(dataset)))
        for start in range(0, len(dataset), WINDOW)
        if not writer.done[start : start + WINDOW].all()
    ]
    indices = itertools.chain.from_iterable(windows)
    audio = iter(reader_of(Recordings(dataset), indices, num_workers, writer.lock))
    bar = tqdm(
        initial=len(dataset) - sum(map(len, windows)),
        total=len(dataset),
        unit="utt",
        mininterval=5,
    )

    def read() -> Iterator[Part]:
        """Parts of windows, with their audio."""
        for window in windows:
            first, samples, part = window.start, 0, Part({}, {}, {})
            for index in window:
                found, record = next(audio)
                if isinstance(found, str):
                    part.skipped[index] = found
                elif scorer.is_too_short(len(found)):
                    part.skipped[index] = TOO_SHORT.format(len(found))
                else:
                    part.speech[index], part.records[index] = found, record
                    samples += len(found)
                if samples > PART_SECONDS * scorer.sampling_rate or index == window[-1]:
                    yield part._replace(utterances=range(first, index + 1))
                    first, samples, part = index + 1, 0, Part({}, {}, {})

    def note(batch: List[int], lengths: Dict[int, int]) -> None:
        if lengths[batch[0]] > whole_samples:
            # Now it matters, and not before.
            claim(writer.dir, {"max_seconds": max_seconds})
        writer.note(
            {
                dataset.utterances[index][0]: lengths[index] / scorer.sampling_rate
                for index in batch
            }
        )

    # Taking audio over from the reading processes must not wait for the scorer either.
    with ThreadPoolExecutor(1) as reader:
        parts = read()
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            scores = score_window(
                *(scorer, part.speech, batch_bins, alone, measure, part.skipped),
                *(max_samples, note),
            )
            writer.write(
                {
                    index: scores[index]
                    for index in part.utterances
                    if index in scores and not writer.done[index]
                },
                part.records,
            )
            for index in sorted(part.skipped):
                writer.skip(index, part.skipped[index])
            bar.update(len(part.utterances))
    bar.close()


class Part(NamedTuple):
    """A part of a window.

    Args:
        speech: samples of each utterance (N,), as :func:`~espnet_atm.reading.pack` leaves them.
        records: what tells its audio from other, as ``utt2audio`` has it.
        skipped: why others have no score.
        utterances: the numbers of all of them.
    """

    speech: Dict[int, np.ndarray]
    records: Dict[int, str]
    skipped: Dict[int, str]
    utterances: range = range(0)


def make_batches(
    lengths: Dict[Hashable, int],
    batch_bins: int,
    alone: bool,
    window: Optional[int] = None,
) -> List[List[Hashable]]:
    """Fill batches with utterances of about the same length.

    Args:
        lengths: samples of each utterance.
        batch_bins: samples of a batch, padding included; a longer utterance is a batch
            of its own.
        alone: let only utterances of the same length be together.
        window: samples that each is padded to; None for those of the longest.
    """
    batches: List[List[Hashable]] = []
    longest = 0
    for utt in sorted(lengths, key=lambda utt: (-lengths[utt], utt)):
        full = not batches or (len(batches[-1]) + 1) * (window or longest) > batch_bins
        if full or (alone and lengths[utt] != longest):
            batches.append([])
            longest = lengths[utt]
        batches[-1].append(utt)
    return batches


def score_window(
    scorer: "Scorer",
    speech: Dict[int, np.ndarray],
    batch_bins: int,
    alone: bool,
    measure: Dict,
    skipped: Dict[int, str],
    max_samples: float = math.inf,
    note: Callable[[List[int], Dict[int, int]], None] = lambda *_: None,
) -> Dict[int, np.ndarray]:
    """Score utterances in batches.

    Args:
        scorer: the model.
        speech: samples of each utterance (N,), as :func:`~espnet_atm.reading.pack` leaves them.
        batch_bins, alone: see :func:`make_batches`.
        measure: options of ``Scorer.score``.
        skipped: gets the utterances that the scorer fails on, and why.
        max_samples: what is longer is scored in windows.
        note: is told of each batch, and of the lengths of all utterances, before it is
            scored.

    Returns:
        Confidence of each frame (T,), float32.
    """
    scores = {}
    lengths = {utt: len(x) for utt, x in speech.items()}
    long = sorted(utt for utt in lengths if lengths[utt] > max_samples)
    short = {utt: length for utt, length in lengths.items() if length <= max_samples}
    for utt in long:
        note([utt], lengths)
        samples = torch.from_numpy(unpack(speech[utt]))
        try:
            scores[utt] = scorer.score_long(
                samples, int(max_samples), **measure
            ).numpy()
        except torch.AcceleratorError:
            raise
        except Exception as e:
            skipped[utt] = f"the scorer fails: {e or type(e).__name__}"
    batches = make_batches(short, batch_bins, alone, scorer.window)
    while batches:
        batch = batches.pop(0)
        note(batch, lengths)
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(unpack(speech[utt])) for utt in batch], batch_first=True
        )
        samples = torch.tensor([lengths[utt] for utt in batch])
        try:
            confidence, frames = scorer.score(padded, samples, **measure)
            confidence = confidence.cpu().numpy()
        except torch.AcceleratorError:
            raise  # the GPU itself is broken, and all that followed would fail too
        except Exception as e:  # whatever a model raises on audio that it cannot take
            if len(batch) == 1:
                skipped[batch[0]] = f"the scorer fails: {e or type(e).__name__}"
            elif isinstance(e, torch.OutOfMemoryError):
                half = len(batch) // 2
                logging.warning(
                    f"{len(batch)} utterances of up to {padded.size(1)} samples do not "
                    "fit the GPU's memory: half as many; a smaller --batch_bins is faster"
                )
                batches = [batch[:half], batch[half:], *batches]
            else:  # one of them is to blame
                batches = [[utt] for utt in batch] + batches
            continue
        for utt, row, end in zip(batch, confidence, frames.tolist()):
            if end:
                scores[utt] = row[:end]
            else:
                skipped[utt] = TOO_SHORT.format(lengths[utt])
    return scores
