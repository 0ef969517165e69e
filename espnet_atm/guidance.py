"""How strongly confidence guides masks and weights, before anything is trained.

Not in the paper: figures by which guided masks (Eq. 3 and 4) and weights (Eq. 5 and 6) can
be told from random masks and equal weights.
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from tqdm import tqdm

from espnet_atm.masking import STRATEGIES, UNDRAWN, sample_span_mask

# Masks of an utterance for each of two estimates: so many frames of them, within bounds.
FRAMES_DRAWN = 10000
DRAWS = (8, 64)
SEED = 0
# Below this part of the mask ratio, chances of being masked are those of random masks.
WEAK = 0.2
# Times random masks' share of non-speech: what is less may be the draws' own noise.
MORE = 1.05
EVEN = 0.99  # an effective share of the corpus that equal weights nearly have
# Utterances with less speech than this hold none, and a category called noise is noise
# where there is less than the second in it.
NO_SPEECH, LITTLE_SPEECH = 0.1, 0.5
ALL = "all"  # the category of utterances that have none


class Heard(NamedTuple):
    """What is known of an utterance.

    Args:
        utt: its id.
        category: its condition, or :data:`ALL`.
        confidence: s_t (T,), float32, in [0, 1], on the frames that are masked.
        probability: that a frame is speech (T,), float32, by silero-vad.
        speech: whether it is in a segment of speech (T,), bool, by silero-vad.
    """

    utt: str
    category: str
    confidence: np.ndarray
    probability: np.ndarray
    speech: np.ndarray


class Guidance(NamedTuple):
    """What guidance does to masks.

    Args:
        strategies: for each strategy ``probability_sd``, how far a frame's probability of
            being masked is from random masking's (root mean square over frames; random's
            own is about 0); ``confidence_gain``, mean confidence of the masked frames
            minus that of all; ``nonspeech_share``, of the masked frames of utterances
            with speech, those that are outside of it.
        nonspeech_share: the same of all frames of utterances with speech.
        without_speech: part of the utterances that hold no speech. Each row of a batch
            has its share of frames masked, so no strategy passes these by: only their
            weight, or leaving them out, does.
    """

    strategies: Dict[str, Dict[str, float]]
    nonspeech_share: float
    without_speech: float


def measure_guidance(heard: Sequence[Heard], masking: Mapping[str, Any]) -> Guidance:
    """Draw masks by each strategy, and see where they fall.

    The probability of being masked is estimated twice, from independent draws, for a
    strategy and for random masking; the mean of the product of the two differences has
    no bias from the noise of the draws.

    Args:
        heard: utterances.
        masking: arguments of :func:`espnet_atm.masking.sample_span_mask`; the strategy
            is not looked at.
    """
    generator = torch.Generator().manual_seed(SEED)
    names = ("squares", "masked", "confidence", "masked_speech", "masked_nonspeech")
    sums = {strategy: dict.fromkeys(names, 0.0) for strategy in STRATEGIES}
    frames, confidence, speech, nonspeech, silent = 0, 0.0, 0, 0, 0

    def probability(x: Heard, strategy: str) -> np.ndarray:
        """Two estimates: (2, T), float64."""
        length = len(x.confidence)
        draws = min(max(FRAMES_DRAWN // length, DRAWS[0]), DRAWS[1])
        masks = sample_span_mask(
            torch.from_numpy(x.confidence).expand(2 * draws, -1),
            torch.full((2 * draws,), length),
            **{**masking, "strategy": strategy},
            generator=generator,
        )
        # (2 * draws, T) -> (2, T)
        return masks.unflatten(0, (2, draws)).double().mean(dim=1).numpy()

    for x in tqdm(heard, unit="utt", mininterval=5, delay=5, desc="drawing masks"):
        frames += len(x.confidence)
        confidence += x.confidence.sum(dtype=np.float64)
        has_speech = x.speech.mean() >= NO_SPEECH
        silent += not has_speech
        if has_speech:
            speech += x.speech.sum()
            nonspeech += (~x.speech).sum()
        random = probability(x, "random")
        for strategy, found in sums.items():
            masked = probability(x, strategy)
            found["squares"] += np.prod(masked - random, axis=0).sum()
            masked = masked.mean(axis=0)
            found["masked"] += masked.sum()
            found["confidence"] += (masked * x.confidence).sum()
            if has_speech:
                found["masked_speech"] += masked[x.speech].sum()
                found["masked_nonspeech"] += masked[~x.speech].sum()
    return Guidance(
        {
            strategy: {
                "probability_sd": float(np.sqrt(max(found["squares"], 0) / frames)),
                "confidence_gain": _ratio(found["confidence"], found["masked"])
                - confidence / frames,
                "nonspeech_share": _ratio(
                    found["masked_nonspeech"],
                    found["masked_nonspeech"] + found["masked_speech"],
                ),
            }
            for strategy, found in sums.items()
        },
        _ratio(nonspeech, nonspeech + speech),
        silent / len(heard),
    )


def _ratio(part: float, whole: float) -> float:
    """0 of nothing is 0."""
    return float(part / whole) if whole else 0.0


def measure_weights(means: Sequence[float], sharpness: float = 1.0) -> Dict[str, float]:
    """How unequal the weights of utterances are in ATM+S (Eq. 5 and 6).

    Args:
        means: s_u of each utterance, in [0, 1].
        sharpness: the exponent of ``loss_scale_conf``.

    Returns:
        ``spread``, standard deviation over mean, and ``effective_share``,
        (sum w)^2 / (N sum w^2): the part of the corpus that, equally weighted, would count
        as much. Both are 0 where all weights are.
    """
    weights = np.asarray(means, dtype=np.float64) ** sharpness
    squares = np.square(weights).sum()
    return {
        "spread": _ratio(weights.std(), weights.mean()),
        "effective_share": _ratio(weights.sum() ** 2, len(weights) * squares),
    }


def noise_that_outranks(
    heard: Sequence[Heard], means: Sequence[float], groups: Mapping[str, np.ndarray]
) -> List[str]:
    """Say where noise has a higher utterance confidence than speech.

    Noise is a category that is called so, unless most of its frames are speech, or one
    with hardly any speech; and the utterances with hardly any speech.

    Args:
        heard: utterances that were looked at.
        means: s_u of these.
        groups: s_u of all utterances of each category; :data:`ALL` is none.
    """
    share: Dict[str, List[float]] = {}
    for x in heard:
        share.setdefault(x.category, []).append(x.speech.mean())
    noise = {
        name
        for name, shares in share.items()
        if np.mean(shares) < (LITTLE_SPEECH if "noise" in name.lower() else NO_SPEECH)
    }
    silent = [mean for x, mean in zip(heard, means) if x.speech.mean() < NO_SPEECH]
    spoken = [
        mean
        for x, mean in zip(heard, means)
        if x.speech.mean() >= NO_SPEECH and x.category not in noise
    ]
    if not spoken:
        return []
    lines = []
    for name in sorted(noise - {ALL}):
        mean = groups[name].mean()
        if mean > np.mean(spoken):
            lines.append(
                f"the category {name}, which is noise, has a higher utterance confidence "
                f"than speech: {mean:.3f} and {np.mean(spoken):.3f}"
            )
    if not lines and silent and np.mean(silent) > np.mean(spoken):
        lines.append(
            f"{len(silent)} of {len(heard)} utterances without speech have a higher "
            f"utterance confidence than those with speech: {np.mean(silent):.3f} and "
            f"{np.mean(spoken):.3f}"
        )
    return lines


def warn(
    guidance: Guidance,
    weights: Mapping[str, float],
    outranking: Sequence[str],
    masking: Mapping[str, Any],
    gated: bool,
) -> List[str]:
    """What a user should know before training, a line each; none when all is well.

    Args:
        guidance, weights: as measured.
        outranking: lines of :func:`noise_that_outranks`.
        masking: the arguments of the masks that are about to be drawn; of random ones,
            what ``high`` would do is told.
        gated: whether the scores went through the speech gate.
    """
    strategy = _used(masking)
    found, random = guidance.strategies[strategy], guidance.strategies["random"]
    ratio = masking["mask_ratio"]
    cure = "" if gated else "; scoring with --speech_gate cures it"
    lines = [
        f"warning: {line}: loss_scale: utterance would give noise more weight{cure}"
        for line in outranking
    ]
    if strategy == "shuffled":
        return lines  # the control: it is to be no better than random
    usual = MORE * random["nonspeech_share"]
    if strategy != "low" and found["nonspeech_share"] > usual:
        lines.append(
            f"warning: {strategy} masks more frames without speech than random masks do: "
            f"{100 * found['nonspeech_share']:.1f} and "
            f"{100 * random['nonspeech_share']:.1f} % of the masked frames{cure}"
        )
    if found["probability_sd"] < WEAK * ratio:
        cures = [] if gated else ["--speech_gate"]
        if gated and strategy not in UNDRAWN:
            cures.append("a higher masker_conf.sharpness")
        lines.append(
            f"advice: masks by {strategy} can hardly be told from random ones: a frame's "
            f"chance of being masked is {ratio:.2f} +- {found['probability_sd']:.3f}; try "
            + ", or ".join([*cures, "another scorer"])
        )
    if weights["effective_share"] > EVEN:
        lines.append(
            "advice: loss_scale: utterance would change little: the weights of utterances "
            f"differ by {100 * weights['spread']:.1f} % (standard deviation)"
        )
    return lines


def _used(masking: Mapping[str, Any]) -> str:
    """The strategy that is told of: of random masks, what guidance would do."""
    return "high" if masking["strategy"] == "random" else masking["strategy"]


def as_text(summary: Mapping[str, Any]) -> List[str]:
    """The figures of ``summary.json`` as lines for a terminal."""
    settings = summary["guidance_settings"]
    lines = [
        "Guidance, for " + ", ".join(f"{k}: {v}" for k, v in settings.items()),
        f"  {'strategy':<10}{'chance of a frame':>19}{'confidence':>12}{'non-speech':>12}",
    ]
    for strategy, x in summary["guidance"].items():
        chance = f"{settings['mask_ratio']:.2f} +- {x['probability_sd']:.3f}"
        lines.append(
            f"  {strategy:<10}{chance:>19}{x['confidence_gain']:>+12.3f}"
            f"{100 * x['nonspeech_share']:>10.1f} %"
        )
    lines.append(f"  {'all frames':<41}{100 * summary['nonspeech_share']:>10.1f} %")
    weights = summary["weights"]
    lines.append(
        f"Weights of utterances: spread {100 * weights['spread']:.1f} %, effective share "
        f"of the corpus {100 * weights['effective_share']:.1f} %; utterances without "
        f"speech: {100 * summary['without_speech']:.1f} %"
    )
    return lines + summary["warnings"]
