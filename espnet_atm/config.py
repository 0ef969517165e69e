"""``ssl_conf``: what a user adds to an ESPnet SSL config."""

import logging
from dataclasses import dataclass, fields
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from espnet_atm.confidence import MEASURES, check_refinement
from espnet_atm.errors import UserError
from espnet_atm.masking import UNDRAWN, check_mask_options, check_sharpness
from espnet_atm.values import (
    MOST_FRAMES,
    flag,
    known,
    mapping,
    number,
    one_of,
    text,
    whole,
)
from espnet_atm.weighting import SCALES

MASKERS = ("atm", "random")
AVERAGES = ("utterance", "masked")
SCORER_FILES = ("asr_train_config", "asr_model_file")
SCORER_NAMES = ("model", *SCORER_FILES, "lang", "task")  # what says which one it is
MEASURE_OPTIONS = (
    "measure",
    "temperature",
    "include_blank",
    "smooth",
    "energy_gate",
    "speech_gate",
)
OPTIONS = {
    "ssl_conf": (
        "masker",
        "masker_conf",
        "validation_masker",
        "loss_scale",
        "loss_scale_conf",
        "scorer",
        "track_conf",
        "crop_seconds",
    ),
    "masker_conf": ("mask_ratio", "span", "strategy", "sharpness", "exact"),
    "validation_masker": ("mask_ratio", "span", "strategy", "sharpness", "exact"),
    "loss_scale_conf": ("average", "frame_prob", "sharpness"),
    "track_conf": ("smooth", "energy_gate"),
}
TRACK = "confidence"  # the name of the data stream


