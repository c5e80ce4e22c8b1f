"""Human pose: targets, loss, decoding and merging against the reference, and their round trip."""

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
from centernet.ops.keypoints import FLIP_INDEX, FLIP_PAIRS, JOINT_NAMES, SKELETON
from centernet.opts import opts
from centernet.tasks import get_task
from centernet.tasks.multi_pose import (
    MultiPose,
    MultiPoseLoss,
    flip_lr,
    flip_lr_off,
    multi_pose_decode,
    multi_pose_post_process,
)
from centernet.transforms import AugmentationRng
from centernet.visualization import build_visualizer

FOLDER = Path(__file__).parents[1] / "golden"
SAMPLES, LOSS, DECODE = (
    json.loads((FOLDER / f"multi_pose_{name}.json").read_text()) for name in ("samples", "loss", "decode")
)
CASES = {
    *("train_crop_noflip", "train_crop_flip", "train_crop_default", "train_shift_noflip", "train_shift_flip", "val"),
    *("val_edge_boxes", "val_nokp", "train_rot", "train_rot_flip", "train_rot_half", "train_rot_edge", "val_max_objs"),
    *("val_empty", "train_dense_hp", "val_dense_hp", "val_mse_loss", "val_mse_loss_hm_gauss2", "val_not_hm_hp"),
    *("val_not_reg_hp_offset", "val_not_reg_offset"),
}
LOSS_CASES = {
    "multi_pose": [],
    "multi_pose_2stacks": [],
    "multi_pose_mse": ["--mse_loss"],
    "multi_pose_not_hm_hp": ["--not_hm_hp"],
    "multi_pose_weights": ["--hp_weight", "0.5", "--hm_hp_weight", "2", "--off_weight", "0.7"],
    "multi_pose_dense_hp": ["--dense_hp"],
}
PARTS = ["loss", "hm_loss", "hp_loss", "hm_hp_loss", "hp_offset_loss", "wh_loss", "off_loss"]


def options(*args):
    return opts().parse(["multi_pose", "--dataset", "coco_hp", "--input_res", "128", *args])


def loaded(name, start="multi_pose"):
    with np.load(CONFORMANCE / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key.startswith(start)}


def replay(case, image, annotations):
    draws = {"draws": case["draws"], "color": case.get("color")}
    hm_gauss = ["--hm_gauss", str(case["hm_gauss"])] if "hm_gauss" in case else []
    return build_sample(image, annotations, options(*case["args"], *hm_gauss), draws, split=case["split"])


# Targets


@pytest.fixture(scope="module")
def reference():
    cases = json.loads((CONFORMANCE / "samples_multi_pose.json").read_text())["cases"]
    return {case["name"]: case for case in cases}, loaded("samples_multi_pose.npz", "")


@needs_conformance
def test_no_sample_is_missing(reference):
    assert set(reference[0]) == CASES


@needs_conformance
@pytest.mark.parametrize("name", sorted(CASES - {"val_mse_loss"}))
def test_sample(reference, name):
    case, arrays = reference[0][name], reference[1]
    sample = replay(case, arrays[f"image{case['image']}"], case["annotations"])
    expected = {field.split("/")[1]: value for field, value in arrays.items() if field.startswith(f"{name}/")}
    targets = {field for field in case["fields"] if field != "input" and not field.startswith("meta_")}
    assert set(sample) - {"input", "meta"} == targets
    for field in targets:
        value = sample[field]
        assert value.shape == expected[field].shape and value.dtype == expected[field].dtype, field
        np.testing.assert_allclose(value, expected[field], rtol=0, atol=1e-6, err_msg=field)
        if field.startswith("hm"):
            assert np.array_equal(value == 1, expected[field] == 1), field
    assert ("meta" in sample) == ("meta_c" in expected)
    if "meta" in sample:
        np.testing.assert_allclose(sample["meta"]["c"], expected["meta_c"])
        np.testing.assert_allclose(sample["meta"]["s"], expected["meta_s"])
        np.testing.assert_allclose(sample["meta"]["gt_det"], expected["meta_gt_det"], atol=1e-6)
    # OpenCV 5 warps exactly; versions before it round positions, which the golden values (OpenCV 3) have.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    version, tolerance = ("opencv5", 2e-5) if exact else ("opencv3", 0.09)
    assert sample["input"].shape == tuple(expected["input_shape"])
    np.testing.assert_allclose(sample["input"][:, ::3, ::3], expected[f"input_sub_{version}"], rtol=0, atol=tolerance)


