"""ESPnet's SSL model with masks and loss weights from confidence."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Tuple

import torch
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.asr.frontend.cnn import CNNFrontend
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.ssl.espnet_model import ESPnetSSLModel
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_atm.confidence import align_tracks, utterance_confidence
from espnet_atm.config import SCORER_FILES, SCORER_NAMES, SSLConf
from espnet_atm.errors import UserError
from espnet_atm.frames import (
    FrameGrid,
    frontend_layers,
    padding_mask,
    stack_frames,
    subsampling_layers,
)
from espnet_atm.masking import GuidedMasking
from espnet_atm.preencoder import ENCODERS
from espnet_atm.speech import check_installed
from espnet_atm.track import MAX_RATE_RATIO
from espnet_atm.weighting import frame_weights

if TYPE_CHECKING:
    from espnet_atm.scorer import Scorer

# Validation draws the same noise for each batch, so that its losses compare, as long as
# batches are made alike: a row's masks are drawn together with its batch mates'.
VALIDATION_SEED = 0


def check_frame_rate(
    frontend: Optional[torch.nn.Module], encoder: torch.nn.Module
) -> None:
    """Refuse encoders that have fewer frames than were masked.

    Raises:
        UserError: saying what to write behind this front end.
    """
    embed = getattr(encoder, "embed", None)
    layers = () if embed is None else embed.modules()
    if not any("Subsampling" in type(layer).__name__ for layer in layers):
        return
    is_transformer = isinstance(encoder, TransformerEncoder)
    if isinstance(frontend, CNNFrontend):  # it has subsampled enough
        keeping = "wav2vec" if is_transformer else "null"
        advice = f"preencoder: linear and input_layer: {keeping} or linear"
    else:
        advice = "preencoder: conv2d and input_layer: null"
        if is_transformer:
            advice += f", with encoder: {' or '.join(ENCODERS)}"
    raise UserError(
        f"encoder_conf.input_layer subsamples after the mask; write {advice}"
    )


class ATMSSLModel(ESPnetSSLModel):
    """An ESPnet SSL model that is told where a scorer was sure.

    Built from a stock model: parameters, their names and their initial values stay.

    Args:
        model: what ESPnet's task built, with its ``mask`` util.
        conf: the checked ``ssl_conf``.
        accum_grad: batches of each update.
        sampling_rate: of the audio, in Hz.

    Raises:
        UserError: when a loss cannot do what ``conf`` asks for.
    """

    def __init__(
        self,
        model: ESPnetSSLModel,
        conf: SSLConf,
        accum_grad: int = 1,
        sampling_rate: int = 16000,
    ):
        if model.util_attributes != {"mask"}:
            raise UserError(
                "ssl_conf guides masks: the losses must use the util 'mask' and no "
                f"other, and these use {sorted(model.util_attributes)}"
            )
        before = model.frontend if model.preencoder is None else model.preencoder
        size = model.encoder.output_size()
        if before.output_size() != size:
            none = "preencoder: linear and " if model.preencoder is None else ""
            raise UserError(
                "the mask replaces what goes into the encoder: it has "
                f"{before.output_size()} dimensions and encoder_conf.output_size is {size}; "
                f"write {none}preencoder_conf: output_size: {size}"
            )
        check_frame_rate(model.frontend, model.encoder)
        if conf.loss_scale != "none":
            for loss in model.losses:
                if not getattr(loss, "accepts_weight", False):
                    raise UserError(
                        f"ssl_conf.loss_scale: {conf.loss_scale} is not possible with "
                        f"{type(loss).__name__}, which takes no weights; write none"
                    )
        masking = GuidedMasking(
            model.util_modules["mask"].mask_embedding,
            **conf.masking(),
            validation=conf.validation_masker,
        )
        super().__init__(
            frontend=model.frontend,
            specaug=model.specaug,
            normalize=model.normalize,
            preencoder=model.preencoder,
            encoder=model.encoder,
            losses=list(model.losses),
            util_attributes=model.util_attributes,
            required_inputs=model.required_inputs,
            util_modules=torch.nn.ModuleDict({"mask": masking}),
            token_list=model.token_list,
        )
        self.conf = conf
        self.accum_grad = accum_grad
        self.sampling_rate = sampling_rate
        # Not a module: it is neither trained nor saved. Loaded when first needed, so
        # that the trained model can be used without it.
        self.scorer = None
        for loss in self.losses:
            if hasattr(loss, "check_model"):
                loss.check_model(self)

    def stacking(self) -> Tuple[int, int]:
        """How the front end's frames are stacked to the encoder's rate.

        Returns:
            The frame that the first stack begins with, and the frames of each, chosen so
            that stack and encoder frame have the same centre, to within half a frame of
            the front end.

        Raises:
            UserError: when the front end has no fixed features.
        """
        if not isinstance(self.frontend, DefaultFrontend):
            raise UserError(
                "the loss best_rq needs features that are not learnt, and the frontend "
                f"is {type(self.frontend).__name__}; write frontend: default"
            )
        features = FrameGrid.from_layers(frontend_layers(self.frontend))
        encoder = self.encoder_grid()
        stack = encoder.shift // features.shift
        centre = (encoder.offset - features.offset) / features.shift
        return int(centre - (stack - 1) / 2), stack

    def encoder_grid(self) -> FrameGrid:
        """The frames that are masked."""
        layers = frontend_layers(self.frontend)
        if self.preencoder is not None:
            layers += subsampling_layers(self.preencoder)
        return FrameGrid.from_layers(layers)

    def score(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """Confidence of each encoder frame, from the scorer in ``ssl_conf``.

        Args:
            speech: (B, N), float.
            speech_lengths: samples of each utterance (B,), int.
            frames: encoder frames of each utterance (B,), int.

        Returns:
            (B, T), float32, without gradient, zero at padding.

        Raises:
            UserError: when the scorer wants audio at another rate, or its frames do
                not fit.
        """
        options = {
            name: value
            for name, value in self.conf.scorer.items()
            if name not in SCORER_NAMES
        }
        if self.scorer is None:
            grid, device = self.encoder_grid(), str(speech.device)
            scorer = load_scorer(self.conf, grid, self.sampling_rate, device)
            self.scorer = scorer
            self.score_alone = scorer.depends_on_padding(**options)
            if self.score_alone:
                logging.warning(
                    "ssl_conf.scorer: its scores depend on the padding of a batch: "
                    "utterances of different lengths are scored one by one"
                )
        if self.score_alone and len(speech_lengths.unique()) > 1:
            rows = [
                self.scorer.score(row[None, :length], length[None], **options)
                for row, length in zip(speech, speech_lengths)
            ]
            tracks = torch.nn.utils.rnn.pad_sequence(
                [track[0] for track, _ in rows], batch_first=True
            )
            counts = torch.cat([count for _, count in rows])
        else:
            tracks, counts = self.scorer.score(speech, speech_lengths, **options)
        return align_tracks(
            tracks, counts, self.scorer.grid, frames, self.encoder_grid()
        )

    def stacked_size(self) -> int:
        """Dimensions of the stacked features; errors as in :meth:`stacking`."""
        return self.stacking()[1] * self.frontend.output_size()

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **kwargs
    ) -> Dict[str, torch.Tensor]:
        """Features for statistics; labels are not needed."""
        feats, feats_lengths = self._extract_feats(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": feats_lengths}

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: Optional[torch.Tensor] = None,
        text_lengths: Optional[torch.Tensor] = None,
        confidence: Optional[torch.Tensor] = None,
        confidence_lengths: Optional[torch.Tensor] = None,
        **kwargs,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Loss of a batch.

        Args:
            speech: (B, N), float.
            speech_lengths: samples of each utterance (B,), int.
            text: one label for each encoder frame (B, T), int, for losses that want it.
            text_lengths: (B,), int.
            confidence: s_t for each encoder frame (B, T), float.
            confidence_lengths: (B,), int.

        Returns:
            Scalar loss, statistics to log, and the weight of the batch (its masked
            frames).
        """
        data = self.encode(speech, speech_lengths, confidence=confidence, text=text)
        data.update(text=text, text_lengths=text_lengths)

        total_loss = 0.0
        stats = data["stats"]
        for loss_func in self.losses:
            loss, loss_stats = loss_func(
                **{k: data[k] for k in loss_func.required_inputs}
            )
            total_loss = total_loss + loss
            stats.update(loss_stats)
        stats["loss"] = total_loss.detach()

        if self.training:
            self.global_step = self.global_step + 1
        # By this ESPnet averages over processes: each masked frame counts alike there too.
        weight = data["mask_info"]["mask_m"].sum().clamp(min=1)
        return force_gatherable((total_loss, stats, weight), total_loss.device)

    def encode(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: Optional[torch.Tensor] = None,
        text_lengths: Optional[torch.Tensor] = None,
        use_final_output: bool = True,
        confidence: Optional[torch.Tensor] = None,
    ) -> Dict:
        """Features, mask, context network; arguments as in :meth:`forward`."""
        data = {}
        feats, lengths = self._extract_feats(speech, speech_lengths)
        if "stacked_features" in self.required_inputs:
            # Copied: what follows may augment and normalise in place.
            features = feats.detach().clone()
        if self.specaug is not None and self.training:
            feats, lengths = self.specaug(feats, lengths)
        if self.normalize is not None:
            feats, lengths = self.normalize(feats, lengths)
        data["frontend"] = feats
        if self.preencoder is not None:
            feats, lengths = self.preencoder(feats, lengths)
        data["preencoder"] = feats
        data["num_updates"] = self.global_step[0] // self.accum_grad
        if "stacked_features" in self.required_inputs:
            data["stacked_features"] = stack_frames(
                features, *self.stacking(), length=feats.size(1)
            )

        # (B, T), T: encoder frames
        padding = padding_mask(lengths.to(feats.device), feats.size(1))
        if confidence is None and self.conf.scorer and self.conf.needs_confidence:
            confidence = self.score(speech, speech_lengths, lengths)
        if confidence is not None and confidence.shape != padding.shape:
            raise UserError(
                f"confidence of shape {tuple(confidence.shape)} for encoder frames of "
                f"shape {tuple(padding.shape)}"
            )
        generator = None
        if not self.training:
            generator = torch.Generator(feats.device).manual_seed(VALIDATION_SEED)
        feats, mask_info = self.util_modules["mask"](
            feats, padding, confidence, generator
        )
        mask_info.update(weight=None, generator=generator)
        alike = not self.training and self.conf.validation_masker is not None
        if self.conf.loss_scale != "none" and not alike:
            mask_info["weight"] = frame_weights(
                confidence,
                lengths,
                mask_info["mask_m"],
                self.conf.loss_scale,
                self.conf.average,
                self.conf.frame_prob,
                generator,
                self.conf.weight_sharpness,
            )
        data["mask_info"] = mask_info
        data["stats"] = _mask_stats(mask_info, lengths, confidence)

        output, output_lengths, _ = self.encoder(
            feats, lengths, masks=padding, return_all_hs=True
        )
        output, layers = output
        if use_final_output:  # for encoders with a final norm
            layers = layers[:-1] + [output]
        data.update(encoder_output=layers, encoder_output_lengths=output_lengths)
        return data


