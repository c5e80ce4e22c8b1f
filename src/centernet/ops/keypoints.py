"""Keypoint schemas: the joints of an object, their symmetry and their skeleton."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KeypointSchema:
    """The joints that the objects of a dataset have.

    Attributes:
        names: joint names in the order of the annotations.
        flip_index: joint that takes the place of each joint in a flipped image.
        skeleton: pairs of joints to connect in drawings.
        sigmas: standard deviation of each joint relative to the object's size (object keypoint similarity, OKS).
    """

    names: tuple[str, ...]
    flip_index: tuple[int, ...]
    skeleton: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of joints that a flip exchanges, the lower index first."""
        return tuple((joint, other) for joint, other in enumerate(self.flip_index) if joint < other)


# The 17 joints of a person in the order of COCO.
JOINT_NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)
NUM_JOINTS = len(JOINT_NAMES)
FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
FLIP_INDEX = (0, *(joint for left, right in FLIP_PAIRS for joint in (right, left)))
SKELETON = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (4, 6), (3, 5), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (6, 12), (5, 11)),
    *((11, 12), (12, 14), (14, 16), (11, 13), (13, 15)),
)
SIGMAS = tuple(
    sigma / 100 for sigma in (2.6, 2.5, 2.5, 3.5, 3.5, 7.9, 7.9, 7.2, 7.2, 6.2, 6.2, 10.7, 10.7, 8.7, 8.7, 8.9, 8.9)
)
COCO_PERSON = KeypointSchema(JOINT_NAMES, FLIP_INDEX, SKELETON, SIGMAS)