def digest(array):
    array = np.asarray(array, dtype=np.float64).reshape(-1)
    return [array.sum(), (array * array).sum(), (array * (np.arange(array.size) * 37 % 101 + 1)).sum()]


@pytest.mark.parametrize("case", SAMPLES, ids=[case["name"] for case in SAMPLES])
def test_golden_sample(case):
    """Targets do not depend on what the image shows, so a black one will do."""
    image = np.zeros((*case["size"], 3), np.uint8)
    sample = replay({**case, "color": {"order": [], "alpha": {}, "lighting": [0, 0, 0]}}, image, case["annotations"])
    assert np.flatnonzero(sample["reg_mask"]).tolist() == case["slots"]
    assert set(sample) - {"input", "meta"} == set(case["fields"])
    for field, (shape, dtype, *expected) in case["fields"].items():
        assert list(sample[field].shape) == shape and sample[field].dtype == dtype, field
        np.testing.assert_allclose(digest(sample[field]), expected, rtol=1e-6, atol=1e-5, err_msg=field)
    assert ("meta" in sample) == (case["gt_det"] is not None)
    if "meta" in sample:
        np.testing.assert_allclose(digest(sample["meta"]["gt_det"]), case["gt_det"], rtol=1e-6)


def person(box, joints=(), category=1):
    """An annotation with the given joints, {number: (x, y, visibility)}."""
    keypoints = np.zeros((17, 3))
    for joint, values in dict(joints).items():
        keypoints[joint] = values
    return {"bbox": list(box), "category_id": category, "keypoints": keypoints.reshape(-1).tolist()}


