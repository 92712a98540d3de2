"""What every test file shares."""

import pytest
import torch

from qtorch_tutorial import repro


@pytest.fixture(autouse=True)
def _quiet():
    """The announced end of torch.ao is no news here; any other warning is an error."""
    with repro.quiet():
        yield


@pytest.fixture
def rng() -> torch.Generator:
    return repro.generator(0)
