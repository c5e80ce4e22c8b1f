"""IoU losses on decoded boxes: against torchvision's on boxes cut out by hand, and the assignment of cells."""

import numpy as np
import pytest
import torch
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from centernet.ops.box_loss import (
    GAUSSIAN_SHARE,
    IOU_LOSSES,
    MIN_SIDE,
    MIN_TARGET,
    box_loss,
    draw_box_samples,
    iou_loss,
    num_box_samples,
    num_window_cells,
    sample_extent,
)

H, W = 12, 16
TORCHVISION = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def objects_of(*boxes):
    """Targets of one image with four slots for boxes [x1, y1, x2, y2] in output pixels."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centers.long()
    batch = {
        "ind": torch.zeros(1, 4, dtype=torch.int64),
        "reg_mask": torch.zeros(1, 4, dtype=torch.uint8),
        "wh": torch.zeros(1, 4, 2),
        "reg": torch.zeros(1, 4, 2),
    }
    extent = torch.full((1, 4, 2), -1)
    for k in range(len(boxes)):
        batch["ind"][0, k] = cells[k, 1] * W + cells[k, 0]
        batch["reg_mask"][0, k] = 1
        batch["wh"][0, k] = boxes[k, 2:] - boxes[k, :2]
        batch["reg"][0, k] = centers[k] - cells[k]
        extent[0, k] = torch.from_numpy(sample_extent(batch["wh"][0, k, None].numpy())[0])
    return batch, extent


def with_samples(batch, extent):
    slot, weight = draw_box_samples((len(extent), H, W), batch["wh"], batch["ind"], extent)
    return {**batch, "box_slot": slot, "box_weight": weight}


def random_output(seed=0):
    generator = torch.Generator().manual_seed(seed)
    wh = 3 * torch.randn(1, 2, H, W, generator=generator, dtype=torch.float64)
    return {"wh": wh.requires_grad_(), "reg": torch.randn(1, 2, H, W, generator=generator, dtype=torch.float64)}


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_centers_match_torchvision(kind):
    batch, _ = objects_of([2, 1, 9, 7], [10.5, 3, 14, 10])
    output = random_output()
    loss = box_loss(output, batch, kind) / num_box_samples(batch)
    rows = []
    for k in range(2):
        x, y = batch["ind"][0, k] % W, batch["ind"][0, k] // W
        side = output["wh"][0, :, y, x].clamp(min=MIN_SIDE)
        center = torch.stack([x, y]) + output["reg"][0, :, y, x]
        rows.append(torch.cat([center - side / 2, center + side / 2]))
    expected = TORCHVISION[kind](torch.stack(rows), torch.tensor([[2.0, 1, 9, 7], [10.5, 3, 14, 10]]).double())
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", IOU_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_iou_losses_are_those_of_torchvision_to_the_bit(kind, dtype):
    """For boxes that are apart, overlap, touch or are equal, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    values = 20 * torch.rand(400, 8, generator=generator)
    # Sides of at least 2, so that they do not vanish in bfloat16.
    boxes, targets = (torch.cat([v[:, :2], v[:, :2] + v[:, 2:] / 2 + 2], 1).to(dtype) for v in values.split(4, 1))
    targets[:50] = boxes[:50]
    targets[50:100, 0] = boxes[50:100, 2]
    own, other = (boxes.clone().requires_grad_() for _ in range(2))
    loss, expected = iou_loss(own, targets, kind), TORCHVISION[kind](other, targets)
    assert torch.equal(loss, expected)
    weight = torch.rand(400, generator=generator)
    grads = (torch.autograd.grad((y * weight).sum(), x)[0] for y, x in ((loss, own), (expected, other)))
    assert torch.equal(*grads)


@pytest.mark.parametrize("kind", IOU_LOSSES)
@pytest.mark.parametrize("gaussian", [False, True])
def test_perfect_maps_have_no_loss_and_empty_images_no_gradient(kind, gaussian):
    batch, extent = objects_of([2, 1, 9, 7], [10.5, 3, 14, 10])
    if gaussian:
        batch = with_samples(batch, extent)
    output = {"wh": torch.full((1, 2, H, W), 5.0), "reg": torch.zeros(1, 2, H, W)}
    ys, xs = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    slot = batch["box_slot"][0] if gaussian else torch.where(xs >= 10, 1, 0)
    for k in range(2):
        x, y = batch["ind"][0, k] % W, batch["ind"][0, k] // W
        center = torch.stack([x, y]) + batch["reg"][0, k]
        for axis, grid in enumerate((xs, ys)):
            output["wh"][0, axis][slot == k] = batch["wh"][0, k, axis]
            output["reg"][0, axis][slot == k] = (center[axis] - grid)[slot == k].float()
    assert abs(float(box_loss(output, batch, kind))) < 1e-5

    empty, extent = (
        {name: torch.zeros_like(value) for name, value in objects_of([0, 0, 1, 1])[0].items()},
        extent * 0 - 1,
    )
    if gaussian:
        empty = with_samples(empty, extent)
    output = {name: value.requires_grad_() for name, value in output.items()}
    loss = box_loss(output, empty, kind)
    loss.backward()
    assert float(loss.detach()) == 0 and num_box_samples(empty) == 0
    assert all(value.grad.isfinite().all() and not value.grad.any() for value in output.values())


