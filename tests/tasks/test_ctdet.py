"""Detection: loss, decoding and post-processing against the reference, and the round trip of targets."""

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.conformance import CONFORMANCE, needs_conformance
from tests.helpers.tasks import random_outputs

from centernet.datasets.loader import collate, finish_batch
from centernet.ops.losses import RegL1Loss
from centernet.ops.oracle import oracle_map
from centernet.ops.peaks import peak_filter, topk
from centernet.opts import opts
from centernet.tasks.ctdet import Ctdet, CtdetLoss, ctdet_decode, ctdet_post_process
from centernet.transforms import AugmentationRng

FOLDER = Path(__file__).parents[1] / "golden"
DECODE = json.loads((FOLDER / "ctdet_decode.json").read_text())
LOSS = json.loads((FOLDER / "ctdet_loss.json").read_text())

LOSS_CASES = {
    "ctdet": [],
    "ctdet_2stacks": [],
    "ctdet_empty": [],
    "ctdet_sl1": ["--reg_loss", "sl1"],
    "ctdet_norm_wh": [],  # --norm_wh has no effect in the reference
    "ctdet_mse": ["--mse_loss"],
    "ctdet_not_reg_offset": ["--not_reg_offset"],
    "ctdet_weights": ["--hm_weight", "2", "--wh_weight", "0.3", "--off_weight", "0.5"],
    "ctdet_wh0": ["--wh_weight", "0", "--off_weight", "0"],
    "ctdet_dense_wh": ["--dense_wh"],
    "ctdet_dense_wh_2stacks": ["--dense_wh"],
    "ctdet_cat_spec_wh": ["--cat_spec_wh"],
}


def options(*args):
    return opts().parse(["ctdet", "--dataset", "pascal", "--input_res", "128", *args])


