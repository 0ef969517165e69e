"""Tensors from reading processes, where shared memory is small."""

import logging
import mmap
import multiprocessing.queues
import os
import sys
from multiprocessing.reduction import ForkingPickler
from typing import Tuple

import torch
import torch.utils.data
from torch.multiprocessing.reductions import reduce_tensor

# Where torch puts tensors for another process. A container's may hold 64 MB.
SHARED_MEMORY = "/dev/shm"

# Says that the warning is given; one for all processes, in memory that fork() shares.
_told = mmap.mmap(-1, 1)


def install() -> None:
    """Have tensors go through the pipe between processes where there is no room.

    torch hands a batch over in files in ``/dev/shm``. When that is full, the batch is
    lost and training waits for it for ever. For this process and those it forks.
    """
    ForkingPickler.register(torch.Tensor, _reduce)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)


def has_room(nbytes: int) -> bool:
    """Whether a tensor surely fits into shared memory, when all workers send one."""
    try:
        disk = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    worker = torch.utils.data.get_worker_info()
    processes = 1 if worker is None else worker.num_workers
    return disk.f_bavail * disk.f_frsize > (processes + 1) * nbytes


def _reduce(tensor: torch.Tensor) -> Tuple:
    """Pickle a tensor for another process: by torch's way, or whole."""
    if (
        type(tensor) is not torch.Tensor
        or tensor.device.type != "cpu"
        or tensor.layout != torch.strided
        or tensor.requires_grad
        or tensor.is_shared()
    ):
        return reduce_tensor(tensor)
    if has_room(tensor.untyped_storage().nbytes()):
        try:
            return reduce_tensor(tensor)
        except (RuntimeError, OSError) as e:  # another was faster, or too many files
            reason = str(e)
    else:
        reason = f"{SHARED_MEMORY} is too small for {tensor.nbytes / 2**20:.0f} MiB"
    if _told[0] == 0:
        _told[0] = 1
        logging.warning(
            f"Batches go through pipes, which is slower than shared memory: {reason}. "
            "Raise the size of /dev/shm (docker run --shm-size=8g) or the number of "
            "open files (ulimit -n)"
        )
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _rebuild, (bytearray(data), tensor.dtype, tuple(tensor.shape))


def _rebuild(data: bytearray, dtype: torch.dtype, shape: Tuple[int, ...]):
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


_stock_error = multiprocessing.queues.Queue._on_queue_feeder_error


def _end_worker(error: Exception, obj) -> None:
    """End a reading process whose batch could not be sent: it is waited for for ever."""
    _stock_error(error, obj)
    if torch.utils.data.get_worker_info() is not None:
        print(f"A batch could not be handed over: {error}", file=sys.stderr, flush=True)
        os._exit(1)
