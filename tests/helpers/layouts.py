"""The same two images in every layout of ``--dataset custom``."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from centernet.opts import opts

NAMES = ("hen house", "fox")
# Three images of a split: name, (width, height), objects (class, x, y, width, height), whole pixels from 0.
IMAGES = {
    "train": [
        ("t1", (64, 48), [(0, 4, 6, 20, 10), (1, 30, 10, 16, 16)]),
        ("t2", (40, 96), [(1, 8, 40, 12, 30)]),
        ("t3", (64, 48), []),
    ],
    "val": [("v1", (64, 48), [(1, 2, 2, 30, 20), (1, 34, 22, 20, 24)]), ("v2", (48, 64), [(0, 8, 8, 24, 32)])],
}


def parse(root, *arguments, task="ctdet"):
    return opts().parse([task, "--dataset", "custom", "--data_path", str(root), "--arch", "res_18", *arguments])


def refused(capsys, root, *arguments) -> str:
    """The one line with which the options end."""
    with pytest.raises(SystemExit) as ended:
        parse(root, *arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "error: " in message
    return message


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def draw(folder: Path, split: str, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height), objects in IMAGES[split]:
        image = np.full((height, width, 3), 40, np.uint8)
        for cls, x, y, w, h in objects:
            image[y : y + h, x : x + w] = (250, 120 + 100 * cls, 30)
        assert cv2.imwrite(str(folder / (name + suffix)), image)


def coco(split: str, ids=(1, 2), first=1, text_ids=False, number=1) -> dict:
    """The annotation file; ``ids`` are of the two classes, images count from ``first``."""
    images, annotations = [], []
    for k, (name, (width, height), objects) in enumerate(IMAGES[split]):
        image_id = f"image {name}" if text_ids else first + 7 * k
        images.append({"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height})
        for cls, *box in objects:
            annotations.append(
                {"id": number + len(annotations), "image_id": image_id, "category_id": ids[cls], "bbox": box}
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in zip(ids, NAMES, strict=True)],
    }


def voc_files(folder: Path, split: str, difficult: int = 0) -> None:
    for name, (width, height), objects in IMAGES[split]:
        text = f"<annotation><filename>x.jpg</filename><size><width>{width}</width><height>{height}</height></size>"
        for k, (cls, x, y, w, h) in enumerate(objects):
            box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            text += f"<object><name>{NAMES[cls]}</name><difficult>{difficult if k == 0 else 0}</difficult>"
            text += f"<bndbox>{box}</bndbox></object>"
        put(folder / f"{name}.xml", text + "</annotation>")


def yolo_labels(folder: Path, split: str, outlines: bool = False) -> None:
    for name, (width, height), objects in IMAGES[split]:
        lines = []
        for cls, x, y, w, h in objects:
            if outlines:
                corners = [(x, y), (x + w, y), (x + w, y + h), (x + w / 2, y + h), (x, y + h)]
                numbers = [value for px, py in corners for value in (px / width, py / height)]
            else:
                numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            lines.append(" ".join([str(cls), *(f"{value:.9f}" for value in numbers)]))
        if lines:  # an image without objects has no label file
            put(folder / f"{name}.txt", "\n".join(lines) + "\n")


def coco_like_coco(root):
    for split in ("train", "val"):
        draw(root / f"{split}2017", split)
        put(root / f"annotations/instances_{split}2017.json", coco(split))
        for other in ("captions", "person_keypoints", "stuff", "panoptic"):
            put(root / f"annotations/{other}_{split}2017.json", {"images": []})
    put(root / "annotations/image_info_test2017.json", {"images": []})


def coco_at_the_root(root):
    for split in ("train", "val"):
        draw(root / "images", split)
        put(root / f"{split}.json", coco(split))


def coco_of_roboflow(root):
    for split, folder in (("train", "train"), ("val", "valid")):
        draw(root / folder, split)
        content = coco(split)
        for category in content["categories"]:
            category["supercategory"] = "animals"
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        put(root / folder / "_annotations.coco.json", content)
    put(root / "README.roboflow.txt", "train it")


def coco_with_one_folder_per_split(root):
    for split in ("train", "val"):
        draw(root / "images" / split, split)
        put(root / f"annotations/{split}.json", coco(split))


def voc_devkit_form(root):
    for split in ("train", "val"):
        draw(root / "JPEGImages", split)
        voc_files(root / "Annotations", split)
        put(root / f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name, *_ in IMAGES[split]))


def voc_in_a_devkit(root):
    voc_devkit_form(root / "VOCdevkit/VOC2007")
    put(root / "VOCdevkit/VOC2007/ImageSets/Main/fox_train.txt", "t1  1\nt2 -1\n")


def voc_with_test_and_trainval(root):
    voc_devkit_form(root)
    (root / "ImageSets/Main/train.txt").rename(root / "ImageSets/Main/trainval.txt")
    (root / "ImageSets/Main/val.txt").rename(root / "ImageSets/Main/test.txt")


def voc_with_lists_at_the_root(root):
    voc_devkit_form(root)
    for split in ("train", "val"):
        (root / f"ImageSets/Main/{split}.txt").rename(root / f"{split}.txt")


def voc_with_one_folder_per_split(root):
    for split in ("train", "val"):
        draw(root / "images" / split, split, ".png")
        voc_files(root / "Annotations" / split, split)


def voc_of_roboflow(root):
    for split, folder in (("train", "train"), ("val", "valid")):
        draw(root / folder, split)
        voc_files(root / folder, split)


def yolo_images_first(root, outlines=False):
    put(root / "classes.txt", "".join(f"{name}\n" for name in NAMES))
    for split in ("train", "val"):
        draw(root / "images" / split, split)
        yolo_labels(root / "labels" / split, split, outlines)


def yolo_outlines(root):
    yolo_images_first(root, outlines=True)


def yolo_split_first(root):
    put(root / "obj.names", "".join(f"{name}\n" for name in NAMES))
    for split, folder in (("train", "train"), ("val", "valid")):
        draw(root / folder / "images", split, ".PNG")
        yolo_labels(root / folder / "labels", split)


def yolo_labels_in_place(root):
    put(root / "my.names", "".join(f"{name}\r\n" for name in NAMES))
    for split, folder in (("train", "train"), ("val", "test")):
        draw(root / folder, split)
        yolo_labels(root / folder, split)


def yolo_lists(root, prefix="./"):
    put(root / "classes.txt", "".join(f"{name}\n" for name in NAMES))
    for split in ("train", "val"):
        draw(root / "images", split)
        yolo_labels(root / "labels", split)
        put(root / f"{split}.txt", "".join(f"{prefix}images/{name}.jpg\n" for name, *_ in IMAGES[split]))


def yolo_lists_of_another_place(root):
    yolo_lists(root, prefix="/content/data/")


COCO_LAYOUTS = (coco_like_coco, coco_at_the_root, coco_of_roboflow, coco_with_one_folder_per_split)
VOC_LAYOUTS = (
    *(voc_devkit_form, voc_in_a_devkit, voc_with_test_and_trainval, voc_with_lists_at_the_root),
    *(voc_with_one_folder_per_split, voc_of_roboflow),
)
YOLO_LAYOUTS = (
    *(
        yolo_images_first,
        yolo_outlines,
        yolo_split_first,
        yolo_labels_in_place,
        yolo_lists,
        yolo_lists_of_another_place,
    ),
)
STYLES = {"coco": coco_at_the_root, "voc": voc_devkit_form, "yolo": yolo_images_first}


def check_objects(dataset, split, names=NAMES) -> None:
    """The images and objects of a split are those of ``IMAGES``."""
    assert len(dataset) == len(IMAGES[split])
    found = {Path(name).stem: k for k, name in enumerate(dataset.file_names)}
    for name, (width, height), objects in IMAGES[split]:
        index = found[name]
        assert dataset.read_image(index).shape == (height, width, 3)
        rows = dataset.read_objects(index)
        assert [dataset.class_names[cls] for cls in rows["cls"]] == [names[cls] for cls, *_ in objects]
        boxes = [[x, y, x + w, y + h] for _, x, y, w, h in objects]
        np.testing.assert_allclose(rows["boxes"].reshape(-1, 4), np.reshape(boxes, (-1, 4)), atol=1e-3)


def perfect(dataset, score=1.0) -> dict:
    """Every object found."""
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        rows = dataset.read_objects(index)
        found = {cls + 1: np.zeros((0, 5), np.float32) for cls in range(len(dataset.class_names))}
        for cls in set(rows["cls"].tolist()):
            boxes = rows["boxes"][rows["cls"] == cls]
            found[cls + 1] = np.hstack([boxes, np.full((len(boxes), 1), score, np.float32)])
        results[image_id] = found
    return results