@pytest.fixture(scope="module")
def losses():
    with np.load(CONFORMANCE / "losses.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith("ctdet")}


@pytest.fixture(scope="module")
def decoding():
    with np.load(CONFORMANCE / "decode.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith("ct_")}


def loss_case(losses, case):
    """Outputs that take gradients, and the batch."""
    stacks = int(losses[f"{case}/num_stacks"])
    outputs = [
        {
            head: torch.from_numpy(losses[f"{case}/out{stack}_{head}"]).clone().requires_grad_()
            for head in ("hm", "wh", "reg")
        }
        for stack in range(stacks)
    ]
    start = f"{case}/batch_"
    batch = {name[len(start) :]: torch.from_numpy(losses[name]) for name in losses if name.startswith(start)}
    return outputs, batch


def random_batch(seed=0, images=4, size=128, args=()):
    """Finished training targets of random objects on black images, and the options."""
    opt = options("--not_rand_crop", "--scale", "0", "--shift", "0", "--flip", "0", "--no_color_aug", *args)
    rng = np.random.default_rng(seed)
    samples = []
    for k in range(images):
        count = 0 if k == 1 else 7
        corners = rng.uniform(0, 0.7 * size, (count, 2))
        boxes = np.hstack([corners, corners + rng.uniform(0.08 * size, 0.3 * size, (count, 2))]).astype(np.float32)
        objects = {"boxes": boxes, "cls": rng.integers(0, 20, count)}
        record = {"draws": [["randn", 0.0]] * 3 + [["random", 0.5]], "color": None}
        draws = AugmentationRng(record=record)
        samples.append(Ctdet(opt).encode(np.zeros((size, size, 3), np.uint8), objects, draws, True))
    return finish_batch(collate(samples), Ctdet(opt)), opt


# Loss


@needs_conformance
def test_no_loss_case_is_missing(losses):
    assert {name.split("/")[0] for name in losses} == set(LOSS_CASES)


@needs_conformance
@pytest.mark.parametrize("case", LOSS_CASES)
def test_loss(losses, case):
    outputs, batch = loss_case(losses, case)
    loss, parts = CtdetLoss(options(*LOSS_CASES[case]))(outputs, batch)
    assert list(parts) == ["loss", "hm_loss", "wh_loss", "off_loss"]
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


@needs_conformance
def test_relative_size_loss(losses):
    """With --norm_wh the size loss is relative to the size."""
    outputs, batch = loss_case(losses, "ctdet_norm_wh")
    _, parts = CtdetLoss(options("--norm_wh"))(outputs, batch)
    total, count = 0.0, 0
    wh = outputs[0]["wh"].detach().double().flatten(2)
    for b, k in batch["reg_mask"].nonzero().tolist():
        for d in range(2):
            target = float(batch["wh"][b, k, d])
            total += abs(float(wh[b, d, batch["ind"][b, k]]) / (target + 1e-4) - 1)
            count += 1
    assert parts["wh_loss"].item() == pytest.approx(total / (count + 1e-4), rel=1e-5)
    assert abs(parts["wh_loss"].item() / float(losses["ctdet_norm_wh/stat_wh_loss"]) - 1) > 0.1
    assert parts["off_loss"].item() == pytest.approx(float(losses["ctdet_norm_wh/stat_off_loss"]), rel=1e-5)


def golden_maps(golden, head, size=(16, 20)):
    """The maps of a head, filled at the cells that the golden values list."""
    maps = torch.full((2, 2, size[0] * size[1]), 1000.0)
    for b in range(2):
        for cell, vector in zip(golden["ind"][b], golden[f"out_{head}"][b], strict=True):
            maps[b, :, cell] = torch.tensor(vector)
    return maps.view(2, 2, *size)


@pytest.mark.parametrize(("case", "args"), [("ctdet", []), ("ctdet_sl1", ["--reg_loss", "sl1"])])
def test_golden_loss(case, args):
    """Size and offset losses of a case of the reference, and the heatmap of the focal loss's example."""
    golden = LOSS[case]
    batch = {
        "hm": torch.zeros(2, 1, 16, 20),
        "reg_mask": torch.tensor(golden["mask"], dtype=torch.uint8),
        "ind": torch.tensor(golden["ind"]),
        "wh": torch.tensor(golden["wh"]),
        "reg": torch.tensor(golden["reg"]),
    }
    batch["hm"][0, 0, 0, :4] = torch.tensor([1, 0.5, 0, 0.2])
    output = {"hm": torch.full((2, 1, 16, 20), -50.0)}
    output["hm"][0, 0, 0, :4] = torch.logit(torch.tensor([0.6, 0.3, 0.1, 0.8]))
    output |= {head: golden_maps(golden, head) for head in ("wh", "reg")}
    loss, parts = CtdetLoss(options(*args))([output], batch)
    hm_loss = 0.5066965 - 636 * 1e-8 * np.log(1 - 1e-4)  # the example, and what the clamp leaves of the other cells
    assert parts["hm_loss"].item() == pytest.approx(hm_loss, rel=1e-5)
    assert parts["wh_loss"].item() == pytest.approx(golden["wh_loss"], rel=1e-5)
    assert parts["off_loss"].item() == pytest.approx(golden["off_loss"], rel=1e-5)
    total = hm_loss + 0.1 * golden["wh_loss"] + golden["off_loss"]
    assert loss.item() == pytest.approx(total, rel=1e-5)


# Decoding


@needs_conformance
def test_decoding(decoding):
    heat, wh, by_class, reg = (torch.from_numpy(decoding[f"ct_{n}"]) for n in ("hm", "wh", "wh_cat", "reg"))
    K = int(decoding["ct_K"])
    assert torch.equal(peak_filter(heat), torch.from_numpy(decoding["ct_nms"]))
    # topk itself gets the filtered map
    score, ind, cls, ys, xs = (value.numpy() for value in topk(peak_filter(heat), K))
    for value, name in ((score, "scores"), (ind, "inds"), (cls, "clses"), (ys, "ys"), (xs, "xs")):
        assert np.array_equal(value, decoding[f"ct_topk_{name}"]), name
    for name, dets in {
        "reg": ctdet_decode(heat, wh, reg, K=K),
        "noreg": ctdet_decode(heat, wh, None, K=K),
        "cat": ctdet_decode(heat, by_class, reg, cat_spec_wh=True, K=K),
    }.items():
        assert dets.dtype == torch.float32
        np.testing.assert_allclose(dets.numpy(), decoding[f"ct_dets_{name}"], rtol=1e-5, atol=1e-5, err_msg=name)


@needs_conformance
@pytest.mark.parametrize("kind", ["scalar", "array"])
def test_post_processing(decoding, kind):
    dets, scale = decoding["ct_dets_reg"], decoding[f"ct_post_{kind}_scale"]
    height, width = decoding["ct_hm"].shape[2:]
    results = ctdet_post_process(dets.copy(), decoding["ct_post_center"], scale, height, width, 5)
    rows = [[b, cls, *row] for b, image in enumerate(results) for cls, found in image.items() for row in found]
    counts = [[len(image[cls]) for cls in range(1, 6)] for image in results]
    assert counts == decoding[f"ct_post_{kind}_count"].tolist()
    np.testing.assert_allclose(rows, decoding[f"ct_post_{kind}"], rtol=1e-5, atol=1e-4)


@needs_conformance
def test_detector_post_processing():
    with np.load(CONFORMANCE / "detector.npz", allow_pickle=False) as file:
        dets, out, c, s, scale = (file[f"ctpost_{name}"] for name in ("dets", "out", "c", "s", "scale"))
    results = ctdet_post_process(dets.copy(), [c], [float(s)], 32, 32, 5)[0]
    rows = [[cls, *(np.float32(row[:4]) / float(scale)), row[4]] for cls in range(1, 6) for row in results[cls]]
    np.testing.assert_allclose(rows, out, rtol=1e-5, atol=1e-4)


def golden_decoding():
    """The maps in which the golden peaks stand alone."""
    classes, height, width = DECODE["size"]
    heat, wh, reg = (torch.zeros(1, channels, height, width) for channels in (classes, 2, 2))
    by_class = torch.zeros(1, 2 * classes, height, width)
    for cls, y, x, score, w, h, dx, dy, class_w, class_h in DECODE["peaks"]:
        heat[0, cls, y, x] = score
        wh[0, :, y, x] = torch.tensor([w, h])
        reg[0, :, y, x] = torch.tensor([dx, dy])
        by_class[0, 2 * cls : 2 * cls + 2, y, x] = torch.tensor([class_w, class_h])
    return heat, wh, reg, by_class


def test_golden_decoding():
    heat, wh, reg, by_class = golden_decoding()
    K = len(DECODE["peaks"])
    for dets, name in (
        (ctdet_decode(heat, wh, reg, K=K), "rows"),
        (ctdet_decode(heat, wh, None, K=K), "rows_without_reg"),
        (ctdet_decode(heat, by_class, reg, cat_spec_wh=True, K=K), "rows_by_class"),
    ):
        assert dets.shape == (1, K, 6)
        np.testing.assert_allclose(dets[0].numpy(), DECODE[name], rtol=1e-5, atol=1e-5)


def test_golden_post_processing():
    heat, wh, reg, _ = golden_decoding()
    classes, height, width = DECODE["size"]
    dets = ctdet_decode(heat, wh, reg, K=len(DECODE["peaks"])).numpy()
    post = DECODE["post"]
    results = ctdet_post_process(dets, [np.float32(post["center"])], [post["scale"]], height, width, classes)[0]
    rows = sorted(([cls, *row] for cls, found in results.items() for row in found), key=lambda row: -row[5])
    assert list(results) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(rows, post["rows"], rtol=1e-5, atol=1e-4)


def test_topk_on_small_maps():
    heat = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    score, ind, cls, ys, xs = topk(heat, 100)
    assert score.shape == (2, 12)
    assert torch.equal(score, heat.flatten(1).sort(descending=True).values)
    assert torch.equal(heat[[[0], [1]], cls, ys.long(), xs.long()], score)
    assert torch.equal(ind, ys.long() * 2 + xs.long())


def test_peaks():
    heat = torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.5, 0.5, 0.1, 0.0], [0.0, 0.0, 0.0, 0.4]])[None, None]
    kept = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.4]])
    kept = torch.where(kept > 0, heat[0, 0], 0)
    assert torch.equal(peak_filter(heat)[0, 0], kept)


