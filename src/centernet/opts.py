"""Every option, declared once: here, or by the task whose own it is (``OPTIONS`` in ``tasks/``).

The rest of the code reads the object that ``opts().parse()`` returns.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from .datasets import DATASETS, get_dataset
from .errors import UserError
from .models import describe
from .tasks import TASKS, get_task

# The repository; an installed package, which is in none, works in the current folder.
ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "src" / "main.py").is_file():
    ROOT = Path.cwd()
NEVER = 100_000_000  # the validation interval of --trainval

# Options of test.py and demo.py, which main.py takes as the reference does but does not look at.
DETECTOR_OPTIONS = {
    *("demo", "flip_test", "not_prefetch_test", "output_dir", "rounded_results", "test_scales", "vis_thresh"),
}
# Options of export.py alone.
EXPORT_OPTIONS = {"format", "opset", "output", "plain_deform_conv", "with_decode"}
# What the scripts do not look at. (Options of the training are no surprise in a test: its command may be copied.)
UNUSED_OPTIONS = {
    "main.py": DETECTOR_OPTIONS | EXPORT_OPTIONS,
    "test.py": {"demo", "output_dir", *EXPORT_OPTIONS},
    "demo.py": {"not_prefetch_test", "on_bad_image", "rounded_results", *EXPORT_OPTIONS},
    "export.py": DETECTOR_OPTIONS | {"keep_discarded", "keep_res", "nms"},
}

# The weights of the parts of the loss that tasks have in common.
LOSS_WEIGHTS = ("hm_weight", "off_weight", "wh_weight")

# What makes two trainings comparable, besides the options of the task that say so themselves: loss curves of runs that
# differ in one of these are different curves.
RECIPE = (
    *("task", "dataset", "arch", "head_conv", "heads", "input_h", "input_w", "batch_size", "lr", "lr_step"),
    *("num_epochs", "num_iters", "seed", "pretrained", "load_model", "sync_bn", *("amp", "precision", "accumulate")),
    *("not_rand_crop", "shift", "scale", "flip", "no_color_aug"),
    *("mse_loss", "hm_gauss", "reg_loss", *LOSS_WEIGHTS, "not_reg_offset"),
)


# Where the annotations and images of --dataset custom are, if not where they are looked for.
CUSTOM_OPTIONS = ("train_annotations", "val_annotations", "train_images", "val_images")

# What a checkpoint says about its network, besides mean, std and the options of its data.
CARD = ("task", "arch", "heads", "head_conv", "dataset", "class_names", "category_ids", "input_h", "input_w")


def _three_numbers(values) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(value, (int, float)) for value in values)


# What the entries of a card may be, which may come from anywhere.
CARD_FORMS = {
    **dict.fromkeys(("task", "arch", "dataset"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("head_conv", "input_h", "input_w"), lambda value: isinstance(value, int) and value >= 0),
    "class_names": lambda names: isinstance(names, list) and all(isinstance(name, str) for name in names),
    "category_ids": lambda ids: isinstance(ids, list) and all(isinstance(one, (int, str)) for one in ids),
    "heads": lambda heads: isinstance(heads, dict) and all(isinstance(count, int) for count in heads.values()),
    **dict.fromkeys(("mean", "std"), _three_numbers),
}

# Options that the reference does not have. Its abbreviations go on meaning what they meant: --exp is --exp_id.
NEW_OPTIONS = {
    *("data_path", "device", "exp_dir", "hm_gauss", "keep_discarded", "output_dir", "prepare_only", "pretrained"),
    *("amp", "rounded_results", "sync_bn", "save_minutes", "on_bad_image", "on_nan", "dist_timeout"),
    *("precision", "compile", "accumulate", "ema"),
    *EXPORT_OPTIONS,
    *CUSTOM_OPTIONS,
}


class _Parser(argparse.ArgumentParser):
    def _get_option_tuples(self, option_string: str) -> list:
        found = super()._get_option_tuples(option_string)
        new = NEW_OPTIONS | {option.name for task in TASKS.values() for option in task.OPTIONS if option.new}
        return [entry for entry in found if entry[0].dest not in new] or found

    def error(self, message: str):
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the processes of a machine all find the same mistake
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def _number(kind: type, low: float = -math.inf, high: float = math.inf, above: float = -math.inf):
    """An argument type: a finite number with low <= number <= high and number > above."""

    def parse(text: str):
        value = kind(text)
        if not (low <= value <= high and value > above and math.isfinite(value)):
            raise ValueError
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind] + (
        f" from {low:g} to {high:g}"
        if math.isfinite(low) and math.isfinite(high)
        else f" of at least {low:g}"
        if math.isfinite(low)
        else f" above {above:g}"
        if math.isfinite(above)
        else ""
    )
    return parse


def _numbers(kind: type):
    """An argument type: comma-separated numbers, returned as the text (the reference keeps the text, then parses)."""

    def parse(text: str) -> str:
        for part in text.split(",") if text else []:
            kind(part)
        return text

    parse.__name__ = "comma-separated list"
    return parse


class opts:
    """The command line of all scripts."""

    def __init__(self) -> None:
        self.parser = parser = _Parser(
            prog=os.path.basename(sys.argv[0] or "centernet"),
            description="CenterNet: objects as points. Options may be shortened as long as they are unambiguous.",
        )
        fraction = _number(float, low=0, high=1)
        weight = _number(float, low=0)

        def add(group, name: str, default, kind, text: str, **more) -> None:
            group.add_argument(f"--{name}", default=default, type=kind, help=text, **more)

        def flag(group, name: str, text: str) -> None:
            group.add_argument(f"--{name}", action="store_true", help=text)

        g = parser.add_argument_group("basic")
        g.add_argument("task", help=" | ".join(TASKS))
        text = f"{' | '.join(DATASETS)}; custom: your own; sample and sample_*: drawn by code, need no download"
        add(g, "dataset", "coco", str, text)
        add(g, "exp_id", "default", str, "name of the run folder <exp_dir>/<task>/<exp_id>")
        flag(g, "test", "do not train: validate once, write the results and score them")
        add(g, "debug", 0, _number(int, 0, 4), "images: 1 results, 2 or 3 also the network's maps; 4 saved, not shown")
        add(g, "demo", "", str, "demo.py: image, folder, video, or webcam")
        add(g, "output_dir", "", str, "demo.py: save what is drawn in this folder instead of showing it")
        add(g, "load_model", "", str, "checkpoint to start from")
        flag(g, "resume", "also restore optimizer, epoch and rate; without --load_model from the run's model_last.pth")
        add(g, "exp_dir", "", str, "folder of the run folders; default: exp/")
        add(g, "data_path", "", str, "folder that holds voc/, coco/, ..., or is one of them; default: data/")
        for split in ("train", "val"):
            add(g, f"{split}_annotations", "", str, f"custom: JSON file, list of images or labels folder, to {split}")
            add(g, f"{split}_images", "", str, f"custom: folder of the images to {split}")
        text = "error: end; skip: go on without; auto: annotations end the start, images do not end a training"
        add(g, "on_bad_image", "auto", str, f"bad data: {text}", choices=["auto", "error", "skip"])

        g = parser.add_argument_group("system")
        add(g, "device", "auto", str, "auto (an accelerator if there is one), cpu, cuda, mps, npu, sdaa, ...")
        add(g, "gpus", "0", _numbers(int), "ids of the devices, one a process; -1: CPU")
        add(g, "num_workers", 4, _number(int, low=0), "loader processes of the training set of each process")
        flag(g, "not_cuda_benchmark", "do not let cuDNN choose the fastest algorithms by trying them")
        add(g, "seed", 317, _number(int, low=0), "of everything random")
        amp = "16 bits in the network: off (float32) | bf16 | fp16 (not on a CPU)"
        add(g, "amp", "off", str, amp, choices=["off", "bf16", "fp16"])
        text = "float32 on accelerators: fp32, or tf32, faster with 10 bits of mantissa instead of 23"
        add(g, "precision", "fp32", str, text, choices=["fp32", "tf32"])
        flag(
            g,
            "compile",
            "compile the network (torch.compile); takes a minute at the start, and a C++ compiler on a CPU",
        )
        flag(g, "sync_bn", "batch statistics over all processes (accelerators only)")
        text = "seconds after which a process that does not answer, or is that late, ends the run"
        add(g, "dist_timeout", 600, _number(float, low=1), text)
        flag(g, "prepare_only", "check the options, prepare the dataset and the weights, and stop")

        g = parser.add_argument_group("log")
        add(g, "print_iter", 0, _number(int, low=0), "n > 0: print a line every n iterations instead of the bar")
        flag(g, "hide_data_time", "leave the times out of that line")
        flag(g, "save_all", "keep the checkpoint of every validation: model_<epoch>.pth")
        text = "minutes between two checkpoints within an epoch; 0: only at its end"
        add(g, "save_minutes", 30, _number(float, low=0), text)
        text = (
            "what selects model_best.pth: loss or a part of it, or a score (mAP, AP, ...); main.py's default: the score"
        )
        add(g, "metric", "loss", str, text)
        add(g, "vis_thresh", 0.3, fraction, "score from which a detection is drawn")
        add(g, "debugger_theme", "white", str, "colors of the images", choices=["white", "black"])

        g = parser.add_argument_group("model")
        add(g, "arch", "dla_34", str, "res_18 ... res_152, resdcn_18 ... resdcn_152, dla_34, dlav0_34, hourglass")
        add(g, "head_conv", -1, _number(int, low=-1), "channels of the heads; 0: no 3x3; -1: default of the network")
        add(g, "down_ratio", 4, int, "output stride; all networks here have 4")
        add(
            g,
            "pretrained",
            "",
            str,
            "backbone to start from: imagenet, a file, or none; default: imagenet for real data",
        )

        g = parser.add_argument_group("input")
        size = _number(int, low=-1)
        add(g, "input_res", -1, size, "height and width; -1: default of the dataset")
        add(g, "input_h", -1, size, "height, overrides input_res")
        add(g, "input_w", -1, size, "width, overrides input_res")

        g = parser.add_argument_group("training")
        add(g, "lr", 1.25e-4, _number(float, above=0), "rate for the whole batch; 1.25e-4 is meant for 32 images")
        add(g, "lr_step", "90,120", _numbers(int), "epochs after which the rate is divided by 10")
        add(g, "num_epochs", 140, _number(int, low=1), "last epoch")
        add(g, "batch_size", 32, _number(int, low=1), "of all processes together")
        text = (
            "pieces in which a process works its share of a batch off, to need less memory; the update stays the same"
        )
        add(g, "accumulate", 1, _number(int, low=1), text)
        text = "validate and keep the running average of the weights with this decay, such as 0.999; 0: the weights"
        add(g, "ema", 0, _number(float, low=0, high=0.999999), text)
        add(g, "master_batch_size", -1, _number(int, low=-1), "share of the first process; -1: equal shares")
        add(g, "num_iters", -1, int, "iterations of an epoch, of training and of validation; -1: the whole dataset")
        text = "a loss that is not finite: stop the run, or skip the update"
        add(g, "on_nan", "stop", str, text, choices=["stop", "skip"])
        add(g, "val_intervals", 5, int, "validate every n epochs; 0: never")
        flag(g, "trainval", "train without validation")

        g = parser.add_argument_group("testing")
        flag(g, "flip_test", "average with the mirrored image")
        add(g, "test_scales", "1", _numbers(float), "sizes at which an image is tested")
        flag(g, "nms", "soft-NMS also for a single scale")
        flag(g, "keep_discarded", "soft-NMS leaves copies in place of the boxes that it discards, as in the reference")
        add(g, "K", 100, _number(int, low=1), "peaks kept of an image; exdet: 40 of each kind")
        flag(g, "not_prefetch_test", "read images in the main process")
        flag(g, "rounded_results", "coco: results with two decimals, as the reference writes and scores them")
        flag(g, "fix_res", "test at the training resolution (what happens without --keep_res)")
        flag(g, "keep_res", "test at each image's own size")

        g = parser.add_argument_group("export")
        add(g, "output", "", str, "file to write: .onnx, .pt2 (torch.export), or .ts (TorchScript)")
        text = "format, where the ending of --output does not say it"
        add(g, "format", "", str, text, choices=["onnx", "pt2", "torchscript"])
        flag(g, "with_decode", "detections come out (--K of them) instead of the network's maps")
        flag(g, "plain_deform_conv", "onnx: deformable convolutions without the operator DeformConv")
        add(g, "opset", 19, _number(int, low=18), "onnx: version of the operators; DeformConv needs 19")

        g = parser.add_argument_group("augmentation")
        flag(g, "not_rand_crop", "jitter position and scale instead of random crops")
        add(g, "shift", 0.1, weight, "standard deviation of the position jitter, of the image's side")
        add(g, "scale", 0.4, fraction, "standard deviation of the scale jitter")
        add(g, "flip", 0.5, fraction, "probability of mirroring")
        flag(g, "no_color_aug", "no color jitter")

        g = parser.add_argument_group("loss")
        flag(g, "mse_loss", "squared error on heat maps instead of the focal loss")
        add(g, "hm_gauss", 2, _number(int, low=1), "standard deviation of the heat maps' Gaussians with --mse_loss")
        add(g, "reg_loss", "l1", str, "l1 | sl1 (smooth)", choices=["l1", "sl1"])
        add(g, "hm_weight", 1, weight, "of the center heat map")
        add(g, "off_weight", 1, weight, "of the offsets")
        add(g, "wh_weight", 0.1, weight, "of the size")

        g = parser.add_argument_group("tasks in common")
        flag(g, "not_reg_offset", "no offset head")
        add(g, "center_thresh", 0.1, fraction, "exdet: score of the centers; also of what debug images show")
        flag(g, "eval_oracle_hm", "use the ground truth for hm, to take errors apart")

        for name, task in TASKS.items():
            g = parser.add_argument_group(f"task {name}")
            for option in task.OPTIONS:
                if option.default is False:
                    flag(g, option.name, option.help)
                else:
                    kind = str if option.kind is str else _number(option.kind, option.low, option.high)
                    more = {"choices": option.choices} if option.choices else {}
                    add(g, option.name, option.default, kind, option.help, **more)

    def parse(self, args: Sequence[str] | str = "") -> argparse.Namespace:
        """Finished options: every option, and what follows from them, from the network and from the dataset.

        ``args``: list of arguments; the empty string: those of the process. A mistake ends the process with one line
        on stderr and status 2, as with any command line.
        """
        words = None if args == "" else args
        opt = self.parser.parse_args(words)
        marked = self.parser.parse_args(words, argparse.Namespace(**dict.fromkeys(vars(opt))))
        # -1 is how a command line says that it leaves the choice to the program.
        opt.given = sorted(name for name, value in vars(marked).items() if value is not None and value != -1)
        try:
            self._check(opt)
            self._derive(opt)
        except UserError as error:
            self.parser.error(str(error))
        return opt

    init = parse  # the reference's entry for demos and library use; here both know the dataset

    def notes(self, opt: argparse.Namespace, script: str = "main.py") -> list[str]:
        """One line for each option that was given and that nothing in ``script`` will look at."""
        own = get_task(opt.task).OPTIONS
        others = {option.name for task in TASKS.values() for option in task.OPTIONS if option not in own}
        others |= set(get_task(opt.task).IGNORED_OPTIONS)
        unused = UNUSED_OPTIONS[script] | {option.name for option in own if script not in option.scripts}
        notes = [f"note: --{name} has no effect on task {opt.task}" for name in opt.given if name in others]
        notes += [f"note: --{name} has no effect in {script}" for name in opt.given if name in unused]
        if opt.test and not opt.load_model:
            notes.append("note: --test without --load_model scores a network of random weights")
        return notes

    def _check(self, opt: argparse.Namespace) -> None:
        conflicts = (("fix_res", "keep_res"), *getattr(get_task(opt.task), "CONFLICTS", ()))
        for one, other in conflicts:
            if getattr(opt, one) and getattr(opt, other):
                raise UserError(f"--{one} and --{other} exclude each other")
        if opt.down_ratio != 4:
            raise UserError(f"--down_ratio {opt.down_ratio}: the networks have an output stride of 4")
        if opt.master_batch_size == 0 or opt.master_batch_size > opt.batch_size:
            raise UserError(f"--master_batch_size {opt.master_batch_size}: not between 1 and --batch_size")
        if opt.num_iters == 0:
            raise UserError("--num_iters 0: needs a number above 0, or -1 for the whole dataset")
        if opt.exp_id in ("", ".", "..") or "/" in opt.exp_id or "\\" in opt.exp_id:
            raise UserError(f"--exp_id {opt.exp_id!r}: must be the plain name of a folder")
        if opt.resume and opt.test:
            raise UserError("--resume continues a training; with --test name the checkpoint with --load_model")
        scales = [float(part) for part in opt.test_scales.split(",") if part]
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise UserError(f"--test_scales {opt.test_scales}: needs sizes above 0")

    def _derive(self, opt: argparse.Namespace) -> None:
        opt.gpus_str = opt.gpus
        ids = [int(part) for part in opt.gpus.split(",") if part]
        if not ids:
            raise UserError("--gpus: names no device; use -1 for the CPU")
        opt.gpus = list(range(len(ids))) if ids[0] >= 0 else [-1]
        opt.lr_step = [int(part) for part in opt.lr_step.split(",") if part]
        opt.test_scales = [float(part) for part in opt.test_scales.split(",") if part]
        opt.fix_res = not opt.keep_res
        opt.picture_info = {}  # what is known of images that come alone, as picture_info of a dataset has it
        _derive_heads(opt)

        architecture, _ = describe(opt.arch)
        if opt.head_conv == -1:
            opt.head_conv = architecture.head_conv
        opt.pad = architecture.pad
        opt.num_stacks = architecture.num_stacks

        if opt.trainval:
            opt.val_intervals = NEVER
        if opt.debug > 0:
            opt.num_workers = 0
            opt.batch_size = 1
            opt.gpus = [opt.gpus[0]]
            opt.master_batch_size = -1
        opt.chunk_sizes = chunk_sizes(opt.batch_size, opt.master_batch_size, len(opt.gpus))
        opt.master_batch_size = opt.chunk_sizes[0]

        opt.root_dir = str(ROOT)
        opt.data_dir = _data_dir(opt)
        opt.exp_dir = str(Path(opt.exp_dir or ROOT / "exp").expanduser() / opt.task)
        opt.save_dir = str(Path(opt.exp_dir) / opt.exp_id)
        opt.debug_dir = str(Path(opt.save_dir) / "debug")
        if opt.resume and not opt.load_model:
            # A run called <name>TEST reads the checkpoint of <name>.
            trained = opt.save_dir[:-4] if opt.save_dir.endswith("TEST") else opt.save_dir
            opt.load_model = str(Path(trained) / "model_last.pth")

        self._take_from_dataset(opt)
        opt.heads = get_task(opt.task).heads(opt)

    def _take_from_dataset(self, opt: argparse.Namespace) -> None:
        if "dataset" not in opt.given:
            opt.dataset = get_task(opt.task).DEFAULT_DATASET
        dataset = get_dataset(opt.dataset)
        opt.annotations = getattr(get_task(opt.task), "ANNOTATIONS", opt.task)
        if opt.annotations not in dataset.tasks:
            raise UserError(f"--dataset {opt.dataset}: its annotations do not fit the task {opt.task}")
        own = [f"--{name}" for name in opt.given if name in CUSTOM_OPTIONS]
        if dataset.class_names and own:
            raise UserError(f"{', '.join(own)}: only for --dataset custom; {opt.dataset} has a layout of its own")
        data = dataset.describe(opt)
        opt.main_score = data["main_score"]
        opt.mean, opt.std = (np.array(data[name], dtype=np.float32).reshape(1, 1, 3) for name in ("mean", "std"))
        opt.class_names = list(data["class_names"])
        opt.category_ids = list(data["category_ids"])
        opt.num_classes = len(opt.class_names)
        opt.max_objs = data["max_objs"]
        if not opt.pretrained:
            # A resumed training keeps the word of its start, for it is part of the recipe.
            from_scratch = (opt.resume or not opt.load_model) and not opt.test and describe(opt.arch)[0].imagenet
            opt.pretrained = dataset.pretrained if from_scratch else "none"

        height, width = data["default_resolution"]
        if not dataset.class_names:  # of its images, whatever the network needs
            height, width = (side + -side % (opt.pad + 1) for side in (height, width))
        if opt.input_res > 0:
            height = width = opt.input_res
        opt.input_h = opt.input_h if opt.input_h > 0 else height
        opt.input_w = opt.input_w if opt.input_w > 0 else width
        _derive_sizes(opt)


def _data_dir(opt: argparse.Namespace) -> str:
    return str(Path(opt.data_path or ROOT / "data").expanduser())


def _derive_heads(opt: argparse.Namespace) -> None:
    """Which heads there are, from the options that say which there are not."""
    opt.reg_offset = not opt.not_reg_offset
    for task in TASKS.values():
        if hasattr(task, "derive"):
            task.derive(opt)


def _derive_sizes(opt: argparse.Namespace) -> None:
    """What follows from the input's height and width. Raises UserError when the network cannot take them."""
    for name in ("input_h", "input_w"):
        if getattr(opt, name) % (opt.pad + 1):
            raise UserError(f"--{name} {getattr(opt, name)}: {opt.arch} needs a multiple of {opt.pad + 1}")
    opt.output_h = opt.input_h // opt.down_ratio
    opt.output_w = opt.input_w // opt.down_ratio
    opt.input_res = max(opt.input_h, opt.input_w)
    opt.output_res = max(opt.output_h, opt.output_w)


