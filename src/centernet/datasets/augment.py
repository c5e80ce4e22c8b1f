"""Augmentation for small datasets (``--augment``, ``--copy_paste``), beyond the reference's crops, flips and colors.

It makes one image with its boxes out of one or several images of the dataset, before the task crops, flips and colors
it as usual. All random numbers come from (seed, epoch, index), so a sample is the same whichever worker makes it.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ..policies import Policy
from .outlines import outline_mask

GRAY = 124  # of empty regions, near the mean of ImageNet
MIN_VISIBLE = 0.3  # smallest visible fraction of an object, or of its box, below which it is dropped
MIN_SIDE = 3  # pixels of an object that is cut or partly covered, below which it is dropped
STREAM = 1  # keeps these random numbers apart from those of the crop, which come from (seed, epoch, index) alone

OUTLINES = "outlines"  # of objects in ``Objects``, where they are known; see ``outlines.Outlines``

Objects = dict[str, np.ndarray]
Read = Callable[[int], tuple[np.ndarray, Objects]]


def augment(
    read: Read, count: int, policy: Policy, seed: int, epoch: int, index: int, max_side: int
) -> tuple[np.ndarray, Objects]:
    """Return an augmented image and its objects.

    Args:
        read: returns image (H, W, 3) uint8 and objects of an index: ``boxes`` (n, 4) float32 [x1, y1, x2, y2] in
            pixels and any other arrays with one row per object. ``outlines`` are needed to paste objects, and are not
            returned, because images change.
        count: number of images to choose further ones from.
        policy: what to do.
        seed, epoch, index: identify the sample.
        max_side: longer side in pixels to which larger images are scaled down before they are composed.
    """
    rng = np.random.default_rng((seed, epoch, index, STREAM))
    image, objects = read(index)
    # Unlike the following ones this needs no number if it is off: figures of runs without it stay the same.
    if policy.copy_paste > 0 and rng.random() < policy.copy_paste and OUTLINES in objects:
        image, objects = _paste(rng, image, objects, *read(int(rng.integers(count))))
    objects = {name: values for name, values in objects.items() if name != OUTLINES}
    if rng.random() < policy.mosaic:
        image, objects = _mosaic(rng, read, count, *_fitted(image, objects, max_side))
    if rng.random() < policy.mixup:
        image, objects = _mixup(rng, image, objects, *read(int(rng.integers(count))))
    if policy.rotate > 0:
        image, objects = _rotate(image, objects, rng.uniform(-policy.rotate, policy.rotate))
    if policy.hsv > 0:
        image = _shift_hsv(rng, image, policy.hsv)
    if rng.random() < policy.degrade:
        image = _degrade(rng, image)
    if rng.random() < policy.cutout:
        image = _cut_out(rng, image)
    return image, objects


def repeat_factors(classes: list[np.ndarray], threshold: float) -> np.ndarray:
    """Return how often each image occurs per epoch so that rare classes are seen more often (LVIS, arXiv 1908.03195).

    A class that occurs in a share f of the images has the factor max(1, sqrt(threshold / f)); an image has the greatest
    factor of its classes.

    Args:
        classes: the classes of the objects of each image.
        threshold: share of the images below which a class counts as rare.
    """
    shares: dict[int, float] = {}
    for one in classes:
        for cls in np.unique(one).tolist():
            shares[cls] = shares.get(cls, 0) + 1 / len(classes)
    factor = {cls: max(1.0, (threshold / share) ** 0.5) for cls, share in shares.items()}
    return np.array([max((factor[cls] for cls in np.unique(one).tolist()), default=1.0) for one in classes])


def _fitted(image: np.ndarray, objects: Objects, max_side: int) -> tuple[np.ndarray, Objects]:
    """Scale an image whose longer side exceeds ``max_side`` down to it, with its boxes."""
    factor = max_side / max(image.shape[:2])
    if factor >= 1:
        return image, objects
    scaled = _scaled(image, factor, False)
    ratio = np.array(scaled.shape[1::-1]) / image.shape[1::-1]
    return scaled, {**objects, "boxes": (objects["boxes"] * np.tile(ratio, 2)).astype(np.float32)}


def _select(objects: Objects, kept: np.ndarray, boxes: np.ndarray) -> Objects:
    return {name: values[kept] for name, values in {**objects, "boxes": boxes.astype(np.float32)}.items()}


def _clip(objects: Objects, width: int, height: int) -> Objects:
    """Clip boxes to the image; drop objects of which too little is left. Those that are whole stay, however small."""
    boxes = objects["boxes"].astype(np.float64)
    clipped = boxes.copy()
    clipped[:, 0::2] = clipped[:, 0::2].clip(0, width)
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, height)
    sides, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    kept = (sides.min(1, initial=np.inf) >= MIN_SIDE) & (sides.prod(1) >= MIN_VISIBLE * before.prod(1))
    return _select(objects, kept | (clipped == boxes).all(1), clipped)


def _paste(rng, image: np.ndarray, objects: Objects, other: np.ndarray, others: Objects) -> tuple[np.ndarray, Objects]:
    """Paste some of the objects of another image, scaled and perhaps flipped, at a random place.

    Boxes of pasted objects are the extents of their visible pixels. Objects below them lose what is covered, or are
    dropped when too little of their outline, or of their box if they have none, is left.
    """
    size = image.shape[:2]
    factor, flipped = rng.uniform(0.5, 1.5) * max(size) / max(other.shape[:2]), rng.random() < 0.5
    layers = _some_layers(rng, others[OUTLINES], other.shape[:2], factor, flipped)
    # They are moved together, to where as much of them as possible lies inside of the image.
    joint = _extent(np.any(list(layers.values()), axis=0)) if layers else np.zeros(4, int)
    places, free = rng.random(2), np.array(size[::-1]) - _sides(joint)
    left, top = np.rint(np.minimum(free, 0) + places * np.abs(free)).astype(int) - joint[:2]
    pasted: dict[int, np.ndarray] = {}
    for k, layer in layers.items():
        visible = _shifted(layer, left, top, size)
        if _enough(visible, layer):
            pasted[k] = visible
    if not pasted:
        return image, objects
    covered = np.any(list(pasted.values()), axis=0)
    source = _shifted(_scaled(other, factor, flipped), left, top, size)
    new = {name: values[list(pasted)] for name, values in others.items()}
    new["boxes"] = np.array([_extent(mask) for mask in pasted.values()], np.float32)
    old = _select(objects, *_uncovered(objects, covered))
    return np.where(covered[:, :, None], source, image), {name: np.concatenate([old[name], new[name]]) for name in old}


def _some_layers(rng, outlines: np.ndarray, size, factor: float, flipped: bool) -> dict[int, np.ndarray]:
    """Return the masks of a random part of the objects that have outlines, by index, scaled like their image."""
    known = np.flatnonzero(outlines)
    chosen = rng.permutation(known)[: rng.integers(1, max(len(known), 1) + 1)]
    masks = {k: outline_mask(outlines[k], *size) for k in np.sort(chosen).tolist()}
    return {
        k: _scaled(mask.astype(np.uint8) * 255, factor, flipped) > 127 for k, mask in masks.items() if mask is not None
    }


def _uncovered(objects: Objects, covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which objects are visible (n,) bool, and their boxes (n, 4), where pixels ``covered`` (h, w) are not."""
    boxes, kept = objects["boxes"].astype(np.float64), np.ones(len(objects["boxes"]), bool)
    for k, outline in enumerate(objects[OUTLINES]):
        x1, y1, x2, y2 = np.rint(boxes[k].clip(0)).astype(int)
        if not covered[y1:y2, x1:x2].any():
            continue
        whole = outline_mask(outline, *covered.shape)
        if whole is None:
            whole = np.zeros_like(covered)
            whole[y1:y2, x1:x2] = True
        visible = whole & ~covered
        if visible.sum() == whole.sum():
            continue
        kept[k] = _enough(visible, whole)
        if kept[k]:
            # Sides of which nothing is covered keep their fractions of pixels.
            before, after = _extent(whole), _extent(visible)
            boxes[k] = np.where(after == before, boxes[k], after)
    return kept, boxes


