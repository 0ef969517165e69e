"""wav2vec 2.0 and HuBERT of Hugging Face's transformers as ESPnet's config and weights.

Both layouts of both are known: base (group norm, post-norm transformer) and large (layer
norm, pre-norm). Weights keep their values, here and back.
"""

import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch

from espnet_atm.errors import UserError
from espnet_atm.wav2vec2 import EPS

# What a config must say; what it says otherwise is computed by no module of ours.
FIXED = {
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "layer_norm_eps": EPS,
    "add_adapter": False,  # wav2vec 2.0
    "adapter_attn_dim": None,
    "conv_pos_batch_norm": False,  # HuBERT
}

# Beginnings of names: here, and there. ``{n}`` is a number.
BODY = (
    ("frontend.layers.{n}.conv.", "feature_extractor.conv_layers.{n}.conv."),
    ("frontend.layers.{n}.layer_norm.", "feature_extractor.conv_layers.{n}.layer_norm."),
    ("frontend.final_norm.", "feature_projection.layer_norm."),
    ("preencoder.linear_out.", "feature_projection.projection."),
    ("util_modules.mask.mask_embedding", "masked_spec_embed"),
    ("encoder.embed.convolution.convs.0.", "encoder.pos_conv_embed.conv."),
    ("encoder.encoders.{n}.self_attn.linear_q.", "encoder.layers.{n}.attention.q_proj."),
    ("encoder.encoders.{n}.self_attn.linear_k.", "encoder.layers.{n}.attention.k_proj."),
    ("encoder.encoders.{n}.self_attn.linear_v.", "encoder.layers.{n}.attention.v_proj."),
    (
        "encoder.encoders.{n}.self_attn.linear_out.",
        "encoder.layers.{n}.attention.out_proj.",
    ),
    ("encoder.encoders.{n}.norm1.", "encoder.layers.{n}.layer_norm."),
    ("encoder.encoders.{n}.norm2.", "encoder.layers.{n}.final_layer_norm."),
    (
        "encoder.encoders.{n}.feed_forward.w_1.",
        "encoder.layers.{n}.feed_forward.intermediate_dense.",
    ),
    (
        "encoder.encoders.{n}.feed_forward.w_2.",
        "encoder.layers.{n}.feed_forward.output_dense.",
    ),
)
POST_NORM = (("encoder.embed.norm.", "encoder.layer_norm."),)
PRE_NORM = (("encoder.after_norm.", "encoder.layer_norm."),)
# Of Wav2Vec2ForPreTraining, beside its body.
HEADS = (
    ("losses.0.quantizer.projection.", "quantizer.weight_proj."),
    ("losses.0.quantizer.codes", "quantizer.codevectors"),
    ("losses.0.code_projection.", "project_q."),
    ("losses.0.context_projection.", "project_hid."),
)
PREFIX = "wav2vec2."  # of the body, in Wav2Vec2ForPreTraining

FRONTEND, ENCODER = "wav2vec2_cnn", "wav2vec2_transformer"


def transformers():
    """The package, which is installed for this only.

    Raises:
        UserError: when it is not, saying how to install it.
    """
    try:
        import transformers
    except ImportError as e:
        raise UserError(
            f"Hugging Face's transformers cannot be imported ({e}): pip install "
            "transformers"
        ) from None
    return transformers


def renamed(
    state: Dict[str, torch.Tensor], names: Tuple[Tuple[str, str], ...]
) -> Tuple[Dict[str, torch.Tensor], List[str]]:
    """Weights under other names, and the names that are not known.

    Args:
        state: weights by name.
        names: beginnings, each with what takes its place.
    """
    rules = [
        (re.compile(re.escape(a).replace(r"\{n\}", r"(\d+)")), b.replace("{n}", r"\1"))
        for a, b in names
    ]
    new, unknown = {}, []
    for name, value in state.items():
        for beginning, other in rules:
            if found := beginning.match(name):
                new[found.expand(other) + name[found.end() :]] = value
                break
        else:
            unknown.append(name)
    return new, unknown


def body_names(pre_norm: bool) -> Tuple[Tuple[str, str], ...]:
    """Names of all but the heads, here and there."""
    return BODY + (PRE_NORM if pre_norm else POST_NORM)


