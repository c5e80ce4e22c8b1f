"""The detector: pre-processing, flip test, scales, merging, and the network metadata of checkpoints."""

import copy
import dataclasses

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.conformance import CONFORMANCE, needs_conformance
from torch import nn

from centernet.detector import TIMES, Detector, as_array, batches, create_detector, load_network, prepare
from centernet.errors import UserError
from centernet.models import ARCHITECTURES, create_model, save_model
from centernet.options import OptionParser, apply_model_metadata, model_metadata
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.tasks.ctdet import Ctdet, ctdet_decode
from centernet.tasks.option import DEMO, EXPORT, TEST
from centernet.visualization import Canvas

CPU = torch.device("cpu")


def options(*args):
    return opts().parse(["ctdet", "--dataset", "pascal", "--arch", "res_18", "--input_res", "64", *args])


def load_golden(name):
    with np.load(CONFORMANCE / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def rows_of(results):
    """(n, 6) rows [class, box, score] of a result, in the order of classes."""
    return np.concatenate([np.hstack([np.full((len(rows), 1), cls), rows]) for cls, rows in results.items()])


def by_class(rows, classes=20):
    return {cls: rows[rows[:, 0] == cls, 1:].copy() for cls in range(1, classes + 1)}


# Pre-processing


@needs_conformance
@pytest.mark.parametrize("k", range(6))
def test_pre_processing(k):
    case = {
        name[len(f"pre{k}_") :]: value for name, value in load_golden("detector").items() if name.startswith(f"pre{k}_")
    }
    scale, fix_res, flip_test, pad, height, width = case["args"].tolist()
    arguments = ["--input_h", f"{height:.0f}", "--input_w", f"{width:.0f}", "--test_scales", str(scale)]
    arguments += ([] if fix_res else ["--keep_res"]) + (["--flip_test"] if flip_test else [])
    opt = options(*arguments, "--arch", "hourglass" if pad == 127 else "res_18")
    prepared = prepare(case["image"], build_task(opt))
    meta = prepared["meta"][scale]
    np.testing.assert_array_equal(meta["c"], case["c"])
    np.testing.assert_array_equal(meta["s"], case["s"])
    assert meta["output_size"] == tuple(case["out_hw"][::-1])
    batch = Detector(build_task(opt), nn.Identity(), CPU).normalized(prepared["images"][scale][None])
    assert batch.shape == tuple(case["shape"]) and batch.dtype == torch.float32
    exact = int(cv2.__version__.split(".")[0]) >= 5
    expected, tolerance = (case["images_sub_opencv5"], 2e-5) if exact else (case["images_sub_opencv3"], 0.09)
    np.testing.assert_allclose(batch[:, :, ::3, ::3], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("args", "size", "center", "extent", "output_size"),
    [
        (["--test_scales", "1"], (90, 120), (60, 45), 120, (32, 32)),
        (["--test_scales", "1.5"], (90, 120), (90, 67.5), 120, (32, 32)),
        (["--test_scales", "0.75", "--input_h", "96", "--input_w", "160"], (75, 121), (45, 28), 121, (40, 24)),
        (["--test_scales", "0.5", "--keep_res"], (90, 120), (30, 22), (64, 64), (16, 16)),
        (["--test_scales", "1", "--keep_res"], (121, 75), (37, 60), (96, 128), (24, 32)),
        (["--test_scales", "1.25", "--keep_res", "--arch", "hourglass"], (121, 75), (46, 75), (128, 256), (32, 64)),
    ],
)
def test_golden_views(args, size, center, extent, output_size):
    opt = options("--input_res", "128", *args)
    prepared = prepare(np.zeros((*size, 3), np.uint8), build_task(opt))
    (scale,) = opt.test_scales
    meta = prepared["meta"][scale]
    assert tuple(meta["c"]) == center and meta["output_size"] == output_size
    np.testing.assert_array_equal(meta["s"], extent)
    assert prepared["images"][scale].shape == (4 * output_size[1], 4 * output_size[0], 3)


def test_a_small_scale_lies_in_a_black_frame():
    """A gray image of 90 x 120 at scale 0.5 takes the middle 48 rows and 64 columns of an input of 128 x 128."""
    opt = options("--input_res", "128", "--test_scales", "0.5", "--flip_test")
    prepared = prepare(np.full((90, 120, 3), (10, 100, 200), np.uint8), build_task(opt))
    batch = Detector(build_task(opt), nn.Identity(), CPU).normalized(prepared["images"][0.5][None]).numpy()
    mean, std = opt.mean.reshape(3, 1, 1), opt.std.reshape(3, 1, 1)
    inside = (np.array([10, 100, 200]).reshape(3, 1, 1) / 255 - mean) / std
    np.testing.assert_allclose(batch[0, :, 43:85, 35:93], np.broadcast_to(inside, (3, 42, 58)), atol=1e-5)
    outside = np.broadcast_to(-mean / std, (3, 36, 128))
    np.testing.assert_allclose(batch[0, :, :36], outside, atol=1e-5)
    np.testing.assert_allclose(batch[0, :, :, :30], outside[:, :, :30].repeat(128, 1)[:, :128], atol=1e-5)
    assert np.array_equal(batch[1], batch[0, :, :, ::-1])


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32), None]
)
def test_odd_images_are_refused(image):
    with pytest.raises(UserError, match="must be a path or an array"):
        prepare(image, build_task(options()))