def _enough(visible: np.ndarray, whole: np.ndarray) -> bool:
    """Return whether enough of an object is visible; both are masks."""
    return visible.sum() >= MIN_VISIBLE * whole.sum() and _sides(_extent(visible)).min() >= MIN_SIDE


def _scaled(image: np.ndarray, factor: float, flipped: bool) -> np.ndarray:
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA)
    return cv2.flip(image, 1) if flipped else image


def _shifted(image: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Return zeros of ``size`` (height, width) with the image at ``left``, ``top``, as far as it lies inside."""
    height, width = size
    canvas = np.zeros((height, width, *image.shape[2:]), image.dtype)
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + image.shape[1], width), min(top + image.shape[0], height)
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def _extent(mask: np.ndarray) -> np.ndarray:
    """Return the box [x1, y1, x2, y2] of the pixels of a mask (h, w) bool; zeros if it has none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) if len(rows) else np.zeros(4, int)


def _sides(box: np.ndarray) -> np.ndarray:
    return box[2:] - box[:2]


def _mosaic(rng, read: Read, count: int, image: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
    """Put four scaled and flipped images around a point, and cut out a window that contains it, of the first's size."""
    height, width = image.shape[:2]
    canvas = np.full((2 * height, 2 * width, 3), GRAY, np.uint8)
    center_x, center_y = (int(rng.uniform(0.5, 1.5) * side) for side in (width, height))
    parts: list[Objects] = []
    for quarter in range(4):
        part, own = (image, objects) if quarter == 0 else read(int(rng.integers(count)))
        # Every image is scaled to about the size of the first.
        factor = rng.uniform(0.7, 1.3) * max(height, width) / max(part.shape[:2])
        size = [max(1, round(side * factor)) for side in part.shape[1::-1]]
        boxes = own["boxes"] * np.tile([size[0] / part.shape[1], size[1] / part.shape[0]], 2)
        part = cv2.resize(part, size, interpolation=cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA)
        if rng.random() < 0.5:
            part = cv2.flip(part, 1)
            boxes[:, [0, 2]] = size[0] - boxes[:, [2, 0]]
        left = center_x - size[0] if quarter % 2 == 0 else center_x
        top = center_y - size[1] if quarter < 2 else center_y
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + size[0], 2 * width), min(top + size[1], 2 * height)
        if x2 <= x1 or y2 <= y1:
            continue
        canvas[y1:y2, x1:x2] = part[y1 - top : y2 - top, x1 - left : x2 - left]
        boxes = boxes + np.array([left, top, left, top])
        # An object that the canvas cuts off is no longer whole: its visible part counts.
        parts.append({**own, "boxes": boxes})
    left, top = (
        int(np.clip(at - rng.uniform(0.25, 0.75) * side, 0, side))
        for at, side in ((center_x, width), (center_y, height))
    )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in objects}
    joined["boxes"] = joined["boxes"] - np.array([left, top, left, top])
    window = np.ascontiguousarray(canvas[top : top + height, left : left + width])
    return window, _clip(joined, width, height)


