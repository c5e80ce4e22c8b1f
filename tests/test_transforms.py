"""Random crops and colors: source, meaning and replay of the random numbers."""

import json

import cv2
import numpy as np
import pytest
from tests.helpers.conformance import CONFORMANCE, needs_conformance

from centernet import transforms
from centernet.ops.image import get_affine_transform
from centernet.opts import opts
from centernet.tasks.ctdet import Ctdet
from centernet.transforms import (
    CROP_SCALES,
    EIG_VAL,
    EIG_VEC,
    View,
    border,
    color_matrix,
    full_view,
    random_view,
    replayed_rng,
    sample_rng,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def options(*args):
    return opts().parse(["ctdet", "--dataset", "pascal", "--input_res", "64", *args])


def noise_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jitter_step_by_step(pixels, color):
    """The color jitter as the reference does it: one step after the other on a float image."""
    image = pixels.astype(np.float64) / 255
    gray = image @ [0.114, 0.587, 0.299]
    mean_gray = gray.mean()
    for name in color["order"]:
        alpha = color["alpha"][name]
        if name == "brightness":
            image = image * alpha
        elif name == "contrast":
            image = image * alpha + (1 - alpha) * mean_gray
        else:
            image = image * alpha + (1 - alpha) * gray[:, :, None]
    return image + EIG_VEC.astype(np.float64) @ (EIG_VAL * np.asarray(color["lighting"]))


def apply(matrix, image):
    return image @ matrix[:, :3].T.astype(np.float64) + matrix[:, 3]


class Recorder(transforms.AugmentationRng):
    """AugmentationRng numbers and writes down which, in the form of the conformance files."""

    def __init__(self, rng):
        super().__init__(rng=rng)
        self.log = {"draws": [], "color": None}

    def _next(self, function, draw):
        value = draw(self.rng)
        self.log["draws"].append([function, float(value)])
        return value

    def color(self):
        drawn = super().color()
        self.log["color"] = {**drawn, "lighting": list(drawn["lighting"])}
        return drawn


# Color


@pytest.mark.parametrize("seed", range(8))
def test_color_matrix_is_the_jitter_step_by_step(seed):
    image = noise_image(20, 30, seed) // (seed + 1)
    color = sample_rng(1, 2, seed).color()
    expected = (jitter_step_by_step(image, color) - MEAN) / STD
    matrix = color_matrix(image, color, MEAN, STD)
    assert matrix.shape == (3, 4) and matrix.dtype == np.float32
    np.testing.assert_allclose(apply(matrix, image), expected, atol=5e-6)


def test_order_of_the_steps_matters():
    image = noise_image(20, 30)
    color = {"alpha": {"brightness": 0.7, "contrast": 1.3, "saturation": 0.8}, "lighting": [0, 0, 0]}
    one = color_matrix(image, {**color, "order": ["brightness", "contrast", "saturation"]}, MEAN, STD)
    other = color_matrix(image, {**color, "order": ["contrast", "brightness", "saturation"]}, MEAN, STD)
    assert np.abs(one - other).max() > 0.1


def test_normalization_only():
    image = noise_image(8, 9)
    np.testing.assert_allclose(
        apply(color_matrix(image, None, MEAN, STD), image), (image / 255 - MEAN) / STD, atol=2e-6
    )


@needs_conformance
def test_against_the_reference():
    with np.load(CONFORMANCE / "color_aug.npz", allow_pickle=False) as file:
        reference = dict(file)
    names = ("brightness", "contrast", "saturation")
    assert np.array_equal(EIG_VAL, reference["eig_val"]) and np.array_equal(EIG_VEC, reference["eig_vec"])
    for k in range(int(reference["n"])):
        image = reference[f"img{k}"]
        color = {
            "order": reference[f"order{k}"].tolist(),
            "alpha": dict(zip(names, reference[f"alpha{k}"], strict=True)),
            "lighting": reference[f"lighting{k}"],
        }
        plain = color_matrix(image, color, (0, 0, 0), (1, 1, 1))
        np.testing.assert_allclose(apply(plain, image), reference[f"out{k}"], atol=2e-6)
        for name in ("coco", "pascal"):
            mean, std = reference[f"mean_{name}"], reference[f"std_{name}"]
            matrix = color_matrix(image, color, mean, std)
            np.testing.assert_allclose(apply(matrix, image), reference[f"out{k}_norm_{name}"], atol=2e-6 / std.min())


# Numbers


def all_draws(draws):
    return [
        draws.choice(CROP_SCALES),
        draws.randint(10, 200),
        draws.randint(10, 200),
        draws.random(),
        draws.randn(),
        json.dumps(draws.color(), default=list),
    ]


def test_draws_depend_on_seed_epoch_and_index_alone():
    once = all_draws(sample_rng(317, 4, 25))
    np.random.seed(0)
    sample_rng(317, 4, 26).randn()
    assert all_draws(sample_rng(317, 4, 25)) == once
    for other in ((318, 4, 25), (317, 5, 25), (317, 4, 26), (317, 25, 4), (4, 317, 25)):
        assert all_draws(sample_rng(*other))[1:] != once[1:]


def test_distributions():
    many = [sample_rng(0, 1, k) for k in range(1500)]
    scales = np.array([draws.choice(CROP_SCALES) for draws in many])
    assert np.bincount(np.searchsorted(CROP_SCALES, scales), minlength=8).min() > 130
    whole = np.array([draws.randint(3, 7) for draws in many])
    assert set(whole) == {3, 4, 5, 6}
    normal = np.array([draws.randn() for draws in many])
    assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.07
    uniform = np.array([draws.random() for draws in many])
    assert 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.03
    colors = [draws.color() for draws in many]
    assert len({tuple(color["order"]) for color in colors}) == 6
    alpha = np.array([[color["alpha"][name] for name in ("brightness", "contrast", "saturation")] for color in colors])
    assert 0.6 <= alpha.min() < 0.61 and 1.39 < alpha.max() <= 1.4
    assert np.abs(np.corrcoef(alpha.T) - np.eye(3)).max() < 0.1
    lighting = np.array([color["lighting"] for color in colors])
    assert lighting.shape[1] == 3 and abs(lighting.std() - 0.1) < 0.005 and abs(lighting.mean()) < 0.01


def test_crop_scales():
    assert CROP_SCALES.tolist() == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    assert len(CROP_SCALES) == 8


@pytest.mark.parametrize(
    ("size", "expected"),
    [(500, 128), (257, 128), (256, 64), (129, 64), (128, 32), (65, 32), (64, 16), (33, 16), (32, 8), (2, 0)],
)
def test_border(size, expected):
    assert border(size) == expected
    assert size > 2 * border(size)


# Cuts


@pytest.mark.parametrize("args", [[], ["--not_rand_crop"], ["--no_color_aug", "--flip", "1"]])
def test_a_recorded_sample_can_be_replayed(args):
    opt = options(*args)
    image = noise_image(150, 210)
    objects = {"boxes": np.float32([[20, 30, 120, 100], [5, 5, 60, 140]]), "cls": np.array([3, 7])}
    for index in range(6):
        recorder = Recorder(np.random.default_rng((317, 1, index)))
        drawn = Ctdet(opt).encode(image, objects, sample_rng(317, 1, index), True)
        recorded = Ctdet(opt).encode(image, objects, recorder, True)
        log = json.loads(json.dumps(recorder.log))
        replayed = Ctdet(opt).encode(image, objects, replayed_rng(log), True)
        assert len(log["draws"]) == 4 and (log["color"] is None) == opt.no_color_aug
        assert drawn.keys() == replayed.keys()
        for name in drawn:
            assert np.array_equal(drawn[name], recorded[name]), name
            assert np.array_equal(drawn[name], replayed[name]), name


def test_a_record_of_something_else_is_refused():
    with pytest.raises(ValueError, match="choice"):
        random_view(100, 100, options(), replayed_rng({"draws": [["randn", 0.5]], "color": None}))
    with pytest.raises(ValueError, match="random"):
        record = {"draws": [["choice", 1.0], ["randint", 50], ["randint", 50]], "color": None}
        random_view(100, 100, options(), replayed_rng(record))


def test_replaying_leaves_the_record():
    record = {"draws": [["choice", 0.7], ["randint", 60], ["randint", 40], ["random", 0.9]], "color": None}
    first = random_view(100, 120, options(), replayed_rng(record))
    second = random_view(100, 120, options(), replayed_rng(record))
    assert len(record["draws"]) == 4
    assert first.scale == second.scale == pytest.approx(84)
    assert first.center.tolist() == second.center.tolist() == [60, 40]
    assert not first.flipped


def test_flip_mirrors_the_center():
    record = {"draws": [["choice", 1.0], ["randint", 50], ["randint", 40], ["random", 0.49]], "color": None}
    view = random_view(100, 120, options(), replayed_rng(record))
    assert view.flipped and view.center.tolist() == [120 - 50 - 1, 40]
    view = random_view(100, 120, options("--flip", "0.4"), replayed_rng(record))
    assert not view.flipped and view.center.tolist() == [50, 40]


def test_jitter_is_limited():
    """Shift and scale are clipped at two and one standard deviations."""
    record = {"draws": [["randn", 9.0], ["randn", -9.0], ["randn", 9.0], ["random", 0.9]], "color": None}
    view = random_view(100, 200, options("--not_rand_crop"), replayed_rng(record))
    assert view.center.tolist() == pytest.approx([100 + 200 * 0.2, 50 - 200 * 0.2])
    assert view.scale == pytest.approx(200 * 1.4)
    record["draws"][0][1], record["draws"][2][1] = 0.5, -9.0
    view = random_view(100, 200, options("--not_rand_crop", "--shift", "0.2"), replayed_rng(record))
    assert view.center[0] == pytest.approx(100 + 200 * 0.1)
    assert view.scale == pytest.approx(200 * 0.6)


def test_random_cuts():
    opt = options()
    views = [random_view(150, 300, opt, sample_rng(1, 1, k)) for k in range(400)]
    centers = np.array([view.center for view in views])
    flipped = np.array([view.flipped for view in views])
    x = np.where(flipped, 300 - centers[:, 0] - 1, centers[:, 0])
    assert x.min() >= 128 and x.max() < 172
    assert centers[:, 1].min() >= 64 and centers[:, 1].max() < 86
    assert {round(view.scale / 300, 6) for view in views} == {round(float(scale), 6) for scale in CROP_SCALES}
    assert 150 < flipped.sum() < 250
    assert all(view.input_size == (64, 64) and view.output_size == (16, 16) for view in views)


def test_whole_images():
    view = full_view(150, 200, options("--input_h", "96", "--input_w", "160"))
    assert (view.input_size, view.output_size, view.scale) == ((160, 96), (40, 24), 200)
    assert view.center.tolist() == [100, 75] and not view.flipped
    view = full_view(427, 640, options("--keep_res"))
    assert (view.input_size, view.output_size) == ((672, 448), (168, 112))
    assert view.scale.tolist() == [672, 448]
    assert full_view(480, 512, options("--keep_res")).input_size == (544, 512)


@pytest.mark.parametrize("flipped", [False, True])
def test_warp_equals_the_plain_one(flipped):
    image = np.random.default_rng(0).integers(0, 256, (67, 91, 3), dtype=np.uint8)
    view = View(np.array([40.3, 30.9], np.float32), 83.7, flipped, (64, 96), (16, 24), rot=11.0)
    matrix = get_affine_transform(view.center, view.scale, view.rot, (64, 96))
    expected = cv2.warpAffine(image[:, ::-1] if flipped else image, matrix, (64, 96), flags=cv2.INTER_LINEAR)
    assert np.array_equal(view.warp(image), expected)


def test_warp_of_an_unscaled_view():
    """With --keep_res the image is moved to the middle of a black frame, and flipped when the view says so."""
    image = noise_image(32, 64)
    view = full_view(32, 64, options("--keep_res"))
    warped = view.warp(image)
    assert warped.shape == (64, 96, 3) and warped.dtype == np.uint8
    assert np.array_equal(warped[16:48, 16:80], image)
    warped[16:48, 16:80] = 0
    assert not warped.any()
    view.flipped = True
    assert np.array_equal(view.warp(image)[16:48, 16:80], image[:, ::-1])
