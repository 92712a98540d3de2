"""What every test file shares."""

import warnings

import pytest
import torch

from qtorch_tutorial import repro


@pytest.fixture(autouse=True)
def _quiet():
    """The announced end of torch.ao is no news here; any other warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repro.silence_deprecations()
        yield


@pytest.fixture
def rng() -> torch.Generator:
    return repro.generator(0)