def test_scale_that_leaves_nothing():
    with pytest.raises(UserError, match="--test_scales 0.1: nothing is left of an image of 9 x 30"):
        prepare(np.zeros((30, 9, 3), np.uint8), build_task(options("--test_scales", "1,0.1")))


# After the network


@needs_conformance
def test_flip_average():
    case = {name: torch.from_numpy(value) for name, value in load_golden("decode").items() if name.startswith("ct_")}
    averaged = Ctdet(options()).average_flipped({head: case[f"ct_{head}"] for head in ("hm", "wh", "reg")})
    torch.testing.assert_close(averaged["hm"], case["ct_flip_hm"])
    torch.testing.assert_close(averaged["wh"], case["ct_flip_wh"])
    assert torch.equal(averaged["reg"], case["ct_reg"][:1])
    dets = ctdet_decode(averaged["hm"], averaged["wh"], averaged["reg"], K=case["ct_flip_dets"].shape[1])
    torch.testing.assert_close(dets, case["ct_flip_dets"], rtol=1e-5, atol=1e-5)


def test_flip_average_by_hand():
    maps = {
        "hm": torch.tensor([[[[1.0, 0, 0]]], [[[0.5, 0, 0]]]]),
        "wh": torch.tensor([[[[8.0, 4, 0]]], [[[2.0, 0, 0]]]]),
    }
    maps["reg"] = maps["wh"].clone()
    averaged = Ctdet(options()).average_flipped(maps)
    assert averaged["hm"].tolist() == [[[[0.5, 0, 0.25]]]]
    assert averaged["wh"].tolist() == [[[[4, 2, 1]]]]
    assert averaged["reg"].tolist() == [[[[8, 4, 0]]]]
    assert maps["wh"].tolist() == [[[[8, 4, 0]]], [[[2, 0, 0]]]]


@needs_conformance
def test_post_processing():
    case = load_golden("detector")
    opt = options()
    opt.num_classes = 5
    meta = {"c": case["ctpost_c"], "s": float(case["ctpost_s"]), "scale": float(case["ctpost_scale"])}
    dets = torch.from_numpy(case["ctpost_dets"])
    (results,) = Ctdet(opt).to_image_coords(dets, [{**meta, "output_size": (32, 32)}])
    assert all(rows.dtype == np.float32 for rows in results.values())
    np.testing.assert_allclose(rows_of(results), case["ctpost_out"], rtol=1e-5, atol=1e-4)


