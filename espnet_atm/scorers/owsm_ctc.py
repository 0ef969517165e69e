"""OWSM-CTC models of ESPnet's S2T task: an encoder that is told language and task."""

import difflib
import re
from pathlib import Path
from typing import List, Optional, Tuple, Union

import torch
from espnet2.asr.encoder.e_branchformer_ctc_encoder import EBranchformerCTCEncoder
from espnet2.s2t.espnet_ctc_model import ESPnetS2TCTCModel
from espnet2.tasks.s2t_ctc import S2TTask

from espnet_atm.errors import UserError, read_config
from espnet_atm.frames import FrameGrid, frontend_layers, subsampling_layers
from espnet_atm.scorer import Scorer
from espnet_atm.scorers.espnet import (
    build_model,
    check_kind,
    frontend_rate,
    parse_rate,
)
from espnet_atm.values import is_positive
from espnet_atm.weights import load_weights, read_weights

KIND = "OWSM-CTC"
OPTIONS = ("token_list", "encoder", "ctc_conf", "promptencoder")
# What an utterance and its prompt go through up to the CTC head.
SCORING = (
    *("frontend.", "normalize.", "encoder.", "prompt_encoder.", "embed."),
    *("embed_proj.", "prompt_proj.", "ctc."),
)
RECOGNITION = "<asr>"
NO_LANGUAGE = ("<nolang>", "<unk>")  # OWSM's and POWSM's


def load(
    train_config: Union[str, Path],
    model_file: Union[str, Path],
    device: str = "cpu",
    half: bool = False,
    lang: Optional[str] = None,
    task: Optional[str] = None,
) -> "OWSMCTCScorer":
    """What ``s2t.sh`` or the model zoo left; see :meth:`Scorer.from_files`.

    Args:
        lang: what is spoken, e.g. ``eng`` or ``<eng>``; None for what is not known.
        task: of the model's, e.g. ``asr`` or ``<st_deu>``; None for ``<asr>``.

    Raises:
        UserError: also when the model has no such symbol.
    """
    files = train_config, model_file
    config = read_config(files[0])
    if config.get("preprocessor") == "s2t" and "promptencoder" not in config:
        raise UserError(
            f"{train_config}: is of an OWSM model with attention (decoder: "
            f"{config.get('decoder')}); of OWSM, only OWSM-CTC (model: espnet_ctc) can "
            "be the scorer"
        )
    check_kind(config, train_config, KIND, OPTIONS)
    conf = config.get("preprocessor_conf")
    conf = conf if isinstance(conf, dict) else {}
    seconds = conf.get("speech_length")
    if not is_positive(seconds):
        raise UserError(
            f"{train_config}: preprocessor_conf.speech_length: {seconds!r} is no number "
            "of seconds; write what utterances were padded to in training, e.g. 30"
        )
    state = read_weights(model_file)
    model, args = build_model(S2TTask, KIND, *files, device)
    if not isinstance(model.encoder, EBranchformerCTCEncoder):
        raise UserError(
            f"{train_config}: encoder: {config['encoder']} cannot be told the language; "
            f"that of {KIND} is e_branchformer_ctc"
        )
    load_weights(model, state, model_file, train_config, SCORING)
    rate = frontend_rate(model, args, train_config)
    # The preprocessor's own default is 16000 too.
    fs = parse_rate(conf.get("fs", 16000), "preprocessor_conf.fs", train_config)
    if fs != rate:
        raise UserError(
            f"{train_config}: preprocessor_conf.fs: {fs} is not frontend_conf.fs: {rate}"
        )
    prompt = (
        _unknown_language(model.token_list, conf.get("nolang_symbol"), train_config)
        if lang is None
        else _symbol("lang", lang, model.token_list, train_config),
        _symbol(
            *("task", RECOGNITION if task is None else task),
            *(model.token_list, train_config),
        ),
    )
    return OWSMCTCScorer(
        model, rate, prompt, window=int(seconds * fs), device=device, half=half
    )


def _unknown_language(
    token_list: List[str], named: Optional[str], train_config: Union[str, Path]
) -> str:
    """As ESPnet's ``Speech2Text.no_language``."""
    for symbol in (named, *NO_LANGUAGE):
        if symbol in token_list:
            return symbol
    raise UserError(
        f"{train_config}: the model has no symbol for an unknown language "
        f"({' or '.join(NO_LANGUAGE)}): give lang, the language that is spoken"
    )


