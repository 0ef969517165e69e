"""From frames to codes: learned (Gumbel softmax) and random (BEST-RQ)."""

from typing import Any, NamedTuple, Sequence, Tuple

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F

from espnet_atm.errors import UserError
from espnet_atm.values import number, sequence


class Quantized(NamedTuple):
    """What a quantizer makes of N frames."""

    vectors: torch.Tensor  # (N, code_dim), float32, with gradient
    ids: torch.Tensor  # (N, G), int64
    perplexity: torch.Tensor  # of the mean softmax, summed over groups; with gradient


def check_temperature(temperature: Any) -> Tuple[float, float, float]:
    """The start, the end and the factor of the Gumbel temperature.

    Raises:
        UserError: when it does not fall from a positive start to a positive end.
    """
    values = sequence("gumbel_temperature", temperature)
    values = [number("gumbel_temperature", x) for x in values]
    if len(values) != 3 or not values[0] >= values[1] > 0 < values[2] <= 1:
        raise UserError(
            f"gumbel_temperature: {list(temperature)} is not a start, an end and a "
            "factor for each update; write e.g. [2.0, 0.5, 0.999995]"
        )
    return tuple(values)


def over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum over the processes that train together, with its gradient.

    Each of them must call it.
    """
    distributed = torch.distributed
    if (
        not distributed.is_available()
        or not distributed.is_initialized()
        or torch.jit.is_tracing()  # in one process, to draw the graph
    ):
        return x
    return torch.distributed.nn.functional.all_reduce(x)


class GumbelQuantizer(torch.nn.Module):
    """Product quantizer with a straight-through Gumbel softmax.

    Baevski et al. 2020, Sec. 2; the quantizer Psi of the paper. In training codes are
    drawn, at a temperature that falls with the updates; in evaluation the likeliest is
    taken.

    Args:
        input_size: dimensions D of a frame.
        num_groups: codebooks G.
        num_codes: codes V of each.
        code_dim: dimensions of the groups' code vectors together.
        temperature: at the start, at the end, and the factor of each update.

    Raises:
        UserError: when ``code_dim`` cannot be shared out among the groups, or the
            temperature does not fall from a positive start to a positive end.
    """

    def __init__(
        self,
        input_size: int,
        num_groups: int,
        num_codes: int,
        code_dim: int,
        temperature: Sequence[float] = (2.0, 0.5, 0.999995),
    ):
        super().__init__()
        if code_dim % num_groups:
            raise UserError(
                f"code_dim: {code_dim} is not a multiple of num_groups: {num_groups}"
            )
        self.temperature = check_temperature(temperature)
        self.num_groups = num_groups
        self.num_codes = num_codes
        self.projection = torch.nn.Linear(input_size, num_groups * num_codes)
        self.codes = torch.nn.Parameter(
            torch.empty(num_groups, num_codes, code_dim // num_groups)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in fairseq and Hugging Face: choices are decided from the start."""
        torch.nn.init.normal_(self.projection.weight)
        torch.nn.init.zeros_(self.projection.bias)
        torch.nn.init.uniform_(self.codes)

    def temperature_at(self, num_updates: torch.Tensor) -> torch.Tensor:
        """Gumbel temperature after so many updates, a scalar on their device."""
        start, end, factor = self.temperature
        return (start * factor ** num_updates.double()).clamp(min=end).float()

    def forward(self, frames: torch.Tensor, num_updates: torch.Tensor) -> Quantized:
        """Quantize.

        Args:
            frames: (N, D), float32.
            num_updates: made so far, scalar, int.
        """
        # (N, G * V) -> (N, G, V)
        logits = self.projection(frames).view(-1, self.num_groups, self.num_codes)
        probs = logits.softmax(dim=-1).sum(dim=0)  # (G, V)
        count = probs.new_tensor(len(logits))
        if self.training:
            # The perplexity of the mean is not the mean of the processes' perplexities.
            probs, count = over_processes(probs), over_processes(count)
        probs = probs / count.clamp(min=1)
        # Clamped: the slope of p log p is infinite at 0, where softmax underflows to.
        entropy = -(probs * probs.clamp(min=1e-12).log()).sum(dim=-1)  # (G,)
        perplexity = entropy.exp().sum()
        if self.training:
            tau = self.temperature_at(num_updates)
            chosen = F.gumbel_softmax(logits, tau=tau, hard=True)  # (N, G, V)
            ids = chosen.argmax(dim=-1)
            vectors = torch.einsum("ngv,gvd->ngd", chosen, self.codes)
        else:
            ids = logits.argmax(dim=-1)
            groups = torch.arange(self.num_groups, device=ids.device)
            vectors = self.codes[groups, ids]
        # (N, G, code_dim / G) -> (N, code_dim)
        return Quantized(vectors.flatten(1), ids, perplexity)


class RandomProjectionQuantizer(torch.nn.Module):
    """The code nearest to a random projection; nothing is learnt (Chiu et al. 2022).

    Args:
        input_size: dimensions D of a frame.
        num_codes: codes V.
        code_dim: dimensions of a code.
    """

    def __init__(self, input_size: int, num_codes: int, code_dim: int):
        super().__init__()
        projection = torch.empty(input_size, code_dim)
        self.register_buffer("projection", torch.nn.init.xavier_uniform_(projection))
        codes = F.normalize(torch.randn(num_codes, code_dim), dim=-1)
        self.register_buffer("codes", codes)

    @torch.no_grad()
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Code of each frame.

        Args:
            frames: (N, D), float32, each dimension of zero mean and unit variance over
                the utterance: else all frames fall on a few codes.

        Returns:
            (N,), int64. Of normalised vectors the nearest has the largest product.
        """
        return ((frames @ self.projection) @ self.codes.T).argmax(dim=-1)
