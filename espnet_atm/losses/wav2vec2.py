"""Contrastive loss over learned codes (wav2vec 2.0, Baevski et al. 2020)."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from espnet2.ssl.espnet_model import ESPnetSSLModel
from espnet2.ssl.loss.abs_loss import AbsSSLLoss

from espnet_atm.errors import UserError
from espnet_atm.frames import subsampling_layers
from espnet_atm.losses import (
    accuracy,
    at,
    check_sizes,
    check_weights,
    weight_at,
    weighted_mean,
)
from espnet_atm.losses.codes import CodeUsage
from espnet_atm.losses.contrastive import (
    MaskedFrames,
    contrastive_logits,
    sample_negatives,
)
from espnet_atm.losses.quantizer import GumbelQuantizer, check_temperature
from espnet_atm.values import MOST_CODES, MOST_DIMENSIONS, number


class Wav2Vec2Loss(AbsSSLLoss):
    """Contrastive and diversity loss at the masked frames.

    The quantizer reads the frames before they are masked. The loss of a masked
    frame is ``-log softmax`` of its context's similarity to its own code against that to
    other masked frames' codes, plus ``diversity_weight * (GV - perplexity) / GV``. Both
    terms are weighted and averaged over the same frames.

    Args:
        encoder_output_size: dimensions of the encoder's input and output.
        num_groups, num_codes, code_dim, gumbel_temperature: see
            :class:`espnet_atm.losses.quantizer.GumbelQuantizer`.
        final_dim: dimensions in which context and code are compared.
        num_negatives: drawn for each frame.
        temperature: of the contrastive softmax.
        diversity_weight: of the diversity loss.
        frontend_size: dimensions of the front end's output, which then is quantized, as
            it is, as in published models; null: the encoder's input, normalized.

    Raises:
        UserError: on options of a wrong kind or out of range, naming option and value.
    """

    accepts_weight = True
    name = "wav2vec2"

    def __init__(
        self,
        encoder_output_size: int,
        num_groups: int = 2,
        num_codes: int = 320,
        code_dim: int = 256,
        final_dim: int = 256,
        num_negatives: int = 100,
        temperature: float = 0.1,
        diversity_weight: float = 0.1,
        gumbel_temperature: Sequence[float] = (2.0, 0.5, 0.999995),
        frontend_size: Optional[int] = None,
    ):
        super().__init__()
        check_sizes(
            self.name,
            MOST_DIMENSIONS,
            code_dim=code_dim,
            final_dim=final_dim,
            num_negatives=num_negatives,
        )
        check_sizes(self.name, MOST_CODES, num_groups=num_groups, num_codes=num_codes)
        if frontend_size is not None:
            check_sizes(self.name, MOST_DIMENSIONS, frontend_size=frontend_size)
        # The codes of all groups are told apart by one number.
        if num_codes**num_groups >= 1 << 63:
            raise UserError(
                f"loss {self.name}: num_groups: {num_groups} of num_codes: {num_codes} "
                "are more combinations than can be told apart; write fewer groups"
            )
        number(f"loss {self.name}: temperature", temperature, positive=True)
        check_weights(self.name, diversity_weight=diversity_weight)
        try:
            gumbel_temperature = check_temperature(gumbel_temperature)
        except UserError as e:
            raise UserError(f"loss {self.name}: {e}") from None
        self.util_attributes = ["mask"]
        self.required_inputs = [
            "encoder_output",
            "preencoder",
            "mask_info",
            "num_updates",
            "frontend",
        ]
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.diversity_weight = diversity_weight
        self.layer = -1  # whose output is the context
        self.frontend_size = frontend_size
        if frontend_size is None:
            self.norm = torch.nn.LayerNorm(encoder_output_size)
        else:
            self.norm = torch.nn.Identity()
        self.quantizer = GumbelQuantizer(
            encoder_output_size if frontend_size is None else frontend_size,
            *(num_groups, num_codes, code_dim, gumbel_temperature),
        )
        self.code_projection = torch.nn.Linear(code_dim, final_dim)
        self.context_projection = torch.nn.Linear(encoder_output_size, final_dim)
        self.usage = CodeUsage(self.name, num_groups, num_codes, learned=True)

    def check_model(self, model: ESPnetSSLModel) -> None:
        """Refuse another front end than the quantizer is for.

        Raises:
            UserError: naming both sizes, or the preencoder that has other frames.
        """
        if self.frontend_size is None:
            return
        size = model.frontend.output_size()
        if self.frontend_size != size:
            raise UserError(
                f"loss {self.name}: frontend_size: {self.frontend_size}, but the front "
                f"end has {size} dimensions; write frontend_size: {size}"
            )
        if model.preencoder is not None and subsampling_layers(model.preencoder):
            raise UserError(
                f"loss {self.name}: frontend_size: {size} is not possible behind a "
                "preencoder that subsamples; write frontend_size: null"
            )

    def forward(
        self,
        encoder_output: List[torch.Tensor],
        preencoder: torch.Tensor,
        mask_info: Dict,
        num_updates: torch.Tensor,
        frontend: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Loss and statistics of one batch.

        Args:
            encoder_output: output of each layer (B, T, D), float.
            preencoder: encoded frames before masking (B, T, D), float.
            mask_info: ``mask_m`` (B, T), bool; ``weight`` (B, T), float, or None;
                ``generator`` of the negatives, or None.
            num_updates: updates made so far, scalar, int.
            frontend: the front end's output (B, T, C), float; for ``frontend_size``.

        Returns:
            Scalar loss, float32, and the statistics to log.
        """
        with torch.autocast(preencoder.device.type, enabled=False):
            loss, stats, *_ = self.contrast(
                encoder_output, preencoder, mask_info, num_updates, frontend
            )
        return loss, stats

    def contrast(
        self,
        encoder_output: List[torch.Tensor],
        preencoder: torch.Tensor,
        mask_info: Dict,
        num_updates: torch.Tensor,
        frontend: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor, MaskedFrames]:
        """As :meth:`forward`, and the codes of the masked frames (N, G), int64, and
        which frames these are."""
        where = MaskedFrames.of(mask_info["mask_m"])
        weight = weight_at(where.places, mask_info)
        encoded = preencoder if self.frontend_size is None else frontend
        frames = self.norm(at(where.places, encoded).float())  # (N, D)
        quantized = self.quantizer(frames, num_updates)
        # One number for the codes of all groups: (N, G) -> (N,)
        base = self.quantizer.num_codes ** torch.arange(
            self.quantizer.num_groups, device=frames.device
        )
        logits = contrastive_logits(
            self.context_projection(
                at(where.places, encoder_output[self.layer]).float()
            ),
            self.code_projection(quantized.vectors),
            (quantized.ids * base).sum(dim=1),
            where,
            sample_negatives(where, self.num_negatives, mask_info["generator"]),
        )
        target = torch.zeros_like(where.rank)
        counted = where.counted
        contrastive = weighted_mean(
            F.cross_entropy(logits / self.temperature, target, reduction="none"),
            weight,
            counted,
        )
        num_codes = self.quantizer.num_groups * self.quantizer.num_codes
        diversity = weighted_mean(
            ((num_codes - quantized.perplexity) / num_codes).expand(len(target)),
            weight,
            counted,
        )
        # Where all negatives are the target's own code nothing was told apart.
        told = logits[:, 1:].isfinite().any(dim=1)
        stats = {
            "loss_contrastive": contrastive.detach(),
            "loss_diversity": diversity.detach(),
            "acc_contrastive": accuracy(logits, torch.where(told, target, -1), counted),
            "gumbel_temperature": self.quantizer.temperature_at(num_updates),
        }
        stats = {f"{self.name}_{key}": value for key, value in stats.items()}
        stats.update(self.usage(quantized.ids, self.training))
        loss = contrastive + self.diversity_weight * diversity
        return loss, stats, quantized.ids, where
