"""wav2vec 2.0's front end and transformer, as published models compute them.

ESPnet's ``wav2vec_cnn`` and ``transformer`` have the same parts, and put out something
else: audio is normalised over the whole batch, group norm sees padding, convolutional
positions replace the frames instead of being added to them, the layer norm beside them is
there in the other of the two layouts, and the feed-forward layers have a ReLU.
"""

from typing import List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.asr.frontend.cnn import CNNFrontend
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    ConvolutionalPositionalEmbedding,
)

from espnet_atm.errors import UserError
from espnet_atm.frames import padding_mask

EPS = 1e-5  # of all norms of published models


class Wav2Vec2Frontend(CNNFrontend):
    """The convolutions of wav2vec 2.0 and HuBERT; padding has no part in the output.

    Weights are named as in ``wav2vec_cnn``.

    Args:
        norm_mode: ``group_norm`` (base layout) or ``layer_norm`` (large).
        bias: whether convolutions have one.
        shapes: channels, kernel and stride of each convolution.
        fs: sampling rate.
        normalize_audio: each utterance to mean 0 and variance 1.
        normalize_output: layer norm behind the last convolution.
    """

    def __init__(
        self,
        norm_mode: str,
        bias: bool,
        shapes: List[Tuple[int, int, int]],
        fs: Union[int, str] = 16000,
        normalize_audio: bool = False,
        normalize_output: bool = True,
    ):
        super().__init__(
            norm_mode, "standard", bias, shapes, fs, normalize_audio, normalize_output
        )

    def forward(
        self, x: torch.Tensor, length: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Convolve.

        Args:
            x: audio (B, N), float.
            length: samples of each utterance (B,), int.

        Returns:
            (B, T, C), float, and the frames of each utterance (B,), int.
        """
        x = x[:, None]  # (B, 1, N)
        if self.normalize_audio:
            # 1e-7 is of Hugging Face's feature extractor.
            mean, variance, valid = _moments(x, length)
            x = torch.where(valid, (x - mean) / (variance + 1e-7).sqrt(), 0)
        # Batches of whole crops have no padding; then torch's norm takes a third of the
        # time. (Lengths were waited for just before, when audio was cut to the longest.)
        padded = bool((length < x.size(2)).any())
        for layer in self.layers:
            x = _convolve(layer.conv, x)  # (B, C, T)
            kernel, stride = layer.kernel_size, layer.stride
            length = (
                torch.div(length - kernel, stride, rounding_mode="floor") + 1
            ).clamp(min=0)
            norm = layer.layer_norm
            if padded and isinstance(norm, torch.nn.GroupNorm):  # one group a channel
                mean, variance, _ = _moments(x, length)
                scale = norm.weight[:, None] * (variance + norm.eps).rsqrt()  # (B, C, 1)
                x = torch.addcmul(norm.bias[:, None] - mean * scale, x, scale)
            elif norm is not None:
                x = norm(x)
            x = F.gelu(x)
        return self.final_norm(x.transpose(1, 2)), length


def _convolve(conv: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """(B, C, T) -> (B, C', T'); of one channel by a product, which is times faster."""
    if x.size(1) > 1:
        return conv(x)
    windows = x[:, 0].unfold(1, conv.kernel_size[0], conv.stride[0])  # (B, T', K)
    weight = conv.weight[:, 0].expand(len(x), -1, -1)  # (B, C', K)
    x = torch.bmm(weight, windows.transpose(1, 2))
    return x if conv.bias is None else x + conv.bias[:, None]


def _moments(
    x: torch.Tensor, length: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel (B, C, 1), and where ``x`` is no padding.

    Args:
        x: (B, C, T).
        length: (B,).
    """
    steps = torch.arange(x.size(2), device=x.device)
    valid = (steps < length.to(x.device)[:, None])[:, None]  # (B, 1, T)
    count = valid.sum(dim=2, keepdim=True).clamp(min=1)
    mean = torch.where(valid, x, 0).sum(dim=2, keepdim=True) / count
    variance = torch.where(valid, (x - mean) ** 2, 0).sum(dim=2, keepdim=True) / count
    return mean, variance, valid


class Positions(torch.nn.Module):
    """Adds convolutional positions; with a layer norm behind them in the base layout."""

    def __init__(self, size: int, kernel: int, groups: int, norm: bool, dropout: float):
        super().__init__()
        self.convolution = ConvolutionalPositionalEmbedding(
            size, 0.0, kernel_size=kernel, groups=groups, use_residual=True
        )
        self.norm = torch.nn.LayerNorm(size, eps=EPS) if norm else torch.nn.Identity()
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.dropout(self.norm(self.convolution(x)))


class Wav2Vec2Encoder(TransformerEncoder):
    """The transformer of wav2vec 2.0 and HuBERT.

    Args:
        input_size: dimensions of a frame; must be ``output_size``.
        output_size, attention_heads, linear_units, num_blocks: sizes.
        dropout_rate: behind positions, attention and feed-forward layers.
        attention_dropout_rate: of the attention weights.
        activation_dropout_rate: inside the feed-forward layers.
        normalize_before: false in the base layout, true in the large.
        positions_kernel, positions_groups: of the convolution for positions.

    Raises:
        UserError: when sizes do not go together.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 768,
        attention_heads: int = 12,
        linear_units: int = 3072,
        num_blocks: int = 12,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        activation_dropout_rate: float = 0.0,
        normalize_before: bool = False,
        positions_kernel: int = 128,
        positions_groups: int = 16,
    ):
        if input_size != output_size:
            raise UserError(
                f"encoder_conf.output_size: {output_size} is not the {input_size} "
                "dimensions that come in; write preencoder: linear and preencoder_conf: "
                f"output_size: {output_size}"
            )
        for option, value in (
            ("attention_heads", attention_heads),
            ("positions_groups", positions_groups),
        ):
            if output_size % value:
                raise UserError(
                    f"encoder_conf.output_size: {output_size} is not a multiple of "
                    f"{option}: {value}"
                )
        super().__init__(
            input_size,
            output_size,
            attention_heads,
            linear_units,
            num_blocks,
            dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            input_layer=None,
            normalize_before=normalize_before,
            use_flash_attn=False,
        )
        self.embed = Positions(
            *(output_size, positions_kernel, positions_groups),
            *(not normalize_before, dropout_rate),
        )
        for layer in self.encoders:
            layer.feed_forward.activation = torch.nn.GELU()
            layer.feed_forward.dropout.p = activation_dropout_rate
            layer.norm1.eps = layer.norm2.eps = EPS
        if normalize_before:
            self.after_norm.eps = EPS

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: Optional[torch.Tensor] = None,
        masks: Optional[torch.Tensor] = None,
        **kwargs,
    ):
        """As ESPnet's; the convolution for positions finds zeros at padding.

        Args:
            xs_pad: (B, T, D), float.
            ilens: (B,), int.
            prev_states: not used.
            masks: True at padding (B, T), bool.
        """
        if masks is None:
            masks = padding_mask(ilens.to(xs_pad.device), xs_pad.size(1))
        xs_pad = xs_pad.masked_fill(masks[..., None], 0)
        return super().forward(xs_pad, ilens, prev_states, masks, **kwargs)