@dataclass(frozen=True)
class SSLConf:
    """The checked contents of ``ssl_conf``, with the paper's settings as defaults.

    Args:
        masker: ``atm`` or ``random``.
        mask_ratio: fraction of valid frames to mask, exceeded by less than a span: 0.40
            for ``atm``, 0.49 for ``random`` (the paper's baseline).
        span: encoded frames.
        strategy, sharpness, exact: see :func:`espnet_atm.masking.sample_span_mask`.
        validation_masker: arguments of the same function for validation, whose losses
            then have no weights either, so that those of runs with other masks compare;
            None: as in training.
        loss_scale: ``none``, ``utterance`` (ATM+S) or ``frame``.
        average: see :func:`espnet_atm.weighting.frame_weights`.
        frame_prob: see there.
        weight_sharpness: the ``sharpness`` of ``loss_scale_conf``, see there.
        scorer: the model that scores inside training, by its folder or tag (``model``,
            ``lang``, ``task``) or by the two files of an ESPnet model,
            ``asr_train_config`` and ``asr_model_file``, and options of
            :meth:`espnet_atm.scorer.Scorer.score`; None to read a track.
        smooth, energy_gate: what to do to a track that is read, see
            :func:`espnet_atm.confidence.refine_confidence`.
        crop_seconds: train on a contiguous region of at most this length, from a random
            start at each step (the paper: 32 s of segments of 32 to 64 s); None for no
            bound.
    """

    masker: str
    mask_ratio: float
    span: int
    strategy: str
    loss_scale: str
    average: str
    frame_prob: float
    scorer: Optional[Dict[str, Any]] = None
    smooth: int = 1
    energy_gate: Optional[float] = None
    crop_seconds: Optional[float] = None
    sharpness: float = 1.0
    weight_sharpness: float = 1.0
    exact: bool = False
    validation_masker: Optional[Dict[str, Any]] = None

    @property
    def needs_confidence(self) -> bool:
        """Whether training or validation cannot do without frame confidences."""
        validated = (self.validation_masker or {}).get("strategy", "random")
        return (
            self.masker == "atm" or self.loss_scale != "none" or validated != "random"
        )

    @property
    def needs_track(self) -> bool:
        """Whether frame confidences must come with the data."""
        return self.needs_confidence and self.scorer is None

    @classmethod
    def parse(cls, conf: Mapping[str, Any]) -> "SSLConf":
        """Check ``ssl_conf`` as the YAML file gives it.

        Raises:
            UserError: on unknown keys, and on values of a wrong kind or impossible ones,
                saying what to write.
        """
        conf = mapping("ssl_conf", conf)
        known("ssl_conf", conf, OPTIONS["ssl_conf"])
        parts = {}
        for name in ("masker_conf", "loss_scale_conf", "track_conf"):
            parts[name] = mapping(f"ssl_conf.{name}", conf.get(name))
            known(f"ssl_conf.{name}", parts[name], OPTIONS[name])
        masker_conf, scale_conf, track_conf = parts.values()
        masker = one_of("ssl_conf.masker", conf.get("masker", "atm"), MASKERS)
        scale = conf.get("loss_scale")
        scale = "none" if scale is None else one_of("ssl_conf.loss_scale", scale, SCALES)
        scorer = _scorer(conf.get("scorer"))
        if track_conf and scorer:
            raise UserError(
                "ssl_conf.track_conf is for stored tracks; write its options under scorer"
            )
        crop_seconds = conf.get("crop_seconds")
        if crop_seconds is not None:
            crop_seconds = number("ssl_conf.crop_seconds", crop_seconds, positive=True)
        if masker == "random" and masker_conf.get("strategy", "random") != "random":
            raise UserError(
                f"ssl_conf.masker_conf.strategy: {masker_conf['strategy']!r} needs masker: "
                "atm; with masker: random leave strategy out"
            )
        masking = _masking("ssl_conf.masker_conf", masker_conf, masker)
        validation = conf.get("validation_masker")
        if validation is not None:
            where = "ssl_conf.validation_masker"
            validation = mapping(where, validation)
            known(where, validation, OPTIONS["validation_masker"])
            guided = validation.get("strategy", "random") != "random"
            validation = _masking(where, validation, "atm" if guided else "random")
        weight_sharpness = scale_conf.get("sharpness", 1.0)
        check_sharpness("ssl_conf.loss_scale_conf.sharpness", weight_sharpness)
        if scale != "utterance" and weight_sharpness != 1:
            raise UserError(
                f"ssl_conf.loss_scale_conf.sharpness: {weight_sharpness} changes nothing "
                f"with loss_scale: {scale}; leave it out, or write utterance"
            )
        return cls(
            masker=masker,
            validation_masker=validation,
            loss_scale=scale,
            average=one_of(
                "ssl_conf.loss_scale_conf.average",
                scale_conf.get("average", "utterance"),
                AVERAGES,
            ),
            frame_prob=number(
                "ssl_conf.loss_scale_conf.frame_prob",
                scale_conf.get("frame_prob", 0.1),
                within=(0, 1),
            ),
            scorer=scorer,
            crop_seconds=crop_seconds,
            weight_sharpness=float(weight_sharpness),
            **masking,
            **_refinement("ssl_conf.track_conf", track_conf),
        )

    def check_trainable(self) -> None:
        """Refuse masks that teach nothing; a model may be built to encode with them.

        Raises:
            UserError: naming ``mask_ratio``.
        """
        maskers = {"masker_conf": self.masking()}
        if self.validation_masker is not None:
            maskers["validation_masker"] = self.validation_masker
        for name, masker in maskers.items():
            ratio = masker["mask_ratio"]
            if not 0 < ratio < 1:
                what = "teaches" if name == "masker_conf" else "tells"
                lost = "none is heard" if ratio else "no frame is predicted"
                raise UserError(
                    f"ssl_conf.{name}.mask_ratio: {ratio} {what} nothing: {lost}; write a "
                    "fraction between 0 and 1, e.g. mask_ratio: 0.40"
                )

    def masking(self) -> Dict[str, Any]:
        """The arguments of :func:`espnet_atm.masking.sample_span_mask`."""
        names = OPTIONS["masker_conf"]
        return {k: getattr(self, k) for k in names}

    def __str__(self) -> str:
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


