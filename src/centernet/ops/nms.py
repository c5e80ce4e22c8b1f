"""Non-maximum suppression in NumPy: the greedy one and Soft-NMS (Bodla et al., ICCV 2017, arXiv 1704.04503).

The three Soft-NMS functions work in place on float32 arrays exactly as the reference's compiled ones do, to rounding:
sorted rows first, and behind them the slots that discarded rows have left. Such a slot is not cleared: it keeps the
row that was moved forward to fill the gap, with the score it had then. Use ``boxes[:len(keep)]`` to have the
survivors alone.
"""

import numpy as np


def nms(dets: np.ndarray, thresh: float) -> list[int]:
    """Greedy suppression. Returns the indices of the kept rows of ``dets`` in order of falling score.

    ``dets`` (n, 5) float32 rows [x1, y1, x2, y2, score] in pixels, left as they are. A row goes if a kept one
    overlaps it by ``thresh`` or more, where widths and heights are inclusive (+1).
    """
    order = np.argsort(dets[:, 4])[::-1]
    keep = []
    while len(order):
        first, order = order[0], order[1:]
        keep.append(int(first))
        overlap, _ = _overlaps(dets[first], dets[order])
        # Written so that a row whose overlap is NaN stays, as in the reference.
        order = order[~(overlap >= thresh)]
    return keep


def soft_nms(
    boxes: np.ndarray,
    sigma: float = 0.5,
    Nt: float = 0.3,
    threshold: float = 0.001,
    method: int = 0,
    moved_columns: int = 5,
) -> list[int]:
    """Lower the scores of rows that overlap better ones, sort, and discard what falls below ``threshold``; in place.

    ``boxes`` (n, 5 or more) float32 rows [x1, y1, x2, y2, score, ...] in pixels. The first ``moved_columns`` follow
    their row in sorting; further columns keep their place.
    ``method`` 1 multiplies a score by 1 - overlap where the overlap exceeds ``Nt``, 2 by exp(-overlap² / ``sigma``),
    any other by 0 where the overlap exceeds ``Nt``. Rows that overlap nothing are never discarded, however low their
    score.

    Returns ``[0, ..., kept - 1]``, the indices of the kept rows after sorting (reference function ``soft_nms``).
    Raises ``ValueError`` for anything but a 2-dimensional float32 array of at least 5 columns.
    """
    return _soft_nms(boxes, moved_columns, sigma, Nt, threshold, method)


def soft_nms_39(
    boxes: np.ndarray, sigma: float = 0.5, Nt: float = 0.3, threshold: float = 0.001, method: int = 0
) -> list[int]:
    """Apply :func:`soft_nms` to rows (n, 39) [box, score, 17 joints (x, y)] of poses; the joints follow their box.

    Behind the kept rows, where :func:`soft_nms` leaves copies, boxes and scores are copies too, but the joints are
    those of discarded rows (reference function ``soft_nms_39``).
    """
    return soft_nms(boxes, sigma, Nt, threshold, method, moved_columns=39)


def soft_nms_merge(
    boxes: np.ndarray,
    sigma: float = 0.5,
    Nt: float = 0.3,
    threshold: float = 0.001,
    method: int = 0,
    weight_exp: float = 6,
) -> list[int]:
    """Apply :func:`soft_nms`, and move every kept box to the weighted mean of the boxes that it suppresses.

    ``boxes`` (n, 7) float32 rows [x1, y1, x2, y2, score, weight of (x1, y1), weight of (x2, y2)]. A suppressed box
    takes part with its weights times (1 - decay) ** ``weight_exp``. As in the reference function of this name the two
    weights belong to the slot: they are not moved together with the box.
    """
    return _soft_nms(boxes, 5, sigma, Nt, threshold, method, weight_exp)


def _soft_nms(boxes, columns: int, sigma, Nt, threshold, method, weight_exp=None) -> list[int]:
    """Run the common loop. The first ``columns`` columns are exchanged in sorting; ``weight_exp`` enables merging."""
    needed = columns if weight_exp is None else 7
    if not isinstance(boxes, np.ndarray) or boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] < needed:
        raise ValueError(f"boxes must be a float32 array of {needed} columns or more")
    count, i = len(boxes), 0
    while i < count:
        best = i + int(np.argmax(boxes[i:count, 4]))
        boxes[[i, best], :columns] = boxes[[best, i], :columns]

        rest = boxes[i + 1 : count]
        overlap, touching = _overlaps(boxes[i], rest)
        decay = _decay(overlap, sigma, Nt, method)
        decayed = rest[:, :5].copy()
        decayed[:, 4] *= decay
        discard = touching & (decayed[:, 4] < threshold)
        source, looked_at, exchanged, kept, written = _fill_gaps(discard)

        if weight_exp is not None:
            share = np.where(touching, (1 - decay) ** weight_exp, 0)
            boxes[i, :4] = _merge(boxes[i], rest, rest[looked_at, 5:7], share)
        rest[:written, :5] = decayed[source[:written]]
        if columns > 5 and kept < len(rest):
            rest[:, 5:columns] = rest[exchanged, 5:columns]
        count = i + 1 + kept
        i += 1
    return list(range(count))


def _overlaps(box: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of one box with (n, 4 or more) others, and where they meet at all."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0]) + 1
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1]) + 1
    touching = (width > 0) & (height > 0)
    intersection = np.where(touching, width * height, 0)
    area = (others[:, 2] - others[:, 0] + 1) * (others[:, 3] - others[:, 1] + 1)
    union = (box[2] - box[0] + 1) * (box[3] - box[1] + 1) + area - intersection
    return intersection / np.where(touching, union, 1), touching


def _decay(overlap: np.ndarray, sigma: float, Nt: float, method: int) -> np.ndarray:
    if method == 2:
        return np.exp(-(overlap * overlap) / np.float32(sigma))
    return np.where(overlap > Nt, 1 - overlap if method == 1 else np.float32(0), np.float32(1))


def _fill_gaps(discard: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Return the positions of rows when each discarded one is overwritten by the last, which is then examined there.

    Returns the row that ends up in each slot, the slot in which each row is looked at, the order of columns that are
    exchanged instead of copied, the number of rows kept, and the number of slots that hold a row with its new score.
    """
    source = np.arange(len(discard))
    looked_at, exchanged = source.copy(), source.copy()
    end = written = len(discard)
    for gap in np.flatnonzero(discard):
        if gap >= end:
            break
        while discard[source[gap]]:
            end -= 1
            # The last row overwrites itself: its slot, behind the kept ones now, has the new score all the same.
            written = max(end, gap + 1)
            if end == gap:
                break
            source[gap] = end
            looked_at[end] = gap
            exchanged[[gap, end]] = exchanged[[end, gap]]
    return source, looked_at, exchanged, end, written


def _merge(box: np.ndarray, others: np.ndarray, weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean of the corners of ``box`` and ``others`` by their two weights, those of the others times ``share``."""
    weights = np.concatenate((box[None, 5:7], weights * share[:, None])).astype(np.float64).repeat(2, axis=1)
    corners = np.concatenate((box[None, :4], others[:, :4]))
    return (corners * weights).sum(axis=0) / weights.sum(axis=0)
