"""Cross-entropy to the codes of a frozen random quantizer (BEST-RQ)."""

from typing import Dict, List, Tuple

import torch
import torch.nn.functional as F
from espnet2.ssl.espnet_model import ESPnetSSLModel
from espnet2.ssl.loss.abs_loss import AbsSSLLoss

from espnet_atm.errors import UserError
from espnet_atm.frames import padding_mask
from espnet_atm.losses import (
    accuracy,
    at,
    check_sizes,
    places_of,
    weight_at,
    weighted_mean,
)
from espnet_atm.losses.codes import CodeUsage
from espnet_atm.losses.quantizer import RandomProjectionQuantizer
from espnet_atm.values import MOST_CODES, MOST_DIMENSIONS


class BestRQLoss(AbsSSLLoss):
    """Predicts the random code of each masked frame (Chiu et al. 2022).

    The quantizer reads the front end's features, unmasked and not augmented, stacked to
    the encoder's frame rate, and normalised over the utterance: each dimension to zero
    mean and unit variance.

    Args:
        encoder_output_size: dimensions of the encoder's output.
        input_size: dimensions of the stacked features: four frames of 80 mel energies
            for the paper's feature path.
        num_codes: codes of the one codebook.
        code_dim: dimensions of a code.

    Raises:
        UserError: on options of a wrong kind or out of range, naming option and value.
    """

    accepts_weight = True
    name = "best_rq"

    def __init__(
        self,
        encoder_output_size: int,
        input_size: int = 320,
        num_codes: int = 8192,
        code_dim: int = 16,
    ):
        super().__init__()
        check_sizes(self.name, MOST_DIMENSIONS, input_size=input_size, code_dim=code_dim)
        check_sizes(self.name, MOST_CODES, num_codes=num_codes)
        self.util_attributes = ["mask"]
        self.required_inputs = [
            "encoder_output",
            "encoder_output_lengths",
            "stacked_features",
            "mask_info",
        ]
        self.input_size = input_size
        self.quantizer = RandomProjectionQuantizer(input_size, num_codes, code_dim)
        self.prediction = torch.nn.Linear(encoder_output_size, num_codes)
        self.usage = CodeUsage(self.name, 1, num_codes, learned=False)

    def check_model(self, model: ESPnetSSLModel) -> None:
        """Refuse features of another size.

        Raises:
            UserError: saying what to write.
        """
        size = model.stacked_size()
        if size != self.input_size:
            raise UserError(
                f"loss {self.name}: input_size: {self.input_size}, but the features "
                f"stacked to the encoder's frame rate have {size} dimensions; write "
                f"input_size: {size}"
            )

    def forward(
        self,
        encoder_output: List[torch.Tensor],
        encoder_output_lengths: torch.Tensor,
        stacked_features: torch.Tensor,
        mask_info: Dict,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Loss and statistics of one batch.

        Args:
            encoder_output: output of each layer (B, T, D), float.
            encoder_output_lengths: (B,), int.
            stacked_features: (B, T, input_size), float.
            mask_info: ``mask_m`` (B, T), bool; ``weight`` (B, T), float, or None.

        Returns:
            Scalar loss, float32, and the statistics to log.
        """
        masked = places_of(mask_info["mask_m"])
        with torch.autocast(masked.device.type, enabled=False):
            features = normalize(stacked_features.float(), encoder_output_lengths)
            targets = self.quantizer(at(masked, features))  # (N,)
            logits = self.prediction(at(masked, encoder_output[-1]).float())
            counted = torch.ones_like(targets, dtype=torch.bool)
            loss = weighted_mean(
                F.cross_entropy(logits, targets, reduction="none"),
                weight_at(masked, mask_info),
                counted,
            )
        stats = {
            f"{self.name}_loss_m": loss.detach(),
            f"{self.name}_acc_m": accuracy(logits, targets, counted),
            **self.usage(targets[:, None], self.training),
        }
        return loss, stats


def normalize(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance of each dimension over the utterance's valid frames.

    Args:
        features: (B, T, D), float.
        lengths: (B,), int.

    Returns:
        (B, T, D); zero at padding, next to zero in dimensions that do not vary.
    """
    lengths = lengths.to(features.device)
    padding = padding_mask(lengths, features.size(1))[..., None]  # (B, T, 1)
    count = (~padding).sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1, 1)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(padding, 0).sum(dim=1, keepdim=True) / count

    centred = (features - mean(features)).masked_fill(padding, 0)
    # What varies by less than this in log-mel is rounding.
    return centred / mean(centred**2).sqrt().clamp(min=1e-3)
