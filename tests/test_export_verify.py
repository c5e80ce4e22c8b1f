"""Exported files are calibrated, compared with PyTorch on images, measured, and refused beyond tolerance."""

import importlib.util
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.conformance import load_formula_weights
from torch import nn

from centernet import deployment
from centernet.detector import Detector, load_network
from centernet.errors import UserError
from centernet.export import export_checkpoint
from centernet.models import create_model, save_model
from centernet.options import model_metadata
from centernet.opts import opts
from centernet.tasks import build_task

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
HAS_OPENVINO = HAS_ONNX and importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="needs openvino and the packages for ONNX")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a small network whose scores are high everywhere."""
    torch.manual_seed(0)
    opt = opts().parse(["ctdet", "--dataset", "sample", "--arch", "res_18", "--head_conv", "16", "--input_res", "64"])
    model = load_formula_weights(create_model(opt.arch, opt.heads, opt.head_conv))
    nn.init.zeros_(model.hm[-1].bias)
    nn.init.constant_(model.wh[-1].bias, 6)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    save_model(path, 1, model, None, {"model": model_metadata(opt)})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images of different sizes, without borders in the view of the network."""
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for k, size in enumerate([(64, 64), (120, 120), (50, 50)]):
        small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(path / f"{k}.png"), cv2.resize(small, size, interpolation=cv2.INTER_CUBIC))
    return path


def run(checkpoint, output, *more):
    lines = []
    args = ["ctdet", "--load_model", str(checkpoint), "--output", str(output), *more]
    export_checkpoint(opts().parse(args), lines.append)
    return lines


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        ("model.ts", []),
        ("model.ts", ["--with_decode"]),
        pytest.param("model.onnx", [], marks=needs_onnx),
        pytest.param("model.onnx", ["--with_decode"], marks=needs_onnx),
        pytest.param("model.xml", ["--with_decode"], marks=needs_openvino),
    ],
)
def test_a_good_file_is_verified_and_measured(tmp_path, checkpoint, folder, name, decode):
    lines = run(checkpoint, tmp_path / name, "--verify", str(folder), "--benchmark", "--threads", "1", *decode)
    text = "\n".join(lines)
    assert "3 images of " in text and "latency per image at 64 x 64, 1 thread(s)" in text
    assert text.count("median ") == text.count("p90 ") == 2
    (line,) = [line for line in lines if line.startswith("matched ")]
    matched, count = int(line.split()[1]), int(line.split()[3].rstrip(";"))
    assert count > 10 and matched == count and "IoU mean 1.0000" in line
    weights = ["model.bin"] if name == "model.xml" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == [*weights, name]


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch, checkpoint, folder):
    """A shift by half a cell of what the file gives is found, and the earlier file stays."""
    output = tmp_path / "model.ts"
    output.write_text("earlier")
    real = deployment.Runtime.forward

    def shifted(self, x):
        (maps,) = real(self, x)
        return [{**maps, "reg": maps["reg"] + 2}]

    monkeypatch.setattr(deployment.Runtime, "forward", shifted)
    with pytest.raises(UserError, match="--verify .*: detections differ beyond tolerance; the exported file is not"):
        run(checkpoint, output, "--verify", str(folder))
    assert output.read_text() == "earlier" and list(tmp_path.iterdir()) == [output]


PLAIN_BOXES = SimpleNamespace(task=SimpleNamespace(detected_boxes=lambda rows: rows[:, :5]))


