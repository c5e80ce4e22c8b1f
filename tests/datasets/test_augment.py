"""Augmentation for small datasets: boxes stay on their objects, samples depend on (seed, epoch, index) alone."""

import numpy as np
import pytest

from centernet.datasets.augment import augment, repeat_factors
from centernet.datasets.policies import POLICIES, Policy

GROUND = 40


def scene(index: int):
    """An image with one to three bright rectangles, of a gray value of their own each, and their exact boxes."""
    rng = np.random.default_rng(index)
    height, width = [(96, 128), (128, 96), (128, 128)][index % 3]
    image = np.full((height, width, 3), GROUND, np.uint8)
    boxes = []
    for k in range(1 + index % 3):
        x, y = int(rng.integers(4 + 30 * k, 8 + 30 * k)), int(rng.integers(5, 40))
        w, h = int(rng.integers(14, 24)), int(rng.integers(14, 40))
        image[y : y + h, x : x + w] = 250 - 20 * k
        boxes.append([x, y, x + w, y + h])
    return image, {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "cls": np.arange(len(boxes))}


def samples(policy, count=40, epoch=1):
    return [augment(scene, 12, policy, 317, epoch, index % 12) for index in range(count)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_sample_depends_on_seed_epoch_and_index_alone(name):
    first = samples(POLICIES[name], 12)
    again = [augment(scene, 12, POLICIES[name], 317, 1, index) for index in reversed(range(12))]
    for (image, objects), (other, others) in zip(first, reversed(again), strict=True):
        assert np.array_equal(image, other) and np.array_equal(objects["boxes"], others["boxes"])
    other_epoch = samples(POLICIES[name], 12, epoch=2)
    assert sum(not np.array_equal(a[0], b[0]) for a, b in zip(first, other_epoch, strict=True)) >= 6


@pytest.mark.parametrize("name", POLICIES)
def test_objects_stay_whole_rows_inside_of_the_image(name):
    total = 0
    for image, objects in samples(POLICIES[name], 60):
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.ndim == 3
        height, width = image.shape[:2]
        boxes = objects["boxes"]
        assert boxes.dtype == np.float32 and len(boxes) == len(objects["cls"])
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 3).all()
        total += len(boxes)
    assert total > 60


@pytest.mark.parametrize(
    "policy", [Policy(mosaic=1), Policy(rotate=8), Policy(mixup=1)], ids=["mosaic", "rotate", "mixup"]
)
def test_boxes_stay_on_their_objects(policy):
    """Inside of a box it is bright, and just outside it is not (where the objects are apart)."""
    inside, at_edge = [], []
    for image, objects in samples(policy, 60):
        gray = image[:, :, 0].astype(float)
        for x1, y1, x2, y2 in objects["boxes"]:
            width, height = x2 - x1, y2 - y1
            core = gray[
                int(y1 + 0.25 * height) : int(y2 - 0.25 * height) + 1,
                int(x1 + 0.25 * width) : int(x2 - 0.25 * width) + 1,
            ]
            inside.append(core.mean())
            middle = int((y1 + y2) / 2)
            if x1 > 4:  # the left edge, seen from both sides
                at_edge.append(gray[middle, int(x1) + 3] - gray[middle, int(x1) - 4])
    assert np.mean(np.array(inside) > 110) > 0.97
    assert np.median(at_edge) > 60


def test_rotation_of_a_disc_keeps_its_box():
    import cv2

    image = np.zeros((101, 101, 3), np.uint8)
    cv2.circle(image, (70, 40), 15, (255, 255, 255), -1)
    objects = {"boxes": np.array([[55, 25, 86, 56]], np.float32), "cls": np.zeros(1, int)}
    turned, found = augment(lambda _: (image, objects), 1, Policy(rotate=30), 3, 1, 0)
    x, y, w, h = cv2.boundingRect((turned[:, :, 0] > 127).astype(np.uint8))
    np.testing.assert_allclose(found["boxes"][0], [x, y, x + w, y + h], atol=1.5)
    assert abs(found["boxes"][0, 0] - 55) > 2 or abs(found["boxes"][0, 1] - 25) > 2


def test_images_without_objects():
    empty = np.zeros((64, 48, 3), np.uint8), {"boxes": np.zeros((0, 4), np.float32), "cls": np.zeros(0, int)}
    for epoch in range(20):
        image, objects = augment(lambda _: empty, 1, POLICIES["strong"], 1, epoch, 0)
        assert image.shape == (64, 48, 3) and objects["boxes"].shape == (0, 4)


def test_the_last_epochs_show_images_one_at_a_time():
    last = POLICIES["strong"].without_composition()
    assert last.mosaic == last.mixup == 0 and last.hsv == POLICIES["strong"].hsv


def test_repeat_factors():
    """LVIS: max(1, sqrt(t / f)) of the rarest class of an image."""
    classes = [np.array([0]), np.array([0, 0]), np.array([0, 1]), np.array([], int)] * 25
    classes[7] = np.array([2])
    factors = repeat_factors(classes, 0.25)
    assert factors[0] == 1 and factors[3] == 1
    assert factors[2] == pytest.approx(1)  # a share of 0.25
    assert factors[7] == pytest.approx((0.25 / 0.01) ** 0.5)
