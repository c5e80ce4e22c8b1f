import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.helpers.crowded import crowded, make_dataset

from centernet.errors import UserError
from centernet.evaluation import coco

SHARED = Path(__file__).parents[2].parent / "shared"


def make_coco(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = dataset
        gt.createIndex()
    return gt


BOXES = [(1, 3, 10, 10, 50, 40), (2, 3, 100, 100, 200, 150), (2, 7, 5, 5, 20, 20), (1, 7, 60, 60, 30, 30)]


def as_results(boxes, score=0.9):
    return [{"image_id": i, "category_id": c, "bbox": list(box), "score": score} for i, c, *box in boxes]


def test_perfect_detections(capsys):
    results = as_results(BOXES)
    before = copy.deepcopy(results)
    scores = coco.evaluate(make_coco(make_dataset(BOXES)), results)
    assert capsys.readouterr() == ("", "")
    assert results == before
    assert list(scores) == [*coco.BOX_SCORES, "per_class", "summary"]
    assert all(scores[name] == pytest.approx(1) for name in coco.BOX_SCORES)
    assert scores["per_class"] == pytest.approx({"cat": 1, "dog": 1})
    lines = scores["summary"].splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95")
    assert lines[0].endswith("= 1.000")


def test_scores_by_hand():
    """Cats perfect. One dog of two found, with an overlap of 0.8, so up to the threshold of 0.8: 7 of 10 thresholds."""
    boxes = [BOXES[0], BOXES[1], (2, 7, 5, 5, 16, 20)]
    scores = coco.evaluate(make_coco(make_dataset(BOXES)), as_results(boxes))
    half = 51 / 101  # recalls 0, 0.01, ..., 0.5 have precision 1
    assert scores["per_class"]["cat"] == pytest.approx(1)
    assert scores["per_class"]["dog"] == pytest.approx(0.7 * half)
    assert scores["AP"] == pytest.approx((1 + 0.7 * half) / 2)
    assert scores["AP50"] == scores["AP75"] == pytest.approx((1 + half) / 2)
    assert scores["AR100"] == pytest.approx((1 + 0.7 * 0.5) / 2)
    assert scores["AP_large"] == pytest.approx(1)


def test_no_detections(capsys):
    scores = coco.evaluate(make_coco(make_dataset(BOXES[:2], names=("cat", "dog"))), [])
    assert capsys.readouterr() == ("", "")
    assert scores["AP"] == scores["AP50"] == scores["AR100"] == scores["AP_large"] == 0
    assert scores["AP_small"] == -1  # no small object exists
    assert scores["per_class"] == {"cat": 0, "dog": -1}
    assert coco.evaluate(make_coco(make_dataset([])), [])["AP"] == -1


def test_unknown_image():
    with pytest.raises(UserError, match="image 9"):
        coco.evaluate(make_coco(make_dataset(BOXES)), as_results([(9, 3, 0, 0, 5, 5)]))


def test_like_pycocotools_alone():
    rng = np.random.default_rng(0)
    boxes = [
        (
            int(rng.integers(1, 4)),
            int(rng.choice([3, 7])),
            *rng.integers(0, 300, 2).tolist(),
            *rng.integers(5, 150, 2).tolist(),
        )
        for _ in range(40)
    ]
    dataset = make_dataset(boxes)
    for annotation in dataset["annotations"][:5]:
        annotation["iscrowd"] = 1
        annotation["segmentation"] = {"size": [480, 640], "counts": []}
    results = [
        {"image_id": i, "category_id": c, "bbox": (np.array(box) + rng.normal(0, 4, 4)).tolist(), "score": rng.random()}
        for i, c, *box in boxes * 3
    ]
    gt = make_coco(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        plain = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), "bbox")
        plain.evaluate()
        plain.accumulate()
        plain.summarize()
    scores = coco.evaluate(gt, results)
    np.testing.assert_array_equal([scores[name] for name in coco.BOX_SCORES], plain.stats)
    assert 0 < scores["AP"] < 1


