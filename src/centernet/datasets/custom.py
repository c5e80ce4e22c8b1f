"""Your own dataset: COCO-style JSON, VOC-style XML or YOLO-style labels, with any classes (``--dataset custom``)."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evaluation import coco as coco_evaluation
from ..evaluation import voc
from .annotations import Complain, name_problem, refuse
from .base import CocoStyleDataset
from .coco import COCO_MEAN, COCO_STD
from .custom_formats import Source, class_names, find_source, read_source
from .images import image_size

VOC_SCORES = ("mAP", "mAP_area")
STEP, LARGEST = 32, 512  # of the resolution that follows from the images
IMAGES_MEASURED = 500


class Custom(CocoStyleDataset):
    """Classes, their ids and the resolution come from the data.

    Categories are told apart by name, so that the files of two splits may number them differently. Ids of images and
    categories may be numbers or strings.
    """

    name = "custom"
    folder_names = ("custom",)
    mean, std = COCO_MEAN, COCO_STD
    score_names = (*coco_evaluation.BOX_SCORES, *VOC_SCORES)
    scored_fields = ("area", "iscrowd", "ignore")

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        return folder.is_dir()

    @classmethod
    def describe(cls, opt) -> dict:
        """Classes, resolution and number of objects of the training part, or of the other where there is none."""
        root = cls.locate(Path(opt.data_dir))
        sources, contents, problems = [], [], []
        for split in ("train", "val"):
            try:
                source = _source(opt, root, split)
                if source is not None and (not sources or source.style == "voc"):
                    contents.append(_read_leniently(source))
            except UserError as error:  # told when this part is used; the other one may do
                problems.append(error)
            else:
                sources += [] if source is None else [source]
        if problems and not sources:
            raise problems[0]
        if not sources:
            raise UserError(
                f"--data_path {root}: no annotations were found there: no JSON file with train or val in its name, no "
                f"Annotations/ folder, no images/train/ or train/; see docs/DATA.md, or use --train_annotations"
            )
        content = contents[0]
        names = class_names(sources[0], content)
        if [source.style for source in sources] == ["voc", "voc"]:
            # A class may happen to occur in one part only.
            names = list(dict.fromkeys([*names, *sorted(class_names(sources[1], contents[1]))]))
        category_of = {category["name"]: category["id"] for category in content["categories"]}
        counts = Counter(annotation["image_id"] for annotation in content["annotations"])
        # VOC-style data has only VOC's scores, all others have both.
        by_voc = any(source.style == "voc" for source in sources)
        return {
            "class_names": names,
            "category_ids": [category_of.get(name, name) for name in names],
            "mean": cls.mean,
            "std": cls.std,
            "default_resolution": _resolution(sources[0], content["images"]),
            "max_objs": max(counts.values(), default=1),
            "main_score": VOC_SCORES[0] if by_voc else coco_evaluation.BOX_SCORES[0],
        }

    def _find_files(self, opt, split: str) -> None:
        super()._find_files(opt, split)
        if self._find(split).style == "voc":
            self.score_names = VOC_SCORES

    def find_annotations(self, folder: Path, split: str) -> Path:
        return self._find(split).annotations

    def find_images(self, folder: Path, split: str) -> Path:
        return self._find(split).images

    def _find(self, split: str) -> Source:
        source = _source(self.opt, self.folder, split)
        if source is None:
            option = "train" if split == "train" else "val"
            raise UserError(
                f"--data_path {self.folder}: it has no annotations to {'train on' if split == 'train' else 'test on'}; "
                f"name them with --{option}_annotations" + ("" if split == "train" else ", or use --val_intervals 0")
            )
        return source

    def read_content(self, complain: Complain = refuse) -> dict:
        return read_source(self._find(self.split), complain)

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

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        """COCO's list of detections, with the ids of the data: VOC's are names of images and of classes."""
        path.write_text(json.dumps(self._to_results(results)))
        return path

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        """Scores of COCO and of VOC. The means are over the classes that have objects to be found.

        VOC-style data has only VOC's, since COCO's rules know no difficult objects.
        """
        content = self.filtered_annotations()
        names = {category: self.class_names[cls] for category, cls in self.classes_of(content).items()}
        truth = voc.ground_truth(content["annotations"], self.image_ids, names)
        occurring = {item["name"] for objects in truth for item in objects if not item["difficult"]}
        classes = [k for k, name in enumerate(self.class_names) if name in occurring]
        names = [self.class_names[k] for k in classes]
        found = voc.by_class(results, self.image_ids, len(self.class_names))
        by_voc = [
            voc.evaluate(truth, [found[k] for k in classes], names, use_07_metric=by_2007) for by_2007 in (True, False)
        ]
        scores = dict(zip(VOC_SCORES, (score["mean_ap"] for score in by_voc), strict=True))
        per_class = by_voc[0]["ap"]
        if self._find(self.split).style != "voc":
            by_coco = coco_evaluation.evaluate_content(content, self._to_results(results))
            scores = {**{name: by_coco[name] for name in coco_evaluation.BOX_SCORES}, **scores}
            per_class = {name: by_coco["per_class"][name] for name in names}
        return {**scores, **{f"AP/{name}": value for name, value in per_class.items()}}

    def _to_results(self, results: dict[int | str, dict[int, np.ndarray]]) -> list[dict]:
        return coco_evaluation.to_results(results, self.category_ids, self.rounded_results)


def _read_leniently(source: Source) -> dict:
    """Without what cannot be read; that is told when the part is used."""
    return read_source(source, complain=lambda _: None)


def _source(opt, root: Path, split: str) -> Source | None:
    """Where a split is, by the options or by looking; a part that nobody named has the style of the training part."""
    option = "train" if split == "train" else "val"
    annotations, images = getattr(opt, f"{option}_annotations"), getattr(opt, f"{option}_images")
    style = None
    if split != "train" and not annotations:
        with contextlib.suppress(UserError):
            training = _source(opt, root, "train")
            style = training.style if training else None
    return find_source(root, split, annotations, images, style)


def _resolution(source: Source, images: list[dict]) -> tuple[int, int]:
    """Height and width of the input for these images: their median longer side, in steps of 32, at most 512."""
    sides = []
    for image in images[:: max(1, len(images) // IMAGES_MEASURED)]:
        try:
            sides.append(max(int(image["width"]), int(image["height"])))
        except (KeyError, TypeError, ValueError):
            try:
                if name_problem(image.get("file_name")) is None:
                    sides.append(max(image_size(source.images / image["file_name"])))
            except UserError:
                continue
    side = int(np.median(sides)) if sides else LARGEST
    side = min(LARGEST, max(2 * STEP, -(-side // STEP) * STEP))
    return side, side
