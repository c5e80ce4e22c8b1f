"""KITTI scores: by hand for small cases, and against the same rules in plain loops for random scenes."""

import functools
import math

import numpy as np
import pytest
from tests.helpers.kitti_labels import dontcare, guess, kitti_object, labels
from tests.helpers.timing import growth

from centernet.errors import UserError
from centernet.evaluation import kitti


def score(truth, found, metric="AP2D", name="Car", **options):
    """The scores of one class and metric; ``truth`` and ``found`` are lists of images, lists of objects."""
    result = kitti.evaluate([labels(*p) for p in truth], [labels(*p) for p in found], [name], **options)
    return result[name][metric]


# The rules in plain loops


def slow_corners(x, z, length, width, angle):
    c, s = math.cos(angle), math.sin(angle)
    ends = ((length / 2, width / 2), (length / 2, -width / 2), (-length / 2, -width / 2), (-length / 2, width / 2))
    return [(x + c * a + s * b, z - s * a + c * b) for a, b in ends]


def slow_inside(point, corners):
    signs = []
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        signs.append((x2 - x1) * (point[1] - y1) - (y2 - y1) * (point[0] - x1))
    return all(v >= -1e-12 for v in signs) or all(v <= 1e-12 for v in signs)


def slow_rotated_intersection(a, b):
    """The convex hull's corners: those of one rectangle in the other, and where sides cross; then the shoelace."""
    one, two = slow_corners(*a), slow_corners(*b)
    points = [p for p in one if slow_inside(p, two)] + [p for p in two if slow_inside(p, one)]
    for (x1, y1), (x2, y2) in zip(one, one[1:] + one[:1], strict=True):
        for (x3, y3), (x4, y4) in zip(two, two[1:] + two[:1], strict=True):
            det = (x2 - x1) * (y4 - y3) - (y2 - y1) * (x4 - x3)
            if abs(det) > 1e-12:
                t = ((x3 - x1) * (y4 - y3) - (y3 - y1) * (x4 - x3)) / det
                u = ((x3 - x1) * (y2 - y1) - (y3 - y1) * (x2 - x1)) / det
                if 0 <= t <= 1 and 0 <= u <= 1:
                    points.append((x1 + t * (x2 - x1), y1 + t * (y2 - y1)))
    if len(points) < 3:
        return 0.0
    mx, my = sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)
    points.sort(key=lambda p: math.atan2(p[1] - my, p[0] - mx))
    area = 0.0
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        area += (x1 - mx) * (y2 - my) - (x2 - mx) * (y1 - my)
    return abs(area) / 2


@functools.lru_cache(maxsize=100_000)
def slow_overlap(metric, d, o, of_detection_only=False):
    """``d`` and ``o`` are the 13 numbers of a detection and an object."""
    if metric == "AP2D":
        w, h = min(d[3], o[3]) - max(d[1], o[1]), min(d[4], o[4]) - max(d[2], o[2])
        if w <= 0 or h <= 0:
            return 0.0
        inter = w * h
        size_d, size_o = (d[3] - d[1]) * (d[4] - d[2]), (o[3] - o[1]) * (o[4] - o[2])
    else:
        inter = slow_rotated_intersection((d[8], d[10], d[7], d[6], d[11]), (o[8], o[10], o[7], o[6], o[11]))
        size_d, size_o = d[7] * d[6], o[7] * o[6]
        if metric == "AP3D":
            inter *= max(0.0, min(d[9], o[9]) - max(d[9] - d[5], o[9] - o[5]))
            size_d, size_o = size_d * d[5], size_o * o[5]
    return inter / (size_d if of_detection_only else size_d + size_o - inter)


