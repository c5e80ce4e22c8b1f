"""Targets of one image: what the tasks share when they place objects in output coordinates."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.image import gaussian_radius
from ..options.table import Options
from ..transforms import AugmentationRng, View, color_matrix


def warped_image(image: np.ndarray, view: View, opt: Options, rng: AugmentationRng | None = None) -> dict[str, Any]:
    """Return the network's view of an image: ``image`` (h, w, 3) uint8 and its color matrix ``color`` (3, 4) float32.

    Args:
        image: (H, W, 3) uint8, BGR.
        rng: random numbers of the color jitter; None: no jitter.
    """
    warped = view.warp(image)
    color = rng.color() if rng is not None and not opt.no_color_aug else None
    return {"image": warped, "color": color_matrix(warped, color, opt.mean, opt.std)}


def sample_meta(view: View, gt_det: np.ndarray, **more) -> dict:
    """Return ``meta`` of a sample: center ``c``, scale ``s`` and ``output_size`` of its view, and what it shows.

    ``gt_det`` (n, columns) float32: ground truth as detections; without objects a row of zeros, as in the reference.
    """
    gt_det = gt_det.astype(np.float32) if len(gt_det) else np.zeros((1, gt_det.shape[1]), dtype=np.float32)
    return {"c": view.center, "s": view.scale, "output_size": view.output_size, "gt_det": gt_det, **more}


def box_radius(sizes: np.ndarray) -> np.ndarray:
    """Return the radius (n,) int64 of the Gaussians of boxes of ``sizes`` (n, 2) width, height in output pixels."""
    width, height = np.ceil(sizes).T
    return gaussian_radius((height, width)).astype(np.int64).clip(min=0)


def gaussian_extent(radius: Tensor, opt: Options) -> tuple[Tensor, Tensor]:
    """Return extent and sigma of the Gaussians that ``draw_gaussians`` draws for ``radius`` (B, N), -1: none."""
    if opt.mse_loss:
        extent = torch.where(radius >= 0, 3 * opt.hm_gauss, -1)
        return extent, torch.full_like(radius, opt.hm_gauss, dtype=torch.float32)
    return radius, (2 * radius + 1) / 6


@dataclass
class Slots:
    """The objects of an image that have targets, in output coordinates.

    Targets are arrays with ``capacity`` (``max_objs``) slots. Slot k belongs to object k, also if others drop out.

    Attributes:
        capacity: number of slots.
        indices: (n,) slot of each object.
        boxes: (n, 4) float32 [x1, y1, x2, y2].
        cls: (n,) int64 class.
        output_width: width of the output maps.
    """

    capacity: int
    indices: np.ndarray
    boxes: np.ndarray
    cls: np.ndarray
    output_width: int

    @classmethod
    def from_boxes(cls, boxes: np.ndarray, classes: np.ndarray, view: View, opt: Options, keep=None) -> "Slots":
        """Keep the objects whose box in output pixels has an area, or those of ``keep`` (n,) bool."""
        classes = classes[: opt.max_objs]
        has_area = (boxes[:, 2:] - boxes[:, :2] > 0).all(1)
        indices = np.flatnonzero(has_area if keep is None else keep(has_area))
        return cls(opt.max_objs, indices, boxes[indices], classes[indices], view.output_size[0])

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sizes(self) -> np.ndarray:
        """Return width and height (n, 2) of the boxes."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def centers(self) -> np.ndarray:
        """Return the centers (n, 2) of the boxes, x and y."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def cells(self) -> np.ndarray:
        """Grid cells (n, 2) int64 of the centers, x and y."""
        return self.centers.astype(np.int64)

    @property
    def offsets(self) -> np.ndarray:
        """Sub-pixel offsets (n, 2) float32 of the centers in their cells."""
        return (self.centers - self.cells).astype(np.float32)

    def index(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., 2) as indices y * W + x into a flat map."""
        return cells[..., 1] * self.output_width + cells[..., 0]

    def fill(self, values: np.ndarray, empty: int = 0, where=slice(None)) -> np.ndarray:
        """Return an array of all slots with ``values`` (n, ...) in those of the objects ``where``."""
        array = np.full((self.capacity, *values.shape[1:]), empty, dtype=values.dtype)
        array[self.indices[where]] = values[where]
        return array
