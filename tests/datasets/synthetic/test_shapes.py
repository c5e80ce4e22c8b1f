"""The synthetic sample: always the same images, and annotations that fit them."""

import json

import numpy as np
import pytest

from centernet.datasets.synthetic.shapes import SyntheticShapes, draw_image
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import build_task

# Shape, objects (class from 0, box) and mean brightness of the first three images.
FIRST = [
    ((96, 128, 3), [(1, (57, 9, 64, 65)), (4, (19, 74, 35, 22))], 150.78),
    ((128, 96, 3), [(3, (36, 46, 32, 15))], 111.56),
    (
        (128, 128, 3),
        [
            *[(3, (82, 4, 23, 32)), (0, (0, 0, 39, 43)), (2, (73, 80, 21, 38)), (4, (0, 77, 29, 51))],
            (2, (0, 83, 29, 29)),
        ],
        161.49,
    ),
]


@pytest.fixture
def small(monkeypatch):
    """Few images instead of 400."""
    monkeypatch.setattr(SyntheticShapes, "splits", {"pascal_trainval0712.json": 5, "pascal_test2007.json": 3})


def test_an_image_is_always_the_same():
    for image_id in (1, 7):
        one, objects = draw_image(np.random.default_rng((SyntheticShapes.seed, image_id)))
        np.random.seed(image_id)
        two, same = draw_image(np.random.default_rng((SyntheticShapes.seed, image_id)))
        assert np.array_equal(one, two) and objects == same
        other, _ = draw_image(np.random.default_rng((SyntheticShapes.seed, image_id + 1)))
        assert one.shape != other.shape or not np.array_equal(one, other)


@pytest.mark.parametrize("k", range(3))
def test_recorded_images(k):
    """Other versions of the libraries may round a pixel differently, but must draw the same scene."""
    image, objects = draw_image(np.random.default_rng((SyntheticShapes.seed, k + 1)))
    shape, expected, brightness = FIRST[k]
    assert image.shape == shape and image.dtype == np.uint8
    assert [cls for cls, _ in objects] == [cls for cls, _ in expected]
    np.testing.assert_allclose([box for _, box in objects], [box for _, box in expected], atol=1)
    assert image.mean() == pytest.approx(brightness, abs=0.3)


def test_objects():
    classes, sizes = set(), []
    for image_id in range(1, 31):
        image, objects = draw_image(np.random.default_rng((SyntheticShapes.seed, image_id)))
        height, width = image.shape[:2]
        assert max(height, width) == 128 and len(objects) <= 5
        for cls, (x, y, w, h) in objects:
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height and min(w, h) >= 8
            classes.add(cls)
            sizes.append(max(w, h))
    assert classes == set(range(5))
    assert min(sizes) < 20 and max(sizes) > 60


def test_objects_can_be_seen():
    """Objects are colorful and grounds are dull."""
    for image_id in (1, 2, 3):
        image, objects = draw_image(np.random.default_rng((SyntheticShapes.seed, image_id)))
        chroma = image.max(2).astype(int) - image.min(2)
        ground = np.ones(image.shape[:2], bool)
        for _, (x, y, w, h) in objects:
            ground[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1] = False
        for _, (x, y, w, h) in objects:
            assert np.percentile(chroma[y : y + h, x : x + w], 70) > 1.5 * np.median(chroma[ground])


def test_annotations(tmp_path):
    content = SyntheticShapes.draw_split(range(11, 15), tmp_path)
    assert [image["id"] for image in content["images"]] == [11, 12, 13, 14]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k:06d}.jpg" for k in range(11, 15)]
    assert [annotation["id"] for annotation in content["annotations"]] == list(
        range(1, len(content["annotations"]) + 1)
    )
    assert {annotation["category_id"] for annotation in content["annotations"]} <= {1, 2, 3, 4, 5}
    assert [category["name"] for category in content["categories"]] == list(SyntheticShapes.class_names)
    assert json.loads(json.dumps(content)) == content


def open_split(folder, split):
    return SyntheticShapes(
        build_task(opts().parse(["ctdet", "--dataset", "sample", "--data_path", str(folder)])), split
    )


def test_prepared_once(tmp_path, small, monkeypatch):
    folder = SyntheticShapes.locate(tmp_path)
    assert folder == tmp_path / "sample" and not folder.exists()
    lines = []
    SyntheticShapes.prepare(folder, log=lines.append)
    assert len(lines) == 1
    assert SyntheticShapes.locate(folder) == folder
    train, val = (open_split(folder, split) for split in ("train", "val"))
    assert (train.image_ids, val.image_ids) == ([1, 2, 3, 4, 5], [6, 7, 8])
    shape, objects, _ = FIRST[0]
    assert train.read_image(0).shape == shape
    assert train.read_objects(0)["cls"].tolist() == [cls for cls, _ in objects]
    assert not list(folder.rglob(".tmp-*"))

    def refuse(*_):
        raise AssertionError("drawn again")

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(SyntheticShapes, "draw_split", refuse)
        SyntheticShapes.prepare(folder, log=lines.append)
    assert len(lines) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_version_is_drawn_again(tmp_path, small):
    folder = tmp_path / "sample"
    SyntheticShapes.prepare(folder, log=lambda line: None)
    (folder / "sample_version").write_text("0\n")
    (folder / "images" / "000001.jpg").unlink()
    lines = []
    SyntheticShapes.prepare(folder, log=lines.append)
    assert len(lines) == 1 and (folder / "images" / "000001.jpg").is_file()


def test_data_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        SyntheticShapes.locate(tmp_path / "file")


def test_perfect_detections(tmp_path, small):
    folder = tmp_path / "sample"
    SyntheticShapes.prepare(folder, log=lambda line: None)
    dataset = open_split(folder, "val")
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        rows = np.hstack([objects["boxes"], np.ones((len(objects["cls"]), 1))])
        results[image_id] = {cls + 1: rows[objects["cls"] == cls] for cls in range(5)}
    scores = dataset.evaluate(results)
    present = {dataset.class_names[cls] for cls in dataset.objects["cls"]}
    assert {name for name in dataset.class_names if scores[f"AP/{name}"] == 1} == present
    assert scores["mAP"] == pytest.approx(len(present) / 5)
