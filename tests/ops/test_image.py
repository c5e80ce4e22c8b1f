"""Geometry and drawing on numpy arrays against golden values of the reference."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.conformance import CONFORMANCE, needs_conformance

from centernet.ops.image import (
    affine_transform,
    draw_dense_reg,
    draw_msra_gaussian,
    draw_umich_gaussian,
    gaussian2D,
    gaussian_radius,
    get_affine_transform,
    transform_preds,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "image_ops.json").read_text())


def totals(array):
    """Sum and sum of squares, which the golden values hold in place of maps."""
    array = np.asarray(array, dtype=np.float64)
    return [array.sum(), (array * array).sum()]


@pytest.fixture(scope="module")
def reference():
    with np.load(CONFORMANCE / "image_ops.npz", allow_pickle=False) as file:
        return dict(file)


# Geometry


@pytest.mark.parametrize(
    ("center", "scale", "rot", "size", "matrix"),
    [
        ((320, 240), 640, 0, (512, 512), [[0.8, 0, 0], [0, 0.8, 64]]),
        ((250, 166.5), 500, 0, (96, 96), [[0.192, 0, 0], [0, 0.192, 16.032]]),
        (
            (100, 80),
            200,
            30,
            (128, 128),
            [[0.5542562686, 0.3200000056, -17.0256273], [-0.3199999965, 0.5542562597, 51.6594988]],
        ),
        ((320, 213), (672, 448), 0, (672, 448), [[1, 0, 16], [0, 1, 11]]),
        ((621, 187.5), (1242, 375), 0, (1280, 384), [[1.03059581, 0, 0], [0, 1.03059581, -1.23671498]]),
    ],
)
def test_affine_matrices(center, scale, rot, size, matrix):
    scale = np.array(scale, dtype=np.float32) if isinstance(scale, tuple) else scale
    result = get_affine_transform(np.array(center, dtype=np.float32), scale, rot, size)
    assert result.shape == (2, 3) and result.dtype == np.float64
    np.testing.assert_allclose(result, matrix, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("case", GOLDEN["affine"], ids=range(len(GOLDEN["affine"])))
def test_golden_affine_cases(case):
    scale = case["scale"] if isinstance(case["scale"], float) else np.float32(case["scale"])
    matrix = get_affine_transform(
        np.float32(case["center"]), scale, case["rot"], case["output_size"], np.float32(case["shift"]), case["inv"]
    )
    np.testing.assert_allclose(matrix, case["trans"], rtol=1e-9, atol=1e-9)


@needs_conformance
def test_affine_transforms(reference):
    for k in range(len(reference["affine_trans"])):
        scale = reference["affine_scale"][k]
        scale = float(scale[0]) if reference["affine_scale_is_scalar"][k] else scale.astype(np.float32)
        matrix = get_affine_transform(
            reference["affine_center"][k],
            scale,
            float(reference["affine_rot"][k]),
            reference["affine_output_size"][k],
            reference["affine_shift"][k],
            int(reference["affine_inv"][k]),
        )
        np.testing.assert_allclose(matrix, reference["affine_trans"][k], rtol=1e-9, atol=1e-12)
        point = affine_transform(reference["affine_pts"][k], matrix)
        np.testing.assert_allclose(point, reference["affine_pts_out"][k], rtol=1e-9, atol=1e-9)


@needs_conformance
@pytest.mark.parametrize("k", range(4))
def test_transform_preds(reference, k):
    coords, center, scale, size, out = (
        reference[f"preds{k}_{name}"] for name in ("coords", "center", "scale", "output_size", "out")
    )
    result = transform_preds(coords, center, scale if scale.ndim else float(scale), size)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, out, rtol=1e-9, atol=1e-9)


def test_closed_form():
    """k [[cos, sin], [-sin, cos]] (p - c) + output / 2 with k = width / scale[0]."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        center, scale, rot = rng.uniform(0, 500, 2), rng.uniform(50, 900), rng.uniform(-180, 180)
        width, height = (int(side) for side in rng.integers(32, 512, 2))
        points = rng.uniform(0, 500, (5, 2))
        angle = np.deg2rad(rot)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        expected = (points - center) @ turn.T * width / scale + (width / 2, height / 2)
        matrix = get_affine_transform(center.astype(np.float32), scale, rot, (width, height))
        np.testing.assert_allclose(affine_transform(points, matrix), expected, atol=5e-3)