def read(model: Union[str, Path]) -> Tuple[Any, bool, Dict[str, torch.Tensor], List[str]]:
    """Read a folder, or what a tag names.

    Returns:
        Its config, whether audio is normalised, the weights that pre-training continues
        from, by their names there without ``wav2vec2.``, and the names of those that are
        left out.

    Raises:
        UserError: when it cannot be had, is of another architecture or a variant that
            is not known, or lacks weights.
    """
    hf = transformers()
    folder = Path(model)
    if not folder.is_dir() and (folder.exists() or str(model).startswith(("/", "."))):
        raise UserError(f"{model}: is no folder; give one that holds config.json")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{model}: holds no config.json: it is no folder of Hugging Face's")
    try:
        config = hf.AutoConfig.from_pretrained(model)
    except Exception as e:  # whatever it raises on a tag, a file or the network
        raise UserError(f"{model}: cannot be had: {type(e).__name__}: {e}") from None
    check_config(config, model)
    heads = config.model_type == "wav2vec2"
    kind = hf.Wav2Vec2ForPreTraining if heads else hf.HubertModel
    try:
        loaded, info = kind.from_pretrained(
            model, output_loading_info=True, dtype=torch.float32
        )
    except Exception as e:
        raise UserError(f"{model}: cannot be loaded: {type(e).__name__}: {e}") from None
    state = {k.removeprefix(PREFIX): v for k, v in loaded.state_dict().items()}
    missing = {k.removeprefix(PREFIX) for k in info["missing_keys"]}
    beginnings = tuple(there for _, there in HEADS)
    if any(k.startswith(beginnings) for k in missing):
        state = {k: v for k, v in state.items() if not k.startswith(beginnings)}
    # Models that were fine-tuned without masks have no embedding for them.
    state = {k: v for k, v in state.items() if k not in missing}
    lacking = [
        k for k in missing if k != "masked_spec_embed" and not k.startswith(beginnings)
    ]
    if lacking:
        raise UserError(f"{model}: lacks weights of {kind.__name__}: {_some(lacking)}")
    bad = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise UserError(f"{model}: weights that are not finite: {_some(bad)}")
    return config, normalizes(model), state, sorted(info["unexpected_keys"])


def check_config(config: Any, model: Union[str, Path]) -> None:
    """Refuse architectures and variants that are computed by no module of ours.

    Raises:
        UserError: naming the option of the config, and its value.
    """
    if config.model_type not in ("wav2vec2", "hubert"):
        more = ""
        if config.model_type == "wavlm":
            more = ": WavLM's gated relative positions are in no module here"
        raise UserError(
            f"{model}: config.json: model_type: {config.model_type} is not known{more}; "
            "give a wav2vec2 or a hubert"
        )
    for option, value in FIXED.items():
        if getattr(config, option, value) != value:
            raise UserError(
                f"{model}: config.json: {option}: {getattr(config, option)!r} is "
                f"computed by no module here, which have {value!r}"
            )


def normalizes(model: Union[str, Path]) -> bool:
    """Whether the model wants each utterance normalised, by its preprocessor_config.json.

    Raises:
        UserError: when there is none, or it is for another rate than 16 kHz.
    """
    hf = transformers()
    try:
        extractor = hf.AutoFeatureExtractor.from_pretrained(model)
    except Exception as e:
        raise UserError(
            f"{model}: its preprocessor_config.json, which says whether audio is "
            f"normalised, cannot be had: {type(e).__name__}: {e}"
        ) from None
    if extractor.sampling_rate != 16000:
        raise UserError(
            f"{model}: preprocessor_config.json: sampling_rate: "
            f"{extractor.sampling_rate}; only 16000 is known"
        )
    return extractor.do_normalize