def test_matching_by_hand():
    """Two of three are matched: one moved by a tenth of its width, one with another score, one of another class."""

    expected = {"a": {1: np.array([[0, 0, 10, 10, 0.9], [50, 50, 60, 60, 0.8], [0, 0, 9, 9, 0.05]]),
                      2: np.array([[0, 0, 10, 10, 0.5]])}}  # fmt: skip
    found = {"a": {1: np.array([[50, 50, 60, 60, 0.7], [1, 0, 11, 10, 0.9]]), 2: np.zeros((0, 5))}}
    comparison = deployment.compare(expected, found, PLAIN_BOXES)
    assert (comparison.count, comparison.matched) == (3, 2)
    np.testing.assert_allclose(comparison.ious, [9 / 11, 1])
    np.testing.assert_allclose(comparison.differences, [0, 0.1], atol=1e-12)
    assert not comparison.within_tolerance


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, 5, 9), (5, 9, 8, 5), (8, 9, 5, 5), (5, 5, 5 + 1e-5, 9)])
def test_boxes_without_an_area_match_themselves(box):
    """Numbers that differ by rounding match, too; those at other places do not."""
    rows = np.array([[*box, 0.9]])
    for shift, matched in ((0, 1), (1e-5, 1), (-1e-5, 1), (2, 0)):
        moved = rows + np.array([0, 0, shift, 0, 0]) + (shift == 2) * np.array([2, 9, 0, 9, 0])
        comparison = deployment.compare({"a": {1: rows}}, {"a": {1: moved}}, PLAIN_BOXES)
        assert (comparison.count, comparison.matched) == (1, matched)
        assert comparison.within_tolerance is bool(matched)


@pytest.mark.parametrize(
    ("data", "problem"),
    [("nowhere", "--verify nowhere: not a split"), ("empty", "--verify empty: no images in this folder")],
)
def test_data_without_images(tmp_path, monkeypatch, checkpoint, data, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=problem):
        run(checkpoint, "model.ts", "--verify", data)
    assert not (tmp_path / "model.ts").exists()


@needs_onnx
def test_a_missing_runtime(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="--verify and --benchmark of .onnx files: .*pip install onnxruntime"):
        run(checkpoint, tmp_path / "model.onnx", "--benchmark")
    assert not list(tmp_path.iterdir())


class ScoredImages:
    """A dataset whose scores of the two networks are given."""

    def __init__(self, scores):
        self.scores = iter(scores)

    def evaluate(self, results):
        return {"AP": next(self.scores)}


@pytest.mark.parametrize(("limit", "fails"), [("0.02", True), ("0.04", False)])
def test_a_drop_of_the_score(tmp_path, monkeypatch, checkpoint, folder, limit, fails):
    images, _ = deployment.find_images(opts().parse(["ctdet"]), str(folder), "verify")
    monkeypatch.setattr(deployment, "find_images", lambda *_: (images, ScoredImages([0.9, 0.87])))
    args = [tmp_path / "model.ts", "--verify", "val", "--max_ap_drop", limit]
    if fails:
        with pytest.raises(UserError, match="--max_ap_drop 0.02: the score drops by 0.0300; the exported file is not"):
            run(checkpoint, *args)
    else:
        assert any("0.8700" in line for line in run(checkpoint, *args))
    assert (tmp_path / "model.ts").exists() is not fails


@needs_onnx
@pytest.mark.parametrize(("scores", "problem"), [([0.9, 0.87], "--max_ap_drop 0.02: the score drops by 0.0300"),
                                                 ([0.9, 0.89], None)])  # fmt: skip
def test_int8_of_which_the_score_decides(tmp_path, monkeypatch, checkpoint, folder, scores, problem):
    """Without --verify on the split val; an earlier file stays where the score drops too far."""
    images, _ = deployment.find_images(opts().parse(["ctdet"]), str(folder), "verify")
    asked = []

    def find_images(opt, data, option, log):
        asked.append((data, option))
        return images, ScoredImages(scores) if option == "verify" else None

    monkeypatch.setattr(deployment, "find_images", find_images)
    output = tmp_path / "model.onnx"
    output.write_text("earlier")
    args = [output, "--int8", "--calibration_images", "2"]
    if problem:
        with pytest.raises(UserError, match=problem):
            run(checkpoint, *args)
        assert output.read_text() == "earlier"
    else:
        lines = run(checkpoint, *args)
        assert "calibration with 2 of 3 images of train" in lines
        (header,) = [k for k, line in enumerate(lines) if line.split() == ["detections", "AP", "drop"]]
        assert lines[header + 2].split()[-2:] == ["0.8900", "+0.0100"]
        assert b"QuantizeLinear" in output.read_bytes()
    assert asked == [("train", "calibration"), ("val", "verify")] and list(tmp_path.iterdir()) == [output]


