"""Your own dataset, in the styles of COCO, VOC, YOLO, LabelMe or CVAT, with any classes (``--dataset custom``)."""

import contextlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from ..conversion.coco_file import name_problem
from ..conversion.finding import find_layout
from ..conversion.issues import ERROR, NOTE, Issue, Report, raise_error, short
from ..conversion.keypoints import (
    Joints,
    complete_keypoints,
    describe_schema,
    merge_joints,
    read_joints,
    with_numbered_joints,
)
from ..conversion.layout import Layout, option_of, remedy
from ..errors import UserError
from ..evaluation import coco as coco_evaluation
from ..evaluation import voc
from ..ops.keypoints import KeypointSchema
from ..policies import policy_of
from ..tasks import get_spec
from ..utils import files
from ..utils.images import image_size
from ..utils.text import printable
from .annotations import Annotations
from .base import CocoStyleDataset, DatasetTask
from .coco import COCO_MEAN, COCO_STD
from .coco_hp import COCOHP, joints_of_classes, score_keypoints

VOC_SCORES = ("mAP", "mAP_area")
STEP, MAX_SIDE = 32, 512  # of the input resolution that follows from the images
MAX_MEASURED = 500


class Custom(CocoStyleDataset):
    """Classes, their ids and the resolution come from the data.

    Categories are matched by name, so that the files of two splits may number them differently. Ids of images and
    categories may be numbers or strings. Joints of objects (``multi_pose``) are matched by name, too.
    """

    name = "custom"
    folder_names = ("custom",)
    tasks = ("ctdet", "multi_pose")
    mean: tuple[float, ...] = COCO_MEAN
    std: tuple[float, ...] = COCO_STD
    score_names: tuple[str, ...] = (*coco_evaluation.BOX_SCORES, *VOC_SCORES)
    scored_fields = ("area", "iscrowd", "ignore")

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        return folder.is_dir()

    @classmethod
    def describe(cls, opt: Namespace) -> dict:
        """Return classes, resolution and number of objects of the training split, or of the other without one."""
        root = cls.locate(Path(opt.data_dir))
        layouts: list = []
        contents, problems = [], []
        issues: list[Issue] = []
        for split in ("train", "val"):
            try:
                layout = _find(opt, root, split)
                if layout is not None and (not layouts or layout.names_from_objects):
                    contents.append(layout.read_checked(issues.append))  # issues are reported when the split is used
            except UserError as error:  # reported when this split is used; the other one may do
                problems.append(error)
            else:
                layouts += [] if layout is None else [layout]
        if problems and not layouts:
            raise problems[0]
        if not layouts:
            raise UserError(
                f"--data_path {root}: no annotations found: no JSON file with train or val in its name, no "
                f"Annotations/ folder, no images/train/ or train/; see docs/DATA.md, or use --train_annotations"
            )
        layout, content = layouts[0], contents[0]
        names = [printable(name) for name in layout.class_names(content)]
        if len(contents) == 2 and layout.names_from_objects:
            # A class may happen to occur in one split only.
            names = list(dict.fromkeys([*names, *sorted(map(printable, layouts[1].class_names(contents[1])))]))
        if not names:
            reason = next((issue.line for issue in issues if issue.severity == ERROR), None)
            raise UserError(f"{layout.annotations}: no classes found" + (f"; {reason}" if reason else ""))
        category_of = {printable(category["name"]): category["id"] for category in content["categories"]}
        counts = Counter(annotation["image_id"] for annotation in content["annotations"])
        # VOC-style data has only VOC's scores, all others have both.
        by_voc = any(layout.style == "voc" for layout in layouts)
        has_keypoints = get_spec(opt.task).has_keypoints
        return {
            **({"keypoints": read_schema(layout, content, names)} if has_keypoints else {}),
            "class_names": names,
            "category_ids": [category_of.get(name, name) for name in names],
            "mean": cls.mean,
            "std": cls.std,
            "default_resolution": _resolution(layout, content["images"]),
            # A composed image must not have objects without a target.
            "max_objs": max(counts.values(), default=1) * policy_of(opt).max_images,
            "main_score": VOC_SCORES[0] if by_voc and not has_keypoints else coco_evaluation.BOX_SCORES[0],
        }

    def __init__(self, task: DatasetTask | Namespace, split: str) -> None:
        super().__init__(task, split)
        if split == "train" and (text := self._classes_without_objects()):
            self.notes.append(f"note: {self.annotation_file}: {text}")
        if self.task.has_keypoints and split == "train":
            if not (self.objects["joints"][:, :, 2] > 0).any():
                raise UserError(f"{self.annotation_file}: no keypoint is labeled, so there is nothing to learn")
            unflipped = "" if self.opt.keypoints.flips_known or self.opt.flip else ", so images are not flipped"
            self.notes.append(f"note: {self.annotation_file}: {describe_schema(self.opt.keypoints)}{unflipped}")

    def _classes_without_objects(self) -> str:
        """Return a text that names the classes without an object, and others whose names differ in case only."""
        counts = np.bincount(self.objects["cls"].ravel(), minlength=len(self.class_names))
        names = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if not names:
            return ""
        known = {name.casefold(): name for name in self.class_names if name not in names}
        shown = [
            f"{name} (other objects are named {known[name.casefold()]})" if name.casefold() in known else name
            for name in names[:5]
        ]
        more = f", ... {len(names)} in all" if len(names) > 5 else ""
        return f"classes without an object to learn from: {', '.join(shown)}{more}"

    @cached_property
    def layout(self) -> Layout:
        """Return the layout that locates and reads this split."""
        layout = _find(self.opt, self.folder, self.split)
        if layout is None:
            purpose = "train" if self.split == "train" else "test"
            raise UserError(
                f"--data_path {self.folder}: it has no annotations to {purpose} on; specify them with "
                f"{remedy(self.split)}"
            )
        return layout

    def _find_files(self, task, split: str) -> None:
        super()._find_files(task, split)
        if task.has_keypoints:
            self.score_names, self.scored_fields = COCOHP.score_names, COCOHP.scored_fields
        elif self.layout.style == "voc":
            self.score_names = VOC_SCORES

    def find_annotations(self, folder: Path, split: str) -> Path:
        return self.layout.annotations

    def find_images(self, folder: Path, split: str) -> Path:
        return self.layout.images

    def read_content(self, report: Report = raise_error) -> dict:
        content = self.layout.read_checked(report)
        self.image_folder = self.layout.images  # images of several folders need a common one
        # Names are printed, logged and drawn, so control characters in them are escaped.
        content = {**content, "categories": [{**one, "name": printable(one["name"])} for one in content["categories"]]}
        return complete_keypoints(self.annotation_file, content, report) if self.task.has_keypoints else content

    def classes_of(self, content: dict) -> dict[int | str, int]:
        known = {name: k for k, name in enumerate(self.class_names)}
        used = {annotation.get("category_id") for annotation in content["annotations"]}
        class_of, self.category_ids = {}, list(self.class_names)
        for category in content["categories"]:
            name = category["name"]
            if name in known:
                class_of[category["id"]] = known[name]
                self.category_ids[known[name]] = category["id"]
            elif category["id"] in used:
                raise UserError(
                    f"{self.annotation_file}: has objects of the class {name}, which is not one of the {len(known)} "
                    f"known ones ({', '.join(self.class_names[:10])}{', ...' if len(known) > 10 else ''})"
                )
        return class_of

    def validate(self, content: dict, report: Report) -> Annotations:
        usable = super().validate(content, report)
        if self.split == "val" and (text := self._nothing_to_score(usable.annotations)):
            report(Issue(NOTE, "validation data that cannot be scored", self.annotation_file, text))
        if self.split == "train":
            spellings: dict[str, list[str]] = {}
            for cls in np.unique(usable.objects["cls"]).tolist():
                spellings.setdefault(self.class_names[cls].casefold(), []).append(self.class_names[cls])
            for names in spellings.values():
                if len(names) > 1:
                    text = f"{' and '.join(names)} are different classes"
                    report(Issue(NOTE, "classes whose names differ in case only", self.annotation_file, text))
        return usable

    def _nothing_to_score(self, annotations: list[dict]) -> str:
        """Return why the objects of validation data have no main score; empty if they have one."""
        flag = "iscrowd" if self.task.has_keypoints or self.layout.style != "voc" else "ignore"
        for annotation in annotations:
            if not annotation.get(flag) and (not self.task.has_keypoints or annotation.get("num_keypoints")):
                return ""
        flags = {"iscrowd": "iscrowd is set", "ignore": "difficult is set"}[flag]
        reason = f"{flags} or no keypoint is labeled" if self.task.has_keypoints else flags
        count = len(annotations)
        return f"none of its {count} objects counts in scoring ({reason}), so there will be no score" if count else ""

    def reader(self, content: dict) -> Callable[[list[dict]], dict[str, np.ndarray]]:
        read = super().reader(content)
        if not self.task.has_keypoints:
            return read
        joints_of = self.joints_of_categories(content)
        return lambda annotations: read(self._with_all_joints(annotations, joints_of))

    def _with_all_joints(self, annotations: list[dict], joints_of: dict[int | str, tuple[int, ...]]) -> list[dict]:
        """Return annotations with the joints of the network; joints that a class does not have are not labeled.

        ``joints_of``: the network's joints of each category.

        Raises:
            ValueError: an annotation with another number of values than its category has joints.
        """
        count = len(self.opt.keypoints)
        completed = []
        for annotation in annotations:
            joints, points = joints_of[annotation["category_id"]], annotation["keypoints"]
            if not isinstance(points, list) or len(points) != 3 * len(joints):
                raise ValueError(
                    f"its keypoints are not {3 * len(joints)} numbers, x, y, visibility of {len(joints)} joints: "
                    f"{short(points)}"
                )
            if joints != tuple(range(count)):
                every = [0] * (3 * count)
                for k, joint in enumerate(joints):
                    every[3 * joint : 3 * joint + 3] = points[3 * k : 3 * k + 3]
                annotation = {**annotation, "keypoints": every}
            completed.append(annotation)
        return completed

    def joints_of_categories(self, content: dict) -> dict[int | str, tuple[int, ...]]:
        """Return the network's joints of each category of ``content``, in the order of its annotations.

        Joints are matched by name, those without names by position.

        Raises:
            UserError: a category has a joint that the network does not have.
        """
        keypoints, joints_of = self.opt.keypoints, {}
        self.joints_of_classes = [keypoints.joints_of(cls) for cls in range(len(self.class_names))]
        place = {name: k for k, name in enumerate(keypoints.names)}
        for category in content["categories"]:
            if category["name"] not in self.class_names:
                continue
            cls = self.class_names.index(category["name"])
            known = self.joints_of_classes[cls]
            own = read_joints(self.annotation_file, category)
            if own.are_numbered and len(own.names) == len(known):
                joints_of[category["id"]] = known
                continue
            unknown = [name for name in own.names if place.get(name) not in known]
            if unknown:
                raise UserError(
                    f"{self.annotation_file}: the category {category['name']} has the joint {unknown[0]}, which is not "
                    f"one of the {len(known)} joints of this class ({', '.join(keypoints.names[k] for k in known)})"
                )
            joints_of[category["id"]] = self.joints_of_classes[cls] = tuple(place[name] for name in own.names)
        return joints_of

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        """Write COCO's list of detections, with the ids of the data: VOC's are names of images and of classes."""
        files.write_json(path, self._to_results(results), allow_nan=False)
        return path

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        """Return the scores of COCO and of VOC; their means are over the classes that have objects.

        VOC-style data has only VOC's, since COCO's rules know no difficult objects. Poses have those of ``coco_hp``.
        """
        content = self.filtered_annotations()
        if self.task.has_keypoints:
            return self._evaluate_poses(content, results)
        names = {category: self.class_names[cls] for category, cls in self.classes_of(content).items()}
        truth = voc.ground_truth(content["annotations"], self.image_ids, names)
        occurring = {item["name"] for objects in truth for item in objects if not item["difficult"]}
        classes = [k for k, name in enumerate(self.class_names) if name in occurring]
        present = [self.class_names[k] for k in classes]
        found = voc.by_class(results, self.image_ids, len(self.class_names))
        by_voc = [
            voc.evaluate(truth, [found[k] for k in classes], present, use_07_metric=by_2007)
            for by_2007 in (True, False)
        ]
        scores = dict(zip(VOC_SCORES, (score["mean_ap"] for score in by_voc), strict=True))
        per_class = by_voc[0]["ap"]
        if self.layout.style != "voc":
            content = self._with_absent_classes(content)
            by_coco = coco_evaluation.evaluate_content(content, self._to_results(results))
            self.tables = by_coco["summary"]
            scores = {**{name: by_coco[name] for name in coco_evaluation.BOX_SCORES}, **scores}
            per_class = {name: by_coco["per_class"][name] for name in present}
        return {**scores, **{f"AP/{name}": value for name, value in per_class.items()}}

    def _with_absent_classes(self, content: dict) -> dict:
        """Return ``content`` with the classes that this part of the data does not have: they can be detected, too."""
        known = {category["id"] for category in content["categories"]}
        absent = [{"id": one, "name": one} for one in self.category_ids if one not in known]
        return {**content, "categories": [*content["categories"], *absent]}

    def _evaluate_poses(self, content: dict, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        """Return the scores of joints and boxes; classes without joints have scores of boxes only."""
        sigmas = {
            category: [self.opt.keypoints.sigmas[joint] for joint in joints]
            for category, joints in self.joints_of_categories(content).items()
            if joints
        }
        occurring = {annotation["category_id"] for annotation in content["annotations"]}
        names = {f"AP/{one['name']}" for one in content["categories"] if one["id"] in occurring & sigmas.keys()}
        content = self._with_absent_classes(content)
        scores, self.tables = score_keypoints(content, self._to_results(results), sigmas)
        return {name: value for name, value in scores.items() if "/" not in name or name in names}

    def analyze(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict:
        """For poses also return ``joints``, see ``coco_hp.joints_of_classes``."""
        explanation = super().analyze(results)
        if not self.task.has_keypoints:
            return explanation
        content, keypoints = self.filtered_annotations(), self.opt.keypoints
        names = {category["id"]: category["name"] for category in content["categories"]}
        classes = [
            (category, names[category], [keypoints.names[k] for k in joints], [keypoints.sigmas[k] for k in joints])
            for category, joints in self.joints_of_categories(content).items()
            if joints
        ]
        return {**explanation, "joints": joints_of_classes(content, self._to_results(results), classes)}

    def _to_results(self, results: dict[int | str, dict[int, np.ndarray]]) -> list[dict]:
        if self.task.has_keypoints:
            return coco_evaluation.to_keypoint_results(
                results, self.rounded_results, self.category_ids, self.joints_of_classes
            )
        return coco_evaluation.to_results(results, self.category_ids, self.rounded_results)


def read_schema(layout: Layout, content: dict, class_names: list[str]) -> KeypointSchema:
    """Return the joints of a dataset.

    Raises:
        UserError: no class has joints, or what is stated about them contradicts itself.
    """
    joints = dict.fromkeys(class_names, Joints((), (), (), None))
    for category in with_numbered_joints(content):
        joints[printable(category["name"])] = read_joints(layout.annotations, category)
    schema = merge_joints(layout.annotations, list(joints.values()), class_names)
    if not len(schema):
        raise UserError(
            f"{layout.annotations}: no keypoints, which multi_pose learns from: needs COCO-style categories with "
            f"'keypoints', or YOLO-style labels with kpt_shape in data.yaml; see docs/DATA.md, or use the task ctdet"
        )
    return schema


def _find(opt: Namespace, root: Path, split: str) -> Layout | None:
    """Return the layout of a split, given by options or detected (in the training split's style)."""
    option = option_of(split)
    annotations, images = getattr(opt, f"{option}_annotations"), getattr(opt, f"{option}_images")
    style = None
    if split != "train" and not annotations:
        with contextlib.suppress(UserError):
            training = _find(opt, root, "train")
            style = training.style if training else None
    return find_layout(root, split, annotations, images, style, get_spec(opt.task).has_keypoints)


def _resolution(layout: Layout, images: list[dict]) -> tuple[int, int]:
    """Return height and width of the input: the median longer side of the images in steps of 32, at most 512."""
    sides = []
    for image in images[:: max(1, len(images) // MAX_MEASURED)]:
        try:
            sides.append(max(int(image["width"]), int(image["height"])))
        except (KeyError, TypeError, ValueError, OverflowError):
            try:
                if name_problem(image.get("file_name")) is None:
                    sides.append(max(image_size(layout.images / image["file_name"])))
            except UserError:
                continue
    side = int(np.median(sides)) if sides else MAX_SIDE
    side = min(MAX_SIDE, max(2 * STEP, -(-side // STEP) * STEP))
    return side, side
