"""KITTI's ground truth and results of one image as ``Labels``."""

import math

from centernet.evaluation import kitti


def kitti_object(name, box, truncated=0.0, occluded=0, alpha=0.0, dim=(1.5, 2.0, 4.0), loc=(0.0, 1.5, 20.0), ry=0.0):
    return name, truncated, occluded, (alpha, *box, *dim, *loc, ry, math.nan)


def guess(name, box, score, alpha=0.0, dim=(1.5, 2.0, 4.0), loc=(0.0, 1.5, 20.0), ry=0.0):
    return name, 0.0, 0, (alpha, *box, *dim, *loc, ry, score)


def dontcare(box):
    return "DontCare", -1.0, -1, (-10.0, *box, -1, -1, -1, -1000, -1000, -1000, -10, math.nan)


def labels(*objects):
    """Return the Labels of one image from objects of the three functions above."""
    names, truncated, occluded, rows = ([one[k] for one in objects] for k in range(4))
    return kitti._labels(names, truncated, occluded, rows)
