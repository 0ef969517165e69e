"""The paper's feature encoder as an ESPnet preencoder."""

from typing import Any, Mapping, Tuple

import torch
from espnet2.asr.preencoder.abs_preencoder import AbsPreEncoder
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
)

from espnet_atm.errors import UserError
from espnet_atm.values import MOST_DIMENSIONS, mapping, whole

# Encoders whose input_layer: null still adds positions, as input_layer: conv2d does.
ENCODERS = ("conformer", "e_branchformer")


def check_encoder(encoder: str, encoder_conf: Mapping[str, Any]) -> None:
    """Refuse encoders that cannot follow the ``conv2d`` preencoder.

    Raises:
        UserError: saying what to write.
    """
    if encoder not in ENCODERS:
        raise UserError(
            f"encoder: {encoder} adds no positions after preencoder: conv2d; write "
            f"preencoder: linear, or encoder: {' or '.join(ENCODERS)}"
        )
    layer = mapping("encoder_conf", encoder_conf).get("input_layer", "conv2d")
    if layer is not None:
        raise UserError(
            f"encoder_conf.input_layer: {layer} leaves no room for preencoder: conv2d; "
            "write input_layer: null, or preencoder: linear"
        )


class Conv2dPreEncoder(AbsPreEncoder):
    """Two 2-D convolutions of stride 2: one frame out for four in (Sec. IV of the paper).

    ESPnet's encoders hold this layer inside (``input_layer: conv2d``), where the mask
    could only be applied before it. As a preencoder it comes before the mask, and the
    encoder follows with ``input_layer: null``. The weights are those of ESPnet's layer,
    and ``espnet_atm.bin.export_ssl`` puts them back into the encoder.

    Args:
        input_size: features a frame, e.g. 80 log-mel energies.
        output_size: the encoder's size.

    Raises:
        UserError: on sizes of a wrong kind or out of range.
    """

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        # Two convolutions of 3, each of stride 2.
        whole("preencoder_conf.input_size", input_size, least=7, most=MOST_DIMENSIONS)
        whole("preencoder_conf.output_size", output_size, most=MOST_DIMENSIONS)
        self._output_size = output_size
        # Positions are added by the encoder, after masking.
        self.embed = Conv2dSubsampling(
            input_size, output_size, 0.0, pos_enc=torch.nn.Identity()
        )

    def output_size(self) -> int:
        return self._output_size

    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Subsample.

        Args:
            input: features (B, T, F), float.
            input_lengths: (B,), int.

        Returns:
            (B, T', output_size), float, and lengths (B,) with T' = ((T-1)//2-1)//2.
        """
        mask = ~make_pad_mask(input_lengths, maxlen=input.size(1))[:, None]  # (B, 1, T)
        output, mask = self.embed(input, mask.to(input.device))
        return output, mask.sum(dim=(1, 2))