@pytest.mark.parametrize("args", [[], ["--cat_spec_wh"], ["--not_reg_offset"]])
def test_decoding_undoes_the_targets(args):
    """Perfect maps give the boxes back; without offsets to the half pixel that they stand for."""
    batch, opt = random_batch(seed=3, args=args)
    batch_size, _, height, width = batch["hm"].shape
    output = {"hm": torch.logit(batch["hm"], eps=1e-6)}
    for head, target in (("wh", "cat_spec_wh" if opt.cat_spec_wh else "wh"), ("reg", "reg")):
        if target in batch:
            maps = torch.zeros(batch_size, batch[target].shape[2], height * width)
            for b, k in batch["reg_mask"].nonzero().tolist():
                maps[b, :, batch["ind"][b, k]] += batch[target][b, k]
            output[head] = maps.view(batch_size, -1, height, width)
    dets = Ctdet(opt).decode(output)
    assert dets.shape == (batch_size, 100, 6)
    found = 0
    for b in range(batch_size):
        rows = dets[b][dets[b, :, 4] > 0.999].numpy()
        slots = batch["reg_mask"][b].nonzero()[:, 0].tolist()
        assert len(rows) == len(slots)
        for k in slots:
            y, x = divmod(int(batch["ind"][b, k]), width)
            target = batch["wh"][b, k] if "wh" in batch else batch["cat_spec_wh"][b, k].view(-1, 2).sum(0)
            offset = batch["reg"][b, k].numpy() if "reg" in batch else 0.5
            center = np.array([x, y]) + offset
            expected = np.hstack([center - target.numpy() / 2, center + target.numpy() / 2])
            error = np.abs(rows[:, :4] - expected).max(1) + 10 * (rows[:, 5] != int(batch["cls"][b, k]))
            assert error.min() < 1e-4
            found += 1
    assert found > 15


