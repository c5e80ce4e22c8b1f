"""The Triton kernels of the deformable convolution, run by Triton's interpreter, against our operator in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers import triton_cases
from tests.helpers.training import run_here
from tests.helpers.triton_cases import CASES, NAMES, SLOW_CASES, Case
from torch import Tensor

from centernet.errors import UserError
from centernet.models.deform_conv import DCN
from centernet.ops import deform_conv, deform_conv_triton
from centernet.ops.deform_conv import deform_conv2d

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
needs_triton = pytest.mark.skipif(not deform_conv_triton.INSTALLED, reason="Triton is not installed")


def interpret(folder: Path, *names: str) -> dict[str, list[Tensor]]:
    """Return the results of cases from a process in which Triton is interpreted."""
    path = folder / "results.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CENTERNET_DEFORM_CONV": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, triton_cases.__file__, str(path), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Tensor]]:
    return interpret(tmp_path_factory.mktemp("triton"), *CASES)


@pytest.fixture(scope="module")
def slow_results(tmp_path_factory) -> dict[str, list[Tensor]]:
    return interpret(tmp_path_factory.mktemp("triton"), *SLOW_CASES, "layer", "operator_check")


def expected(case: Case) -> list[Tensor]:
    """Output and gradients of our operator in float64."""
    x, offset, weight, bias, mask = tensors = [tensor.double().requires_grad_() for tensor in case.tensors()]
    y = deform_conv2d(x, offset, weight, bias, *case.geometry, mask, implementation="torch")
    return [y.detach(), *torch.autograd.grad(y, tensors, case.grad(y))]


def check_equal(own: list[Tensor], case: Case) -> None:
    for name, value, other, given in zip(NAMES, own, expected(case), [None, *case.tensors()], strict=True):
        assert value.dtype == (case.dtype if given is None else given.dtype), name
        if case.special == "nan" and name != "output":
            continue  # which gradients it spoils is not defined
        assert torch.equal(value.isnan(), other.isnan()), name
        known = ~other.isnan()
        difference = (value.double() - other)[known].abs().max()
        assert difference <= TOLERANCE[case.dtype] * other[known].abs().max(), (name, float(difference))


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_float64(results, name):
    check_equal(results[name], CASES[name])


def test_cases_are_what_their_names_say():
    """Samples lie on pixels and exactly at the first position outside, and far outside; a NaN stays in its pixel."""
    case = CASES["edges"]
    _, offset, *_ = case.tensors()
    rows = offset[:, 0::2].unflatten(1, (3, 2)) - 1 + torch.arange(3).view(3, 1, 1, 1) + torch.arange(4).view(4, 1)
    assert (rows == -1).any() and (rows == 0).any() and (rows == case.size[0]).any()
    assert SLOW_CASES["outside"].tensors()[1].abs().max() > 1e29
    assert expected(SLOW_CASES["nan"])[0].isnan().sum() == SLOW_CASES["nan"].out_channels


@needs_triton
@pytest.mark.slow
def test_layer_in_mixed_precision(slow_results):
    """Samples are rounded to bfloat16, and results keep dtypes and channels-last order."""
    torch.manual_seed(0)
    dcn = DCN(4, 6)
    torch.nn.init.normal_(dcn.conv_offset_mask.weight, std=0.2)
    x = torch.randn(1, 4, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = dcn(x)
    y_triton, *grads_triton = slow_results["layer"]
    assert y_triton.dtype == torch.bfloat16 and y_triton.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y_triton.float(), y.detach().float(), rtol=0.02, atol=0.02)
    for own, other in zip(
        grads_triton, torch.autograd.grad(y.float().square().sum(), [x, *dcn.parameters()]), strict=True
    ):
        assert own.dtype == other.dtype == torch.float32
        torch.testing.assert_close(own, other, rtol=0, atol=0.04 * float(other.abs().max()))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_kernels_equal_float64_for_all_geometries(slow_results, name):
    check_equal(slow_results[name], SLOW_CASES[name])


@needs_triton
@pytest.mark.slow
def test_operator_is_registered_well(slow_results):
    case = Case(channels=2, out_channels=3, size=(3, 2))
    (y,) = slow_results["operator_check"]
    torch.testing.assert_close(y.double(), expected(case)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [*CASES, *SLOW_CASES])
def test_kernels_on_a_gpu(name):
    case = (CASES | SLOW_CASES)[name]
    x, offset, weight, bias, mask = tensors = [tensor.cuda().requires_grad_() for tensor in case.tensors()]
    y = deform_conv2d(x, offset, weight, bias, *case.geometry, mask, implementation="triton")
    grads = torch.autograd.grad(y, tensors, case.grad(y.cpu()).cuda())
    check_equal([value.detach().cpu() for value in (y, *grads)], case)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capability", [86, 90])
def test_kernels_compile_for_gpus_that_are_not_there(dtype, capability):
    """Each fits into the shared memory of consumer cards, and multiplies bfloat16 with their matrix units."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from centernet.ops import deform_conv_kernels as kernels

    x, offset, weight, _, mask = Case(kernel=(3, 3), channels=64, out_channels=256, dtype=dtype).tensors()
    call = deform_conv_triton._Call(x, offset, mask, weight, [1] * 6)
    constants = {name: value for name, value in call.constants.items() if name not in deform_conv_triton.OPTIONS}
    pointers = dict.fromkeys(("table", "matrix", "bias", "output", "grad_output"), DTYPES[dtype])
    pointers |= dict.fromkeys(("offset", "mask", "grad_table", "grad_offset", "grad_mask", "grad_matrix"), "*fp32")
    for kernel in (kernels.forward, kernels.backward_samples, kernels.backward_matrix):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        done = compile(source, target=GPUTarget("cuda", capability, 32), options=deform_conv_triton.OPTIONS)
        assert done.asm["cubin"] and done.metadata.shared <= 99 * 1024
        assert dtype == torch.float32 or "mma" in done.asm["ptx"]


