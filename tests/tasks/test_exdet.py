"""Extreme points: samples, loss and decoding against the reference, and the round trip of targets."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.conformance import CONFORMANCE, needs_conformance
from tests.helpers.tasks import random_outputs

from centernet.conversion.coco_extreme import outline_extremes
from centernet.datasets import build_sample
from centernet.datasets.loader import collate, finish_batch
from centernet.ops.losses import FocalLoss, RegL1Loss
from centernet.ops.peaks import peak_filter, topk
from centernet.options import apply_model_metadata, model_metadata
from centernet.opts import opts
from centernet.tasks import exdet
from centernet.tasks.exdet import Exdet, ExdetLoss, agnex_ct_decode, exct_decode
from centernet.visualization import build_visualizer
from centernet.visualization.exdet import octagon

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "exdet_samples.json").read_text())
MAPS = ("hm_t", "hm_l", "hm_b", "hm_r", "hm_c")
POINTS = tuple(f"{kind}_{side}" for kind in ("reg", "ind") for side in "tlbr")
SAMPLES = {
    *("train_crop_noflip", "train_crop_flip", "train_crop_default", "train_shift_noflip", "train_shift_flip", "val"),
    *("val_agnostic", "train_agnostic_flip", "val_edge_boxes", "val_empty", "val_not_reg_offset", "val_mse_loss"),
}
LOSS_CASES = {
    "exdet": [],
    "exdet_2stacks": [],
    "exdet_agnostic": ["--agnostic_ex"],
    "exdet_not_reg_offset": ["--not_reg_offset"],
    "exdet_mse": ["--mse_loss"],
}
DECODERS = {"exct": exct_decode, "agnex": agnex_ct_decode}


def options(*args):
    return opts().parse(["exdet", "--dataset", "coco", "--input_res", "128", *args])


def load_golden(name):
    with np.load(CONFORMANCE / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key.startswith(("ex", "agnex"))}


# Options and heads


def test_heads():
    assert options().heads == {**dict.fromkeys(MAPS, 80), **{f"reg_{side}": 2 for side in "tlbr"}}
    assert list(options().heads)[:5] == list(MAPS)
    agnostic = options("--agnostic_ex").heads
    assert {name: channels for name, channels in agnostic.items() if channels == 1} == dict.fromkeys(MAPS[:4], 1)
    assert agnostic["hm_c"] == 80
    assert options("--not_reg_offset").heads == dict.fromkeys(MAPS, 80)


@pytest.mark.parametrize("args", [[], ["--agnostic_ex"], ["--not_reg_offset"], ["--agnostic_ex", "--not_reg_offset"]])
def test_options_follow_from_the_heads(args):
    asked = {"agnostic_ex": "--agnostic_ex" in args, "not_reg_offset": "--not_reg_offset" in args}
    assert Exdet.options_of_heads(options(*args).heads) == asked


def test_a_checkpoint_records_whether_points_have_classes():
    metadata = model_metadata(options("--agnostic_ex"))
    opt = apply_model_metadata(options(), metadata)
    assert opt.agnostic_ex and opt.heads == metadata["heads"]


# Samples


@pytest.fixture(scope="module")
def reference():
    cases = json.loads((CONFORMANCE / "samples_exdet.json").read_text())["cases"]
    with np.load(CONFORMANCE / "samples_exdet.npz", allow_pickle=False) as file:
        return {case["name"]: case for case in cases}, dict(file)


def replay(case, image, annotations):
    draws = {"draws": case["draws"], "color": case.get("color")}
    return build_sample(image, annotations, options(*case["args"]), draws, split=case["split"])


@needs_conformance
def test_no_sample_is_missing(reference):
    assert set(reference[0]) == SAMPLES


@needs_conformance
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_sample(reference, name):
    cases, arrays = reference
    case = cases[name]
    sample = replay(case, arrays[f"image{case['image']}"], case["annotations"])
    expected = {field.split("/")[1]: value for field, value in arrays.items() if field.startswith(f"{name}/")}
    # The reference has no meta, so that its training script cannot test; here it comes outside training.
    assert set(sample) == {*case["fields"], *(["meta"] if case["split"] != "train" else [])}
    for field in case["fields"][1:]:
        value = sample[field]
        assert value.shape == expected[field].shape and value.dtype == expected[field].dtype, field
        if np.issubdtype(value.dtype, np.integer):
            assert np.array_equal(value, expected[field]), field
        else:
            np.testing.assert_allclose(value, expected[field], rtol=0, atol=1e-6, err_msg=field)
    for field in MAPS:
        assert np.array_equal(sample[field] == 1, expected[field] == 1)
    exact = int(cv2.__version__.split(".")[0]) >= 5
    version, tolerance = ("opencv5", 2e-5) if exact else ("opencv3", 0.09)
    value = sample["input"]
    assert value.shape == tuple(expected["input_shape"]) and value.dtype == np.float32
    np.testing.assert_allclose(value[:, ::3, ::3], expected[f"input_sub_{version}"], rtol=0, atol=tolerance)
    if f"input_full_{version}" in expected:
        np.testing.assert_allclose(value, expected[f"input_full_{version}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden_targets(case):
    """Targets do not depend on what the image shows, so a black one will do."""
    annotations = [
        {"category_id": row[0], "extreme_points": np.reshape(row[1:], (4, 2))} for row in case["annotations"]
    ]
    no_jitter = {"order": [], "alpha": {}, "lighting": [0, 0, 0]}
    sample = replay({**case, "color": no_jitter}, np.zeros((*case["size"], 3), np.uint8), annotations)
    for name, (channels, total, squares, peaks) in case["maps"].items():
        hm = sample[f"hm_{name}"].astype(np.float64)
        assert len(hm) == channels and np.count_nonzero(hm == 1) == peaks
        np.testing.assert_allclose([hm.sum(), (hm * hm).sum()], [total, squares], rtol=1e-6)
    if "slots" not in case:
        assert not {"reg_mask", *POINTS} & set(sample)
        return
    slots = np.flatnonzero(sample["reg_mask"])
    assert slots.tolist() == case["slots"]
    for name in POINTS:
        np.testing.assert_allclose(sample[name][slots], case[name], atol=1e-6)
        assert np.count_nonzero(sample[name]) == np.count_nonzero(case[name])


def test_radius_zero_has_a_peak():
    """With --mse_loss the radius is the deviation; the reference divides 0 by 0 for the smallest objects."""
    annotation = {"category_id": 1, "extreme_points": [[20, 20], [18, 22], [21, 24], [24, 21]]}
    sample = build_sample(np.zeros((128, 128, 3), np.uint8), [annotation], options("--mse_loss"), None, split="val")
    for name in MAPS:
        assert sample[name].sum() == 1 and sample[name].max() == 1


def test_slots_belong_to_annotations():
    thin = [[10, 10], [10, 20], [10, 30], [10, 20]]
    good = [[30, 10], [10, 30], [30, 50], [50, 30]]
    annotations = [{"category_id": 1, "extreme_points": points} for points in (thin, good, thin, *[good] * 130)]
    sample = build_sample(np.zeros((64, 64, 3), np.uint8), annotations, options(), None, split="val")
    assert sample["reg_mask"].tolist() == [0, 1, 0, *[1] * 125]
    assert sample["meta"]["gt_det"].shape == (126, 14)


@pytest.mark.parametrize(
    ("annotations", "text"),
    [
        ([{"category_id": 1, "bbox": [1, 2, 3, 4]}], "gen_coco_extreme_points"),
        ([{"category_id": 1, "extreme_points": [[1, 2], [3, 4]]}], "extreme_points is not 4 x 2 numbers"),
    ],
)
def test_annotations_without_points(annotations, text):
    with pytest.raises(ValueError, match=text):
        Exdet(options()).read_objects(annotations, {1: 0})


def test_validation_may_keep_the_size():
    image = np.zeros((90, 120, 3), np.uint8)
    sample = build_sample(image, [], options("--keep_res"), None, split="val")
    assert sample["input"].shape == (3, 96, 128) and sample["meta"]["output_size"] == (32, 24)


# Loss


@pytest.fixture(scope="module")
def losses():
    return load_golden("losses")


def loss_case(losses, case):
    """Outputs that take gradients, and the batch."""
    heads = [*MAPS, *(f"reg_{side}" for side in "tlbr")]
    outputs = [
        {head: torch.from_numpy(losses[f"{case}/out{stack}_{head}"]).clone().requires_grad_() for head in heads}
        for stack in range(int(losses[f"{case}/num_stacks"]))
    ]
    start = f"{case}/batch_"
    return outputs, {name[len(start) :]: torch.from_numpy(losses[name]) for name in losses if name.startswith(start)}


@needs_conformance
def test_no_loss_case_is_missing(losses):
    assert {name.split("/")[0] for name in losses} == set(LOSS_CASES)


@needs_conformance
@pytest.mark.parametrize("case", LOSS_CASES)
def test_loss(losses, case):
    outputs, batch = loss_case(losses, case)
    loss, parts = ExdetLoss(options(*LOSS_CASES[case]))(outputs, batch)
    assert list(parts) == ["loss", "hm_loss", "off_loss"] and parts["loss"] is loss
    for name, value in parts.items():
        assert value.item() == pytest.approx(float(losses[f"{case}/stat_{name}"]), rel=1e-5, abs=1e-12), name
    loss.backward()
    for stack, output in enumerate(outputs):
        for head, value in output.items():
            if losses[f"{case}/gradnone{stack}_{head}"]:
                assert value.grad is None, head
            else:
                expected = losses[f"{case}/grad{stack}_{head}"]
                limit = 1e-5 * np.abs(expected).max()
                np.testing.assert_allclose(value.grad.numpy(), expected, rtol=1e-5, atol=limit, err_msg=head)


def random_batch(args=(), seed=0, images=4, size=128):
    """Finished validation targets of random diamonds on black images, and the options. The second has no object."""
    opt = options(*args)
    rng = np.random.default_rng(seed)
    samples = []
    for k in range(images):
        count = 0 if k == 1 else 5
        points = np.zeros((count, 4, 2), np.float32)
        corners = rng.uniform(0, 0.6 * size, (count, 2))
        sizes = rng.uniform(0.1 * size, 0.35 * size, (count, 2))
        for side, (x, y) in enumerate([(rng.uniform(), 0), (0, rng.uniform()), (rng.uniform(), 1), (1, rng.uniform())]):
            points[:, side] = corners + sizes * [x, y]
        objects = {"points": points, "cls": rng.integers(0, 80, count)}
        samples.append(Exdet(opt).encode(np.zeros((size, size, 3), np.uint8), objects, None, False))
    return finish_batch(collate(samples), Exdet(opt)), opt


def test_loss_is_the_sum_over_the_points():
    batch, opt = random_batch()
    (output,) = random_outputs(batch, opt)
    _, parts = ExdetLoss(opt)([output], batch)
    hm = sum(FocalLoss()(output[name].sigmoid().clamp(1e-4, 1 - 1e-4), batch[name]) for name in MAPS)
    sides = [(output[f"reg_{s}"], batch["reg_mask"], batch[f"ind_{s}"], batch[f"reg_{s}"]) for s in "tlbr"]
    off = sum(RegL1Loss()(*side) for side in sides)
    torch.testing.assert_close(parts["hm_loss"], hm)
    torch.testing.assert_close(parts["off_loss"], off)
    torch.testing.assert_close(parts["loss"], hm + off)


# Decoding


@pytest.fixture(scope="module")
def decoding():
    return load_golden("decode") if CONFORMANCE.is_dir() else {}


def maps_of(decoding, kind):
    heats = [torch.from_numpy(decoding[f"{kind}_hm_{name}"]) for name in "tlbrc"]
    return heats, [torch.from_numpy(decoding[f"{kind}_reg_{side}"]) for side in "tlbr"]


@needs_conformance
def test_decoding(decoding):
    """Rows with scores above 0 are the reference's, in its order."""
    names = [name for name in decoding if "_K" in name]
    assert len(names) == 18
    for name in names:
        kind, K, aggregation, offsets, *thresholds = name.split("_")
        heats, regs = maps_of(decoding, kind)
        limits = {}
        if thresholds:
            limits = {"scores_thresh": float(thresholds[0][len("thresh") :]), "center_thresh": float(thresholds[1])}
        dets = DECODERS[kind](
            *heats,
            *(regs if offsets == "regr" else [None] * 4),
            K=int(K[1:]),
            aggr_weight=float(aggregation[4:]),
            num_dets=200,
            **limits,
        ).numpy()
        expected = decoding[name]
        assert dets.shape == expected.shape and dets.dtype == np.float32
        for found, rows in zip(dets, expected, strict=True):
            valid = rows[:, 4] > 0
            assert np.array_equal(found[:, 4] > 0, valid), name
            np.testing.assert_allclose(found[valid], rows[valid], rtol=1e-5, atol=1e-5, err_msg=name)