def _symbol(
    option: str, value: str, token_list: List[str], train_config: Union[str, Path]
) -> str:
    """The token that stands for a language or task."""
    symbol = str(value)
    if not symbol.startswith("<"):
        symbol = f"<{symbol}>"
    if symbol in token_list:
        return symbol
    # Not the timestamps.
    symbols = [x for x in token_list if re.fullmatch(r"<[^\W\d].*>", x)]
    near = difflib.get_close_matches(symbol, symbols, n=6, cutoff=0)
    raise UserError(
        f"{option}: {value}: {symbol} is not in the token list of {train_config}, "
        f"which has, among others, {' '.join(near) or 'no such symbols'}"
    )


class OWSMCTCScorer(Scorer):
    """An OWSM-CTC model; arguments as of :class:`Scorer`, and

    Args:
        window: as in training.
        prompt: the symbols of language and task.

    An utterance has the frames whose centres lie within it; those of the padding are
    dropped.

    Raises:
        UserError: when the frame times are not known, or a window has too few.
    """

    def __init__(
        self,
        model: ESPnetS2TCTCModel,
        sampling_rate: int,
        prompt: Tuple[str, str],
        window: int,
        **options,
    ):
        self.prompt = prompt
        self.prefix = [model.token_list.index(symbol) for symbol in prompt]
        super().__init__(model, sampling_rate, window=window, **options)

    def _posteriors(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        most = int(lengths.max())
        if most > self.window:
            raise ValueError(f"{most} samples are more than a window's {self.window}")
        steps = torch.arange(speech.size(1), device=speech.device)
        speech = torch.where(steps < lengths[:, None], speech, 0)
        # A negative number drops what is padding of the batch.
        speech = torch.nn.functional.pad(speech, (0, self.window - speech.size(1)))
        encoded = self._encode(speech)
        within = (lengths - 1 - self.grid.offset) // self.grid.shift + 1
        frames = within.long().clamp(0, encoded.size(1))
        count = int(frames.max())
        if not count:
            raise ValueError(f"{most} samples are too short for one frame")
        return self.model.ctc.log_softmax(encoded[:, :count]), frames

    def _encode(self, speech: torch.Tensor) -> torch.Tensor:
        """(B, N) -> (B, T, D), all frames, those of padding too."""
        count, length = speech.shape
        # Made anew each time: the model writes into its prompt.
        prefix = torch.tensor([self.prefix] * count, device=speech.device)
        previous = torch.full_like(prefix[:, :1], self.model.na)
        encoded, _ = self.model.encode(
            *(speech, torch.full_like(prefix[:, 0], length)),
            *(previous, torch.ones_like(prefix[:, 0])),
            *(prefix, torch.full_like(prefix[:, 0], prefix.size(1))),
        )
        if isinstance(encoded, tuple):  # models with intermediate CTC
            encoded = encoded[0]
        return self.model.frames(encoded, prefix)

    def is_too_short(self, num_samples: int) -> bool:
        """See :meth:`Scorer.is_too_short`."""
        return num_samples - 1 < self.grid.offset

    def depends_on_padding(self, *args, **options) -> bool:
        """It does not: alone or in a batch, an utterance is padded to the window."""
        return False

    def _find_grid(self) -> FrameGrid:
        layers = frontend_layers(self.model.frontend)
        grid = FrameGrid.from_layers(layers + subsampling_layers(self.model.encoder.embed))
        expected = grid.length(self.window)
        lost = self.window // grid.shift - expected  # at the end
        if self.window // 8 // grid.shift < max(lost, 1):  # the overlap in score_long
            raise UserError(
                f"the scorer's utterances are padded to {self.window} samples "
                f"(preprocessor_conf.speech_length), which hold {expected} frames: too "
                "few to score longer ones window by window"
            )
        with torch.inference_mode():
            silence = torch.zeros(1, self.window, device=self.device)
            found = self._encode(silence).size(1)
        if found != expected:
            raise UserError(
                f"the scorer has {found} frames in {self.window} samples, where its "
                f"layers tell of {expected}: its frame times are not known; use "
                "encoder_conf.input_layer: conv2d8 or another conv2d"
            )
        return grid