def _masking(where: str, conf: Mapping[str, Any], masker: str) -> Dict[str, Any]:
    """The checked arguments of :func:`espnet_atm.masking.sample_span_mask`.

    Args:
        where: what to call them by.
        conf: those that are given.
        masker: whose defaults the others have.
    """
    guided = masker == "atm"
    found = {
        "mask_ratio": conf.get("mask_ratio", 0.40 if guided else 0.49),
        "span": conf.get("span", 10),
        "strategy": conf.get("strategy", "high" if guided else "random"),
        "sharpness": conf.get("sharpness", 1.0),
        "exact": conf.get("exact", False),
    }
    try:
        check_mask_options(**found)
    except ValueError as e:
        raise UserError(f"{where}.{e}") from None
    strategy, sharpness = found["strategy"], found["sharpness"]
    if strategy in UNDRAWN and sharpness != 1:
        raise UserError(
            f"{where}.sharpness: {sharpness} changes nothing with strategy: {strategy}; "
            "leave it out"
        )
    if strategy == "topk" and conf.get("span", 1) != 1:
        logging.warning(
            f"{where}.span: {conf['span']} has no part in strategy: topk, which masks "
            "single frames"
        )
    found.update(
        mask_ratio=float(found["mask_ratio"]), sharpness=float(found["sharpness"])
    )
    return found


def _scorer(value: Any) -> Optional[Dict[str, Any]]:
    """Check ``ssl_conf.scorer``; its files are looked at later."""
    if value is None:
        return None
    scorer = mapping("ssl_conf.scorer", value)
    known("ssl_conf.scorer", scorer, SCORER_NAMES + MEASURE_OPTIONS)
    if scorer.get("model"):
        both = [name for name in SCORER_FILES if name in scorer]
        if both:
            raise UserError(
                f"ssl_conf.scorer: model and {both[0]} both say what scores: leave one out"
            )
    else:
        for name in SCORER_FILES:
            if not scorer.get(name):
                raise UserError(
                    f"ssl_conf.scorer: {name} is missing; write "
                    "scorer: {asr_train_config: exp/asr/config.yaml, asr_model_file: "
                    "exp/asr/valid.loss.best.pth}, or scorer: {model: TAG_OR_FOLDER}"
                )
    for name in SCORER_NAMES:
        if scorer.get(name) is not None:
            text(f"ssl_conf.scorer.{name}", scorer[name])
    one_of("ssl_conf.scorer.measure", scorer.get("measure", "max"), MEASURES)
    number("ssl_conf.scorer.temperature", scorer.get("temperature", 1.0), positive=True)
    flag("ssl_conf.scorer.include_blank", scorer.get("include_blank", True))
    flag("ssl_conf.scorer.speech_gate", scorer.get("speech_gate", False))
    _refinement("ssl_conf.scorer", scorer)
    return scorer


def _refinement(where: str, conf: Mapping[str, Any]) -> Dict[str, Any]:
    """The checked ``smooth`` and ``energy_gate``."""
    smooth = whole(
        f"{where}.smooth",
        conf.get("smooth", 1),
        most=MOST_FRAMES,
        what="number of frames",
    )
    gate = conf.get("energy_gate")
    if gate is not None:
        number(f"{where}.energy_gate", gate)
    try:
        check_refinement(smooth, gate)
    except ValueError as e:
        raise UserError(f"{where}.{e}") from None
    return {"smooth": smooth, "energy_gate": gate}


def find_track(paths: Sequence[Tuple[str, str, str]], option: str) -> str:
    """The path of the confidence stream among ESPnet's data options.

    Raises:
        UserError: when there is none, saying what to add.
    """
    for path, name, _ in paths:
        if name == TRACK:
            return path
    raise UserError(
        f"ssl_conf needs frame confidences, and {option} names none: score the data with "
        f"python -m espnet_atm.bin.score and add --{option} "
        "DIR/confidence.scp,confidence,kaldi_ark; or let ssl_conf.scorer name the model "
        "that scores inside training; or write ssl_conf: masker: random with loss_scale: "
        "none"
    )
