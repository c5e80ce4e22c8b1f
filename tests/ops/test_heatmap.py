"""Drawing a whole batch at once gives what drawing one object after the other gives."""

import numpy as np
import pytest
import torch

from centernet.ops import heatmap
from centernet.ops.heatmap import draw_gaussians
from centernet.ops.image import draw_msra_gaussian, draw_umich_gaussian

SIZE = (3, 4, 20, 26)


def random_objects(seed, slots=12, greatest=9):
    """Classes, cells and radii of every slot, many at the border and some empty (radius -1)."""
    rng = np.random.default_rng(seed)
    batch, classes, height, width = SIZE
    cls = rng.integers(0, classes, (batch, slots))
    x, y = rng.integers(0, width, (batch, slots)), rng.integers(0, height, (batch, slots))
    x[:, :4] = rng.choice([0, 1, width - 2, width - 1], (batch, 4))
    y[:, 2:6] = rng.choice([0, 1, height - 2, height - 1], (batch, 4))
    radius = rng.integers(0, greatest, (batch, slots))
    radius[rng.random((batch, slots)) < 0.2] = -1
    radius[0, 7] = 30  # larger than the map
    radius[2] = -1  # an image without objects
    return cls, x, y, radius


def draw(cls, x, y, extent, sigma, **more):
    ind = torch.from_numpy(y * SIZE[3] + x)
    return draw_gaussians(SIZE, torch.from_numpy(cls), ind, torch.from_numpy(extent), torch.from_numpy(sigma), **more)


@pytest.mark.parametrize("seed", range(5))
def test_equals_umich_gaussians(seed):
    cls, x, y, radius = random_objects(seed)
    expected = np.zeros(SIZE, np.float32)
    for b, k in np.argwhere(radius >= 0):
        draw_umich_gaussian(expected[b, cls[b, k]], (x[b, k], y[b, k]), radius[b, k])
    hm = draw(cls, x, y, radius, ((2 * radius + 1) / 6).astype(np.float32))
    assert hm.dtype == torch.float32 and hm.shape == SIZE
    np.testing.assert_allclose(hm.numpy(), expected, atol=2e-7)
    assert np.array_equal(hm.numpy() == 1, expected == 1)
    assert np.array_equal(hm.numpy() > 0, expected > 0)
    assert expected[:2].any() and not expected[2].any()


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_equals_msra_gaussians(sigma):
    cls, x, y, radius = random_objects(20 + sigma)
    expected = np.zeros(SIZE, np.float32)
    for b, k in np.argwhere(radius >= 0):
        draw_msra_gaussian(expected[b, cls[b, k]], (x[b, k], y[b, k]), sigma)
    hm = draw(cls, x, y, np.where(radius >= 0, 3 * sigma, -1), np.full(radius.shape, sigma, np.float32))
    np.testing.assert_allclose(hm.numpy(), expected, atol=2e-7)
    assert np.array_equal(hm.numpy() == 1, expected == 1)


@pytest.mark.parametrize("limit", [1, 300, 1000])
def test_many_objects_are_drawn_in_parts(monkeypatch, limit):
    cls, x, y, radius = random_objects(11, slots=60)
    sigma = ((2 * radius + 1) / 6).astype(np.float32)
    whole = draw(cls, x, y, radius, sigma)
    drawn = []
    inner = heatmap._draw
    monkeypatch.setattr(heatmap, "_draw", lambda *arguments: drawn.append(arguments[-1]) or inner(*arguments))
    monkeypatch.setattr(heatmap, "PIXELS_AT_ONCE", limit)
    assert torch.equal(draw(cls, x, y, radius, sigma), whole)
    assert len(drawn) > 5 and sum(drawn) == int(((2 * radius + 1).clip(min=0) ** 2).sum())
    assert max(drawn) <= max(limit, 61 * 61)


def test_peaks_are_exactly_one():
    """The focal loss takes the cells that are equal to 1 for the objects."""
    cls, x, y, radius = random_objects(7, slots=40, greatest=15)
    hm = draw(cls, x, y, radius, ((2 * radius + 1) / 6).astype(np.float32)).numpy()
    cells = {(b, cls[b, k], y[b, k], x[b, k]) for b, k in np.argwhere(radius >= 0)}
    assert {tuple(cell) for cell in np.argwhere(hm == 1)} == cells
    assert hm.max() == 1


def test_order_does_not_matter():
    cls, x, y, radius = random_objects(3)
    order = np.random.default_rng(0).permutation(radius.shape[1])
    arrays = [cls, x, y, radius, ((2 * radius + 1) / 6).astype(np.float32)]
    assert torch.equal(draw(*arrays), draw(*(array[:, order] for array in arrays)))


def test_known_number_of_pixels():
    cls, x, y, radius = random_objects(4)
    sigma = ((2 * radius + 1) / 6).astype(np.float32)
    pixels = int(((2 * radius + 1) ** 2)[radius >= 0].sum())
    assert torch.equal(draw(cls, x, y, radius, sigma, pixels=pixels), draw(cls, x, y, radius, sigma))


def test_no_objects_at_all():
    cls, x, y, radius = random_objects(5)
    hm = draw(cls, x, y, np.full_like(radius, -1), np.ones(radius.shape, np.float32))
    assert hm.shape == SIZE and not hm.any()
