"""Figures by which guidance can be told from random masks."""

import numpy as np
import pytest

from espnet_atm.guidance import (
    ALL,
    Guidance,
    Heard,
    as_text,
    measure_guidance,
    measure_weights,
    noise_that_outranks,
    warn,
)
from espnet_atm.masking import STRATEGIES

MASKING = {"mask_ratio": 0.4, "span": 10, "strategy": "high", "sharpness": 1.0}


def heard(confidence, speech, utt="utt", category="all") -> Heard:
    confidence = np.asarray(confidence, dtype=np.float32)
    speech = np.broadcast_to(np.asarray(speech, dtype=bool), confidence.shape)
    return Heard(utt, category, confidence, speech.astype(np.float32), speech)


def steps(high, low, frames=100) -> np.ndarray:
    """The first half of the frames at one confidence, the second at another."""
    return np.repeat([high, low], frames // 2)


def test_a_steady_confidence_guides_nothing():
    found = measure_guidance([heard(np.full(100, 0.7), True)] * 40, MASKING)
    assert set(found.strategies) == set(STRATEGIES)
    for strategy in ("random", "high", "low", "mixed", "shuffled"):
        x = found.strategies[strategy]
        assert x["probability_sd"] < 0.03, strategy
        assert abs(x["confidence_gain"]) < 1e-6 and x["nonspeech_share"] == 0


def test_figures_by_hand():
    """topk masks the 40 surest of 100 frames, all of them in the first, silent, half."""
    confidence = steps(1.0, 0.0)
    found = measure_guidance([heard(confidence, confidence == 0)] * 20, MASKING)
    topk = found.strategies["topk"]
    assert topk["confidence_gain"] == pytest.approx(0.5)
    assert topk["nonspeech_share"] == 1 and found.nonspeech_share == 0.5
    assert found.without_speech == 0
    # Random masks take 0.4 of the frames; where topk is certain it differs by 0.4 to 0.6.
    assert 0.35 < topk["probability_sd"] < 0.62
    high, low = found.strategies["high"], found.strategies["low"]
    # A span of 10 from the last frames of the first half goes on into the second.
    assert 0.35 < high["confidence_gain"] < 0.5
    assert -0.5 <= low["confidence_gain"] < -0.35
    assert abs(found.strategies["random"]["confidence_gain"]) < 0.05
    assert abs(found.strategies["shuffled"]["confidence_gain"]) < 0.05
    assert found.strategies["random"]["probability_sd"] < 0.03
    assert 0.3 < high["probability_sd"] < topk["probability_sd"] + 0.05


def test_the_noise_of_the_draws_does_not_count():
    """A tenth of the guidance has a tenth of the figure, though draws are as noisy."""
    found = [
        measure_guidance([heard(steps(0.5 + x, 0.5 - x), True)] * 150, MASKING)
        for x in (0.05, 0.2)
    ]
    weak, strong = (x.strategies["high"]["probability_sd"] for x in found)
    assert strong / weak == pytest.approx(4, rel=0.35)


def test_the_figures_are_the_same_each_time():
    some = [heard(np.linspace(0, 1, n), True) for n in (7, 60, 3000)]
    assert measure_guidance(some, MASKING) == measure_guidance(some, MASKING)


def test_settings_reach_the_masks():
    some = [heard(steps(0.6, 0.4), True)] * 40
    figures = {
        name: measure_guidance(some, {**MASKING, **more}).strategies["high"]
        for name, more in {
            "plain": {},
            "sharp": {"sharpness": 4.0},
            "few": {"mask_ratio": 0.1},
            "exact": {"exact": True},
        }.items()
    }
    assert figures["sharp"]["probability_sd"] > 2 * figures["plain"]["probability_sd"]
    assert figures["few"]["probability_sd"] < figures["plain"]["probability_sd"]
    assert figures["exact"] != figures["plain"]


def test_utterances_without_speech_are_counted_apart():
    """They are masked like others: no strategy can be told by them."""
    some = [heard(steps(0.2, 0.9), steps(0, 1))] * 9 + [heard(np.ones(100), False)]
    found = measure_guidance(some, MASKING)
    assert found.without_speech == 0.1 and found.nonspeech_share == 0.5
    assert found.strategies["topk"]["nonspeech_share"] == 0
    nothing = measure_guidance([heard(np.ones(100), False)], MASKING)
    assert nothing.without_speech == 1 and nothing.nonspeech_share == 0


def test_weights_by_hand():
    even = measure_weights([0.5] * 8)
    assert even == {"spread": 0, "effective_share": 1}
    found = measure_weights([1.0, 0.0])
    assert found == {"spread": 1, "effective_share": 0.5}
    found = measure_weights([0.2, 0.4])
    assert found["spread"] == pytest.approx(1 / 3)
    assert found["effective_share"] == pytest.approx(0.36 / (2 * 0.2))
    sharp = measure_weights([0.2, 0.4], sharpness=2)
    assert sharp["spread"] == pytest.approx(0.6)
    assert measure_weights([0.0, 0.0]) == {"spread": 0, "effective_share": 0}


CATEGORIES = {"a": "clean", "b": "purenoise", "c": "clean"}


def outranking(some, means, categories) -> list:
    """Of utterances that have all been looked at."""
    groups = {}
    for utt, mean in means.items():
        groups.setdefault(categories.get(utt, ALL), []).append(mean)
    groups = {name: np.array(x) for name, x in groups.items()}
    return noise_that_outranks(some, [means[x.utt] for x in some], groups)


def group(**more) -> list:
    """Two utterances of speech and one of noise."""
    categories = {**CATEGORIES, **more}
    return [
        heard(np.ones(10), utt != "b", utt, categories[utt]) for utt in categories
    ]


@pytest.mark.parametrize(
    "noise, told", [(0.9, True), (0.75, False), (0.7, False), (0.01, False)]
)
def test_noise_that_outranks_speech(noise, told):
    means = {"a": 0.8, "b": noise, "c": 0.7}
    lines = outranking(group(), means, CATEGORIES)
    assert bool(lines) == told
    if told:
        assert "the category purenoise, which is noise, has" in lines[0]
        assert f"{noise:.3f} and 0.750" in lines[0]
    # Without categories, or under another name, silero-vad tells.
    for categories in ({}, {**CATEGORIES, "b": "street"}):
        some = [x._replace(category=categories.get(x.utt, "all")) for x in group()]
        assert bool(outranking(some, means, categories)) == told
    lines = outranking([x._replace(category="all") for x in group()], means, {})
    assert not told or "1 of 3 utterances without speech" in lines[0]


def test_noisy_speech_may_outrank_clean_speech():
    """A category that is called noise and is heard as speech is none."""
    categories = {"a": "clean", "b": "clean", "c": "noise"}
    some = [heard(np.ones(10), True, utt, category) for utt, category in categories.items()]
    assert not outranking(some, {"a": 0.5, "b": 0.5, "c": 0.9}, categories)
    mostly_silent = [*some[:2], heard(np.ones(10), [1] * 3 + [0] * 7, "c", "Noise 1")]
    lines = outranking(
        mostly_silent, {"a": 0.5, "b": 0.5, "c": 0.9}, {**categories, "c": "Noise 1"}
    )
    assert "the category Noise 1" in lines[0]


def test_noise_alone_outranks_nothing():
    some = [heard(np.ones(10), False, "a", "noise")]
    assert not outranking(some, {"a": 0.9}, {"a": "noise"})


def guidance(sd, share, random_share=0.2) -> Guidance:
    figures = {
        x: {"probability_sd": sd, "confidence_gain": 0.0, "nonspeech_share": share}
        for x in STRATEGIES
    }
    figures["random"] = {
        "probability_sd": 0.0,
        "confidence_gain": 0.0,
        "nonspeech_share": random_share,
    }
    return Guidance(figures, 0.25, 0.1)


UNEVEN = {"spread": 0.3, "effective_share": 0.9}


def test_strong_guidance_needs_no_words():
    assert warn(guidance(0.15, 0.1), UNEVEN, [], MASKING, gated=True) == []


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("strategy", ["high", "random"])
def test_weak_guidance_is_told(strategy, gated):
    masking = {**MASKING, "strategy": strategy}
    (line,) = warn(guidance(0.05, 0.1), UNEVEN, [], masking, gated)
    assert line.startswith("advice: masks by high can hardly be told from random ones")
    assert "0.40 +- 0.050" in line
    assert ("--speech_gate" in line) == (not gated)
    assert ("sharpness" in line) == gated


def test_other_faults_are_told():
    more = warn(guidance(0.2, 0.3), UNEVEN, [], MASKING, gated=False)
    assert len(more) == 1 and "high masks more frames without speech" in more[0]
    even = {"spread": 0.05, "effective_share": 0.997}
    (line,) = warn(guidance(0.2, 0.1), even, [], MASKING, gated=True)
    assert "would change little: the weights of utterances differ by 5.0 %" in line
    (line,) = warn(guidance(0.2, 0.1), UNEVEN, ["noise wins"], MASKING, gated=False)
    assert line.startswith("warning: noise wins") and "--speech_gate cures" in line


def test_the_noise_of_the_draws_is_no_fault():
    """A steady confidence masks as random masks do, and is told of as weak, no more."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        some = [
            heard(np.full(200, 0.7), np.repeat(rng.random(20) > 0.3, 10))
            for _ in range(60)
        ]
        (line,) = warn(measure_guidance(some, MASKING), UNEVEN, [], MASKING, gated=True)
        assert line.startswith("advice: masks by high can hardly be told")


def test_advice_can_be_followed():
    """Sharpness is refused with topk, which draws nothing."""
    masking = {**MASKING, "strategy": "topk"}
    (line,) = warn(guidance(0.05, 0.1), UNEVEN, [], masking, gated=True)
    assert "sharpness" not in line and line.endswith("try another scorer")


def test_the_control_is_not_blamed():
    masking = {**MASKING, "strategy": "shuffled"}
    assert warn(guidance(0.0, 0.3), UNEVEN, [], masking, gated=False) == []


def test_lines_for_a_terminal():
    found = guidance(0.05, 0.1)
    lines = as_text(
        {
            "guidance": found.strategies,
            "nonspeech_share": found.nonspeech_share,
            "without_speech": found.without_speech,
            "weights": UNEVEN,
            "guidance_settings": MASKING,
            "warnings": ["advice: x"],
        }
    )
    assert "strategy: high" in lines[0] and lines[-1] == "advice: x"
    (line,) = [x for x in lines if x.startswith("  high ")]
    assert line.split() == ["high", "0.40", "+-", "0.050", "+0.000", "10.0", "%"]
    assert "spread 30.0 %, effective share of the corpus 90.0 %" in lines[-2]
