"""Keypoint schemas: the joints of an object, their symmetry and their skeleton."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import UserError

MAX_JOINTS = 1000  # of files from anywhere
DEFAULT_SIGMA = 0.05  # of joints whose data state none: near the mean of COCO's, 0.066


@dataclass(frozen=True)
class KeypointSchema:
    """The joints that the objects of a dataset have.

    Classes may have different joints. The network then predicts the joints of all classes, those of the same name
    once, and every class uses its own.

    Attributes:
        names: joint names in the order of the network's channels.
        flip_index: joint that takes the place of each joint in a flipped image.
        skeleton: pairs of joints to connect in drawings, of all classes.
        sigmas: standard deviation of each joint relative to the object's size (object keypoint similarity, OKS).
        of_class: joints of each class, in the order of its annotations; empty: every class has all joints.
        flips_known: whether the data define ``flip_index``; otherwise it leaves every joint in place.
        skeleton_of_class: pairs of each class; empty: every class has those of ``skeleton`` whose joints it has.
    """

    names: tuple[str, ...]
    flip_index: tuple[int, ...]
    skeleton: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    of_class: tuple[tuple[int, ...], ...] = ()
    flips_known: bool = True
    skeleton_of_class: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def joints_of(self, cls: int) -> tuple[int, ...]:
        """Return the joints of a class (from 0)."""
        return self.of_class[cls] if self.of_class else tuple(range(len(self)))

    def bones_of(self, cls: int) -> tuple[tuple[int, int], ...]:
        """Return the pairs of joints to connect in drawings of a class (from 0)."""
        own = self.joints_of(cls)
        pairs = self.skeleton_of_class[cls] if self.skeleton_of_class else self.skeleton
        return tuple((a, b) for a, b in pairs if a in own and b in own)

    @property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs of joints that a flip exchanges, the lower index first."""
        return tuple((joint, other) for joint, other in enumerate(self.flip_index) if joint < other)

    def with_flip_pairs(self, pairs: Iterable[Sequence[int]]) -> "KeypointSchema":
        """Return the schema with other pairs of joints that a flip exchanges.

        Raises:
            UserError: a pair that does not name two joints, or joints in several pairs.
        """
        index = list(range(len(self)))
        listed = [[int(joint) for joint in pair] for pair in pairs]
        joints = [joint for pair in listed for joint in pair]
        if any(len(pair) != 2 for pair in listed) or len(set(joints)) != len(joints) or set(joints) - set(index):
            raise UserError(f"flip_idx {listed}: needs pairs of different joints from 0 to {len(self) - 1}")
        for joint, other in listed:
            index[joint], index[other] = other, joint
        return replace(self, flip_index=tuple(index), flips_known=True)

    @classmethod
    def numbered(cls, count: int) -> "KeypointSchema":
        """Return the schema of joints without names, which a flip leaves in place."""
        return cls(numbered_names(count), tuple(range(count)), (), (DEFAULT_SIGMA,) * count, flips_known=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the schema as plain values, for checkpoints and exported models."""
        return {name: _as_list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> "KeypointSchema":
        """Return the schema of ``as_dict``. Raises ValueError for values that are not one."""
        try:
            schema = cls(
                tuple(values["names"]),
                tuple(values["flip_index"]),
                tuple((a, b) for a, b in values["skeleton"]),
                tuple(float(sigma) for sigma in values["sigmas"]),
                tuple(tuple(joints) for joints in values.get("of_class", ())),
                bool(values.get("flips_known", True)),
                tuple(tuple((a, b) for a, b in pairs) for pairs in values.get("skeleton_of_class", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError("not a keypoint schema") from error
        pairs = (*schema.skeleton, *schema.of_class, *(pair for own in schema.skeleton_of_class for pair in own))
        joints = [*schema.flip_index, *(joint for pair in pairs for joint in pair)]
        count = len(schema)
        valid = (
            0 < count <= MAX_JOINTS
            and all(isinstance(name, str) for name in schema.names)
            and len(schema.flip_index) == len(schema.sigmas) == count
            and all(type(joint) is int and 0 <= joint < count for joint in joints)
            and all(schema.flip_index[other] == joint for joint, other in enumerate(schema.flip_index))
            and all(math.isfinite(sigma) and sigma > 0 for sigma in schema.sigmas)
        )
        if not valid:
            raise ValueError("not a keypoint schema")
        return schema


def numbered_names(count: int) -> tuple[str, ...]:
    """Return names for joints that have none."""
    return tuple(f"keypoint_{number}" for number in range(1, count + 1))


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, (tuple, list)) else value


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
