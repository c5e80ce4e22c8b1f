"""The synthetic sample of the 3D task: a few hundred drawn street scenes, seen by a known camera.

Cars, pedestrians and cyclists consist of cuboids; front and back differ, or their direction could not be learned. As in
KITTI some objects are ignored: vans, and objects that are too far away (DontCare). The drawing depends on nothing but
the constants below.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ...evaluation.kitti_text import CLASS_NAMES
from ...ops.box3d import compute_box_3d, project_to_image, rotation_matrix
from ..kitti import KITTI
from .base import SyntheticDataset

WIDTH, HEIGHT = 256, 96
FINE = 3  # images are drawn this much larger and scaled down, for smooth edges

FOCAL, HORIZON = 200.0, 38.0  # pixels
MIDDLE = (116.0, 140.0)  # the principal point lies at one of these columns: two cameras
CAMERA_HEIGHT = 1.65  # meters above the ground
NEAR, FAR = 6.0, 12.0  # meters; what counts lies between
VERY_FAR = (22.0, 40.0)  # DontCare
MAX_HIDDEN, MAX_CUT_OFF = 0.6, 0.4  # shares of an object, by others and by the image's edge

# Mean height, width and length in meters.
SIZES = {
    "Pedestrian": (1.75, 0.65, 0.75),
    "Car": (1.5, 1.65, 3.9),
    "Cyclist": (1.75, 0.65, 1.8),
    "Van": (2.2, 1.9, 5.0),
}
SHARES = {"Pedestrian": 0.24, "Car": 0.46, "Cyclist": 0.24, "Van": 0.06}


class SyntheticStreets(SyntheticDataset, KITTI):
    """KITTI's three classes, drawn."""

    name = "sample_ddd"
    folder_names = ("sample_ddd",)
    splits = {"train": 240, "val": 100}  # KITTI's score needs more than 41 objects of a class to reach 1
    class_names = KITTI.class_names
    default_resolution = (HEIGHT, WIDTH)
    max_objs = 8

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        return (folder / "annotations").is_dir()

    @classmethod
    def path_of_annotations(cls, folder: Path, split: str) -> Path:
        return folder / "annotations" / ("train.json" if split == "train" else "val.json")

    @classmethod
    def categories(cls) -> list[dict]:
        return [{"name": name, "id": k} for k, name in enumerate(CLASS_NAMES, start=1)]

    @classmethod
    def draw_scene(cls, rng: np.random.Generator) -> tuple[np.ndarray, dict, list[dict]]:
        image, calib, objects = draw_image(rng)
        return image, {"calib": calib.tolist()}, objects


@dataclass
class SceneObject:
    """An object of the scene: ``dim`` (height, width, length) and ``location`` (of its bottom's middle) in meters."""

    name: str
    dim: np.ndarray
    location: np.ndarray
    rotation_y: float
    colors: np.ndarray

    def project(self, points: np.ndarray, calib: np.ndarray) -> np.ndarray:
        """Project points (n, 3) in units of the box, x forward and y up from its bottom's middle, to pixels (n, 2)."""
        height, width, length = self.dim
        placed = points * np.array([length, -height, width])
        return project_to_image(placed @ rotation_matrix(self.rotation_y).T + self.location, calib)


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Return an image (96, 256, 3) uint8, its camera (3, 4), and its objects as KITTI's JSON has them, without ids."""
    middle = MIDDLE[rng.integers(len(MIDDLE))]
    # Like KITTI's second color camera, it is a little off the origin of the coordinates.
    calib = np.array([[FOCAL, 0, middle, 12.0], [0, FOCAL, HORIZON, -0.2], [0, 0, 1, 0.003]])
    scene = [_random_object(rng, VERY_FAR) for _ in range(rng.integers(0, 3))]
    far = len(scene)
    silhouettes: list[_Silhouette] = []  # of all but the very far objects
    for _ in range(rng.integers(1, 5)):
        for _attempt in range(20):
            item = _random_object(rng, (NEAR, FAR))
            silhouette = _silhouette(item, calib)
            if silhouette.cut_off > MAX_CUT_OFF or any(_touch(item, other) for other in scene[far:]):
                continue
            order = sorted([*zip(scene[far:], silhouettes, strict=True), (item, silhouette)], key=_distance)
            if max(_hidden(order)) <= MAX_HIDDEN:
                scene.append(item)
                silhouettes.append(silhouette)
                break

    image = cv2.resize(_street(rng, calib), (WIDTH * FINE, HEIGHT * FINE), interpolation=cv2.INTER_LINEAR)
    for item in sorted(scene, key=lambda item: -item.location[2]):
        _draw(image, item, calib)
    image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    image = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)

    order = sorted(zip(scene[far:], silhouettes, strict=True), key=_distance)
    objects = [_annotation(item, seen, hidden) for (item, seen), hidden in zip(order, _hidden(order), strict=True)]
    covered = np.zeros((HEIGHT * FINE, WIDTH * FINE), bool)
    for silhouette in silhouettes:
        covered |= silhouette.mask
    return (
        image,
        calib,
        objects + [_dont_care(item, calib) for item in scene[:far] if _seen(item, calib, covered)],
    )


