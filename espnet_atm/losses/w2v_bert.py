"""Contrastive loss at an inner layer, code prediction at the last (w2v-BERT)."""

from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from espnet2.ssl.espnet_model import ESPnetSSLModel

from espnet_atm.errors import UserError
from espnet_atm.losses import accuracy, at, weight_at, weighted_mean
from espnet_atm.losses.wav2vec2 import Wav2Vec2Loss
from espnet_atm.values import MOST_DIMENSIONS, number, whole


class W2vBertLoss(Wav2Vec2Loss):
    """wav2vec 2.0's loss, and cross-entropy to the codes that its quantizer chose.

    Chung et al. 2021. The first ``context_layers`` layers of the encoder are the context
    network Omega, whose output is contrasted; the layers behind them are Lambda, whose
    output predicts the code of each masked frame.

    Args:
        encoder_output_size: dimensions of the encoder's input and output.
        context_layers: layers of Omega; 2 in the paper's L, 8 in XL.
        num_codes: codes of the one codebook.
        contrastive_weight, prediction_weight: of the two losses.
        contrastive: options of :class:`espnet_atm.losses.wav2vec2.Wav2Vec2Loss`, but
            its ``num_groups``, which is 1.

    Raises:
        UserError: on options of a wrong kind or out of range, naming option and value.
    """

    name = "w2v_bert"

    def __init__(
        self,
        encoder_output_size: int,
        context_layers: int,
        num_codes: int = 1024,
        contrastive_weight: float = 1.0,
        prediction_weight: float = 1.0,
        **contrastive,
    ):
        super().__init__(
            encoder_output_size, num_groups=1, num_codes=num_codes, **contrastive
        )
        # How many there may be is for check_model to say.
        whole(
            f"loss {self.name}: context_layers",
            context_layers,
            least=0,
            most=MOST_DIMENSIONS,
        )
        weights = {
            "contrastive_weight": contrastive_weight,
            "prediction_weight": prediction_weight,
        }
        for option, weight in weights.items():
            if number(f"loss {self.name}: {option}", weight) < 0:
                raise UserError(
                    f"loss {self.name}: {option}: {weight} must not be negative"
                )
        if not any(weights.values()):
            raise UserError(f"loss {self.name}: {' and '.join(weights)} are both 0")
        self.layer = context_layers - 1
        self.contrastive_weight = contrastive_weight
        self.prediction_weight = prediction_weight
        self.prediction = torch.nn.Linear(encoder_output_size, num_codes)

    def check_model(self, model: ESPnetSSLModel) -> None:
        """Refuse context networks that leave no layer, for themselves or behind.

        Raises:
            UserError: naming the numbers of layers, or what else does not fit.
        """
        super().check_model(model)
        layers = len(model.encoder.encoders)
        if not 0 <= self.layer < layers - 1:
            raise UserError(
                f"loss {self.name}: context_layers: {self.layer + 1} must be at least 1 "
                f"and leave layers behind it, and encoder_conf.num_blocks is {layers}"
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
            contrastive, stats, ids, where = self.contrast(
                encoder_output, preencoder, mask_info, num_updates, frontend
            )
            logits = self.prediction(at(where.places, encoder_output[-1]).float())
            targets = ids[:, 0]  # (N,)
            prediction = weighted_mean(
                F.cross_entropy(logits, targets, reduction="none"),
                weight_at(where.places, mask_info),
                where.counted,
            )
        stats[f"{self.name}_loss_m"] = prediction.detach()
        stats[f"{self.name}_acc_m"] = accuracy(logits, targets, where.counted)
        loss = (
            self.contrastive_weight * contrastive + self.prediction_weight * prediction
        )
        return loss, stats
