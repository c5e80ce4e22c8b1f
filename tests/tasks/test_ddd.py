"""3D boxes: targets, loss, decoding and geometry against the reference, and their round trip."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.conformance import CONFORMANCE, needs_conformance
from tests.helpers.tasks import random_outputs

from centernet.datasets import build_sample
from centernet.datasets.loader import collate, finish_batch
from centernet.errors import UserError
from centernet.ops import box3d
from centernet.opts import opts
from centernet.tasks import ddd
from centernet.tasks.ddd import Ddd, DddLoss, ddd_decode, ddd_post_process
from centernet.transforms import replayed_rng
from centernet.visualization import Canvas, build_visualizer, draw_boxes, restore_image
from centernet.visualization import ddd as visualization_3d

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ddd.json").read_text())
TARGETS = ("hm", "reg_mask", "rot_mask", "ind", "dep", "dim", "rotbin", "rotres", "wh", "reg")
SAMPLES = {
    *("train_noaug", "train_aug", "train_default", "train_default2", "val", "val_keep_res", "val_ignore"),
    *("val_ignore_rect", "train_ignore_aug", "train_ignore_rect", "val_edge_boxes", "val_max_objs", "val_empty"),
    *("train_empty", "val_not_reg_bbox", "val_not_reg_offset", "val_mse_loss", "val_mse_loss_square", "val_no_calib"),
}
LOSS_CASES = {
    "ddd": [],
    "ddd_2stacks": [],
    "ddd_aug": [],
    "ddd_empty": [],
    "ddd_mse": ["--mse_loss"],
    "ddd_weights": ["--dep_weight", "0.5", "--dim_weight", "2", "--rot_weight", "0.3", "--not_reg_bbox"],
}
CALIB = ddd.DEFAULT_CALIB


def options(*args):
    return opts().parse(["ddd", "--dataset", "kitti", "--input_h", "96", "--input_w", "320", *args])


def annotation(bbox, category_id=2, **more):
    return {"bbox": bbox, "category_id": category_id, "alpha": 0.3, "depth": 20.0, "dim": [1.5, 1.6, 4.0], **more}


def sample_of(annotations, *args, size=(94, 310), split="val", draws=()):
    record = {"draws": list(draws), "color": None}
    return build_sample(np.zeros((*size, 3), np.uint8), annotations, options(*args), record, split, calib=CALIB)


def assert_equal_arrays(value, expected, name):
    assert value.shape == expected.shape and value.dtype == expected.dtype, name
    if np.issubdtype(value.dtype, np.integer):
        assert np.array_equal(value, expected), name
    else:
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=name)


# Targets


@pytest.fixture(scope="module")
def reference():
    cases = json.loads((CONFORMANCE / "samples_ddd.json").read_text())["cases"]
    with np.load(CONFORMANCE / "samples_ddd.npz", allow_pickle=False) as file:
        return {case["name"]: case for case in cases}, dict(file)


@needs_conformance
def test_no_case_is_missing(reference):
    assert set(reference[0]) == SAMPLES


@needs_conformance
@pytest.mark.parametrize("name", sorted(SAMPLES - {"val_no_calib"}))
def test_sample(reference, name):
    cases, arrays = reference
    case = cases[name]
    opt = opts().parse(["ddd", "--dataset", "kitti", *case["args"]])
    record = {"draws": case["draws"], "color": None}
    image = arrays[f"image{case['image']}"]
    sample = build_sample(image, case["annotations"], opt, record, case["split"], calib=case["calib"])
    for field in TARGETS:
        assert (field in sample) == (field in case["fields"]), field
        if field in sample:
            assert_equal_arrays(sample[field], arrays[f"{name}/{field}"], field)
    assert np.array_equal(sample["hm"] == 1, arrays[f"{name}/hm"] == 1)
    assert ("meta" in sample) == ("meta_c" in case["fields"])
    if "meta" in sample:
        for field in ("c", "s", "gt_det", "calib"):
            assert_equal_arrays(sample["meta"][field], arrays[f"{name}/meta_{field}"], field)

    # OpenCV 5 warps exactly; versions before it round positions, which the golden values (OpenCV 3) have.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    version, tolerance = ("opencv5", 2e-5) if exact else ("opencv3", 0.09)
    assert sample["input"].shape == tuple(arrays[f"{name}/input_shape"])
    expected = arrays[f"{name}/input_sub_{version}"]
    np.testing.assert_allclose(sample["input"][:, ::3, ::3], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", GOLDEN["samples"], ids=[case["name"] for case in GOLDEN["samples"]])
def test_golden_targets(case):
    opt = options(*case["args"])
    image = np.zeros((*case["size"], 3), np.uint8)
    record = {"draws": case["draws"], "color": None}
    sample = build_sample(image, case["annotations"], opt, record, case["split"], calib=case["calib"])
    slots = np.flatnonzero(sample["rot_mask"])
    assert slots.tolist() == case["slots"]
    assert sample["reg_mask"].sum() == case["reg_mask"]
    for field in ("ind", "dep", "dim", "rotbin", "rotres", "wh", "reg"):
        assert (field in sample) == (field in case)
        if field in sample:
            np.testing.assert_allclose(sample[field][slots], case[field], atol=1e-5, err_msg=field)
            others = np.delete(sample[field], slots, axis=0)
            assert not others.any()
    hm = sample["hm"].astype(np.float64)
    np.testing.assert_allclose([hm.sum(), (hm * hm).sum()], case["hm"], rtol=1e-6)
    assert (hm == 1).sum() == case["hm_ones"]
    assert (sample["hm"] == np.float32(0.9999)).sum() == case["hm_9999"]
    assert ("meta" in sample) == ("gt_det" in case)
    if "meta" in sample:
        np.testing.assert_allclose(sample["meta"]["gt_det"], case["gt_det"], atol=1e-5)
        assert sample["meta"]["c"].tolist() == case["meta_c"] and sample["meta"]["s"].tolist() == case["meta_s"]


def test_the_order_of_drawing_counts():
    """An ignored object lowers a peak that is there before it, and not one that comes later."""
    box = [50, 20, 60, 40]
    x, y = 80 * (50 + 30) // 310, 24 * (20 + 20) // 94
    for order, heat in (([2, 4], 0.9999), ([4, 2], 1.0), ([2, 4, 2, 4], 0.9999), ([4, 4, 2], 1.0), ([2, 7], 1.0)):
        for mask in ([], ["--rect_mask"]):
            hm = sample_of([annotation(box, category) for category in order], *mask)["hm"]
            assert hm[1, y, x] == np.float32(heat), (order, mask)
            assert not hm[[0, 2]].any()


@pytest.mark.parametrize(("category", "maps"), [(4, [1]), (5, [1]), (6, [0]), (7, []), (8, []), (9, [0, 1, 2])])
def test_ignored_categories(category, maps):
    plain, rect = (sample_of([annotation([50, 20, 60, 40], category)], *args) for args in ([], ["--rect_mask"]))
    for sample in (plain, rect):
        drawn = [cls for cls in range(3) if sample["hm"][cls].any()]
        assert drawn == maps and not sample["rot_mask"].any() and not sample["ind"].any()
        assert sample["hm"].max(initial=0) == (np.float32(0.9999) if maps else 0)
        assert sample["meta"]["gt_det"].shape == (1, 18)
    if maps:
        assert (plain["hm"][maps[0]] == np.float32(0.9999)).sum() == 1
        assert (plain["hm"][maps[0]] > 0).sum() > 9
        assert (rect["hm"][maps[0]] == np.float32(0.9999)).sum() == (rect["hm"][maps[0]] > 0).sum() > 100


def test_jitter():
    """A jittered image shows the object elsewhere, and depth and size in meters are not learned from it."""
    args = ("--aug_ddd", "0.5", "--scale", "0.4", "--shift", "0.1")
    one = annotation([100, 30, 60, 40])
    draws = [["random", 0.49], ["randn", 5.0], ["randn", -0.5], ["randn", 0.25]]
    moved = sample_of([one], *args, split="train", draws=draws)
    still = sample_of([one], *args, split="train", draws=[["random", 0.5]])
    assert still["reg_mask"][0] == still["rot_mask"][0] == moved["rot_mask"][0] == 1 and moved["reg_mask"][0] == 0
    np.testing.assert_allclose(moved["wh"][0], still["wh"][0] / 1.4, rtol=1e-4)  # 5 is clipped to scale 1.4
    center = [moved["ind"][0] % 80, moved["ind"][0] // 80] + moved["reg"][0]
    expected = (np.array([130, 50]) - [155 - 0.05 * 310, 47 + 0.025 * 94]) * 80 / (1.4 * 310) + [40, 12]
    np.testing.assert_allclose(center, expected, atol=1e-3)
    assert moved["dep"][0] == still["dep"][0] == 20


def test_missing_calibration_is_reported():
    image = np.zeros((94, 310, 3), np.uint8)
    with pytest.raises(UserError, match="calib"):
        build_sample(image, [annotation([50, 20, 60, 40])], options(), None, "val")


def test_annotations_that_lack_something():
    with pytest.raises(ValueError, match="depth"):
        Ddd(options()).read_objects([{"bbox": [1, 2, 3, 4], "category_id": 1, "alpha": 0, "dim": [1, 2, 3]}], {1: 0})
    with pytest.raises(ValueError, match="dim"):
        Ddd(options()).read_objects([annotation([1, 2, 3, 4], dim=[1, 2])], {2: 0})
    with pytest.raises(KeyError, match="10"):
        Ddd(options()).read_objects([annotation([1, 2, 3, 4], 10)], {2: 0})
    nothing = Ddd(options()).read_objects([], {2: 0})
    assert [nothing[name].shape for name in ("boxes", "cls", "dep", "dim", "alpha")] == [
        *((0, 4), (0,), (0, 1), (0, 3), (0,))
    ]


def test_orientation_of_all_angles():
    """Every angle is in a bin, and is recovered from the channels of that bin."""
    alpha = np.linspace(-np.pi, np.pi, 101)
    rotbin, rotres = ddd.orientation_bins(alpha)
    assert rotbin.any(1).all() and rotbin.all(1).any()
    channels = ddd._orientation_channels(rotbin, rotres)
    for k in range(2):
        only = channels.copy()
        only[:, 4 * (1 - k) + 1] = -1  # the other bin loses
        members = rotbin[:, k] == 1
        error = ddd.get_alpha(only)[members] - alpha[members]
        np.testing.assert_allclose(np.cos(error), 1, atol=1e-6)


# Loss


@pytest.fixture(scope="module")
def losses():
    with np.load(CONFORMANCE / "losses.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith("ddd")}


@needs_conformance
def test_no_loss_case_is_missing(losses):
    assert {name.split("/")[0] for name in losses} == set(LOSS_CASES)


@needs_conformance
@pytest.mark.parametrize("case", LOSS_CASES)
def test_loss(losses, case):
    outputs = [
        {
            head: torch.from_numpy(losses[f"{case}/out{stack}_{head}"]).clone().requires_grad_()
            for head in ("hm", "dep", "rot", "dim", "wh", "reg")
        }
        for stack in range(int(losses[f"{case}/num_stacks"]))
    ]
    start = f"{case}/batch_"
    batch = {name[len(start) :]: torch.from_numpy(losses[name]) for name in losses if name.startswith(start)}
    loss, parts = DddLoss(options(*LOSS_CASES[case]))(outputs, batch)
    assert list(parts) == ["loss", "hm_loss", "dep_loss", "dim_loss", "rot_loss", "wh_loss", "off_loss"]
    assert parts["loss"] is loss
    for name, value in parts.items():
        assert value.item() == pytest.approx(float(losses[f"{case}/stat_{name}"]), rel=1e-5, abs=1e-12), name
    loss.backward()
    for stack, output in enumerate(outputs):
        for head, value in output.items():
            if losses[f"{case}/gradnone{stack}_{head}"]:
                assert value.grad is None, head
            else:
                expected = losses[f"{case}/grad{stack}_{head}"]
                np.testing.assert_allclose(
                    value.grad.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=head
                )


@pytest.mark.parametrize("case", GOLDEN["loss"])
def test_golden_loss(case):
    golden = GOLDEN["loss"][case]
    batch = {name: torch.tensor(golden[name]) for name in TARGETS if name in golden}
    output = {"hm": torch.full((2, 3, 16, 20), -50.0)}
    for head, channels in (("dep", 1), ("rot", 8), ("dim", 3), ("wh", 2), ("reg", 2)):
        maps = torch.full((2, channels, 320), 1000.0)
        for b in range(2):
            for cell, vector in zip(golden["ind"][b], golden[f"out_{head}"][b], strict=True):
                maps[b, :, cell] = torch.tensor(vector)
        output[head] = maps.view(2, channels, 16, 20)
    loss, parts = DddLoss(options())([output], {**batch, "hm": torch.zeros(2, 3, 16, 20)})
    for name in ("dep_loss", "dim_loss", "rot_loss", "wh_loss", "off_loss"):
        assert parts[name].item() == pytest.approx(golden[name], rel=1e-5, abs=1e-12), name
    total = sum(golden[name] for name in ("dep_loss", "dim_loss", "rot_loss", "off_loss")) + 0.1 * golden["wh_loss"]
    assert loss.item() == pytest.approx(total + parts["hm_loss"].item(), rel=1e-5)


def random_batch(*args, seed=0, images=4):
    """Finished training targets of random objects on black images, and the options; the second has none."""
    opt = options("--aug_ddd", "0", *args)
    rng = np.random.default_rng(seed)
    samples = []
    for k in range(images):
        annotations = []
        for _ in range(0 if k == 1 else 6):
            box = [*rng.uniform(0, [250, 60]), *rng.uniform(10, [70, 40])]
            more = {"alpha": rng.uniform(-3.1, 3.1), "depth": rng.uniform(3, 60), "dim": rng.uniform(1, 4, 3).tolist()}
            annotations.append(annotation(box, int(rng.choice([1, 2, 3, 4, 9], p=[0.2, 0.4, 0.2, 0.1, 0.1])), **more))
        objects = {**Ddd(options()).read_objects(annotations, {1: 0, 2: 1, 3: 2}), "calib": CALIB}
        draws = replayed_rng({"draws": [["random", 0.5]]})
        samples.append(Ddd(opt).encode(np.zeros((94, 310, 3), np.uint8), objects, draws, True))
    return finish_batch(collate(samples), Ddd(opt)), opt


def test_ground_truth_in_place_of_the_heads():
    batch, opt = random_batch("--eval_oracle_hm", "--eval_oracle_dep")
    output = random_outputs(batch, opt)[0]
    replaced = Ddd.criterion(opt).with_oracle(output, batch)
    torch.testing.assert_close(replaced["hm"].sigmoid(), batch["hm"])
    assert all(torch.equal(replaced[head], output[head]) for head in ("rot", "dim", "wh", "reg"))
    depth = ddd.depth_of(replaced["dep"]).flatten(1)
    slots = batch["rot_mask"].nonzero().tolist()
    assert len(slots) > 10
    for b, k in slots:
        assert depth[b, batch["ind"][b, k]].item() == pytest.approx(batch["dep"][b, k].item(), rel=1e-3)
    loss, parts = DddLoss(opt)([output], batch)
    assert loss.isfinite() and parts["dep_loss"] < 1e-3 and parts["dim_loss"] > 0.01


# Decoding


@pytest.fixture(scope="module")
def decoding():
    with np.load(CONFORMANCE / "decode.npz", allow_pickle=False) as file:
        return dict(file)


@needs_conformance
def test_decoding(decoding):
    heat, rot, dep, dim, wh, reg = (
        torch.from_numpy(decoding[f"ddd_{name}"]) for name in ("hm", "rot", "dep", "dim", "wh", "reg")
    )
    K = int(decoding["ddd_K"])
    for name, dets in {
        "dets": ddd_decode(heat, rot, dep, dim, wh, reg, K=K),
        "dets_nowh": ddd_decode(heat, rot, dep, dim, None, reg, K=K),
        "dets_noreg": ddd_decode(heat, rot, dep, dim, wh, None, K=K),
    }.items():
        assert dets.dtype == torch.float32
        np.testing.assert_allclose(dets.numpy(), decoding[f"ddd_{name}"], rtol=1e-5, atol=1e-5, err_msg=name)
    raw = torch.from_numpy(decoding["dep_raw"])
    np.testing.assert_allclose(ddd.depth_of(raw), decoding["dep_transformed"], rtol=1e-5)
    np.testing.assert_allclose(ddd.get_alpha(decoding["alpha_rot"]), decoding["alpha_out"], atol=1e-6)


@needs_conformance
def test_post_processing(decoding):
    opt = options()
    dets, c, s = decoding["ddd_dets"], [decoding["ddd_post_center"]], [decoding["ddd_post_scale"]]
    before = dets.copy()
    flat = ddd.ddd_post_process_2d(dets, c, s, opt)[0]
    rows = ddd_post_process(dets, c, s, [decoding["ddd_post_calib"]], opt)[0]
    assert list(rows) == [1, 2, 3] and np.array_equal(dets, before)
    for cls in rows:
        assert rows[cls].dtype == np.float32
        np.testing.assert_allclose(flat[cls], decoding[f"ddd_post2d_cls{cls}"], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(rows[cls], decoding[f"ddd_post_cls{cls}"], rtol=1e-5, atol=1e-4)


def golden_maps():
    """The maps in which the golden peaks stand alone."""
    classes, height, width = GOLDEN["decode"]["size"]
    heat = torch.zeros(1, classes, height, width)
    maps = [torch.zeros(1, channels, height, width) for channels in (8, 1, 3, 2, 2)]
    for cls, y, x, score, *vector in GOLDEN["decode"]["peaks"]:
        heat[0, cls, y, x] = score
        for values, part in zip(maps, np.split(np.float32(vector), [8, 9, 12, 14]), strict=True):
            values[0, :, y, x] = torch.from_numpy(part)
    return heat, maps


def test_golden_decoding():
    heat, (rot, dep, dim, wh, reg) = golden_maps()
    golden = GOLDEN["decode"]
    K = len(golden["peaks"])
    dets = ddd_decode(heat, rot, dep, dim, wh, reg, K=K)
    np.testing.assert_allclose(dets[0], golden["rows"], rtol=1e-5, atol=1e-5)
    without = ddd_decode(heat, rot, dep, dim, None, None, K=K)[0]
    np.testing.assert_allclose(without[:, :2], golden["rows_without_reg"], rtol=1e-5)
    np.testing.assert_allclose(without[:, 2:15], dets[0, :, 2:15])

    post = golden["post"]
    c, s = [np.float32(post["center"])], [np.int32(post["scale"])]
    results = ddd_post_process(dets.numpy(), c, s, [np.float32(post["calib"])], options())[0]
    rows = sorted(([cls, *row] for cls, found in results.items() for row in found), key=lambda row: -row[13])
    np.testing.assert_allclose(rows, post["rows"], rtol=1e-5, atol=1e-4)


def test_golden_angles_and_depths():
    np.testing.assert_allclose(ddd.get_alpha(np.float32(GOLDEN["alpha"]["rot"])), GOLDEN["alpha"]["alpha"], atol=1e-6)
    depth = ddd.depth_of(torch.tensor(GOLDEN["depth"]["raw"]))
    np.testing.assert_allclose(depth, GOLDEN["depth"]["depth"], rtol=1e-5)


def perfect_output(batch, opt):
    """Return maps that contain the targets at every cell of an object."""
    size = batch["hm"].shape[2:]
    output = {"hm": torch.logit(batch["hm"], eps=1e-6)}
    channels = torch.from_numpy(
        ddd._orientation_channels(batch["rotbin"].flatten(0, 1).numpy(), batch["rotres"].flatten(0, 1).numpy())
    ).view(*batch["ind"].shape, 8)
    raw = torch.logit(1 / (batch["dep"].double() + 1) - 1e-6).float()
    targets = {"dep": raw, "rot": channels, "dim": batch["dim"], "wh": batch.get("wh"), "reg": batch.get("reg")}
    for head, values in targets.items():
        if head in opt.heads:
            maps = torch.zeros(len(values), values.shape[2], size[0] * size[1])
            for b, k in batch["rot_mask"].nonzero().tolist():
                maps[b, :, batch["ind"][b, k]] = values[b, k]
            output[head] = maps.view(len(values), -1, *size)
    return output


def scene(seed=1, count=12):
    """Objects in front of a camera, as annotations whose box is centered on the projection of the object's middle."""
    rng = np.random.default_rng(seed)
    annotations, boxes = [], []
    while len(annotations) < count:
        dim, z = rng.uniform([1.2, 0.5, 0.8], [1.9, 1.9, 4.5]), rng.uniform(6, 45)
        location = np.array([rng.uniform(-0.6, 0.6) * z, rng.uniform(1.4, 1.8), z])
        turn = rng.uniform(-3.1, 3.1)
        middle = ddd.project_to_image((location - [0, dim[0] / 2, 0])[None], CALIB)[0]
        half = np.array([rng.uniform(15, 60), rng.uniform(10, 40)])
        alone = all(np.abs(middle - other).max() > 12 for other in boxes)
        if np.all(middle - half > 3) and np.all(middle + half < [1238, 371]) and alone:
            alpha = box3d.rot_y2alpha(turn, middle[0], CALIB[0, 2], CALIB[0, 0])
            depth = location[2] + CALIB[2, 3]
            more = {"alpha": float(alpha), "depth": float(depth), "dim": dim.tolist()}
            more |= {"location": location, "rotation_y": turn}
            annotations.append(annotation([*(middle - half), *(2 * half)], int(rng.integers(1, 4)), **more))
            boxes.append(middle)
    return annotations


