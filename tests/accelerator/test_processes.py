"""Training in several processes on an accelerator (a simulated one)."""

import subprocess
from pathlib import Path

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


def losses_of_four(simulation, exp: Path, data: Path, *more: str, **variables: str) -> np.ndarray:
    """The losses of four processes, which are forked instead of launched."""
    simulation.output("main", *options("ctdet", exp, data, *BATCHES, *more), processes=4, **variables)
    return losses(exp)


@pytest.fixture(scope="module")
def losses_on_the_cpu(simulation, tmp_path_factory, sample_data) -> np.ndarray:
    """The losses of four processes on the CPU."""
    return losses_of_four(simulation, tmp_path_factory.mktemp("cpu"), sample_data, "--device", "cpu")


def test_four_processes_of_the_launcher_train_as_on_the_cpu(simulation, tmp_path, sample_data, losses_on_the_cpu):
    output = launch(options("ctdet", tmp_path, sample_data, *BATCHES), SIM_DEVICES="4")
    assert "4 process(es) on sim" in output
    np.testing.assert_allclose(losses(tmp_path), losses_on_the_cpu, rtol=2e-3, atol=1e-4)


def test_four_processes_that_share_a_device_train_as_on_the_cpu(simulation, tmp_path, sample_data, losses_on_the_cpu):
    found = losses_of_four(simulation, tmp_path, sample_data, SIM_DEVICES="1")
    np.testing.assert_allclose(found, losses_on_the_cpu, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_four_processes_without_a_collective_library(simulation, tmp_path, sample_data, losses_on_the_cpu):
    launch(options("ctdet", tmp_path, sample_data, *BATCHES), SIM_DEVICES="4", SIM_COLLECTIVES="0")
    np.testing.assert_allclose(losses(tmp_path), losses_on_the_cpu, rtol=2e-3, atol=1e-4)
