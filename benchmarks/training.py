"""What the benchmarks of training share: models from configs, batches and steps."""

import contextlib
import functools
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, NamedTuple

import torch
import yaml
from espnet2.ssl.utils.mask import _compute_mask_indices

from espnet_atm.task import ATMSSLTask

CONF = Path(__file__).resolve().parents[1] / "egs2/atm_librilight/ssl1/conf/tuning"
RATE = 16000
MASKED = 0.40  # of the frames, of all that are compared
GRAD_CLIP = 5.0


class Training(NamedTuple):
    """A model in training."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


def read(name: str) -> Dict[str, Any]:
    """A config of the recipe."""
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def build(config: Dict[str, Any], device: str, num_classes: int = 0) -> Training:
    """Model and optimizer as the task builds them.

    Args:
        config: of ``ssl_train``; stock ESPnet's model where it has no ``ssl_conf``.
        device: of the model.
        num_classes: of pseudo-labels, for HuBERT.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        given = ["--config", file.name, "--output_dir", "unused"]
        args = ATMSSLTask.get_parser().parse_args(given)
    args.token_list = [*map(str, range(num_classes)), "<unk>"] if num_classes else []
    torch.manual_seed(0)
    model = ATMSSLTask.build_model(args).to(device).train()
    return Training(model, ATMSSLTask.build_optimizers(args, model)[0])


def make_batch(
    frames: int, rows: int, seconds: float, device: str, num_classes: int = 0
) -> Dict[str, torch.Tensor]:
    """Noise, confidence and labels at random.

    Args:
        frames: of the encoder, of an utterance.
        rows: utterances.
        seconds: of each.
        device: where it goes.
        num_classes: of pseudo-labels; 0 for none.
    """
    generator = torch.Generator().manual_seed(0)
    samples = int(RATE * seconds)
    lengths = torch.full((rows,), frames)
    batch = {
        "speech": 0.1 * torch.randn(rows, samples, generator=generator),
        "speech_lengths": torch.full((rows,), samples),
        "confidence": torch.rand(rows, frames, generator=generator),
        "confidence_lengths": lengths,
    }
    if num_classes:
        labels = torch.randint(num_classes, (rows, frames), generator=generator)
        batch.update(text=labels, text_lengths=lengths)
    return {name: value.to(device) for name, value in batch.items()}


def mixed_precision(device: str) -> contextlib.AbstractContextManager:
    """bf16 on a GPU, as ``use_amp`` has it; float32 on a CPU."""
    if device == "cpu":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def update(parameters: Iterable[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Clip, update and forget the gradients, as ESPnet's trainer does."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()


class Step(NamedTuple):
    """Forward, backward, clip and update."""

    training: Training
    loss: Callable[..., torch.Tensor]  # computes it, a scalar, by another model if given
    device: str

    def __call__(self) -> None:
        with mixed_precision(self.device):
            total = self.loss()
        total.backward()
        update(self.training.model.parameters(), self.training.optimizer)

    def with_model(self, model: torch.nn.Module) -> "Step":
        """The same step through a model around this one's, as of several processes."""
        return self._replace(loss=functools.partial(self.loss, model))

    @property
    def parameters(self) -> int:
        """How many are trained."""
        return sum(x.numel() for x in self.training.model.parameters())


def stock_mask_prob(rows: int, frames: int) -> float:
    """With which ESPnet and torchaudio mask as many frames as ours, on average.

    Overlaps, and rows thinned to the one with the fewest, leave fewer than it says.
    """
    padding = torch.zeros(rows, frames, dtype=torch.bool)

    def masked(prob: float) -> float:
        masks = [
            _compute_mask_indices((rows, frames), padding, "cpu", prob, 10, min_masks=2)
            for _ in range(40)
        ]
        return torch.stack(masks).float().mean().item()

    low, high = 0.3, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if masked(middle) < MASKED else (low, middle)
    return (low + high) / 2