def exhaustive(heats, regs, K, scores_thresh, center_thresh, num_dets, agnostic):
    """All K^4 combinations one by one, in plain Python: the rules of the decoding as they are written down."""
    height, width = heats[4].shape[2:]
    results = []
    for b in range(len(heats[0])):
        points = []
        for side in range(4):
            score, ind, cls, _, _ = topk(peak_filter(heats[side][b : b + 1]).clamp(max=1), K)
            points.append(list(zip(score[0].tolist(), ind[0].tolist(), cls[0].tolist(), strict=True)))
        rows = []
        for combination in itertools.product(*points):
            ys, xs = zip(*(divmod(ind, width) for _, ind, _ in combination), strict=True)
            cx, cy = int((xs[1] + xs[3] + 0.5) / 2), int((ys[0] + ys[2] + 0.5) / 2)
            cls = int(heats[4][b, :, cy, cx].argmax()) if agnostic else combination[0][2]
            center = heats[4][b, cls, cy, cx]
            scores = [np.float32(score) for score, _, _ in combination]
            if (
                min(scores) < np.float32(scores_thresh)
                or center < center_thresh
                or (not agnostic and {other for _, _, other in combination} != {cls})
                or ys[0] > min(ys)
                or xs[1] > min(xs)
                or ys[2] < max(ys)
                or xs[3] < max(xs)
            ):
                continue
            score = (scores[0] + scores[1] + scores[2] + scores[3] + 2 * center.numpy()) / np.float32(6)
            moved = []
            for side, (x, y) in enumerate(zip(xs, ys, strict=True)):
                dx, dy = regs[side][b, :, y, x].tolist() if regs else (0.5, 0.5)
                moved.append((x + dx, y + dy))
            box = (moved[1][0], moved[0][1], moved[3][0], moved[2][1])
            rows.append([*box, float(score), *itertools.chain(*moved), cls])
        rows.sort(key=lambda row: -row[4])  # stable: equal scores stay in the order of the combinations
        results.append(rows[:num_dets])
    return results


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("block", [1 << 20, 7])
def test_decoding_looks_at_all_combinations(agnostic, levels, block, monkeypatch):
    """With few levels of scores nearly all combinations tie; they come in the order of the combinations."""
    monkeypatch.setattr(exdet, "CHUNK_SIZE", block)
    generator = torch.Generator().manual_seed(5)
    heats = [torch.rand(2, 1 if agnostic and k < 4 else 2, 9, 12, generator=generator) for k in range(5)]
    if levels:
        heats = [(heat * levels).round() / levels for heat in heats]
    regs = [torch.rand(2, 2, 9, 12, generator=generator) for _ in range(4)]
    decode = agnex_ct_decode if agnostic else exct_decode
    for offsets, num_dets in ((regs, 1000), (None, 25)):
        given = offsets or [None] * 4
        dets = decode(*heats, *given, K=7, scores_thresh=0.3, center_thresh=0.2, num_dets=num_dets)
        expected = exhaustive(heats, offsets, 7, 0.3, 0.2, num_dets, agnostic)
        assert sum(len(rows) for rows in expected) > 10
        for found, rows in zip(dets.numpy(), expected, strict=True):
            np.testing.assert_allclose(found[: len(rows)], rows, rtol=1e-6, atol=1e-5)
            assert (found[len(rows) :, 4] == -1).all()