def slow_image(truth, found, metric, name, level, least, threshold=None):
    """Return true and false positives and misses of one image: scores of the right, tp, fp, fn, similarity."""
    neighbor = {"Car": "Van", "Pedestrian": "Person_sitting"}.get(name)
    states = []
    for label, truncated, occluded, row in truth:
        hard = occluded > (0, 1, 2)[level] or truncated > (0.15, 0.3, 0.5)[level]
        hard = hard or row[4] - row[2] < (40, 25, 25)[level]
        states.append((1 if hard else 0) if label == name else 1 if label == neighbor else -1)
    of_found = []
    for label, _, _, row in found:
        low = int(abs(row[2] - row[4])) < (40, 25, 25)[level]
        of_found.append(1 if low else 0 if label == name else -1)
    below = [threshold is not None and row[12] < threshold for _, _, _, row in found]
    taken = [False] * len(found)
    scores, alike, missed = [], 0.0, 0
    for (_, _, _, o), state in zip(truth, states, strict=True):
        if state == -1:
            continue
        best = None
        for j, (_, _, _, d) in enumerate(found):
            if of_found[j] == -1 or taken[j] or below[j]:
                continue
            overlap = slow_overlap(metric, d, o)
            if not overlap > least:
                continue
            if threshold is None:
                if best is None or d[12] > found[best][3][12]:
                    best = j
            elif of_found[j] == 0:
                if best is None or of_found[best] == 1 or overlap > slow_overlap(metric, found[best][3], o):
                    best = j
            elif best is None:
                best = j
        if best is None:
            missed += state == 0
            continue
        taken[best] = True
        if state == 0 and of_found[best] == 0:
            scores.append(found[best][3][12])
            alike += (1 + math.cos(o[0] - found[best][3][0])) / 2
    wrong = 0
    for j, (_, _, _, d) in enumerate(found):
        if of_found[j] == 0 and not taken[j] and not below[j]:
            areas = [row for label, _, _, row in truth if label == "DontCare"]
            wrong += not any(slow_overlap(metric, d, area, True) > least for area in areas)
    return scores, len(scores), wrong, missed, alike, sum(state == 0 for state in states)


def slow_curve(truth, found, metric, name, level, least):
    first = [slow_image(t, f, metric, name, level, least) for t, f in zip(truth, found, strict=True)]
    count = sum(image[5] for image in first)
    scores = sorted((s for image in first for s in image[0]), reverse=True)
    thresholds, recall = [], 0.0
    for i, value in enumerate(scores):
        left = (i + 1) / count
        right = (i + 2) / count if i < len(scores) - 1 else left
        if right - recall < recall - left and i < len(scores) - 1:
            continue
        thresholds.append(value)
        recall += 1 / 40
    precision, similarity = [0.0] * 41, [0.0] * 41
    for k, threshold in enumerate(thresholds):
        each = [slow_image(t, f, metric, name, level, least, threshold) for t, f in zip(truth, found, strict=True)]
        tp, fp, alike = (sum(image[i] for image in each) for i in (1, 2, 4))
        if tp + fp:
            precision[k], similarity[k] = tp / (tp + fp), alike / (tp + fp)
    for curve in (precision, similarity):
        for k in range(40):
            curve[k] = max(curve[k:])
    return precision, similarity


def scene(rng, images):
    """Random objects and detections: many near misses, doubles, low ones, neighbors, DontCare, equal scores."""
    kinds = ["Car"] * 4 + ["Pedestrian", "Cyclist"] * 2 + ["Van", "Person_sitting", "Truck", "DontCare"]
    truth, found = [], []
    for _ in range(images):
        objects, guesses = [], []
        for _ in range(rng.integers(0, 8)):
            name = rng.choice(kinds)
            x, y = rng.uniform(0, 900), rng.uniform(100, 200)
            w, h = rng.uniform(20, 150), rng.choice([rng.uniform(15, 60), rng.uniform(40, 150), 25.0, 40.0])
            box = (x, y, x + w, y + h)
            if name == "DontCare":
                objects.append(dontcare(box))
                for _ in range(rng.integers(0, 3)):
                    inner = (x + rng.uniform(-10, 10), y, x + w * rng.uniform(0.5, 1.5), y + h)
                    guesses.append(guess("Car", inner, rng.integers(1, 100) / 100, loc=(rng.uniform(-9, 9), 1, 60)))
                continue
            dim = rng.uniform([1.2, 1.2, 3], [2, 2, 5])
            loc = rng.uniform([-10, 1, 5], [10, 2, 40])
            ry, alpha = rng.uniform(-math.pi, math.pi, 2)
            truncated, occluded = rng.choice([0.0, 0.0, 0.0, 0.2, 0.4, 0.7]), rng.choice([0, 0, 0, 1, 2, 3])
            objects.append(kitti_object(name, box, truncated, occluded, alpha, dim, loc, ry))
            for _ in range(rng.integers(0, 4)):
                spread = rng.choice([0.0, 0.02, 0.1, 0.2])
                moved = np.array(box) + rng.normal(0, spread, 4) * [w, h, w, h]
                label = rng.choice([name, name, name, "Car", "Pedestrian"])
                label = {"Van": "Car", "Person_sitting": "Pedestrian"}.get(label, label)
                size = np.array(dim) * np.exp(rng.normal(0, spread, 3))
                place = np.array(loc) + rng.normal(0, spread, 3) * size[[2, 0, 2]]
                turn = ry + rng.choice([0.0, math.pi, rng.normal(0, spread)])
                value = rng.integers(1, 100) / 100  # ties happen
                for _ in range(rng.choice([1, 1, 1, 2])):
                    guesses.append(guess(label, moved, value, alpha + rng.normal(), size, place, turn))
        if rng.random() < 0.5:
            x, y = rng.uniform(0, 900), rng.uniform(100, 200)
            guesses.append(guess("Car", (x, y, x + 60, y + 50), rng.random()))
        truth.append(objects)
        found.append([guesses[i] for i in rng.permutation(len(guesses))])
    return truth, found


