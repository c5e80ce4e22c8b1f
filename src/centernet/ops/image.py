"""Image geometry and heatmap drawing on NumPy arrays, as the reference defines them.

Points are (x, y) in pixels; the center of the first pixel is at 0. The drawing functions here modify one map in place;
whole batches are drawn on the device by ``ops.heatmap``, with the same result.
"""

import cv2
import numpy as np


def get_affine_transform(center, scale, rot, output_size, shift=(0, 0), inv=0) -> np.ndarray:
    """Return the 2x3 float64 matrix that maps a square of side ``scale[0]`` around ``center`` to the output.

    Only the width counts: the aspect ratio is kept, and ``scale[1]`` matters only with ``shift``.

    Args:
        center: (x, y) in the image.
        scale: side in image pixels, a number or (width, height).
        rot: rotation in degrees.
        output_size: (width, height) of the output.
        shift: displacement in units of ``scale``.
        inv: 1 for the inverse, from the output to the image.
    """
    # Points are stored as float32 and solved in float64, as in the reference: the matrices agree to the last digit.
    scale = np.broadcast_to(np.asarray(scale, dtype=np.float32), 2)
    center, shift = np.asarray(center), np.asarray(shift, dtype=np.float32)
    angle = np.pi * rot / 180
    half = scale[0] * -0.5
    direction = [-half * np.sin(angle), half * np.cos(angle)]
    width, height = output_size
    source, target = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    source[0] = center + scale * shift
    source[1] = center + direction + scale * shift
    target[0] = [width * 0.5, height * 0.5]
    target[1] = np.array([width * 0.5, height * 0.5]) + np.array([0, width * -0.5], np.float32)
    for points in (source, target):
        x, y = points[0] - points[1]
        points[2] = points[1] + np.array([-y, x], dtype=np.float32)
    return cv2.getAffineTransform(target, source) if inv else cv2.getAffineTransform(source, target)


def affine_transform(points, matrix: np.ndarray) -> np.ndarray:
    """Map points (..., 2) with a 2x3 matrix; the points are rounded to float32 first, the result is float64."""
    points = np.asarray(points).astype(np.float32).astype(np.float64)
    return points @ matrix[:, :2].T + matrix[:, 2]


def transform_preds(coords, center, scale, output_size) -> np.ndarray:
    """Map points (N, 2) of an output map of ``output_size`` (width, height) back to the image; float64."""
    coords = np.asarray(coords)
    target = np.zeros(coords.shape)
    target[:, :2] = affine_transform(coords[:, :2], get_affine_transform(center, scale, 0, output_size, inv=1))
    return target


def gaussian_radius(size, min_overlap=0.7):
    """Return the radius of the Gaussian for a box of ``size`` = (height, width), in double precision; arrays work too.

    The minimum of the three roots of CornerNet (arXiv 1808.01244, section 3.2), without the division by 2a of the
    quadratic formula. The reference trains with these radii, so published numbers depend on them.
    """
    height, width = (np.asarray(side, dtype=np.float64) for side in size)
    total, area = height + width, height * width

    def root(a, b, c):
        return (b + np.sqrt(b**2 - 4 * a * c)) / 2

    r1 = root(1, total, area * (1 - min_overlap) / (1 + min_overlap))
    r2 = root(4, 2 * total, (1 - min_overlap) * area)
    r3 = root(4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * area)
    return np.minimum(np.minimum(r1, r2), r3)[()]


def gaussian2D(shape, sigma=1) -> np.ndarray:
    """Return a Gaussian of peak 1 on a (height, width) grid, float64; values below the machine epsilon are 0."""
    m, n = ((side - 1.0) / 2.0 for side in shape)
    y, x = np.ogrid[-m : m + 1, -n : n + 1]
    with np.errstate(invalid="ignore", divide="ignore"):  # sigma 0: NaN at the center, as in the reference
        h = np.exp(-(x * x + y * y) / (2 * sigma * sigma))
    h[h < np.finfo(h.dtype).eps * h.max()] = 0
    return h


def _windows(shape, center, radius):
    """Return the slices of a map and of a kernel of ``radius`` where both overlap around the truncated center."""
    x, y = int(center[0]), int(center[1])
    height, width = shape
    left, right = min(x, radius), min(width - x, radius + 1)
    top, bottom = min(y, radius), min(height - y, radius + 1)
    on_map = (slice(y - top, y + bottom), slice(x - left, x + right))
    on_kernel = (slice(radius - top, radius + bottom), slice(radius - left, radius + right))
    return on_map, on_kernel


def draw_umich_gaussian(heatmap: np.ndarray, center, radius: int, k=1) -> np.ndarray:
    """Raise ``heatmap`` (height, width) to a Gaussian of sigma (2 * radius + 1) / 6 around the truncated center."""
    gaussian = gaussian2D((2 * radius + 1, 2 * radius + 1), sigma=(2 * radius + 1) / 6)
    on_map, on_kernel = _windows(heatmap.shape, center, radius)
    part, kernel = heatmap[on_map], gaussian[on_kernel]
    if min(part.shape) > 0 and min(kernel.shape) > 0:
        np.maximum(part, kernel * k, out=part, casting="unsafe")
    return heatmap


def draw_dense_reg(regmap, heatmap, center, value, radius, is_offset=False) -> np.ndarray:
    """Write ``value`` (D,) into ``regmap`` (D, height, width) where the kernel is at least as high as ``heatmap``.

    With ``is_offset`` and D = 2 a pixel gets the value minus its own offset from the center.
    """
    diameter = 2 * radius + 1
    gaussian = gaussian2D((diameter, diameter), sigma=diameter / 6)
    value = np.array(value, dtype=np.float32).reshape(-1, 1, 1)
    reg = np.ones((value.shape[0], diameter, diameter), dtype=np.float32) * value
    if is_offset and value.shape[0] == 2:
        delta = np.arange(diameter) - radius
        reg[0] -= delta.reshape(1, -1)
        reg[1] -= delta.reshape(-1, 1)
    on_map, on_kernel = _windows(heatmap.shape, center, radius)
    part, kernel = heatmap[on_map], gaussian[on_kernel]
    if min(part.shape) > 0 and min(kernel.shape) > 0:
        on_maps, on_kernels = (slice(None), *on_map), (slice(None), *on_kernel)
        regmap[on_maps] = np.where(kernel >= part, reg[on_kernels], regmap[on_maps])
    return regmap


def draw_msra_gaussian(heatmap: np.ndarray, center, sigma) -> np.ndarray:
    """Raise ``heatmap`` to a Gaussian of ``sigma`` around the rounded center, cut off at 3 sigma (``--mse_loss``)."""
    extent = sigma * 3
    x, y = int(center[0] + 0.5), int(center[1] + 0.5)
    height, width = heatmap.shape
    left, top, right, bottom = int(x - extent), int(y - extent), int(x + extent + 1), int(y + extent + 1)
    if left >= width or top >= height or right < 0 or bottom < 0:
        return heatmap
    kernel = gaussian2D((int(2 * extent + 1), int(2 * extent + 1)), sigma)
    rows, columns = slice(max(0, top), min(bottom, height)), slice(max(0, left), min(right, width))
    part = heatmap[rows, columns]
    np.maximum(
        part,
        kernel[rows.start - top :, columns.start - left :][: part.shape[0], : part.shape[1]],
        out=part,
        casting="unsafe",
    )
    return heatmap