NO_SCORE = (None, (float("nan"), float("nan")), (-1.0, -1.0), (0.5, float("nan")), (0.0, 0.0), (0.0, 0.3))


@pytest.mark.parametrize("scores", NO_SCORE)
@pytest.mark.parametrize(("found", "problem"), [(19, None), (17, "--verify .*: detections differ beyond tolerance")])
def test_int8_without_a_score_that_decides(monkeypatch, folder, found, problem, scores):
    """Nine of ten detections must be found; how well they agree does not matter."""
    images, _ = deployment.find_images(opts().parse(["ctdet"]), str(folder), "verify")
    dataset = None if scores is None else ScoredImages(scores)
    monkeypatch.setattr(deployment, "find_images", lambda *_: (images, dataset))
    comparison = deployment.Comparison()
    comparison.count, comparison.matched = 20, found
    comparison.ious, comparison.differences = [0.6] * found, [0.2] * found
    monkeypatch.setattr(deployment, "detect", lambda *_: {})
    monkeypatch.setattr(deployment, "compare", lambda *_: comparison)
    opt = opts().parse(["ctdet", "--arch", "res_18", "--verify", str(folder), "--int8"])
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    runtime = SimpleNamespace(names=tuple(opt.heads), title="", to=lambda _: model)
    lines = []
    if problem is None:
        deployment.verify(runtime, model, opt, lines.append)
    else:
        with pytest.raises(UserError, match=problem):
            deployment.verify(runtime, model, opt, lines.append)
    has_drop = scores is not None and scores[0] == 0
    assert any(line.split()[-1] == "drop" for line in lines) is has_drop


def test_calibration_images_are_prepared_as_by_the_detector(checkpoint, folder):
    opt = opts().parse(["ctdet", "--load_model", str(checkpoint), "--calibration", str(folder)])
    opt, model = load_network(opt, lambda _: None)
    inputs = list(deployment.calibration_inputs(model, opt, lambda _: None))
    seen = []
    detector = Detector(build_task(opt), Recording(model, seen), torch.device("cpu"))
    deployment.detect(detector, deployment.find_images(opt, str(folder), "verify")[0])
    assert len(inputs) == len(seen) == 3
    for x, other in zip(inputs, seen, strict=True):
        np.testing.assert_array_equal(x, other.numpy())


class Recording(nn.Module):
    """A network that appends its inputs to a list."""

    def __init__(self, model, seen):
        super().__init__()
        self.model, self.seen = model, seen

    def forward(self, x):
        self.seen.append(x.clone())
        return self.model(x)


@pytest.mark.parametrize(
    ("output", "more", "missing", "problem"),
    [
        ("model.pt2", [], None, "--int8: not in pt2 files; use --output with the suffix .onnx or .xml"),
        ("model.safetensors", [], None, "--int8: not in safetensors files"),
        ("model.onnx", [], "onnxruntime", "--int8 of .*model.onnx: needs a package that is missing: pip install"),
        ("model.onnx", ["--calibration", "nowhere"], None, "--calibration nowhere: not a split"),
    ],
)
def test_int8_that_cannot_be(tmp_path, monkeypatch, checkpoint, output, more, missing, problem):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    elif output == "model.onnx" and not HAS_ONNX:
        pytest.skip("needs onnx, onnxscript and onnxruntime")
    with pytest.raises(UserError, match=problem):
        run(checkpoint, tmp_path / output, "--int8", *more)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_split_of_the_sample(tmp_path, checkpoint):
    """Scores of both are those of the same detections."""
    lines = run(checkpoint, tmp_path / "model.ts", "--verify", "val", "--data_path", str(tmp_path / "data"))
    (header,) = [k for k, line in enumerate(lines) if "detections  mAP" in line]
    (*_, count, score), (*_, count_of_file, score_of_file, difference) = (lines[header + k].split() for k in (1, 2))
    assert (count, score) == (count_of_file, score_of_file) and difference == "+0.0000"
    assert lines[header - 1].startswith("80 images of val")