@needs_conformance
@pytest.mark.parametrize("k", range(4))
def test_merging(k):
    case = {
        name[len(f"merge{k}_") :]: value for name, value in load_golden("nms").items() if name.startswith(f"merge{k}_")
    }
    opt = options(*(["--nms"] if case["nms"] else []))
    scales = [by_class(case[f"in{i}"]) for i in range(case["nscales"])]
    opt.keep_discarded = True
    merged = Ctdet(opt).merge_scales(copy.deepcopy(scales))
    np.testing.assert_allclose(rows_of(merged), case["out"], rtol=0, atol=1e-5)
    opt.keep_discarded = False
    default = rows_of(Ctdet(opt).merge_scales(scales))
    assert len(default) <= max(100, len(case["out"]))
    if len(scales) == 1 and not case["nms"]:
        np.testing.assert_allclose(default, case["out"], rtol=0, atol=1e-5)


def test_golden_merging():
    """The second box is discarded: the reference has a copy of the fourth in its place, with the score of before."""
    rows = [[0, 0, 100, 100, 0.9], [2, 2, 100, 100, 0.004], [200, 200, 300, 300, 0.6], [205, 205, 300, 300, 0.5]]
    scales = [{cls: rows if cls == 3 else [] for cls in range(1, 21)}]
    merged = Ctdet(options("--nms")).merge_scales(scales)[3]
    expected = np.array([rows[0], rows[2], [205, 205, 300, 300, 0.0977289]])
    np.testing.assert_allclose(merged, expected, rtol=1e-5)
    merged = Ctdet(options("--nms", "--keep_discarded")).merge_scales(scales)[3]
    np.testing.assert_allclose(merged, [*expected, rows[3]], rtol=1e-5)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_batch_gives_what_its_images_give(flipped):
    generator = torch.Generator().manual_seed(0)
    opt = options()
    heads = opt.heads.items()
    images = [{head: torch.randn(1, n, 16, 16, generator=generator) for head, n in heads} for _ in range(6)]
    metas = [{"c": np.float32([30 + k, 20]), "s": 70.0 + k, "output_size": (16, 16), "scale": 1 + k} for k in range(3)]

    def results(numbers):
        chosen = [images[n] for n in numbers] + ([images[n + 3] for n in numbers] if flipped else [])
        output = {head: torch.cat([image[head] for image in chosen]) for head in opt.heads}
        dets = Ctdet(opt).decode(output, flipped=flipped)
        return [rows_of(found) for found in Ctdet(opt).to_image_coords(dets, [metas[n] for n in numbers])]

    for together, alone in zip(results([0, 1, 2]), [results([n])[0] for n in range(3)], strict=True):
        np.testing.assert_array_equal(together, alone)


# The whole way


