"""The simulated accelerator behaves as a device of its own kind, and each of its faults changes something."""

import pytest

pytestmark = pytest.mark.simulated
HERE = "tests.accelerator.test_device"


def test_it_is_a_device_of_its_own_kind(simulation):
    simulation.output(f"{HERE}:check_device", SIM_DEVICES="2")


def check_device() -> None:
    import torch

    assert torch.accelerator.current_accelerator().type == "sim" and torch.accelerator.device_count() == 2
    x = torch.arange(6.0, device="sim:1").view(2, 3)
    assert x.device == torch.device("sim", 1) and (x.T @ x).device == x.device
    assert (x.T @ x).cpu().tolist() == [[9, 12, 15], [12, 17, 22], [15, 22, 29]]
    for other in (torch.ones(2, 3), torch.ones(2, 3, device="sim:0")):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            x + other
    assert torch.empty(0, device="sim").resize_(4).numel() == 4
    torch.manual_seed(1)
    a, state = torch.rand(3, device="sim:1"), torch.sim.get_rng_state("sim:1")
    b = torch.rand(3, device="sim:1")
    torch.sim.set_rng_state(state, "sim:1")
    assert torch.equal(torch.rand(3, device="sim:1"), b) and not torch.equal(a, b)
    with torch.autocast("sim", torch.bfloat16):
        assert (x.T @ x).dtype == torch.bfloat16
    assert torch.ones(2).pin_memory().is_pinned() and not torch.ones(2).is_pinned()
    stream = torch.Stream(device="sim:1")
    event = stream.record_event()
    event.synchronize()
    assert event.query()


def test_each_fault_replaces_kernels_that_exist(simulation):
    simulation.output(f"{HERE}:check_faults")


def check_faults() -> None:
    import torch
    from simulated_accelerator import faults

    assert len(faults.FAULTS) >= 16
    convolution = torch.nn.Conv2d(3, 4, 3, device="sim")
    x = torch.rand(1, 3, 8, 8, device="sim")

    def gradient() -> torch.Tensor:
        convolution.zero_grad()
        convolution(x).square().sum().backward()
        return convolution.weight.grad.clone()

    sound = gradient()
    for name in faults.FAULTS:
        faults.switch_on(name)
        changed = not torch.equal(gradient().cpu(), sound.cpu())
        assert changed or "conv_backward" not in name and name != "conv_weight_gradient"
        faults.switch_off()
    assert torch.equal(gradient(), sound)
