"""The external model that says how sure it is of each frame: what all kinds share."""

import abc
from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple, Union

import torch

from espnet_atm.confidence import frame_confidence, refine_confidence
from espnet_atm.frames import FrameGrid
from espnet_atm.scorers.find import find_scorer
from espnet_atm.speech import speech_probability

CONTEXT_SECONDS = 5  # that a frame hears to each side, at least, in long utterances


class Scorer(abc.ABC):
    """A model with a CTC head, evaluated up to that head.

    A kind of model is a file of :mod:`espnet_atm.scorers`. It loads the model, gives
    the posteriors of a batch, and says what the attributes tell.

    Args:
        model: what is evaluated.
        sampling_rate: of its audio, in Hz.
        blank_id: the label of the blank.
        window: samples that each utterance is padded to, and the most that the model
            takes at once; None where it takes any.
        device: where to run it.
        half: on a GPU, compute in bfloat16 where it can, else in float16.

    Attributes:
        grid: the frames it scores, in samples of its own sampling rate.
        sampling_rate: in Hz.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        sampling_rate: int,
        blank_id: int = 0,
        window: Optional[int] = None,
        device: str = "cpu",
        half: bool = False,
    ):
        self.model = model.to(device).eval()
        self.device = device
        self.sampling_rate = sampling_rate
        self.blank_id = blank_id
        self.window = window
        self.half = half
        self.grid = self._find_grid()

    @staticmethod
    def from_files(
        asr_train_config: Union[str, Path],
        asr_model_file: Union[str, Path, None] = None,
        device: str = "cpu",
        half: bool = False,
        lang: Optional[str] = None,
        task: Optional[str] = None,
    ) -> "Scorer":
        """Load a model; draws no random numbers of others.

        Args:
            asr_train_config: ``config.yaml`` of an ESPnet experiment; or alone, what
                :func:`espnet_atm.scorers.find.find_scorer` takes: a folder or a tag.
            asr_model_file: the ``.pth`` beside that config.
            device, half: see the class.
            lang, task: of models that have a choice.

        Raises:
            UserError: naming the file, when it is no model with CTC, or the weights up
                to the CTC head are not all there, are others, or are not finite.
            OSError: when one cannot be opened.
        """
        source = find_scorer(asr_train_config, asr_model_file, lang, task)
        return source.load(device, half)

    @abc.abstractmethod
    def _find_grid(self) -> FrameGrid:
        """The frames, derived from the layers, or measured where they do not tell."""

    @abc.abstractmethod
    def _posteriors(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`log_probs`, on :attr:`device`, in any precision."""

    @torch.inference_mode()
    def log_probs(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """CTC log-posteriors.

        Args:
            speech: (B, N), float32, in [-1, 1]; no longer than the model takes at once.
            lengths: samples of each utterance (B,), int.

        Returns:
            (B, T, V), float32, and the frames of each utterance (B,), int.
        """
        with torch.autocast(
            torch.device(self.device).type,
            dtype=torch.bfloat16 if self.half and _bf16() else torch.float16,
            enabled=self.half,
        ):
            found, frames = self._posteriors(
                speech.to(self.device), lengths.to(self.device)
            )
            return found.float(), frames

    def score(
        self,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        smooth: int = 1,
        energy_gate: Optional[float] = None,
        speech_gate: bool = False,
        **measure,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Confidence of each frame, Eq. 2.

        What is longer than the model takes at once is scored by :meth:`score_long`.

        Args:
            speech: (B, N), float32, in [-1, 1], at :attr:`sampling_rate`.
            lengths: samples of each utterance (B,), int.
            smooth, energy_gate: see
                :func:`espnet_atm.confidence.refine_confidence`.
            speech_gate: take the confidence times
                :func:`espnet_atm.speech.speech_probability`.
            **measure: options of :func:`espnet_atm.confidence.frame_confidence`.

        Returns:
            (B, T), float32, 0 beyond an utterance's end, and the frames of each
            utterance (B,), int; both on :attr:`device`.
        """
        gates = smooth, energy_gate, speech_gate
        if self.window is not None and int(lengths.max()) > self.window:
            rows = [
                self.score_long(row[:length], self.window, *gates, **measure)
                for row, length in zip(speech, lengths)
            ]
            found = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            frames = torch.tensor([len(row) for row in rows])
            return found.to(self.device), frames.to(self.device)
        log_probs, frames = self.log_probs(speech, lengths)
        confidence = frame_confidence(log_probs, blank_id=self.blank_id, **measure)
        steps = torch.arange(confidence.size(1), device=confidence.device)
        confidence = confidence.masked_fill(steps >= frames[:, None], 0)
        audio = speech.to(self.device), lengths.to(self.device)
        return self._refine(confidence, frames, *audio, *gates), frames

    def score_long(
        self,
        speech: torch.Tensor,
        max_samples: int,
        smooth: int = 1,
        energy_gate: Optional[float] = None,
        speech_gate: bool = False,
        **measure,
    ) -> torch.Tensor:
        """Confidence of an utterance that is too long to be encoded at once.

        An approximation: windows that overlap are scored one by one, and of each counts
        the inner part, so that every frame has heard what is around it. Windows begin at
        multiples of the frame shift, which makes their frames those of the whole.
        Smoothing and gates then see the utterance as a whole.

        Args:
            speech: (N,), float32, in [-1, 1], at :attr:`sampling_rate`.
            max_samples: of a window; fewer where the model takes no more at once.
            smooth, energy_gate, speech_gate, measure: see :meth:`score`.

        Returns:
            (T,), float32, on the CPU.
        """
        if self.window is not None:
            max_samples = min(max_samples, self.window)
        shift = self.grid.shift
        beside = min(max_samples // 8, CONTEXT_SECONDS * self.sampling_rate) // shift
        step = max_samples // shift - 2 * beside
        parts, first = [], 0
        while True:
            window = speech[first * shift : first * shift + max_samples]
            confidence, frames = self.score(
                window[None], torch.tensor([len(window)]), **measure
            )
            found = confidence[0, : frames[0]].cpu()
            last = first * shift + max_samples >= len(speech)
            parts.append(found[beside if first else 0 : None if last else step + beside])
            if last:
                break
            first += step
        whole = torch.cat(parts)[None]
        audio = speech[None].cpu(), torch.tensor([len(speech)])
        frames = torch.tensor([whole.size(1)])
        gates = smooth, energy_gate, speech_gate
        return self._refine(whole, frames, *audio, *gates)[0]

    def _refine(
        self,
        confidence: torch.Tensor,
        frames: torch.Tensor,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        smooth: int,
        energy_gate: Optional[float],
        speech_gate: bool,
    ) -> torch.Tensor:
        """Smooth and gate; arguments as of :func:`refine_confidence`, and as here."""
        confidence = refine_confidence(
            *(confidence, frames, speech, lengths, self.grid, smooth, energy_gate)
        )
        if speech_gate:
            confidence = confidence * speech_probability(
                speech, lengths, self.sampling_rate, self.grid, frames
            )
        return confidence

    def is_too_short(self, num_samples: int) -> bool:
        """Whether so many samples are known to be too few for a frame."""
        return bool(self.grid.layers) and not self.grid.length(num_samples)

    def depends_on_padding(
        self,
        smooth: int = 1,
        energy_gate: Optional[float] = None,
        speech_gate: bool = False,
        **measure,
    ) -> bool:
        """Whether an utterance is scored otherwise beside a longer one than alone.

        Group norm over time and convolutional positions let padding leak in. Tried on
        noise, quiet and loud, steady and in bursts, in full precision, where rounding
        is no leak. All posteriors are compared, since a sure blank hides what the
        others do, and so is the measure, which may magnify it; what half a stored byte
        cannot tell apart does not count.

        Args:
            smooth, energy_gate, speech_gate: not looked at; they add no leak.
            **measure: options of :meth:`score`.
        """
        half, self.half = self.half, False
        try:
            return any(self._leaks(speech, measure) for speech in self._noises())
        finally:
            self.half = half

    def _noises(self) -> Iterator[torch.Tensor]:
        """A second each (N,): the probe counts where little is to be scored."""
        generator = torch.Generator().manual_seed(0)
        steps = torch.arange(self.sampling_rate)
        bursts = (steps % (self.sampling_rate // 4) < self.sampling_rate // 8) + 0.01
        for level, shape in ((0.01, 1), (0.1, bursts), (0.3, 1)):
            yield level * shape * torch.randn(len(steps), generator=generator)

    def _leaks(self, speech: torch.Tensor, measure: Dict) -> bool:
        lengths = torch.tensor([len(speech), int(0.6 * len(speech))])
        short = speech[None, : lengths[1]]
        batch = torch.nn.utils.rnn.pad_sequence([speech, short[0]], batch_first=True)
        together, frames = self.log_probs(batch, lengths)
        alone, count = self.log_probs(short, lengths[1:])
        if count[0] != frames[1]:
            return True
        beside = together[1:, : count[0]]
        pairs = (
            (beside.exp(), alone.exp()),
            tuple(
                frame_confidence(x, blank_id=self.blank_id, **measure)
                for x in (beside, alone)
            ),
        )
        return not all((a - b).abs().max() <= 0.5 / 255 for a, b in pairs)

    def _frames(self, num_samples: int) -> int:
        speech = 0.01 * torch.randn(
            1, num_samples, generator=torch.Generator().manual_seed(0)
        )
        return int(self.log_probs(speech, torch.tensor([num_samples]))[1])


def _bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
