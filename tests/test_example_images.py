"""The images in images/: drawn by this project, and what ``demo.py ctdet --demo ../images`` looks at."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.training import run_here

from centernet.datasets.synthetic.poses import SyntheticPoses
from centernet.datasets.synthetic.shapes import SyntheticShapes
from centernet.datasets.synthetic.streets import SyntheticStreets
from centernet.models import create_model, save_model

ROOT = Path(__file__).resolve().parents[1]
# Name to dataset and image id; no training or validation image has that id.
IMAGES = {"shapes": (SyntheticShapes, 412), "poses": (SyntheticPoses, 405), "street": (SyntheticStreets, 347)}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_scenes_of_the_samples(name):
    dataset, image_id = IMAGES[name]
    assert image_id > sum(dataset.splits.values())
    expected, _, objects = dataset.draw_scene(np.random.default_rng((dataset.seed, image_id)))
    image = cv2.imread(str(ROOT / f"images/{name}.jpg"))
    assert image.shape == expected.shape and len(objects) > 1
    assert np.abs(image.astype(int) - expected).mean() < 6  # of the JPEG compression


def test_demo_of_the_folder_as_in_the_reference(tmp_path, monkeypatch):
    """From src/, with the folder as ../images."""
    monkeypatch.chdir(ROOT / "src")
    save_model(tmp_path / "model.pth", 1, create_model("res_18", {"hm": 5, "wh": 2, "reg": 2}, 0, pretrained=None))
    model = ["--load_model", str(tmp_path / "model.pth"), "--arch", "res_18", "--head_conv", "0", "--dataset", "sample"]
    done = run_here(
        *("demo", "ctdet", "--demo", "../images", "--device", "cpu", "--input_res", "64"),
        *(*model, "--output_dir", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert {path.name.partition("_")[0] for path in (tmp_path / "out").iterdir()} == {*IMAGES}
