"""When each frame happens: the time grid of a front end, in samples."""

from dataclasses import dataclass
from typing import Callable, Iterable, List, Tuple, Union

import numpy as np
import torch
from espnet2.asr.frontend.cnn import CNNFrontend
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_atm.errors import UserError

# (kernel, stride, padding), each counted in the layer's input frames
ConvLayer = Tuple[int, int, int]


@dataclass(frozen=True)
class FrameGrid:
    """Frames whose centres lie at ``offset + shift * index`` samples.

    Args:
        shift: samples from one frame to the next; not whole where they were counted at
            another sampling rate.
        offset: the centre of frame 0 in samples.
        layers: the chain of strided windows that makes the frames; empty when the grid
            was measured and not derived.
    """

    shift: Union[int, float]
    offset: float
    layers: Tuple[ConvLayer, ...] = ()

    @classmethod
    def from_layers(cls, layers: Iterable[ConvLayer]) -> "FrameGrid":
        """Follow the centre of the first frame through the layers.

        >>> FrameGrid.from_layers([(400, 320, 0)]).offset
        199.5
        """
        layers = tuple(layers)
        shift, offset = 1, 0.0
        for kernel, stride, padding in layers:
            offset += ((kernel - 1) / 2 - padding) * shift
            shift *= stride
        return cls(shift, offset, layers)

    def length(self, num_samples: int) -> int:
        """How many frames ``num_samples`` samples give; 0 when too short for one."""
        for kernel, stride, padding in self.layers:
            num_samples = max((num_samples + 2 * padding - kernel) // stride + 1, 0)
        return num_samples


def frontend_layers(frontend: torch.nn.Module) -> List[ConvLayer]:
    """The strided windows of an ESPnet front end.

    Raises:
        UserError: for a front end whose frame times are not known.
    """
    if isinstance(frontend, CNNFrontend):
        return [(layer.kernel_size, layer.stride, 0) for layer in frontend.layers]
    if isinstance(frontend, DefaultFrontend) and frontend.apply_stft:
        stft = frontend.stft
        window = stft.n_fft
        return [(window, stft.hop_length, window // 2 if stft.center else 0)]
    raise UserError(
        f"the frame times of the front end {type(frontend).__name__} are not known; "
        "use frontend: default or frontend: wav2vec_cnn"
    )


def subsampling_layers(module: torch.nn.Module) -> List[ConvLayer]:
    """The time axis of the 2-D convolutions in one of ESPnet's ``Conv2dSubsampling*``.

    Empty for modules that keep the frame rate.
    """
    return [
        (conv.kernel_size[0], conv.stride[0], conv.padding[0])
        for conv in module.modules()
        if isinstance(conv, torch.nn.Conv2d)
    ]


def measured_grid(
    length_of: Callable[[int], int], num_samples: Tuple[int, int] = (64000, 128000)
) -> FrameGrid:
    """The grid of a model of unknown inside, from its number of output frames.

    The frames are taken to lie symmetrically in the audio, which is right to within
    half a frame for any front end that drops or pads as much on the left as on the
    right.

    Args:
        length_of: number of frames that the model puts out for so many samples.
        num_samples: the two lengths to try.
    """
    short, long = (length_of(n) for n in num_samples)
    if long <= short:
        raise UserError(
            f"{num_samples[1]} samples give {long} frames and {num_samples[0]} give "
            f"{short}: the model has no frame rate"
        )
    shift = round((num_samples[1] - num_samples[0]) / (long - short))
    return FrameGrid(shift, (num_samples[1] - 1 - (long - 1) * shift) / 2)


def nearest_frames(there: FrameGrid, frames: FrameGrid, count: int) -> np.ndarray:
    """For each of the first frames of a grid, the number of another's nearest in time.

    Args:
        there: whose frames are numbered.
        frames: for which.
        count: how many of them.

    Returns:
        (count,), int64; some may be before the first one, or behind the last.
    """
    centres = frames.offset + frames.shift * np.arange(count)
    return np.rint((centres - there.offset) / there.shift).astype(np.int64)


def padding_mask(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Which frames of a batch are padding.

    ESPnet's waits for the device, and compares every frame with every other.

    Args:
        lengths: frames of each utterance (B,), int.
        num_frames: T, of the batch.

    Returns:
        True at padding (B, T), bool, on the device of ``lengths``.
    """
    return torch.arange(num_frames, device=lengths.device) >= lengths[:, None]


def stack_frames(x: torch.Tensor, first: int, stack: int, length: int) -> torch.Tensor:
    """Put consecutive frames side by side, to a lower frame rate.

    Args:
        x: (B, F, D) with F >= ``first + stack * length``.
        first: where the first stack begins.
        stack: frames in each.
        length: number of stacks T.

    Returns:
        (B, T, stack * D).
    """
    x = x[:, first : first + stack * length]
    return x.reshape(len(x), length, stack * x.size(-1))
