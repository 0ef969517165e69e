"""A Slurm for the tests of the recipe."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def slurm():
    """A Slurm of one node; its folder."""
    daemons = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [name for name in daemons if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if not socket.gethostbyname(socket.gethostname()).startswith("127."):
        pytest.skip("Slurm would not stay on loopback: this host's name is not 127.*")
    # Not in pytest's folder, whose name is too long for a socket's.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        script = Path(__file__).with_name("slurm_cluster.sh")
        os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
        subprocess.run([script, "start", folder], check=True)
        yield Path(folder)
        subprocess.run([script, "stop", folder], check=True)
        del os.environ["SLURM_CONF"]
