"""What the READMEs say of confidence, on the corpus and the scorer of the default run."""

import json
import re
import subprocess

import pytest
from conftest import RECIPE, copy_recipe

pytestmark = pytest.mark.slow
README = (RECIPE / "README.md").read_text()
# Around the README's range: on another machine the scorer comes out otherwise again.
TOLERANCE = {"confidence": 0.04, "chance": 0.02, "percent": 2.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe with the scores of the default run, plain and gated."""
    recipe = copy_recipe(tmp_path_factory.mktemp("tree"))
    for options in (("--stage", "1"), ("--stage", "6", "--speech_gate", "true")):
        done = subprocess.run(
            ["./run.sh", *options, "--stop_stage", "7"],
            cwd=recipe,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return recipe


@pytest.fixture(scope="module")
def found(recipe) -> dict:
    """Mean confidence by condition, and the summary; of plain and of gated scores."""
    categories = dict(
        line.split() for line in (recipe / "data/mini_unlabelled/utt2category").open()
    )
    found = {}
    for folder in recipe.glob("exp/mini/confidence_*/mini_unlabelled"):
        summary = json.loads((folder / "summary.json").read_text())
        groups = {}
        for line in (folder / "utt2confidence").open():
            utt, mean = line.split()
            groups.setdefault(categories[utt], []).append(float(mean))
        means = {name: sum(x) / len(x) for name, x in groups.items()}
        name = "gated" if summary["guidance_settings"]["speech_gate"] else "plain"
        found[name] = means, summary
    return found


def test_plain_scores_hardly_tell_noise_from_speech_and_say_so(found):
    means, summary = found["plain"]
    assert means["purenoise"] > 0.8 * means["clean"]
    warnings = "\n".join(summary["warnings"])
    outranks = means["purenoise"] > max(means[x] for x in means if x != "purenoise")
    assert not outranks or "the category purenoise, which is noise" in warnings
    assert "masks more frames without speech than random masks do" in warnings
    assert "masks by high can hardly be told from random ones" in warnings


def test_the_gate_cures_it(found):
    means, summary = found["gated"]
    assert min(means, key=means.get) == "purenoise"
    assert means["purenoise"] < means["clean"] / 2
    guidance = summary["guidance"]
    high, random = (guidance[x]["nonspeech_share"] for x in ("high", "random"))
    assert high < random / 2
    assert guidance["high"]["probability_sd"] > 2 * (
        found["plain"][1]["guidance"]["high"]["probability_sd"]
    )
    assert summary["warnings"] == []


def test_high_beats_its_control_where_it_guides(found):
    guidance = found["gated"][1]["guidance"]
    high, shuffled = guidance["high"], guidance["shuffled"]
    assert high["confidence_gain"] > shuffled["confidence_gain"] + 0.02
    assert high["nonspeech_share"] < shuffled["nonspeech_share"] / 1.5


def row(name: str) -> list[tuple[float, float]]:
    """The ranges in the README's table: plain and gated, of mini."""
    (line,) = re.findall(rf"^ *\| {re.escape(name)} \|(.*)\|$", README, re.MULTILINE)
    cells = [re.findall(r"\d+\.\d+", cell) for cell in line.split("|")]
    return [(float(low), float(high)) for low, high in cells]


@pytest.mark.parametrize(
    "name, kind, of",
    [
        ("clean speech, mean s_u", "confidence", lambda m, s: m["clean"]),
        ("noisy speech, mean s_u", "confidence", lambda m, s: m["noise"]),
        ("noise alone, mean s_u", "confidence", lambda m, s: m["purenoise"]),
        (
            "chance of a frame under `high`: 0.40",
            "chance",
            lambda m, s: s["guidance"]["high"]["probability_sd"],
        ),
        (
            "non-speech among frames masked by `high`",
            "percent",
            lambda m, s: 100 * s["guidance"]["high"]["nonspeech_share"],
        ),
        (
            "non-speech among frames masked by `random`",
            "percent",
            lambda m, s: 100 * s["guidance"]["random"]["nonspeech_share"],
        ),
        ("spread of s_u", "percent", lambda m, s: 100 * s["weights"]["spread"]),
    ],
)
def test_the_table_of_the_readme(found, name, kind, of):
    for (low, high), scores in zip(row(name), ("plain", "gated"), strict=True):
        more = TOLERANCE[kind]
        assert low - more <= of(*found[scores]) <= high + more
