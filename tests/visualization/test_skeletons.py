"""Skeletons and heatmaps of joints."""

from types import SimpleNamespace

import numpy as np
import pytest

from centernet.ops.keypoints import FLIP_PAIRS, JOINT_NAMES, SKELETON, KeypointSchema
from centernet.visualization import Canvas, blend, heat_map_image
from centernet.visualization.multi_pose import (
    JOINT_COLORS,
    LEFT,
    MIDDLE,
    RIGHT,
    MultiPoseVisualizer,
    bone_color,
    draw_skeleton,
    joint_colors,
)


def spread():
    """Joints far apart from each other, (17, 2)."""
    return np.array([[20 + 40 * (k % 5), 20 + 40 * (k // 5)] for k in range(17)], dtype=float)


def drawn_on(image, *arguments):
    canvas = Canvas(image)
    draw_skeleton(canvas, *arguments)
    return canvas.finish()


def test_colors_show_the_side():
    for name, color in zip(JOINT_NAMES, JOINT_COLORS, strict=True):
        assert color == {"left": LEFT, "righ": RIGHT}.get(name[:4], MIDDLE)
    assert bone_color(0, 1) == bone_color(13, 15) == LEFT and bone_color(0, 2) == bone_color(4, 6) == RIGHT
    assert bone_color(5, 6) == bone_color(11, 12) == MIDDLE
    for left, right in FLIP_PAIRS:
        assert (JOINT_COLORS[left], JOINT_COLORS[right]) == (LEFT, RIGHT)


def test_other_joints():
    """Pairs by their names; joints without pairs have different colors."""
    tips = KeypointSchema(("tip_R", "head", "tip_L"), (2, 1, 0), ((0, 1),), (0.1,) * 3)
    assert joint_colors(tips) == [RIGHT, MIDDLE, LEFT] and bone_color(0, 1, joint_colors(tips)) == RIGHT
    image = np.full((480, 480, 3), 90, np.uint8)
    drawn = drawn_on(image, np.array([[10, 10], [30, 10], [50, 40]]), None, tips)
    assert tuple(drawn[40, 50]) == LEFT and tuple(drawn[10, 20]) == RIGHT and (drawn[25, 40] == 90).all()
    assert len(set(joint_colors(KeypointSchema.numbered(30)))) == 30


def test_bones_of_the_class():
    """A class without a skeleton has no bones, even if it has the joints of another one's."""
    image, joints = np.full((480, 480, 3), 90, np.uint8), np.array([[10, 10], [30, 10], [50, 40]])
    names, flips, sigmas = ("a", "b", "c"), (0, 1, 2), (0.1,) * 3
    own = KeypointSchema(names, flips, ((0, 1), (1, 2)), sigmas, skeleton_of_class=(((0, 1),), (), ((1, 2),)))
    for schema, bones in ((own, [(True, False), (False, False), (False, True)]),
                          (KeypointSchema(names, flips, ((0, 1), (1, 2)), sigmas), [(True, True)] * 3)):  # fmt: skip
        for cls, expected in enumerate(bones):
            drawn = drawn_on(image, joints, None, schema, cls)
            assert ((drawn[10, 20] != 90).any(), (drawn[25, 40] != 90).any()) == expected
            rows, of = np.array([[5, 5, 60, 60, 0.9, *joints.reshape(-1)]]), np.array([cls])
            opt = SimpleNamespace(keypoints=schema, class_names=["x", "y", "z"])
            visualizer = SimpleNamespace(opt=opt, canvas=Canvas)
            found = MultiPoseVisualizer.persons(visualizer, image, rows, of, 0.1, scores=False)
            assert ((found[10, 20] != 90).any(), (found[25, 40] != 90).any()) == expected


def test_joints_and_bones():
    image = np.full((400, 480, 3), 90, np.uint8)
    before = image.copy()
    joints = spread()
    drawn = drawn_on(image, joints.reshape(-1))
    assert np.array_equal(image, before)
    for a, b in SKELETON:
        x, y = ((joints[a] + joints[b]) / 2).astype(int)
        assert not np.array_equal(drawn[y, x], image[y, x]), (a, b)
    alone = drawn_on(image, joints, np.arange(17) == 9)
    changed = np.argwhere((alone != image).any(2))
    assert (alone[tuple(joints[9].astype(int)[::-1])] == LEFT).all()
    assert (np.abs(changed - joints[9][::-1]).max(0) <= 4).all()  # a disc of radius 3 and nothing else


@pytest.mark.parametrize("place", [(np.nan, 5), (np.inf, 5), (1e12, 5), (-1e12, -1e12), (-3, 40), (0, 0)])
def test_joints_that_are_nowhere(place):
    """They and their bones are left out; everything else is drawn."""
    image = np.full((400, 480, 3), 90, np.uint8)
    joints = spread()
    joints[9] = place
    drawn = drawn_on(image, joints)
    without = drawn_on(image, spread(), np.arange(17) != 9)
    rows = slice(None), slice(10, None)
    assert np.array_equal(drawn[rows], without[rows])


def test_joint_maps():
    maps = np.zeros((17, 8, 8))
    maps[5, 1, 1], maps[6, 5, 5], maps[0, 3, 6] = 1, 0.5, 1
    maps[7, 6, 1] = np.nan
    black = heat_map_image(maps, "black", (8, 8), np.array(JOINT_COLORS))
    assert black.shape == (8, 8, 3) and black.dtype == np.uint8
    assert black[1, 1].tolist() == list(LEFT) and black[5, 5].tolist() == [0, 0, 128] and black[6, 1].sum() == 0
    assert black[3, 6].tolist() == list(MIDDLE)
    ground = np.full((8, 8, 3), 100, np.uint8)
    white = blend(ground, heat_map_image(maps, "white", (8, 8), np.array(JOINT_COLORS)), "white")
    blue, empty = white[1, 1].astype(int), white[0, 7]
    assert (empty == round(0.3 * 100 + 0.7 * 255)).all() and blue[0] > blue[1] + 100 and blue[1] == blue[2]
    assert heat_map_image(maps, "black", (24, 16), np.array(JOINT_COLORS)).shape == (24, 16, 3)
