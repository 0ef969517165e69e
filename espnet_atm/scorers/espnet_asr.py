"""ESPnet ASR models with a CTC head."""

from pathlib import Path
from typing import Optional, Tuple, Union

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_atm.errors import UserError, read_config
from espnet_atm.frames import (
    FrameGrid,
    frontend_layers,
    measured_grid,
    subsampling_layers,
)
from espnet_atm.scorer import Scorer
from espnet_atm.scorers.espnet import (
    build_model,
    check_kind,
    frontend_rate,
)
from espnet_atm.transducer import ASRTask  # also reads a transducer that has a CTC head
from espnet_atm.weights import load_weights, read_weights

# What an utterance goes through up to the CTC head; the decoder is not looked at.
SCORING = (
    *("frontend.", "normalize.", "preencoder.", "encoder.", "postencoder.", "ctc."),
)


def load(
    asr_train_config: Union[str, Path],
    asr_model_file: Union[str, Path],
    device: str = "cpu",
    half: bool = False,
) -> "ESPnetASRScorer":
    """What ``asr.sh`` or the model zoo left; see :meth:`Scorer.from_files`."""
    files = asr_train_config, asr_model_file
    config = read_config(files[0])
    check_kind(config, asr_train_config, "ASR", ("token_list", "encoder", "ctc_conf"))
    state = read_weights(asr_model_file)
    model, args = build_model(ASRTask, "ASR", *files, device)
    if getattr(model, "ctc", None) is not None:
        load_weights(model, state, asr_model_file, asr_train_config, SCORING)
    rate = frontend_rate(model, args, asr_train_config)
    return ESPnetASRScorer(model, rate, device=device, half=half)


class ESPnetASRScorer(Scorer):
    """An ESPnet ASR model; arguments as of :class:`Scorer`.

    Raises:
        UserError: when the model has no CTC head.
    """

    def __init__(self, model: ESPnetASRModel, sampling_rate: int, **options):
        if getattr(model, "ctc", None) is None:
            raise UserError(
                "the scorer has no CTC head (ctc_weight: 0.0); Ask2Mask needs "
                "frame-synchronous posteriors: train it with ctc_weight above 0"
            )
        super().__init__(model, sampling_rate, **options)

    def _posteriors(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        encoded, frames = self.model.encode(self._reflect(speech, lengths), lengths)
        if isinstance(encoded, tuple):  # models with intermediate CTC
            encoded = encoded[0]
        return self.model.ctc.log_softmax(encoded), frames

    def is_too_short(self, num_samples: int) -> bool:
        """See :meth:`Scorer.is_too_short`.

        A centred STFT mirrors more samples than half its window: with fewer it fails on
        an utterance alone, and beside longer ones sees something else.
        """
        stft = self._centred_stft()
        if stft is not None and num_samples <= stft.n_fft // 2:
            return True
        return super().is_too_short(num_samples)

    def _centred_stft(self) -> Optional[torch.nn.Module]:
        stft = getattr(self.model.frontend, "stft", None)
        return stft if getattr(stft, "center", False) else None

    def _reflect(self, speech: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Let the last frames of a padded utterance be what they are without padding.

        A centred STFT sees the utterance's end mirrored when it is alone, and the
        batch's padding otherwise. So the padding gets the mirrored end.
        """
        stft = self._centred_stft()
        if stft is None:
            return speech
        steps = torch.arange(speech.size(1), device=speech.device)
        beyond = steps - lengths[:, None] + 1  # (B, N), 0 at the last sample
        mirrored = (steps - 2 * beyond.clamp(min=0)).clamp(min=0)
        seen = beyond <= stft.n_fft // 2
        return torch.where(seen, speech.gather(1, mirrored), 0)

    def _find_grid(self) -> FrameGrid:
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