@pytest.mark.parametrize("args", [[], ["--keep_res"], ["--not_reg_bbox"], ["--not_reg_offset"]])
def test_objects_come_back_from_their_targets(args):
    """Annotations, as targets, decoded, in the image and in front of the camera again."""
    opt = opts().parse(["ddd", "--dataset", "kitti", *args])
    annotations = scene()
    objects = {**Ddd(options()).read_objects(annotations, {1: 0, 2: 1, 3: 2}), "calib": CALIB}
    sample = Ddd(opt).encode(np.zeros((375, 1242, 3), np.uint8), objects, None, False)
    batch = finish_batch(collate([sample]), Ddd(opt))
    dets = Ddd(opt).decode(perfect_output(batch, opt))
    assert dets.shape == (1, 100, 16 if "--not_reg_bbox" in args else 18)
    results = Ddd(opt).postprocess(dets, batch["meta"])[0]
    near = 3 if "--not_reg_offset" in args else 0.05  # pixels
    for cls in (1, 2, 3):
        expected = [entry for entry in annotations if entry["category_id"] == cls]
        rows = results[cls][results[cls][:, 12] > 0.999]
        assert len(rows) == len(expected)
        for entry in expected:
            row = rows[np.abs(rows[:, 5:8] - entry["dim"]).max(1).argmin()]
            x, y, w, h = entry["bbox"]
            if "--not_reg_bbox" not in args:
                np.testing.assert_allclose(row[1:5], [x, y, x + w, y + h], atol=near)
            np.testing.assert_allclose(row[8:11], entry["location"], atol=near * entry["depth"] / 700 + 1e-3)
            turn = row[11] - entry["rotation_y"]
            assert np.cos(turn) > 1 - 1e-3 if near > 1 else np.cos(turn) > 1 - 1e-6
            np.testing.assert_allclose(row[5:8], entry["dim"], atol=1e-4)


