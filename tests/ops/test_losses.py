"""The elementary losses: values, gradients, and what splitting a batch over processes does to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.conformance import CONFORMANCE, needs_conformance

from centernet.ops import losses
from centernet.ops.losses import (
    BinRotLoss,
    FocalLoss,
    L1Loss,
    NormRegL1Loss,
    RegL1Loss,
    RegLoss,
    RegWeightedL1Loss,
    clamped_sigmoid,
    dense_l1_loss,
    focal_loss,
    gather_feat,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ctdet_loss.json").read_text())
AT_OBJECTS = {
    "regl1": RegL1Loss,
    "regsl1": RegLoss,
    "normreg": NormRegL1Loss,
    "regw": RegWeightedL1Loss,
    "l1mean": L1Loss,
}


@pytest.fixture(scope="module")
def reference():
    with np.load(CONFORMANCE / "losses.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if "/" not in name}


def tensors(reference, case, *names):
    return [torch.from_numpy(reference[f"{case}_{name}"]) for name in names]


def random_objects(seed=0, channels=2, batch=4, slots=6, height=7, width=9):
    """output, mask, ind, target of the losses at objects."""
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(batch, channels, height, width, generator=generator)
    mask = (torch.rand(batch, slots, generator=generator) < 0.6).to(torch.uint8)
    mask[0] = 0
    ind = torch.randint(height * width, (batch, slots), generator=generator)
    target = 1 + 3 * torch.rand(batch, slots, channels, generator=generator)
    return output, mask, ind, target


# Against the reference


@needs_conformance
@pytest.mark.parametrize("case", ["focal_a", "focal_nopos", "focal_b", "focal_sat"])
def test_focal_loss(reference, case):
    x, target, pred, expected, grad = tensors(reference, case, "x", "t", "pred", "loss", "grad_x")
    x.requires_grad_()
    out = clamped_sigmoid(x)
    torch.testing.assert_close(out.detach(), pred, rtol=1e-5, atol=1e-7)
    loss = FocalLoss()(out, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(x.grad, grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max()))


def test_golden_focal_loss():
    """Logits far beyond the clamp: they have a finite loss and no gradient."""
    golden = GOLDEN["focal"]
    x = torch.tensor(golden["x"]).view(1, 1, 1, -1).requires_grad_()
    loss = FocalLoss()(clamped_sigmoid(x), torch.tensor(golden["t"]).view(1, 1, 1, -1))
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-5)
    torch.testing.assert_close(x.grad.flatten(), torch.tensor(golden["grad_x"]), rtol=1e-4, atol=1e-6)
    assert (x.grad == 0).any() and (x.grad != 0).any()


@needs_conformance
@pytest.mark.parametrize("suffix", ["", "_empty"])
@pytest.mark.parametrize("name", AT_OBJECTS)
def test_losses_at_objects(reference, name, suffix):
    output, mask, ind, target, expected, grad = tensors(
        reference, name + suffix, "output", "mask", "ind", "target", "loss", "grad"
    )
    output.requires_grad_()
    loss = AT_OBJECTS[name]()(output, mask, ind, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.grad, grad, rtol=1e-5, atol=1e-8)


@needs_conformance
@pytest.mark.parametrize("case", ["binrot", "binrot_nobin", "binrot_masked"])
def test_rotation_loss(reference, case):
    output, mask, ind, rotbin, rotres, expected, grad = tensors(
        reference, case, "output", "mask", "ind", "rotbin", "rotres", "loss", "grad"
    )
    output.requires_grad_()
    loss = BinRotLoss()(output, mask, ind, rotbin, rotres)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.grad, grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layouts", ["cc", "ll", "lc", "cl", "strided"])
@pytest.mark.parametrize("piece", [50, 10**6])
def test_focal_loss_from_logits(monkeypatch, layouts, piece):
    """The same value and gradient as sigmoid, clamp and FocalLoss, in any memory format and in pieces."""
    monkeypatch.setattr(losses, "FOCAL_CHUNK", piece)
    x, target = logits_and_target(torch.float32)
    expected, grad = focal_in_steps(x, target)
    order = {"c": torch.contiguous_format, "l": torch.channels_last}
    if layouts == "strided":
        x, target = x.repeat(1, 1, 1, 2)[..., ::2].clone(), target.transpose(2, 3).contiguous().transpose(2, 3)
        x, target = torch.stack([logits_and_target(torch.float32)[0], x], dim=4)[..., 0], target
    else:
        x, target = (v.contiguous(memory_format=order[f]) for v, f in zip((x, target), layouts, strict=True))
    x = x.detach().requires_grad_()
    loss = focal_loss(x, target)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad, 3 * grad, rtol=1e-5, atol=1e-7)
    assert torch.equal(x.grad == 0, grad == 0) and (grad == 0).any()
    number = torch.tensor(7)
    torch.testing.assert_close(
        focal_loss(x.detach(), target, number), FocalLoss()(clamped_sigmoid(x.detach()), target, number)
    )


def logits_and_target(dtype):
    """Logits of which some lie beyond the clamp, at peaks and elsewhere."""
    generator = torch.Generator().manual_seed(3)
    x = 7 * torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64) ** 4
    target[:, :, ::2, ::2] = 1
    return x.to(dtype), target.to(dtype)


def focal_in_steps(x, target):
    x = x.clone().requires_grad_()
    loss = FocalLoss()(clamped_sigmoid(x), target)
    loss.backward()
    return loss.detach(), x.grad


def test_focal_loss_from_logits_without_peaks():
    x, target = logits_and_target(torch.float64)
    expected, grad = focal_in_steps(x, target * 0.9)
    x.requires_grad_()
    loss = focal_loss(x, target * 0.9)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, grad)


def test_gradcheck_of_the_focal_loss():
    x, target = logits_and_target(torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target), (x / 2).requires_grad_())


def test_focal_loss_compiles_whole():
    x, target = logits_and_target(torch.float32)
    expected, grad = focal_in_steps(x, target)
    x.requires_grad_()
    loss = torch.compile(focal_loss, fullgraph=True, backend="aot_eager")(x, target)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, grad)


# By hand


def test_focal_numbers():
    target = torch.tensor([[1, 0.5], [0, 0.2]]).view(1, 1, 2, 2)
    out = torch.tensor([[0.6, 0.3], [0.1, 0.8]]).view(1, 1, 2, 2)
    assert FocalLoss()(out, target).item() == pytest.approx(0.5066965, abs=1e-6)
    assert FocalLoss()(out, target * 0.9).item() == pytest.approx(0.4697276, abs=1e-6)
    assert FocalLoss()(out, target, torch.tensor(4)).item() == pytest.approx(0.5066965 / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(RegL1Loss, 1.2499375), (RegLoss, 1.6248375), (L1Loss, 0.625), (NormRegL1Loss, 0.4166743)],
)
def test_numbers_at_objects(loss, expected):
    """One valid object of two slots, prediction (1, 2), target (1.5, 4)."""
    output = torch.full((1, 2, 2, 3), 77.0)
    output[0, :, 1, 1] = torch.tensor([1.0, 2.0])
    mask, ind = torch.tensor([[1, 0]], dtype=torch.uint8), torch.tensor([[4, 0]])
    target = torch.tensor([[[1.5, 4.0], [0.0, 0.0]]])
    assert loss()(output, mask, ind, target).item() == pytest.approx(expected, abs=1e-6)


def test_weighted_and_dense_numbers():
    output = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    mask, target = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[5.0], [9.0]]])
    assert RegWeightedL1Loss()(output, mask, torch.tensor([[2, 0]]), target).item() == pytest.approx(2 / 1.0001)
    weights = torch.tensor([[[[0.5, 0.0], [1.0, 0.0]]]])
    # 0.5 * |1 - 3| + 1 * |3 - 7|, divided by the sum of the weights
    value = dense_l1_loss(output, weights, torch.tensor([[[[3.0, 50.0], [7.0, 60.0]]]])).item()
    assert value == pytest.approx(5 / 1.5001, rel=1e-6)


def test_rotation_floor():
    """Empty slots count log 2 in each of the two bins and have no gradient."""
    output = torch.randn(2, 8, 3, 3, requires_grad=True)
    zeros = torch.zeros(2, 5, dtype=torch.int64)
    loss = BinRotLoss()(output, zeros, zeros, torch.zeros(2, 5, 2, dtype=torch.int64), torch.zeros(2, 5, 2))
    loss.backward()
    assert loss.item() == pytest.approx(2 * np.log(2), rel=1e-6)
    assert not output.grad.any()


def test_gather():
    feat = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    ind = torch.tensor([[0, 7, 19], [5, 5, 11]])
    picked = gather_feat(feat, ind)
    assert picked.shape == (2, 3, 3)
    for b in range(2):
        for n in range(3):
            y, x = divmod(int(ind[b, n]), 5)
            assert torch.equal(picked[b, n], feat[b, :, y, x])


def test_sigmoid_is_clamped():
    x = torch.tensor([-50.0, -9.0, 0.0, 9.0, 50.0], requires_grad=True)
    y = clamped_sigmoid(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx([1e-4, 1.2339e-4, 0.5, 1 - 1.2339e-4, 1 - 1e-4], rel=1e-3)
    assert [value == 0 for value in x.grad.tolist()] == [True, False, False, False, True]


# Inputs stay, numbers of objects


@pytest.mark.parametrize("name", AT_OBJECTS)
def test_inputs_are_not_changed(name):
    output, mask, ind, target = random_objects()
    if name == "regw":
        mask = mask[:, :, None].expand(-1, -1, 2).clone()
    before = [tensor.clone() for tensor in (output, mask, ind, target)]
    AT_OBJECTS[name]()(output.requires_grad_(), mask, ind, target).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, (output, mask, ind, target), strict=True))


def test_focal_inputs_are_not_changed():
    x, target = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    target[0, 0, 0, 0] = 1
    before = x.clone(), target.clone()
    out = clamped_sigmoid(x)
    sigmoid = out.clone()
    FocalLoss()(out, target)
    assert torch.equal(x, before[0]) and torch.equal(target, before[1]) and torch.equal(out, sigmoid)


@pytest.mark.parametrize("name", ["regl1", "regsl1", "normreg", "regw"])
def test_parts_with_global_numbers_add_up(name):
    """Two processes with parts of a batch, each dividing by the numbers of the whole."""
    output, mask, ind, target = random_objects(1)
    if name == "regw":
        mask = mask[:, :, None].expand(-1, -1, 2)
    loss = AT_OBJECTS[name]()
    whole = output.clone().requires_grad_()
    total = loss(whole, mask, ind, target)
    total.backward()
    parts = output.clone().requires_grad_()
    for part in (slice(0, 1), slice(1, 4)):  # the first process has no object at all
        loss(parts[part], mask[part], ind[part], target[part], mask.sum()).backward()
    value = sum(
        loss(output[part], mask[part], ind[part], target[part], mask.sum()) for part in (slice(0, 1), slice(1, 4))
    )
    torch.testing.assert_close(value, total.detach())
    torch.testing.assert_close(parts.grad, whole.grad)
    uneven = loss(output[1:2], mask[1:2], ind[1:2], target[1:2])
    assert not torch.isclose(uneven, loss(output[1:2], mask[1:2], ind[1:2], target[1:2], mask.sum()))


def test_focal_parts_with_global_numbers_add_up():
    generator = torch.Generator().manual_seed(5)
    out, target = torch.rand(4, 2, 5, 6, generator=generator), torch.rand(4, 2, 5, 6, generator=generator)
    target[1:, :, ::2, ::3] = 1
    loss = FocalLoss()
    parts = [loss(out[part], target[part], target.eq(1).sum()) for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), loss(out, target))
    dense = [dense_l1_loss(out[part], target[part], out[part] * 2, target.sum()) for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(dense), dense_l1_loss(out, target, out * 2))
