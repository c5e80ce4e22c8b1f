"""Boxes in front of a camera: corners, projection and back, in numpy.

Camera coordinates are those of KITTI: x right, y down, z forward, in meters. The location of a box is the middle of
its bottom face; it is rotated by ``rotation_y`` around the vertical axis. ``dim`` is (height, width, length), and the
length is parallel to x at ``rotation_y`` 0. ``calib`` is the (3, 4) projection from camera coordinates to pixels.
"""

import numpy as np

NEAREST = 0.1  # meters in front of the camera, where parts of a box that are nearer are cut off or moved to

# Of a box of length, height and width 1: four corners of the bottom, then those above them.
CORNERS = np.array([[0.5, 0.5, -0.5, -0.5] * 2, [0.0] * 4 + [-1.0] * 4, [0.5, -0.5, -0.5, 0.5] * 2], dtype=np.float64)


def rotation_matrix(rotation_y: float) -> np.ndarray:
    """Return the rotation (3, 3) float32 by ``rotation_y`` radians around the vertical axis."""
    c, s = np.cos(rotation_y), np.sin(rotation_y)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=np.float32)


def compute_box_3d(dim, location, rotation_y: float) -> np.ndarray:
    """Return the corners (8, 3) float32 of a box: front right, back right, back left, front left below, then above.

    Args:
        dim: (height, width, length) in meters.
        location: (3,) the middle of the bottom face.
        rotation_y: radians.
    """
    height, width, length = (float(side) for side in dim)
    corners = (CORNERS * np.array([[length], [height], [width]])).astype(np.float32)
    return (rotation_matrix(rotation_y) @ corners).T + np.asarray(location, dtype=np.float32)


def compute_orientation_3d(dim, location, rotation_y: float) -> np.ndarray:
    """Return two points (2, 3) float32: the location, and the one a length of the box ahead of it."""
    ahead = np.array([[0.0, float(dim[2])], [0.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    return (rotation_matrix(rotation_y) @ ahead).T + np.asarray(location, dtype=np.float32)


def project_to_image(points, calib) -> np.ndarray:
    """Project points (n, 3) in camera coordinates to pixels (n, 2); those in the camera's plane are not finite."""
    points = np.asarray(points)
    homogeneous = np.concatenate([points, np.ones_like(points[:, :1])], axis=1) @ np.asarray(calib).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[:, :2] / homogeneous[:, 2:]


def project_3d_bbox(location, dim, rotation_y: float, calib) -> np.ndarray:
    """Return the corners (8, 2) of a box in pixels."""
    return project_to_image(compute_box_3d(dim, location, rotation_y), calib)


def unproject_2d_to_3d(point, depth, calib) -> np.ndarray:
    """Return the points (..., 3) float32 that project to pixels (..., 2) at ``depth`` (...), the third homogeneous."""
    point, depth = np.asarray(point), np.asarray(depth)
    calib = np.asarray(calib)
    z = depth - calib[2, 3]
    x = (point[..., 0] * depth - calib[0, 3] - calib[0, 2] * z) / calib[0, 0]
    y = (point[..., 1] * depth - calib[1, 3] - calib[1, 2] * z) / calib[1, 1]
    return np.stack([x, y, z], axis=-1).astype(np.float32)


def alpha2rot_y(alpha, x, cx, fx):
    """Return the rotation of an object seen at column ``x`` under the angle ``alpha``, wrapped once into [-pi, pi].

    ``cx`` and ``fx`` are the principal point and the focal length in pixels; arrays work too.
    """
    return _wrapped(alpha + np.arctan2(x - cx, fx))


def rot_y2alpha(rot_y, x, cx, fx):
    """Return the observation angle at column ``x`` of an object rotated by ``rot_y``; inverse of ``alpha2rot_y``."""
    return _wrapped(rot_y - np.arctan2(x - cx, fx))


def _wrapped(angle):
    angle = np.where(angle > np.pi, angle - 2 * np.pi, angle)
    return np.where(angle < -np.pi, angle + 2 * np.pi, angle)[()]


def ddd2locrot(center, alpha, dim, depth, calib) -> tuple[np.ndarray, np.ndarray]:
    """Return position and yaw of a 3D box of known size, from its appearance (reference function ``ddd2locrot``).

    Args:
        center: (..., 2) pixels, regarded as the projection of the box's middle.
        alpha: (...) observation angle in radians.
        dim: (..., 3) height, width, length in meters.
        depth: (...) meters.
        calib: (3, 4).

    Returns:
        location (..., 3) float32, the middle of the bottom face, and rotation_y (...).
    """
    center, dim, calib = np.asarray(center), np.asarray(dim), np.asarray(calib)
    location = unproject_2d_to_3d(center, depth, calib)
    location[..., 1] += dim[..., 0] / 2
    return location, alpha2rot_y(alpha, center[..., 0], calib[0, 2], calib[0, 0])


def boxes_around(dim, location, rotation_y, calib) -> np.ndarray:
    """Return the 2D boxes (n, 4) around n projected 3D boxes; corners behind the camera are moved in front of it."""
    boxes = np.zeros((len(dim), 4))
    for k in range(len(dim)):
        corners = compute_box_3d(dim[k], location[k], rotation_y[k])
        corners[:, 2] = corners[:, 2].clip(NEAREST)
        pixels = project_to_image(corners, calib)
        boxes[k] = [*pixels.min(0), *pixels.max(0)]
    return boxes
