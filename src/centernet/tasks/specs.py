"""Options and heads of each task, which the command line needs. Importing this module does not import PyTorch."""

from argparse import Namespace
from typing import Any, ClassVar

from ..errors import UserError
from ..evaluation.kitti_text import read_camera
from ..policies import POLICIES
from .option import ALL, CHECK, DEMO, TRAIN, Option, loss_weight, oracle


class TaskSpec:
    """Options and heads of a task.

    Attributes:
        name: of the command line.
        default_dataset: ``--dataset`` when it is not given.
        options: the task's own options.
        defaults: values of general options that differ from the general default when they are not given.
        conflicts: pairs of options that exclude each other.
        ignored_options: general options (``options/table.py``) that have no effect on this task.
        annotations: task whose annotations it reads; empty: its own.
        has_keypoints: whether the objects have joints, ``keypoints`` of the options.
    """

    name: ClassVar[str]
    default_dataset: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    defaults: ClassVar[dict[str, Any]] = {}
    conflicts: ClassVar[tuple[tuple[str, str], ...]] = ()
    ignored_options: ClassVar[tuple[str, ...]] = ()
    annotations: ClassVar[str] = ""
    has_keypoints: ClassVar[bool] = False

    @staticmethod
    def check(opt: Namespace) -> None:
        """Raise UserError where options of the task contradict each other."""

    @staticmethod
    def derive(opt: Namespace) -> None:
        """Set in the options being derived what follows from the task's own ones. Called for every task."""

    @staticmethod
    def notes(opt: Namespace, script: str) -> list[str]:
        """Return what users of a program should know about its options."""
        return []

    @staticmethod
    def head_channels(opt: Namespace) -> dict[str, int]:
        """Return head name to channels, in the order of the reference."""
        raise NotImplementedError

    @staticmethod
    def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
        """Return the options that produce the heads of a checkpoint."""
        return {}


# General options that only tasks with the heads ``wh`` and ``reg`` of detection have.
BOX_LOSS = ("box_loss", "box_samples", "box_weight")
# Options of ctdet that an IoU loss excludes.
NOT_WITH_IOU = ("norm_wh", "dense_wh", "cat_spec_wh", "not_reg_offset", "eval_oracle_wh", "eval_oracle_offset")


def check_box_loss(opt: Namespace, others: tuple[str, ...]) -> None:
    """Raise UserError where options of the box loss contradict each other, or one of ``others``, which it replaces."""
    if opt.box_loss == "l1":
        if opt.box_samples != "center":
            raise UserError(f"--box_samples {opt.box_samples}: needs --box_loss giou, diou or ciou")
        return
    for name in others:
        if getattr(opt, name):
            raise UserError(f"--box_loss {opt.box_loss} and --{name} exclude each other")