# The choice


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A computer with a GPU and Triton, as far as the choice is concerned."""
    monkeypatch.setattr(deform_conv_triton, "INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_triton_is_never_chosen_by_itself(gpu):
    assert deform_conv.DEFAULT == "auto"
    assert deform_conv._choose("auto", CUDA, torch.float32) == "torchvision"
    assert deform_conv._choose("auto", CPU, torch.float32) == "torch"
    assert deform_conv._choose("torch", CUDA, torch.float32) == "torch"


def test_triton_where_it_computes_the_same(gpu):
    assert deform_conv._choose("triton", CUDA, torch.float32) == "triton"
    assert deform_conv._choose("triton", CUDA, torch.float64) == "torch"
    assert deform_conv._choose("triton", CPU, torch.float32) == "torch"
    torch.use_deterministic_algorithms(True)
    try:
        assert deform_conv._choose("triton", CUDA, torch.float32) == "torch"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("value", "installed", "message"),
    [
        ("cuda", True, "CENTERNET_DEFORM_CONV=cuda: choose from auto, torch, triton"),
        ("triton", False, "CENTERNET_DEFORM_CONV=triton: the package triton is not installed"),
        ("triton", True, "CENTERNET_DEFORM_CONV=triton: Triton needs a GPU, and there is none"),
    ],
)
def test_impossible_choices_are_errors(monkeypatch, value, installed, message):
    monkeypatch.setattr(deform_conv_triton, "INSTALLED", installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x, offset, weight, bias, mask = Case(channels=2, out_channels=2).tensors()
    with pytest.raises(UserError, match=message):
        deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask, implementation=value)


def test_a_training_reports_an_impossible_choice(tiny_voc, tmp_path, monkeypatch):
    monkeypatch.setattr(deform_conv, "DEFAULT", "cuda")
    options = ["--dataset", "pascal", "--data_path", str(tiny_voc), "--exp_dir", str(tmp_path), "--arch", "resdcn_18"]
    options += ["--input_res", "64", "--batch_size", "2", "--num_workers", "0", "--pretrained", "none"]
    done = run_here("main", "ctdet", *options, "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr == "error: CENTERNET_DEFORM_CONV=cuda: choose from auto, torch, triton\n"