class BrightBox(nn.Module):
    """Finds the bright rectangle of its input: one peak of class 4 at its center; size and offset all over the map."""

    def forward(self, batch):
        bright = batch.sum(1) > 0
        hm = torch.full((len(batch), 20, batch.shape[2] // 4, batch.shape[3] // 4), -9.0)
        wh, reg = torch.ones_like(hm[:, :2]), torch.ones_like(hm[:, :2])
        for k in range(len(batch)):
            rows, columns = bright[k].any(1).nonzero(), bright[k].any(0).nonzero()
            start = torch.stack([columns.min(), rows.min()]) / 4
            end = torch.stack([columns.max() + 1, rows.max() + 1]) / 4
            cell = ((start + end) / 2).long()
            hm[k, 3, cell[1], cell[0]] = 3.0
            wh[k] *= (end - start)[:, None, None]
            reg[k] *= ((start + end) / 2 - cell)[:, None, None]
        return [{"hm": hm, "wh": wh, "reg": reg}]


@pytest.mark.parametrize("args", [[], ["--keep_res"], ["--flip_test"], ["--keep_res", "--flip_test"]])
@pytest.mark.parametrize("scales", ["1", "0.5", "1.5", "0.5,1,1.5"])
def test_a_box_comes_back_where_it_is(args, scales):
    image = np.zeros((150, 200, 3), np.uint8)
    x1, y1, x2, y2 = box = [70, 50, 110, 100]
    image[y1:y2, x1:x2] = 255
    opt = options("--input_res", "128", "--test_scales", scales, *args)
    found = Detector(build_task(opt), BrightBox(), CPU).run(image)["results"][4]
    best = found[found[:, 4].argmax()]
    np.testing.assert_allclose(best[:4], box, atol=3)
    assert best[4] == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-5)  # the flipped image has its peak there too
    assert (found[:, 4] > 0.5).sum() == 1  # those of other scales lose their score to it


class Patches(nn.Module):
    """Random maps that depend on the 4 x 4 pixels of each cell alone."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleDict({head: nn.Conv2d(3, n, 4, stride=4) for head, n in heads.items()})

    def forward(self, batch):
        return [{head: layer(batch) for head, layer in self.heads.items()}]


def test_the_flip_test_is_symmetric():
    """With a flip test, a flipped image gives flipped boxes for any network."""
    opt = options("--not_reg_offset", "--flip_test")
    torch.manual_seed(0)
    detector = Detector(build_task(opt), Patches(opt.heads), CPU)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def best(pixels, mirror):
        rows = rows_of(detector.run(pixels)["results"])
        if mirror:
            rows[:, [1, 3]] = 64 - rows[:, [3, 1]]
        return rows[np.argsort(-rows[:, 5])][:50]

    np.testing.assert_allclose(best(image, False), best(image[:, ::-1].copy(), True), atol=1e-3)
    detector.opt.flip_test = False
    assert not np.allclose(best(image, False), best(image[:, ::-1].copy(), True), atol=1e-3)


def test_sixteen_bits_are_read_alike_from_a_file_and_from_pillow(tmp_path):
    ramp = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    for name in ("a.png", "a.pgm", "a.tiff"):
        cv2.imwrite(str(tmp_path / name), ramp)
        image = as_array(tmp_path / name)
        assert image.shape == (6, 8, 3) and len(np.unique(image)) == 48
        np.testing.assert_array_equal(as_array(Image.open(tmp_path / name)), image)


@pytest.mark.parametrize("args", [[], ["--keep_res", "--flip_test"], ["--test_scales", "0.5,1"]])
def test_several_images_at_once(args, tmp_path):
    """An array, a path, a PIL image, and what was prepared, of two sizes: each gives what it gives alone."""
    opt = options(*args, "--debug", "2")
    torch.manual_seed(0)
    detector = Detector(build_task(opt), Patches(opt.heads), CPU)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, size, dtype=np.uint8) for size in ((64, 80, 3), (64, 64, 3), (64, 80, 3), (64, 80, 3))
    ]
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), images[2])
    pil = Image.fromarray(images[3][:, :, ::-1])
    together = detector.run([images[0], prepare(images[1], build_task(opt)), path, pil])
    assert len(together) == 4 and detector.run([]) == []
    for image, found in zip(images, together, strict=True):
        alone = detector.run(image)
        np.testing.assert_allclose(rows_of(found["results"]), rows_of(alone["results"]), atol=1e-4)
        assert found["images"].keys() == alone["images"].keys()
        for name, drawing in alone["images"].items():
            assert np.abs(found["images"][name].astype(int) - drawing).mean() < 1, name
        assert all(found[name] >= 0 for name in TIMES)


@pytest.mark.parametrize(("args", "calls"), [([], [6]), (["--keep_res"], [1, 2, 3]), (["--flip_test"], [12])])
def test_views_of_one_size_go_together(args, calls):
    """All scales of three images, and their detections come back at once; scale by scale they are the same."""
    opt = options("--test_scales", "0.5,1", "--nms", *args)
    torch.manual_seed(0)
    detector = Detector(build_task(opt), Patches(opt.heads), CPU)
    # The first two are as large at a scale of 1 as the third is at 0.5.
    images = [np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8) for side in (60, 60, 120)]
    sizes = []
    detector.model.register_forward_hook(lambda module, x, y: sizes.append(len(x[0])))
    together = detector.run(images)
    assert sorted(sizes) == calls
    for image, found in zip(images, together, strict=True):
        prepared = prepare(image, build_task(opt))
        of_scales = []
        for scale in opt.test_scales:
            cut, meta = torch.from_numpy(prepared["images"][scale][None]), prepared["meta"][scale]
            output = detector.model(detector.normalized(cut.numpy()))[-1]
            dets = Ctdet(opt).decode(output, flipped=opt.flip_test)
            of_scales += Ctdet(opt).to_image_coords(dets.detach(), [meta])
        alone = Ctdet(opt).merge_scales(of_scales)
        np.testing.assert_allclose(rows_of(found["results"]), rows_of(alone), atol=1e-4)


def test_batches_have_images_of_one_size():
    opt = options("--keep_res")
    sizes = [(64, 64), (64, 128), (64, 64), (128, 64), (64, 64), (64, 128), (32, 32)]
    images = [(k, prepare(np.zeros((h - 1, w - 1, 3), np.uint8), build_task(opt))) for k, (h, w) in enumerate(sizes)]
    dealt = [[k for k, _ in batch] for batch in batches(images, 2)]
    assert dealt == [[0, 2], [1, 5], [3], [4], [6]]
    # Never more than four batches' worth waits.
    many = [(k, prepare(np.zeros((32 * k + 31, 31, 3), np.uint8), build_task(opt))) for k in range(12)]
    came = []
    pulled = []
    for batch in batches((pulled.append(k) or (k, image) for k, image in many), 2):
        came += [k for k, _ in batch]
        assert len(pulled) - len(came) <= 8
    assert sorted(came) == list(range(12))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file with a network of random weights and its description."""
    opt = options("--input_res", "96", "--head_conv", "32")
    torch.manual_seed(0)
    model = create_model("res_18", opt.heads, 32)
    path = tmp_path_factory.mktemp("model") / "model_last.pth"
    save_model(path, 3, model, extra={"model": model_metadata(opt)})
    return str(path)


def detector_of(checkpoint, *args):
    return create_detector(opts().parse(["ctdet", "--load_model", checkpoint, *args]), CPU, log=lambda line: None)


def test_a_checkpoint_is_enough(checkpoint, tmp_path):
    given = opts().parse(["ctdet", "--load_model", checkpoint])
    before = copy.deepcopy(vars(given))
    detector = create_detector(given, CPU, log=lambda line: None)
    assert vars(given).keys() == before.keys() and given.arch == "dla_34" and given.num_classes == 80
    opt = detector.opt
    assert (opt.arch, opt.head_conv, opt.dataset, opt.num_classes) == ("res_18", 32, "pascal", 20)
    assert (opt.input_h, opt.input_w, opt.output_h, opt.input_res) == (96, 96, 24, 96)
    assert opt.class_names[14] == "person" and opt.heads == {"hm": 20, "wh": 2, "reg": 2}
    np.testing.assert_allclose(opt.mean.reshape(3), (0.485, 0.456, 0.406), rtol=1e-6)

    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    found = detector.run(image)
    assert set(found) == {"results", *TIMES}
    assert all(found[name] >= 0 for name in TIMES)
    assert found["tot"] == pytest.approx(sum(found[name] for name in TIMES[1:]), rel=1e-6)
    assert list(found["results"]) == list(range(1, 21))
    assert sum(len(rows) for rows in found["results"].values()) == 100
    for same in (str(tmp_path / "image.png"), tmp_path / "image.png", prepare(image, build_task(opt))):
        np.testing.assert_array_equal(rows_of(detector.run(same)["results"]), rows_of(found["results"]))
    with pytest.raises(UserError, match="no such file"):
        detector.run(tmp_path / "other.png")


def test_options_that_agree_with_the_checkpoint(checkpoint):
    opt = detector_of(checkpoint, "--arch", "res_18", "--head_conv", "32", "--dataset", "pascal", "--K", "7").opt
    assert (opt.arch, opt.dataset, opt.input_w, opt.K) == ("res_18", "pascal", 96, 7)
    opt = detector_of(checkpoint, "--input_h", "64").opt  # the network takes any size
    assert (opt.input_h, opt.input_w, opt.output_h, opt.input_res) == (64, 96, 16, 96)
    opt = detector_of(checkpoint, "--input_res", "128", "--keep_res").opt
    assert (opt.input_h, opt.input_w, opt.keep_res) == (128, 128, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--arch", "dla_34"], "--arch dla_34: the network in .* has res_18"),  # also when it is the default
        (["--head_conv", "64"], "--head_conv 64: the network in .* has 32"),
        (["--dataset", "coco"], "--dataset coco: its classes are not those of .* trained on pascal"),
        (["--not_reg_offset"], "head options do not match the checkpoint: "),
        (["--cat_spec_wh"], "head options do not match the checkpoint: "),
    ],
)
def test_options_that_contradict_the_checkpoint(checkpoint, args, message):
    with pytest.raises(UserError, match=message):
        detector_of(checkpoint, *args)


