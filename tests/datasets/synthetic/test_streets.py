"""The generated street scenes: always the same, with annotations that match the images."""

import json

import cv2
import numpy as np
import pytest

from centernet.datasets.synthetic import streets
from centernet.datasets.synthetic.streets import HEIGHT, WIDTH, SyntheticStreets, draw_image
from centernet.errors import UserError
from centernet.ops.box3d import compute_box_3d, project_to_image, rot_y2alpha
from centernet.opts import opts
from centernet.tasks import build_task

# Objects (category, box, depth, rotation_y) and mean brightness of the first three images.
FIRST = [
    (
        116.0,
        [
            (1, (106.91, 29.56, 25.25, 62.45), 6.3948, -0.4313),
            (1, (135.44, 34.81, 19.01, 46.67), 7.824, -0.1376),
            (2, (38.13, 39.28, 72.28, 44.39), 9.0551, -2.1993),
            (4, (127.76, 24.22, 60.34, 47.86), 11.8164, 1.4489),
            (9, (229.64, 36.11, 13.72, 13.79), -1000.0, -10.0),
            (9, (0.0, 36.89, 3.59, 14.81), -1000.0, -10.0),
        ],
        120.79,
    ),
    (
        140.0,
        [
            (1, (76.66, 31.73, 22.21, 49.67), 7.896, -2.1341),
            (1, (95.73, 38.35, 12.43, 28.63), 11.676, 1.2777),
            (9, (181.31, 36.1, 5.47, 15.56), -1000.0, -10.0),
            (9, (224.45, 37.64, 9.56, 11.33), -1000.0, -10.0),
        ],
        130.02,
    ),
    (
        140.0,
        [
            (3, (203.75, 36.62, 32.75, 58.38), 6.0232, -0.7737),
            (9, (63.32, 37.64, 5.79, 10.4), -1000.0, -10.0),
        ],
        142.18,
    ),
]


@pytest.fixture
def small(monkeypatch):
    """Few images instead of 340."""
    monkeypatch.setattr(SyntheticStreets, "splits", {"train": 5, "val": 4})


def drawn(image_id):
    return draw_image(np.random.default_rng((SyntheticStreets.seed, image_id)))


def dataset(folder, split, *args):
    return SyntheticStreets(
        build_task(opts().parse(["ddd", "--dataset", "sample_ddd", "--data_path", str(folder), *args])), split
    )


def test_an_image_is_always_the_same():
    for image_id in (1, 7):
        one, calib, objects = drawn(image_id)
        np.random.seed(image_id)
        two, same_calib, same = drawn(image_id)
        assert np.array_equal(one, two) and np.array_equal(calib, same_calib) and objects == same
        assert not np.array_equal(one, drawn(image_id + 1)[0])


@pytest.mark.parametrize("k", range(3))
def test_recorded_images(k):
    """Other versions of the libraries may round a pixel differently, but must draw the same scene."""
    image, calib, objects = drawn(k + 1)
    middle, expected, brightness = FIRST[k]
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8 and calib[0, 2] == middle
    assert [entry["category_id"] for entry in objects] == [row[0] for row in expected]
    np.testing.assert_allclose([entry["bbox"] for entry in objects], [row[1] for row in expected], atol=0.1)
    np.testing.assert_allclose([entry["depth"] for entry in objects], [row[2] for row in expected], atol=1e-3)
    np.testing.assert_allclose([entry["rotation_y"] for entry in objects], [row[3] for row in expected], atol=1e-3)
    assert image.mean() == pytest.approx(brightness, abs=0.3)


def test_annotations_fit_the_camera():
    """The 3D box projects to the 2D box, and the observation angle is that of the direction of view."""
    counts, middles = dict.fromkeys(range(1, 10), 0), set()
    for image_id in range(1, 41):
        _, calib, objects = drawn(image_id)
        middles.add(calib[0, 2])
        for entry in objects:
            counts[entry["category_id"]] += 1
            x, y, w, h = entry["bbox"]
            assert 0 <= x < x + w <= WIDTH - 1 and 0 <= y < y + h <= HEIGHT - 1
            if entry["category_id"] == 9:
                assert entry["depth"] == -1000 and entry["alpha"] == -10
                continue
            corners = compute_box_3d(entry["dim"], entry["location"], entry["rotation_y"])
            pixels = project_to_image(corners, calib)
            low, high = pixels.min(0).clip(0, [WIDTH - 1, HEIGHT - 1]), pixels.max(0).clip(0, [WIDTH - 1, HEIGHT - 1])
            # The box in 3D goes around the object's parts, which leave some of its corners empty.
            assert np.all(low < [x + 1, y + 1]) and np.all(high > [x + w - 1, y + h - 1])
            covered = w * h / np.prod(high - low)
            assert covered > 0.55
            assert entry["depth"] == entry["location"][2] and 6 <= entry["depth"] <= 12
            column = calib[0, 2] + calib[0, 0] * entry["location"][0] / entry["location"][2]
            alpha = rot_y2alpha(entry["rotation_y"], column, calib[0, 2], calib[0, 0])
            assert np.cos(alpha - entry["alpha"]) > 1 - 1e-6
            assert 0 <= entry["truncated"] <= 0.4 and entry["occluded"] in (0, 1, 2)
    assert len(middles) == 2 and all(counts[category] > 4 for category in (1, 2, 3, 4, 9))
    assert counts[5] == counts[6] == counts[7] == counts[8] == 0 and counts[2] > counts[4]