def test_whole_way_back_to_the_image():
    """Boxes of an image, as targets, decoded, in the image again."""
    opt = options()
    boxes = np.float32([[20, 30, 120, 100], [150, 40, 190, 140], [5, 5, 60, 25]])
    objects = {"boxes": boxes, "cls": np.array([3, 7, 3])}
    sample = Ctdet(opt).encode(np.zeros((150, 200, 3), np.uint8), objects, None, False)
    batch = finish_batch(collate([sample]), Ctdet(opt))
    opt.eval_oracle_hm = opt.eval_oracle_wh = opt.eval_oracle_offset = True
    nothing = {head: torch.zeros(1, channels, 32, 32) for head, channels in opt.heads.items()}
    dets = Ctdet(opt).decode(Ctdet.criterion(opt).with_oracle(nothing, batch))
    results = Ctdet(opt).postprocess(dets, batch["meta"])[0]
    assert list(results) == list(range(1, 21))
    for cls, expected in ((4, boxes[[0, 2]]), (8, boxes[[1]])):
        rows = results[cls][results[cls][:, 4] > 0.99]
        rows = rows[np.argsort(-rows[:, 2])] if cls == 4 else rows
        np.testing.assert_allclose(rows[:, :4], expected, atol=1e-2)
    assert sum(len(rows) for rows in results.values()) == 100


# Ground truth in place of heads


def slow_flood(vectors, cells, valid, height, width):
    """The flood for one image in plain Python: distance by distance in the order of the queue."""
    owner, queue = {}, deque()
    for k in range(len(cells)):
        if valid[k]:
            owner[divmod(int(cells[k]), width)] = k
            queue.append((*divmod(int(cells[k]), width), k))
    while queue:
        y, x, k = queue.popleft()
        for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near = (y + dy, x + dx)
            if 0 <= near[0] < height and 0 <= near[1] < width and near not in owner:
                owner[near] = k
                queue.append((*near, k))
    result = np.zeros((vectors.shape[1], height, width), np.float32)
    for (y, x), k in owner.items():
        result[:, y, x] = vectors[k]
    return result