def test_keypoints():
    dataset = make_dataset([(1, 1, 10, 20, 100, 200), (2, 1, 50, 60, 80, 150)], names=())
    dataset["categories"] = [{"id": 1, "name": "person"}]
    rng = np.random.default_rng(0)
    detections = {}
    for annotation in dataset["annotations"]:
        x, y, w, h = annotation["bbox"]
        joints = rng.uniform((x, y), (x + w, y + h), (17, 2))
        annotation["keypoints"] = [v for joint in joints.tolist() for v in (*joint, 2)]
        annotation["num_keypoints"] = 17
        detections[annotation["image_id"]] = {1: [[x, y, x + w, y + h, 0.8, *joints.ravel()]]}
    gt = make_coco(dataset)
    results = coco.to_keypoint_results(detections)
    scores = coco.evaluate(gt, results, "keypoints")
    assert list(scores) == [*coco.KEYPOINT_SCORES, "per_class", "summary"]
    assert scores["AP"] == scores["AR"] == scores["per_class"]["person"] == pytest.approx(1)
    assert coco.evaluate(gt, results)["AP"] == pytest.approx(1)
    assert coco.evaluate(gt, [], "keypoints")["AP"] == 0


def test_results_list():
    rows = np.array([[1.005, 2.675, 11.131, 23.051, 0.995]], dtype=np.float32)
    before = rows.copy()
    (result,) = coco.to_results({4: {1: [], 2: rows}}, [3, 7])
    np.testing.assert_array_equal(rows, before)
    assert (result["image_id"], result["category_id"], result["score"]) == (4, 7, float(rows[0, 4]))
    assert result["bbox"] == pytest.approx([1.005, 2.675, 10.126, 20.376], abs=1e-6)
    assert result["bbox"][2] == float(rows[0, 2]) - float(rows[0, 0])
    (result,) = coco.to_results({4: {2: rows}}, [3, 7], rounded=True)
    assert (result["bbox"], result["score"]) == ([1.0, 2.67, 10.13, 20.38], 1.0)
    np.testing.assert_array_equal(rows, before)
    assert json.loads(json.dumps([result])) == [result]


def read_conformance():
    path = SHARED / "conformance" / "results_format.json"
    if not path.exists():
        pytest.skip("no conformance data")
    return json.loads(path.read_text())


def as_arrays(case):
    return {
        int(image): {int(c): np.array(rows, dtype=np.float32) for c, rows in classes.items()}
        for image, classes in case["input"].items()
    }


def test_reference_results_lists():
    reference = read_conformance()
    ids = reference["coco"]["valid_ids"]
    for name in ("coco", "coco_extreme_points"):
        detections = as_arrays(reference[name])
        assert coco.to_results(detections, ids, rounded=True) == reference[name]["output"]
        for exact, rounded in zip(coco.to_results(detections, ids), reference[name]["output"], strict=True):
            assert exact["bbox"] == pytest.approx(rounded["bbox"], abs=0.00501)
            assert exact["score"] == pytest.approx(rounded["score"], abs=0.00501)
    detections = as_arrays(reference["coco_hp"])
    assert coco.to_keypoint_results(detections, rounded=True) == reference["coco_hp"]["output"]


def test_real_annotations():
    path = SHARED / "data" / "coco128" / "annotations" / "instances_val2017.json"
    if not path.exists():
        pytest.skip("no COCO sample")
    gt = make_coco(json.loads(path.read_text()))
    ids = sorted(gt.getCatIds())
    detections = {image: {} for image in gt.getImgIds()}
    for annotation in gt.dataset["annotations"]:
        if annotation["iscrowd"]:
            continue
        x, y, w, h = annotation["bbox"]
        of_image = detections[annotation["image_id"]]
        of_image.setdefault(ids.index(annotation["category_id"]) + 1, []).append([x, y, x + w, y + h, 1.0])
    scores = coco.evaluate(gt, coco.to_results(detections, ids))
    assert scores["AP"] == scores["AR100"] == pytest.approx(1)
    assert scores["per_class"]["person"] == pytest.approx(1)
    assert len(scores["per_class"]) == 80


