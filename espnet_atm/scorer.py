"""The external ASR model that says how sure it is of each frame."""

from pathlib import Path
from typing import Tuple, Union

import humanfriendly
import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.tasks.asr import ASRTask

from espnet_atm.confidence import frame_confidence
from espnet_atm.frames import (
    FrameGrid,
    frontend_layers,
    measured_grid,
    subsampling_layers,
)


class Scorer:
    """An ESPnet ASR model with a CTC head, evaluated up to that head.

    Args:
        model: the ASR model.
        device: where to run it.

    Attributes:
        grid: the frames it scores, in samples of its own sampling rate.
        sampling_rate: in Hz.

    Raises:
        ValueError: when the model has no CTC head.
    """

    def __init__(self, model: ESPnetASRModel, sampling_rate: int, device: str = "cpu"):
        if getattr(model, "ctc", None) is None:
            raise ValueError(
                "the scorer has no CTC head (ctc_weight: 0.0); Ask2Mask needs "
                "frame-synchronous posteriors: train it with ctc_weight above 0"
            )
        self.model = model.to(device).eval()
        self.device = device
        self.sampling_rate = sampling_rate
        self.grid = self._find_grid()

    @classmethod
    def from_files(
        cls,
        asr_train_config: Union[str, Path],
        asr_model_file: Union[str, Path],
        device: str = "cpu",
    ) -> "Scorer":
        """Load what ``asr.sh`` or the model zoo left.

        Args:
            asr_train_config: ``config.yaml`` of the experiment.
            asr_model_file: the ``.pth`` beside it.
            device: where to run it.
        """
        for file in (asr_train_config, asr_model_file):
            if not Path(file).is_file():
                raise FileNotFoundError(f"scorer: no such file: {file}")
        model, args = ASRTask.build_model_from_file(
            str(asr_train_config), str(asr_model_file), device
        )
        if getattr(model, "frontend", None) is None:
            raise ValueError(
                f"{asr_train_config}: the scorer has no frontend (input_size: "
                f"{args.input_size}); scoring starts from audio"
            )
        rate = humanfriendly.parse_size(str(args.frontend_conf.get("fs", 16000)))
        return cls(model, rate, device)

    @torch.inference_mode()
    def log_probs(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """CTC log-posteriors.

        Args:
            speech: (B, N), float32, in [-1, 1].
            lengths: samples of each utterance (B,), int.

        Returns:
            (B, T, V), float32, and the frames of each utterance (B,), int.
        """
        encoded, frames = self.model.encode(
            speech.to(self.device), lengths.to(self.device)
        )
        if isinstance(encoded, tuple):  # models with intermediate CTC
            encoded = encoded[0]
        return self.model.ctc.log_softmax(encoded), frames

    def score(
        self, speech: torch.Tensor, lengths: torch.Tensor, **measure
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Confidence of each frame, Eq. 2.

        Args:
            speech: (B, N), float32, in [-1, 1], at :attr:`sampling_rate`.
            lengths: samples of each utterance (B,), int.
            **measure: options of :func:`espnet_atm.confidence.frame_confidence`.

        Returns:
            (B, T), float32, 0 beyond an utterance's end, and the frames of each
            utterance (B,), int; both on :attr:`device`.
        """
        log_probs, frames = self.log_probs(speech, lengths)
        confidence = frame_confidence(log_probs, **measure)
        steps = torch.arange(confidence.size(1), device=confidence.device)
        return confidence.masked_fill(steps >= frames[:, None], 0), frames

    def _frames(self, num_samples: int) -> int:
        speech = 0.01 * torch.randn(
            1, num_samples, generator=torch.Generator().manual_seed(0)
        )
        return int(self.log_probs(speech, torch.tensor([num_samples]))[1])

    def _find_grid(self) -> FrameGrid:
        """Derive the grid from the layers, and measure it where they do not tell."""
        tried = (
            3 * self.sampling_rate,
            4 * self.sampling_rate + self.sampling_rate // 7,
        )
        embed = getattr(self.model.encoder, "embed", None)
        try:
            layers = frontend_layers(self.model.frontend)
        except ValueError:
            layers = None
        if layers is not None and self.model.preencoder is None:
            if embed is not None:
                layers += subsampling_layers(embed)
            grid = FrameGrid.from_layers(layers)
            if all(grid.length(n) == self._frames(n) for n in tried):
                return grid
        return measured_grid(
            self._frames, (4 * self.sampling_rate, 8 * self.sampling_rate)
        )
