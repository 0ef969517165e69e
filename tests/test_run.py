"""The top-level run.sh: what it hands to the recipe."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import RECIPE, ROOT

# In place of the recipe: says where it is and what it was given.
RECIPE_RUN = "#!/bin/sh\npwd\nfor x; do printf '%s\\n' \"$x\"; done\n"


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with nothing to set up and nothing to run."""
    root = tmp_path / "clone"
    recipe = root / RECIPE.relative_to(ROOT)
    (recipe / "local").mkdir(parents=True)
    (recipe / "conf").mkdir()
    (recipe / "conf" / "train.yaml").touch()
    (root / "tools").mkdir()
    shutil.copy(ROOT / "run.sh", root)
    shutil.copy(RECIPE / "local" / "options.sh", recipe / "local")
    (root / "conf").symlink_to(RECIPE.relative_to(ROOT) / "conf")
    for file, script in ((recipe / "run.sh", RECIPE_RUN), (root / "tools/setup.sh", "")):
        file.write_text(script or "#!/bin/sh\n")
        file.chmod(0o755)
    return root


def given(clone, folder, *options) -> list[str]:
    command = [str(clone / "run.sh"), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    where, *words = done.stdout.splitlines()
    assert where == str(clone / RECIPE.relative_to(ROOT))
    return words


def test_paths_are_from_the_callers_folder(clone, tmp_path):
    here = tmp_path / "a folder"
    (here / "conf").mkdir(parents=True)
    for name in ("x.pth", "conf/mine.yaml", "packed.zip"):
        (here / name).touch()
    words = ["--scorer-model", "x.pth", "--scorer_config", "../a folder/conf/mine.yaml"]
    words += ["--expdir", "exp/new", "--dumpdir", "/dump"]
    words += ["--train-config", "conf/mine.yaml"]
    words += ["--scorer_tag", "packed.zip", "--asr_config", "conf/train.yaml", "--size", ""]
    words += ["--scorer-tag", "conf", "--scorer_tag", "someone/model"]
    words += ["--km_model", "x.pth", "--km-model", "conf", "--km_model", "exp/none"]
    words += ["--test_sets", "x.pth y", "--inference_config", "conf/none.yaml", "--help"]
    assert given(clone, here, *words) == [
        *("--scorer-model", f"{here}/x.pth"),
        *("--scorer_config", f"{here}/../a folder/conf/mine.yaml"),
        *("--expdir", f"{here}/exp/new", "--dumpdir", "/dump"),
        *("--train-config", f"{here}/conf/mine.yaml"),
        *("--scorer_tag", f"{here}/packed.zip"),
        # What is not there is the recipe's, or a mistake that the recipe names.
        *("--asr_config", "conf/train.yaml", "--size", ""),
        *("--scorer-tag", f"{here}/conf", "--scorer_tag", "someone/model"),
        *("--km_model", f"{here}/x.pth", "--km-model", f"{here}/conf"),
        *("--km_model", "exp/none"),
        *("--test_sets", "x.pth y", "--inference_config", "conf/none.yaml", "--help"),
    ]


@pytest.mark.parametrize("folder", [".", RECIPE.relative_to(ROOT)])
def test_nothing_changes_at_home(clone, folder):
    words = ["--expdir", "exp/new", "--train_config", "conf/train.yaml", "--stage", "1"]
    assert given(clone, clone / folder, *words) == words
    assert given(clone, clone / folder) == []


def test_an_option_without_its_value_stays_one(clone, tmp_path):
    words = ["--expdir", "--masker", "atm"]
    assert given(clone, tmp_path, *words) == words


def test_a_file_that_the_recipe_lacks_is_found_at_home(clone):
    (clone / "mine.yaml").touch()
    words = given(clone, clone, "--train_config", "mine.yaml")
    assert words == ["--train_config", f"{clone}/mine.yaml"]
