"""Values derived from the given options: checks, sizes, directories, and properties of the dataset."""

import math
from pathlib import Path

import numpy as np

from ..datasets import get_dataset
from ..errors import UserError
from ..models import describe
from ..ops.keypoints import COCO_PERSON
from ..tasks import all_specs, get_spec
from ..utils.schedule import cosine_decay, step_decay, warmup
from .table import CUSTOM_OPTIONS, NEVER, Draft, Options

LOGGERS = ("wandb", "mlflow")  # of engine/loggers.py
# The repository; an installed package, which is not in one, works in the current directory.
ROOT = Path(__file__).resolve().parents[3]
if not (ROOT / "src" / "main.py").is_file():
    ROOT = Path.cwd()


def check(opt: Draft) -> None:
    """Raise UserError where options contradict each other."""
    for one, other in (("fix_res", "keep_res"), *get_spec(opt.task).conflicts):
        if getattr(opt, one) and getattr(opt, other):
            raise UserError(f"--{one} and --{other} exclude each other")
    get_spec(opt.task).check(opt)
    if opt.down_ratio != 4:
        raise UserError(f"--down_ratio {opt.down_ratio}: the networks have an output stride of 4")
    if opt.master_batch_size == 0 or opt.master_batch_size > opt.batch_size:
        raise UserError(f"--master_batch_size {opt.master_batch_size}: not between 1 and --batch_size")
    if opt.num_iters == 0:
        raise UserError("--num_iters 0: needs a number above 0, or -1 for the whole dataset")
    if opt.exp_id in ("", ".", "..") or "/" in opt.exp_id or "\\" in opt.exp_id:
        raise UserError(f"--exp_id {opt.exp_id!r}: must be the plain name of a directory")
    if opt.freeze not in ("", "none", "backbone") and not opt.freeze.isdecimal():
        raise UserError(f"--freeze {opt.freeze}: choose none, backbone, or a number of stages")
    if opt.patience and not 0 < opt.val_intervals < NEVER:
        raise UserError("--patience counts validations, and there are none: give --val_intervals")
    if opt.resume and opt.test:
        raise UserError("--resume continues a training; with --test name the checkpoint with --load_model")
    if opt.save_init and (opt.resume or opt.test):
        raise UserError("--save_init writes the weights that a new training starts from; not with --resume or --test")


def derive(opt: Draft) -> None:
    """Set everything that follows from the options as they were given, without ``check_sizes``. Raises UserError."""
    _parse_lists(opt)
    opt.fix_res = not opt.keep_res
    opt.picture_info = {}
    derive_heads(opt)
    _take_from_architecture(opt)
    if opt.trainval:
        opt.val_intervals = NEVER
    if opt.debug > 0:
        opt.num_workers, opt.batch_size, opt.master_batch_size = 0, 1, -1
        opt.gpus = opt.gpus[:1]
    opt.chunk_sizes = chunk_sizes(opt.batch_size, opt.master_batch_size, len(opt.gpus))
    opt.master_batch_size = opt.chunk_sizes[0]
    _set_directories(opt)
    _take_from_dataset(opt)
    opt.heads = get_spec(opt.task).head_channels(opt)


def derive_heads(opt: Draft) -> None:
    """Set which heads exist, from the options that disable them."""
    opt.reg_offset = not opt.not_reg_offset
    for spec in all_specs().values():
        spec.derive(opt)


def check_sizes(opt: Draft | Options) -> None:
    """Raise UserError for an input size that the network cannot take; the message names the option that was given."""
    for name in ("input_h", "input_w"):
        if getattr(opt, name) % (opt.pad + 1):
            option = "input_res" if name not in opt.given and "input_res" in opt.given else name
            raise UserError(f"--{option} {getattr(opt, name)}: {opt.arch} needs a multiple of {opt.pad + 1}")


def derive_sizes(opt: Draft) -> None:
    """Set what follows from the input's height and width."""
    opt.output_h = opt.input_h // opt.down_ratio
    opt.output_w = opt.input_w // opt.down_ratio
    opt.input_res = max(opt.input_h, opt.input_w)
    opt.output_res = max(opt.output_h, opt.output_w)


def data_dir(opt: Draft) -> str:
    """Return the directory of the datasets."""
    return str(Path(opt.data_path or ROOT / "data").expanduser())