def load_scorer(
    conf: SSLConf, grid: FrameGrid, sampling_rate: int, device: str = "cpu"
) -> "Scorer":
    """Load the model that ``ssl_conf.scorer`` names.

    Args:
        conf: the checked ``ssl_conf``.
        grid: the frames that are masked.
        sampling_rate: of the audio, in Hz.
        device: where it is to score.

    Raises:
        UserError: when it cannot be loaded whole, wants audio at another rate, has
            frames too long to tell those that are masked apart, or wants a speech gate
            that is not installed.
    """
    from espnet_atm.scorer import Scorer  # slow, and seldom needed

    if conf.scorer.get("speech_gate"):
        check_installed()
    named = {name: conf.scorer.get(name) for name in SCORER_NAMES}
    for name in SCORER_FILES:
        file = named[name]
        if file and not Path(file).is_file():
            what = "is a folder" if Path(file).is_dir() else "no such file"
            raise UserError(f"ssl_conf.scorer.{name}: {what}: {file}")
    model = named["model"] or named["asr_train_config"]
    try:
        scorer = Scorer.from_files(
            model, named["asr_model_file"], device, lang=named["lang"], task=named["task"]
        )
    except ValueError as e:
        raise UserError(f"ssl_conf.scorer: {e}") from e
    if scorer.sampling_rate != sampling_rate:
        raise UserError(
            f"ssl_conf.scorer: {model} wants audio at {scorer.sampling_rate} Hz, and "
            f"frontend_conf.fs is {sampling_rate}: score before training, by "
            "espnet_atm.bin.score, which resamples"
        )
    if scorer.grid.shift > MAX_RATE_RATIO * grid.shift:
        raise UserError(
            f"ssl_conf.scorer: {model} has a frame in {scorer.grid.shift} samples, "
            f"which is too coarse for encoder frames of {grid.shift}"
        )
    return scorer


def _mask_stats(
    mask_info: Dict[str, torch.Tensor],
    lengths: torch.Tensor,
    confidence: Optional[torch.Tensor],
) -> Dict[str, torch.Tensor]:
    """What was masked, for the log: tensors, so that the device is not waited for."""
    masked, unmasked = mask_info["mask_m"], mask_info["mask_u"]
    stats = {"mask_ratio": masked.sum() / lengths.sum().clamp(min=1)}
    if mask_info["weight"] is not None:
        total = torch.where(masked, mask_info["weight"], 0).sum()
        stats["weight"] = total / masked.sum().clamp(min=1)
    if confidence is not None:
        for name, where in (("masked", masked), ("unmasked", unmasked)):
            total = torch.where(where, confidence, 0).sum()
            stats[f"confidence_{name}"] = total / where.sum().clamp(min=1)
        stats["confidence_utterance"] = utterance_confidence(
            confidence, lengths.to(confidence.device)
        ).mean()
    return {name: value.detach().float() for name, value in stats.items()}