def random_people(rng, count, size=128):
    """Annotations of persons of whom some joints are not labeled; no two joints are as near as a cell is wide."""
    people, free = [], np.ones((size // 7, size // 7), bool)
    for _ in range(count):
        x, y = rng.uniform(0.05 * size, 0.6 * size, 2)
        w, h = rng.uniform(0.25 * size, 0.35 * size, 2)
        joints = {}
        for joint in rng.permutation(17)[: rng.integers(6, 15)]:
            column, row = (int(rng.uniform(start, start + side) / 7) for start, side in ((x, w), (y, h)))
            place = 7 * np.array([column, row]) + 3.5 + rng.uniform(-0.9, 0.9, 2)
            if free[row, column] and (place > (x, y)).all() and (place < (x + w, y + h)).all():
                free[row, column] = False
                joints[joint] = (*place, rng.integers(1, 3))
        people.append(person((x, y, w, h), joints))
    return people


def test_joints():
    assert len(JOINT_NAMES) == 17 and JOINT_NAMES[0] == "nose" and JOINT_NAMES[16] == "right_ankle"
    for left, right in FLIP_PAIRS:
        assert JOINT_NAMES[left].replace("left", "right") == JOINT_NAMES[right]
        assert FLIP_INDEX[left] == right and FLIP_INDEX[right] == left
    assert {joint for bone in SKELETON for joint in bone} == set(range(17)) and len(set(SKELETON)) == 18


def test_flipping_equals_a_flipped_image():
    """A flipped sample of an image is the plain sample of the flipped image, whose left and right have changed."""
    rng = np.random.default_rng(3)
    people = random_people(rng, 4)
    flipped = []
    for entry in people:
        x, y, w, h = entry["bbox"]
        joints = np.reshape(entry["keypoints"], (17, 3))[list(FLIP_INDEX)].copy()
        joints[:, 0] = 127 - joints[:, 0]
        flipped.append({**person((127 - x - w, y, w, h)), "keypoints": joints.reshape(-1).tolist()})
    image = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    center = (60.0, 70.0)
    draws = [[["choice", 0.9], *(["randint", v] for v in xy), ["random", 0.5]] for xy in (center, (127 - 60.0, 70.0))]
    one = {"args": ["--flip", "1", "--no_color_aug"], "draws": [*draws[0], ["random", 0.5]], "split": "train"}
    two = {"args": ["--flip", "0", "--no_color_aug"], "draws": [*draws[1], ["random", 0.5]], "split": "train"}
    one, two = replay(one, image, people), replay(two, image[:, ::-1].copy(), flipped)
    assert set(one) == set(two) and one["reg_mask"].sum() == 4
    for field in one:
        np.testing.assert_allclose(one[field], two[field], atol=1e-4, err_msg=field)


def test_rotated_joints_stay_on_the_image():
    """At the position of a joint, the rotated image shows the content on which the joint was."""
    image = np.zeros((128, 128, 3), np.uint8)
    joints = {0: (40.0, 30.0, 2), 9: (90.0, 40.0, 2), 16: (70.0, 100.0, 1)}
    for x, y, _ in joints.values():
        cv2.circle(image, (int(x), int(y)), 5, (255, 255, 255), -1)
    record = {"draws": [*[["randn", 0.0]] * 3, ["random", 0.1], ["randn", 0.7], ["random", 0.9]], "split": "train"}
    args = ["--aug_rot", "0.5", "--rotate", "50", "--not_rand_crop", "--no_color_aug", "--input_res", "256"]
    opt = options(*args)
    draws = AugmentationRng(record={"draws": record["draws"], "color": None})
    objects = MultiPose(options()).read_objects([person((20, 10, 90, 100), joints)], {1: 0})
    sample = MultiPose(opt).encode(image, objects, draws, True)
    assert sample["rotated"] == 1 and sample["reg_mask"].sum() == 0 and sample["hps_mask"].sum() == 0
    cells = np.flatnonzero(sample["joints"] >= 0)
    assert cells.tolist() == [0, 9, 16]
    places = [divmod(sample["joints"][k], 64) for k in cells]
    for y, x in places:
        assert sample["image"][4 * y + 2, 4 * x + 2].min() > 200
    straight = [(int(y), int(x)) for x, y, _ in (np.array(joints[k]) / 2 for k in cells)]
    assert all(abs(a - b) + abs(c - d) > 3 for (a, c), (b, d) in zip(places, straight, strict=True))
    batch = finish_batch(collate([sample]), MultiPose(opt))
    assert batch["hm"].unique().tolist() == pytest.approx([0.9999]) and batch["hm_hp"].eq(1).sum() == 3


def test_rotated_dense_joints_learn_nothing():
    """As without --dense_hp; the reference leaves the mask of these maps as it is."""
    people = random_people(np.random.default_rng(5), 3)
    case = {"args": ["--aug_rot", "1", "--rotate", "30", "--dense_hp", "--flip", "0"], "split": "train"}
    case["draws"] = [["choice", 1.0], ["randint", 64], ["randint", 64], ["random", 0.0], ["randn", 1], ["random", 0.5]]
    case["color"] = {"order": [], "alpha": {}, "lighting": [0, 0, 0]}
    sample = replay(case, np.zeros((128, 128, 3), np.uint8), people)
    assert sample["dense_hps_mask"].sum() == 0 and sample["hm_hp"].max() == 1
    straight = replay(
        {**case, "draws": [*case["draws"][:4], ["randn", 0.0], ["random", 0.5]]},
        np.zeros((128, 128, 3), np.uint8),
        people,
    )
    assert straight["dense_hps_mask"].max() == 1


def test_crowds_and_persons_without_joints_are_positives():
    people = [person((10, 10, 40, 60), {0: (30, 20, 2)}), {**person((60, 20, 40, 80)), "iscrowd": 1}]
    sample = replay({"args": [], "draws": [], "split": "val"}, np.zeros((128, 128, 3), np.uint8), people)
    assert (sample["hm"] == 1).sum() == 2
    assert sample["reg_mask"][:3].tolist() == [1, 0, 0] and (sample["wh"][:2] > 0).all()
    assert sample["hps_mask"].sum() == 2 and sample["hp_mask"].sum() == 1 and (sample["hm_hp"] == 1).sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"keypoints": [1, 2, 3]}, "keypoints is not 51 numbers"), ({"bbox": [1, 2, 3]}, "bbox is not 4 numbers")],
)
def test_malformed_annotations(change, message):
    with pytest.raises(ValueError, match=message):
        MultiPose(options()).read_objects([{**person((1, 2, 3, 4)), **change}], {1: 0})
    assert MultiPose(options()).read_objects([], {1: 0})["joints"].shape == (0, 17, 3)


# Loss


