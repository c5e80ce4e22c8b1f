"""Our deformable convolution against torchvision's operator and against the reference's layer."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.conformance import CONFORMANCE, needs_conformance, noise
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from centernet.models.deform_conv import DCN, deform_conv2d
from centernet.ops import deform_conv as ops

# Output and gradients of the layer below: mean, standard deviation, first, middle and last value, and the same for a
# layer whose offsets are all 0. They come from this code when it agreed with the reference on dcn_layer.npz.
LAYER = {
    "y": [-0.66654197484, 0.544686901431, -0.797678818223, -0.839827632926, -0.359830372581],
    "grad_x": [0.0270078128299, 1.00350815361, 0.210149402294, 0.352817680535, -0.725300320747],
    "grad_weight": [-0.124227447359, 0.993718136871, -0.0982497304463, -0.474590959983, 0.999870785812],
    "grad_bias": [-4.68237607721, 5.73967229398, -3.30586072616, 1.4556972417, 1.19810343673],
    "grad_offset_mask_weight": [0.0341218880064, 2.01302444996, 0.803292064176, 3.16178141315, -1.09344434754],
    "grad_offset_mask_bias": [0.0721270914444, 3.42099427301, 2.26191625817, 3.56697194042, -1.8246699684],
}
FRESH_LAYER = {
    "y": [-0.689129850476, 0.878942188356, -0.0973242453464, -1.48294073377, -0.690921351422],
    "grad_x": [-0.00993334538694, 0.954582509651, 0.194080553881, -1.32016714988, -0.152824519098],
    "grad_weight": [-0.057665745328, 1.62001282727, 0.011514438945, -1.45688289777, 2.00240385057],
    "grad_bias": [-4.68237607721, 5.73967229398, -3.30586072616, 1.4556972417, 1.19810343673],
    "grad_offset_mask_weight": [0.0152146995136, 2.56469516624, 0.649074592945, 2.27176430254, -1.78346557975],
    "grad_offset_mask_bias": [0.413146048758, 3.33969883854, 3.94247163848, 3.64417682094, -0.21153361383],
}

GRID = list(itertools.product((1, 2, (2, 1)), (0, (1, 2)), (1, (2, 1)), ((1, 1), (2, 1), (1, 2), (4, 2))))


def arguments(
    groups: int = 1,
    conv_groups: int = 1,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    size: tuple[int, int] = (9, 7),
    batch: int = 2,
    reach: float = 2,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], tuple]:
    """input, offset, weight, bias and mask, which all want gradients, for a 3x2 kernel; stride, padding, dilation."""
    kernel, pairs = (3, 2), [v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation)]
    out = [(size[k] + 2 * p[k] - d[k] * (kernel[k] - 1) - 1) // s[k] + 1 for s, p, d in [pairs] for k in range(2)]
    generator = torch.Generator().manual_seed(groups + 10 * conv_groups + size[0])
    shapes = [
        (batch, 8, *size),
        (batch, 12 * groups, *out),
        (6, 8 // conv_groups, 3, 2),
        (6,),
        (batch, 6 * groups, *out),
    ]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    tensors[1] *= reach
    return [tensor.requires_grad_() for tensor in tensors], tuple(pairs)


def with_gradients(
    function, tensors: list[Tensor], geometry: tuple, mask: bool = True, bias: bool = True
) -> list[Tensor]:
    """The output and the gradients of its product with fixed numbers."""
    used = tensors[:3] + [tensors[3]] * bias + [tensors[4]] * mask
    y = function(*tensors[:3], tensors[3] if bias else None, *geometry, tensors[4] if mask else None)
    grad = torch.sin(torch.arange(y.numel(), device=y.device)).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, used, grad)]


def check_equal(own: list[Tensor], other: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(own, other, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.fixture(params=["cpu", "elsewhere", "pieces", "pieces elsewhere"])
def path(request, monkeypatch):
    """The ways through the operator: of the CPU or of other devices, in one piece or row by row."""
    if "elsewhere" in request.param:
        monkeypatch.setattr(ops, "BAG_DEVICES", ())
    if "pieces" in request.param:
        monkeypatch.setattr(ops, "BAG_CHUNK", 1)
        monkeypatch.setattr(ops, "CHUNK", 1)


def test_torchvision_is_imported_for_cuda_only():
    """The import takes about as long as that of PyTorch, in every process of a training."""
    code = (
        "import sys, torch; from centernet.models import create_model;"
        "from centernet.ops.deform_conv import deform_conv2d;"
        "import centernet.analysis.report, centernet.detector, centernet.engine.setup, centernet.engine.trainer;"
        "create_model('lite', {'hm': 2}, 0);"
        "deform_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 3, 3), torch.zeros(1, 1, 3, 3), padding=1);"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2] / "src", check=True)


def test_torchvision_s_operator_compiles(monkeypatch):
    """The operator for CUDA, on the CPU; its import is traced."""
    monkeypatch.setattr(ops, "_choose", lambda *_: "torchvision")
    case = arguments()
    compiled = torch.compile(deform_conv2d, backend="eager", fullgraph=True)
    check_equal(with_gradients(compiled, *case), with_gradients(torchvision_deform_conv2d, *case))


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), GRID)
def test_equals_torchvision(stride, padding, dilation, groups):
    case = arguments(*groups, stride, padding, dilation)
    check_equal(with_gradients(deform_conv2d, *case), with_gradients(torchvision_deform_conv2d, *case))


@pytest.mark.parametrize("reach", [0.5, 3, 1e4, 1e30])
def test_every_path_equals_torchvision(path, reach):
    case = arguments(groups=2, conv_groups=2, stride=(2, 1), reach=reach)
    check_equal(with_gradients(deform_conv2d, *case), with_gradients(torchvision_deform_conv2d, *case))


@pytest.mark.parametrize(("mask", "bias"), [(False, True), (True, False), (False, False)])
def test_without_mask_or_bias(mask, bias):
    case = arguments(groups=4)
    own = with_gradients(deform_conv2d, *case, mask, bias)
    check_equal(own, with_gradients(torchvision_deform_conv2d, *case, mask, bias))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("channels", "out_channels", "size"), [(96, 40, (24, 24)), (16, 24, (64, 80))])
def test_sizes_of_networks(channels, out_channels, size, layout):
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).to(memory_format=layout)
    offset, mask = 2 * torch.randn(2, 18, *size), torch.rand(2, 9, *size)
    tensors = [x, offset, torch.randn(out_channels, channels, 3, 3), torch.randn(out_channels), mask]
    case = [tensor.requires_grad_() for tensor in tensors], (1, 1, 1)
    check_equal(with_gradients(deform_conv2d, *case), with_gradients(torchvision_deform_conv2d, *case))


@pytest.mark.parametrize("conv_groups", [1, 2])
def test_channels_last_stays(conv_groups):
    """The same numbers from an image in channels-last order, and results in this order."""
    tensors, geometry = arguments(conv_groups=conv_groups)
    last = [tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_(), *tensors[1:]]
    one, other = (with_gradients(deform_conv2d, values, geometry) for values in (tensors, last))
    check_equal(other, one)
    for own, image in ((one[0], False), (one[1], False), (other[0], True), (other[1], True)):
        assert own.is_contiguous(memory_format=torch.channels_last) == image


def test_empty_batch():
    tensors, geometry = arguments(batch=0)
    y, *grads = with_gradients(deform_conv2d, tensors, geometry)
    assert y.shape == (0, 6, 9, 8)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors]
    assert not any(grad.any() for grad in grads)


def test_not_a_number_stays_in_its_pixel():
    tensors, geometry = arguments()
    with torch.no_grad():
        tensors[1][1, 3, 4, 5] = torch.nan
        y = deform_conv2d(*tensors[:4], *geometry, tensors[4])
    assert y[1, :, 4, 5].isnan().all()
    assert y.isnan().sum() == y.shape[1]


@pytest.mark.parametrize("groups", [(1, 1), (2, 2)])
def test_gradcheck(groups):
    tensors, geometry = arguments(*groups, size=(4, 3), batch=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, offset, weight, bias, mask: deform_conv2d(x, offset, weight, bias, *geometry, mask), tensors
    )


def test_offset_gradient_at_minus_one_is_zero():
    tensors, geometry = arguments(size=(5, 5), dtype=torch.float64)
    with torch.no_grad():
        tensors[1].zero_()
    own = with_gradients(deform_conv2d, tensors, geometry)
    other = with_gradients(torchvision_deform_conv2d, tensors, geometry)
    # By image, row and column of the tap, axis, and output row and column.
    own_grad, other_grad = (grads[2].view(2, 3, 2, 2, *own[0].shape[2:]) for grads in (own, other))
    for outer in ((slice(None), 0, slice(None), 0, 0), (slice(None), slice(None), 0, 1, slice(None), 0)):
        assert not own_grad[outer].any()
        assert other_grad[outer].any()
        other_grad[outer] = 0
    check_equal(own, other, 1e-12)


@pytest.mark.parametrize("change", ["offset", "mask", "weight", "bias", "axes"])
def test_shapes_that_do_not_fit(change):
    tensors, geometry = arguments(groups=2)
    x, offset, weight, bias, mask = (tensor.detach() for tensor in tensors)
    if change == "offset":
        offset = offset[:, :, 1:]
    elif change == "mask":
        mask = mask[:, 1:]
    elif change == "weight":
        weight = weight[:, 1:]
    elif change == "bias":
        bias = bias[1:]
    else:
        x = x[0]
    with pytest.raises(ValueError, match="deform_conv2d"):
        deform_conv2d(x, offset, weight, bias, *geometry, mask)


# Types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    layer, conv = DCN(8, 6), torch.nn.Conv2d(8, 6, 3)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.2)
    x = torch.randn(2, 8, 9, 7, requires_grad=True)
    expected = layer(x).detach()
    with torch.autocast("cpu", dtype):
        y = layer(x)
        assert y.dtype == conv(x).dtype == dtype
        assert layer(x.to(dtype)).dtype == dtype
        assert layer.double()(x.double()).dtype == conv.double()(x.double()).dtype == torch.float64
        layer.float()
        y.float().square().mean().backward()
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in [x, *layer.parameters()])


def test_arithmetic_under_autocast_is_float32():
    case = arguments()
    exact = with_gradients(deform_conv2d, *case)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = deform_conv2d(*case[0][:4], *case[1], case[0][4])
    torch.testing.assert_close(rounded, exact[0].bfloat16(), rtol=0, atol=0)


def test_half_precision_network():
    tensors, geometry = arguments(dtype=torch.bfloat16)
    exact = with_gradients(deform_conv2d, [t.detach().float().requires_grad_() for t in tensors], geometry)
    check_equal([t.float() for t in with_gradients(deform_conv2d, tensors, geometry)], exact, 0.01)


# The operator as a part of PyTorch


def test_operator_is_registered_well():
    tensors, geometry = arguments(groups=2)
    x, offset, weight, bias, mask = tensors
    pairs = [number for pair in geometry for number in pair]
    torch.library.opcheck(ops._deform_conv2d, (x, offset, mask, weight, bias, pairs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_break(dynamic):
    torch._dynamo.reset()
    layer = DCN(8, 6)
    torch.nn.init.normal_(layer.conv_offset_mask.weight)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    check_compiled(layer, compiled, [(9, 7), (6, 8)])


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_inductor(autocast):
    torch._dynamo.reset()
    layer = DCN(8, 6)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        check_compiled(layer, torch.compile(layer, fullgraph=True), [(9, 7)], 0.05 if autocast else 1e-5)


def check_compiled(layer, compiled, sizes, tolerance=1e-5):
    for size in sizes:
        results = []
        for function in (layer, compiled):
            x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y = function(x)
            grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
            results.append([y.detach(), *grads])
        check_equal(*reversed(results), tolerance)


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_accelerator_equals_cpu():
    tensors, geometry = arguments(groups=2, conv_groups=2)
    there = [tensor.detach().to(torch.accelerator.current_accelerator()).requires_grad_() for tensor in tensors]
    own = [value.cpu() for value in with_gradients(deform_conv2d, there, geometry)]
    check_equal(own, with_gradients(deform_conv2d, tensors, geometry), 1e-4)


# The reference's layer


def layer_results(x: Tensor, grad: Tensor, layer: DCN) -> dict[str, Tensor]:
    """Output and gradients under the names of dcn_layer.npz."""
    x.requires_grad_()
    y = layer(x)
    names = ("weight", "bias", "offset_mask_weight", "offset_mask_bias")
    parameters = (layer.weight, layer.bias, layer.conv_offset_mask.weight, layer.conv_offset_mask.bias)
    grads = torch.autograd.grad(y, [x, *parameters], grad)
    return {"y": y.detach()} | dict(zip(("grad_x", *(f"grad_{name}" for name in names)), grads, strict=True))


def make_layer(weight, bias, offset_mask_weight, offset_mask_bias) -> DCN:
    layer = DCN(weight.shape[1], weight.shape[0], kernel_size=3, stride=1, padding=1, dilation=1, deformable_groups=1)
    layer = layer.double()
    state = {"weight": weight, "bias": bias}
    state |= {"conv_offset_mask.weight": offset_mask_weight, "conv_offset_mask.bias": offset_mask_bias}
    layer.load_state_dict(state)
    return layer


@needs_conformance
@pytest.mark.parametrize("case", ["random", "fresh"])
def test_layer_equals_reference(path, case):
    file = np.load(CONFORMANCE / "forward/dcn_layer.npz")
    names = ("weight", "bias", "offset_mask_weight", "offset_mask_bias")
    layer = make_layer(*(torch.from_numpy(file[f"{case}_{name}"]) for name in names))
    results = layer_results(*(torch.from_numpy(file[f"{case}_{name}"]) for name in ("x", "grad_out")), layer)
    for name, value in results.items():
        np.testing.assert_allclose(value.numpy(), file[f"{case}_{name}"], rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((8, 6, 3, 1, 1), {}),
        ((8, 6, 3, 2, 1), {"deformable_groups": 2}),
        ((8, 6, 3, 1, 2), {"dilation": 2, "deformable_groups": 4}),
        ((8, 6, (3, 2), (2, 1), (1, 0)), {"dilation": (1, 2)}),
        ((8, 6, 1, 1, 0), {}),
    ],
)
def test_layer_takes_the_arguments_of_the_reference(arguments, options):
    """Any geometry: torchvision's operator on the layer's own offsets, and half a convolution when it is new."""
    torch.manual_seed(0)
    layer = DCN(*arguments, **options).double()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    geometry = (layer.stride, layer.padding, layer.dilation)
    half = torch.nn.functional.conv2d(x, layer.weight / 2, layer.bias, *geometry)
    torch.testing.assert_close(layer(x), half)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.3)
    torch.nn.init.normal_(layer.bias)
    first, second, mask = layer.conv_offset_mask(x).chunk(3, dim=1)  # the reference's split
    offset = torch.cat([first, second], dim=1)
    expected = torchvision_deform_conv2d(x, offset, layer.weight, layer.bias, *geometry, mask=mask.sigmoid())
    torch.testing.assert_close(layer(x), expected)


def test_layer_has_the_defaults_of_the_networks():
    layer = DCN(4, 5)
    assert layer.conv_offset_mask.weight.shape == (27, 4, 3, 3) and layer(torch.zeros(1, 4, 6, 7)).shape == (1, 5, 6, 7)
    with pytest.raises(ValueError, match="groups"):
        DCN(4, 5, 3, 1, 1, deformable_groups=3)


@pytest.mark.parametrize(("scale", "golden"), [(0.3, LAYER), (0, FRESH_LAYER)], ids=["random", "fresh"])
def test_layer_has_golden_values(path, scale, golden):
    def tensor(entry: int, *shape: int) -> Tensor:
        return torch.from_numpy(noise(int(np.prod(shape)), entry)).view(shape)

    layer = make_layer(tensor(0, 5, 4, 3, 3), tensor(1, 5), scale * tensor(2, 27, 4, 3, 3), scale * tensor(3, 27))
    results = layer_results(tensor(4, 2, 4, 7, 9), tensor(5, 2, 5, 7, 9), layer)
    for name, value in results.items():
        flat = value.flatten()
        own = (flat.mean(), flat.std(unbiased=False), flat[0], flat[len(flat) // 2], flat[-1])
        assert [float(v) for v in own] == pytest.approx(golden[name], rel=0, abs=1e-9), name
