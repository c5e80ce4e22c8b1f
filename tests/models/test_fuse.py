"""Fused networks give the same maps, and leave the network that they come from alone."""

import copy

import pytest
import torch
from tests.helpers.conformance import architectures, bn_statistics, error_in_std, sweep
from torch import nn

from centernet.models import create_model, describe
from centernet.models.deform_conv import DCN
from centernet.models.fuse import fuse

HEADS = {"hm": 5, "wh": 2, "reg": 2}
DEEP = ("_50", "_101", "_152", "hourglass")


def trained(arch: str, dtype: torch.dtype = torch.float64, head_conv: int | None = None) -> nn.Module:
    """A network whose statistics, offsets and BatchNorms are all different from their start."""
    torch.manual_seed(0)
    model = create_model(arch, HEADS, describe(arch)[0].head_conv if head_conv is None else head_conv).to(dtype).eval()
    for _, mean in bn_statistics(model, "running_mean"):
        mean.normal_(std=0.1)
    for _, variance in bn_statistics(model, "running_var"):
        variance.uniform_(0.5, 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, DCN):
            nn.init.normal_(module.conv_offset_mask.weight, std=0.1)
    return model


def image(arch: str, dtype: torch.dtype) -> torch.Tensor:
    side = describe(arch)[0].pad + 1
    return torch.randn(1, 3, side, 2 * side, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@torch.no_grad()
def check_same(model: nn.Module, fused: nn.Module, x: torch.Tensor, tolerance: float) -> None:
    outputs, own = model(x), fused(x)
    assert len(outputs) == len(own)
    for expected, output in zip(outputs, own, strict=True):
        assert list(output) == list(expected)
        for name, value in expected.items():
            assert output[name].dtype == value.dtype
            assert error_in_std(output[name], value) <= tolerance, name


@pytest.mark.parametrize("arch", sweep(architectures(), slow=DEEP))
def test_fused_networks_give_the_same(arch):
    model = trained(arch)
    before = copy.deepcopy(model.state_dict())
    x = image(arch, torch.float64)
    for batch_heads in (False, True):
        fused = fuse(model, batch_heads)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        check_same(model, fused, x, 1e-9)
    # Not only equal afterwards: no entry of the network is shared with the copy or replaced.
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("arch", ["res_18", "resdcn_18", "dla_34", "dlav0_34"])
def test_single_precision_agrees_to_rounding(arch):
    model = trained(arch, torch.float32).to(memory_format=torch.channels_last)
    check_same(model, fuse(model), image(arch, torch.float32), 1e-4)


def test_a_network_in_training_can_be_fused_and_trains_on():
    model = trained("dlav0_34", torch.float32).train()
    fused = fuse(model)
    assert model.training and not fused.training
    x = image("dlav0_34", torch.float32)
    output = fused(x)[0]["hm"]
    assert not output.requires_grad
    model(x)[0]["hm"].mean().backward()
    assert model.base.base_layer[0].weight.grad is not None
    assert torch.equal(fused(x)[0]["hm"], output)  # the statistics that the network has just moved are its own


@pytest.mark.parametrize("head_conv", [0, 32])
@pytest.mark.parametrize("arch", ["res_18", "dla_34"])
def test_batched_heads_of_any_width(arch, head_conv):
    model = trained(arch, head_conv=head_conv)
    fused = fuse(model, batch_heads=True)
    assert fused.batched_heads[0].first.out_channels == (sum(HEADS.values()) if head_conv == 0 else 3 * head_conv)
    check_same(model, fused, image(arch, torch.float64), 1e-9)


def test_a_batch_norm_without_convolution_is_an_error():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="no convolution found before 1"):
        fuse(model)


def test_fused_networks_can_be_compiled_without_a_break():
    torch._dynamo.reset()
    fused = fuse(trained("resdcn_18", torch.float32), batch_heads=True)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    check_same(fused, compiled, image("resdcn_18", torch.float32), 1e-4)