def random_batch(seed=0, images=3, args=()):
    """Finished training targets of random persons on black images, and the options."""
    opt = options("--not_rand_crop", "--scale", "0", "--shift", "0", "--flip", "0", "--no_color_aug", *args)
    rng = np.random.default_rng(seed)
    samples = []
    for k in range(images):
        objects = MultiPose(options()).read_objects(random_people(rng, 0 if k == 1 else 4), {1: 0})
        draws = AugmentationRng(record={"draws": [*[["randn", 0.0]] * 3, *[["random", 0.5]] * 2], "color": None})
        samples.append(MultiPose(opt).encode(np.zeros((128, 128, 3), np.uint8), objects, draws, True))
    return finish_batch(collate(samples), MultiPose(opt)), opt


@pytest.fixture(scope="module")
def losses():
    return loaded("losses.npz")


@needs_conformance
def test_no_loss_case_is_missing(losses):
    assert {name.split("/")[0] for name in losses} == set(LOSS_CASES)


@needs_conformance
@pytest.mark.parametrize("case", LOSS_CASES)
def test_loss(losses, case):
    heads = [name.split("out0_")[1] for name in losses if name.startswith(f"{case}/out0_")]
    outputs = [
        {head: torch.from_numpy(losses[f"{case}/out{stack}_{head}"]).clone().requires_grad_() for head in heads}
        for stack in range(int(losses[f"{case}/num_stacks"]))
    ]
    start = f"{case}/batch_"
    batch = {name[len(start) :]: torch.from_numpy(losses[name]) for name in losses if name.startswith(start)}
    loss, parts = MultiPoseLoss(options(*LOSS_CASES[case]))(outputs, batch)
    assert list(parts) == PARTS and parts["loss"] is loss
    for name, value in parts.items():
        assert value.item() == pytest.approx(float(losses[f"{case}/stat_{name}"]), rel=1e-5, abs=1e-12), name
    loss.backward()
    for stack, output in enumerate(outputs):
        for head, value in output.items():
            if losses[f"{case}/gradnone{stack}_{head}"]:
                assert value.grad is None, head
            else:
                expected = losses[f"{case}/grad{stack}_{head}"]
                tolerance = 1e-5 * np.abs(expected).max()
                np.testing.assert_allclose(value.grad.numpy(), expected, rtol=1e-5, atol=tolerance, err_msg=head)