def test_boxes_without_a_size_in_2d_go_around_the_box_in_3d():
    opt = opts().parse(["ddd", "--dataset", "kitti", "--not_reg_bbox"])
    dim, location, turn = (1.5, 1.6, 4.0), (-3.0, 1.7, 15.0), 0.4
    middle = ddd.project_to_image(np.array([[-3.0, 1.7 - 0.75, 15.0]]), CALIB)[0]
    alpha = box3d.rot_y2alpha(turn, middle[0], CALIB[0, 2], CALIB[0, 0])
    calib_depth = 15.0 + CALIB[2, 3]
    flat = {1: np.float32([[*middle, 0.8, alpha, calib_depth, *dim]]), 2: np.zeros((0, 8), np.float32)}
    row = ddd.ddd_post_process_3d([flat], [CALIB])[0][1][0]
    pixels = box3d.project_3d_bbox(location, dim, turn, CALIB)
    np.testing.assert_allclose(row[1:5], [*pixels.min(0), *pixels.max(0)], atol=0.05)
    # A box that leaves the image is cut off at its edge.
    meta = {"c": np.array([621, 187.5]), "s": np.array([1242, 375]), "size": (1242, 375), "calib": CALIB}
    dets = torch.zeros(1, 1, 16)
    dets[0, 0, :3] = torch.tensor([0.5, 48, 0.9])
    dets[0, 0, 11:15] = torch.tensor([4, 1.5, 1.6, 4.0])
    box = Ddd(opt).to_image_coords(dets, [meta])[0][1][0, 1:5]
    assert box[0] == 0 and 0 <= box[1] < box[3] <= 374 and 100 < box[2] <= 1241


