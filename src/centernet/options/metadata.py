"""Model metadata: what a checkpoint stores about its network and data, so that inference needs no further options."""

import os
from collections.abc import Callable
from typing import Any

from ..datasets import get_dataset
from ..errors import UserError
from ..models import describe
from ..ops.keypoints import COCO_PERSON, KeypointSchema
from ..tasks import all_specs, get_spec
from ..utils.text import printable
from .derive import as_pixel, check_sizes, data_dir, derive_heads, derive_sizes
from .table import GENERAL, Draft, Options


def _three_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(value, (int, float)) for value in values)


# The required entries and what they may be; files come from anywhere.
ENTRIES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("task", "arch"), lambda value: isinstance(value, str)),
    "heads": lambda heads: isinstance(heads, dict) and all(isinstance(count, int) for count in heads.values()),
    "head_conv": lambda value: isinstance(value, int) and value >= 0,
    "dataset": lambda value: isinstance(value, str),
    "class_names": lambda names: isinstance(names, list) and all(isinstance(name, str) for name in names),
    "category_ids": lambda ids: isinstance(ids, list) and all(isinstance(one, (int, str)) for one in ids),
    **dict.fromkeys(("input_h", "input_w"), lambda value: isinstance(value, int) and value >= 0),
    **dict.fromkeys(("mean", "std"), _three_numbers),
}


def model_metadata(opt: Options, image_info: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the metadata of a network and its data as plain values.

    ``image_info``: default metadata of the images (``default_image_info`` of their dataset).
    """
    names = [name for name in ENTRIES if name not in ("mean", "std")]
    metadata = {name: getattr(opt, name) for name in (*names, *data_options(), "mse_loss")}
    if get_spec(opt.task).has_keypoints:
        metadata["keypoints"] = opt.keypoints.as_dict()
    if opt.data_path:
        metadata["data_path"] = os.path.abspath(opt.data_dir)  # valid from any directory
    metadata.update(mean=opt.mean.reshape(-1).tolist(), std=opt.std.reshape(-1).tolist())
    metadata["picture_info"] = image_info or {}
    return metadata


def apply_model_metadata(opt: Options, metadata: dict[str, Any]) -> Options:
    """Return a copy of the options in which a checkpoint decides what was not given on the command line.

    Task, network, heads and classes belong to the weights: a given option can only agree. The input size may differ,
    and so may the dataset if it has the same classes. Mean and standard deviation are the checkpoint's.

    Raises:
        UserError: the command line and the metadata contradict each other, or the metadata is incomplete.
    """
    path, given = opt.load_model, set(opt.given)
    _check_entries(metadata, path)
    draft = Draft.of(opt)
    _take_network(draft, metadata, given, path)
    _take_data(draft, metadata, given, path)
    for name in ("input_h", "input_w"):
        if not given & {name, "input_res"}:
            setattr(draft, name, metadata[name])
    check_sizes(draft)
    derive_sizes(draft)
    if "mse_loss" not in given:  # it decides how joint heatmaps are decoded; older checkpoints do not store it
        draft.mse_loss = metadata.get("mse_loss", draft.mse_loss)
    _take_heads(draft, metadata["heads"], given, path)
    return draft.finished()


def data_options() -> list[str]:
    """Return the options that identify the data, which a checkpoint stores so that it can be tested without them."""
    own = [option for spec in all_specs().values() for option in spec.options]
    return [option.name for option in (*GENERAL.values(), *own) if option.data]


def _check_entries(metadata: dict[str, Any], path: str) -> None:
    missing = [name for name in ENTRIES if name not in metadata]
    if missing:
        raise UserError(f"{path}: its model metadata lacks {', '.join(missing)}")
    wrong = [name for name, is_valid in ENTRIES.items() if not is_valid(metadata[name])]
    if wrong:
        raise UserError(f"{path}: its model metadata has an invalid {', '.join(wrong)}")


def _take_network(opt: Draft, metadata: dict[str, Any], given: set[str], path: str) -> None:
    if opt.task != metadata["task"]:
        raise UserError(f"task {opt.task}: the network in {path} was trained for the task {metadata['task']}")
    for name in ("arch", "head_conv"):
        if name in given and getattr(opt, name) != metadata[name]:
            raise UserError(f"--{name} {getattr(opt, name)}: the network in {path} has {metadata[name]}; leave it out")
        setattr(opt, name, metadata[name])
    architecture, _ = describe(opt.arch)
    opt.pad, opt.num_stacks = architecture.pad, architecture.num_stacks


def _take_data(opt: Draft, metadata: dict[str, Any], given: set[str], path: str) -> None:
    known = [printable(name) for name in metadata["class_names"]]
    if "dataset" in given:
        # Custom data, which is read by class name, may have fewer classes, in any order.
        fits = opt.class_names == known if get_dataset(opt.dataset).class_names else set(opt.class_names) <= set(known)
        if not fits:
            raise UserError(
                f"--dataset {opt.dataset}: its classes are not those of the network in {path}, which was trained on "
                f"{metadata['dataset']}"
            )
    else:
        opt.dataset, opt.category_ids = metadata["dataset"], list(metadata["category_ids"])
        identifying = data_options()
        if given.isdisjoint(identifying):
            for name in identifying:
                setattr(opt, name, metadata.get(name, getattr(opt, name)))
            opt.data_dir = data_dir(opt)
    opt.class_names, opt.num_classes = known, len(known)
    try:  # checkpoints without keypoints are of COCO's persons
        opt.keypoints = KeypointSchema.from_dict(metadata["keypoints"]) if "keypoints" in metadata else COCO_PERSON
    except ValueError:
        raise UserError(f"{path}: its model metadata has an invalid keypoints") from None
    if any(len(own) not in (0, len(known)) for own in (opt.keypoints.of_class, opt.keypoints.skeleton_of_class)):
        raise UserError(f"{path}: its model metadata has an invalid keypoints")
    opt.mean, opt.std = as_pixel(metadata["mean"]), as_pixel(metadata["std"])
    opt.picture_info = {**metadata.get("picture_info", {}), **opt.picture_info}


def _take_heads(opt: Draft, heads: dict[str, int], given: set[str], path: str) -> None:
    spec = get_spec(opt.task)
    for name, value in spec.options_of_heads(heads).items():
        if name not in given:
            setattr(opt, name, value)
    derive_heads(opt)
    opt.heads = spec.head_channels(opt)
    if opt.heads != heads:
        raise UserError(f"head options do not match the checkpoint: expected {opt.heads}, but {path} has {heads}")
