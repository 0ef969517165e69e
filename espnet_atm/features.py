"""Features that pseudo-labels are made of: MFCC, or a layer of a trained model."""

import hashlib
from pathlib import Path
from typing import Any, Dict, Union

import numpy as np
import torch
import torchaudio
from torchaudio.compliance import kaldi

from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid

WINDOW, SHIFT = 25.0, 10.0  # ms, of Kaldi's MFCC


class Mfcc:
    """Kaldi's MFCC with first and second differences, as ESPnet's recipes label by.

    HuBERT's first iteration (Hsu et al. 2021, section IV-B).

    Args:
        sampling_rate: in Hz.
    """

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate
        # As many whole samples as Kaldi takes.
        window, shift = (int(sampling_rate * x * 0.001) for x in (WINDOW, SHIFT))
        self.grid = FrameGrid.from_layers([(window, shift, 0)])

    def describe(self) -> Dict[str, Any]:
        """What tells these features from others."""
        return {"features": "mfcc"}

    @torch.no_grad()
    def __call__(self, speech: np.ndarray) -> torch.Tensor:
        """Features of an utterance.

        Args:
            speech: (N,), float32, in [-1, 1].

        Returns:
            (F, 39), float32.
        """
        mfcc = kaldi.mfcc(
            torch.from_numpy(speech)[None],
            sample_frequency=self.sampling_rate,
            use_energy=False,
        ).T
        delta = torchaudio.functional.compute_deltas(mfcc)
        return torch.cat([mfcc, delta, torchaudio.functional.compute_deltas(delta)]).T


class Layer:
    """The output of a layer of a pre-trained model: HuBERT's later iterations.

    Utterances go through alone, so that none hears another's padding.

    Args:
        config_file, model_file: of an SSL run.
        layer: counted from 1.
        device: ``cpu``, ``cuda``, ...

    Raises:
        UserError: when the files are no SSL model, or it has no such layer.
    """

    def __init__(
        self,
        config_file: Union[str, Path],
        model_file: Union[str, Path],
        layer: int,
        device: str = "cpu",
    ):
        from espnet_atm.task import ATMSSLTask, encoder_grid, sampling_rate  # slow

        self.model, args = ATMSSLTask.build_model_from_file(config_file, model_file, device)
        self.model.eval()
        layers = len(self.model.encoder.encoders)
        if not 1 <= layer <= layers:
            raise UserError(
                f"layer: {layer} is none of the {layers} layers of {model_file}"
            )
        self.layer, self.device = layer, device
        self.sampling_rate, self.grid = sampling_rate(args), encoder_grid(args)
        digest = hashlib.md5(usedforsecurity=False)
        for file in (config_file, model_file):
            digest.update(Path(file).read_bytes())
        self.digest = digest.hexdigest()

    def describe(self) -> Dict[str, Any]:
        """What tells these features from others."""
        return {"features": f"layer {self.layer}", "model": self.digest}

    @torch.no_grad()
    def __call__(self, speech: np.ndarray) -> torch.Tensor:
        """Features of an utterance.

        Args:
            speech: (N,), float32, in [-1, 1].

        Returns:
            (F, D), float32.
        """
        samples = torch.from_numpy(speech)[None].to(self.device)
        lengths = torch.tensor([len(speech)], device=self.device)
        _, layers, _ = self.model.inference_encode(samples, lengths)
        return layers[self.layer - 1][0].float()


Features = Union[Mfcc, Layer]
