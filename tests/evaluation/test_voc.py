import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.timing import growth

from centernet.errors import UserError
from centernet.evaluation import voc

CONFORMANCE = Path(__file__).parents[2].parent / "shared" / "conformance"


@pytest.fixture(scope="module")
def reference():
    path = CONFORMANCE / "voc_eval.json"
    if not path.exists():
        pytest.skip("no conformance data")
    return json.loads(path.read_text())


def voc_object(x1, y1, x2, y2, name="car", difficult=0):
    """An object in 1-based pixels."""
    return {"name": name, "bbox": [x1, y1, x2, y2], "difficult": difficult}


def slow_evaluate_class(ground_truth, detections, name, use_07_metric, ovthresh, use_diff):
    """The rules of the VOC development kit, one detection at a time, on text as in its result files."""
    lines = []
    for i, rows in enumerate(detections):
        for x1, y1, x2, y2, score in rows:
            lines.append(f"{i} {score:.3f} {x1 + 1:.1f} {y1 + 1:.1f} {x2 + 1:.1f} {y2 + 1:.1f}".split())
    lines.sort(key=lambda line: -float(line[1]))
    objects = [[o for o in image if o["name"] == name] for image in ground_truth]
    positives = sum(use_diff or not o["difficult"] for image in objects for o in image)
    taken = set()
    tp = fp = 0
    rec, prec = [], []
    for line in lines:
        i = int(line[0])
        x1, y1, x2, y2 = map(float, line[2:])
        best, best_overlap = None, -math.inf
        for j, o in enumerate(objects[i]):
            a1, b1, a2, b2 = o["bbox"]
            width = max(min(x2, a2) - max(x1, a1) + 1.0, 0.0)
            height = max(min(y2, b2) - max(y1, b1) + 1.0, 0.0)
            union = (x2 - x1 + 1.0) * (y2 - y1 + 1.0) + (a2 - a1 + 1.0) * (b2 - b1 + 1.0) - width * height
            if width * height / union > best_overlap:
                best, best_overlap = j, width * height / union
        if best_overlap > ovthresh:
            if use_diff or not objects[i][best]["difficult"]:
                if (i, best) in taken:
                    fp += 1
                else:
                    taken.add((i, best))
                    tp += 1
        else:
            fp += 1
        rec.append(tp / positives if positives else math.nan)
        prec.append(tp / max(tp + fp, np.finfo(np.float64).eps))
    return rec, prec, slow_ap(rec, prec, use_07_metric)


def slow_ap(rec, prec, use_07_metric):
    if use_07_metric:
        return (
            sum(max([p for r, p in zip(rec, prec, strict=True) if r >= t], default=0) for t in np.arange(0, 1.1, 0.1))
            / 11
        )
    area, last = 0.0, 0.0
    for k, r in enumerate(rec):
        area += (r - last) * max(prec[k:])
        last = r
    return area


def random_case(seed, images=25, classes=("car", "dog", "cow", "boat", "bus")):
    """Repeated detections of up to 6 objects an image, with ties. All boats are difficult, no bus exists."""
    rng = np.random.default_rng(seed)
    ground_truth, detections = [], [[] for _ in classes]
    for _ in range(images):
        objects = []
        for _ in range(rng.integers(0, 7)):
            corner, size = rng.integers(1, 60, 2), rng.integers(5, 40, 2)
            name = classes[rng.integers(0, 4)]
            objects.append(
                voc_object(*corner.tolist(), *(corner + size).tolist(), name, int(name == "boat" or rng.random() < 0.3))
            )
        ground_truth.append(objects)
        for c, name in enumerate(classes):
            rows = [
                [*(np.array(o["bbox"]) + rng.normal(0, 3, 4)), round(rng.random(), 2)]
                for o in objects
                for _ in range(rng.integers(0, 4))
                if o["name"] == name or rng.random() < 0.2
            ]
            rows += [[x, y, x + 20, y + 20, rng.random()] for x, y in rng.random((rng.integers(0, 3), 2)) * 60]
            detections[c].append(np.array(rows, dtype=np.float32) if c % 2 else rows)
    return ground_truth, detections, list(classes)


