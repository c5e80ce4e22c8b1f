"""Boxes and labels on images of any size."""

import cv2
import numpy as np
import pytest

from centernet.visualization import Canvas, class_colors, draw_boxes
from centernet.visualization import canvas as module
from centernet.visualization.canvas import class_label, nearest_points

THEMES = ("white", "black")
NAMES = ["person", "dining table", "cat", "traffic light", "bird"]


def gray(height=360, width=600):
    return np.full((height, width, 3), 90, dtype=np.uint8)


def changed(image, result):
    """Bounding box (x1, y1, x2, y2) of the pixels that differ."""
    ys, xs = np.nonzero((image != result).any(axis=2))
    return xs.min(), ys.min(), xs.max(), ys.max()


@pytest.mark.parametrize("theme", THEMES)
def test_boxes(theme):
    image = gray()
    dets = np.array([[50, 60, 120, 100, 0.9, 1], [5, 60, 40, 100, 0.3, 0], [5, 60, 40, 100, 0.2, 0]])
    result = draw_boxes(image, dets, ["cat", "dog"], 0.3, theme)
    assert (image == 90).all()
    x1, y1, x2, y2 = changed(image, result)
    assert 48 <= x1 <= 50
    assert 100 <= y2 <= 102
    assert 119 <= x2 <= 140
    assert 35 <= y1 < 50  # the label above the box
    color = class_colors(2, theme)[1].astype(int) + (102 if theme == "white" else 0)
    assert result[100, 80].tolist() == result[80, 50].tolist() == color.tolist()
    assert (result[75, 85] == 90).all()


# Where a box can touch the border, whether a label fits above it or not, and a box outside the image.
BORDER_BOXES = [
    (-20, -20, 40, 40), (570, -10, 660, 50), (-30, 340, 20, 400), (590, 350, 630, 390),
    (0, 0, 599, 359), (595, 0, 599, 4), (0, 358, 3, 359), (900, 900, 990, 990), (-1e12, 50, 1e12, 60),
]  # fmt: skip


@pytest.mark.parametrize("box", BORDER_BOXES)
@pytest.mark.parametrize("name", ["a", "dining table"])
def test_labels_stay_inside(box, name):
    """The whole label is there: as many text pixels as in the middle of the image, as nothing crosses it."""

    def text_pixels(box):
        result = draw_boxes(gray(), [[*box, 0.85, 0]], [name], 0.3, "white")
        return (result.astype(int).sum(axis=2) < 150).sum()

    assert text_pixels(box) == text_pixels((60, 60, 110, 110)) > 20


def test_names_that_opencv_cannot_draw_become_numbers(monkeypatch):
    names = ["cat", "\u732b", "B\u00e4r"]  # OpenCV 4 draws them as ??? and B??r
    monkeypatch.setattr(module, "DRAWS_ALL", False)
    assert [class_label(names, cls) for cls in range(4)] == ["cat", "1", "2", "3"]
    box = [[50, 60, 120, 100, 0.9, 1]]
    expected = draw_boxes(gray(), box, ["cat", "1"], 0.3, "white")
    assert np.array_equal(draw_boxes(gray(), box, names, 0.3, "white"), expected)
    monkeypatch.setattr(module, "DRAWS_ALL", True)
    assert [class_label(names, cls) for cls in range(4)] == [*names, "3"]


def test_dark_colors_have_light_labels():
    for category in range(40):
        result = draw_boxes(gray(), [[20, 60, 150, 100, 0.9, category]], [], 0.3, "black")
        brightness = np.dot(class_colors(40, "black")[category], (0.114, 0.587, 0.299))
        # The label of a one-word name is left of x = 60; its text is black or white, far from its ground.
        label = cv2.cvtColor(result[40:58, 20:60], cv2.COLOR_BGR2GRAY).astype(int)
        assert np.abs(label - brightness).max() > 60


def test_long_labels_and_tiny_images():
    for height, width, zoom in ((480, 60, 1), (10, 12, 40), (1, 1, 480)):
        result = draw_boxes(gray(height, width), [[0, 0, 9, 9, 0.9, 0]], ["an unusually long name"], 0.3, "white")
        assert result.shape == (height * zoom, width * zoom, 3)


def test_odd_detections():
    assert (draw_boxes(gray(), [], ["cat"], 0.3, "white") == 90).all()
    assert (draw_boxes(gray(), np.zeros((0, 6), dtype=np.float32), [], 0.3, "white") == 90).all()
    bad = [[np.nan, 0, 5, 5, 0.9, 0], [0, 0, np.inf, 5, 0.9, 0], [0, 0, 5, 5, np.nan, 0]]
    assert (draw_boxes(gray(), bad, ["cat"], 0.3, "white") == 90).all()
    assert (draw_boxes(gray(), [[9, 60, 50, 90, 0.9, 1500]], ["cat"], 0.3, "white") != 90).any()


def crowd(side, count, seed=0):
    """Boxes of all sizes at random places, (count, 6)."""
    rng = np.random.default_rng(seed)
    center, size = rng.uniform(0, side, (count, 2)), rng.uniform(0.02, 0.5, (count, 2)) * side
    columns = [center - size / 2, center + size / 2, rng.uniform(0.3, 1, (count, 1)), rng.integers(0, 5, (count, 1))]
    return np.hstack(columns)


