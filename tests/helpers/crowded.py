"""A dataset whose images have many overlapping objects."""

import numpy as np


def make_dataset(boxes, names=("cat", "dog")):
    """Ground truth with boxes of (image id, category id, x, y, w, h); category ids 3, 7, ... for the names."""
    return {
        "info": {},
        "images": [{"id": i, "width": 640, "height": 480} for i in (1, 2, 3)],
        "categories": [{"id": 3 + 4 * k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for k, (i, c, *box) in enumerate(boxes, start=1)
        ],
    }


def crowded(seed: int) -> tuple[dict, list[dict]]:
    """Two images with many objects that overlap, crowds and ignored ones among them, and as many detections."""
    rng = np.random.default_rng(seed)
    content = make_dataset([])
    results = []
    for image_id in (1, 2):
        corner, size = rng.integers(0, 60, (40, 2)), rng.integers(2, 60, (40, 2)) ** 2 / 20
        boxes = np.round(np.hstack([corner, size]) * 4) / 4
        for k, box in enumerate(boxes.tolist()):
            joints = rng.integers(0, 60, (17, 3)) * [1, 1, 0] + np.array([0, 0, 1]) * rng.integers(0, 3, (17, 1))
            joints[:, 2] *= k % 4 > 0
            one = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": 3, "bbox": box}
            one |= {"area": box[2] * box[3] + 1, "iscrowd": int(k % 9 == 0)}
            one |= {"keypoints": joints.flatten().tolist(), "num_keypoints": int((joints[:, 2] > 0).sum())}
            content["annotations"].append(one)
            moved = (np.array(box) + rng.choice([0, 0.25, 3], 4)).tolist()
            near = joints * [1, 1, 0] + rng.normal(0, 1, (17, 3)) * [1, 1, 0] + [0, 0, 1]
            entry = {"image_id": image_id, "category_id": 3, "bbox": moved, "score": float(rng.choice([0.2, 0.5, 0.9]))}
            results.append({**entry, "keypoints": near.flatten().tolist()})
    return content, results
