"""tools/setup.sh, as a user who may not do everything to a shared environment."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def shared():
    """A clone's set-up, and a complete environment, in a folder that anyone may enter."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        clone, venv = folder / "clone", folder / "opt" / "venv"
        for file in ("tools/setup.sh", "setup.py", "espnet_atm/__init__.py"):
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, clone / file)
        for path in (clone, *clone.rglob("*")):
            path.chmod(0o777)
        for name in ("bin", "lib", "espnet-202611/egs2/TEMPLATE"):
            (venv / name).mkdir(parents=True)
        # Runs whatever it is asked, as a Python that is well does.
        (venv / "bin" / "python").write_text("#!/bin/sh\nexit 0\n")
        (venv / "bin" / "python").chmod(0o755)
        made_from = "echo espnet 202611; sha256sum <setup.py"
        made_from = subprocess.run(
            made_from, shell=True, cwd=clone, capture_output=True, check=True
        )
        (venv / ".atm_installed").write_bytes(made_from.stdout)
        yield clone, venv
        for path in venv.parent.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755)


def set_up(clone, venv) -> str:
    """What it says; nothing when all is well."""
    command = [str(clone / "tools" / "setup.sh")]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not here, to be another user than root")
        command = [*AS_NOBODY, *command]
    done = subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "ATM_VENV": str(venv), "PYTHON": "none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) == bool(done.stderr)
    assert not done.stderr or done.stderr.startswith("setup.sh: "), done.stderr
    return done.stderr


def only_read(venv) -> None:
    for path in (venv.parent, *venv.parent.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)


def test_a_complete_environment_may_be_read_only(shared):
    clone, venv = shared
    only_read(venv)
    assert set_up(clone, venv) == ""
    assert str(venv) in (clone / "tools" / "activate_python.sh").read_text()


@pytest.mark.parametrize("name", ["", "bin", ".atm_installed", "../../opt"])
def test_a_folder_that_may_not_be_entered_is_named(shared, name):
    clone, venv = shared
    path = (venv / name).resolve()
    path.chmod(0o000)
    said = set_up(clone, venv)
    path.chmod(0o755)
    assert f"{path} may not be entered and read by the user " in said
    assert "mode 0)" in said and "ATM_VENV=/path/to/folder" in said


@pytest.mark.parametrize(
    "missing, why",
    [
        (".atm_installed", "is not set up for this clone"),
        ("espnet-202611", "lacks the recipes of ESPnet 202611"),
        ("bin/python", "has a Python that does not run here"),
        (".", "is not there"),
    ],
)
def test_an_incomplete_environment_that_may_not_be_written_is_named(shared, missing, why):
    clone, venv = shared
    path = venv / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    only_read(venv)
    said = set_up(clone, venv)
    at = venv if venv.exists() else venv.parent
    assert f"{venv} {why}" in said and f"{at} may not be written to by the user " in said
    assert "ATM_VENV=/path/to/folder" in said


def test_a_lock_that_may_not_be_written_is_told(shared):
    clone, venv = shared
    (venv / ".atm_installed").unlink()
    for path in (venv, venv / "bin", venv / "lib"):
        path.chmod(0o777)
    venv.parent.chmod(0o555)
    said = set_up(clone, venv)
    assert f"cannot write {venv}.lock, beside the environment" in said