def import_model(
    model: Union[str, Path],
    base: Dict[str, Any],
    num_classes: Optional[int] = None,
    label_downsampling: int = 1,
) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor], List[str]]:
    """What pre-training needs to continue from a published model.

    Args:
        model: a folder, or a hub's tag.
        base: an SSL config, of which everything is taken that the model does not say.
        num_classes: of HuBERT's labels; if None, those of ``base``, or 500.
        label_downsampling: labels to a frame of 20 ms.

    Returns:
        The SSL config, the weights to begin with, and the names of those left out.

    Raises:
        UserError: as :func:`read` and :func:`to_espnet` do.
    """
    config, normalize_audio, state, left_out = read(model)
    classes = num_classes or _classes_of(base) or 500
    train, weights = to_espnet(config, normalize_audio, state, classes)
    collate = {
        **(base.get("collate_fn_conf") or {}),
        "label_downsampling": label_downsampling,
    }
    train = {"ssl_conf": {"masker": "atm"}, **base, "collate_fn_conf": collate, **train}
    return train, weights, left_out


def _classes_of(config: Dict[str, Any]) -> Optional[int]:
    """``num_classes`` of the loss hubert in a config, if it has one."""
    for loss in config.get("loss") or []:
        if loss["name"] == "hubert":
            return loss.get("conf", {}).get("num_classes")
    return None


def to_espnet(
    config: Any,
    normalize_audio: bool,
    state: Dict[str, torch.Tensor],
    num_classes: int = 500,
) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor]]:
    """The model in an SSL config, and the weights that its training starts from.

    Args:
        config: of :func:`read`.
        normalize_audio: whether each utterance is normalised.
        state: weights, by their names there.
        num_classes: of HuBERT's labels.

    Raises:
        UserError: on weights that have no place.
    """
    names = body_names(config.do_stable_layer_norm) + HEADS
    new, unknown = renamed(state, tuple((there, here) for here, there in names))
    if unknown:
        raise UserError(f"weights of {config.model_type} without a place: {_some(unknown)}")
    if config.model_type == "hubert":
        loss = {
            "name": "hubert",
            "conf": {"num_classes": num_classes, "final_dim": 256},
        }
    else:
        groups = config.num_codevector_groups
        loss = {
            "name": "wav2vec2",
            "conf": {
                "num_groups": groups,
                "num_codes": config.num_codevectors_per_group,
                "code_dim": config.codevector_dim,
                "final_dim": config.proj_codevector_dim,
                "num_negatives": config.num_negatives,
                "temperature": config.contrastive_logits_temperature,
                "diversity_weight": config.diversity_loss_weight,
                "frontend_size": config.conv_dim[-1],
            },
        }
        codes = "losses.0.quantizer.codes"
        if codes in new:  # (1, G * V, D) -> (G, V, D)
            new[codes] = new[codes].unflatten(1, (groups, -1))[0]
    shapes = zip(config.conv_dim, config.conv_kernel, config.conv_stride)
    layout = config.feat_extract_norm
    return {
        "frontend": FRONTEND,
        "frontend_conf": {
            "norm_mode": f"{layout}_norm",
            "bias": config.conv_bias,
            "shapes": [list(x) for x in shapes],
            "normalize_audio": normalize_audio,
            "normalize_output": getattr(config, "feat_proj_layer_norm", True),
        },
        "specaug": None,
        "normalize": None,
        "preencoder": "linear",
        "preencoder_conf": {
            "output_size": config.hidden_size,
            "dropout": float(config.feat_proj_dropout),
        },
        "encoder": ENCODER,
        "encoder_conf": {
            "output_size": config.hidden_size,
            "attention_heads": config.num_attention_heads,
            "linear_units": config.intermediate_size,
            "num_blocks": config.num_hidden_layers,
            "dropout_rate": float(config.hidden_dropout),
            "attention_dropout_rate": float(config.attention_dropout),
            "activation_dropout_rate": float(config.activation_dropout),
            "normalize_before": config.do_stable_layer_norm,
            "positions_kernel": config.num_conv_pos_embeddings,
            "positions_groups": config.num_conv_pos_embedding_groups,
        },
        "init": None,
        "loss": [loss],
    }, new


