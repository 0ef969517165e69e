"""Batches of a corpus of any size: those of ESPnet's type ``numel``, and no ids in memory."""

from collections.abc import Sequence
from typing import List, Optional, Union

import numpy as np

from espnet_atm.audio import Table


class Batch(Sequence):
    """Ids of the utterances of a batch, read when they are asked for.

    Args:
        utterances: the table that has them, in the first column.
        rows: their numbers (B,), int.
    """

    __slots__ = ("utterances", "rows")

    def __init__(self, utterances: Table, rows: np.ndarray):
        self.utterances = utterances
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Union[int, slice]) -> Union[str, "Batch"]:
        if isinstance(index, slice):
            return Batch(self.utterances, self.rows[index])
        return self.utterances[int(self.rows[index])][0]

    def __reduce__(self):
        # What a reading process gets: the ids alone.
        return tuple, (tuple(self),)


def numel_batches(
    shape_file: str,
    batch_bins: int,
    min_batch_size: int = 1,
    sort_in_batch: str = "descending",
    sort_batch: str = "ascending",
    drop_last: bool = False,
) -> Optional[List[Batch]]:
    """The batches of ESPnet's ``NumElementsBatchSampler``, of one shape file.

    Args:
        shape_file: utterance and length on each line.
        batch_bins: a batch ends with the utterance that makes it larger, padding
            included.
        min_batch_size: utterances in each, at least.
        sort_in_batch, sort_batch: ``ascending`` or ``descending``, by length.
        drop_last: leave out what fills no batch.

    Returns:
        The batches; None where the shapes have more than lengths, or there are none.

    Raises:
        UserError: on lines without a length, and on ids seen twice.
    """
    utterances = Table(shape_file, 2)
    if not len(utterances):
        return None
    with open(shape_file, "rb") as f:
        columns = (line.split()[1] for line in f)
        try:
            lengths = np.fromiter(map(int, columns), np.int64, len(utterances))
        except ValueError:  # 100,80
            return None
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    sizes = batch_sizes(lengths[order], batch_bins, min_batch_size, drop_last)
    ends = np.cumsum(sizes)
    rows = [order[end - size : end] for size, end in zip(sizes, ends)]
    if sort_in_batch == "descending":
        rows = [x[::-1] for x in rows]
    if sort_batch == "descending":
        rows.reverse()
    return [Batch(utterances, x) for x in rows]


def batch_sizes(
    lengths: np.ndarray, batch_bins: int, min_batch_size: int, drop_last: bool
) -> List[int]:
    """How many utterances are in each batch.

    Args:
        lengths: (N,), int, ascending.
        batch_bins, min_batch_size, drop_last: see :func:`numel_batches`.
    """
    sizes: List[int] = []
    start, total = 0, len(lengths)
    while start < total:
        # The fewest whose padded size is more; it grows with their number.
        low = min_batch_size
        high = min(max(batch_bins // max(int(lengths[start]), 1) + 1, low), total - start)
        if low > high or high * int(lengths[start + high - 1]) <= batch_bins:
            break
        while low < high:
            middle = (low + high) // 2
            if middle * int(lengths[start + middle - 1]) > batch_bins:
                high = middle
            else:
                low = middle + 1
        sizes.append(low)
        start += low
    left = total - start
    if left and (not drop_last or not sizes):
        sizes.append(left)
    if len(sizes) > 1 and sizes[-1] < min_batch_size:
        for number in range(sizes.pop()):
            sizes[-(number % len(sizes)) - 1] += 1
    return sizes
