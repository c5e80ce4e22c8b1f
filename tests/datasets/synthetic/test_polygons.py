"""The synthetic sample of the task exdet: always the same images, and annotations that fit them."""

import json

import cv2
import numpy as np
import pytest

from centernet.datasets.synthetic.base import write_image
from centernet.datasets.synthetic.polygons import SyntheticPolygons, draw_image
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import build_task

# Shape, objects (class from 0, box) and mean brightness of the first three images.
FIRST = [
    ((96, 96, 3), [(3, [41.56, 33.24, 70.16, 53.44])], 151.52),
    (
        (96, 72, 3),
        [
            (2, [44.03, 28.97, 63.48, 51.32]),
            (3, [23.51, 66.96, 36.69, 85.13]),
            (0, [48.66, 66.99, 64.32, 78.87]),
            (3, [48.09, 8.78, 68.25, 24.14]),
        ],
        122.85,
    ),
    ((72, 96, 3), [(1, [25.65, 32.18, 62.78, 56.61])], 139.57),
]


@pytest.fixture
def small(monkeypatch):
    """Few images instead of 400."""
    monkeypatch.setattr(SyntheticPolygons, "splits", {"train": 5, "val": 3})


def open_split(data_path, split, task="exdet"):
    opt = opts().parse([task, "--dataset", "sample_ex", "--data_path", str(data_path)])
    return SyntheticPolygons(build_task(opt), split)


def image_of(image_id):
    return draw_image(np.random.default_rng((SyntheticPolygons.seed, image_id)))


def box_of(polygon):
    return [*polygon.min(0), *polygon.max(0)]


@pytest.mark.parametrize("k", range(3))
def test_recorded_images(k):
    """Other versions of the libraries may round a pixel differently, but must draw the same scene."""
    image, objects = image_of(k + 1)
    shape, expected, brightness = FIRST[k]
    assert image.shape == shape and image.dtype == np.uint8
    assert [cls for cls, _ in objects] == [cls for cls, _ in expected]
    np.testing.assert_allclose([box_of(polygon) for _, polygon in objects], [box for _, box in expected], atol=0.02)
    assert image.mean() == pytest.approx(brightness, abs=0.3)


def test_an_image_is_always_the_same():
    one, objects = image_of(7)
    np.random.seed(1)
    two, same = image_of(7)
    assert np.array_equal(one, two)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(objects, same, strict=True))


def test_objects():
    classes, sizes, counts = set(), [], set()
    for image_id in range(1, 41):
        image, objects = image_of(image_id)
        height, width = image.shape[:2]
        assert max(height, width) == 96 and 1 <= len(objects) <= 4
        counts.add(len(objects))
        boxes = np.array([box_of(polygon) for _, polygon in objects])
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        for k, box in enumerate(boxes):
            others = np.delete(boxes, k, axis=0)
            assert ((others[:, :2] > box[2:]).any(1) | (others[:, 2:] < box[:2]).any(1)).all()
            sizes.append((box[2:] - box[:2]).max())
        for cls, polygon in objects:
            assert len(polygon) == [3, 6, 8, 12][cls]
            convex = cv2.isContourConvex(polygon.astype(np.float32))
            assert convex or cls != 0
            assert not convex or cls < 2
            classes.add(cls)
    assert classes == set(range(4)) and counts == {1, 2, 3, 4}
    assert min(sizes) < 16 and max(sizes) > 45


def test_objects_are_where_they_are_annotated():
    """Inside a polygon the image is colorful, around it is not."""
    for image_id in (1, 2, 3, 4):
        image, objects = image_of(image_id)
        chroma = image.max(2).astype(int) - image.min(2)
        inside = np.zeros(image.shape[:2], np.uint8)
        for _, polygon in objects:
            cv2.fillPoly(inside, [np.rint(polygon - 0.5).astype(np.int32)], 1)
        core = cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0
        ground = cv2.dilate(inside, np.ones((5, 5), np.uint8)) == 0
        assert np.percentile(chroma[core], 10) > np.percentile(chroma[ground], 95)


def test_annotations(tmp_path):
    content = SyntheticPolygons.draw_split(range(11, 15), tmp_path)
    assert [image["id"] for image in content["images"]] == [11, 12, 13, 14]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k:06d}.png" for k in range(11, 15)]
    assert [category["name"] for category in content["categories"]] == list(SyntheticPolygons.class_names)
    for annotation in content["annotations"]:
        (_, top), (left, _), (_, bottom), (right, _) = annotation["extreme_points"]
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose([left, top, right, bottom], [x, y, x + w, y + h], atol=0.011)
        polygon = np.array(annotation["segmentation"][0]).reshape(-1, 2)
        assert annotation["area"] == pytest.approx(cv2.contourArea(polygon.astype(np.float32)), abs=0.5)
    assert json.loads(json.dumps(content)) == content


def test_prepared_once(tmp_path, small, monkeypatch):
    folder = SyntheticPolygons.locate(tmp_path)
    assert folder == tmp_path / "sample_ex" and not folder.exists()
    lines = []
    SyntheticPolygons.prepare(folder, log=lines.append)
    assert len(lines) == 1 and SyntheticPolygons.locate(folder) == folder
    train, val = (open_split(tmp_path, split) for split in ("train", "val"))
    assert (train.image_ids, val.image_ids) == ([1, 2, 3, 4, 5], [6, 7, 8])
    assert np.array_equal(train.read_image(0), image_of(1)[0])
    assert train.read_objects(0)["points"].shape == (len(image_of(1)[1]), 4, 2)
    assert open_split(tmp_path, "val", "ctdet").read_objects(0)["boxes"].shape == (len(image_of(6)[1]), 4)
    assert not list(folder.rglob(".tmp-*"))
    monkeypatch.setattr(SyntheticPolygons, "draw_split", lambda *_: pytest.fail("drawn again"))
    SyntheticPolygons.prepare(folder, log=lines.append)
    assert len(lines) == 1


def test_another_version_is_drawn_again(tmp_path, small):
    folder = tmp_path / "sample_ex"
    SyntheticPolygons.prepare(folder, log=lambda line: None)
    (folder / "sample_ex_version").write_text("0\n")
    (folder / "images" / "000001.png").unlink()
    SyntheticPolygons.prepare(folder, log=lambda line: None)
    assert (folder / "images" / "000001.png").is_file()


def test_data_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        SyntheticPolygons.locate(tmp_path / "file")


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "sample_ex").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        SyntheticPolygons.prepare(tmp_path / "sample_ex", log=lambda line: None)


def test_perfect_detections(tmp_path, small):
    SyntheticPolygons.prepare(tmp_path / "sample_ex", log=lambda line: None)
    dataset = open_split(tmp_path, "val")
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        points, cls = (dataset.read_objects(index)[name] for name in ("points", "cls"))
        boxes = np.column_stack([points[:, 1, 0], points[:, 0, 1], points[:, 3, 0], points[:, 2, 1]])
        rows = np.column_stack([boxes, np.ones(len(cls)), points.reshape(-1, 8)])
        results[image_id] = {k + 1: rows[cls == k] for k in range(4)}
    assert dataset.evaluate(results)["AP"] == pytest.approx(1)


def test_encoders_do_not_warn(tmp_path, capfd):
    """OpenCV warns on standard error of options that an encoder does not have, once for each image."""
    image = np.zeros((8, 8, 3), np.uint8)
    for suffix in (".png", ".jpg"):
        write_image(tmp_path / f"a{suffix}", image)
        assert cv2.imread(str(tmp_path / f"a{suffix}")).shape == (8, 8, 3)
    assert capfd.readouterr() == ("", "")
