"""What the READMEs say of confidence, on the corpus and the scorer of the default run."""

import json
import re
import subprocess

import pytest
from conftest import RECIPE, copy_recipe

README = (RECIPE / "README.md").read_text()
# The scorer comes out otherwise on another machine, with the same seed.
TOLERANCE = {"confidence": 0.08, "chance": 0.03, "percent": 4.0}


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


def test_plain_scores_rank_noise_first_and_say_so(found):
    means, summary = found["plain"]
    assert max(means, key=means.get) == "purenoise"
    warnings = "\n".join(summary["warnings"])
    assert "the category purenoise, which is noise, has a higher" in warnings
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


def row(name: str) -> tuple[float, float]:
    """The figures of the README's table: plain and gated, of mini."""
    (line,) = re.findall(rf"^ *\| {re.escape(name)} \|(.*)\|$", README, re.MULTILINE)
    cells = [x.strip(" %±") for x in line.split("|")]
    return float(cells[0]), float(cells[1])


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
    for figure, scores in zip(row(name), ("plain", "gated")):
        assert of(*found[scores]) == pytest.approx(figure, abs=TOLERANCE[kind])