def chunk_sizes(batch_size: int, master: int, count: int) -> list[int]:
    """Shares of ``count`` devices or processes: ``master`` for the first (-1: equal shares), the rest evenly."""
    if count == 1:
        return [batch_size if master == -1 else master]
    first = batch_size // count if master == -1 else master
    rest = batch_size - first
    return [first] + [rest // (count - 1) + (i < rest % (count - 1)) for i in range(count - 1)]


def process_shares(opt: argparse.Namespace, processes: int) -> list[int]:
    """How many images of a global batch each process gets: equal shares, unless --master_batch_size is given."""
    if processes == 1:
        return [opt.batch_size]
    equal = opt.master_batch_size == opt.batch_size // len(opt.gpus)
    return chunk_sizes(opt.batch_size, -1 if equal else opt.master_batch_size, processes)


def model_card(opt: argparse.Namespace, picture_info: dict | None = None) -> dict:
    """What inference needs to know of a network and its data, for the checkpoint; plain values only.

    ``picture_info``: what is usual of the images (``default_image_info`` of their dataset).
    """
    card = {name: getattr(opt, name) for name in (*CARD, *data_options(), "mse_loss")}
    if opt.data_path:
        card["data_path"] = os.path.abspath(opt.data_dir)  # to be found from any folder
    card.update(mean=opt.mean.reshape(-1).tolist(), std=opt.std.reshape(-1).tolist())
    card["picture_info"] = picture_info or {}
    return card


def use_model_card(opt: argparse.Namespace, card: dict) -> argparse.Namespace:
    """A copy of the options in which ``card`` (of ``model_card``) decides what was not given on the command line.

    Task, network, heads and classes belong to the weights, so that a given option can only agree. The input size may
    be another one, and so may the dataset if it has the same classes. Mean and standard deviation are the card's.

    Raises UserError where the command line and the card contradict each other, and when the card is incomplete.
    """
    opt, given, path = argparse.Namespace(**vars(opt)), set(opt.given), opt.load_model
    missing = [name for name in (*CARD, "mean", "std") if name not in card]
    if missing:
        raise UserError(f"{path}: its description of the network lacks {', '.join(missing)}")
    wrong = [name for name, is_right in CARD_FORMS.items() if not is_right(card[name])]
    if wrong:
        raise UserError(f"{path}: its description of the network has a wrong {', '.join(wrong)}")
    if opt.task != card["task"]:
        raise UserError(f"task {opt.task}: the network in {path} was trained for the task {card['task']}")
    for name in ("arch", "head_conv"):
        if name in given and getattr(opt, name) != card[name]:
            raise UserError(f"--{name} {getattr(opt, name)}: the network in {path} has {card[name]}; leave it out")
        setattr(opt, name, card[name])
    architecture, _ = describe(opt.arch)
    opt.pad, opt.num_stacks = architecture.pad, architecture.num_stacks

    if "dataset" in given:
        known = list(card["class_names"])
        # Own data, which is read by class names, may have fewer of them, in any order.
        fits = opt.class_names == known if get_dataset(opt.dataset).class_names else set(opt.class_names) <= set(known)
        if not fits:
            raise UserError(
                f"--dataset {opt.dataset}: its classes are not those of the network in {path}, which was trained on "
                f"{card['dataset']}"
            )
    else:
        opt.dataset, opt.category_ids = card["dataset"], list(card["category_ids"])
        about_data = data_options()
        if given.isdisjoint(about_data):
            for name in about_data:
                setattr(opt, name, card.get(name, getattr(opt, name)))
            opt.data_dir = _data_dir(opt)
    opt.class_names = list(card["class_names"])
    opt.num_classes = len(opt.class_names)
    opt.mean, opt.std = (np.array(card[name], dtype=np.float32).reshape(1, 1, 3) for name in ("mean", "std"))

    for name in ("input_h", "input_w"):
        if not given & {name, "input_res"}:
            setattr(opt, name, card[name])
    _derive_sizes(opt)

    opt.picture_info = {**card.get("picture_info", {}), **opt.picture_info}
    if "mse_loss" not in given:  # joints were learned without a sigmoid then; cards of before do not say
        opt.mse_loss = card.get("mse_loss", opt.mse_loss)
    task = get_task(opt.task)
    for name, value in task.options_of_heads(card["heads"]).items():
        if name not in given:
            setattr(opt, name, value)
    _derive_heads(opt)
    opt.heads = task.heads(opt)
    if opt.heads != card["heads"]:
        raise UserError(f"options of the heads: they ask for {opt.heads}, the network in {path} has {card['heads']}")
    return opt


def data_options() -> list[str]:
    """The options that say which data a checkpoint was trained on, for testing it without being told."""
    own = [option.name for task in TASKS.values() for option in task.OPTIONS if option.data]
    return ["data_path", *CUSTOM_OPTIONS, *own]


def loss_weights(task: ModuleType) -> list[str]:
    """The options that weigh the parts of a task's loss."""
    own = [option.name for option in task.OPTIONS if option.recipe and option.name.endswith("_weight")]
    return [*(name for name in LOSS_WEIGHTS if name not in task.IGNORED_OPTIONS), *own]


def recipe(opt: argparse.Namespace) -> dict:
    """The options that two runs must share for their loss curves to be comparable."""
    own = [option.name for option in get_task(opt.task).OPTIONS if option.recipe]
    values = {name: getattr(opt, name) for name in (*RECIPE, *own)}
    for name, usual in (("amp", "off"), ("precision", "fp32"), ("accumulate", 1)):
        if values[name] == usual:
            del values[name]  # curves recorded before there was a choice do not name it
    if not get_dataset(opt.dataset).class_names:
        values["dataset"] = f"{opt.dataset}/{Path(opt.data_dir).resolve().name}"  # own data differ from own data
    if opt.resume:
        values["load_model"] = ""  # the file that a run goes on from is not what it started from
    for name in ("load_model", "pretrained"):
        values[name] = os.path.basename(values[name])  # the same weights may lie elsewhere on another machine
    return values
