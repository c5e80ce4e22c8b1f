"""Tiny devkits in the layout of PASCAL VOC."""

import cv2
import numpy as np

TINY = {
    ("2007", "train"): {"000005": [("dog", 2, 3, 11, 8, 0)], "000007": []},
    ("2007", "val"): {"000009": [("cat", 1, 1, 16, 12, 1), ("person", 4, 4, 4, 4, 0)]},
    ("2007", "test"): {"000001": [("dog", 5, 5, 9, 9, 0)]},
    ("2012", "train"): {"2008_000002": [("person", 1, 2, 3, 4, 0)]},
    ("2012", "val"): {"2008_000003": [("cat", 1, 2, 3, 4, 0), ("cat", 2, 2, 3, 4, 0)], "2011_000010": []},
}


def annotation_xml(name, objects, width=16, height=12):
    """The XML of one image; an object is (class, xmin, ymin, xmax, ymax, difficult)."""
    parts = [
        f"<object><name>{label}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2, difficult in objects
    ]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{''.join(parts)}</annotation>"


def make_devkit(folder, image_sets):
    """Write a devkit with ``{(year, image set): {image: objects}}`` and its images; returns ``folder``."""
    for (year, image_set), images in image_sets.items():
        home = folder / f"VOC{year}"
        for sub_folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (home / sub_folder).mkdir(parents=True, exist_ok=True)
        (home / "ImageSets" / "Main" / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, objects in images.items():
            (home / "Annotations" / f"{name}.xml").write_text(annotation_xml(name, objects))
            shade = int(name[-2:]) * 20
            assert cv2.imwrite(str(home / "JPEGImages" / f"{name}.jpg"), np.full((12, 16, 3), shade, np.uint8))
    return folder