def test_only_the_width_of_a_scale_counts():
    center = np.array([60, 40], dtype=np.float32)
    one = get_affine_transform(center, np.float32([120, 80]), 0, (96, 64))
    assert np.array_equal(one, get_affine_transform(center, np.float32([120, 7]), 0, (96, 64)))
    assert np.array_equal(one, get_affine_transform(center, 120.0, 0, (96, 64)))
    assert not np.allclose(one, get_affine_transform(center, 80.0, 0, (96, 64)))


def test_there_and_back():
    center, points = np.array([75, 60], dtype=np.float32), np.array([[0.0, 0.0], [149, 119], [31.5, 80.25]])
    there = affine_transform(points, get_affine_transform(center, 150.0, 0, (40, 32)))
    np.testing.assert_allclose(transform_preds(there, center, 150.0, (40, 32)), points, atol=1e-4)


# Radii and kernels


@pytest.mark.parametrize(("side", "radius"), [(3, 0), (4, 1), (7, 1), (8, 2), (16, 4), (32, 8), (64, 17), (128, 34)])
def test_radius_of_squares(side, radius):
    assert int(gaussian_radius((side, side))) == radius
    assert gaussian_radius((side, side)) == pytest.approx(0.27332 * side, rel=1e-4)


def test_golden_radii():
    for height, width, radius in GOLDEN["radius"]:
        assert gaussian_radius((height, width)) == pytest.approx(radius, rel=1e-10)


def test_radius_of_arrays():
    sides = np.arange(1, 60, 0.5)
    heights, widths = (array.ravel() for array in np.meshgrid(sides, sides))
    total, area = heights + widths, heights * widths
    np.testing.assert_allclose(
        gaussian_radius((heights, widths)), -0.7 * total + np.sqrt(0.49 * total**2 + 0.84 * area), atol=1e-9
    )
    assert gaussian_radius((heights, widths))[17] == gaussian_radius((heights[17], widths[17]))


@needs_conformance
def test_radii(reference):
    for kind in ("int", "float"):
        for size, radius in zip(reference[f"radius_hw_{kind}"], reference[f"radius_{kind}"], strict=True):
            assert gaussian_radius(tuple(size)) == pytest.approx(radius, rel=1e-9)
    for row, overlap in zip(reference["radius_int_by_overlap"], reference["radius_overlap"], strict=True):
        for size, radius in zip(reference["radius_hw_int"][:20], row, strict=True):
            assert gaussian_radius(tuple(size), overlap) == pytest.approx(radius, rel=1e-9)


def test_kernel():
    kernel = gaussian2D((5, 5), sigma=5 / 6)
    assert kernel.dtype == np.float64 and kernel[2, 2] == 1
    assert kernel[2, 0] == pytest.approx(0.0561348, abs=1e-7)
    assert kernel[1, 2] == pytest.approx(0.4867522, abs=1e-7)
    assert np.array_equal(kernel, kernel[::-1, ::-1])
    narrow = gaussian2D((9, 9), sigma=0.3)
    assert narrow[4, 4] == 1 and narrow[0, 0] == 0


@needs_conformance
def test_kernels(reference):
    for k, (shape, sigma) in enumerate(zip(reference["gaussian2D_shape"], reference["gaussian2D_sigma"], strict=True)):
        np.testing.assert_allclose(gaussian2D(tuple(shape), sigma), reference[f"gaussian2D_{k}"], atol=1e-12)


# Drawing


def test_drawing_example():
    heatmap = np.zeros((6, 6), dtype=np.float32)
    assert draw_umich_gaussian(heatmap, (1, 1), 2) is heatmap
    np.testing.assert_allclose(heatmap[1], [0.4867522, 1, 0.4867522, 0.0561348, 0, 0], atol=1e-7)
    np.testing.assert_allclose(heatmap[0], [0.2369278, 0.4867522, 0.2369278, 0.0273237, 0, 0], atol=1e-7)
    assert heatmap[3, 3] == pytest.approx(0.0031511, abs=1e-7)
    assert not heatmap[4:].any()


def test_golden_umich_cases():
    for x, y, radius, k, *expected in GOLDEN["umich"]:
        heatmap = draw_umich_gaussian(np.zeros((32, 40), np.float32), (x, y), int(radius), k)
        np.testing.assert_allclose(totals(heatmap), expected, rtol=2e-6, atol=1e-7)


