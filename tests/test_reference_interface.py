"""``src/lib``: programs that were written for the reference's Python interface run."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.helpers.checkpoints import checkpoint
from tests.helpers.training import ENVIRONMENT, ROOT

from centernet.detector import create_detector
from centernet.tasks import build_task

SIZES = {"ctdet": 5, "multi_pose": 39, "exdet": 13, "ddd": 13}
SNIPPET = """
import sys
CENTERNET_PATH = {path!r}
sys.path.insert(0, CENTERNET_PATH)

from detectors.detector_factory import detector_factory
from opts import opts

MODEL_PATH = {model!r}
TASK = 'ctdet' # or 'multi_pose' for human pose estimation
opt = opts().init('{{}} --load_model {{}}'.format(TASK, MODEL_PATH).split(' '))
detector = detector_factory[opt.task](opt)

img = {image!r}
ret = detector.run(img)['results']
print(type(ret), sorted(ret) == list(range(1, 81)), ret[1].shape, ret[1].dtype)
"""


@pytest.fixture
def library(monkeypatch):
    """The modules of src/lib, as a program finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "src" / "lib"))
    import opts
    from detectors.detector_factory import detector_factory

    yield opts.opts, detector_factory
    for name in [name for name in sys.modules if name.partition(".")[0] in ("opts", "detectors")]:
        del sys.modules[name]


def test_the_documented_snippet(tmp_path):
    """In another folder, without the package on Python's path."""
    model = checkpoint(tmp_path, "ctdet")
    code = SNIPPET.format(path=f"{ROOT}/src/lib/", model=str(model), image=str(ROOT / "images" / "shapes.jpg"))
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("<class 'dict'> True (") and "float32" in done.stdout


@pytest.mark.parametrize("task", SIZES)
def test_results_have_the_types_of_the_reference(task, library, tmp_path):
    opts, detector_factory = library
    opt = opts().init(f"{task} --load_model {checkpoint(tmp_path, task)} --device cpu --peak_thresh 0".split(" "))
    opt.K = 5
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    detector = detector_factory[opt.task](opt)
    found = detector.run(image)
    assert {"results", "tot", "load", "pre", "net", "dec", "post", "merge"} == found.keys()
    expected = create_detector(opt).run(image)["results"]
    assert found["results"].keys() == expected.keys() == set(range(1, opt.num_classes + 1))
    for cls, rows in found["results"].items():
        if task == "multi_pose":
            assert type(rows) is list and all(type(row) is list and len(row) == 39 for row in rows)
        else:
            assert rows.dtype == np.float32 and rows.ndim == 2 and rows.shape[1] == SIZES[task]
        np.testing.assert_array_equal(np.reshape(rows, (-1, SIZES[task])), expected[cls])
    if task != "exdet":
        assert sum(len(rows) for rows in found["results"].values()) == 5
    with pytest.raises(ValueError, match="is for the task"):
        detector_factory["ddd" if task == "ctdet" else "ctdet"](opt)


def test_number_of_points_set_after_parsing(library, tmp_path):
    """``opt.K`` counts for exdet, too, whose default is the 40 of the published results."""
    opts, detector_factory = library
    opt = opts().init(["exdet", "--load_model", str(checkpoint(tmp_path, "exdet")), "--device", "cpu"])
    assert opt.K == 40 and "K" not in opt.given
    opt.K, opt.scores_thresh, opt.center_thresh = 2, 0.0, 0.0
    detector = detector_factory["exdet"](opt)
    detected = detector.detector.task.decode({name: torch.zeros(1, n, 8, 8) for name, n in opt.heads.items()})
    assert (detected[0, :, 4] > 0).sum() <= 2**4


def test_the_camera_of_an_image(library, tmp_path):
    opts, detector_factory = library
    path = checkpoint(tmp_path, "ddd")
    opt = opts().init(["ddd", "--load_model", str(path), "--device", "cpu", "--peak_thresh", "0"])
    detector = detector_factory["ddd"](opt)
    image = np.full((48, 64, 3), 99, np.uint8)
    calib = np.array([[500, 0, 20, 0], [0, 500, 20, 0], [0, 0, 1, 0]], np.float32)
    own, default = detector.run(image, calib)["results"], detector.run(image)["results"]
    named = detector.run(image, meta={"calib": calib})["results"]
    by_keyword = detector.run(image, meta=calib)["results"]
    for cls in own:
        np.testing.assert_array_equal(own[cls], named[cls])
        np.testing.assert_array_equal(own[cls], by_keyword[cls])
    assert any(not np.array_equal(own[cls], default[cls]) for cls in own)


class Dataset:
    """The attributes of a dataset of the reference."""

    default_resolution = [64, 96]
    mean, std = [0.1, 0.2, 0.3], [1, 1, 1]
    num_classes = 1
    flip_idx = [[0, 1], [15, 16]]


def test_dataset_info(library):
    opts, _ = library
    opt = opts().parse(["multi_pose", "--arch", "res_18"])
    assert opt.flip_idx[0] == [1, 2] and len(opt.flip_idx) == 8
    assert opts().update_dataset_info_and_set_heads(opt, Dataset) is opt
    assert (opt.input_h, opt.input_w, opt.output_w, opt.num_classes) == (64, 96, 24, 1)
    assert opt.flip_idx == [[0, 1], [15, 16]] and opt.keypoints.flip_index[:3] == (1, 0, 2)
    assert opt.mean.shape == (1, 1, 3) and opt.heads["hps"] == 34


def test_other_joints(library):
    """A dataset of a fork with a number of joints of its own."""
    opts, _ = library
    opt = opts().parse(["multi_pose", "--arch", "res_18"])
    own = type("Own", (Dataset,), {"num_joints": 5, "flip_idx": [[1, 2]]})
    opts().update_dataset_info_and_set_heads(opt, own)
    assert opt.heads["hps"] == 10 and opt.heads["hm_hp"] == 5 and opt.keypoints.flip_index == (0, 2, 1, 3, 4)
    assert build_task(opt).row_length == 15


def test_wrong_flip_pairs(library):
    opts, _ = library
    opt = opts().parse(["multi_pose", "--arch", "res_18"])
    wrong = type("Wrong", (Dataset,), {"flip_idx": [[0, 17]]})
    with pytest.raises(Exception, match="flip_idx .*needs pairs of different joints from 0 to 16"):
        opts().update_dataset_info_and_set_heads(opt, wrong)


def test_drawings_are_saved(library, tmp_path):
    opts, detector_factory = library
    path = checkpoint(tmp_path, "ctdet")
    arguments = f"ctdet --load_model {path} --device cpu --debug 4 --exp_dir {tmp_path}/exp".split(" ")
    detector = detector_factory["ctdet"](opts().init(arguments))
    found = detector.run(str(ROOT / "images" / "shapes.jpg"))
    assert "images" not in found and list((tmp_path / "exp/ctdet/default/debug").glob("*.png"))