def _random_object(rng: np.random.Generator, distances: tuple[float, float]) -> SceneObject:
    name = list(SHARES)[rng.choice(len(SHARES), p=list(SHARES.values()))]
    dim = np.array(SIZES[name]) * rng.uniform(0.88, 1.12, 3)
    z = rng.uniform(*distances)
    location = np.array([rng.uniform(-0.6, 0.6) * z, CAMERA_HEIGHT, z])
    along = rng.random() < 0.6  # the street
    heading = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.2) if along else rng.uniform(-np.pi, np.pi)
    return SceneObject(
        name, dim, location, float((heading + np.pi) % (2 * np.pi) - np.pi), rng.uniform(40, 230, (3, 3))
    )


def _distance(pair: tuple[SceneObject, "_Silhouette"]) -> float:
    return float(pair[0].location[2])


def _touch(one: SceneObject, other: SceneObject) -> bool:
    radius = sum(np.hypot(item.dim[1], item.dim[2]) / 2 for item in (one, other))
    return bool(np.hypot(*(one.location - other.location)[[0, 2]]) < radius)


@dataclass
class _Silhouette:
    """The area that an object covers: ``mask`` of the fine image, ``box`` in the image, and the share outside of it."""

    mask: np.ndarray
    box: np.ndarray
    cut_off: float


def _silhouette(item: SceneObject, calib: np.ndarray) -> _Silhouette:
    mask = np.zeros((HEIGHT * FINE, WIDTH * FINE), np.uint8)
    outline = np.concatenate([item.project(points, calib) for points, _, _ in _faces(item)])
    hull = cv2.convexHull(outline.astype(np.float32))
    cv2.fillConvexPoly(mask, _fine(hull[:, 0]), 1)
    box = np.concatenate([outline.min(0), outline.max(0)]).clip(0, [WIDTH - 1, HEIGHT - 1] * 2)
    whole = cv2.contourArea(hull) * FINE**2
    return _Silhouette(mask.astype(bool), box, float(max(0, 1 - mask.sum() / max(whole, 1))))


def _hidden(order: list[tuple[SceneObject, _Silhouette]]) -> list[float]:
    """Return the share of each object that those before it, which are nearer, hide."""
    shares, before = [], np.zeros((HEIGHT * FINE, WIDTH * FINE), bool)
    for _, seen in order:
        shares.append(float((seen.mask & before).sum() / max(seen.mask.sum(), 1)))
        before |= seen.mask
    return shares


def _seen(item: SceneObject, calib: np.ndarray, covered: np.ndarray) -> bool:
    """Return whether most of an object is neither covered nor outside the image."""
    silhouette = _silhouette(item, calib)
    return silhouette.cut_off < 0.5 and bool((silhouette.mask & covered).sum() < 0.5 * silhouette.mask.sum())


