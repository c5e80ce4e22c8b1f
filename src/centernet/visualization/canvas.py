"""An image to draw on: small images are enlarged, lines and labels fit the size, labels do not cover each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .drawing import WHITE_THEME_LIMIT, class_colors

MIN_SIDE = 480  # pixels; an image whose longer side is shorter is enlarged by a whole factor
FAR = 2**14  # pixels; OpenCV draws wrongly where coordinates do not fit into 16 bits
FONT = cv2.FONT_HERSHEY_SIMPLEX
DRAWS_ALL = int(cv2.__version__.partition(".")[0]) >= 5  # earlier versions draw question marks for what is not ASCII
FONT_SCALE = 0.5  # on an image of REFERENCE_SIDE pixels
REFERENCE_SIDE = 640
DARK = 90  # brightness of 255 below which the text of a label is white
Place = tuple[int, int]  # left and top
Corners = tuple[int, int, int, int]  # left, top, right, bottom, inclusive
RINGS = 4  # label heights around its box within which a label looks for a free place


@dataclass
class Label:
    """Text that belongs to a box.

    Attributes:
        text: what is drawn.
        corners: x1, y1, x2, y2 of the box in pixels of the canvas.
        color: of the background, BGR.
    """

    text: str
    corners: Corners
    color: list[int]


class Canvas:
    """A copy of an image with drawings. Coordinates are those of the image before its enlargement.

    Attributes:
        image: (H, W, 3) uint8 in BGR order, enlarged.
        zoom: whole factor of the enlargement.
        theme: value of ``--debugger_theme``.
        unit: line width of detail, in pixels of the canvas; boxes are drawn with twice of it.
        placed: rectangles of the labels that :meth:`finish` has drawn, (n, 4) int x1, y1, x2, y2 with exclusive ends.
    """

    def __init__(self, image: np.ndarray, theme: str = "white") -> None:
        longest = max(image.shape[:2])
        self.zoom = max(1, -(-MIN_SIDE // longest))
        size = (image.shape[1] * self.zoom, image.shape[0] * self.zoom)
        self.image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if self.zoom > 1 else image.copy()
        self.theme = theme
        # The geometric mean: lines of a long strip must not be wider than the strip.
        self.scale = max(1.0, math.sqrt(size[0] * size[1]) / REFERENCE_SIDE)
        self.unit = max(1, round(self.scale))
        self.placed = np.zeros((0, 4), dtype=int)
        self._labels: list[Label] = []

    def color(self, cls: int) -> list[int]:
        """Return the color of boxes of a class, BGR; lighter than in heatmaps for the white theme."""
        color = class_colors(cls + 1, self.theme)[cls]
        return (color + np.uint8(255 - WHITE_THEME_LIMIT) if self.theme == "white" else color).tolist()

    # Shapes

    def boxes(self, rows: np.ndarray, class_names: Sequence[str], threshold: float, scores: bool = True) -> None:
        """Draw boxes whose score exceeds ``threshold``, with labels ``name score``.

        Args:
            rows: (n, 6) x1, y1, x2, y2, score, class from 0. Boxes are clipped to the image; rows that are not finite
                are left out.
            class_names: see ``class_label``.
            scores: whether labels have the score; ground truth has none.
        """
        rows = np.asarray(rows, dtype=np.float64).reshape(-1, 6)
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 4] > threshold)]
        height, width = self.image.shape[:2]
        for *corners, score, cls in rows[np.argsort(rows[:, 4], kind="stable")].tolist():
            cls = int(cls)
            limits = np.array([width, height, width, height]) - 1
            x1, y1, x2, y2 = np.clip(np.array(corners) * self.zoom, 0, limits).astype(int).tolist()
            cv2.rectangle(self.image, (x1, y1), (x2, y2), self.color(cls), 2 * self.unit)
            name = class_label(class_names, cls)
            self._labels.append(Label(f"{name} {score:.2f}" if scores else name, (x1, y1, x2, y2), self.color(cls)))

    def label(self, text: str, points: np.ndarray, color: Sequence[int]) -> None:
        """Label the points (n, 2) of an object at the top left of their bounding box, clipped to the image."""
        height, width = self.image.shape[:2]
        points = np.clip(np.asarray(points) * self.zoom, 0, [width - 1, height - 1]).astype(int)
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        self._labels.append(Label(text, (x1, y1, x2, y2), list(color)))

    def line(self, start: np.ndarray, end: np.ndarray, color: Sequence[int], width: float = 2) -> None:
        """Draw a line of ``width`` units between two points, which may be far outside of the image."""
        ends = np.clip(np.stack([start, end]) * self.zoom, -1e6, 1e6)
        if not np.isfinite(ends).all():
            return
        (height, width_px), margin = self.image.shape[:2], self._width(width)
        frame = (-margin, -margin, width_px + 2 * margin, height + 2 * margin)
        inside, first, last = cv2.clipLine(frame, *ends.astype(int).tolist())
        if inside:
            cv2.line(self.image, first, last, color, self._width(width), cv2.LINE_AA)

    def outline(self, points: np.ndarray, color, width: float = 1) -> None:
        """Draw a closed polygon (n, 2)."""
        cv2.polylines(self.image, [np.array(self._pixels(points))], True, color, self._width(width), cv2.LINE_AA)

    def disc(self, point, color, radius: float = 3, edge: Sequence[int] | None = None) -> None:
        """Draw a filled disc of ``radius`` units, with an edge in another color if one is given."""
        ((x, y),) = self._pixels([point])
        cv2.circle(self.image, (x, y), self._width(radius), color, cv2.FILLED, cv2.LINE_AA)
        if edge is not None:
            cv2.circle(self.image, (x, y), self._width(radius), edge, self.unit, cv2.LINE_AA)

    def _width(self, units: float) -> int:
        return max(1, round(units * self.unit))

    def _pixels(self, points) -> list[list[int]]:
        pixels = np.asarray(points, dtype=np.float64).reshape(-1, 2) * self.zoom
        return np.clip(pixels, -FAR, FAR).astype(int).tolist()

    # Labels

    def finish(self) -> np.ndarray:
        """Draw the labels and return the image.

        The last box chooses first: it has the best score. A label that finds no free place near its box is drawn where
        there is one, with a line to its box; only where the image is full is it left out.
        """
        placed = [(label, *place) for label in reversed(self._labels) if (place := self._place(label)) is not None]
        for label, corners, _, is_near in placed:
            if not is_near:
                ends = nearest_points(corners, label.corners)
                cv2.line(self.image, *ends, label.color, self.unit, cv2.LINE_AA)
        for label, corners, text_scale, _ in placed:
            self._draw_label(label, corners, text_scale)
        self._labels.clear()
        return self.image

    def _place(self, label: Label) -> tuple[Corners, float, bool] | None:
        """Return corners and font scale of a label, and whether it is near its box; None if there is no free place."""
        height, width = self.image.shape[:2]
        margin, scale = 2 * self.unit, FONT_SCALE * self.scale
        (text_width, text_height), below = cv2.getTextSize(label.text, FONT, scale, self.unit)
        if text_width + 2 * margin > width:
            scale *= max(1, width - 2 * margin) / text_width
            (text_width, text_height), below = cv2.getTextSize(label.text, FONT, scale, self.unit)
        size = min(width, text_width + 2 * margin), min(height, text_height + below + 2 * margin)
        place = near = self._first_free(self._near_places(label.corners, size), size)
        if place is None:
            place = self._first_free(self._distant_places(label.corners, size), size)
        if place is None:
            return None
        corners = (*place, place[0] + size[0] - 1, place[1] + size[1] - 1)
        self.placed = np.vstack([self.placed, [*place, corners[2] + 1, corners[3] + 1]])
        return corners, scale, near is not None

    def _draw_label(self, label: Label, corners: Corners, scale: float) -> None:
        left, top, right, bottom = corners
        cv2.rectangle(self.image, (left, top), (right, bottom), label.color, cv2.FILLED)
        text_color = (255, 255, 255) if np.dot(label.color, (0.114, 0.587, 0.299)) < DARK else (0, 0, 0)
        (_, text_height), _ = cv2.getTextSize(label.text, FONT, scale, self.unit)
        baseline = left + 2 * self.unit, top + 2 * self.unit + text_height
        cv2.putText(self.image, label.text, baseline, FONT, scale, text_color, self.unit, cv2.LINE_AA)

    def _near_places(self, corners: Corners, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return left and top of places on and around a box (n, 2), best first."""
        (x1, y1, x2, y2), (label_width, label_height) = corners, size
        above, below, right = y1 - label_height, y2 + 1, x2 - label_width + 1
        places = [(x1, above), (right, above), (x1, y1), (x1, below), (right, below), (right, y1)]
        places += [(x1, y2 - label_height + 1), (x2 + 1, y1), (x1 - label_width, y1)]
        middle = (x1 + x2 - label_width) // 2
        for ring in range(1, RINGS + 1):
            step = ring * label_height
            places += [(x, y) for y in (above - step, y1 + step, below + step) for x in (x1, middle, right)]
            places += [(x, y1 + step) for x in (x1 - label_width, x2 + 1)]
        return places

    def _distant_places(self, corners: Corners, size: tuple[int, int]) -> np.ndarray:
        """Return left and top of places all over the image (n, 2), nearest to the box first."""
        height, width = self.image.shape[:2]
        lefts = np.arange(0, max(1, width - size[0]), max(1, size[0] // 4))
        tops = np.arange(0, max(1, height - size[1]), size[1])
        places = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)
        middles, middle = places + np.array(size) / 2, np.array([corners[0] + corners[2], corners[1] + corners[3]]) / 2
        return places[np.argsort(((middles - middle) ** 2).sum(axis=1), kind="stable")]

    def _first_free(self, places: Sequence[tuple[int, int]] | np.ndarray, size: tuple[int, int]) -> Place | None:
        """Return the first of some places, moved into the image, where a label covers no other; None if all do."""
        height, width = self.image.shape[:2]
        lefts, tops = np.clip(places, 0, [width - size[0], height - size[1]]).T
        taken = self.placed.T[:, None, :]
        covers = (lefts[:, None] < taken[2]) & (lefts[:, None] + size[0] > taken[0])
        covers &= (tops[:, None] < taken[3]) & (tops[:, None] + size[1] > taken[1])
        free = np.flatnonzero(~covers.any(axis=1))
        return (int(lefts[free[0]]), int(tops[free[0]])) if len(free) else None


def class_label(class_names: Sequence[str], cls: int) -> str:
    """Return the name of a class, or its number from 0 if it has none, or one that this OpenCV cannot draw."""
    is_drawn = cls < len(class_names) and (DRAWS_ALL or class_names[cls].isascii())
    return class_names[cls] if is_drawn else str(cls)


def nearest_points(one: Corners, other: Corners) -> tuple[Place, Place]:
    """Return the points of two rectangles that are next to each other."""
    ends = []
    for k in (0, 1):
        low, high = max(one[k], other[k]), min(one[k + 2], other[k + 2])
        middle = (low + high) // 2
        ends.append((middle, middle) if low <= high else (low, high) if one[k] > other[k] else (high, low))
    return (ends[0][0], ends[1][0]), (ends[0][1], ends[1][1])


def draw_boxes(
    image: np.ndarray,
    detections: np.ndarray,
    class_names: Sequence[str],
    threshold: float,
    theme: str,
    scores: bool = True,
) -> np.ndarray:
    """Return a copy of an image, enlarged if it is small, with boxes and labels; arguments as for ``Canvas.boxes``."""
    canvas = Canvas(image, theme)
    canvas.boxes(detections, class_names, threshold, scores)
    return canvas.finish()
