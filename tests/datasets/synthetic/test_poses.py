"""The synthetic sample of poses: always the same images, and annotations that fit them."""

import json

import cv2
import numpy as np
import pytest

from centernet.datasets.synthetic.poses import SyntheticPoses, draw_image
from centernet.errors import UserError
from centernet.ops.keypoints import JOINT_NAMES, NUM_JOINTS
from centernet.opts import opts
from centernet.tasks import build_task

# Shape, boxes, shoulders of the first figure and mean brightness of the first images.
FIRST = [
    ((96, 128, 3), [(97, 2, 31, 74), (0, 1, 61, 81)], [[114.4, 20.7, 2], [99.2, 25.3, 2]], 162.76),
    ((128, 96, 3), [(49, 25, 47, 84)], [[76.4, 44.4, 2], [56.7, 42.0, 2]], 111.46),
    (
        (128, 128, 3),
        [(28, 15, 91, 108), (71, 0, 57, 97), (0, 36, 73, 87)],
        [[89.9, 41.3, 2], [65.2, 34.8, 2]],
        142.19,
    ),
]


@pytest.fixture
def small(monkeypatch):
    """Few images instead of 400."""
    monkeypatch.setattr(SyntheticPoses, "splits", {"train": 5, "val": 3})


def open_split(folder, split):
    return SyntheticPoses(
        build_task(opts().parse(["multi_pose", "--dataset", "sample_hp", "--data_path", str(folder)])), split
    )


def figures_of(image_ids):
    for image_id in image_ids:
        image, figures = draw_image(np.random.default_rng((SyntheticPoses.seed, image_id)))
        for figure in figures:
            yield image, figure


def test_an_image_is_always_the_same():
    one, figures = draw_image(np.random.default_rng((SyntheticPoses.seed, 3)))
    np.random.seed(7)
    two, same = draw_image(np.random.default_rng((SyntheticPoses.seed, 3)))
    assert np.array_equal(one, two) and len(figures) == len(same)
    for figure, other in zip(figures, same, strict=True):
        assert figure["bbox"] == other["bbox"] and np.array_equal(figure["keypoints"], other["keypoints"])
    other, _ = draw_image(np.random.default_rng((SyntheticPoses.seed, 4)))
    assert one.shape != other.shape or not np.array_equal(one, other)


@pytest.mark.parametrize("k", range(len(FIRST)))
def test_recorded_images(k):
    """Other versions of the libraries may round a pixel differently, but must draw the same scene."""
    image, figures = draw_image(np.random.default_rng((SyntheticPoses.seed, k + 1)))
    shape, boxes, shoulders, brightness = FIRST[k]
    assert image.shape == shape and image.dtype == np.uint8
    np.testing.assert_allclose([figure["bbox"] for figure in figures], boxes, atol=1)
    np.testing.assert_allclose(figures[0]["keypoints"][5:7], shoulders, atol=0.11)
    assert image.mean() == pytest.approx(brightness, abs=0.3)


def test_figures():
    counts, heights, visibilities = [], [], set()
    for image_id in range(1, 41):
        image, figures = draw_image(np.random.default_rng((SyntheticPoses.seed, image_id)))
        counts.append(len(figures))
        height, width = image.shape[:2]
        assert max(height, width) == 128
        for figure in figures:
            x, y, w, h = figure["bbox"]
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height and 0 < figure["area"] < w * h
            joints = figure["keypoints"]
            assert joints.shape == (NUM_JOINTS, 3)
            visibilities |= set(joints[:, 2].tolist())
            there = joints[joints[:, 2] > 0, :2]
            assert len(there) >= 6 and (there >= 0).all() and (there <= (width - 1, height - 1)).all()
            assert (joints[joints[:, 2] == 0] == 0).all()
            seen = joints[joints[:, 2] == 2, :2]
            assert (seen >= (x - 1, y - 1)).all() and (seen <= (x + w, y + h)).all()
            heights.append(h)
    assert set(counts) == {1, 2, 3} and visibilities == {0, 1, 2}
    assert min(heights) < 70 and max(heights) > 110