def test_objects_are_where_they_are_annotated():
    """Without an object the image differs inside of its box and its shadow only."""
    seen = 0
    for image_id in range(1, 9):
        image, _, objects = drawn(image_id)
        blurred = cv2.GaussianBlur(image, (0, 0), 1).astype(float)
        for entry in objects:
            if entry["category_id"] < 5 and entry["occluded"] == 0 and entry["truncated"] < 0.05:
                x, y, w, h = (int(value) for value in entry["bbox"])
                inside = blurred[y : y + h, x : x + w].std((0, 1)).max()
                assert inside > 12
                seen += 1
    assert seen >= 6


def test_front_and_back_differ():
    """Seen from behind a car has red lights, from the front it has none."""
    calib = np.array([[200.0, 0, 128, 0], [0, 200, 38, 0], [0, 0, 1, 0]])
    red = {}
    for name, turn in (("back", -np.pi / 2), ("front", np.pi / 2)):
        canvas = np.full((HEIGHT * 3, WIDTH * 3, 3), 120, np.float32)
        dim, location, colors = np.array([1.5, 1.65, 3.9]), np.array([0, 1.65, 7.0]), np.full((3, 3), 100.0)
        streets._draw(canvas, streets.SceneObject("Car", dim, location, turn, colors), calib)
        red[name] = int(((canvas[:, :, 2] > 150) & (canvas[:, :, 1] < 60)).sum())
    assert red["back"] > 100 and red["front"] == 0


def test_annotation_file(tmp_path):
    content = SyntheticStreets.draw_split(range(11, 15), tmp_path)
    assert [image["id"] for image in content["images"]] == [11, 12, 13, 14]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k:06d}.jpg" for k in range(11, 15)]
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert [category["name"] for category in content["categories"]][:3] == list(SyntheticStreets.class_names)
    assert np.shape(content["images"][0]["calib"]) == (3, 4)
    assert json.loads(json.dumps(content)) == content


def test_prepared_once(tmp_path, small, monkeypatch):
    folder = SyntheticStreets.locate(tmp_path)
    assert folder == tmp_path / "sample_ddd" and not folder.exists()
    lines = []
    SyntheticStreets.prepare(folder, log=lines.append)
    assert len(lines) == 1 and SyntheticStreets.locate(folder) == folder
    train, val = dataset(tmp_path, "train"), dataset(tmp_path, "val")
    assert (train.image_ids, val.image_ids) == ([1, 2, 3, 4, 5], [6, 7, 8, 9])
    assert train.read_image(0).shape == (HEIGHT, WIDTH, 3)
    calib = drawn(1)[1]
    np.testing.assert_allclose(train.picture_info(0)["calib"], calib, rtol=1e-6)
    np.testing.assert_allclose(train.read_objects(0)["calib"], calib, rtol=1e-6)
    assert not list(folder.rglob(".tmp-*"))

    def refuse(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(SyntheticStreets, "draw_split", refuse)
    SyntheticStreets.prepare(folder, log=lines.append)
    assert len(lines) == 1


def test_another_version_is_drawn_again(tmp_path, small):
    folder = tmp_path / "sample_ddd"
    SyntheticStreets.prepare(folder, log=lambda line: None)
    (folder / "sample_ddd_version").write_text("0\n")
    (folder / "images" / "000001.jpg").unlink()
    lines = []
    SyntheticStreets.prepare(folder, log=lines.append)
    assert len(lines) == 1 and (folder / "images" / "000001.jpg").is_file()


def test_data_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        SyntheticStreets.locate(tmp_path / "file")


def test_perfect_detections(tmp_path):
    """Detections equal to the annotations have AP 1, those more than a meter off in depth less."""
    SyntheticStreets.prepare(tmp_path / "sample_ddd", log=lambda line: None)
    images = dataset(tmp_path, "val")
    content = json.loads(images.annotation_file.read_text())
    exact = {image_id: {cls: [] for cls in (1, 2, 3)} for image_id in images.image_ids}
    score = 1.0
    for entry in content["annotations"]:
        if entry["category_id"] <= 3:
            x, y, w, h = entry["bbox"]
            row = [entry["alpha"], x, y, x + w, y + h, *entry["dim"], *entry["location"], entry["rotation_y"]]
            exact[entry["image_id"]][entry["category_id"]].append([*row, score])
            score += 1  # KITTI's evaluation looks at scores that differ
    results = {i: {cls: np.float32(rows).reshape(-1, 13) for cls, rows in found.items()} for i, found in exact.items()}
    scores = images.evaluate(results)
    assert list(scores)[: len(images.score_names)] == list(images.score_names)
    for name in ("AP3D", "APBEV", "AP2D", "AOS", "official/AP3D/Car_moderate"):
        assert scores[name] == pytest.approx(1, abs=1e-3), name
    assert min(scores[f"AP3D/{name}_moderate"] for name in images.class_names) > 0.7
    for found in results.values():
        for rows in found.values():
            rows[:, 10] += 1.2
    shifted = images.evaluate(results)
    assert shifted["AP2D"] == scores["AP2D"]
    assert shifted["AP3D"] < 0.9 and shifted["official/AP3D/Car_moderate"] < 0.2
    nothing = {i: {cls: np.zeros((0, 13), np.float32) for cls in (1, 2, 3)} for i in images.image_ids}
    assert set(images.evaluate(nothing).values()) == {0.0}