def test_edge_aggregation_by_hand():
    """A score takes in the rising runs that lead up to it from both sides, along the edge."""
    line = torch.tensor([0.1, 0.2, 0.2, 0.4, 0.3, 0.1, 0.2])
    left = torch.tensor([0, 0.1, 0.3, 0.5, 0, 0, 0.1])
    right = torch.tensor([0, 0.2, 0, 0.4, 0.1, 0, 0])
    expected = line + 0.5 * left + 0.5 * right
    across = exdet._aggregate(line.view(1, 1, 1, 7), 0.5, 3)
    down = exdet._aggregate(line.view(1, 1, 7, 1), 0.5, 2)
    torch.testing.assert_close(across.flatten(), expected)
    torch.testing.assert_close(down.flatten(), expected)
    assert torch.equal(exdet._aggregate(line.view(1, 1, 1, 7), 0.5, 2).flatten(), line)


def test_many_peaks_need_little_memory(monkeypatch):
    """A flat map makes every combination valid that fits: 100^4 of them do not lie in memory at once."""
    largest = 0
    nonzero = torch.Tensor.nonzero

    def watched(tensor, **more):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return nonzero(tensor, **more)

    monkeypatch.setattr(torch.Tensor, "nonzero", watched)
    monkeypatch.setattr(exdet, "CHUNK_SIZE", 1 << 16)
    heat = torch.full((1, 1, 12, 12), 0.5)
    dets = agnex_ct_decode(*[heat] * 4, heat, K=60)
    assert (dets[0, :, 4] == 0.5).all()
    assert largest <= 2 * (1 << 16)