def test_left_is_blue_and_right_is_red():
    """Also on the image: the left wrist, on the right of a figure that faces the viewer, has more blue than red."""
    right = checked = 0
    for image, figure in figures_of(range(1, 31)):
        for name, sign in (("left", 1), ("right", -1)):
            for joint in ("elbow", "wrist", "knee", "ankle"):
                x, y, visibility = figure["keypoints"][JOINT_NAMES.index(f"{name}_{joint}")]
                if visibility == 2:
                    blue, _, red = image[round(y), round(x)].astype(int)
                    right += sign * (blue - red) > 25
                    checked += 1
    assert checked > 200 and right > 0.97 * checked


def test_figures_face_the_viewer():
    for _, figure in figures_of(range(1, 31)):
        joints = figure["keypoints"]
        for name in ("eye", "ear", "shoulder", "hip"):
            left, right = (joints[JOINT_NAMES.index(f"{side}_{name}")] for side in ("left", "right"))
            if left[2] and right[2]:
                assert left[0] > right[0] - 2


def test_annotations(tmp_path):
    content = SyntheticPoses.draw_split(range(11, 15), tmp_path)
    assert [image["id"] for image in content["images"]] == [11, 12, 13, 14]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k:012d}.jpg" for k in range(11, 15)]
    entries = content["annotations"]
    assert [entry["id"] for entry in entries] == list(range(1, len(entries) + 1))
    for entry in entries:
        assert entry["category_id"] == 1 and len(entry["keypoints"]) == 51 and entry["iscrowd"] == 0
        assert entry["num_keypoints"] == sum(value > 0 for value in entry["keypoints"][2::3])
    (category,) = content["categories"]
    assert category["name"] == "person" and len(category["keypoints"]) == 17 and len(category["skeleton"]) == 18
    assert json.loads(json.dumps(content))["annotations"] == json.loads(json.dumps(entries))
    image = cv2.imread(str(tmp_path / content["images"][0]["file_name"]))
    assert image.shape == (content["images"][0]["height"], content["images"][0]["width"], 3)


def test_prepared_once(tmp_path, small, monkeypatch):
    folder = SyntheticPoses.locate(tmp_path)
    assert folder == tmp_path / "sample_hp" and not folder.exists()
    lines = []
    SyntheticPoses.prepare(folder, log=lines.append)
    assert len(lines) == 1 and SyntheticPoses.locate(folder) == folder
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert (train.image_ids, val.image_ids) == ([1, 2, 3, 4, 5], [6, 7, 8])
    assert train.read_image(0).shape == FIRST[0][0]
    np.testing.assert_allclose(train.read_objects(0)["boxes"][:, :2], [box[:2] for box in FIRST[0][1]], atol=1)
    assert not list(folder.rglob(".tmp-*"))

    def refuse(*_):
        raise AssertionError("drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticPoses, "draw_split", refuse)
        SyntheticPoses.prepare(folder, log=lines.append)
    assert len(lines) == 1
    (folder / "sample_hp_version").write_text("0\n")
    (folder / "train2017" / "000000000001.jpg").unlink()
    SyntheticPoses.prepare(folder, log=lines.append)
    assert len(lines) == 2 and (folder / "train2017" / "000000000001.jpg").is_file()


def test_perfect_detections(tmp_path, small):
    SyntheticPoses.prepare(SyntheticPoses.locate(tmp_path), log=lambda line: None)
    val, results = open_split(tmp_path, "val"), {}
    for index, image_id in enumerate(val.image_ids):
        objects = val.read_objects(index)
        joints = objects["joints"][:, :, :2].reshape(-1, 34)
        results[image_id] = {1: np.hstack([objects["boxes"], np.ones((len(joints), 1)), joints])}
    scores = val.evaluate(results)
    assert scores["AP"] == pytest.approx(1) and scores["box_AP"] == pytest.approx(1)


def test_data_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        SyntheticPoses.locate(tmp_path / "file")
