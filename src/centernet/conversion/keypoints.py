"""Keypoints of any object: read what categories in COCO's form state about their joints.

Fields of a category: ``keypoints``, the names; ``skeleton``, pairs of joints counted from 1, as COCO defines both;
and optionally ``flip_idx``, the joint that takes the place of each one in a flipped image, counted from 0 (as in
YOLO's data.yaml), or ``flip_pairs``, pairs of names or of joints counted from 0; and ``sigmas`` for OKS. A category
that comes from data.yaml also has its ``kpt_shape``, and its skeleton counts from 0.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..ops.keypoints import (
    COCO_PERSON,
    DEFAULT_SIGMA,
    FLIP_INDEX,
    JOINT_NAMES,
    MAX_JOINTS,
    SKELETON,
    KeypointSchema,
    numbered_names,
)
from ..utils.text import printable
from .issues import NOTE, Issue, Report, short

JOINT_FIELDS = ("skeleton", "flip_idx", "flip_pairs", "sigmas")
SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class Joints:
    """The joints of one category.

    Attributes:
        names: in the order of the annotations.
        flip_index: joint that takes the place of each joint in a flipped image; None: not known.
        skeleton: pairs of joints, counted from 0.
        sigmas: for OKS; None: not stated.
    """

    names: tuple[str, ...]
    flip_index: tuple[int, ...] | None
    skeleton: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...] | None

    @property
    def are_numbered(self) -> bool:
        """Return whether the joints are unnamed, so that they are identified by their position only."""
        return self.names == numbered_names(len(self.names))


def with_numbered_joints(content: Mapping[str, Any]) -> list[dict]:
    """Return the categories of ``content``; those without names of joints get as many as their annotations have."""
    counts: dict[Any, int] = {}
    for annotation in content["annotations"]:
        points = annotation.get("keypoints")
        if isinstance(points, list) and points:
            category = annotation.get("category_id")
            counts[category] = max(counts.get(category, 0), len(points) // 3)
    return [
        one if one.get("keypoints") else {**one, "keypoints": list(numbered_names(counts.get(one["id"], 0)))}
        for one in content["categories"]
    ]


def complete_keypoints(path: Path, content: dict, report: Report) -> dict:
    """Return ``content`` with names of joints in all categories, and ``keypoints`` in all annotations.

    Objects without ``keypoints`` are reported, and get as many joints as their category has, none of them labeled.
    ``num_keypoints``, which scoring needs, is counted.
    """
    categories = with_numbered_joints(content)
    counts = {category["id"]: len(_list(category["keypoints"])) for category in categories}
    annotations = []
    for number, annotation in enumerate(content["annotations"], start=1):
        points = annotation.get("keypoints")
        if points is None or points == []:
            count = counts.get(annotation["category_id"], 0)
            if count:
                report(
                    Issue(NOTE, "objects without keypoints", path, f"annotation {short(annotation.get('id', number))}")
                )
            points = [0] * (3 * count)
        labeled = sum(isinstance(v, (int, float)) and v > 0 for v in points[2::3]) if isinstance(points, list) else 0
        annotations.append({**annotation, "keypoints": points, "num_keypoints": labeled})
    return {**content, "categories": categories, "annotations": annotations}


def read_joints(path: Path, category: Mapping[str, Any]) -> Joints:
    """Return the joints of a category in COCO's form, none if it lists none.

    Seventeen joints with COCO's names, or without names and with the flips of COCO, are those of a person.

    Raises:
        UserError: a field that contradicts the others; the message names file, category and field.
    """

    def refuse(field: str, text: str) -> UserError:
        return UserError(f"{path}: the {field} of the category {printable(str(category['name']))} {text}")

    listed = category.get("keypoints") or []
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) and name for name in listed):
        raise refuse("keypoints", f"are not a list of names: {short(listed)}")
    names = tuple(printable(name) for name in listed)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise refuse("keypoints", f"list {twice[0]} more than once")
    count, shape = len(names), category.get("kpt_shape")
    shape = shape if isinstance(shape, tuple) else None  # of data.yaml; a JSON value of this name is not a tuple
    if shape is not None and count != shape[0]:
        raise refuse("kpt_names", f"are {count} names, but kpt_shape is {list(shape)}")
    first, skeleton = 1 if shape is None else 0, []
    for pair in _list(category.get("skeleton")):
        ends = [_whole(joint) for joint in _list(pair)]
        if len(ends) != 2 or not all(joint is not None and first <= joint < first + count for joint in ends):
            last = first + count - 1
            raise refuse("skeleton", f"has {short(pair)}, which is not a pair of joints from {first} to {last}")
        skeleton.append((ends[0] - first, ends[1] - first))
    sigmas = None
    if category.get("sigmas"):
        values = [_number(value) for value in _list(category["sigmas"])]
        if len(values) != count or not all(value is not None and value > 0 for value in values):
            raise refuse("sigmas", f"are not {count} numbers above 0: {short(category['sigmas'])}")
        sigmas = tuple(values)
    field = next((name for name in ("flip_idx", "flip_pairs") if category.get(name)), None)
    if field is None:
        flip_index = None if are_numbers(names) else flips_by_name(names)
    else:
        try:
            flip_index = read_flips(category[field], names)
        except ValueError as error:
            raise refuse(field, str(error)) from None
    joints = Joints(names, flip_index, tuple(skeleton), sigmas)
    if joints.are_numbered and flip_index == FLIP_INDEX:
        joints = Joints(JOINT_NAMES, FLIP_INDEX, joints.skeleton, sigmas)
    if joints.names == JOINT_NAMES:
        joints = Joints(JOINT_NAMES, joints.flip_index, joints.skeleton or SKELETON, sigmas or COCO_PERSON.sigmas)
    return joints


def read_flips(value: Any, names: Sequence[str]) -> tuple[int, ...]:
    """Return the joint that takes the place of each joint in a flipped image.

    ``value``: a list with the joint for each joint, or a list of pairs of names or of joints; joints count from 0.

    Raises:
        ValueError: it is not that, or flipping twice does not give every joint its place back.
    """
    count, entries = len(names), _list(value)
    is_pairs = any(isinstance(entry, (list, tuple)) for entry in entries)
    place = {name: k for k, name in enumerate(names)}

    def joint(entry: Any) -> int:
        number = place.get(entry) if isinstance(entry, str) else None
        number = _whole(entry) if number is None else number
        if number is None or not 0 <= number < count:
            raise ValueError(f"have {short(entry)}, which is not a joint from 0 to {count - 1}")
        return number

    if is_pairs:
        index = list(range(count))
        for entry in entries:
            pair = _list(entry)
            if len(pair) != 2:
                raise ValueError(f"have {short(entry)}, which is not a pair of joints")
            one, other = joint(pair[0]), joint(pair[1])
            if one == other or index[one] not in (one, other) or index[other] not in (one, other):
                raise ValueError(f"have {names[one]} or {names[other]} in two pairs")
            index[one], index[other] = other, one
        return tuple(index)
    if len(entries) != count:
        raise ValueError(f"has {len(entries)} entries, there are {count} joints")
    index = [joint(entry) for entry in entries]
    for one, other in enumerate(index):
        if index[other] != one:
            raise ValueError(f"is not symmetric: joint {one} becomes {other}, but joint {other} becomes {index[other]}")
    return tuple(index)


def flips_by_name(names: Sequence[str]) -> tuple[int, ...]:
    """Return the joint that takes the place of each joint in a flipped image, by the names of the joints.

    ``left_eye`` and ``right_eye``, ``EyeLeft`` and ``EyeRight``, ``l_eye`` and ``r_eye``, ``lEye`` and ``rEye``
    exchange their places; all other joints keep theirs.
    """
    place = {name: k for k, name in enumerate(names)}
    index = []
    for k, name in enumerate(names):
        other = place.get(_mirrored(name), k)
        index.append(other if _mirrored(names[other]) == name else k)
    return tuple(index)


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether names only number the joints: ``1``, ``2``, as CVAT names them, or ``point-0``, ``point-1``."""
    stems = {re.sub(r"\d+", "", name) for name in names}
    return len(names) > 1 and len(stems) == 1 and stems.isdisjoint(names)