def raw_truth(batch, opt):
    """Return raw maps that equal the targets."""
    output = {name: torch.logit(batch[name], eps=1e-6) for name in MAPS}
    for side in "tlbr" if opt.reg_offset else "":
        maps = torch.zeros(len(batch["hm_c"]), 2, *batch["hm_c"].shape[2:])
        for b, k in batch["reg_mask"].nonzero().tolist():
            maps[b].view(2, -1)[:, batch[f"ind_{side}"][b, k]] = batch[f"reg_{side}"][b, k]
        output[f"reg_{side}"] = maps
    return output


@pytest.mark.parametrize("args", [[], ["--agnostic_ex"], ["--not_reg_offset"]])
def test_targets_decode_to_the_objects(args):
    """Three objects apart from each other come back, box by box and point by point, in image pixels."""
    opt = options(*args)
    points = np.array(
        [
            [[20, 6], [7, 30], [31, 50], [44, 22]],
            [[100, 12], [70, 20], [82, 47], [121, 40]],
            [[60, 66], [12, 80], [50, 115], [110, 101]],
        ],
        np.float32,
    )
    objects = {"points": points, "cls": np.array([3, 7, 3])}
    sample = Exdet(opt).encode(np.zeros((128, 128, 3), np.uint8), objects, None, False)
    batch = finish_batch(collate([sample]), Exdet(opt))
    output = raw_truth(batch, opt)
    dets = Exdet(opt).decode(output)
    (results,) = Exdet(opt).postprocess(dets, batch["meta"])
    limit = 1e-3 if opt.reg_offset else 2.01
    for cls, members in ((4, [0, 2]), (8, [1])):
        rows = results[cls]
        # The middle of the box and the center of the targets may be neighbors; without its center a box has 0.67.
        found = rows[rows[:, 4] > 0.75]
        assert len(found) == len(members)
        for member in members:
            distance = np.abs(found[:, 5:].reshape(-1, 4, 2) - points[member]).max(axis=(1, 2))
            best = found[distance.argmin()]
            assert distance.min() < limit
            (tx, top), (left, ly), (bx, bottom), (right, ry) = best[5:].reshape(4, 2)
            assert best[:4].tolist() == [left, top, right, bottom]

    # The flip test: the flipped image's maps, decoded and flipped back, say the same.
    flipped = dict(output)
    for one, other in (("t", "t"), ("l", "r"), ("b", "b"), ("r", "l")):
        flipped[f"hm_{one}"] = output[f"hm_{other}"].flip(3)
        if opt.reg_offset:
            flipped[f"reg_{one}"] = output[f"reg_{other}"].flip(3) * torch.tensor([-1.0, 1]).view(1, 2, 1, 1)
    flipped["hm_c"] = output["hm_c"].flip(3)
    both = {name: torch.cat([output[name], flipped[name]]) for name in output}
    both_dets = Exdet(opt).decode(both, flipped=True)
    assert both_dets.shape == (1, 2000, 14)
    plain, back = both_dets[0, :1000], both_dets[0, 1000:]
    assert torch.equal(plain, dets[0])
    # A cell x becomes width - 1 - x, but a flipped point width - x: with offsets they are one pixel apart. Scores may
    # differ, because the middle of a box is rounded the other way.
    if opt.reg_offset:
        back[:, [0, 2, 5, 7, 9, 11]] -= 1
    back = back[back[:, 4] > 0.5]
    geometry = [column for column in range(14) if column != 4]
    for row in plain[plain[:, 4] > 0.75]:
        assert (back - row)[:, geometry].abs().amax(1).min() < 1e-3


