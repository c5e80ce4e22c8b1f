"""Layouts that are changed by fuzzing."""

from tests.helpers.keypoints import KITE, write_coco, write_yolo
from tests.helpers.layouts import put, yolo_images_first


def yolo_with_a_yaml(root):
    yolo_images_first(root)
    (root / "classes.txt").unlink()
    text = (
        "path: .\ntrain: [images/train]\nval: images/val\nnames:\n  0: hen house\n  1: fox\nkpt_shape: [2, 3]\nnc: 2\n"
    )
    put(root / "data.yaml", text)


def keypoints_of_coco(root):
    write_coco(root, {"train": 2, "val": 2}, sigmas=[0.1, 0.1, 0.1, 0.1, 0.1], kinds=(KITE,), flip_idx=[0, 2, 1, 3, 4])


def keypoints_of_yolo(root):
    names = f"kpt_names:\n  0: [{', '.join(KITE.joints)}]\nskeleton: [[0, 1]]\nsigmas: [0.1, 0.1, 0.1, 0.1, 0.1]\n"
    write_yolo(root, {"train": 2, "val": 2}, more=f"flip_idx: {KITE.flip_index}\n{names}")