def _mirrored(name: str) -> str:
    """Return a joint's name with left and right exchanged."""
    words = re.sub(r"left|right", lambda found: _other_side(found[0]), name, flags=re.IGNORECASE)
    if words != name:
        return words
    # L and R as words of their own, or in front of a capital letter.
    return re.sub(
        r"(?<![A-Za-z0-9])[LRlr](?![A-Za-z0-9])|^[LRlr](?=[A-Z][a-z])", lambda found: _other_side(found[0]), name
    )


def _other_side(word: str) -> str:
    other = SIDES[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def merge_joints(path: Path, joints: Sequence[Joints], class_names: Sequence[str]) -> KeypointSchema:
    """Return the schema of a dataset from the joints of each class; those of the same name are one joint.

    Raises:
        UserError: classes contradict each other about a joint, or a flip exchanges a joint of one class for one that
            it does not have.
    """
    names = tuple(dict.fromkeys(name for one in joints for name in one.names))
    if len(names) > MAX_JOINTS:
        raise UserError(f"{path}: {len(names)} joints, more than the {MAX_JOINTS} that a network can have")
    place = {name: k for k, name in enumerate(names)}
    of_class = tuple(tuple(place[name] for name in one.names) for one in joints)
    flips: dict[int, tuple[int, str]] = {}
    sigmas: dict[int, tuple[float, str]] = {}
    for one, own, class_name in zip(joints, of_class, class_names, strict=True):
        flip_index = one.flip_index or range(len(own))
        stated: list[tuple[str, dict, list]] = [("flip_idx", flips, [own[k] for k in flip_index])]
        stated += [("sigmas", sigmas, list(one.sigmas))] if one.sigmas is not None else []
        for field, known, values in stated:
            for joint, value in zip(own, values, strict=True):
                before = known.setdefault(joint, (value, class_name))
                if before[0] != value:
                    raise UserError(
                        f"{path}: the {field} of the classes {before[1]} and {class_name} differ for the joint "
                        f"{names[joint]}; name it differently or state the same"
                    )
    every = tuple(range(len(names)))
    bones = tuple(
        tuple(dict.fromkeys((own[a], own[b]) for a, b in one.skeleton))
        for one, own in zip(joints, of_class, strict=True)
    )
    schema = KeypointSchema(
        names,
        tuple(flips[joint][0] for joint in every),
        tuple(dict.fromkeys(pair for own in bones for pair in own)),
        tuple(sigmas[joint][0] if joint in sigmas else DEFAULT_SIGMA for joint in every),
        () if all(own == every for own in of_class) else of_class,
        all(one.flip_index is not None for one in joints if one.names),
    )
    shared = all({*schema.bones_of(cls)} == {*own} for cls, own in enumerate(bones))
    return schema if shared else replace(schema, skeleton_of_class=bones)


def describe_schema(schema: KeypointSchema) -> str:
    """Return number and names of the joints, and which a flip exchanges, in one line."""
    text = f"{len(schema)} joints ({_some(schema.names)})"
    if not schema.flips_known:
        return f"{text}; the data do not state which of them a flip exchanges (flip_idx)"
    pairs = [f"{schema.names[one]} and {schema.names[other]}" for one, other in schema.flip_pairs]
    return f"{text}; a flip exchanges {_some(pairs) or 'none of them'}"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:8]) + (f", ... {len(texts)} in all" if len(texts) > 8 else "")


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _whole(value: Any) -> Any:
    """Return an integer, also one that is written as a string; None for anything else."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> Any:
    """Return a finite number, also one that is written as a string; None for anything else."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None
