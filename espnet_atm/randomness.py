"""The generators of random numbers that everything in a process shares."""

import contextlib
import random
from typing import Iterator, Union

import numpy as np
import torch


@contextlib.contextmanager
def random_state_kept(device: Union[str, torch.device] = "cpu") -> Iterator[None]:
    """Let what is drawn meanwhile change nothing of what is drawn afterwards.

    A module that is built draws its first weights, also when others are then loaded in
    their place; a training that loads one on its way would go on with other masks.

    Args:
        device: whose generator is kept beside those of torch on the CPU, NumPy and Python.
    """
    device = torch.device(device)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