@pytest.mark.parametrize("overlaps", ["official", "reference"])
@pytest.mark.parametrize("seed", range(3))
def test_random_scenes_against_plain_loops(overlaps, seed):
    truth, found = scene(np.random.default_rng(seed), 60)
    result = kitti.evaluate([labels(*p) for p in truth], [labels(*p) for p in found], overlaps=overlaps)
    ground = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
    mild = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}
    numbers = 0
    for name in kitti.CLASSES:
        for metric in ("AP2D", "APBEV", "AP3D"):
            least = (mild if overlaps == "reference" and metric != "AP2D" else ground)[name]
            for level in range(3):
                precision, similarity = slow_curve(truth, found, metric, name, level, least)
                np.testing.assert_allclose(result[name][metric]["precision"][level], precision, rtol=0, atol=1e-9)
                numbers += np.count_nonzero(precision)
                ap = result[name][metric]["ap"]
                assert ap[11][level] == pytest.approx(sum(precision[0:41:4]) / 11, abs=1e-9)
                assert ap[40][level] == pytest.approx(sum(precision[1:]) / 40, abs=1e-9)
                if metric == "AP2D":
                    np.testing.assert_allclose(result[name]["AOS"]["precision"][level], similarity, rtol=0, atol=1e-9)
    assert numbers > 200  # the scenes are neither empty nor trivial


def test_few_pairs_at_once_change_nothing(monkeypatch):
    truth, found = scene(np.random.default_rng(5), 20)
    arguments = [labels(*p) for p in truth], [labels(*p) for p in found]
    whole = kitti.named_scores(kitti.evaluate(*arguments))
    monkeypatch.setattr(kitti, "PAIRS_AT_ONCE", 7)
    assert kitti.named_scores(kitti.evaluate(*arguments)) == whole
    assert any(0 < value < 1 for value in whole.values())


# Rotated rectangles


