"""The paper's feature encoder as an ESPnet preencoder."""

from typing import Any, Dict, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from espnet2.asr.preencoder.abs_preencoder import AbsPreEncoder
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
)

from espnet_atm.errors import UserError
from espnet_atm.frames import padding_mask
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
        channels: of both convolutions, ``output_size`` at most; null: as many, which
            ESPnet's layer always has.

    Raises:
        UserError: on sizes of a wrong kind or out of range.
    """

    def __init__(
        self, input_size: int, output_size: int, channels: Optional[int] = None
    ):
        super().__init__()
        # Two convolutions of 3, each of stride 2.
        whole("preencoder_conf.input_size", input_size, least=7, most=MOST_DIMENSIONS)
        whole("preencoder_conf.output_size", output_size, most=MOST_DIMENSIONS)
        if channels is None:
            channels = output_size
        whole("preencoder_conf.channels", channels, most=output_size)
        self._output_size = output_size
        # Positions are added by the encoder, after masking.
        self.embed = Conv2dSubsampling(
            input_size, channels, 0.0, pos_enc=torch.nn.Identity()
        )
        if channels != output_size:
            self.embed.out = torch.nn.Linear(self.embed.out.in_features, output_size)

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
        padding = padding_mask(input_lengths.to(input.device), input.size(1))
        output, mask = self.embed(input, ~padding[:, None])  # the mask: (B, 1, T)
        return output, mask.sum(dim=(1, 2))


def stock_weights(state: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Weights with which ESPnet's layer, as wide as its output, computes the same.

    The channels that are added put out zeros and get no gradient, whatever is trained.

    Args:
        state: of ``Conv2dPreEncoder.embed``.
    """
    channels, output_size = len(state["conv.0.bias"]), len(state["out.bias"])
    more = output_size - channels
    bands = state["out.weight"].size(1) // channels
    # What is added behind each axis, the last axis first.
    added = {
        "conv.0.weight": (0, 0, 0, more),  # (channels, 1, 3, 3)
        "conv.0.bias": (more,),
        "conv.2.weight": (0, 0, more, more),  # (channels, channels, 3, 3)
        "conv.2.bias": (more,),
        "out.weight": (more * bands, 0),  # (output_size, channels * bands)
        "out.bias": (0,),
    }
    return {
        name: F.pad(state[name], [x for behind in axes for x in (0, behind)])
        for name, axes in added.items()
    }
