"""Outlines of objects: COCO's ``segmentation``, polygons or a run-length mask, for ``--copy_paste``."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask


class Outlines:
    """The outlines of all objects of a dataset, in one array, which the loader workers share.

    Crowds have none, because their outline does not separate objects; neither have outlines that are only the
    rectangle of the box.
    """

    def __init__(self, annotations: Sequence[dict]) -> None:
        """Keep the outlines of COCO-style annotations, in their order."""
        texts = [_text(annotation) for annotation in annotations]
        self._content = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, texts)])

    def __len__(self) -> int:
        """Return the number of objects that have an outline."""
        return int(np.count_nonzero(np.diff(self._ends)))

    def of(self, objects: range) -> np.ndarray:
        """Return the outlines (n,) of ``objects`` for :func:`outline_mask`, as an array of bytes; empty: none."""
        outlines = np.empty(len(objects), dtype=object)
        for k, number in enumerate(objects):
            outlines[k] = self._content[self._ends[number] : self._ends[number + 1]].tobytes()
        return outlines


def outline_mask(outline: bytes, height: int, width: int) -> np.ndarray | None:
    """Return the pixels (height, width) bool of an outline, or None if it is empty, malformed or of another size."""
    if not outline:
        return None
    shape = json.loads(outline)
    try:
        if isinstance(shape, list):
            # pycocotools takes four numbers for a box, and draws far outside of the image, however far.
            far = 4 * max(height, width)
            shape = [polygon for polygon in shape if len(polygon) >= 6 and np.abs(polygon).max() <= far]
            runs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(shape, height, width))
        elif shape["size"] != [height, width]:
            return None
        elif isinstance(shape["counts"], list):
            runs = pycocotools.mask.frPyObjects(shape, height, width)
        else:
            runs = shape
        mask = pycocotools.mask.decode(runs).astype(bool)
    except Exception:  # malformed in whichever way: then the object has no outline
        return None
    return mask if mask.any() else None


def _text(annotation: dict) -> bytes:
    shape = annotation.get("segmentation")
    if not isinstance(shape, (list, dict)) or not shape or annotation.get("iscrowd"):
        return b""
    try:
        return b"" if _is_rectangle(shape) else json.dumps(shape, allow_nan=False).encode()
    except (TypeError, ValueError):  # malformed, or not finite
        return b""


def _is_rectangle(shape: Any) -> bool:
    """Return whether a segmentation is one upright rectangle, which converters write where they know only boxes."""
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], list) or len(shape[0]) not in (8, 10):
        return False
    xs, ys = shape[0][0::2], shape[0][1::2]
    return len(set(xs)) == len(set(ys)) == 2