def chunk_sizes(batch_size: int, master: int, count: int) -> list[int]:
    """Return the shares of ``count`` devices: ``master`` for the first (-1: equal shares), the rest evenly."""
    if count == 1:
        return [batch_size if master == -1 else master]
    first = batch_size // count if master == -1 else master
    rest = batch_size - first
    return [first] + [rest // (count - 1) + (i < rest % (count - 1)) for i in range(count - 1)]


def process_shares(opt: Options, processes: int) -> list[int]:
    """Return the images of a global batch per process: equal shares, unless --master_batch_size is given."""
    if processes == 1:
        return [opt.batch_size]
    equal = opt.master_batch_size == opt.batch_size // len(opt.gpus)
    return chunk_sizes(opt.batch_size, -1 if equal else opt.master_batch_size, processes)


def learning_rate(opt: Options, epoch: int, done: int = 0, iterations: int = 1) -> float:
    """Return the learning rate of an update.

    Args:
        opt: options.
        epoch: number of the epoch, from 1.
        done: updates of this epoch before this one.
        iterations: updates per epoch.
    """
    step = (epoch - 1) * iterations + done
    rising = warmup_updates(opt, iterations)
    if opt.lr_schedule == "cosine":
        lr = cosine_decay(opt.lr, (step - rising) / max(opt.num_epochs * iterations - rising, 1))
    else:
        lr = step_decay(opt.lr, opt.lr_step, epoch)
    return lr * warmup(step, rising)


def warmup_updates(opt: Options, iterations: int) -> int:
    """Return the updates of the warm-up: ``--warmup_iters``, where a preset sets it at most a tenth of all updates.

    Args:
        opt: options.
        iterations: updates per epoch.
    """
    if "warmup_iters" in opt.given:
        return opt.warmup_iters
    return min(opt.warmup_iters, opt.num_epochs * iterations // 10)


def _parse_lists(opt: Draft) -> None:
    opt.gpus_str = str(opt.gpus)
    ids = _numbers(opt.gpus, int)
    if not ids:
        raise UserError("--gpus: names no device; use -1 for the CPU")
    if -1 in ids and (len(ids) > 1 or opt.device not in ("auto", "cpu")):
        raise UserError(f"--gpus {opt.gpus_str}: -1 is the CPU, alone and without another --device")
    opt.gpus = list(range(len(ids))) if ids[0] >= 0 else [-1]
    opt.lr_step = _numbers(opt.lr_step, int)
    scales = _numbers(opt.test_scales, float)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise UserError(f"--test_scales {opt.test_scales}: needs sizes above 0")
    opt.test_scales = scales
    opt.loggers = [name for name in str(opt.loggers).split(",") if name]
    unknown = [name for name in opt.loggers if name not in LOGGERS]
    if unknown:
        raise UserError(f"--loggers {unknown[0]}: choose from {', '.join(LOGGERS)}")


def _numbers(text, kind: type) -> list:
    return [kind(part) for part in text.split(",") if part]


def _take_from_architecture(opt: Draft) -> None:
    architecture, _ = describe(opt.arch)
    if opt.head_conv == -1:
        opt.head_conv = architecture.head_conv
    opt.pad, opt.num_stacks = architecture.pad, architecture.num_stacks


def _set_directories(opt: Draft) -> None:
    opt.root_dir = str(ROOT)
    opt.data_dir = data_dir(opt)
    opt.exp_dir = str(Path(opt.exp_dir or ROOT / "exp").expanduser() / opt.task)
    opt.save_dir = str(Path(opt.exp_dir) / opt.exp_id)
    opt.debug_dir = str(Path(opt.save_dir) / "debug")
    if opt.resume and not opt.load_model:
        # A run called <name>TEST reads the checkpoint of <name>.
        trained = opt.save_dir[:-4] if opt.save_dir.endswith("TEST") else opt.save_dir
        opt.load_model = str(Path(trained) / "model_last.pth")


def _take_from_dataset(opt: Draft) -> None:
    spec = get_spec(opt.task)
    if "dataset" not in opt.given:
        opt.dataset = spec.default_dataset
    dataset = get_dataset(opt.dataset)
    opt.annotations = spec.annotations or opt.task
    if opt.annotations not in dataset.tasks:
        raise UserError(f"--dataset {opt.dataset}: its annotations do not fit the task {opt.task}")
    own = [f"--{name}" for name in opt.given if name in CUSTOM_OPTIONS]
    if dataset.class_names and own:
        raise UserError(f"{', '.join(own)}: only for --dataset custom; {opt.dataset} has a fixed layout")
    data = dataset.describe(opt)
    set_data(opt, data)
    if spec.has_keypoints and not opt.keypoints.flips_known and "flip" not in opt.given:
        opt.flip = 0.0  # it would teach the wrong joints
    if not opt.pretrained:
        # A resumed training keeps what it started with, which is part of the recipe.
        from_scratch = (opt.resume or not opt.load_model) and not opt.test and describe(opt.arch)[0].has_imagenet
        opt.pretrained = dataset.pretrained if from_scratch else "none"

    height, width = data["default_resolution"]
    if not dataset.class_names:  # the resolution follows from the images; the network needs a multiple of its stride
        height, width = (side + -side % (opt.pad + 1) for side in (height, width))
    if opt.input_res > 0:
        height = width = opt.input_res
    opt.input_h = opt.input_h if opt.input_h > 0 else height
    opt.input_w = opt.input_w if opt.input_w > 0 else width
    derive_sizes(opt)


def set_data(opt: Draft, data: dict) -> None:
    """Set what the options take from a dataset: ``data`` is what its ``describe`` returns."""
    opt.main_score = data["main_score"]
    opt.mean, opt.std = (as_pixel(data[name]) for name in ("mean", "std"))
    opt.class_names = list(data["class_names"])
    opt.category_ids = list(data["category_ids"])
    opt.num_classes = len(opt.class_names)
    opt.max_objs = data["max_objs"]
    opt.keypoints = data.get("keypoints", COCO_PERSON)


def as_pixel(values) -> np.ndarray:
    """Return three channel values as an array (1, 1, 3) float32."""
    return np.array(values, dtype=np.float32).reshape(1, 1, 3)
