"""Augmentation for small datasets: boxes stay on their objects, samples depend on (seed, epoch, index) alone."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch

from centernet.datasets import get_dataset
from centernet.datasets.augment import augment, repeat_factors
from centernet.datasets.check import check_split
from centernet.datasets.loader import Samples, TrainBatches, make_loader
from centernet.datasets.outlines import Outlines, outline_mask
from centernet.opts import opts
from centernet.policies import POLICIES, Policy
from centernet.tasks import build_task

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
    return [augment(scene, 12, policy, 317, epoch, index % 12, 1000) for index in range(count)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_sample_depends_on_seed_epoch_and_index_alone(name):
    first = samples(POLICIES[name], 12)
    again = [augment(scene, 12, POLICIES[name], 317, 1, index, 1000) for index in reversed(range(12))]
    for (image, objects), (other, others) in zip(first, reversed(again), strict=True):
        assert np.array_equal(image, other) and np.array_equal(objects["boxes"], others["boxes"])
    other_epoch = samples(POLICIES[name], 12, epoch=2)
    assert sum(not np.array_equal(a[0], b[0]) for a, b in zip(first, other_epoch, strict=True)) >= 6


@pytest.mark.parametrize("policy", [Policy(mosaic=1), Policy(rotate=5), Policy(mixup=1)], ids=str)
def test_small_objects_stay_unless_they_are_cut(policy):
    """As many labels of an object of two pixels' width as of a wide one are whole."""

    def whole(width: int) -> int:
        box = np.array([[48 - width / 2, 40, 48 + width / 2, 60]], np.float32)
        one = np.full((96, 96, 3), GROUND, np.uint8), {"boxes": box, "cls": np.zeros(1, int)}
        kept = [augment(lambda _: one, 1, policy, 317, epoch, 0, 1000)[1]["boxes"] for epoch in range(40)]
        return sum(int(((boxes > 0).all(1) & (boxes < 96).all(1)).sum()) for boxes in kept)

    assert whole(2) >= whole(20) >= 20


def test_large_images_are_composed_at_the_size_that_the_network_needs():
    wide = np.full((400, 600, 3), GROUND, np.uint8)
    wide[100:300, 150:450] = 250
    objects = {"boxes": np.array([[150, 100, 450, 300]], np.float32), "cls": np.zeros(1, int)}
    for max_side, shape in ((150, (100, 150, 3)), (600, (400, 600, 3)), (900, (400, 600, 3))):
        for epoch in range(10):
            image, found = augment(lambda _: (wide, objects), 1, Policy(mosaic=1), 317, epoch, 0, max_side)
            assert image.shape == shape
            for x1, y1, x2, y2 in np.rint(found["boxes"]).astype(int):
                assert image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 200


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
    image = np.zeros((101, 101, 3), np.uint8)
    cv2.circle(image, (70, 40), 15, (255, 255, 255), -1)
    objects = {"boxes": np.array([[55, 25, 86, 56]], np.float32), "cls": np.zeros(1, int)}
    turned, found = augment(lambda _: (image, objects), 1, Policy(rotate=30), 3, 1, 0, 1000)
    x, y, w, h = cv2.boundingRect((turned[:, :, 0] > 127).astype(np.uint8))
    np.testing.assert_allclose(found["boxes"][0], [x, y, x + w, y + h], atol=1.5)
    assert abs(found["boxes"][0, 0] - 55) > 2 or abs(found["boxes"][0, 1] - 25) > 2


def test_images_without_objects():
    empty = np.zeros((64, 48, 3), np.uint8), {"boxes": np.zeros((0, 4), np.float32), "cls": np.zeros(0, int)}
    for epoch in range(20):
        image, objects = augment(lambda _: empty, 1, POLICIES["strong"], 1, epoch, 0, 1000)
        assert image.shape == (64, 48, 3) and objects["boxes"].shape == (0, 4)


def test_the_last_epochs_show_images_one_at_a_time():
    last = replace(POLICIES["strong"], copy_paste=0.5).without_composition()
    assert last.mosaic == last.mixup == last.copy_paste == 0 and last.hsv == POLICIES["strong"].hsv


def test_repeat_factors():
    """LVIS: max(1, sqrt(t / f)) of the rarest class of an image."""
    classes = [np.array([0]), np.array([0, 0]), np.array([0, 1]), np.array([], int)] * 25
    classes[7] = np.array([2])
    factors = repeat_factors(classes, 0.25)
    assert factors[0] == 1 and factors[3] == 1
    assert factors[2] == pytest.approx(1)  # a share of 0.25
    assert factors[7] == pytest.approx((0.25 / 0.01) ** 0.5)


# Copy-paste

SOURCE, TARGET = 0, 1  # images of ``pasting``


def polygon(x, y, w, h):
    """A diamond in a box, as COCO's segmentation."""
    return [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]