def _annotation(item: SceneObject, seen: _Silhouette, hidden: float) -> dict:
    x, y, z = item.location
    alpha = item.rotation_y - np.arctan2(x, z)
    return {
        "category_id": CLASS_NAMES.index(item.name) + 1,
        "dim": np.round(item.dim, 4).tolist(),
        "bbox": np.round([*seen.box[:2], *(seen.box[2:] - seen.box[:2])], 2).tolist(),
        "depth": round(float(z), 4),
        "alpha": round(float((alpha + np.pi) % (2 * np.pi) - np.pi), 4),
        "truncated": round(seen.cut_off, 2),
        "occluded": int(hidden > 0.1) + int(hidden > 0.35),
        "location": np.round([x, y, z], 4).tolist(),
        "rotation_y": round(item.rotation_y, 4),
    }


def _dont_care(item: SceneObject, calib: np.ndarray) -> dict:
    pixels = project_to_image(compute_box_3d(item.dim, item.location, item.rotation_y), calib)
    low, high = (corner.clip(0, [WIDTH - 1, HEIGHT - 1]) for corner in (pixels.min(0), pixels.max(0)))
    return {
        "category_id": CLASS_NAMES.index("DontCare") + 1,
        "dim": [-1.0, -1.0, -1.0],
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "depth": -1000.0,
        "alpha": -10.0,
        "truncated": -1,
        "occluded": -1,
        "location": [-1000.0, -1000.0, -1000.0],
        "rotation_y": -10.0,
    }


# Drawing