def test_heads_of_the_checkpoint():
    for args in (["--not_reg_offset"], ["--cat_spec_wh"], ["--dense_wh"]):
        trained = options(*args)
        opt = apply_model_metadata(opts().parse(["ctdet", "--load_model", "x.pth"]), model_metadata(trained))
        assert opt.heads == trained.heads
        assert (opt.reg_offset, opt.cat_spec_wh) == (trained.reg_offset, trained.cat_spec_wh)


def test_metadata_that_cannot_be_used():
    opt, metadata = opts().parse(["ctdet", "--load_model", "x.pth", "--input_res", "96"]), model_metadata(options())
    with pytest.raises(UserError, match="x.pth: its model metadata lacks heads, mean"):
        apply_model_metadata(opt, {name: value for name, value in metadata.items() if name not in ("heads", "mean")})
    with pytest.raises(UserError, match="task ctdet: the network in x.pth was trained for the task ddd"):
        apply_model_metadata(opt, {**metadata, "task": "ddd"})
    with pytest.raises(UserError, match="--input_res 96: hourglass needs a multiple of 128"):
        apply_model_metadata(opt, {**metadata, "arch": "hourglass"})


@pytest.mark.parametrize("script", [DEMO, TEST, EXPORT])
def test_input_sizes_are_those_of_the_network_in_the_checkpoint(checkpoint, monkeypatch, script):
    """Messages name the option that was given. The default network decides where the file does not name its own."""

    def load(*args):
        return load_network(OptionParser(script, raises=True).parse(["ctdet", "--load_model", checkpoint, *args]), str)

    with pytest.raises(UserError, match="^--input_res 100: res_18 needs a multiple of 32"):
        load("--input_res", "100")
    with pytest.raises(UserError, match="^--input_w 100: res_18 needs a multiple of 32"):
        load("--input_res", "96", "--input_w", "100")
    with pytest.raises(UserError, match="^--input_res 100: dla_34 needs a multiple of 32"):
        load("--input_res", "100", "--arch", "dla_34")
    monkeypatch.setitem(ARCHITECTURES, "dla", dataclasses.replace(ARCHITECTURES["dla"], pad=127))
    assert load("--input_res", "96")[0].input_h == 96
    monkeypatch.setattr("centernet.detector.read_checkpoint", lambda _: {})
    with pytest.raises(UserError, match="^--input_res 96: dla_34 needs a multiple of 128"):
        load("--input_res", "96")


