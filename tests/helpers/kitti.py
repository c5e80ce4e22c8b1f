"""Tiny folders in the layout of KITTI."""

import cv2
import numpy as np

P2 = "P2: 720 0 610 45 0 720 173 0.25 0 0 1 0.005"
CAR = "Car 0.25 1 -1.50 10.00 11.00 30.50 24.00 1.50 1.75 4.00 -0.50 1.75 25.00 -1.25"
PERSON = "Pedestrian 0.00 0 0.50 1.00 2.00 4.00 9.00 1.75 0.50 0.75 3.00 1.75 12.00 0.75"
SITTING = "Person_sitting 0.00 2 0.50 1.00 2.00 4.00 9.00 1.25 0.50 0.75 3.00 1.75 12.00 0.75"
AREA = "DontCare -1 -1 -10 20.00 5.00 25.00 9.00 -1 -1 -1 -1000 -1000 -1000 -10"
# Image to lines; the first three are for training, the last has no labels.
LABELS = {"000000": [PERSON], "000001": [CAR, SITTING, AREA], "000002": [], "000005": None}
IMAGE_SETS = {
    "3dop": {"train": ["000001", "000000"], "val": ["000002"], "trainval": ["000000", "000001", "000002"]},
    "subcnn": {"train": ["000002"], "val": ["000000", "000001"], "trainval": ["000000", "000001", "000002"]},
}


def make_kitti(root, image_sets=IMAGE_SETS):
    """Write a tiny KITTI with images of 40 x 30; returns ``root``."""
    for name, lines in LABELS.items():
        home = root / ("testing" if lines is None else "training")
        for folder in ("image_2", "calib", *(() if lines is None else ("label_2",))):
            (home / folder).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(home / "image_2" / f"{name}.png"), np.full((30, 40, 3), 9 * int(name), np.uint8))
        (home / "calib" / f"{name}.txt").write_text(f"P0: 1\nP1: 2\n{P2}\nP3: 3\n\n")
        if lines is not None:
            (home / "label_2" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    for split, parts in image_sets.items():
        (root / f"ImageSets_{split}").mkdir()
        for part, names in {**parts, "test": ["000005"]}.items():
            (root / f"ImageSets_{split}" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return root