def to_huggingface(config: Dict[str, Any], state: Dict[str, torch.Tensor]) -> Tuple[Any, Any]:
    """The model and the feature extractor of an SSL run, to be saved by transformers.

    A HuBERT where the only loss is ``hubert``; a wav2vec 2.0 otherwise, with the heads of
    pre-training where they are as there.

    Args:
        config: of the run.
        state: its weights.

    Raises:
        UserError: naming the part of the config that Hugging Face's models do not have.
    """
    hf = transformers()
    for part, known in (
        ("frontend", FRONTEND),
        ("specaug", None),
        ("normalize", None),
        ("preencoder", "linear"),
        ("encoder", ENCODER),
    ):
        if config.get(part) != known:
            raise UserError(
                f"--format huggingface: {part}: {config.get(part)} is in no wav2vec 2.0 "
                f"or HuBERT of Hugging Face's, which have {part}: {known or 'null'} "
                "(espnet_atm.bin.import_ssl makes such a config); write --format espnet"
            )
    losses = config["loss"]
    is_hubert = [x["name"] for x in losses] == ["hubert"]
    heads = _heads(losses)
    front, encoder = config["frontend_conf"], config["encoder_conf"]
    normalize_output = front.get("normalize_output", True)
    options = dict(
        conv_dim=[x[0] for x in front["shapes"]],
        conv_kernel=[x[1] for x in front["shapes"]],
        conv_stride=[x[2] for x in front["shapes"]],
        conv_bias=front["bias"],
        feat_extract_norm=front["norm_mode"].removesuffix("_norm"),
        feat_proj_dropout=config["preencoder_conf"].get("dropout", 0.0),
        hidden_size=encoder.get("output_size", 768),
        num_attention_heads=encoder.get("attention_heads", 12),
        intermediate_size=encoder.get("linear_units", 3072),
        num_hidden_layers=encoder.get("num_blocks", 12),
        hidden_dropout=encoder.get("dropout_rate", 0.1),
        attention_dropout=encoder.get("attention_dropout_rate", 0.1),
        activation_dropout=encoder.get("activation_dropout_rate", 0.0),
        do_stable_layer_norm=encoder.get("normalize_before", False),
        num_conv_pos_embeddings=encoder.get("positions_kernel", 128),
        num_conv_pos_embedding_groups=encoder.get("positions_groups", 16),
    )
    if is_hubert:
        kind = hf.HubertModel
        options["feat_proj_layer_norm"] = normalize_output
    elif not normalize_output:
        raise UserError(
            "--format huggingface: frontend_conf: normalize_output: false is HuBERT's, and "
            "the only loss is not hubert; write --format espnet"
        )
    else:
        kind = hf.Wav2Vec2Model if heads is None else hf.Wav2Vec2ForPreTraining
        options.update(heads or {})
    names = body_names(options["do_stable_layer_norm"])
    new, left = renamed(state, names)
    if heads is not None:
        new = {PREFIX + k: v for k, v in new.items()}
        kept, _ = renamed({k: state[k] for k in left}, HEADS)
        kept["quantizer.codevectors"] = kept["quantizer.codevectors"].flatten(0, 1)[None]
        new.update(kept)
    config_class = hf.HubertConfig if is_hubert else hf.Wav2Vec2Config
    model = kind(config_class(**options))
    model.load_state_dict(new)  # all of them and no others
    extractor = hf.Wav2Vec2FeatureExtractor(
        do_normalize=front.get("normalize_audio", False),
        # Group norm sees padding: such models are run without a mask.
        return_attention_mask=options["feat_extract_norm"] == "layer",
    )
    return model, extractor


def _heads(losses: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """The config of the heads in Wav2Vec2ForPreTraining, where the first loss has them."""
    conf = losses[0].get("conf", {}) if losses else {}
    if not losses or losses[0]["name"] != "wav2vec2" or not conf.get("frontend_size"):
        return None
    return dict(
        num_codevector_groups=conf.get("num_groups", 2),
        num_codevectors_per_group=conf.get("num_codes", 320),
        codevector_dim=conf.get("code_dim", 256),
        proj_codevector_dim=conf.get("final_dim", 256),
        num_negatives=conf.get("num_negatives", 100),
        contrastive_logits_temperature=conf.get("temperature", 0.1),
        diversity_loss_weight=conf.get("diversity_weight", 0.1),
    )


def _some(names: List[str]) -> str:
    names = sorted(names)
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