def test_cells_go_to_the_smallest_object_and_weights_add_up_to_log_area():
    large, small = [0, 0, 15, 11], [5, 4, 10, 8]
    batch, extent = objects_of(large, small)
    cells = num_window_cells(extent[0, :2].numpy())
    slot, weight = draw_box_samples((1, H, W), batch["wh"], batch["ind"], extent, cells)
    for k, (x1, y1, x2, y2) in ((0, large), (1, small)):
        mine = (slot[0] == k) & (weight[0] > 0)
        assert weight[0][mine].sum() == pytest.approx(np.log((x2 - x1) * (y2 - y1)), rel=1e-5)
        ys, xs = mine.nonzero(as_tuple=True)
        assert (xs - int((x1 + x2) / 2)).abs().max() <= GAUSSIAN_SHARE * (x2 - x1) / 2
        assert (ys - int((y1 + y2) / 2)).abs().max() <= GAUSSIAN_SHARE * (y2 - y1) / 2
    y, x = divmod(int(batch["ind"][0, 1]), W)
    assert slot[0, y, x] == 1 and slot[0, y, x - 3] == 0 and weight[0, y, x - 3] > 0
    assert weight[0, 0, 0] == 0


def test_a_batch_is_the_sum_of_its_images():
    one, two = objects_of([2, 1, 9, 7]), objects_of([10.5, 3, 14, 10], [1, 1, 4, 4])
    batch = {name: torch.cat([one[0][name], two[0][name]]) for name in one[0]}
    joined = with_samples(batch, torch.cat([one[1], two[1]]))
    output = {name: torch.cat([value, random_output(1)[name]]) for name, value in random_output().items()}
    parts = 0
    for k, (part, extent) in enumerate((one, two)):
        parts = parts + box_loss({name: v[k : k + 1] for name, v in output.items()}, with_samples(part, extent), "giou")
    torch.testing.assert_close(box_loss(output, joined, "giou"), parts)


def test_sides_below_the_minimum_still_learn():
    batch, extent = objects_of([2, 1, 9, 7])
    output = {"wh": torch.full((1, 2, H, W), -3.0, requires_grad=True), "reg": torch.zeros(1, 2, H, W)}
    box_loss(output, with_samples(batch, extent), "giou").backward()
    y, x = divmod(int(batch["ind"][0, 0]), W)
    assert (output["wh"].grad[0, :, y, x] < 0).all()  # the sides have to grow


@pytest.mark.parametrize("gaussian", [False, True])
def test_targets_below_the_minimum_are_not_demanded(gaussian):
    """Objects that the image border cuts can be thinner than any predicted side counts."""
    batch, extent = objects_of([2, 1, 2.25, 9])
    if gaussian:
        batch = with_samples(batch, extent)
    wh = torch.full((1, 2, H, W), 4.0, requires_grad=True)
    reg = torch.tensor([0.125, 0.0])[None, :, None, None].expand(1, 2, H, W)
    optimizer = torch.optim.Adam([wh], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        box_loss({"wh": wh, "reg": reg}, batch, "giou").backward()
        optimizer.step()
    y, x = divmod(int(batch["ind"][0, 0]), W)
    width, height = wh[0, :, y, x].tolist()
    assert width == pytest.approx(MIN_TARGET, abs=0.15) and height == pytest.approx(8, abs=0.5)


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_gradients_are_right(kind):
    batch, extent = objects_of([2, 1, 9, 7], [10.5, 3, 14, 10])
    batch = with_samples(batch, extent)
    wh = (random_output()["wh"].detach().abs() + 1).requires_grad_()
    reg = random_output(1)["reg"].requires_grad_()
    cells = (batch["box_weight"].flatten() > 0).nonzero()[:3, 0]

    def loss(sides, offsets):
        def inserted(full, values):
            return full.detach().flatten(2).index_copy(2, cells, values).view_as(full)

        return box_loss({"wh": inserted(wh, sides), "reg": inserted(reg, offsets)}, batch, kind)

    values = [value.detach().flatten(2)[:, :, cells].requires_grad_() for value in (wh, reg)]
    if kind == "ciou":  # the weight of its aspect term counts as a constant, so its gradient is not the derivative
        first = torch.autograd.grad(loss(*values), values)
        assert all(grad.isfinite().all() and grad.any() for grad in first)
    else:
        assert torch.autograd.gradcheck(loss, values)