# Values that are not finite, unknown ids, and very many objects

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("box", [[NAN] * 4, [10, 10, INF, 40], [-INF, 10, 50, 40], [0, 0, 1e200, 1e200]])
def test_results_that_are_not_finite_are_refused(box):
    """pycocotools takes a box of NaN for a perfect one, since no comparison with it is true."""
    results = [{"image_id": 1, "category_id": 3, "bbox": box, "score": 0.9}]
    with pytest.raises(UserError, match="detection number 1 has the bbox"):
        coco.evaluate(make_coco(make_dataset(BOXES)), results)
    with pytest.raises(UserError, match="detection number 1 has the bbox"):
        coco.evaluate_content(make_dataset(BOXES), results)


@pytest.mark.parametrize("score", [NAN, INF, "0.9", None, 10**400])
def test_scores_that_are_no_finite_numbers_are_refused(score):
    results = as_results(BOXES[:1]) + [{**as_results(BOXES)[1], "score": score}]
    with pytest.raises(UserError, match="detection number 2 has the score"):
        coco.evaluate_content(make_dataset(BOXES), results)


def test_rows_that_are_not_finite_are_no_results():
    rows = np.float32([[0, 0, 9, 9, 0.5], [NAN, 0, 9, 9, 0.5], [0, 0, 9, INF, 0.5], [0, 0, 9, 9, NAN]])
    (entry,) = coco.to_results({1: {1: rows, 2: rows[1:]}}, [3, 7])
    assert entry == {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}
    poses = np.zeros((2, 39), np.float32)
    poses[1, 20] = NAN
    assert len(coco.to_keypoint_results({1: {1: poses}})) == 1
    # A difference can be infinite where the numbers are not.
    far = np.float32([[-3e38, 0, 3e38, 9, 0.5]])
    assert coco.to_results({1: {1: far}}, [3], rounded=True) == []


def test_unknown_categories_are_refused():
    with pytest.raises(UserError, match=r"category 5, which the annotation file does not have \(1 detections"):
        coco.evaluate(make_coco(make_dataset(BOXES)), as_results([(1, 5, 0, 0, 5, 5)]))
    with pytest.raises(UserError, match="category 'cat'"):
        coco.evaluate_content(make_dataset(BOXES), as_results([(1, "cat", 0, 0, 5, 5)]))
    broken = make_dataset(BOXES)
    broken["annotations"][2]["category_id"] = 99
    with pytest.raises(UserError, match="annotation 3 has the unknown category_id 99"):
        coco.evaluate_content(broken, [])
    broken = make_dataset(BOXES)
    broken["annotations"][1]["area"] = NAN
    with pytest.raises(UserError, match="annotation 2 has a bbox or area that is not finite"):
        coco.evaluate_content(broken, [])


def test_classes_without_objects_have_no_score():
    scores = coco.evaluate_content(make_dataset(BOXES[:2]), as_results(BOXES))
    assert scores["per_class"] == {"cat": pytest.approx(1), "dog": -1} and scores["AP"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["bbox", "keypoints"])
@pytest.mark.parametrize("seed", range(3))
def test_crowded_images_are_scored_as_by_pycocotools(monkeypatch, seed, kind):
    content, results = crowded(seed)
    monkeypatch.setattr(coco, "MANY_PAIRS", 10**9)
    expected = coco.evaluate_content(content, results, kind)
    monkeypatch.setattr(coco, "MANY_PAIRS", 1)
    monkeypatch.setattr(coco, "PAIRS_AT_ONCE", 300)
    scores = coco.evaluate_content(content, results, kind)
    assert 0.05 < expected["AP"] < 0.95
    assert {name: value for name, value in scores.items() if name not in ("per_class", "summary")} == pytest.approx(
        {name: value for name, value in expected.items() if name not in ("per_class", "summary")}, abs=1e-12
    )
