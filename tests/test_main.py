import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import espnet2
import pytest
import torch
from conftest import ROOT
from espnet2.utils.config_argparse import ArgumentParser
from packaging.requirements import Requirement

import espnet_atm
from espnet_atm.__main__ import cause, in_words, uses_a_task
from espnet_atm.errors import UserError, one_line_errors

TRAIN = [sys.executable, "-m", "espnet_atm", "-m", "espnet2.bin.ssl_train"]


def run(command, **kwargs):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, **kwargs
    )


def the_line(done, begin="espnet_atm -m espnet2.bin.ssl_train: error: ") -> str:
    """What a failed command says at its end, in one line."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    *_, said = done.stderr.strip().splitlines()
    assert said.startswith(begin)
    return said.removeprefix(begin)


# ---------------------------------------------------------------- one line


def test_a_users_mistake_is_one_line(ssl_command):
    command = ssl_command(ssl_conf={"masker": "atm", "masker_conf": {"span": 0}})
    assert "span" in the_line(run([*TRAIN, *command]))


def test_a_file_that_is_not_there_is_named(ssl_command, corpus, tmp_path):
    """It is missed when it is read, by a process that reads for this one."""
    lines = (corpus / "wav.scp").read_text().replace(f"{corpus}/utt9.wav", "none.wav")
    (tmp_path / "wav.scp").write_text(lines)
    command = [
        x.replace(f"{corpus}/wav.scp", f"{tmp_path}/wav.scp")
        for x in ssl_command(ssl_conf={"masker": "atm"}, num_workers=1)
    ]
    assert "none.wav" in the_line(run([*TRAIN, *command]))


def test_a_warning_before_training_does_not_silence_its_log(ssl_command):
    """ESPnet sets up its log after our checks have warned."""
    loss = [{"name": "hubert", "conf": {"num_classes": 9, "final_dim": 8}}]
    done = run([*TRAIN, *ssl_command(ssl_conf={"masker": "atm"}, loss=loss)])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("labels end at number 3") == 1
    assert "INFO: 1/1epoch started" in done.stderr


def test_ssl_conf_of_another_task_is_told(tmp_path):
    (tmp_path / "hubert.yaml").write_text("ssl_conf: {masker: atm}\n")
    command = [*TRAIN[:-1], "espnet2.bin.hubert_train", "--config"]
    done = run([*command, str(tmp_path / "hubert.yaml")])
    said = the_line(done, "espnet_atm -m espnet2.bin.hubert_train: error: ")
    assert "hubert.yaml: ssl_conf is for espnet2.bin.ssl_train" in said


def test_a_config_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=f"{tmp_path}/bad.yaml.*line 2"), in_words():
        ArgumentParser().parse_args(["--config", str(tmp_path / "bad.yaml")])


# ---------------------------------------------------------------- from outside


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("[x.cc:1] Connection closed by peer [::1]:5"), "another process"),
        (RuntimeError("Connection reset by peer"), "another process of this training"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "),
            "reads data was killed",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"),
            "reads data was killed",
        ),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error."),
            "--shm-size",
        ),
        (
            RuntimeError("unable to write to file </torch_3>: No space left on device"),
            "--shm-size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9"),
            "out of memory: lower",
        ),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), "out of memory: lower"),
        (MemoryError(), "out of memory: lower"),
    ],
)
def test_what_comes_from_outside_is_told_with_what_to_do(error, words):
    with pytest.raises(UserError, match=words) as e, in_words():
        raise error
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape mismatch"), KeyError("x"), AssertionError(), OSError()],
)
def test_our_own_faults_stay_what_they_are(error):
    assert cause(error) is None
    with pytest.raises(type(error)), in_words():
        raise error


class Missing(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, number):
        raise self.error


@pytest.mark.parametrize(
    "error, words",
    [
        (FileNotFoundError(2, "No such file", "a.wav"), "No such file: 'a.wav'"),
        (PermissionError(13, "Permission denied", "a.wav"), "denied: 'a.wav'"),
    ],
)
def test_what_a_reading_process_misses_is_named(error, words):
    loader = torch.utils.data.DataLoader(Missing(error), num_workers=1)
    with pytest.raises(SystemExit) as e, one_line_errors("program"), in_words():
        list(loader)
    assert e.value.code.endswith(words) and "\n" not in e.value.code


def test_an_interrupt_ends_without_a_traceback(ssl_command, tmp_path):
    command = ssl_command(ssl_conf={"masker": "atm"}, max_epoch=10**6)
    log = tmp_path / "log"
    with log.open("w") as f:
        training = subprocess.Popen(
            [*TRAIN, *command],
            cwd=ROOT,
            stderr=f,
            stdout=f,
            # A shell that runs the tests in the background has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    while "2epoch results" not in log.read_text():
        assert training.poll() is None, log.read_text()
        time.sleep(0.1)
    for _ in range(6):  # Python loses one that falls into a destructor
        training.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(10)
            break
    assert training.wait(10) == 130, log.read_text()[-3000:]
    assert log.read_text().splitlines()[-1] == "interrupted"


# ---------------------------------------------------------------- another ESPnet


@pytest.fixture
def another(tmp_path):
    """Makes an ESPnet that Python finds first: links to ours, and a version."""

    def make(version, file="version.txt"):
        (tmp_path / "espnet2").symlink_to(Path(espnet2.__file__).parent)
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{version}\n")
        return {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"}

    return make


COMMANDS = ["espnet_atm.bin.score", "espnet_atm.bin.export_ssl", "espnet_atm"]


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize(
    "version, file",
    [
        ("202503", "version.txt"),
        ("202609.post2", "version.txt"),
        ("0.10.6", "espnet/version.txt"),
        ("202612", "version.txt"),
    ],
)
def test_another_espnet_is_named(another, tmp_path, module, version, file):
    done = run([sys.executable, "-m", module, "--help"], env=another(version, file))
    line = the_line(done, "espnet_atm: error: ")
    tested = " and ".join(espnet_atm.ESPNET)
    assert f"tested with ESPnet {tested}, and Python finds {version} in {tmp_path}" in line
    assert f"pip install espnet=={espnet_atm.ESPNET[0]}, take the other off PYTHON" in line
    assert line.endswith(f"ATM_ESPNET={version}")


def test_an_espnet_too_old_to_be_imported_is_named(another, tmp_path):
    environ = another("202301", "espnet/version.txt")
    (tmp_path / "espnet2").unlink()
    (tmp_path / "espnet2").mkdir()
    (tmp_path / "espnet2" / "__init__.py").write_text("raise ImportError('old')\n")
    done = run([*TRAIN, "--help"], env=environ)
    assert "Python finds 202301" in the_line(done, "espnet_atm: error: ")


@pytest.mark.parametrize("version", ["202611", "202610", "202610.post2"])
def test_a_tested_release_elsewhere_is_let_be(another, version):
    command = [sys.executable, "-m", "espnet_atm.bin.summary", "--help"]
    done = run(command, env=another(version))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", ["202612", "202609.post2"])
def test_another_espnet_can_be_tried(another, version):
    environ = {**another(version), "ATM_ESPNET": version}
    done = run([sys.executable, "-m", "espnet_atm.bin.summary", "--help"], env=environ)
    assert done.returncode == 0, done.stderr


def test_no_espnet_is_told():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run([sys.executable, "-S", "-m", "espnet_atm.bin.score"], env=environ)
    assert "ESPnet is not installed" in the_line(done, "espnet_atm: error: ")


def test_the_installed_espnet_is_the_tested_one():
    assert espnet_atm.wrong_espnet() is None


def test_pip_lets_the_installed_espnet_be(tmp_path):
    """Whatever its release: what pip reads of this package names none."""
    code = (
        "import sys; from setuptools.build_meta import prepare_metadata_for_build_wheel; "
        "prepare_metadata_for_build_wheel(sys.argv[1])"
    )
    source = tmp_path / "source"
    shutil.copytree(ROOT / "espnet_atm", source / "espnet_atm")
    shutil.copy(ROOT / "setup.py", source)
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    lines = [x for x in metadata.read_text().splitlines() if x.startswith("Requires-Dist")]
    wanted = [Requirement(x.partition(":")[2].strip()) for x in lines]
    (espnet,) = (x for x in wanted if x.name == "espnet")
    assert all(x in espnet.specifier for x in ("202301", "202610.post2", "209912"))
    # Nothing else either that ESPnet's own packages depend on is held to one release.
    assert all("==" not in str(x.specifier) for x in wanted)


def test_the_release_that_is_set_up_is_the_first_tested():
    script = (ROOT / "tools" / "setup.sh").read_text()
    (version,) = re.findall(r"^ESPNET_VERSION=(\S+)$", script, re.MULTILINE)
    assert version == espnet_atm.ESPNET[0]


# ---------------------------------------------------------------- what is imported


def test_only_what_trains_or_loads_models_imports_the_tasks():
    assert uses_a_task("espnet2.bin.asr_train") and uses_a_task("espnet2.bin.ssl_train")
    assert not uses_a_task("espnet2.bin.tokenize_text")
    assert not uses_a_task("espnet2.bin.aggregate_stats_dirs")