def test_golden_umich_sequence():
    heatmap = np.zeros((32, 40), np.float32)
    for x, y, radius in GOLDEN["umich_sequence"]:
        draw_umich_gaussian(heatmap, np.float32([x, y]), int(radius))
    np.testing.assert_allclose(totals(heatmap), GOLDEN["umich_sequence_map"], rtol=2e-6)


@needs_conformance
def test_umich_maps(reference):
    for (x, y, radius, k), expected in zip(reference["umich_cases"], reference["umich_maps"], strict=True):
        heatmap = draw_umich_gaussian(np.zeros((32, 40), np.float32), (x, y), int(radius), k)
        np.testing.assert_allclose(heatmap, expected, atol=1e-6)
    heatmap = np.zeros((32, 40), np.float32)
    for x, y, radius in reference["umich_seq"]:
        draw_umich_gaussian(heatmap, np.float32([x, y]), int(radius))
    np.testing.assert_allclose(heatmap, reference["umich_seq_map"], atol=1e-6)
    assert np.array_equal(heatmap == 1, reference["umich_seq_map"] == 1)


def test_golden_msra_cases():
    for x, y, sigma, *expected in GOLDEN["msra"]:
        heatmap = draw_msra_gaussian(np.zeros((32, 32), np.float32), (x, y), sigma)
        np.testing.assert_allclose(totals(heatmap), expected, rtol=2e-6, atol=1e-7)


@needs_conformance
def test_msra_maps(reference):
    for (x, y, sigma), expected in zip(reference["msra_cases"], reference["msra_maps"], strict=True):
        heatmap = draw_msra_gaussian(np.zeros((32, 32), np.float32), (x, y), sigma)
        np.testing.assert_allclose(heatmap, expected, atol=1e-6)
    for k, (x, y, sigma) in enumerate(reference["msra_rect_cases"]):
        heatmap = draw_msra_gaussian(np.zeros((32, 40), np.float32), (x, y), sigma)
        np.testing.assert_allclose(heatmap, reference[f"msra_rect_map{k}"], atol=1e-6)


def test_msra_reaches_the_right_of_wide_maps():
    """The reference's test for "completely outside" takes the height for the width."""
    heatmap = draw_msra_gaussian(np.zeros((8, 40), np.float32), (36, 4), 1)
    np.testing.assert_allclose(heatmap[:, 28:40].max(), 1)
    square = draw_msra_gaussian(np.zeros((40, 40), np.float32), (36, 4), 1)
    assert np.array_equal(heatmap, square[:8])


def test_msra_without_width():
    heatmap = draw_msra_gaussian(np.zeros((32, 32), np.float32), (5, 6), 0)
    assert np.isnan(heatmap[6, 5]) and np.count_nonzero(heatmap) == 1


def draw_dense(mode, sequence):
    """A regression map and its heatmap: 0 as detection draws them, 1 and 2 as poses with and without offsets."""
    heatmap, regmap = np.zeros((32, 40), np.float32), np.zeros((2, 32, 40), np.float32)
    for x, y, v0, v1, radius in sequence:
        center, radius = np.float32([x, y]), int(radius)
        if mode == 0:
            draw_umich_gaussian(heatmap, center, radius)
        draw_dense_reg(regmap, heatmap, center, [v0, v1], radius, is_offset=mode == 1)
        if mode != 0:
            draw_umich_gaussian(heatmap, center, radius)
    return regmap, heatmap


@pytest.mark.parametrize("mode", range(3))
def test_golden_dense_regression(mode):
    golden = GOLDEN["dense"][mode]
    regmap, heatmap = draw_dense(mode, golden["sequence"])
    np.testing.assert_allclose([totals(part) for part in regmap], golden["reg"], rtol=2e-6)
    np.testing.assert_allclose(totals(heatmap), golden["hm"], rtol=2e-6)


@needs_conformance
@pytest.mark.parametrize("mode", range(3))
def test_dense_regression(reference, mode):
    regmap, heatmap = draw_dense(mode, reference[f"dense{mode}_seq"])
    np.testing.assert_allclose(regmap, reference[f"dense{mode}_reg"], atol=1e-6)
    np.testing.assert_allclose(heatmap, reference[f"dense{mode}_hm"], atol=1e-6)
