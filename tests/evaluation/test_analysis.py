"""Curves, confusion, error types, joints and distances, against pycocotools and by hand."""

import json

import numpy as np
import pytest
from pycocotools.cocoeval import Params
from tests.helpers.crowded import crowded
from tests.helpers.kitti_labels import guess, labels

from centernet.datasets import get_dataset
from centernet.errors import UserError
from centernet.evaluation import analysis, coco
from centernet.evaluation.analysis import ERRORS, analyze, error_types, from_arrays, from_content
from centernet.ops.keypoints import JOINT_NAMES
from centernet.opts import opts
from centernet.tasks import build_task

NAMES = ("cat", "dog")
SIGMAS = Params("keypoints").kpt_oks_sigmas


def case(objects, detections):
    """Objects (image, class, box) and detections (image, class, box, score) as arrays; two images."""
    truth = [
        {
            "boxes": np.array([box for i, _, box in objects if i == k], dtype=float).reshape(-1, 4),
            "cls": np.array([cls for i, cls, _ in objects if i == k], dtype=int),
        }
        for k in range(2)
    ]
    results = {
        k: {cls + 1: np.array([[*box, s] for i, c, box, s in detections if (i, c) == (k, cls)]) for cls in range(2)}
        for k in range(2)
    }
    return from_arrays([0, 1], truth, results)


CAT, DOG = (0, 0, (0, 0, 10, 10)), (1, 1, (20, 20, 40, 40))
ON_CAT, ON_DOG = (0, 0, (0, 0, 10, 10)), (1, 1, (20, 20, 40, 40))


