"""Detections as text, JSON, labels and crops, for each kind of task."""

from types import SimpleNamespace

import numpy as np
import pytest

from centernet import found
from centernet.conversion.yolo import read_label
from centernet.ops.keypoints import KeypointSchema
from centernet.video import is_stream, name_of

BOXES = SimpleNamespace(detected_boxes=lambda rows: rows[:, :5])
BOXES_3D = SimpleNamespace(detected_boxes=lambda rows: rows[:, [1, 2, 3, 4, -1]])


# A cat has both joints, a dog the second one.
KEYPOINTS = KeypointSchema(("nose", "tail"), (0, 1), (), (0.05, 0.05), ((0, 1), (1,)))


def options(task="ctdet", threshold=0.3):
    return SimpleNamespace(task=task, vis_thresh=threshold, class_names=["cat", "dog"], keypoints=KEYPOINTS)


def test_detections_above_the_threshold_best_first():
    results = {
        1: np.array([[0, 0, 4, 4, 0.5], [1, 1, 2, 2, 0.3]]),
        2: np.array([[0, 0, 9, 9, 0.9]]),
        3: np.zeros((0, 5)),
    }
    detections = found.detections_above(results, BOXES, options())
    assert [(one.cls, one.name, one.score, one.box, one.more) for one in detections] == [
        (2, "dog", 0.9, (0, 0, 9, 9), {}),
        (1, "cat", 0.5, (0, 0, 4, 4), {}),
    ]
    assert (
        found.summary([one.name for one in detections] + ["dog"]) == "2 dog, 1 cat" and found.summary([]) == "nothing"
    )


def test_keypoints_and_3d_boxes():
    (pose,) = found.detections_above({1: np.array([[0, 0, 4, 8, 0.5, 1, 2, 3, 4]])}, BOXES, options("multi_pose"))
    assert pose.more == {"keypoints": [[1, 2], [3, 4]], "keypoint_names": ["nose", "tail"]}
    entry = found.json_entry("a.jpg", (8, 16), [pose], 7)
    assert entry == {
        "image": "a.jpg",
        "width": 8,
        "height": 16,
        "frame": 7,
        "detections": [{"class": "cat", "class_id": 1, "score": 0.5, "bbox": [0, 0, 4, 8], **pose.more}],
    }
    numbers = [float(number) for number in found.yolo_lines((8, 16), [pose]).split()]
    assert numbers == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 0.125, 0.125, 0.375, 0.25])
    (dog,) = found.detections_above({2: np.array([[0, 0, 4, 8, 0.5, 1, 2, 3, 4]])}, BOXES, options("multi_pose"))
    assert dog.more == {"keypoints": [[3, 4]], "keypoint_names": ["tail"]}
    numbers = [float(number) for number in found.yolo_lines((8, 16), [dog]).split()]
    assert numbers == pytest.approx([1, 0.25, 0.25, 0.5, 0.5, 0.375, 0.25, 0, 0])  # as many joints as a cat
    row = [0.1, 1, 2, 3, 4, 1.5, 1.6, 3.9, -2, 1.7, 20, 0.2, 0.8]
    (car,) = found.detections_above({1: np.array([row])}, BOXES_3D, options("ddd"))
    assert car.box == (1, 2, 3, 4) and car.score == 0.8
    assert car.more == {"alpha": 0.1, "dimensions": [1.5, 1.6, 3.9], "location": [-2, 1.7, 20], "rotation_y": 0.2}


def test_labels_stay_in_the_image():
    """Boxes are clipped and need an area; keypoints outside of the image are not labeled for the reader of labels."""
    boxes = [(-4, 4, 12, 20), (2, 2, 2, 9), (2, 9, 6, 2), (3, 20, 7, 30), (-9, 2, 0, 9), (1, 1, 7, 1 + 1e-6)]
    points = {"keypoints": [[0, 16], [-0.1, 4], [4, 16.1], [9, 99], [4, -1], [8, 12], [4, 0]]}
    detections = [found.Detection(1, "cat", 0.9, box, points, missing_joints=1) for box in boxes]
    (line,) = found.yolo_lines((8, 16), detections).splitlines()
    label = read_label(line, (8, 2))
    assert (label.x, label.y, label.w, label.h) == (0.5, 0.625, 1, 0.75)
    unlabeled = (0, 0, 0)
    assert label.keypoints == (
        *((0, 1, 2), unlabeled, unlabeled, unlabeled, unlabeled),
        *((1, 0.75, 2), (0.5, 0, 2), unlabeled),
    )
    assert found.yolo_lines((8, 16), detections[1:]) == "" and len(line.split()) == 5 + 2 * 8


def test_crops_stay_in_the_image():
    image = np.arange(20 * 10 * 3).reshape(20, 10, 3)

    def crop(*box):
        return found.crop(image, found.Detection(1, "cat", 1.0, box))

    np.testing.assert_array_equal(crop(2.5, 3, 4.2, 6), image[3:6, 2:5])
    np.testing.assert_array_equal(crop(-5, -5, 99, 99), image)
    assert crop(10, 0, 20, 5) is None and crop(4, 4, 4, 4) is None and crop(-9, 0, 0, 5) is None


@pytest.mark.parametrize(
    ("source", "stream", "name"),
    [
        ("webcam", True, "webcam"),
        ("0", True, "camera0"),
        ("12", True, "camera12"),
        ("rtsp://me:secret@10.0.0.7:554/live/front.sdp?x=1", True, "front"),
        ("http://10.0.0.7/a.mp4", True, "a"),
        ("HTTPS://example.org/", True, "example.org"),
        ("rtsp://10.0.0.7:554", True, "10.0.0.7_554"),
        ("a/b.mp4", False, "b"),
        ("1234", False, "1234"),
        ("C:/videos/a.mp4", False, "a"),
    ],
)
def test_cameras_streams_and_their_names(source, stream, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_stream(source) == stream and name_of(source) == name
    if source.isdigit():
        (tmp_path / source).write_text("a file of this name")
        assert not is_stream(source)