class CtdetSpec(TaskSpec):
    """Objects as points: ``hm`` one heatmap per class, ``wh`` size in output pixels, ``reg`` sub-pixel offset."""

    name = "ctdet"
    default_dataset = "coco"
    options = (
        Option("norm_wh", "size loss relative to the object size", recipe=True, scripts=(TRAIN,)),
        Option("dense_wh", "regress the size within the object's whole Gaussian", recipe=True, scripts=(TRAIN,)),
        Option("cat_spec_wh", "class-specific size", recipe=True),
        Option(
            "exact_boxes",
            "clip boxes at the edge of the output map and flip them exactly; the reference is off by one pixel",
            recipe=True,
            implied=True,
            new=True,
            scripts=(TRAIN, CHECK),
        ),
        Option(
            "augment",
            "before the crop: reference (nothing) | light (mosaic) | strong (also mix-up, rotation, HSV, blur, noise, "
            "JPEG, cut-out)",
            "reference",
            str,
            choices=("reference", *POLICIES),
            recipe=True,
            implied=True,
            new=True,
            scripts=(TRAIN, CHECK),
        ),
        Option(
            "copy_paste",
            "probability of pasting objects of another image, where annotations have outlines",
            0,
            low=0,
            high=1,
            recipe=True,
            implied=True,
            new=True,
            scripts=(TRAIN, CHECK),
        ),
        Option(
            "plain_epochs",
            "last epochs without mosaic, mix-up and copy-paste; -1: 15 % of --num_epochs",
            -1,
            int,
            low=-1,
            recipe=True,
            implied=True,
            new=True,
            scripts=(TRAIN, CHECK),
        ),
        oracle("wh"),
        oracle("offset"),
    )
    conflicts = (
        ("dense_wh", "cat_spec_wh"),
        ("norm_wh", "dense_wh"),
        ("norm_wh", "cat_spec_wh"),
        ("eval_oracle_wh", "dense_wh"),
        ("eval_oracle_wh", "cat_spec_wh"),
        ("eval_oracle_offset", "not_reg_offset"),
    )

    @staticmethod
    def check(opt: Namespace) -> None:
        check_box_loss(opt, NOT_WITH_IOU)

    @staticmethod
    def head_channels(opt: Namespace) -> dict[str, int]:
        channels = {"hm": opt.num_classes, "wh": 2 if not opt.cat_spec_wh else 2 * opt.num_classes}
        if opt.reg_offset:
            channels["reg"] = 2
        return channels

    @staticmethod
    def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
        classes = heads.get("hm", 0)
        return {"not_reg_offset": "reg" not in heads, "cat_spec_wh": classes > 1 and heads.get("wh") == 2 * classes}


class MultiPoseSpec(TaskSpec):
    """Poses of persons or other objects: ``hm``, ``wh``, ``reg`` as in ctdet; ``hps`` joint displacements from the
    center; ``hm_hp`` one heatmap per joint; ``hp_offset`` sub-pixel offset of the joints."""

    name = "multi_pose"
    has_keypoints = True
    default_dataset = "coco_hp"
    options = (
        Option(
            "rotate", "standard deviation of the rotation in degrees", 0, low=0, recipe=True, scripts=(TRAIN, CHECK)
        ),
        Option("aug_rot", "probability of rotation", 0, low=0, high=1, recipe=True, scripts=(TRAIN, CHECK)),
        loss_weight("hp_weight", "the joint displacements"),
        loss_weight("hm_hp_weight", "the joint heatmaps"),
        Option("dense_hp", "regress the joints within the person's whole Gaussian", recipe=True, scripts=(TRAIN,)),
        Option("not_hm_hp", "no joint heatmaps", recipe=True),
        Option("not_reg_hp_offset", "no joint offsets", recipe=True),
        oracle("kps"),
        oracle("hmhp"),
        oracle("hp_offset"),
    )
    conflicts = (
        ("eval_oracle_hmhp", "not_hm_hp"),
        ("eval_oracle_hp_offset", "not_hm_hp"),
        ("eval_oracle_hp_offset", "not_reg_hp_offset"),
    )

    @staticmethod
    def check(opt: Namespace) -> None:
        check_box_loss(opt, ("not_reg_offset",))

    @staticmethod
    def derive(opt: Namespace) -> None:
        opt.hm_hp = not opt.not_hm_hp
        opt.reg_hp_offset = not opt.not_reg_hp_offset and opt.hm_hp

    @staticmethod
    def head_channels(opt: Namespace) -> dict[str, int]:
        channels = {"hm": opt.num_classes, "wh": 2, "hps": 2 * len(opt.keypoints)}
        if opt.reg_offset:
            channels["reg"] = 2
        if opt.hm_hp:
            channels["hm_hp"] = len(opt.keypoints)
        if opt.reg_hp_offset:
            channels["hp_offset"] = 2
        return channels

    @staticmethod
    def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
        names = {"not_reg_offset": "reg", "not_hm_hp": "hm_hp", "not_reg_hp_offset": "hp_offset"}
        return {name: head not in heads for name, head in names.items()}