def test_golden_loss():
    """Joint, size and offset losses of a case of the reference; the maps hold the cells that count."""
    batch = {name: torch.tensor(LOSS[name]) for name in ("ind", "reg_mask", "hps_mask", "hps", "wh", "reg")}
    batch |= {"hm": torch.zeros(2, 1, 16, 20), "hm_hp": torch.zeros(2, 17, 16, 20)}
    batch |= {"hp_mask": torch.zeros(2, 170), "hp_ind": torch.zeros(2, 170).long(), "hp_offset": torch.zeros(2, 170, 2)}
    output = {head: torch.full((2, channels, 16, 20), -50.0) for head, channels in options().heads.items()}
    for head in ("hps", "wh", "reg"):
        for b in range(2):
            for cell, vector in zip(LOSS["ind"][b], LOSS[f"out_{head}"][b], strict=True):
                output[head][b, :, cell // 20, cell % 20] = torch.tensor(vector)
    _, parts = MultiPoseLoss(options())([output], batch)
    for name in ("hp_loss", "wh_loss", "off_loss"):
        assert parts[name].item() == pytest.approx(LOSS[name], rel=1e-5), name
    assert parts["hp_offset_loss"] == 0


# Ground truth in place of heads


def test_oracles_replace_their_heads():
    batch, opt = random_batch(seed=4)
    raw = {head: value.detach() for head, value in random_outputs(batch, opt)[0].items()}
    assert all(value is raw[head] for head, value in MultiPose.criterion(opt).with_oracle(raw, batch).items())
    heads = {"hm": "hm", "kps": "hps", "hmhp": "hm_hp", "hp_offset": "hp_offset"}
    for option, head in heads.items():
        changed = MultiPose.criterion(options(f"--eval_oracle_{option}")).with_oracle(raw, batch)
        assert {name for name in raw if changed[name] is not raw[name]} == {head}
        assert changed[head].shape == raw[head].shape
    dense, opt = random_batch(seed=4, args=["--dense_hp"])
    opt.eval_oracle_kps = True
    assert MultiPose.criterion(opt).with_oracle(raw, dense)["hps"] is dense["dense_hps"]


def test_oracles_together_have_no_loss():
    batch, opt = random_batch(seed=5)
    opt.eval_oracle_hm = opt.eval_oracle_kps = opt.eval_oracle_hmhp = opt.eval_oracle_hp_offset = True
    _, parts = MultiPoseLoss(opt)(random_outputs(batch, opt), batch)
    assert all(torch.isfinite(value) for value in parts.values())
    assert parts["hp_loss"] < 1e-5 and parts["wh_loss"] > 0.1
    assert parts["hp_offset_loss"] < 1e-5


# Decoding


@pytest.fixture(scope="module")
def decoding():
    return loaded("decode.npz", "mp_")


@needs_conformance
def test_decoding(decoding):
    names = ("hm", "wh", "hps", "reg", "hm_hp", "hp_offset")
    heat, wh, hps, reg, hm_hp, hp_offset = (torch.from_numpy(decoding[f"mp_{name}"]) for name in names)
    K = int(decoding["mp_K"])
    for name, dets in {
        "full": multi_pose_decode(heat, wh, hps, reg, hm_hp, hp_offset, K),
        "no_offset": multi_pose_decode(heat, wh, hps, reg, hm_hp, None, K),
        "no_hm_hp": multi_pose_decode(heat, wh, hps, reg, K=K),
        "no_reg": multi_pose_decode(heat, wh, hps, None, hm_hp, hp_offset, K),
    }.items():
        assert dets.dtype == torch.float32
        np.testing.assert_allclose(dets, decoding[f"mp_dets_{name}"], rtol=1e-5, atol=1e-5, err_msg=name)
    snapped = decoding["mp_dets_full"][..., 5:39] != decoding["mp_dets_no_hm_hp"][..., 5:39]
    assert snapped.reshape(-1, 2).any(1).mean() == pytest.approx(float(decoding["mp_snapped_fraction"]))


@needs_conformance
def test_post_processing(decoding):
    height, width = decoding["mp_hm"].shape[2:]
    dets, centers, scales = decoding["mp_dets_full"], decoding["mp_post_center"], decoding["mp_post_scale"]
    results = multi_pose_post_process(dets.copy(), centers, scales, height, width)
    assert all(list(result) == [1] for result in results)
    np.testing.assert_allclose([result[1] for result in results], decoding["mp_post"], rtol=1e-5, atol=1e-4)


@needs_conformance
def test_flip_average(decoding):
    maps = {name: torch.from_numpy(decoding[f"mp_{name}"]) for name in ("hm", "wh", "hps", "reg", "hm_hp", "hp_offset")}
    before = {name: value.clone() for name, value in maps.items()}
    assert np.array_equal(flip_lr(maps["hm_hp"]), decoding["mp_flip_lr"])
    assert np.array_equal(flip_lr_off(maps["hps"]), decoding["mp_flip_lr_off"])
    averaged = MultiPose(options()).average_flipped(maps)
    for name in ("hps", "hm_hp"):
        np.testing.assert_allclose(averaged[name], decoding[f"mp_flip_{name}"], rtol=1e-5, atol=1e-6)
    for name in ("hm", "wh"):
        assert torch.equal(averaged[name], (maps[name][:1] + maps[name][1:].flip(3)) / 2)
    for name in ("reg", "hp_offset"):
        assert torch.equal(averaged[name], maps[name][:1])
    assert all(torch.equal(maps[name], before[name]) for name in maps)


def test_golden_decoding():
    """Maps in which the golden peaks stand alone."""
    height, width = DECODE["size"]
    heat, wh, reg, hps = (torch.zeros(1, channels, height * width) for channels in (1, 2, 2, 34))
    for cell, row in zip(DECODE["cells"], DECODE["persons"], strict=True):
        heat[0, 0, cell] = row[0]
        wh[0, :, cell], reg[0, :, cell], hps[0, :, cell] = (
            torch.tensor(part) for part in (row[1:3], row[3:5], row[5:])
        )
    hm_hp, hp_offset = torch.zeros(1, 17, height * width), torch.zeros(1, 2, height * width)
    for joint in range(17):
        cells = DECODE["joint_cells"][joint]
        hm_hp[0, joint, cells] = torch.tensor(DECODE["joint_scores"][joint])
        hp_offset[0, :, cells] = torch.tensor(DECODE["joint_offsets"][joint]).T
    heat, wh, reg, hps, hm_hp, hp_offset = (
        maps.view(1, -1, height, width) for maps in (heat, wh, reg, hps, hm_hp, hp_offset)
    )
    K = len(DECODE["cells"])
    for dets, name in (
        (multi_pose_decode(heat, wh, hps, reg, hm_hp, hp_offset, K), "rows"),
        (multi_pose_decode(heat, wh, hps, reg, hm_hp, None, K), "rows_without_offsets"),
        (multi_pose_decode(heat, wh, hps, reg, K=K), "rows_without_maps"),
    ):
        np.testing.assert_allclose(dets[0], DECODE[name], rtol=1e-5, atol=1e-4)
    post = DECODE["post"]
    rows = np.array([DECODE["rows"]], dtype=np.float32)
    result = multi_pose_post_process(rows, [np.float32(post["center"])], [post["scale"]], height, width)[0]
    np.testing.assert_allclose(result[1], post["rows"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("place", "score", "snaps"),
    [
        ((12, 12), 0.5, True),
        ((12, 12), 0.09, False),  # too weak
        ((17, 10), 0.5, False),  # 7 pixels away, more than 0.3 of 20
        ((20, 14), 0.5, False),  # beyond the range
        ((21, 10), 0.5, False),  # beyond the box
    ],
)
def test_joints_snap(place, score, snaps):
    """A person of 20 x 20 around (10.5, 10.5) whose joint 3 is seen at (11, 11)."""
    heat, wh, hps, hm_hp = (torch.zeros(1, channels, 24, 24) for channels in (1, 2, 34, 17))
    heat[0, 0, 10, 10], wh[0, :, 10, 10], hps[0, 6:8, 10, 10] = 0.9, 20, 1
    x, y = place
    hm_hp[0, 3, y, x] = score
    joints = multi_pose_decode(heat, wh, hps, hm_hp=hm_hp, K=1)[0, 0, 5:39].view(17, 2)
    assert joints[3].tolist() == ([x + 0.5, y + 0.5] if snaps else [11, 11])
    assert joints[4].tolist() == [10, 10]


def test_several_persons_may_take_the_same_candidate():
    heat, wh, hps, hm_hp = (torch.zeros(1, channels, 24, 24) for channels in (1, 2, 34, 17))
    for x in (8, 12):
        heat[0, 0, 10, x], wh[0, :, 10, x] = 0.9, 20
    hm_hp[0, 0, 11, 10] = 0.6
    joints = multi_pose_decode(heat, wh, hps, hm_hp=hm_hp, K=2)[0, :, 5:7]
    assert joints.tolist() == [[10.5, 11.5], [10.5, 11.5]]


def perfect_maps(batch):
    """Return raw maps that equal the targets of a batch."""
    size, height, width = len(batch["hm"]), *batch["hm"].shape[2:]
    output = {"hm": torch.logit(batch["hm"], eps=1e-6)}
    if "hm_hp" in batch:
        output["hm_hp"] = torch.logit(batch["hm_hp"], eps=1e-6)
    for head, ind, mask in (
        ("wh", "ind", "reg_mask"),
        ("hps", "ind", "reg_mask"),
        ("reg", "ind", "reg_mask"),
        ("hp_offset", "hp_ind", "hp_mask"),
    ):
        if head in batch:
            maps = torch.zeros(size, batch[head].shape[2], height * width)
            for b, k in batch[mask].nonzero().tolist():
                maps[b, :, batch[ind][b, k]] = batch[head][b, k]
            output[head] = maps.view(size, -1, height, width)
    return output


@pytest.mark.parametrize("args", [[], ["--not_hm_hp"], ["--not_reg_hp_offset"], ["--mse_loss"]])
def test_whole_way_back_to_the_image(args):
    """Targets of whole images, decoded, are the annotations again."""
    opt = options(*args)
    rng = np.random.default_rng(11)
    people = [random_people(rng, 3) for _ in range(3)]
    samples = []
    for annotations, size in zip(people, [(128, 128), (150, 130), (100, 160)], strict=True):
        objects = MultiPose(options()).read_objects(annotations, {1: 0})
        samples.append(MultiPose(opt).encode(np.zeros((*size, 3), np.uint8), objects, None, False))
    batch = finish_batch(collate(samples), MultiPose(opt))
    maps = perfect_maps(batch)
    if opt.mse_loss:
        maps["hm_hp"] = batch["hm_hp"]
    results = MultiPose(opt).postprocess(MultiPose(opt).decode(maps), batch["meta"])
    checked = 0
    for annotations, result in zip(people, results, strict=True):
        rows = result[1]
        assert list(result) == [1] and rows.dtype == np.float32 and rows.shape == (100, 39)
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            errors = np.abs(rows[:, :4] - [x, y, x + w, y + h]).max(1)
            row = rows[errors.argmin()]
            assert errors.min() < 0.01 and row[4] > 0.999
            joints = np.reshape(annotation["keypoints"], (17, 3))
            error = np.abs(row[5:].reshape(17, 2) - joints[:, :2]).max(1)[joints[:, 2] > 0]
            # Without its offset a joint is in the middle of its cell, of at most 5 pixels.
            assert error.max() < (2.6 if "--not_reg_hp_offset" in args else 0.01)
            checked += len(error)
    assert checked > 50


def test_flip_test_of_a_symmetric_network():
    """Maps of a flipped image, averaged with those of the image, leave the detections where they are."""
    batch, opt = random_batch(seed=8)
    maps = perfect_maps(batch)
    flipped = {
        **{name: maps[name].flip(3) for name in ("hm", "wh", "reg", "hp_offset")},
        "hps": flip_lr_off(maps["hps"]),
        "hm_hp": flip_lr(maps["hm_hp"]),
    }
    both = {name: torch.cat([maps[name], flipped[name]]) for name in maps}
    torch.testing.assert_close(MultiPose(opt).decode(both, flipped=True), MultiPose(opt).decode(maps))
    for flip, name in ((flip_lr, "hm_hp"), (flip_lr_off, "hps")):
        assert torch.equal(flip(flip(maps[name])), maps[name])
        assert not torch.equal(flip(maps[name]), maps[name].flip(3))


def test_decoding_takes_half_precision():
    batch, opt = random_batch(seed=9)
    dets = MultiPose(opt).decode({name: value.half() for name, value in perfect_maps(batch).items()})
    assert dets.dtype == torch.float32 and dets.shape == (3, 100, 40) and torch.isfinite(dets).all()


# Joining


@needs_conformance
def test_merging():
    golden = loaded("nms.npz", "merge_pose")
    scales = [{1: golden["merge_pose_in0"]}, {1: golden["merge_pose_in1"]}]
    before = [scale[1].copy() for scale in scales]
    merged = MultiPose(options("--keep_discarded")).merge_scales(scales)[1]
    np.testing.assert_allclose(merged, golden["merge_pose_out"], rtol=1e-5, atol=1e-5)
    kept = MultiPose(options()).merge_scales(scales)[1]
    assert 0 < len(kept) < len(merged) and np.array_equal(kept, merged[: len(kept)])
    assert all(np.array_equal(scale[1], rows) for scale, rows in zip(scales, before, strict=True))


def rows_of(*persons):
    """Result rows: box, score, and joints that are all at one place."""
    return np.array([[*box, score, *[place] * 34] for box, score, place in persons], dtype=np.float32)


def test_scales_are_joined_by_soft_nms():
    box, far = (10, 10, 50, 50), (200, 200, 220, 220)
    one, two = rows_of((box, 0.9, 1)), rows_of((box, 0.8, 2), (far, 0.3, 3))
    both = {1: np.concatenate([one, two])}
    alone = MultiPose(options()).merge_scales([both])[1]
    assert np.array_equal(alone, both[1])
    decayed = 0.8 * np.exp(-1 / 0.5)
    for scales, opt in (([{1: one}, {1: two}], options()), ([both], options("--nms"))):
        merged = MultiPose(opt).merge_scales(scales)[1]
        assert merged[:, 4].tolist() == pytest.approx([0.9, 0.3, decayed], rel=1e-5)
        assert merged[:, 5].tolist() == [1, 3, 2]  # joints stay with their boxes


def test_results_are_not_limited():
    rows = rows_of(*(((30 * k, 0, 30 * k + 10, 10), 0.5, k) for k in range(250)))
    assert len(MultiPose(options()).merge_scales([{1: rows[:150]}, {1: rows[150:]}])[1]) == 250


def test_test_scales_are_undone():
    dets = torch.zeros(1, 1, 40)
    dets[0, 0, :39] = torch.arange(39)
    meta = {"c": np.array([64.0, 64.0], np.float32), "s": 128.0, "output_size": (32, 32)}
    plain, half = (MultiPose(options()).to_image_coords(dets, [{**meta, "scale": scale}])[0][1] for scale in (1, 0.5))
    np.testing.assert_allclose(plain[0, [0, 5, 38]], [0, 20, 152], atol=1e-3)
    np.testing.assert_allclose(half[0, :4], 2 * plain[0, :4], atol=1e-3)
    np.testing.assert_allclose(half[0, 5:], 2 * plain[0, 5:], atol=1e-3)
    assert half[0, 4] == plain[0, 4] == 4


# The task as a whole


def test_heads_and_options():
    assert get_task("multi_pose") is MultiPose
    assert options().heads == {"hm": 1, "wh": 2, "hps": 34, "reg": 2, "hm_hp": 17, "hp_offset": 2}
    for args in ([], ["--not_reg_offset"], ["--not_hm_hp"], ["--not_reg_hp_offset"]):
        opt = options(*args)
        found = MultiPose.options_of_heads(opt.heads)
        assert MultiPose(options(*(f"--{name}" for name, value in found.items() if value))).heads == opt.heads
    assert opts().parse(["multi_pose"]).dataset == "coco_hp"


def test_images():
    opt = options("--debug", "1")
    joints = {k: (20 + 19 * (k % 5) + k, 25 + 24 * (k // 5), 2) for k in range(17)}
    objects = MultiPose(options()).read_objects([person((10, 15, 110, 100), joints)], {1: 0})
    image = np.full((128, 128, 3), 128, np.uint8)
    sample = MultiPose(opt).encode(image, objects, None, False)
    batch = finish_batch(collate([sample]), MultiPose(opt))
    maps = perfect_maps(batch)
    drawings = build_visualizer(MultiPose(opt)).training_images(batch, maps)
    assert set(drawings) == {"pred_hm", "gt_hm", "out_pred", "out_gt", "pred_hmhp", "gt_hmhp"}
    assert set(build_visualizer(MultiPose(opt)).training_images(batch, None)) == {
        "gt_hm",
        "gt_hmhp",
        "out_gt",
    }
    dets = MultiPose(opt).decode(maps)
    shown = build_visualizer(MultiPose(opt)).network_images(image, maps, dets)
    assert set(shown) == {"pred_hm", "pred_hmhp"}
    results = MultiPose(opt).postprocess(dets, batch["meta"])[0]
    drawn = build_visualizer(MultiPose(opt)).result_images(image, results, {})
    assert set(drawn) == {"multi_pose"} and not np.array_equal(drawn["multi_pose"], image)
    strict = options("--vis_thresh", "1")
    assert (build_visualizer(MultiPose(strict)).result_images(image, results, {})["multi_pose"] == 128).all()
    true = build_visualizer(MultiPose(opt)).ground_truth_images(image, objects)["gt"]
    sizes = {name: drawing.shape for name, drawing in {**drawings, "true": true}.items()}
    assert set(sizes.values()) == {(512, 512, 3)}  # enlarged
    # What is found is what is there: the same discs in the same colors.
    for color in ((255, 0, 0), (0, 0, 255)):
        here, there = ((drawing == color).all(2) for drawing in (drawn["multi_pose"], true))
        assert there.sum() > 200 and (here & there).sum() > 0.8 * there.sum()
    assert np.array_equal(image, np.full((128, 128, 3), 128, np.uint8))


def test_images_of_nobody():
    opt = options("--debug", "1")
    image = np.full((128, 128, 3), 128, np.uint8)
    sample = MultiPose(opt).encode(image, MultiPose(options()).read_objects([], {1: 0}), None, False)
    assert sample["meta"]["gt_det"].shape == (1, 40)
    batch = finish_batch(collate([sample]), MultiPose(opt))
    images = build_visualizer(MultiPose(opt)).training_images(batch, None)
    restored = images["out_gt"].astype(int)
    assert np.abs(restored - 128).max() <= 1  # a mean of 128 / 255 in every channel, and nothing drawn