def test_a_checkpoint_without_description_goes_by_the_options(tmp_path):
    opt = options()
    torch.manual_seed(0)
    path = str(tmp_path / "plain.pth")
    save_model(path, 1, create_model("res_18", opt.heads, opt.head_conv))
    opt.load_model = path
    detector = create_detector(opt, log=lambda line: None)
    assert detector.opt.input_h == 64 and len(detector.run(np.zeros((20, 30, 3), np.uint8))["results"]) == 20
    opt.load_model = ""
    with pytest.raises(UserError, match="--load_model: "):
        create_detector(opt)


def test_images_of_debug(checkpoint):
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert "images" not in detector_of(checkpoint).run(image)
    drawn = detector_of(checkpoint, "--debug", "1", "--vis_thresh", "0").run(image)["images"]
    assert set(drawn) == {"ctdet"} and drawn["ctdet"].shape == (350, 490, 3)  # enlarged
    assert not np.array_equal(drawn["ctdet"], Canvas(image).image)
    args = ["--debug", "2", "--test_scales", "0.5,1", "--flip_test"]
    drawn = detector_of(checkpoint, *args).run(image)["images"]
    assert set(drawn) == {"pred_hm_0.5", "out_pred_0.5", "pred_hm_1.0", "out_pred_1.0", "ctdet"}
    assert drawn["pred_hm_0.5"].shape == (480, 480, 3)  # enlarged
