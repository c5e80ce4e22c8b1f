"""The simulated accelerator, one for each process of tests."""

from pathlib import Path

import pytest
from tests.accelerator.simulation import Simulation, missing


@pytest.fixture(scope="session")
def simulation():
    """Runs scripts on the simulated accelerator; skipped where it cannot be built."""
    if reason := missing():
        pytest.skip(reason)
    started = Simulation()
    yield started
    started.close()


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory) -> Path:
    """A data path in which the sample datasets are drawn."""
    return tmp_path_factory.mktemp("data")
