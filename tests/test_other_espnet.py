"""The releases of ESPnet that are tested beside the one that tools/setup.sh installs."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from espnet_atm import ESPNET

# Training with the extension, without it as stock, an export, and an ASR model of it.
SOME = [
    "test_task.py::test_trains_with_confidence",
    "test_task.py::test_without_ssl_conf_it_is_espnet_to_the_bit",
    "test_export.py::test_an_asr_model_has_all_that_was_learned",
]
# Training, losses, export, and what the trainer writes.
CORE = ["test_task.py", "test_model.py", "test_trainer.py", "losses"]
CORE += ["test_export.py", "bin/test_export_ssl.py"]


@pytest.mark.parametrize("tests", [SOME, pytest.param(CORE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("release", ESPNET[1:])
def test_the_core_tests_pass_with_it(tmp_path, release, tests):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command = [*pip, "--target", str(tmp_path / "espnet"), f"espnet=={release}.*"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"ESPnet {release} cannot be fetched: {done.stderr.splitlines()[-1]}")
    tests = [str(ROOT / "tests" / x) for x in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}/espnet"}
    found = "import espnet2; print(espnet2.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", found], env=environ, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(tmp_path))
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