@needs_conformance
def test_post_processing():
    """Boxes as in the reference; the points, which it leaves in output pixels, are brought along."""
    case = {name[7:]: value for name, value in load_golden("detector").items() if name.startswith("expost_")}
    with np.load(CONFORMANCE / "detector.npz", allow_pickle=False) as file:
        c, s, scale = (file[f"ctpost_{name}"] for name in ("c", "s", "scale"))
    plain, flipped = torch.from_numpy(case["dets"])
    dets = torch.cat([plain, exdet.unflip(flipped, 32)]).numpy()
    rows = exdet.exdet_post_process(dets, c, float(s), 32, 32, float(scale))
    same = [0, 1, 2, 3, 4, 13]
    np.testing.assert_allclose(rows[:, same], case["out"][:, same], rtol=1e-5, atol=1e-4)
    factor = 150 / 32 / 1.5
    np.testing.assert_allclose(rows[:15, 5:13:2], plain[:, 5:13:2] * factor, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(rows[:15, 6:13:2], plain[:, 6:13:2] * factor - 10, rtol=1e-4, atol=1e-3)


def test_flipping_back():
    row = torch.tensor([[2.0, 1, 9, 8, 0.7, 4, 1, 2, 5, 6, 8, 9, 3, 1]])
    expected = [[1.0, 1, 8, 8, 0.7, 6, 1, 1, 3, 4, 8, 8, 5, 1]]
    np.testing.assert_allclose(exdet.unflip(row, 10), expected)
    assert torch.equal(exdet.unflip(exdet.unflip(row, 10), 10), row)


# Results


def detection(x, score, points_at=0.0):
    return [x, 10, x + 20, 30, score, *np.arange(8) + points_at]


def test_merging():
    """Scales are joined, a class's overlapping boxes decay, and each box keeps its points."""
    opt = options()
    empty = {cls: np.zeros((0, 13), np.float32) for cls in range(1, 81)}
    one = {**empty, 1: np.array([detection(0, 0.5, 100), detection(100, 0.9, 200)], np.float32)}
    two = {
        **empty,
        1: np.array([detection(0, 0.8, 300)], np.float32),
        2: np.array([detection(0, 0.4, 400)], np.float32),
    }
    results = Exdet(opt).merge_scales([one, two])
    assert [len(results[cls]) for cls in (1, 2, 3)] == [3, 1, 0]
    np.testing.assert_allclose(results[1][:, 4], [0.9, 0.8, 0.5 * np.exp(-2)], rtol=1e-5)
    assert results[1][:, 5].tolist() == [200, 300, 100]
    assert results[2][0].tolist() == np.array(detection(0, 0.4, 400), np.float32).tolist()
    assert all(rows.dtype == np.float32 and rows.shape[1] == 13 for rows in results.values())


def test_discarded_rows():
    rows = np.array([detection(0, 0.9, 100), detection(0, 0.005, 200), detection(100, 0.8, 300)], np.float32)
    inputs = {1: rows, **{cls: np.zeros((0, 13), np.float32) for cls in range(2, 81)}}
    assert Exdet(options()).merge_scales([inputs])[1][:, 5].tolist() == [100, 300]
    kept = Exdet(options("--keep_discarded")).merge_scales([inputs])[1]
    assert len(kept) == 3 and np.allclose(kept[:, 4], [0.9, 0.8, 0.8])


def test_at_most_a_hundred():
    rows = np.array([detection(50 * k, 0.3 + k / 1000) for k in range(130)], np.float32)
    inputs = {1: rows, **{cls: np.zeros((0, 13), np.float32) for cls in range(2, 81)}}
    kept = Exdet(options()).merge_scales([inputs])[1]
    assert len(kept) == 100 and kept[:, 4].min() == np.float32(0.33)


def test_default_number_of_peaks():
    """40 of each kind, as published, unless --K is given; its default is one for centers."""
    generator = torch.Generator().manual_seed(0)
    opt = options("--agnostic_ex", "--scores_thresh", "0", "--center_thresh", "0")
    output = {head: torch.randn(1, channels, 32, 32, generator=generator) + 3 for head, channels in opt.heads.items()}
    used = set()
    for args, expected in (([], 40), (["--K", "100"], 100), (["--K", "5"], 5)):
        given = options("--agnostic_ex", "--scores_thresh", "0", "--center_thresh", "0", *args)
        hms = [output[name].sigmoid() for name in MAPS]
        regs = [output[f"reg_{side}"] for side in "tlbr"]
        dets = Exdet(given).decode(output)
        assert torch.equal(dets, agnex_ct_decode(*hms, *regs, K=expected, scores_thresh=0, center_thresh=0))
        used.add(dets[0, :, 4].sum().item())
    assert len(used) == 3


def test_true_maps_in_place_of_the_predicted():
    batch, opt = random_batch(["--eval_oracle_hm"])
    outputs = random_outputs(batch, opt)
    _, parts = ExdetLoss(opt)(outputs, batch)
    assert torch.isfinite(parts["loss"]) and parts["hm_loss"] < 0.5 * ExdetLoss(options())(outputs, batch)[1]["hm_loss"]
    output = Exdet.criterion(opt).with_oracle(outputs[0], batch)
    for name in MAPS:
        torch.testing.assert_close(output[name].sigmoid(), batch[name])


# Images


def test_debug_images():
    batch, opt = random_batch(["--debug", "4", "--center_thresh", "0.3"], images=1)
    images = build_visualizer(Exdet(opt)).training_images(batch, raw_truth(batch, opt))
    assert set(images) == {"pred_hm", "pred_hm_c", "gt_hm", "gt_hm_c", "out_pred", "out_gt"}
    assert all(image.shape == (512, 512, 3) for image in images.values())  # enlarged
    assert (images["out_gt"] != 0).any() and not np.array_equal(images["gt_hm"], images["gt_hm_c"])
    assert set(build_visualizer(Exdet(opt)).training_images(batch, None)) == {"gt_hm", "gt_hm_c", "out_gt"}


def test_result_images():
    opt = options("--vis_thresh", "0.5")
    points = [40, 20, 20, 60, 50, 100, 90, 70]
    rows = {1: np.array([[20, 20, 90, 100, 0.9, *points], [0, 0, 5, 5, 0.2, *[2] * 8]], np.float32)}
    image = np.zeros((120, 120, 3), np.uint8)
    drawn = build_visualizer(Exdet(opt)).result_images(image, rows, {})["exdet"]
    assert not image.any() and drawn.shape == (480, 480, 3)  # enlarged
    for x, y in 4 * np.reshape(points, (4, 2)):
        assert drawn[y - 2 : y + 3, x - 2 : x + 3].any()
    assert not drawn[8:16, 8:16].any()  # the weak one is not drawn
    objects = {"points": np.reshape(points, (1, 4, 2)).astype(np.float32), "cls": np.array([0])}
    assert build_visualizer(Exdet(opt)).ground_truth_images(image, objects)["gt"].any()
    empty = {"points": np.zeros((0, 4, 2), np.float32), "cls": np.zeros(0, np.int64)}
    assert not build_visualizer(Exdet(opt)).ground_truth_images(image, empty)["gt"].any()


def test_octagon():
    corners = octagon(np.array([[2.0, 0], [0, 40], [40, 80], [80, 79]]))
    assert corners[:2].tolist() == [[12, 0], [0, 0]]  # cut off at the corner
    assert corners[2:4].tolist() == [[0, 30], [0, 50]]
    assert corners[6:].tolist() == [[80, 80], [80, 69]]
    assert outline_extremes([corners])[:, 1].tolist()[::2] == [0, 80]