@pytest.mark.parametrize(
    ("a", "b", "area"),
    [
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, 0), 4.0),
        ((0, 0, 2, 2, 0.3), (0, 0, 2, 2, 0.3), 4.0),
        ((5, 9, 4, 2, 0.3), (5, 9, 4, 2, 0.3 + math.pi), 8.0),
        ((0, 0, 2, 2, 0), (1, 0.5, 2, 2, 0), 1.0 * 1.5),
        ((0, 0, 4, 1, 0), (0, 0, 4, 1, math.pi / 2), 1.0),  # a cross
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, math.pi / 4), 8 * (math.sqrt(2) - 1)),  # a regular octagon
        ((0, 0, 2, 2, 0), (0, 0, 1, 1, math.pi / 4), 1.0),  # the small one within
        ((0, 0, 2, 2, 0), (0, 0, 4, 4, math.pi / 4), 4.0),  # and around
        ((0, 0, 2, 2, 0), (1, 1, 2, 2, math.pi / 4), 1.0),  # a quarter of a diamond of area 4
        ((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0.0),  # side to side
        ((0, 0, 2, 2, 0), (2, 2, 2, 2, 0), 0.0),  # corner to corner
        ((0, 0, 2, 2, 0), (9, 0, 2, 2, 1), 0.0),
        ((0, 0, 2, 0, 0), (0, 0, 2, 2, 0), 0.0),  # without width
        # The angle turns x towards -z: a long object at -45 degrees points to +x +z and covers the small square there.
        ((0, 0, 20, 2, -math.pi / 4), (5, 5, 1, 1, -math.pi / 4), 1.0),
        ((0, 0, 20, 2, math.pi / 4), (5, 5, 1, 1, math.pi / 4), 0.0),
    ],
)
def test_rotated_intersection_by_hand(a, b, area):
    a, b = np.array([a], np.float64), np.array([b], np.float64)
    assert kitti.rotated_intersection(a, b)[0] == pytest.approx(area, abs=1e-12)
    assert kitti.rotated_intersection(b, a)[0] == pytest.approx(area, abs=1e-12)


def test_rotated_intersection_against_plain_loops():
    rng = np.random.default_rng(1)
    a, b = (rng.uniform([-2, -2, 0.1, 0.1, -4], [2, 2, 5, 5, 4], (3000, 5)) for _ in range(2))
    b[::5, 4] = a[::5, 4] + rng.integers(-2, 3, 600) * math.pi / 2  # parallel sides
    b[::10, :2] = a[::10, :2]
    expected = [slow_rotated_intersection(p, q) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(kitti.rotated_intersection(a, b), expected, rtol=0, atol=1e-9)
    assert np.count_nonzero(expected) > 1500


def test_3d_overlap_by_hand():
    """A car 4 long, 2 wide, 1.5 high; another 1 further along its length and 0.5 higher: 6 / 18 in common."""
    truth = [[kitti_object("Car", (0, 0, 100, 100))]]
    found = [[guess("Car", (0, 0, 100, 100), 0.9, loc=(1.0, 1.0, 20.0))]]
    # Ground: 3 * 2 of 2 * 8 - 6 = 0.6. Volume: 6 * 1 of 2 * 12 - 6 = 1 / 3.
    assert score(truth, found, "APBEV")["precision"][0, 0] == 0
    assert score(truth, found, "APBEV", overlaps="reference")["precision"][0, 0] == 1
    assert score(truth, found, "AP3D", overlaps="reference")["precision"][0, 0] == 0
    for name, low in (("Pedestrian", 0), ("Cyclist", 0)):
        person, seen = [[(name, *truth[0][0][1:])]], [[(name, *found[0][0][1:])]]
        assert score(person, seen, "APBEV", name)["precision"][0, 0] == 1
        assert score(person, seen, "AP3D", name)["precision"][0, 0] == low
        assert score(person, seen, "AP3D", name, overlaps="reference")["precision"][0, 0] == 1


def test_overlap_has_to_be_larger_than_the_minimum():
    truth = [[kitti_object("Cyclist", (0, 0, 100, 100))]]
    assert score(truth, [[guess("Cyclist", (0, 0, 100, 50), 0.9)]], name="Cyclist")["precision"][0, 0] == 0
    assert score(truth, [[guess("Cyclist", (0, 0, 100, 50.1), 0.9)]], name="Cyclist")["precision"][0, 0] == 1
    # A class of a higher minimum than another's.
    truth = [labels(kitti_object("Car", (0, 0, 100, 100)))]
    for height, precision in ((70, 0), (70.1, 1)):
        result = kitti.evaluate(truth, [labels(guess("Car", (0, 0, 100, height), 0.9))])
        assert result["Car"]["AP2D"]["precision"][0, 0] == precision


# Curves


def boxes(number):
    """That many boxes of 60 pixels that do not touch."""
    return [(70 * i, 100, 70 * i + 60, 160) for i in range(number)]


def test_precision_and_recall_by_hand():
    """Three cars in two images, and detections .9 right, .8 wrong, .7 right, .6 right."""
    first, second, third, empty = boxes(4)
    truth = [[kitti_object("Car", first), kitti_object("Car", second)], [kitti_object("Car", third)], []]
    found = [
        [guess("Car", second, 0.7), guess("Car", first, 0.9)],
        [guess("Car", empty, 0.8), guess("Car", third, 0.6)],
        [],
    ]
    result = score(truth, found)
    # Precision 1/1, 2/3, 3/4, and from there the best to come.
    assert result["precision"][0, :4].tolist() == [1, 0.75, 0.75, 0]
    assert result["recall"][0, :4].tolist() == [1 / 3, 2 / 3, 1, 0]
    # Sample k stands for the recall k / 40 however few objects there are, so that 11 points see but the first.
    assert result["ap"][11][0] == pytest.approx(1 / 11)
    assert result["ap"][40][0] == pytest.approx(1.5 / 40)
    assert result["count"].tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [1.0]),
        (10, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (100, [1.0, 0.98, 0.96, 0.93, 0.91, 0.89, 0.86]),
    ],
)
def test_thresholds(count, expected):
    thresholds = kitti._thresholds(np.arange(1, count + 1) / count, count)
    assert thresholds[: len(expected)].tolist() == pytest.approx(expected)
    assert len(thresholds) == min(count, 41)
    if count == 100:
        assert thresholds[-2:].tolist() == pytest.approx([0.03, 0.01])


