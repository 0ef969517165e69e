"""What every test file may use."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "atm_librilight" / "ssl1"
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in each test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A source of randomness of the test's own."""
    return torch.Generator().manual_seed(1)