def runs(mask, compressed=False):
    """A mask as COCO's uncompressed or compressed run lengths."""
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = mask.T.astype(int).ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def l_shape(height, width, x, y, side):
    mask = np.zeros((height, width), bool)
    mask[y : y + side, x : x + side // 3] = mask[y + side - side // 3 : y + side, x : x + side] = True
    return mask


def pasting(source, target, sizes=((80, 100), (90, 120))):
    """Return ``read`` of two images: objects (annotation fields) of the first are white, those of the second gray."""
    images = []
    for objects, (height, width), value in zip((source, target), sizes, (255, 120), strict=True):
        image = np.full((height, width, 3), GROUND, np.uint8)
        masks = [outline_mask(Outlines([one]).of(range(1))[0], height, width) for one in objects]
        for one, mask in zip(objects, masks, strict=True):
            x, y, w, h = map(int, one["bbox"])
            image[y : y + h, x : x + w][slice(None) if mask is None else mask[y : y + h, x : x + w]] = value
        boxes = np.array([one["bbox"] for one in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        outlines = Outlines(objects).of(range(len(objects)))
        images.append((image, {"boxes": boxes, "cls": np.arange(len(objects)), "outlines": outlines}))
    return lambda index: images[index]


def shape(x, y, w, h, **fields):
    return {"bbox": [x, y, w, h], **fields}


def pasted(read, count=40):
    """Return augmented samples of the second image, into which only objects of the first can be pasted."""
    for epoch in range(count):  # of one image to choose from, which is the source
        yield augment(read, 1, Policy(copy_paste=1), 3, epoch, TARGET, 1000)


@pytest.mark.parametrize("form", ["polygon", "runs", "compressed runs"])
def test_boxes_of_pasted_objects_are_the_extents_of_their_masks(form):
    mask = l_shape(80, 100, 30, 20, 36)
    outline = {"polygon": polygon(30, 20, 36, 36), "runs": runs(mask), "compressed runs": runs(mask, True)}[form]
    read, sides = pasting([shape(30, 20, 36, 36, segmentation=outline)], []), set()
    for image, objects in pasted(read):
        assert image.shape == (90, 120, 3) and objects.keys() == {"boxes", "cls"} and objects["cls"].tolist() == [0]
        # Scaling mixes a pixel at the edge with the ground outside, so half of the object's brightness is inside.
        x, y, w, h = cv2.boundingRect((image[:, :, 0] > GROUND).astype(np.uint8))
        np.testing.assert_allclose(objects["boxes"], [[x, y, x + w, y + h]], atol=1 if form == "polygon" else 0)
        sides.add(w)
        if form != "polygon":
            inside = image[y : y + h, x : x + w, 0] > GROUND
            assert 0.45 < inside.mean() < 0.65  # the L alone, not its box
    assert len(sides) > 15 and min(sides) < 30 and max(sides) > 55


def test_covered_objects_shrink_or_are_dropped():
    """A wide object is pasted over three: their boxes are those of the pixels that are left of their outlines."""
    wide = np.zeros((90, 120), bool)
    wide[40:75] = True
    tall = np.zeros((90, 120), bool)
    tall[10:80, 50:58] = tall[10:20, 50:100] = True
    source = [shape(0, 40, 120, 35, segmentation=runs(wide))]
    target = [shape(50.25, 10, 50, 70, segmentation=runs(tall)), shape(4, 4, 30.5, 60), shape(40, 42, 6, 4)]
    read, dropped, shrunk = pasting(source, target, sizes=((90, 120), (90, 120))), 0, 0
    for image, objects in pasted(read, 80):
        white = image[:, :, 0] > 133  # at the edge it is mixed with the ground
        boxes = dict(zip(objects["cls"].tolist(), objects["boxes"].tolist(), strict=False))
        gray = tall & ~white
        if gray.sum() >= 0.3 * tall.sum():
            rows, columns = np.flatnonzero(gray.any(1)), np.flatnonzero(gray.any(0))
            left = 50.25 if columns[0] == 50 else columns[0]
            right = 100.25 if columns[-1] == 99 else columns[-1] + 1
            top, bottom = 10 if rows[0] == 10 else rows[0], 80 if rows[-1] == 79 else rows[-1] + 1
            # The first object of either image has class 0; that of the source comes last.
            assert objects["boxes"][0].tolist() == [left, top, right, bottom]
            shrunk += [left, top, right, bottom] != [50.25, 10, 100.25, 80]
        else:
            dropped += 1
        free = ~white[4:64, 4:34]
        if free.mean() < 0.3:
            assert 1 not in boxes
        elif free.all():
            assert boxes[1] == [4, 4, 34.5, 64]
        else:  # without an outline its box counts
            rows = np.flatnonzero(free.any(1))
            assert boxes[1][1::2] == [4 + rows[0], 4 + rows[-1] + 1]
    assert dropped > 3 and shrunk > 20


def test_crowds_rectangles_and_broken_outlines_are_not_pasted():
    whole = np.ones((80, 100), bool)
    unusable = [
        shape(10, 10, 30, 30),
        shape(10, 10, 30, 30, segmentation=[]),
        shape(10, 10, 30, 30, segmentation=None),
        shape(10, 10, 30, 30, iscrowd=1, segmentation=polygon(10, 10, 30, 30)),
        shape(0, 0, 100, 80, iscrowd=1, segmentation=runs(whole)),
        shape(10, 10, 30, 30, segmentation=[[10, 10, 10, 40, 40, 40, 40, 10]]),
        shape(10, 10, 30, 30, segmentation=[[10, 10, 30, 30]]),
        shape(10, 10, 30, 30, segmentation=[[10, 10, "a", 40, 40, 40]]),
        shape(10, 10, 30, 30, segmentation=[[10, 10, 1e12, 10, 40, 40]]),
        shape(10, 10, 30, 30, segmentation=[[10, 10, float("nan"), 10, 40, 40]]),
        shape(10, 10, 30, 30, segmentation={"size": [80, 100]}),
        shape(10, 10, 30, 30, segmentation={"size": [8, 10], "counts": [3, 77]}),
        shape(10, 10, 30, 30, segmentation={"size": [80, 100], "counts": [3, 1 << 20]}),
        shape(10, 10, 30, 30, segmentation={**runs(np.ones((90, 120)), True), "size": [80, 100]}),
        shape(10, 10, 30, 30, segmentation={"size": [80, 100], "counts": [8000]}),
    ]
    for one in unusable:
        read = pasting([one], [shape(5, 5, 20, 20, segmentation=polygon(5, 5, 20, 20))])
        for image, objects in pasted(read, 4):
            assert np.array_equal(image, read(TARGET)[0]), one
            assert objects["boxes"].tolist() == [[5, 5, 25, 25]]
    assert len(Outlines(unusable[:6])) == 0


def test_pasting_from_and_into_images_without_objects():
    full = [shape(30, 20, 36, 36, segmentation=polygon(30, 20, 36, 36))]
    for source, target in (([], full), ([], []), (full, [])):
        read = pasting(source, target)
        for _, objects in pasted(read, 4):
            assert len(objects["boxes"]) == len(source) + len(target) == len(objects["cls"])
            assert objects["boxes"].dtype == np.float32


def test_copy_paste_leaves_the_other_random_numbers_alone():
    """Samples of runs without it are those from before it existed."""
    before = {
        "light": [108.0, 261.0, 1205.77, 63.0, 378.3, 669.86],
        "strong": [106.87, 262.78, 1208.55, 220.5, 378.17, 671.29],
    }
    for name, sums in before.items():
        found = [objects["boxes"].sum() for _, objects in samples(POLICIES[name], 6)]
        np.testing.assert_allclose(found, sums, atol=0.02)


def test_images_without_outlines_stay_as_they_are():
    for index in range(6):
        image, objects = augment(scene, 12, Policy(copy_paste=1), 317, 1, index, 1000)
        assert np.array_equal(image, scene(index)[0]) and np.array_equal(objects["boxes"], scene(index)[1]["boxes"])


def ctdet_samples(*arguments, split="train"):
    opt = opts().parse(["ctdet", "--dataset", "sample_ex", "--num_epochs", "10", *arguments])
    dataset = get_dataset(opt.dataset)
    dataset.prepare(dataset.locate(Path(opt.data_dir)))
    return Samples(dataset(build_task(opt), split), train=split == "train")


def test_pasted_samples_depend_on_their_key_alone():
    samples, plain = ctdet_samples("--copy_paste", "0.5"), ctdet_samples()
    keys = [(2, index) for index in range(12)]
    first, again = [samples[key] for key in keys], [samples[key] for key in reversed(keys)][::-1]
    for one, other in zip(first, again, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    changed = [not np.array_equal(one["image"], plain[key]["image"]) for one, key in zip(first, keys, strict=True)]
    assert 2 < sum(changed) < 10  # about half of them
    assert sum(one["reg_mask"].sum() for one in first) > sum(plain[key]["reg_mask"].sum() for key in keys)
    # The last 15 % of the epochs and the validation show images as they are.
    assert all(np.array_equal(samples[9, k]["image"], plain[9, k]["image"]) for k in range(6))
    val, val_plain = ctdet_samples("--copy_paste", "1", split="val"), ctdet_samples(split="val")
    assert np.array_equal(val[1, 0]["image"], val_plain[1, 0]["image"])


def test_pasted_batches_do_not_depend_on_workers():
    samples = ctdet_samples("--copy_paste", "0.7", "--augment", "light")
    batches = [
        list(islice(make_loader(samples, TrainBatches(len(samples.dataset), [8], 0, 3), workers, False), 3))
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["wh"], other["wh"])


def test_a_dataset_of_boxes_is_noted_once(tiny_voc):
    def of(*arguments):
        opt = opts().parse(["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc), *arguments])
        return get_dataset("pascal")(build_task(opt), "train"), opt

    dataset, opt = of("--copy_paste", "1")
    assert [note for note in dataset.notes if "outline" in note] == [
        f"note: --copy_paste has no effect: no object of {dataset.annotation_file} has an outline (docs/DATA.md)"
    ]
    assert not of()[0].notes
    report = "\n".join(check_split(build_task(opt), "train").lines())
    assert report.count("--copy_paste has no effect") == 1
    assert Samples(dataset, True)[1, 0]["image"].shape == (384, 384, 3)