def test_all_found_scores_one():
    rng = np.random.default_rng(0)
    truth = [
        [kitti_object("Car", box, alpha=a, loc=(9 * i, 1.5, 20)) for i, box in enumerate(boxes(5))] for a in range(20)
    ]
    found = [[guess("Car", o[3][1:5], rng.random(), o[3][0], loc=o[3][8:11]) for o in image] for image in truth]
    result = kitti.evaluate([labels(*p) for p in truth], [labels(*p) for p in found], ["Car"])
    scores = {**kitti.named_scores(result), **kitti.named_scores(result, 11)}
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    assert list(scores)[:4] == ["AP2D/Car_easy", "AP2D/Car_moderate", "AP2D/Car_hard", "AOS/Car_easy"]
    assert len(scores) == 12


def test_levels():
    """Occlusion, truncation and height decide from which level on an object counts; before that it may be found."""
    at = boxes(9)
    truth = [
        [
            kitti_object("Car", at[0]),
            kitti_object("Car", at[1], occluded=1),
            kitti_object("Car", at[2], occluded=2),
            kitti_object("Car", at[3], occluded=3),
            kitti_object("Car", at[4], truncated=0.15),
            kitti_object("Car", at[5], truncated=0.3),
            kitti_object("Car", at[6], truncated=0.51),
            kitti_object("Car", (*at[7][:3], at[7][1] + 40)),
            kitti_object("Car", (*at[8][:3], at[8][1] + 39.9)),
        ]
    ]
    found = [[guess("Car", o[3][1:5], 0.5) for o in truth[0]]]
    result = score(truth, found)
    assert result["count"].tolist() == [3, 6, 7]
    assert (result["precision"] <= 1).all() and (result["precision"][:, 0] == 1).all()


def test_height_of_detections():
    """Detections that are too low are neither true nor false positives, regardless of class."""
    tall, other = (0, 100, 60, 140.0), (100, 100, 160, 139.9)
    truth = [[kitti_object("Car", tall)]]
    for extra, precision in (
        (guess("Car", other, 0.9), [1, 0.5]),
        (guess("Car", (100, 100, 160, 140.0), 0.9), [0.5, 0.5]),
    ):
        result = score(truth, [[guess("Car", tall, 0.8), extra]])
        assert result["precision"][:2, 0].tolist() == precision
    # A low pedestrian on a car takes it: the car is not missed, nor is it found.
    low = (0, 100, 60, 139.9)
    result = score(truth, [[guess("Pedestrian", low, 0.9), guess("Car", (500, 100, 560, 160), 0.3)]])
    assert result["recall"][0, 0] == 0 and result["precision"][0, 0] == 0
    # A car of full height on the same object is preferred at the second look, however little it overlaps.
    near = (0, 100, 60, 150)
    result = score(truth, [[guess("Pedestrian", low, 0.2), guess("Car", near, 0.9)]])
    assert result["precision"][0, 0] == 1