def test_sizes_are_scaled_as_lengths():
    """An image in an input of another shape: the reference's way gives boxes of negative height."""
    opt = opts().parse(["ddd", "--dataset", "kitti", "--input_h", "512", "--input_w", "512"])
    dets = torch.zeros(1, 1, 18)
    dets[0, 0, :3] = torch.tensor([64, 64, 0.9])
    dets[0, 0, 11:17] = torch.tensor([20, 1.5, 1.6, 4.0, 16, 8])
    meta = {"c": np.array([621, 187.5]), "s": np.array([1242, 375]), "size": (1242, 375), "calib": CALIB}
    row = Ddd(opt).to_image_coords(dets, [meta])[0][1][0]
    factor = 1242 / 128
    np.testing.assert_allclose(row[3:5] - row[1:3], [16 * factor, 8 * factor], rtol=1e-5)
    reference = ddd_post_process(dets.numpy(), [meta["c"]], [meta["s"]], [CALIB], opt)[0][1][0]
    assert reference[4] - reference[2] < 0
    opt.size_as_point = True
    np.testing.assert_array_equal(Ddd(opt).to_image_coords(dets, [meta])[0][1][0], reference)


def test_size_as_point_gives_the_boxes_of_the_reference():
    """``--size_as_point``: the whole way from maps to results equals ``ddd_post_process`` as the reference has it."""
    heat, (rot, dep, dim, wh, reg) = golden_maps()
    raw = torch.logit(1 / (dep + 1), eps=1e-6)
    output = {"hm": torch.logit(heat, eps=1e-6), "rot": rot, "dep": raw, "dim": dim, "wh": wh, "reg": reg}
    meta = {"c": np.array([621, 187.5]), "s": np.array([1242, 375]), "size": (1242, 375), "calib": CALIB}
    opt = options("--peak_thresh", "0", "--K", "20", "--size_as_point")
    dets = Ddd(opt).decode(output)
    reference = ddd_post_process(dets.numpy(), [meta["c"]], [meta["s"]], [CALIB], opt)[0]
    results = Ddd(opt).postprocess(dets, [meta])[0]
    plain = Ddd(options("--peak_thresh", "0", "--K", "20")).postprocess(dets, [meta])[0]
    for cls in (1, 2, 3):
        np.testing.assert_array_equal(results[cls], reference[cls])
        heights = results[cls][:, 4] - results[cls][:, 2] - (plain[cls][:, 4] - plain[cls][:, 2])
        np.testing.assert_allclose(heights, 1.2, atol=0.1)  # as stated in docs/DIFFERENCES.md