def random_content(seed: int, classes: int = 3, images: int = 12):
    """Annotations and results with all kinds of errors, crowds, sizes and ties."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 9)):
            box = [*rng.integers(0, 300, 2).tolist(), *(rng.integers(3, 15, 2) ** 2).tolist()]
            cls = int(rng.integers(1, classes + 1))
            one = {"image_id": image_id, "category_id": cls, "bbox": box, "iscrowd": int(rng.random() < 0.1)}
            annotations.append({**one, "id": len(annotations) + 1, "area": box[2] * box[3] * 0.8})
            for _ in range(rng.integers(0, 4)):
                moved = (np.array(box) + rng.normal(0, [6, 6, 4, 4])).clip(1).tolist()
                taken = cls if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                score = float(rng.integers(1, 20)) / 20
                results.append({"image_id": image_id, "category_id": taken, "bbox": moved, "score": score})
        box = [*rng.uniform(0, 300, 2).tolist(), 20.0, 30.0]
        results.append({"image_id": image_id, "category_id": 1, "bbox": box, "score": float(rng.random())})
    content = {"images": [{"id": k} for k in range(1, images + 1)], "annotations": annotations}
    content["categories"] = [{"id": k, "name": f"class {k}"} for k in range(1, classes + 2)]  # the last has no objects
    return content, results


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_pycocotools(seed):
    content, results = random_content(seed)
    expected = coco.evaluate_content(content, results)
    truth, found, names = from_content(content, results)
    report = analyze(truth, found, names)
    for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"):
        assert report["scores"][name] == pytest.approx(expected[name], abs=1e-12)
    for entry in report["classes"]:
        value = expected["per_class"][entry["name"]]
        assert entry["AP"] is None if value == -1 else entry["AP"] == pytest.approx(value, abs=1e-12)
    assert report["classes"][-1]["AP"] is None and report["classes"][-1]["objects"] == 0
    assert 0.05 < report["scores"]["AP"] < 0.9
    # The curve at an overlap of 0.5 is the one that AP50 is the mean of.
    for entry in report["classes"][:-1]:
        assert np.mean(entry["curve"]["precision"]) == pytest.approx(entry["AP50"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_crowded_scores_and_the_limit_of_detections(monkeypatch):
    content, results = crowded(0)
    monkeypatch.setattr(analysis, "PAIRS_AT_ONCE", 50)  # overlaps in many pieces
    monkeypatch.setattr(coco.COCOeval, "summarize", lambda self: setattr(self, "stats", np.zeros(12)))
    truth, found, names = from_content(content, results)
    assert analyze(truth, found, names)["scores"]["AP"] == pytest.approx(
        np.mean([v for v in coco.evaluate_content(content, results)["per_class"].values() if v >= 0]), abs=1e-12
    )
    limited = analysis.best_of_each(found, 7)
    for k in (0, 1):
        expected = found.score[found.image == k][:7]
        np.testing.assert_array_equal(limited.score[limited.image == k], expected)


def test_thresholds_by_hand():
    """Four detections, three objects: right, wrong, right and right of equal score."""
    boxes = [(0, 0, (30 * k, 0, 30 * k + 10, 10)) for k in range(3)]
    truth, found = case(boxes, [(*boxes[0], 0.9), (1, 0, (0, 0, 9, 9), 0.8), (*boxes[1], 0.6), (*boxes[2], 0.6)])
    (cat, dog) = analyze(truth, found, NAMES)["classes"]
    assert cat["thresholds"] == {
        "threshold": [0.9, 0.8, 0.6],
        "precision": [1, 0.5, 0.75],
        "recall": [pytest.approx(1 / 3), pytest.approx(1 / 3), 1],
        "f1": [0.5, 0.4, pytest.approx(6 / 7)],
    }
    assert cat["best"]["threshold"] == 0.6 and cat["best"]["f1"] == pytest.approx(6 / 7)
    assert cat["AP50"] == pytest.approx((34 * 1 + 67 * 0.75) / 101)
    assert dog == {**dog, "objects": 0, "AP": None, "best": None, "curve": {"recall": [], "precision": []}}


def test_thresholds_are_evenly_spaced():
    """Most detections have low scores, which must not take all points of the curves."""
    scores = np.sort(np.random.default_rng(0).uniform(0, 1, 5000) ** 4)[::-1]
    matched = analysis.Matches(np.arange(5000), np.where(scores > 0.5, 0, -1), scores, np.zeros(5000, dtype=bool))
    curves = analysis.threshold_curves(matched, 1000)
    thresholds = np.array(curves["threshold"])
    assert len(thresholds) <= 102 and thresholds[0] == scores[0] and thresholds[-1] == scores[-1]
    assert np.diff(thresholds).max() < 0 and np.diff(thresholds).min() > -0.03
    assert max(curves["f1"]) == pytest.approx(2 * np.sum(scores > 0.5) / (np.sum(scores > 0.5) + 1000))


def test_confusion_by_hand():
    objects = [CAT, DOG, (0, 1, (50, 50, 70, 70)), (1, 0, (80, 0, 90, 10))]
    detections = [
        (*ON_CAT, 0.9),  # right
        (0, 0, (50, 50, 70, 69), 0.8),  # a dog taken for a cat
        (0, 1, (50, 50, 70, 60), 0.95),  # the same dog, but with less overlap: background
        (1, 1, (0, 0, 5, 5), 0.7),  # nothing there
        (*ON_DOG, 0.2),  # below the threshold, so the dog is missed
        (1, 0, (80, 0, 90, 4), 0.9),  # too little overlap: background, and a missed cat
    ]
    result = analysis.confusion_matrix(*case(objects, detections), NAMES, threshold=0.5)
    assert result["labels"] == ["cat", "dog", "background"] and result["threshold"] == 0.5
    assert result["matrix"] == [[1, 0, 1], [1, 0, 1], [1, 2, 0]]
    lower = analysis.confusion_matrix(*case(objects, detections), NAMES, threshold=0.2)
    assert lower["matrix"] == [[1, 0, 1], [1, 1, 0], [1, 2, 0]]


def test_detections_on_ignored_objects_are_not_confused():
    truth, found = case([(0, -1, (0, 0, 10, 10))], [(0, 0, (0, 0, 10, 10), 0.9), (0, 1, (0, 0, 10, 9), 0.8)])
    assert analysis.confusion_matrix(truth, found, NAMES, 0.5)["matrix"] == [[0] * 3] * 3
    errors = error_types(truth, found, NAMES)
    assert sum(errors["count"].values()) - errors["count"]["background"] == 0


# One false positive of each type next to two objects, and the gain of fixing it. Without it AP is 1 and 1.
TYPES = {
    # kind: (detections, AP, gains that are not 0)
    "classification": ([(*ON_DOG, 0.9), (0, 1, CAT[2], 0.8)], 0.5, {"classification": 0.5, "missed": 0}),
    "localization": ([(*ON_DOG, 0.9), (0, 0, (0, 0, 10, 3), 0.8)], 0.5, {"localization": 0.5}),
    "both": ([(*ON_DOG, 0.9), (*ON_CAT, 0.8), (1, 0, (20, 20, 40, 25), 0.95)], 0.75, {"both": 0.25}),
    "duplicate": (
        [(*ON_DOG, 0.9), (*ON_CAT, 0.8), (0, 0, (0, 0, 10, 9), 0.7), (0, 0, (0, 0, 10, 8), 0.6)],
        1.0,
        {},
    ),
    "background": ([(*ON_DOG, 0.9), (*ON_CAT, 0.8), (1, 0, (100, 100, 110, 110), 0.9)], 0.75, {"background": 0.25}),
    "missed": ([(*ON_DOG, 0.9)], 0.5, {"missed": 0.5}),
}


@pytest.mark.parametrize("kind", TYPES)
def test_each_error_type_by_hand(kind):
    detections, ap, gains = TYPES[kind]
    errors = error_types(*case([CAT, DOG], detections), NAMES)
    count = 2 if kind == "duplicate" else 1
    assert errors["count"] == {**dict.fromkeys(ERRORS, 0), kind: count}
    assert errors["AP"] == pytest.approx(ap)
    assert errors["dAP"] == pytest.approx({**dict.fromkeys(ERRORS, 0), **gains})
    assert errors["dAP_false_positive"] == pytest.approx(1 - ap if kind in ("both", "background") else 0)
    assert errors["dAP_false_negative"] == pytest.approx(0.5 if kind in ("classification", "missed") else 0)
    named = "dog" if kind == "classification" else "cat"
    assert errors["classes"][named][kind] == count


def test_a_duplicate_costs_precision_when_it_comes_between():
    objects = [CAT, (1, 0, DOG[2])]
    detections = [(*ON_CAT, 0.9), (0, 0, (0, 0, 10, 9), 0.8), (1, 0, DOG[2], 0.7)]
    errors = error_types(*case(objects, detections), NAMES)
    assert errors["count"]["duplicate"] == 1
    assert errors["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert errors["dAP"]["duplicate"] == pytest.approx(1 - errors["AP"])


def test_the_best_error_of_an_object_is_fixed_and_the_others_are_removed():
    detections = [(0, 0, (0, 0, 10, 3), 0.9), (0, 0, (0, 0, 10, 4), 0.8), (0, 1, CAT[2], 0.7)]
    errors = error_types(*case([CAT], detections), NAMES)
    assert errors["count"] == {**dict.fromkeys(ERRORS, 0), "localization": 2, "classification": 1}
    # The first of the three is the one that becomes right, so fixing classifications alone gains nothing.
    assert errors["dAP"]["localization"] == pytest.approx(1) and errors["dAP"]["classification"] == 0
    # An object that is found already is not found twice.
    errors = error_types(*case([CAT], [(*ON_CAT, 0.95), *detections]), NAMES)
    assert errors["AP"] == 1 and errors["dAP"] == dict.fromkeys(ERRORS, 0)


def test_all_errors_together_explain_the_score():
    content, results = random_content(7)
    truth, found, names = from_content(content, results)
    errors = error_types(truth, found, names)
    false = analysis.match(truth, found, analysis.Overlaps.of(truth, found), 0.5).false.sum()
    assert sum(value for kind, value in errors["count"].items() if kind != "missed") == false
    assert all(errors["count"][kind] > 0 for kind in ("classification", "localization", "duplicate", "background"))
    assert all(value > -1e-9 for value in errors["dAP"].values())
    per_class = {kind: sum(entry[kind] for entry in errors["classes"].values()) for kind in ERRORS}
    assert per_class == errors["count"]


def test_nothing_at_all():
    report = analyze(*case([], []), NAMES)
    assert report["scores"]["AP"] is None and report["best"] is None
    assert report["confusion"]["matrix"] == [[0] * 3] * 3 and report["errors"]["AP"] == 0
    json.dumps(report, allow_nan=False)
    only = analyze(*case([CAT], []), NAMES)
    assert only["scores"]["AP"] == 0 and only["errors"]["dAP"]["missed"] == 0
    assert only["confusion"]["matrix"][0] == [0, 0, 1]


# Poses and 3D boxes


def test_joints_by_hand():
    """One joint is displaced so that its similarity is exp(-1/2); unlabeled ones do not count."""
    joints = np.column_stack([np.linspace(10, 90, 17), np.full(17, 50), np.full(17, 2.0)])
    joints[5, 2] = 0
    person = {"image_id": "a", "bbox": [0, 0, 100, 100], "area": 2500.0, "num_keypoints": 16}
    moved = joints.copy()
    moved[0, 0] += 2 * SIGMAS[0] * 50
    moved[5] += 30
    pose = {"image_id": "a", "bbox": [0, 0, 100, 99], "score": 0.5, "keypoints": moved.flatten().tolist()}
    far = {**pose, "bbox": [300, 0, 10, 10], "score": 0.9}
    result = analysis.joint_scores(
        [{**person, "keypoints": joints.flatten().tolist()}, {**person, "image_id": "b", "keypoints": [0] * 51}],
        [far, pose],
        SIGMAS,
        JOINT_NAMES,
    )
    nose = result["joints"][0]
    assert result["persons"] == 2 and result["matched"] == 1
    assert nose["OKS"] == pytest.approx(np.exp(-0.5)) and nose["error"] == pytest.approx(2 * SIGMAS[0] * 50)
    assert nose["relative_error"] == pytest.approx(2 * SIGMAS[0])
    assert result["joints"][5] == {"name": JOINT_NAMES[5], "count": 0, "OKS": None, "error": None} | {
        "relative_error": None
    }
    assert result["joints"][6]["OKS"] == 1 and result["OKS"] == pytest.approx((15 + np.exp(-0.5)) / 16)
    json.dumps(result, allow_nan=False)


def test_distances_by_hand():
    real = [
        labels(("Car", 0, 0, (0, 0, 0, 50, 50, 1.5, 1.6, 4, 1, 1, 15, 0.1, float("nan")))),
        labels(("Car", 0, 0, (0, 0, 0, 50, 50, 1.5, 1.6, 4, 1, 1, 25, 3.1, float("nan")))),
    ]
    found = [
        labels(("Car", 0, 0, (0, 0, 0, 50, 50, 1.5, 1.6, 4.3, 1, 1, 18, 0.2, 0.9))),
        labels(
            ("Car", 0, 0, (0, 0, 0, 50, 49, 1.5, 1.6, 4, 1, 1, 24, -3.1, 0.9)), guess("Pedestrian", (0, 0, 9, 9), 0.5)
        ),
    ]
    result = analysis.distance_errors(real, found, ("Car", "Pedestrian"), edges=(0, 10, 20, 30))
    none, near, far = result["Car"]
    assert none == {**none, "objects": 0, "matched": 0, "depth": None, "angle": None}
    assert (near["objects"], near["matched"]) == (1, 1) and near["depth"] == near["depth_bias"] == pytest.approx(3)
    assert near["relative_depth"] == pytest.approx(0.2) and near["size"] == pytest.approx(0.1)
    assert near["angle"] == pytest.approx(np.degrees(0.1))
    assert far["depth"] == pytest.approx(1) and far["depth_bias"] == pytest.approx(-1)
    assert far["angle"] == pytest.approx(np.degrees(2 * np.pi - 6.2))
    assert far["orientation_similarity"] == pytest.approx((1 + np.cos(6.2)) / 2)
    assert all(entry["matched"] == 0 for entry in result["Pedestrian"])
    with pytest.raises(UserError, match="detections of 1 images do not fit labels of 2"):
        analysis.distance_errors(real, found[:1], ("Car",))


@pytest.mark.parametrize(
    ("task", "name"), [("ctdet", "sample"), ("multi_pose", "sample_hp"), ("exdet", "sample_ex"), ("ddd", "sample_ddd")]
)
def test_every_dataset_can_be_analyzed(task, name, tmp_path):
    """Its own objects as detections are perfect in every respect."""
    opt = opts().parse([task, "--dataset", name, "--data_path", str(tmp_path), "--arch", "res_18"])
    cls = get_dataset(name)
    cls.prepare(cls.locate(tmp_path), log=lambda _: None)
    dataset, columns = cls(build_task(opt), "val"), {"ctdet": 5, "multi_pose": 39, "exdet": 13, "ddd": 13}[task]
    results = {}
    for k, image_id in enumerate(dataset.image_ids[:8]):
        objects = dataset.read_objects(k)
        rows = np.zeros((len(objects["cls"]), columns))
        rows[:, slice(1, 5) if task == "ddd" else slice(0, 4)] = dataset.task.ground_truth_boxes(objects)
        rows[:, -1 if task == "ddd" else 4] = 0.9
        results[image_id] = {c + 1: rows[objects["cls"] == c] for c in range(opt.num_classes)}
    truth, found = analysis.from_dataset(dataset, results, dataset.task.detected_boxes)
    assert len(truth) and truth.image.max() < 8
    report = analyze(truth, found, opt.class_names)
    assert report["scores"]["AP"] == pytest.approx(1) and report["best"]["f1"] == 1
    assert sum(report["errors"]["count"].values()) == 0
