"""CTC models of Hugging Face's transformers: wav2vec 2.0, HuBERT, WavLM, MMS, Parakeet, ..."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, List, Optional, Tuple

import torch

from espnet_atm.errors import UserError
from espnet_atm.frames import ConvLayer, FrameGrid, measured_grid
from espnet_atm.huggingface import transformers
from espnet_atm.scorer import Scorer

# Of training only, and left out by some who publish.
UNUSED = ("masked_spec_embed",)
# All is in the folder, and no code in it is run.
HERE = {"local_files_only": True, "trust_remote_code": False}
# SeamlessM4TFeatureExtractor's windows are not in its config.
SEAMLESS_WINDOW = (400, 160, 0)


def load(
    folder: Path, device: str = "cpu", half: bool = False, lang: Optional[str] = None
) -> "HuggingFaceCTCScorer":
    """What ``save_pretrained`` left of a model and of its processor.

    Args:
        folder: has config.json, weights, and the processor's files.
        device, half: see :class:`espnet_atm.scorer.Scorer`.
        lang: of the adapters of MMS, e.g. ``eng``; None for those that the model has.

    Raises:
        UserError: naming the folder, when the model has no CTC head, weights are missing
            or not finite, or there is no processor.
    """
    hf = transformers()
    hf.utils.logging.disable_progress_bar()
    try:
        config = hf.AutoConfig.from_pretrained(folder, **HERE)
    except Exception as e:  # whatever it raises on a file that is no config
        raise _told(folder, "its config.json is of no model that is known", e) from None
    if type(config) not in hf.AutoModelForCTC._model_mapping.keys():
        raise UserError(
            f"{folder}: is no CTC model: transformers has none of the type "
            f"{config.model_type!r}; Ask2Mask needs frame-synchronous posteriors"
        )
    extractor = _processor(hf.AutoFeatureExtractor, folder, "feature extractor")
    tokenizer = _processor(hf.AutoTokenizer, folder, "tokenizer")
    adapts = getattr(config, "adapter_attn_dim", None) is not None
    if lang is not None:
        if not adapts:
            raise UserError(
                f"lang: {lang!r}: {folder} has no adapters of languages; leave it out"
            )
        try:
            tokenizer.set_target_lang(lang)
        except Exception as e:
            raise _told(folder, f"lang: {lang!r}: has no vocabulary of it", e) from None
    chosen = {"target_lang": lang, "ignore_mismatched_sizes": True} if lang else {}
    try:
        model, info = hf.AutoModelForCTC.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, **HERE, **chosen
        )
    except Exception as e:
        raise _told(folder, "cannot be loaded", e) from None
    missing = sorted(x for x in info["missing_keys"] if not x.endswith(UNUSED))
    if lang:  # they come from the adapter's file, which is read after the others
        missing = [x for x in missing if "adapter_layer" not in x]
    heads = [x for x in missing if "head" in x]
    if heads:
        raise UserError(
            f"{folder}: has no CTC head: {', '.join(heads)} are not in its weights "
            f"({', '.join(config.architectures or ['of no known architecture'])}); "
            "Ask2Mask needs a model that was fine-tuned with CTC"
        )
    if missing:
        raise UserError(
            f"{folder}: weights are not in it: {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if missing[3:] else "")
        )
    bad = [k for k, v in model.state_dict().items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise UserError(f"{folder}: weights that are not finite: {', '.join(bad[:3])}")
    blank_id = tokenizer.pad_token_id
    if blank_id is None or not 0 <= blank_id < config.vocab_size:
        raise UserError(
            f"{folder}: pad_token_id {blank_id} of its tokenizer, which is the blank, is "
            f"none of the {config.vocab_size} labels"
        )
    if blank_id != config.pad_token_id:
        logging.warning(
            f"{folder}: the blank is {blank_id}, the tokenizer's padding; config.json says "
            f"pad_token_id: {config.pad_token_id}"
        )
    return HuggingFaceCTCScorer(
        *(model, extractor, blank_id), device=device, half=half
    )


def _processor(auto: Any, folder: Path, what: str) -> Any:
    try:
        return auto.from_pretrained(folder, **HERE)
    except Exception as e:
        raise _told(
            folder, f"has no {what}; write it there by processor.save_pretrained", e
        ) from None


def _told(folder: Path, what: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:200]
    return UserError(f"{folder}: {what} ({type(error).__name__}: {text})")


class HuggingFaceCTCScorer(Scorer):
    """A model of transformers' ``AutoModelForCTC``.

    Args:
        model: the model.
        extractor: its feature extractor, of audio or of filter banks.
        blank_id: the label of the blank.
        **options: see :class:`espnet_atm.scorer.Scorer`.
    """

    def __init__(self, model: Any, extractor: Any, blank_id: int, **options):
        self.extractor = extractor
        self.grid = None  # while it is looked for
        super().__init__(model, extractor.sampling_rate, blank_id, **options)

    def _posteriors(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        # The extractors work on the CPU; a copy for each row would wait for the GPU each time.
        audio, counts = speech.cpu().numpy(), lengths.tolist()
        rows = [row[:n] for row, n in zip(audio, counts)]
        inputs = self.extractor(
            rows, sampling_rate=self.sampling_rate, padding=True, return_tensors="pt"
        )
        names = (self.model.main_input_name, "attention_mask")
        inputs = {x: inputs[x].to(self.device) for x in names if x in inputs}
        logits = self.model(**inputs).logits
        frames = torch.full_like(lengths, logits.size(1))
        if self.grid is not None and self.grid.layers:
            known = [self.grid.length(n) for n in counts]
            frames = torch.minimum(frames, torch.tensor(known, device=self.device))
        return logits.float().log_softmax(dim=-1), frames

    def depends_on_padding(self, **options) -> bool:
        """See :meth:`Scorer.depends_on_padding`.

        Where the layers do not tell the frames of each, each is scored alone.
        """
        return not self.grid.layers or super().depends_on_padding(**options)

    def _find_grid(self) -> FrameGrid:
        """Derived from the configs, where the numbers of frames agree; else measured."""
        rate = self.sampling_rate
        try:
            layers, early = _layers(self.model.config, self.extractor)
        except AttributeError:  # another architecture
            layers = []
        if layers:
            grid = FrameGrid.from_layers(layers)
            grid = dataclasses.replace(grid, offset=grid.offset - early)
            tried = (rate, 3 * rate, 4 * rate + rate // 7)
            # An extractor may fill up the last frame of all.
            if all(0 <= self._frames(n) - grid.length(n) <= 1 for n in tried):
                return grid
        return measured_grid(self._frames, (4 * rate, 8 * rate))


def _layers(config: Any, extractor: Any) -> Tuple[List[ConvLayer], float]:
    """The strided windows, and by how many samples their centres are earlier.

    Raises:
        AttributeError: when the configs do not tell.
    """
    early = 0.0
    inner = getattr(config, "encoder_config", config)
    if hasattr(config, "conv_kernel"):  # on audio, as wav2vec 2.0
        layers = [(k, s, 0) for k, s in zip(config.conv_kernel, config.conv_stride)]
        padding = 1
    elif hasattr(inner, "subsampling_conv_kernel_size"):  # Parakeet
        # Centred windows, of which the last is left out: as many as hops are full.
        hop = extractor.hop_length
        layers, early = [(hop, hop, 0)], (hop - 1) / 2
        kernel, stride = inner.subsampling_conv_kernel_size, inner.subsampling_conv_stride
        factor = inner.subsampling_factor
        while factor > 1:
            layers.append((kernel, stride, (kernel - 1) // 2))
            factor //= stride
    else:  # w2v-BERT 2.0
        layers = [SEAMLESS_WINDOW, (extractor.stride, extractor.stride, 0)]
        padding = config.adapter_kernel_size // 2
    if getattr(config, "add_adapter", False):
        adapter = (config.adapter_kernel_size, config.adapter_stride, padding)
        layers += [adapter] * config.num_adapter_layers
    return layers, early