@pytest.mark.parametrize("seed", range(3))
def test_oracle_maps(seed):
    rng = np.random.default_rng(seed)
    height, width = 6, 9
    values = rng.normal(size=(3, 5, 2)).astype(np.float32)
    ind = rng.integers(0, height * width, (3, 5))
    ind[0, 3] = ind[0, 1]  # two objects in one cell
    mask = np.uint8([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    maps = oracle_map(*(torch.from_numpy(array) for array in (values, ind, mask)), (3, 2, height, width))
    assert maps.shape == (3, 2, height, width) and maps.dtype == torch.float32
    for b in range(3):
        assert np.array_equal(maps[b].numpy(), slow_flood(values[b], ind[b], mask[b], height, width))
    assert not maps[2].any()
    y, x = divmod(int(ind[0, 3]), width)
    assert np.array_equal(maps[0, :, y, x].numpy(), values[0, 3])


def test_oracle_map_by_hand():
    """Two objects on a line: each cell takes the nearer, and the first of two at the same distance."""
    values, mask = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    maps = oracle_map(values, torch.tensor([[5, 1, 3]]), mask, (1, 1, 1, 8))
    assert maps.flatten().tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    # An object in the first cell counts like any other.
    maps = oracle_map(values, torch.tensor([[0, 7, 3]]), mask, (1, 1, 1, 8))
    assert maps.flatten().tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_oracle_map_of_two_objects_in_a_cell():
    """The cell keeps the last vector and hands on the first, as ``gen_oracle_map`` of the reference does."""
    values, mask = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1, 1, 1]])
    maps = oracle_map(values, torch.tensor([[3, 3, 6]]), mask, (1, 1, 1, 8))
    assert maps.flatten().tolist() == [1, 1, 1, 2, 1, 3, 3, 3]


def test_oracle_replaces_what_is_named():
    batch, opt = random_batch(seed=4)
    raw = {head: value.detach() for head, value in random_outputs(batch, opt)[0].items()}
    same = Ctdet.criterion(opt).with_oracle(raw, batch)
    assert all(same[head] is raw[head] for head in raw)
    for option, head in (("eval_oracle_hm", "hm"), ("eval_oracle_wh", "wh"), ("eval_oracle_offset", "reg")):
        one = options(f"--{option}")
        changed = Ctdet.criterion(one).with_oracle(raw, batch)
        assert {name for name in raw if changed[name] is not raw[name]} == {head}


def test_oracles_together_decode_perfectly():
    batch, opt = random_batch(seed=5)
    opt.eval_oracle_hm = opt.eval_oracle_wh = opt.eval_oracle_offset = True
    raw = {head: value.detach() for head, value in random_outputs(batch, opt)[0].items()}
    dets = Ctdet(opt).decode(Ctdet.criterion(opt).with_oracle(raw, batch)).numpy()
    assert np.isfinite(dets).all()
    _, parts = CtdetLoss(opt)([raw], batch)
    assert parts["wh_loss"].item() < 1e-5 and parts["off_loss"].item() < 1e-5
    assert torch.isfinite(parts["hm_loss"])
    for b in range(len(dets)):
        rows = dets[b][dets[b, :, 4] == 1]
        slots = batch["reg_mask"][b].nonzero()[:, 0].tolist()
        assert len(rows) == len(slots)
        for k in slots:
            y, x = divmod(int(batch["ind"][b, k]), 32)
            center = np.array([x, y]) + batch["reg"][b, k].numpy()
            half = batch["wh"][b, k].numpy() / 2
            assert np.abs(rows[:, :4] - np.hstack([center - half, center + half])).max(1).min() < 1e-4