@pytest.mark.parametrize("side", [96, 640, 3000])
@pytest.mark.parametrize(("count", "least"), [(8, 8), (30, 30), (100, 50)])
def test_labels_do_not_cover_each_other(side, count, least):
    canvas = Canvas(gray(side, side))
    canvas.boxes(crowd(side, count), NAMES, 0)
    image = canvas.finish()
    x1, y1, x2, y2 = canvas.placed.T
    assert least <= len(canvas.placed) <= count
    assert min(x1.min(), y1.min()) >= 0 and x2.max() <= image.shape[1] and y2.max() <= image.shape[0]
    for k in range(len(canvas.placed)):
        covers = (x1 < x2[k]) & (x2 > x1[k]) & (y1 < y2[k]) & (y2 > y1[k])
        assert covers.sum() == 1  # itself


@pytest.mark.parametrize("side", [96, 640, 3000])
def test_a_line_leads_to_a_label_that_has_no_place_near_its_box(side):
    """Thirty boxes at one place: the labels that are not near it are connected to it."""
    box = np.array([0.4, 0.4, 0.43, 0.43]) * side
    canvas = Canvas(gray(side, side))
    canvas.boxes([[*box, 0.9 - k / 100, k % 2] for k in range(30)], NAMES, 0)
    image = canvas.finish()
    assert len(canvas.placed) == 30
    corners = (box * canvas.zoom).astype(int)
    distances = [
        np.hypot(*np.subtract(*nearest_points((*rect[:2], *(rect[2:] - 1)), corners))) for rect in canvas.placed
    ]
    far = np.flatnonzero(np.array(distances) > 6 * np.diff(canvas.placed[0][[1, 3]]))
    assert len(far) >= 2
    for k in far:
        start, end = nearest_points((*canvas.placed[k][:2], *(canvas.placed[k][2:] - 1)), corners)
        points = np.rint(np.linspace(start, end, 200)).astype(int)
        outside = ~((points[:, None] >= canvas.placed[:, :2]) & (points[:, None] < canvas.placed[:, 2:])).all(2).any(1)
        assert outside.any() and (image[points[outside, 1], points[outside, 0]] != 90).any(1).all()


def test_nearest_points():
    assert nearest_points((0, 0, 9, 9), (20, 5, 30, 7)) == ((9, 6), (20, 6))
    assert nearest_points((40, 40, 50, 50), (0, 0, 10, 10)) == ((40, 40), (10, 10))
    assert nearest_points((0, 40, 10, 50), (30, 0, 40, 10)) == ((10, 40), (30, 10))


def test_the_best_box_chooses_the_place_of_its_label_first():
    boxes = [[100, 100, 200, 200, 0.5, 0], [100, 100, 200, 200, 0.9, 1]]
    canvas = Canvas(gray())
    canvas.boxes(boxes, NAMES, 0)
    canvas.finish()
    (left, _, _, bottom), other = canvas.placed.tolist()
    assert (left, bottom) == (100, 100) and other != canvas.placed[0].tolist()


def test_lines_are_narrower_than_a_strip():
    image = gray(30, 20000)
    result = draw_boxes(image, [[9000, 5, 9100, 25, 0.9, 0]], [""], 0.3, "white", scores=False)
    assert (result[8:22, 9060:9090] == 90).all() and (result[5, 9000:9100] != 90).any(axis=1).all()


@pytest.mark.parametrize(("side", "size", "unit"), [(96, 480, 1), (200, 600, 1), (480, 480, 1), (640, 640, 1)])
def test_small_images_are_enlarged(side, size, unit):
    canvas = Canvas(gray(side, side))
    assert canvas.image.shape == (size, size, 3) and canvas.unit == unit
    canvas.boxes([[side / 2, side / 2, side, side, 0.9, 0]], [""], 0, scores=False)
    ys, xs = np.nonzero((canvas.finish() != 90).any(2))
    assert xs.min() == pytest.approx(size / 2, abs=2) and ys.max() == size - 1


def test_lines_and_text_grow_with_the_image():
    heights = {}
    for side in (640, 1280, 3000):
        canvas = Canvas(gray(side, side))
        canvas.boxes([[side / 3, side / 3, side / 2, side / 2, 0.9, 0]], NAMES, 0)
        canvas.finish()
        ((_, top, _, bottom),) = canvas.placed
        heights[side] = bottom - top
        assert canvas.unit == round(side / 640)
    assert heights[1280] == pytest.approx(2 * heights[640], rel=0.2)
    assert heights[3000] == pytest.approx(3000 / 640 * heights[640], rel=0.2)


def test_ground_truth_has_no_scores(monkeypatch):
    texts = []
    monkeypatch.setattr(module.cv2, "putText", lambda image, text, *_: texts.append(text))
    rows = [[10, 40, 90, 90, 1, 0], [200, 40, 290, 90, 1, 7]]
    draw_boxes(gray(), rows, ["cat"], 0.3, "white", scores=False)
    draw_boxes(gray(), rows[:1], ["cat"], 0.3, "white")
    assert texts == ["7", "cat", "cat 1.00"]


def test_lines_that_leave_the_image():
    image = gray()
    canvas = Canvas(image)
    canvas.line(np.array([-1e9, 180.0]), np.array([1e9, 180.0]), (0, 0, 255))
    canvas.line(np.array([np.nan, 5]), np.array([5.0, 5]), (0, 0, 255))
    drawn = (canvas.finish() != image).any(2)
    assert drawn[180].all() and not drawn[:170].any()
