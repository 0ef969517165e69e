"""``ssl_conf``: what a user adds to an ESPnet SSL config."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from espnet_atm.confidence import MEASURES, check_refinement
from espnet_atm.frames import FrameGrid
from espnet_atm.masking import check_mask_options
from espnet_atm.weighting import SCALES

MASKERS = ("atm", "random")
AVERAGES = ("utterance", "masked")
SCORER_FILES = ("asr_train_config", "asr_model_file")
MEASURE_OPTIONS = (
    "measure",
    "temperature",
    "include_blank",
    "smooth",
    "energy_gate",
)
TRACK = "confidence"  # the name of the data stream
# A scorer's frame may be longer than the model's, but not by so much that the track
# says nothing about single frames.
MAX_RATE_RATIO = 16


@dataclass(frozen=True)
class SSLConf:
    """The checked contents of ``ssl_conf``, with the paper's settings as defaults.

    Args:
        masker: ``atm`` or ``random``.
        mask_ratio: fraction of valid frames to mask: 0.40 for ``atm``, 0.49 for
            ``random`` (the paper's baseline).
        span: encoded frames.
        strategy: see :func:`espnet_atm.masking.sample_span_mask`.
        loss_scale: ``none``, ``utterance`` (ATM+S) or ``frame``.
        average: see :func:`espnet_atm.weighting.frame_weights`.
        frame_prob: see there.
        scorer: the files of the ASR model that scores inside training,
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

    @property
    def needs_confidence(self) -> bool:
        """Whether training cannot do without frame confidences."""
        return self.masker == "atm" or self.loss_scale != "none"

    @property
    def needs_track(self) -> bool:
        """Whether frame confidences must come with the data."""
        return self.needs_confidence and self.scorer is None

    @classmethod
    def parse(cls, conf: Mapping[str, Any]) -> "SSLConf":
        """Check ``ssl_conf`` as the YAML file gives it.

        Raises:
            ValueError: on unknown keys and impossible values, saying what to write.
        """
        conf = _mapping("ssl_conf", conf)
        masker = _one_of("ssl_conf.masker", conf.pop("masker", "atm"), MASKERS)
        scale = _one_of(
            "ssl_conf.loss_scale", conf.pop("loss_scale", None) or "none", SCALES
        )
        masker_conf = _mapping("ssl_conf.masker_conf", conf.pop("masker_conf", None))
        scale_conf = _mapping(
            "ssl_conf.loss_scale_conf", conf.pop("loss_scale_conf", None)
        )
        scorer = _scorer(conf.pop("scorer", None))
        track_conf = _mapping("ssl_conf.track_conf", conf.pop("track_conf", None))
        if track_conf and scorer:
            raise ValueError(
                "ssl_conf.track_conf is for stored tracks; write its options under scorer"
            )
        crop_seconds = conf.pop("crop_seconds", None)
        if crop_seconds is not None and not _number("crop_seconds", crop_seconds) > 0:
            raise ValueError(f"ssl_conf.crop_seconds: {crop_seconds} is not positive")
        strategy = masker_conf.pop("strategy", "high" if masker == "atm" else "random")
        if masker == "random" and strategy != "random":
            raise ValueError(
                f"ssl_conf.masker_conf.strategy: {strategy!r} needs masker: atm; with "
                "masker: random leave strategy out"
            )
        parsed = cls(
            masker=masker,
            mask_ratio=_number(
                "mask_ratio",
                masker_conf.pop("mask_ratio", 0.40 if masker == "atm" else 0.49),
            ),
            span=masker_conf.pop("span", 10),
            strategy=strategy,
            loss_scale=scale,
            average=_one_of(
                "ssl_conf.loss_scale_conf.average",
                scale_conf.pop("average", "utterance"),
                AVERAGES,
            ),
            frame_prob=_number("frame_prob", scale_conf.pop("frame_prob", 0.1)),
            scorer=scorer,
            smooth=track_conf.pop("smooth", 1),
            energy_gate=track_conf.pop("energy_gate", None),
            crop_seconds=crop_seconds,
        )
        for where, left, known in (
            (
                "ssl_conf",
                conf,
                "masker, masker_conf, loss_scale, loss_scale_conf, scorer, track_conf, "
                "crop_seconds",
            ),
            ("ssl_conf.track_conf", track_conf, "smooth, energy_gate"),
            ("ssl_conf.masker_conf", masker_conf, "mask_ratio, span, strategy"),
            ("ssl_conf.loss_scale_conf", scale_conf, "average, frame_prob"),
        ):
            if left:
                raise ValueError(
                    f"{where}: unknown {', '.join(map(repr, left))}; known are {known}"
                )
        try:
            check_mask_options(parsed.mask_ratio, parsed.span, parsed.strategy)
        except ValueError as e:
            raise ValueError(f"ssl_conf.masker_conf.{e}") from None
        try:
            check_refinement(parsed.smooth, parsed.energy_gate)
        except ValueError as e:
            raise ValueError(f"ssl_conf.track_conf.{e}") from None
        if not 0 <= parsed.frame_prob <= 1:
            raise ValueError(
                f"ssl_conf.loss_scale_conf.frame_prob: {parsed.frame_prob} is not in "
                "[0, 1]"
            )
        return parsed

    def masking(self) -> Dict[str, Any]:
        """The arguments of :func:`espnet_atm.masking.sample_span_mask`."""
        return {k: getattr(self, k) for k in ("mask_ratio", "span", "strategy")}

    def __str__(self) -> str:
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


def _scorer(value: Any) -> Optional[Dict[str, Any]]:
    """Check ``ssl_conf.scorer``; whether its files are there is looked at later."""
    if value is None:
        return None
    scorer = _mapping("ssl_conf.scorer", value)
    for name in SCORER_FILES:
        if not scorer.get(name):
            raise ValueError(
                f"ssl_conf.scorer: {name} is missing; write "
                "scorer: {asr_train_config: exp/asr/config.yaml, asr_model_file: "
                "exp/asr/valid.loss.best.pth}"
            )
    unknown = [x for x in scorer if x not in SCORER_FILES + MEASURE_OPTIONS]
    if unknown:
        raise ValueError(
            f"ssl_conf.scorer: unknown {', '.join(map(repr, unknown))}; known are "
            f"{', '.join(SCORER_FILES + MEASURE_OPTIONS)}"
        )
    _one_of("ssl_conf.scorer.measure", scorer.get("measure", "max"), MEASURES)
    if not _number("scorer.temperature", scorer.get("temperature", 1.0)) > 0:
        raise ValueError(
            f"ssl_conf.scorer.temperature: {scorer['temperature']} is not positive"
        )
    try:
        check_refinement(scorer.get("smooth", 1), scorer.get("energy_gate"))
    except ValueError as e:
        raise ValueError(f"ssl_conf.scorer.{e}") from None
    return scorer


def _one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is not known; write one of {choices}")
    return value


def _mapping(name: str, value: Any) -> Dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name}: {value!r} is not a mapping of options to values")
    return dict(value or {})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"ssl_conf: {name}: {value!r} is not a number")
    return float(value)