def test_every_image_has_its_own_camera():
    heat, (rot, dep, dim, wh, reg) = golden_maps()
    raw = torch.logit(1 / (dep + 1), eps=1e-6)
    output = {"hm": torch.logit(heat, eps=1e-6), "rot": rot, "dep": raw, "dim": dim, "wh": wh, "reg": reg}
    other = CALIB.copy()
    other[:2, 2] += [30, -10]
    base = {"c": np.array([621, 187.5]), "s": np.array([1242, 375]), "size": (1242, 375)}
    opt = options("--peak_thresh", "0.3", "--K", "20")
    both = {name: torch.cat([values, values]) for name, values in output.items()}
    first, second = Ddd(opt).postprocess(Ddd(opt).decode(both), [{**base, "calib": CALIB}, {**base, "calib": other}])
    alone = Ddd(opt).postprocess(Ddd(opt).decode(output), [{**base, "calib": other}])[0]
    without = Ddd(opt).postprocess(Ddd(opt).decode(output), [base])[0]
    for cls in (1, 2, 3):
        assert len(first[cls]) > 0
        np.testing.assert_array_equal(second[cls], alone[cls])
        np.testing.assert_array_equal(first[cls], without[cls])
        assert np.abs(first[cls][:, 8] - second[cls][:, 8]).max() > 0.1


