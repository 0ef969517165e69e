"""Where a scorer is: local/find_scorer.py."""

import subprocess
import sys
import zipfile

import pytest
from conftest import RECIPE

from espnet_atm.scorer import Scorer


def get(tag: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "local/find_scorer.py", tag],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def packed(asr, tmp_path):
    """A model as ESPnet packs it for the model zoo."""
    file = tmp_path / "model.zip"
    command = [sys.executable, "-m", "espnet2.bin.pack", "asr", "--outpath", str(file)]
    command += ["--asr_train_config", str(asr[0]), "--asr_model_file", str(asr[1])]
    subprocess.run(command, check=True, capture_output=True)
    return file


def test_a_packed_model(packed):
    done = get(str(packed))
    assert done.returncode == 0, done.stderr
    checksum, weights, config = done.stdout.splitlines()
    assert len(checksum) == 8
    Scorer.from_files(config, weights)


def test_a_folder_of_hugging_faces(make_ctc):
    folder = make_ctc()
    done = get(str(folder))
    assert done.returncode == 0, done.stderr
    checksum, *rest = done.stdout.split("\n")
    assert len(checksum) == 8 and rest == [str(folder), "", ""]
    assert get(str(make_ctc("hubert"))).stdout.splitlines()[0] != checksum


def test_what_is_no_asr_model_is_refused(tmp_path):
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("meta.yaml", "files: {}\nyaml_files: {}\n")
    done = get(str(file))
    assert done.returncode != 0
    assert f"{file}: is no ASR model: it has no asr_train_config" in done.stderr
    done = get("nobody/nothing-at-all")
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("--scorer_tag: error: nobody/nothing-at-all: no such scorer")