class ExdetSpec(TaskSpec):
    """Extreme points: ``hm_t``, ``hm_l``, ``hm_b``, ``hm_r``, ``hm_c`` heatmaps of the four extreme points and the
    center; ``reg_*`` sub-pixel offsets of the points."""

    name = "exdet"
    default_dataset = "coco"
    options = (
        Option("agnostic_ex", "class-agnostic extreme points", recipe=True),
        Option("scores_thresh", "score threshold of the extreme points", 0.1, low=0, high=1),
        Option("aggr_weight", "weight of the edge aggregation", 0.0, low=0),
    )
    defaults = {"K": 40}  # points of each kind, as for the published results; memory and time grow with it
    ignored_options = ("reg_loss", "wh_weight", "nms", "hm_gauss", *BOX_LOSS)

    @staticmethod
    def head_channels(opt: Namespace) -> dict[str, int]:
        channels = {f"hm_{side}": 1 if opt.agnostic_ex else opt.num_classes for side in "tlbr"}
        channels["hm_c"] = opt.num_classes
        if opt.reg_offset:
            channels.update({f"reg_{side}": 2 for side in "tlbr"})
        return channels

    @staticmethod
    def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
        agnostic = heads.get("hm_c", 0) > 1 and heads.get("hm_t") == 1
        return {"not_reg_offset": "reg_t" not in heads, "agnostic_ex": agnostic}


class DddSpec(TaskSpec):
    """3D boxes: ``hm`` heatmaps; ``dep`` depth; ``rot`` orientation in two bins; ``dim`` size in meters; ``wh``,
    ``reg`` as in ctdet."""

    name = "ddd"
    default_dataset = "kitti"
    options = (
        Option(
            "kitti_split",
            "3dop | subcnn | NAME, of lists in ImageSets_NAME",
            "3dop",
            str,
            recipe=True,
            data=True,
            scripts=ALL,
        ),
        Option("aug_ddd", "probability of jitter", 0.5, low=0, high=1, recipe=True, scripts=(TRAIN, CHECK)),
        Option("rect_mask", "ignored objects mask their whole box", recipe=True, scripts=(TRAIN, CHECK)),
        loss_weight("dep_weight", "the depth"),
        loss_weight("dim_weight", "the 3D size"),
        loss_weight("rot_weight", "the orientation"),
        Option("not_reg_bbox", "no 2D size", recipe=True),
        Option("peak_thresh", "score threshold of reported objects", 0.2, low=0, high=1),
        oracle("dep"),
        Option(
            "size_as_point",
            "size of 2D boxes as in the reference, about 1.2 pixels too high for KITTI",
            new=True,
        ),
        Option(
            "calib",
            "camera of images that come without calibration: a KITTI file with a line P2:, or one with 12 or 9 "
            "numbers; default: the usual camera of the training images",
            "",
            str,
            new=True,
            scripts=(DEMO,),
        ),
    )
    ignored_options = (
        *("reg_loss", "flip", "no_color_aug", "not_rand_crop", "flip_test", "test_scales", "nms", "hm_gauss"),
        *BOX_LOSS,
    )

    @staticmethod
    def derive(opt: Namespace) -> None:
        opt.reg_bbox = not opt.not_reg_bbox
        if opt.calib:
            opt.picture_info["calib"] = read_camera(opt.calib)

    @staticmethod
    def notes(opt: Namespace, script: str) -> list[str]:
        if script != DEMO or opt.calib:
            return []
        return ["note: without --calib, depths and locations are those that the usual camera of the training would see"]

    @staticmethod
    def head_channels(opt: Namespace) -> dict[str, int]:
        channels = {"hm": opt.num_classes, "dep": 1, "rot": 8, "dim": 3}
        if opt.reg_bbox:
            channels["wh"] = 2
        if opt.reg_offset:
            channels["reg"] = 2
        return channels

    @staticmethod
    def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
        return {"not_reg_bbox": "wh" not in heads, "not_reg_offset": "reg" not in heads}


SPECS: dict[str, type[TaskSpec]] = {spec.name: spec for spec in (CtdetSpec, MultiPoseSpec, ExdetSpec, DddSpec)}