def test_results_are_what_exceeds_the_threshold():
    rows = np.zeros((4, 13), np.float32)
    rows[:, 12] = [0.9, 0.5, 0.2, 0.1]
    opt = options("--peak_thresh", "0.2")
    found = Ddd(opt).merge_scales([{1: rows, 2: rows[:0]}, {1: rows[:1], 2: rows}])
    assert found[1][:, 12].tolist() == [np.float32(0.9), 0.5] and found[2].shape == (0, 13)


def test_the_flip_test_has_no_effect():
    heat, (rot, dep, dim, wh, reg) = golden_maps()
    output = {"hm": heat, "rot": rot, "dep": dep, "dim": dim, "wh": wh, "reg": reg}
    opt = options()
    both = {name: torch.cat([values, values.flip(3)]) for name, values in output.items()}
    assert torch.equal(Ddd(opt).decode(both, flipped=True), Ddd(opt).decode(output))


def test_heads():
    assert options().heads == {"hm": 3, "dep": 1, "rot": 8, "dim": 3, "wh": 2, "reg": 2}
    assert list(options().heads) == ["hm", "dep", "rot", "dim", "wh", "reg"]
    for args in ([], ["--not_reg_bbox"], ["--not_reg_offset"], ["--not_reg_bbox", "--not_reg_offset"]):
        opt = options(*args)
        assert all(getattr(opt, name) == value for name, value in Ddd.options_of_heads(opt.heads).items())


