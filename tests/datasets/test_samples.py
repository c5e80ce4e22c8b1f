"""Whole samples of the detection task against those of the reference, with the random numbers it drew."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.conformance import CONFORMANCE, needs_conformance

from centernet.datasets import build_sample
from centernet.opts import opts

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ctdet_samples.json").read_text())
TARGETS = ("hm", "reg_mask", "ind", "wh", "reg", "dense_wh", "dense_wh_mask", "cat_spec_wh", "cat_spec_mask")
NAMES = {
    *("train_crop_noflip", "train_crop_flip", "train_crop_default", "train_crop_default2", "train_shift_noflip"),
    *("train_shift_flip", "train_shift_default", "val", "val_portrait", "val_keep_res", "val_keep_res2"),
    *("val_edge_boxes", "train_edge_boxes", "val_max_objs", "val_empty", "train_empty", "train_dense_wh"),
    *("val_dense_wh", "train_cat_spec_wh", "val_mse_loss", "val_mse_loss_hm_gauss2", "val_mse_loss_empty"),
    *("val_not_reg_offset", "train_no_color_aug", "train_rect_input", "val_rect_input", "val_coco", "train_coco"),
    "train_debug_meta",
}


def parse(case):
    args = ["ctdet", "--dataset", case["dataset"], "--input_res", "128", *case["args"]]
    if "hm_gauss" in case:
        args += ["--hm_gauss", str(case["hm_gauss"])]
    return opts().parse(args)


def replay(case, image, annotations):
    draws = {"draws": case["draws"], "color": case.get("color")}
    return build_sample(image, annotations, parse(case), draws, split=case["split"])


@pytest.fixture(scope="module")
def reference():
    cases = json.loads((CONFORMANCE / "samples_ctdet.json").read_text())["cases"]
    with np.load(CONFORMANCE / "samples_ctdet.npz", allow_pickle=False) as file:
        return {case["name"]: case for case in cases}, dict(file)


def test_no_case_is_missing(request):
    if not CONFORMANCE.is_dir():
        pytest.skip("../shared/conformance is not there")
    cases, _ = request.getfixturevalue("reference")
    assert set(cases) == NAMES


@needs_conformance
@pytest.mark.parametrize("name", sorted(NAMES - {"val_mse_loss"}))
def test_sample(reference, name):
    cases, arrays = reference
    case = cases[name]
    sample = replay(case, arrays[f"image{case['image']}"], case["annotations"])
    expected = {field.split("/")[1]: value for field, value in arrays.items() if field.startswith(f"{name}/")}

    assert {field for field in TARGETS if field in sample} == {field for field in TARGETS if field in expected}
    for field in TARGETS:
        if field in expected:
            value = sample[field]
            assert value.shape == expected[field].shape and value.dtype == expected[field].dtype, field
            if np.issubdtype(value.dtype, np.integer):
                assert np.array_equal(value, expected[field]), field
            else:
                np.testing.assert_allclose(value, expected[field], rtol=0, atol=1e-6, err_msg=field)
    assert np.array_equal(sample["hm"] == 1, expected["hm"] == 1)

    assert ("meta" in sample) == ("meta_c" in expected)
    if "meta" in sample:
        np.testing.assert_allclose(sample["meta"]["c"], expected["meta_c"])
        np.testing.assert_allclose(sample["meta"]["s"], expected["meta_s"])
        np.testing.assert_allclose(sample["meta"]["gt_det"], expected["meta_gt_det"], atol=1e-6)

    # OpenCV 5 warps exactly; versions before it round positions, which the golden values (OpenCV 3) have.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    version, tolerance = ("opencv5", 2e-5) if exact else ("opencv3", 0.09)
    value = sample["input"]
    assert value.shape == tuple(expected["input_shape"]) and value.dtype == np.float32
    np.testing.assert_allclose(value[:, ::3, ::3], expected[f"input_sub_{version}"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        value.mean((1, 2), dtype=np.float64), expected[f"input_mean_{version}"], atol=2e-5 if exact else 2e-3
    )
    np.testing.assert_allclose(
        value.std((1, 2), dtype=np.float64), expected[f"input_std_{version}"], atol=2e-5 if exact else 2e-3
    )
    if f"input_full_{version}" in expected:
        np.testing.assert_allclose(value, expected[f"input_full_{version}"], rtol=0, atol=tolerance)


@needs_conformance
def test_squared_error_works(reference):
    """The reference ends with an error for --mse_loss; the default here is what its code does with hm_gauss = 2."""
    cases, arrays = reference
    case = cases["val_mse_loss"]
    assert case["exception"][0] == "AttributeError"
    sample = replay(case, arrays[f"image{case['image']}"], case["annotations"])
    counterpart = cases["val_mse_loss_hm_gauss2"]
    expected = replay(counterpart, arrays[f"image{counterpart['image']}"], case["annotations"])
    assert np.array_equal(sample["hm"], expected["hm"]) and (sample["hm"] == 1).any()


def totals(array):
    array = np.asarray(array, dtype=np.float64)
    return [array.sum(), (array * array).sum()]


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden_targets(case):
    """Targets do not depend on what the image shows, so a black one will do."""
    annotations = [{"bbox": row[:4], "category_id": row[4]} for row in case["annotations"]]
    no_jitter = {"order": [], "alpha": {}, "lighting": [0, 0, 0]}
    image = np.zeros((*case["size"], 3), np.uint8)
    sample = replay({**case, "color": no_jitter}, image, annotations)
    slots = np.flatnonzero(sample["reg_mask"])
    assert slots.tolist() == case["slots"]
    assert sample["ind"][slots].tolist() == case["ind"]
    assert np.count_nonzero(sample["ind"]) <= len(slots)
    np.testing.assert_allclose(sample["reg"][slots], case["reg"], atol=1e-6)
    assert np.array_equal(np.flatnonzero(sample["reg"].any(1)), slots[np.any(case["reg"], axis=1)])
    assert list(sample["hm"].shape) == case["hm_shape"]
    np.testing.assert_allclose(totals(sample["hm"]), case["hm"], rtol=1e-6)
    if "wh" in case:
        np.testing.assert_allclose(sample["wh"][slots], case["wh"], atol=1e-5)
        assert np.array_equal(np.flatnonzero(sample["wh"].any(1)), slots)
    if "cat_spec_wh" in case:
        rows, columns = np.nonzero(sample["cat_spec_mask"])
        assert columns.tolist() == [column for column, _ in case["cat_spec_wh"]]
        sizes = [size for _, size in case["cat_spec_wh"]]
        np.testing.assert_allclose(sample["cat_spec_wh"][rows, columns], sizes, atol=1e-5)
        assert np.count_nonzero(sample["cat_spec_wh"]) == len(sizes) and "wh" not in sample
    if "dense_wh" in case:
        np.testing.assert_allclose(totals(sample["dense_wh"]), case["dense_wh"], rtol=1e-6)
        np.testing.assert_allclose(totals(sample["dense_wh_mask"]), case["dense_wh_mask"], rtol=1e-6)
        assert "wh" not in sample
    if "meta_c" in case:
        assert sample["meta"]["c"].tolist() == pytest.approx(case["meta_c"])
        assert np.ravel(sample["meta"]["s"]).tolist() == pytest.approx(np.ravel(case["meta_s"]).tolist())
    else:
        assert "meta" not in sample


def test_golden_targets_are_of_every_kind():
    assert {case["split"] for case in GOLDEN} == {"train", "val"}
    assert {case["dataset"] for case in GOLDEN} == {"pascal", "coco"}
    assert any(len(case["slots"]) < len(case["annotations"]) for case in GOLDEN)
    assert all(any(field in case for case in GOLDEN) for field in ("wh", "cat_spec_wh", "dense_wh", "meta_c"))


def test_slots_belong_to_annotations():
    """Slot k is annotation k, whether or not others drop out; those behind max_objs are not looked at."""
    boxes = [[10, 10, 0, 20], [10, 10, 40, 40], [-50, 10, 20, 20], *([[0, 0, 30, 30]] * 50)]
    annotations = [{"bbox": box, "category_id": 5} for box in boxes]
    case = {"dataset": "pascal", "args": [], "draws": [], "split": "val"}
    sample = replay(case, np.zeros((64, 64, 3), np.uint8), annotations)
    assert sample["reg_mask"].shape == (50,)
    assert sample["reg_mask"].tolist() == [0, 1, 0, *([1] * 47)]
    assert len(sample["meta"]["gt_det"]) == 48