def _street(rng: np.random.Generator, calib: np.ndarray) -> np.ndarray:
    """Return sky, houses, and a ground with the edges of a road, (96, 256, 3) float32."""
    rows = np.arange(HEIGHT)[:, None, None]
    light = rng.uniform(0.8, 1.1)
    sky = np.array([225, 205, 185]) * light
    ground = np.array([88, 92, 96]) * light * rng.uniform(0.8, 1.3)
    image = np.where(rows < HORIZON, sky + 0.8 * (rows - HORIZON), ground + 0.3 * (rows - HORIZON))
    image = np.repeat(image, WIDTH, axis=1).astype(np.float32)
    x = 0
    while x < WIDTH:
        width = int(rng.integers(14, 60))
        top = int(HORIZON - rng.uniform(4, 26))
        image[top : int(HORIZON), x : x + width] = rng.uniform(90, 190) + rng.uniform(-25, 25, 3)
        x += width
    edges = np.array([[side, CAMERA_HEIGHT, z] for side in (-5.5, 5.5) for z in (3.0, 60.0)])
    pixels = project_to_image(edges, calib).astype(int)
    for start, end in (pixels[:2], pixels[2:]):
        cv2.line(image, tuple(start.tolist()), tuple(end.tolist()), (200, 205, 205), 1, cv2.LINE_AA)
    texture = cv2.resize(rng.normal(0, 6, (24, 64)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return image + texture[:, :, None]


def _draw(image: np.ndarray, item: SceneObject, calib: np.ndarray) -> None:
    """Paint the sides of an object that the camera sees, and its shadow, into the fine image."""
    shadow = np.array([[0.53, 0, 0.55], [0.53, 0, -0.55], [-0.53, 0, -0.55], [-0.53, 0, 0.55]])
    cv2.fillConvexPoly(image, _fine(item.project(shadow, calib)), (48, 48, 48))
    rotation = rotation_matrix(item.rotation_y)
    for points, normal, color in _faces(item):
        placed = points * np.array([item.dim[2], -item.dim[0], item.dim[1]]) @ rotation.T + item.location
        outward = rotation @ (normal * np.array([1, -1, 1]))
        if (placed.mean(0) * outward).sum() < 0:
            light = 0.8 + 0.25 * -outward[1] + 0.15 * outward[0]  # from above and the right
            cv2.fillConvexPoly(image, _fine(item.project(points, calib)), tuple((color * light).tolist()))


def _fine(pixels: np.ndarray) -> np.ndarray:
    return np.round((pixels + 0.5) * FINE - 0.5).astype(np.int32)


def _faces(item: SceneObject) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (corners (4, 3), outward normal (3,) in units of the box, color B, G, R) in the order of painting."""
    return (_person if item.name == "Pedestrian" else _cyclist if item.name == "Cyclist" else _car)(*item.colors)


def _car(paint: np.ndarray, *_) -> list:
    glass, tyre = np.array([70.0, 55, 45]), np.array([28.0, 28, 28])
    body = _cuboid((-0.5, 0.5), (0.12, 0.6), (-0.5, 0.5), paint)
    wheels = [_patch(2, side, (x - 0.1, x + 0.1), (0, 0.32), tyre) for side in (-0.5, 0.5) for x in (-0.3, 0.3)]
    front = [_patch(0, 0.5, (0.36, 0.52), z, np.array([190.0, 245, 255])) for z in ((-0.48, -0.2), (0.2, 0.48))]
    back = [_patch(0, -0.5, (0.36, 0.52), z, np.array([30.0, 30, 215])) for z in ((-0.48, -0.25), (0.25, 0.48))]
    cabin = _cuboid((-0.42, 0.16), (0.6, 1.0), (-0.42, 0.42), glass, top=paint)
    return body + wheels + front + back + cabin


def _person(trousers: np.ndarray, shirt: np.ndarray, _) -> list:
    legs = _cuboid((-0.3, 0.3), (0, 0.48), (-0.35, 0.35), trousers * 0.7)
    chest = _cuboid((-0.4, 0.4), (0.48, 0.85), (-0.5, 0.5), shirt)
    return legs + chest + [_patch(0, -0.4, (0.52, 0.8), (-0.35, 0.35), np.array([40.0, 40, 40]))] + _head(0.0)


def _cyclist(frame: np.ndarray, shirt: np.ndarray, trousers: np.ndarray) -> list:
    bicycle = _cuboid((-0.5, 0.5), (0.05, 0.4), (-0.08, 0.08), frame * 0.6)
    tyres = [
        _patch(2, side, x, (0, 0.36), np.array([25.0, 25, 25]))
        for side in (-0.08, 0.08)
        for x in ((-0.5, -0.2), (0.2, 0.5))
    ]
    legs = _cuboid((-0.12, 0.15), (0.15, 0.5), (-0.3, 0.3), trousers * 0.7)
    chest = _cuboid((-0.16, 0.2), (0.5, 0.85), (-0.5, 0.5), shirt)
    return bicycle + tyres + legs + chest + _head(0.08)


def _head(x: float) -> list:
    hair, skin = np.array([30.0, 40, 60]), np.array([150.0, 180, 225])
    head = _cuboid((x - 0.16, x + 0.16), (0.86, 1.0), (-0.25, 0.25), hair)
    return [*head, _patch(0, x + 0.16, (0.86, 0.97), (-0.22, 0.22), skin)]


def _cuboid(x, y, z, color: np.ndarray, top: np.ndarray | None = None) -> list:
    """Return the four sides and the top of a cuboid."""
    sides = [_patch(0, x[k], y, z, color) for k in range(2)] + [_patch(2, z[k], x, y, color) for k in range(2)]
    # The outward directions are known here.
    out = [[-1, 0, 0], [1, 0, 0], [0, 0, -1], [0, 0, 1]]
    faces = [(points, np.array(normal), paint) for (points, _, paint), normal in zip(sides, out, strict=True)]
    return [*faces, _patch(1, y[1], x, z, color if top is None else top)]


def _patch(axis: int, at: float, one: tuple[float, float], other: tuple[float, float], color: np.ndarray) -> tuple:
    """Return a rectangle where ``axis`` is ``at``; ``one`` and ``other`` are its ranges on the other two axes."""
    points = np.zeros((4, 3))
    points[:, axis] = at
    first, second = [k for k in range(3) if k != axis]
    points[:, first] = [one[0], one[1], one[1], one[0]]
    points[:, second] = [other[0], other[0], other[1], other[1]]
    normal = np.zeros(3)
    normal[axis] = 1 if at > 0 or axis == 1 else -1
    return points, normal, color