# Geometry


@needs_conformance
def test_geometry(decoding):
    check_geometry({name[2:]: value for name, value in decoding.items() if name.startswith("u_")})


def test_golden_geometry():
    golden = {name: np.array(value) for name, value in GOLDEN["geometry"].items()}
    check_geometry({**golden, "calib": np.float32(golden["calib"])})


def check_geometry(case):
    calib = case["calib"]
    cx, fx = calib[0, 2], calib[0, 0]
    close = {"rtol": 1e-5, "atol": 1e-5}
    for k in range(len(case["dim"])):
        dim, location, turn = case["dim"][k], case["loc"][k], case["ry"][k]
        box = ddd.compute_box_3d(dim, location, turn)
        np.testing.assert_allclose(box, case["box3d"][k], **close)
        np.testing.assert_allclose(ddd.project_to_image(box, calib), case["proj"][k], rtol=1e-4)
        np.testing.assert_allclose(box3d.project_3d_bbox(location, dim, turn, calib), case["proj"][k], rtol=1e-4)
        np.testing.assert_allclose(box3d.compute_orientation_3d(dim, location, turn), case["orient"][k], **close)
        point, depth, alpha = case["pt2d"][k], case["depth"][k], case["alpha"][k]
        np.testing.assert_allclose(ddd.unproject_2d_to_3d(point, depth, calib), case["unproject"][k], **close)
        assert ddd.alpha2rot_y(alpha, point[0], cx, fx) == pytest.approx(case["alpha2rot_y"][k], abs=1e-6)
        assert box3d.rot_y2alpha(turn, point[0], cx, fx) == pytest.approx(case["rot_y2alpha"][k], abs=1e-6)
        found, rotation_y = ddd.ddd2locrot(point, alpha, dim, depth, calib)
        np.testing.assert_allclose(found, case["locrot_loc"][k], **close)
        assert rotation_y == pytest.approx(case["locrot_ry"][k], abs=1e-6)


def test_location_by_hand():
    location, turn = ddd.ddd2locrot(np.array([700, 190]), -0.2, np.array([1.5, 1.6, 3.9]), 12.0, CALIB)
    np.testing.assert_allclose(location, [1.5674627, 0.9128815, 11.995019], rtol=1e-5)
    assert turn == pytest.approx(-0.0651628, abs=1e-6)


# Images


def test_debug_images(monkeypatch):
    opt = opts().parse(["ddd", "--dataset", "kitti", "--debug", "4", "--input_h", "128", "--input_w", "416"])
    annotations = scene(count=5)
    objects = {**Ddd(options()).read_objects(annotations, {1: 0, 2: 1, 3: 2}), "calib": CALIB}
    image = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), dtype=np.uint8)
    batch = finish_batch(collate([Ddd(opt).encode(image, objects, None, False)]), Ddd(opt))
    output = perfect_output(batch, opt)
    images = build_visualizer(Ddd(opt)).training_images(batch, output)
    names = {"hm_pred", "hm_gt", "det_pred", "det_gt", "add_pred", "add_gt", "bird_pred_gt"}
    assert set(images) == names
    sizes = {name: drawing.shape for name, drawing in images.items()}
    assert all(sizes[name] == (256, 832, 3) for name in ("hm_pred", "hm_gt", "det_pred", "det_gt"))  # enlarged
    assert sizes["add_pred"] == sizes["add_gt"] == (375, 1242, 3) and sizes["bird_pred_gt"] == (640, 640, 3)
    # What is predicted is the truth here, apart from labels; peaks below 0.999 are other cells.
    monkeypatch.setattr(Canvas, "_draw_label", lambda *arguments: None)
    opt.center_thresh = 0.999
    images = build_visualizer(Ddd(opt)).training_images(batch, output)
    bare = draw_boxes(restore_image(batch["input"][0].numpy(), opt.mean, opt.std), np.zeros((0, 6)), [], 0, "white")
    drawn = (images["det_gt"] != bare).any(2).mean()
    # Boxes of equal scores may be drawn in another order.
    assert drawn > 0.01 and (images["det_pred"] != images["det_gt"]).any(2).mean() < drawn / 5
    assert (images["add_pred"] != images["add_gt"]).any(2).mean() < 1e-3
    assert set(build_visualizer(Ddd(opt)).training_images(batch, None)) == {
        "hm_gt",
        "det_gt",
        "add_gt",
        "bird_pred_gt",
    }
    true = build_visualizer(Ddd(opt)).ground_truth_images(image, objects)
    assert set(true) == {"add_gt", "bird_gt"}
    assert (true["add_gt"] != image).any(2).mean() > 1e-3
    assert np.array_equal(true["bird_gt"], build_visualizer(Ddd(opt)).training_images(batch, None)["bird_pred_gt"])
    opt.reg_bbox = False
    assert set(build_visualizer(Ddd(opt)).network_images(image, output, Ddd(opt).decode(output))) == {"pred_hm"}