def test_ap_by_hand():
    # 2007: precision 1 at the 6 recalls up to 0.5, 2/3 at the other 5. Area: 0.5 · 1 + 0.5 · 2/3.
    rec, prec = [0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3]
    assert voc.voc_ap(rec, prec, True) == pytest.approx((6 + 5 * 2 / 3) / 11, abs=1e-12)
    assert voc.voc_ap(rec, prec, False) == pytest.approx(5 / 6, abs=1e-12)
    # numpy's arange gives 0.6000000000000001, which a recall of 0.6 does not reach.
    assert voc.voc_ap([0.6], [1.0], True) == pytest.approx(6 / 11, abs=1e-12)
    assert voc.voc_ap([], [], True) == voc.voc_ap([], [], False) == 0
    assert voc.voc_ap([math.nan], [0.0], True) == 0
    assert math.isnan(voc.voc_ap([math.nan], [0.0], False))


def test_rules_by_hand():
    ground_truth = [
        [voc_object(1, 1, 10, 10), voc_object(101, 1, 110, 10, difficult=1), voc_object(1, 1, 10, 10, name="dog")],
        [voc_object(1, 1, 10, 10)],
    ]
    detections = [
        [
            [100, 0, 109, 9, 0.95],  # on the difficult object: ignored
            [0, 0, 9, 9, 0.9],  # true
            [0, 0, 9, 9, 0.8],  # again: false
        ],
        [
            [0, 0, 9, 4, 0.7],  # overlap exactly 0.5: false
            [0, 0, 9, 5, 0.6],  # overlap 0.6: true
        ],
    ]
    rec, prec, ap = voc.evaluate_class(ground_truth, detections, "car", use_07_metric=False)
    assert rec.tolist() == [0, 0.5, 0.5, 0.5, 1]
    assert prec.tolist() == [0, 1, 1 / 2, 1 / 3, 1 / 2]
    assert ap == pytest.approx(0.75)
    # As ordinary objects: true, true, false, false, true of 3.
    rec, prec, ap = voc.evaluate_class(ground_truth, detections, "car", use_07_metric=False, use_diff=True)
    assert rec == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert prec == pytest.approx([1, 1, 2 / 3, 2 / 4, 3 / 5])


def test_best_object_is_chosen_before_asking_whether_it_is_taken():
    """Two detections closest to the same object: the second is false although another object overlaps it enough."""
    ground_truth = [[voc_object(1, 1, 100, 100), voc_object(1, 1, 100, 80)]]
    detections = [[[0, 0, 99, 99, 0.9], [0, 0, 99, 95, 0.8]]]
    rec, _, _ = voc.evaluate_class(ground_truth, detections, "car")
    assert rec.tolist() == [0.5, 0.5]


def test_equal_scores_keep_their_order():
    ground_truth = [[voc_object(1, 1, 10, 10)]]
    right, wrong = [0, 0, 9, 9, 0.5004], [50, 50, 59, 59, 0.4996]
    assert voc.evaluate_class(ground_truth, [[wrong, right]], "car")[1].tolist() == [0, 0.5]
    assert voc.evaluate_class(ground_truth, [[right, wrong]], "car")[1].tolist() == [1, 0.5]
    assert voc.evaluate_class(ground_truth, [[wrong, right]], "car", rounded=False)[1].tolist() == [1, 0.5]


def test_mean_of_classes_without_objects():
    ground_truth = [[voc_object(1, 1, 10, 10)]]
    found = [[[0, 0, 9, 9, 0.5]]]
    # No object and no detection counts 0; no object but a detection is NaN with the area metric only.
    scores = voc.evaluate(ground_truth, [found, [[]]], ["car", "dog"], use_07_metric=False)
    assert scores == {"ap": {"car": 1.0, "dog": 0.0}, "mean_ap": 0.5}
    assert voc.evaluate(ground_truth, [found, found], ["car", "dog"])["mean_ap"] == pytest.approx(0.5)
    assert math.isnan(voc.evaluate(ground_truth, [found, found], ["car", "dog"], use_07_metric=False)["mean_ap"])


