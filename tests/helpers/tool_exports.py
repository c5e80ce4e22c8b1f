"""Exports of labeling tools."""

from tests.helpers.layouts import IMAGES, NAMES, coco, draw, put, yolo_labels


def label_studio_coco(root, split="train"):
    draw(root / "images", split)
    content = coco(split)
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    put(root / "result.json", content)


def cvat_xml(root, subset=""):
    draw(root / "images", "train")
    put(root / "annotations.xml", cvat_text("train", subset))


def labelme_flat(root):
    draw(root, "train")
    labelme_files(root, "train")


def labelimg_yolo(root):
    """labelImg saves classes.txt next to the labels."""
    draw(root / "images/train", "train")
    yolo_labels(root / "labels/train", "train")
    put(root / "labels/train/classes.txt", "hen house\nfox\n")


def cvat_text(split, subset="") -> str:
    text = "<?xml version='1.0' encoding='utf-8'?>\n<annotations><version>1.1</version><meta><task><labels>"
    text += "".join(f"<label><name>{name}</name></label>" for name in NAMES) + "</labels></task></meta>"
    for k, (name, (width, height), objects) in enumerate(IMAGES[split]):
        text += f'<image id="{k}" name="{name}.jpg" width="{width}" height="{height}" subset="{subset}">'
        for cls, x, y, w, h in objects:
            text += f'<box label="{NAMES[cls]}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" occluded="0"/>'
        text += "</image>"
    return text + "</annotations>"


def labelme_files(folder, split, image_path="{name}.jpg", **more):
    for name, (width, height), objects in IMAGES[split]:
        shapes = [
            {"label": NAMES[cls], "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle", "flags": {}}
            for cls, x, y, w, h in objects
        ]
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image_path.format(name=name)}
        put(folder / f"{name}.json", {**content, "imageData": None, "imageHeight": height, "imageWidth": width, **more})
