"""KITTI's ground truth and results of one image as ``Labels``."""

import math

import numpy as np

from centernet.evaluation import kitti


def kitti_object(name, box, truncated=0.0, occluded=0, alpha=0.0, dim=(1.5, 2.0, 4.0), loc=(0.0, 1.5, 20.0), ry=0.0):
    return name, truncated, occluded, (alpha, *box, *dim, *loc, ry, math.nan)


def guess(name, box, score, alpha=0.0, dim=(1.5, 2.0, 4.0), loc=(0.0, 1.5, 20.0), ry=0.0):
    return name, 0.0, 0, (alpha, *box, *dim, *loc, ry, score)


def dontcare(box):
    return "DontCare", -1.0, -1, (-10.0, *box, -1, -1, -1, -1000, -1000, -1000, -10, math.nan)


def labels(*objects):
    """Return the Labels of one image from objects of the three functions above."""
    rows = np.array([o[3] for o in objects], dtype=np.float64).reshape(-1, 13)
    return kitti.Labels(
        names=np.array([o[0] for o in objects], dtype="U14"),
        truncated=np.array([o[1] for o in objects], dtype=np.float64),
        occluded=np.array([o[2] for o in objects], dtype=np.int64),
        alpha=rows[:, 0],
        bbox=rows[:, 1:5],
        dimensions=rows[:, 5:8],
        location=rows[:, 8:11],
        rotation_y=rows[:, 11],
        score=rows[:, 12],
    )