def rows_of(*objects):
    """Result rows of (class, dim, location, rotation_y, score)."""
    results = {1: [], 2: [], 3: []}
    for cls, dim, location, turn, score in objects:
        results[cls].append([0, 0, 0, 0, 0, *dim, *location, turn, score])
    return {cls: np.float32(rows).reshape(-1, 13) for cls, rows in results.items()}


def drawn_3d(image, results, threshold, *more):
    canvas = Canvas(image)
    visualization_3d.draw_boxes_3d(canvas, results, CALIB, threshold, *more)
    return canvas.finish()


def test_boxes_in_the_image(monkeypatch):
    image = np.full((375, 1242, 3), 90, np.uint8)
    dim, location = (1.5, 1.6, 4.0), (2.0, 1.7, 12.0)
    labels = []
    monkeypatch.setattr(Canvas, "label", lambda self, text, points, color: labels.append(text))
    drawn = drawn_3d(image, rows_of((2, dim, location, 0.3, 0.8)), 0.3, ["a", "car"])
    assert labels == ["car 0.80 12 m"]
    changed = (drawn != image).any(2)
    pixels = box3d.project_3d_bbox(location, dim, 0.3, CALIB)
    for x, y in pixels.astype(int).tolist():
        assert changed[y - 2 : y + 3, x - 2 : x + 3].any()
    rows, columns = np.nonzero(changed)
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max(), rows.max()], [*pixels.min(0), *pixels.max(0)], atol=3
    )
    front = pixels[[0, 1, 5, 4]].mean(0).astype(int)
    back = pixels[[2, 3, 7, 6]].mean(0).astype(int)
    around = [changed[y - 2 : y + 3, x - 2 : x + 3].any() for x, y in (front, back)]
    assert around == [True, False]  # the cross is on the front
    assert not (image != 90).any()
    for left_out in (
        (2, dim, location, 0.3, 0.25),  # the score has to exceed the threshold
        (2, dim, (0, 1.7, 0.9), 0.3, 0.9),
        (2, dim, (np.nan, 1.7, 20), 0.3, 0.9),
    ):
        assert np.array_equal(drawn_3d(image, rows_of(left_out), 0.25), image)
    half_behind = rows_of((2, dim, (0.5, 1.7, 1.5), np.pi / 2, 0.9))
    assert (drawn_3d(image, half_behind, 0.3) != image).any()


def test_view_from_above():
    """Ten pixels per meter."""
    found = rows_of((2, (1.5, 1.6, 4.0), (10.0, 1.7, 20.0), 0.0, 0.8))
    truth = rows_of((1, (1.5, 2.0, 2.0), (-10.0, 1.7, 40.0), 0.0, 1.0))
    view, empty = visualization_3d.bird_view(found, 0.3, truth), visualization_3d.bird_view({}, 0.3)
    assert view.shape == (640, 640, 3)
    true = (view == (12, 49, 250)).all(2)
    y, x = (values.mean() for values in np.nonzero(true))
    assert (x, y) == (pytest.approx((32 - 10) * 10, abs=1), pytest.approx(640 - 40 * 10, abs=1))
    assert true.sum() == pytest.approx(400, abs=60)
    y, x = np.nonzero((view != empty).any(2) & (view[:, :, 0] > 200) & (view[:, :, 2] < 100))
    assert (x.min(), x.max()) == (pytest.approx(400, abs=3), pytest.approx(440, abs=4))
    assert (y.min(), y.max()) == (pytest.approx(640 - 20.8 * 10, abs=4), pytest.approx(640 - 19.2 * 10, abs=4))
    assert (x > 430).sum() > (x < 410).sum()  # the front, on the right, is thicker
    assert np.array_equal(visualization_3d.bird_view(found, 0.9), empty)


def test_the_view_from_above_has_axes_in_meters(monkeypatch):
    texts = {}
    monkeypatch.setattr(cv2, "putText", lambda image, text, place, *_: texts.setdefault(text, place))
    view = visualization_3d.bird_view({}, 0.3)
    assert set(texts) == {*(f"{x}" for x in range(-30, 31, 10)), *(f"{z} m" for z in range(10, 61, 10))}
    assert all(0 <= x < 625 and 0 < y < 640 for x, y in texts.values())
    assert (view[:, 420] != view[:, 425]).any() and texts["10"][0] == 423  # the line at 10 m


def test_the_input_back_in_the_image():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (94, 310, 3), dtype=np.uint8), (0, 0), 4)
    view = Ddd(options()).view(94, 310)
    back = visualization_3d.unwarp(view.warp(image), (310, 94), view.center, view.scale)
    assert back.shape == image.shape
    assert np.abs(back[3:-3, 3:-3].astype(int) - image[3:-3, 3:-3]).max() <= 3