# Joining


def image_of(counts, classes=20, seed=0):
    """Detections of one scale: boxes far apart with different scores."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(np.linspace(0.01, 0.99, sum(counts.values())))
    result, start = {}, 0
    for cls in range(1, classes + 1):
        n = counts.get(cls, 0)
        x = 30.0 * np.arange(start, start + n)
        result[cls] = np.stack([x, 0 * x, x + 10, 0 * x + 10, scores[start : start + n]], 1).tolist()
        start += n
    return result


def test_results_keep_the_100_best():
    opt = options()
    image = image_of({1: 60, 5: 50, 20: 30})
    merged = Ctdet(opt).merge_scales([image])
    assert list(merged) == list(range(1, 21))
    assert all(rows.dtype == np.float32 and rows.shape[1:] == (5,) for rows in merged.values())
    kept = np.sort(np.concatenate([rows[:, 4] for rows in merged.values()]))
    everything = np.sort([row[4] for rows in image.values() for row in rows])
    np.testing.assert_allclose(kept, everything[-100:], rtol=1e-6)
    for cls in (1, 5, 20):
        expected = [row for row in image[cls] if row[4] >= everything[-100] - 1e-9]
        np.testing.assert_allclose(merged[cls], expected, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 99, 100])
def test_results_of_100_and_less_stay(count):
    image = image_of({2: count // 2, 3: count - count // 2})
    merged = Ctdet(options()).merge_scales([image])
    assert sum(len(rows) for rows in merged.values()) == count
    np.testing.assert_allclose(merged[3], np.reshape(image[3], (-1, 5)), rtol=1e-6)


@pytest.mark.parametrize(("k", "kept"), [(20, 100), (100, 100), (130, 130), (300, 160)])
def test_more_than_100_results_with_a_larger_k(k, kept):
    image = image_of({1: 90, 5: 50, 20: 20})
    merged = Ctdet(options("--K", str(k))).merge_scales([image])
    scores = np.sort(np.concatenate([rows[:, 4] for rows in merged.values()]))
    everything = np.sort([row[4] for rows in image.values() for row in rows])
    np.testing.assert_allclose(scores, everything[-kept:], rtol=1e-6)


def test_equal_scores_at_the_limit_stay():
    image = image_of({1: 120})
    for k, row in enumerate(image[1]):
        row[4] = 0.9 if k < 90 else 0.5
    assert len(Ctdet(options()).merge_scales([image])[1]) == 120


def test_scales_are_joined_by_soft_nms():
    """With one scale doubles stay, with two or with --nms they lose their score."""
    row = [10.0, 10.0, 50.0, 50.0]
    one = {cls: [] for cls in range(1, 21)} | {4: [[*row, 0.9]]}
    two = {cls: [] for cls in range(1, 21)} | {4: [[*row, 0.8], [200.0, 200.0, 220.0, 220.0, 0.3]]}
    both = {cls: one[cls] + two[cls] for cls in one}
    assert sorted(Ctdet(options()).merge_scales([both])[4][:, 4]) == pytest.approx([0.3, 0.8, 0.9])
    decayed = 0.8 * np.exp(-1 / 0.5)
    for images, opt in (([one, two], options()), ([both], options("--nms"))):
        merged = Ctdet(opt).merge_scales(images)
        assert sorted(merged[4][:, 4]) == pytest.approx(sorted([0.9, 0.3, decayed]), rel=1e-5)
        assert len(merged[1]) == 0


@pytest.mark.parametrize("args", [[], ["--dense_wh"], ["--cat_spec_wh"]])
def test_offsets_are_divided_by_the_objects(args):
    """However sizes are learned."""
    batch, opt = random_batch(seed=6, args=args)
    outputs = random_outputs(batch, opt)
    _, parts = CtdetLoss(opt)(outputs, batch)
    expected = RegL1Loss()(outputs[0]["reg"], batch["reg_mask"], batch["ind"], batch["reg"])
    torch.testing.assert_close(parts["off_loss"], expected)