def read_track_grid(
    confidence_scp: str, sampling_rate: int, encoder: Optional[FrameGrid] = None
) -> FrameGrid:
    """The time grid of a stored track, from the files beside its scp.

    ``frame_shift`` and, where the scorer's first frame is not centred at half a shift,
    ``frame_offset`` hold one number each, in samples at the ``sampling_rate`` of the
    scorer, in Hz; ``espnet_atm.bin.score`` writes them. Without that last file they
    count samples of the audio.

    Args:
        confidence_scp: path of ``confidence.scp``.
        sampling_rate: of the audio, in Hz.
        encoder: the grid of the frames that are masked, which the track must suit.

    Returns:
        The grid in samples of that audio; its shift need not be whole where the scorer
        has another rate.

    Raises:
        ValueError: when the shift is missing or impossible, naming file and numbers.
    """
    folder = Path(confidence_scp).parent
    file = folder / "frame_shift"
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: {confidence_scp} does not say how many samples a "
            f"frame lasts; write that number there, e.g. echo 640 > {file}"
        )
    shift = _positive(file, "samples")
    rate_file = folder / "sampling_rate"
    scorer_rate = _positive(rate_file, "Hz") if rate_file.is_file() else sampling_rate
    file = folder / "frame_offset"
    try:
        offset = float(file.read_text()) if file.is_file() else shift / 2
    except ValueError:
        raise ValueError(f"{file}: not a number of samples") from None
    if scorer_rate != sampling_rate:
        shift, offset = (x * sampling_rate / scorer_rate for x in (shift, offset))
        shift = int(shift) if shift.is_integer() else shift
    if encoder is not None and shift > MAX_RATE_RATIO * encoder.shift:
        raise ValueError(
            f"{folder / 'frame_shift'}: a track of one value in {shift} samples is too "
            f"coarse for encoder frames of {encoder.shift} samples; write the scorer's "
            "frame shift in samples there, or score with a model of a finer frame rate"
        )
    return FrameGrid(shift, offset)


def _positive(file: Path, unit: str) -> int:
    text = file.read_text().strip()
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"{file}: {text!r} is not a positive whole number of {unit}")
    return int(text)


def find_track(paths: Sequence[Tuple[str, str, str]], option: str) -> str:
    """The path of the confidence stream among ESPnet's data options.

    Raises:
        ValueError: when there is none, saying what to add.
    """
    for path, name, _ in paths:
        if name == TRACK:
            return path
    raise ValueError(
        f"ssl_conf needs frame confidences, and {option} names none: score the data with "
        f"python -m espnet_atm.bin.score and add --{option} "
        "DIR/confidence.scp,confidence,kaldi_ark; or let ssl_conf.scorer name the model "
        "that scores inside training; or write ssl_conf: masker: random with loss_scale: "
        "none"
    )