@pytest.mark.parametrize(
    ("neighbor", "name"), [("Van", "Car"), ("Person_sitting", "Pedestrian"), ("Truck", "Car"), ("Van", "Cyclist")]
)
def test_neighbor_class(neighbor, name):
    first, second = boxes(2)
    truth = [[kitti_object(name, first), kitti_object(neighbor, second)]]
    found = [[guess(name, first, 0.5), guess(name, second, 0.9)]]
    unfair = (neighbor, name) in (("Van", "Car"), ("Person_sitting", "Pedestrian"))
    result = score(truth, found, name=name)
    assert result["precision"][0, 0] == (1 if unfair else 0.5)
    assert result["count"][0] == 1


def test_dontcare():
    """A detection that lies in a DontCare region with more than the class's overlap is not a false positive."""
    first, second = boxes(2)
    for share, precision in ((0.71, 1), (0.69, 0.5)):
        area = (second[0], second[1], second[0] + 60 * share, second[3] + 500)
        truth = [[kitti_object("Car", first), dontcare(area)]]
        found = [[guess("Car", first, 0.5), guess("Car", second, 0.9, loc=(30, 1.5, 20))]]
        assert score(truth, found)["precision"][0, 0] == precision
        assert score(truth, found, "APBEV")["precision"][0, 0] == 0.5  # a DontCare region has no place on the ground
    # Two regions that cover it together only are not added up.
    halves = [dontcare((70, 100, 100, 160)), dontcare((100, 100, 130, 160))]
    assert score([[kitti_object("Car", first), *halves]], found)["precision"][0, 0] == 0.5


def test_one_detection_for_one_object():
    """A second detection of an object is wrong; an object takes the better overlap, not the better score."""
    box = (0, 100, 100, 200)
    close, exact = (0, 100, 100, 190), box
    truth = [[kitti_object("Car", box, alpha=0.0)]]
    found = [[guess("Car", close, 0.9, alpha=math.pi), guess("Car", exact, 0.9, alpha=0.0)]]
    assert score(truth, found)["precision"][0, 0] == 0.5
    assert score(truth, found, "AOS")["precision"][0, 0] == pytest.approx(0.5)


def test_orientation_similarity():
    first, second = boxes(2)
    truth = [[kitti_object("Car", first, alpha=0.3), kitti_object("Car", second, alpha=1.0)]]
    found = [[guess("Car", first, 0.9, alpha=0.3 + math.pi / 2), guess("Car", second, 0.8, alpha=1.0)]]
    result = score(truth, found, "AOS")
    # 0.5 of 1, then 1.5 of 2, and the better one to come.
    assert result["precision"][0, :3].tolist() == pytest.approx([0.75, 0.75, 0])
    # Upside down is worth nothing.
    assert score(truth, [[guess("Car", first, 0.9, alpha=0.3 + math.pi)]], "AOS")["precision"][0, 0] < 1e-12


def test_unknown_angle_leaves_out_the_similarity():
    first, second = boxes(2)
    truth = [[kitti_object("Car", first)]]
    found = [[guess("Car", first, 0.9), guess("Truck", second, 0.1, alpha=-10)]]
    result = kitti.evaluate([labels(*p) for p in truth], [labels(*p) for p in found])
    assert set(result["Car"]) == {"AP2D", "APBEV", "AP3D"}
    assert not any(key.startswith("AOS") for key in kitti.named_scores(result))
    assert "AOS" not in kitti.format_table(result)


