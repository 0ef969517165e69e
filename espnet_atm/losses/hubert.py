"""Cross-entropy to pseudo-labels at masked frames (HuBERT, Hsu et al. 2021)."""

from typing import Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from espnet2.ssl.espnet_model import ESPnetSSLModel
from espnet2.ssl.loss.hubert import HuBERTLoss as ESPnetHuBERTLoss

from espnet_atm.errors import UserError
from espnet_atm.losses import (
    accuracy,
    at,
    check_sizes,
    check_weights,
    places_of,
    weight_at,
    weighted_mean,
)
from espnet_atm.losses.codes import CodeUsage
from espnet_atm.values import MOST_CODES, MOST_DIMENSIONS, sequence, whole

IGNORED = -1  # the label of frames that have none
TEMPERATURE = 0.1  # of ESPnet's logits


class HuBERTLoss(ESPnetHuBERTLoss):
    """ESPnet's HuBERT loss with a weight for each masked frame.

    Masks that carry no ``weight`` entry come from stock ESPnet, and get its loss.

    Args:
        encoder_output_size, num_classes, final_dim, loss_type, layers, loss_weights: see
            ESPnet's.

    Raises:
        UserError: on options of a wrong kind or out of range, naming option and value.
    """

    accepts_weight = True

    def __init__(
        self,
        encoder_output_size: int,
        num_classes: int,
        final_dim: int,
        loss_type: str = "cross_entropy",
        layers: Sequence[int] = (-1,),
        loss_weights: Sequence[float] = (1.0,),
    ):
        check_sizes("hubert", MOST_CODES, num_classes=num_classes)
        check_sizes("hubert", MOST_DIMENSIONS, final_dim=final_dim)
        layers = sequence("loss hubert: layers", layers)
        loss_weights = sequence("loss hubert: loss_weights", loss_weights)
        if len(layers) != len(loss_weights) or not layers:
            raise UserError(
                f"loss hubert: layers: {layers} and loss_weights: {loss_weights} are not "
                "one weight for each layer"
            )
        for layer in layers:
            whole("loss hubert: layers", layer, least=-999, most=999)
        for weight in loss_weights:
            check_weights("hubert", loss_weights=weight)
        if not any(loss_weights):
            raise UserError(f"loss hubert: loss_weights: {loss_weights} are all 0")
        super().__init__(
            *(encoder_output_size, num_classes, final_dim, loss_type),
            *(layers, loss_weights),
        )
        self.num_classes = num_classes
        self.usage = CodeUsage("hubert", 1, num_classes, learned=False)

    def check_model(self, model: ESPnetSSLModel) -> None:
        """Refuse layers that the encoder does not have, or that leave some untrained.

        Raises:
            UserError: naming ``layers`` and the number of layers.
        """
        layers = len(model.encoder.encoders)
        if not all(-layers <= x < layers for x in self.layers) or (
            layers - 1 not in [x % layers for x in self.layers]
        ):
            raise UserError(
                f"loss hubert: layers: {list(self.layers)} must be in [{-layers}, "
                f"{layers - 1}], with the last one among them, since "
                f"encoder_conf.num_blocks is {layers}"
            )

    def forward(
        self,
        encoder_output: List[torch.Tensor],
        encoder_output_lengths: torch.Tensor = None,
        text: torch.Tensor = None,
        text_lengths: torch.Tensor = None,
        mask_info: Dict = None,
    ) -> Tuple[torch.Tensor, Dict]:
        """Loss and accuracies of one batch.

        Args:
            encoder_output: output of each layer (B, T, D), float.
            encoder_output_lengths: (B,), int.
            text: pseudo-labels (B, T), int; -1 where there is none.
            text_lengths: (B,), int.
            mask_info: ``mask_m`` and ``mask_u`` (B, T), bool; ``weight`` (B, T), float,
                or None.

        Returns:
            Scalar loss, float32, and the statistics to log.
        """
        if "weight" not in mask_info:
            return super().forward(
                encoder_output, encoder_output_lengths, text, text_lengths, mask_info
            )
        mask_m, mask_u = mask_info["mask_m"], mask_info["mask_u"]
        if text is None or text.shape != mask_m.shape:
            raise ValueError(
                "the HuBERT loss needs one pseudo-label a frame: got labels of shape "
                f"{None if text is None else tuple(text.shape)} for frames of shape "
                f"{tuple(mask_m.shape)}"
            )
        masked, unmasked = places_of(mask_m), places_of(mask_u)
        y_m, y_u = at(masked, text).long(), at(unmasked, text).long()  # (N,), (M,)
        weight = weight_at(masked, mask_info)

        total_loss = 0.0
        stats = {}
        for layer, layer_weight in zip(self.layers, self.loss_weights):
            layer %= len(encoder_output)
            with torch.autocast(mask_m.device.type, enabled=False):
                projected = self.decoder.final_proj(encoder_output[layer].float())
                logit_m = self.logits(at(masked, projected))
                with torch.no_grad():  # for the log alone
                    logit_u = self.logits(at(unmasked, projected))
            loss = weighted_mean(
                F.cross_entropy(logit_m, y_m, reduction="none", ignore_index=IGNORED),
                weight,
                y_m != IGNORED,
            )
            total_loss = total_loss + loss * layer_weight
            stats[f"hubert_loss_m_{layer}"] = loss.detach()
            stats[f"hubert_acc_m_{layer}"] = accuracy(logit_m, y_m, y_m != IGNORED)
            stats[f"hubert_acc_u_{layer}"] = accuracy(logit_u, y_u, y_u != IGNORED)
        stats.update(self.usage(y_m[y_m != IGNORED][:, None], self.training))
        return total_loss, stats

    def logits(self, projected: torch.Tensor) -> torch.Tensor:
        """As in ESPnet's decoder: (N, final_dim) -> (N, num_classes)."""
        return self.decoder.label_embeddings(projected) / TEMPERATURE