def test_no_detections_and_bad_numbers():
    ground_truth = [[voc_object(1, 1, 10, 10)], []]
    assert voc.evaluate(ground_truth, [[[], []]], ["car"])["mean_ap"] == 0
    rows = [[math.nan] * 4 + [0.9], [-math.inf, 0, math.inf, 9, 0.8], [0, 0, 1e38, 1e38, math.nan], [0, 0, 9, 9, 0.5]]
    assert voc.evaluate_class(ground_truth, [rows, rows], "car")[0].tolist()[-3:] == [1, 1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(value):
    """Refused by the score; what the datasets convert is without such rows."""
    truth, rows = (
        [[voc_object(1, 1, 10, 10)]],
        np.array([[0, 0, 9, 9, 0.5], [0, value, 9, 9, 0.9], [0, 0, 9, 9, value]]),
    )
    with pytest.raises(UserError, match="a detection of car is not finite"):
        voc.evaluate(truth, [[rows]], ["car"])
    with pytest.raises(UserError, match="an object of the ground truth"):
        voc.evaluate([[voc_object(1, value, 10, 10)]], [[rows[:1]]], ["car"])
    found = {7: {1: rows}}
    assert voc.evaluate(truth, voc.by_class(found, [7], 1), ["car"])["mean_ap"] == pytest.approx(1)
    assert voc.to_results(found, [7], 1) == [[[]], [[[0, 0, 9, 9, 0.5]]]]


def test_one_crowded_image_needs_no_room_for_the_others(monkeypatch):
    """Memory follows the number of pairs: 4,000 images and one of them with 100,000 objects, in small steps."""
    monkeypatch.setattr(voc, "PAIRS_AT_ONCE", 100_000)
    corners = np.random.default_rng(0).uniform(0, 5000, (100_000, 2)).round(1)
    truth = [[] for _ in range(4000)]
    truth[7] = [voc_object(x, y, x + 9, y + 9) for x, y in corners.tolist()]
    rows = np.hstack([corners[:20] - 1, corners[:20] + 8, np.linspace(0.9, 0.1, 20)[:, None]])
    found = [np.zeros((0, 5)) for _ in truth]
    found[7] = rows
    rec, prec, _ = voc.evaluate_class(truth, found, "car", ovthresh=0.9)
    assert rec[-1] == pytest.approx(20 / 100_000) and prec[-1] == 1


def test_mismatch_is_named():
    with pytest.raises(UserError, match="2 classes"):
        voc.evaluate([[]], [[[]], [[]]], ["car"])
    with pytest.raises(UserError, match="car cover 2 images, the ground truth 1"):
        voc.evaluate([[]], [[[], []]], ["car"])
    with pytest.raises(UserError, match="car must be rows"):
        voc.evaluate([[]], [[[[1, 2, 3, 4]]]], ["car"])


@pytest.mark.parametrize("use_07_metric", [True, False])
@pytest.mark.parametrize("use_diff", [True, False])
@pytest.mark.parametrize("ovthresh", [0.3, 0.5, 0.7])
def test_like_the_plain_loop(use_07_metric, use_diff, ovthresh, monkeypatch):
    monkeypatch.setattr(voc, "PAIRS_AT_ONCE", 40)
    for seed in range(4):
        ground_truth, detections, classes = random_case(seed)
        scores = voc.evaluate(ground_truth, detections, classes, use_07_metric, ovthresh, use_diff)["ap"]
        for name, of_class in zip(classes, detections, strict=True):
            arguments = (use_07_metric, ovthresh, use_diff)
            plain = [np.asarray(rows, dtype=np.float64).reshape(-1, 5).tolist() for rows in of_class]
            rec, prec, ap = slow_evaluate_class(ground_truth, plain, name, *arguments)
            got_rec, got_prec, got_ap = voc.evaluate_class(ground_truth, of_class, name, *arguments)
            np.testing.assert_allclose(got_rec, rec, rtol=0, atol=1e-12)
            np.testing.assert_allclose(got_prec, prec, rtol=0, atol=1e-12)
            np.testing.assert_allclose([got_ap, scores[name]], ap, rtol=0, atol=1e-12)


def test_rounding_is_that_of_text():
    rng = np.random.default_rng(0)
    values = np.concatenate((
        rng.uniform(-50, 600, 3000),
        rng.uniform(0, 1, 3000).astype(np.float32),
        np.arange(-400, 400) / 16,
        np.arange(2000) / 2000,  # halves of the third decimal, most of them not exact in binary
        [2.675, 1e15, 1e22, -0.04, np.inf, -np.inf, np.nan],
    ))  # fmt: skip
    for decimals in (1, 2, 3):
        expected = [float(f"{value:.{decimals}f}") for value in values]
        np.testing.assert_array_equal(voc.round_as_text(values, decimals), expected)
    assert voc.round_as_text(2.675 * np.ones((2, 3)), 2).tolist() == [[2.67] * 3] * 2


def test_results_list():
    rows = np.array([[1, 2, 3, 4, 0.5]], dtype=np.float32)
    results = voc.to_results({7: {1: rows, 2: []}, 5: {2: rows}}, [5, 6, 7], 2)
    assert results == [[[], [], []], [[], [], [[1, 2, 3, 4, 0.5]]], [[[1, 2, 3, 4, 0.5]], [], []]]
    assert json.loads(json.dumps(results)) == results
    assert results[0][0] is not results[0][1]


def test_time_is_linear():
    """Up to half of VOC 2007 test with 100 detections an image."""

    def evaluation(images):
        rng = np.random.default_rng(0)
        corners = rng.integers(1, 300, (images, 3, 2))
        truth = [[voc_object(*c.tolist(), *(c + 60).tolist()) for c in image] for image in corners]
        found = [[np.c_[xy := rng.random((5, 2)) * 300, xy + 60, rng.random(5)] for _ in corners] for _ in range(20)]
        return lambda: voc.evaluate(truth, found, ["car", *map(str, range(19))])

    assert growth(evaluation, (248, 2480)) < 30


def test_reference_ap(reference):
    for case in reference["voc_ap"]:
        assert voc.voc_ap(case["rec"], case["prec"], True) == pytest.approx(case["ap_07"], abs=1e-9)
        assert voc.voc_ap(case["rec"], case["prec"], False) == pytest.approx(case["ap_area"], abs=1e-9)


@pytest.mark.parametrize("metric", ["2007", "2007_diff", "2012", "2012_diff"])
def test_reference_scores(reference, metric):
    expected = reference["metric"][metric]
    arguments = {
        "use_07_metric": expected["use_07_metric"],
        "use_diff": expected["use_difficult_as_positive"],
    }
    inputs = reference["ground_truth"], reference["detections"]
    scores = voc.evaluate(*inputs, reference["classes"], **arguments)
    assert list(scores["ap"]) == reference["classes"]
    for name, ap in expected["ap"].items():
        assert scores["ap"][name] == pytest.approx(math.nan if ap is None else ap, abs=1e-9, nan_ok=True)
    mean = math.nan if expected["mean_ap"] is None else expected["mean_ap"]
    assert scores["mean_ap"] == pytest.approx(mean, abs=1e-9, nan_ok=True)
    for name, curve in expected["rec_prec"].items():
        detections = reference["detections"][reference["classes"].index(name)]
        rec, prec, _ = voc.evaluate_class(reference["ground_truth"], detections, name, **arguments)
        np.testing.assert_allclose(rec, np.array(curve["rec"], dtype=float), rtol=0, atol=1e-9)
        np.testing.assert_allclose(prec, curve["prec"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("ovthresh", [0.3, 0.7])
def test_reference_other_overlaps(reference, ovthresh):
    scores = voc.evaluate(reference["ground_truth"], reference["detections"], reference["classes"], ovthresh=ovthresh)
    for name, ap in reference["metric"][f"2007_ovthresh{ovthresh}"]["ap"].items():
        assert scores["ap"][name] == pytest.approx(ap, abs=1e-9)


def test_reference_rounding(reference):
    for name, text in reference["result_file_lines"].items():
        of_class = reference["detections"][reference["classes"].index(name)]
        rows = np.array([row for image in of_class for row in image]).reshape(-1, 5)
        written = np.array([line.split()[1:] for line in text.splitlines()], dtype=float).reshape(-1, 5)
        np.testing.assert_array_equal(voc.round_as_text(rows[:, 4], 3), written[:, 0])
        np.testing.assert_array_equal(voc.round_as_text(rows[:, :4] + 1, 1), written[:, 1:])


def test_reference_results_list():
    path = CONFORMANCE / "results_format.json"
    if not path.exists():
        pytest.skip("no conformance data")
    case = json.loads(path.read_text())["pascal"]
    detections = {
        int(image): {int(c): np.array(rows, dtype=np.float32).reshape(-1, 5) for c, rows in classes.items()}
        for image, classes in case["input"].items()
    }
    assert voc.to_results(detections, case["images_order"], 20) == case["output"]
