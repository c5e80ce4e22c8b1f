"""Training in several processes on an accelerator (a simulated one)."""

import subprocess

import numpy as np
import pytest
from tests.accelerator.simulation import ROOT, environment
from tests.accelerator.trainings import losses, options
from tests.helpers.training import LAUNCH, MAIN

pytestmark = pytest.mark.simulated

BATCHES = ("--batch_size", "4", "--num_iters", "2")


def launch(arguments: list[str], **variables: str) -> str:
    """Train in four processes through the launcher; the output."""
    command = [*LAUNCH, "--nproc_per_node=4", MAIN, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(**variables), cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def losses_on_the_cpu(tmp_path_factory, sample_data) -> np.ndarray:
    """The losses of four processes on the CPU."""
    exp = tmp_path_factory.mktemp("cpu")
    launch(options("ctdet", exp, sample_data, *BATCHES, "--device", "cpu"))
    return losses(exp)


@pytest.mark.parametrize(
    "variables",
    [
        {"SIM_DEVICES": "4"},
        {"SIM_DEVICES": "1"},
        pytest.param({"SIM_DEVICES": "4", "SIM_COLLECTIVES": "0"}, marks=pytest.mark.slow),
    ],
    ids=["a device each", "one shared device", "no collective library"],
)
def test_four_processes_train_as_on_the_cpu(simulation, tmp_path, sample_data, losses_on_the_cpu, variables):
    output = launch(options("ctdet", tmp_path, sample_data, *BATCHES), **variables)
    assert "4 process(es) on sim" in output
    np.testing.assert_allclose(losses(tmp_path), losses_on_the_cpu, rtol=2e-3, atol=1e-4)