def _mixup(
    rng, image: np.ndarray, objects: Objects, other: np.ndarray, other_objects: Objects
) -> tuple[np.ndarray, Objects]:
    """Blend another image, fitted to the size of the first, with a share around one half; keep the objects of both."""
    height, width = image.shape[:2]
    factor = min(width / other.shape[1], height / other.shape[0])
    size = [max(1, round(side * factor)) for side in other.shape[1::-1]]
    share = rng.beta(8, 8)
    fitted = np.full_like(image, GRAY)
    fitted[: size[1], : size[0]] = cv2.resize(other, size, interpolation=cv2.INTER_LINEAR)
    boxes = other_objects["boxes"] * np.tile([size[0] / other.shape[1], size[1] / other.shape[0]], 2)
    joined = {name: np.concatenate([objects[name], {**other_objects, "boxes": boxes}[name]]) for name in objects}
    return cv2.addWeighted(image, share, fitted, 1 - share, 0), _clip(joined, width, height)


def _rotate(image: np.ndarray, objects: Objects, degrees: float) -> tuple[np.ndarray, Objects]:
    """Rotate about the middle; a box becomes that of its rotated inscribed ellipse."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    image = cv2.warpAffine(image, matrix, (width, height), borderValue=(GRAY, GRAY, GRAY))
    boxes = objects["boxes"].astype(np.float64)
    # Box edges lie half a pixel outside of the centers of the outermost pixels.
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5
    centers = centers @ matrix[:, :2].T + matrix[:, 2] + 0.5
    squares = ((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2
    cos, sin = np.cos(np.deg2rad(degrees)) ** 2, np.sin(np.deg2rad(degrees)) ** 2
    half = np.sqrt(squares @ np.array([[cos, sin], [sin, cos]]))
    return image, _clip({**objects, "boxes": np.hstack([centers - half, centers + half])}, width, height)


def _shift_hsv(rng, image: np.ndarray, strength: float) -> np.ndarray:
    gains = 1 + rng.uniform(-1, 1, 3) * [strength / 20, strength, strength]
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    steps = np.arange(256, dtype=np.float64)
    shifted_hue = cv2.LUT(hue, ((steps + 180 * (gains[0] - 1)) % 180).astype(np.uint8))
    scaled = [
        cv2.LUT(channel, (steps * gain).clip(0, 255).astype(np.uint8))
        for channel, gain in ((saturation, gains[1]), (value, gains[2]))
    ]
    return cv2.cvtColor(cv2.merge([shifted_hue, *scaled]), cv2.COLOR_HSV2BGR)


def _degrade(rng, image: np.ndarray) -> np.ndarray:
    """Apply blur, noise, or JPEG compression."""
    kind = rng.integers(3)
    if kind == 0:
        return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2)))
    if kind == 1:
        noise = rng.normal(0, rng.uniform(2, 10), image.shape)
        return (image + noise).clip(0, 255).astype(np.uint8)
    quality = int(rng.integers(30, 90))
    decoded = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return np.asarray(decoded)


def _cut_out(rng, image: np.ndarray) -> np.ndarray:
    """Cover up to three places, each at most a fifth of the image's side, with gray. Objects keep their boxes."""
    image = image.copy()
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        w, h = (max(1, int(rng.uniform(0.05, 0.2) * side)) for side in (width, height))
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        image[y : y + h, x : x + w] = GRAY
    return image