def test_evaluated_as_the_program_would():
    box = boxes(1)[0]
    nowhere = {"dim": (-1, -1, -1), "loc": (-1000, -1000, -1000), "ry": -10}
    truth = [[kitti_object("Car", box), kitti_object("Cyclist", box)]]
    result = kitti.evaluate([labels(*truth[0])], [labels(guess("Car", box, 0.5, **nowhere))])
    evaluated = {metric: result["Car"][metric]["evaluated"] for metric in result["Car"]}
    assert evaluated == {"AP2D": True, "AOS": True, "APBEV": False, "AP3D": False}
    assert not any(of_metric["evaluated"] for of_metric in result["Cyclist"].values())
    assert result["Car"]["AP2D"]["precision"][0, 0] == 1
    assert {v for k, v in kitti.named_scores(result).items() if "Cyclist" in k or k.startswith("AP3D")} == {0.0}
    left = kitti.evaluate([labels(*truth[0])], [labels(guess("Car", (-1, *box[1:]), 0.5))])
    assert not left["Car"]["AP2D"]["evaluated"] and left["Car"]["AP3D"]["evaluated"]
    lines = kitti.format_table(result).splitlines()
    assert next(line for line in lines if "AP3D" in line).split()[-3:] == ["-", "-", "-"]
    assert next(line for line in lines if "AP2D" in line and "11" in line).split()[-1] == "9.09"


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_at_all(images):
    nothing = [labels()] * images
    scores = kitti.named_scores(kitti.evaluate(nothing, nothing))
    assert scores == dict.fromkeys(scores, 0.0)
    truth = [labels(kitti_object("Car", boxes(1)[0]))] * images
    assert set(kitti.named_scores(kitti.evaluate(truth, nothing)).values()) == {0.0}
    assert set(kitti.named_scores(kitti.evaluate(nothing, truth_with_scores(truth))).values()) == {0.0}


def truth_with_scores(truth):
    return [labels(*[guess("Car", row[1:5], 0.5) for row in image.rows]) for image in truth]


def test_bad_arguments():
    one = [labels(kitti_object("Car", boxes(1)[0]))]
    for arguments, words in (
        ({"detections": []}, "0 images"),
        ({"classes": ["Van"]}, "class 'Van'"),
        ({"overlaps": "easy"}, "overlaps 'easy' is none of official, reference"),
        ({"recall_points": [10]}, "recall points 10"),
        ({"detections": [labels(guess("Car", boxes(1)[0], math.nan))]}, "image 0"),
        ({"detections": [labels(guess("Bus", boxes(1)[0], 0.5))]}, "'Bus'"),
    ):
        with pytest.raises(UserError, match=words):
            kitti.evaluate(**{"ground_truth": one, "detections": [labels()], **arguments})


def random_scenes(images: int) -> tuple[list, list]:
    """Ground truth of 10 objects and 50 detections in each image; half of the objects are found, some twice."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(images):
        parts = []
        for count in (10, 50):
            rows = np.zeros((count, 13))
            rows[:, 1], rows[:, 2] = rng.uniform(0, 1100, count), rng.uniform(100, 200, count)
            rows[:, 3:5] = rows[:, 1:3] + rng.uniform(30, 150, (count, 2))
            rows[:, 5:8] = rng.uniform([1.4, 1.5, 3.5], [1.6, 1.8, 4.2], (count, 3))
            rows[:, 8:11] = rng.uniform([-20, 1.5, 5], [20, 1.6, 60], (count, 3))
            rows[:, 11], rows[:, 12] = rng.uniform(-3, 3, count), rng.random(count)
            if parts:
                chosen = rng.integers(0, 10, 7)
                rows[:7, 1:12] = parts[0][chosen, 1:12] + rng.normal(0, 0.03, (7, 11)) * [
                    *(50, 50, 50, 50),
                    *(1, 1, 1, 1, 1, 1, 1),
                ]
            parts.append(rows)
        for rows, place in zip(parts, (truth, found), strict=True):
            names = rng.choice(["Car", "Car", "Car", "Pedestrian", "Cyclist"], len(rows)).astype("U14")
            zeros = np.zeros(len(rows))
            columns = (rows[:, 0], rows[:, 1:5], rows[:, 5:8], rows[:, 8:11], rows[:, 11], rows[:, 12])
            place.append(kitti.Labels(names, zeros, zeros.astype(np.int64), *columns))
    return truth, found


def test_time_is_linear():
    """Up to as many images and objects as in the 3DOP validation split."""
    results = []

    def evaluation(images):
        truth, found = random_scenes(images)
        return lambda: results.append(kitti.evaluate(truth, found))

    assert growth(evaluation, (377, 3769)) < 30
    assert all(results[1]["Car"][metric]["ap"][40][1] > 0 for metric in kitti.METRICS)
