"""ESPnet's transducer with torchaudio's loss, which comes from the package index."""

import importlib.util
import sys
import types

import espnet2.tasks.asr
import torch
import torchaudio
from espnet2.tasks.asr import ASRTask

from espnet_atm.trainer import WholeFiles


class RNNTLoss(torch.nn.Module):
    """The interface of warprnnt_pytorch, which has to be compiled, on torchaudio.

    Args:
        blank: its label.
        fastemit_lambda: must be 0: torchaudio has no such term.
        reduction: over the batch: ``mean``, ``sum`` or ``none``.

    Raises:
        ValueError: when ``fastemit_lambda`` is not 0.
    """

    def __init__(
        self, blank: int = 0, fastemit_lambda: float = 0.0, reduction: str = "mean"
    ):
        super().__init__()
        if fastemit_lambda:
            raise ValueError(f"fastemit_lambda: {fastemit_lambda} is not 0")
        self.blank = blank
        self.reduction = reduction

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        frames: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Negative log-likelihood (Graves 2012).

        Args:
            logits: of the joint network (B, T, U + 1, V).
            labels: (B, U), int32; what is beyond an utterance's end does not count.
            frames: of each utterance (B,), int32.
            lengths: labels of each utterance (B,), int32.
        """
        return torchaudio.functional.rnnt_loss(
            logits.float(),
            labels.int().clamp(min=0),
            frames.int(),
            lengths.int(),
            blank=self.blank,
            reduction=self.reduction,
        )


# Where ESPnet looks for it. A compiled warprnnt_pytorch goes first.
_NAME = "warprnnt_pytorch"
if _NAME not in sys.modules and importlib.util.find_spec(_NAME) is None:
    _module = types.ModuleType(_NAME)
    _module.RNNTLoss = RNNTLoss
    sys.modules[_NAME] = _module


class ATMASRTask(WholeFiles, ASRTask):
    """ESPnet's ASR task; whoever unpickles it, in a new process, has the loss."""


def install() -> None:
    """Make every user of ``espnet2.tasks.asr.ASRTask`` get ours."""
    espnet2.tasks.asr.ASRTask = ATMASRTask
