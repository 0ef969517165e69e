"""The commands of both READMEs, as they are written there."""

import re
import shlex
import shutil
import subprocess

import pytest
from conftest import RECIPE, ROOT, copy_recipe

OWN = (RECIPE / "README.md").read_text()
TEXT = (ROOT / "README.md").read_text() + OWN


def commands(text: str, program: str) -> list[tuple[list[str], str]]:
    """Of the code blocks: the words of each call of a program, and the comment behind."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words, _, comment = line.partition(" #")
            if words.split()[:1] == [program]:
                found.append((shlex.split(words), comment.strip()))
    return found


@pytest.fixture
def recipe(tmp_path, asr):
    """A copy of the recipe, with the scorer that a README speaks of."""
    recipe = copy_recipe(tmp_path)
    (recipe / "exp/big").mkdir(parents=True)
    for source, name in zip(asr, ("config.yaml", "valid.acc.ave.pth")):
        shutil.copy(source, recipe / "exp/big" / name)
    return recipe


def call(recipe, words) -> str:
    done = subprocess.run(
        words, cwd=recipe, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr[-2000:]}"
    return done.stdout


def test_every_program_of_a_code_block_is_there():
    programs = {
        words[0]
        for block in re.findall(r"^```sh\n(.*?)^```", OWN, re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
        for words in [shlex.split(line, comments=True)]
        if words
    }
    assert programs >= {"./run.sh", "local/paper.sh", "local/subset_by_confidence.sh"}
    for name in programs - {"vi"}:
        assert (RECIPE / name).is_file(), name


@pytest.mark.slow
def test_runs_are_called_what_is_said(recipe):
    """Options that there are; and where the comment tells a run's name, that name."""
    told = 0
    found = commands(TEXT, "./run.sh")
    assert len(found) > 15
    for words, comment in found:
        said = call(recipe, [*words, "--stop_stage", "0"])
        (name,) = re.findall(r"Pre-training: \S+/ssl_(\S+)_raw$", said, re.M)
        tuned = re.findall(r"Fine-tuning on \S+: \S+/asr_(\S+) \(", said)
        suffix = re.findall(r"(?:^|\s)(?:\.\.\.(_\S+?)|(hubert_\S+))(?:[:;]|$)", comment)
        if suffix:
            told += 1
            end = "".join(suffix[-1])
            assert name.endswith(end) or tuned[0].endswith(end), (words, name, tuned)
    assert told == 8


def test_tables_of_the_paper_are_planned(recipe):
    found = commands(OWN, "local/paper.sh")
    assert len(found) == 5
    for words, _ in found:
        at = words.index("--") if "--" in words else len(words)
        said = call(recipe, [*words[:at], "--dry_run", *words[at:]])
        assert "GPU hours" in said and "missing" in said
