"""All general options, each declared once. Those of a single task are declared in ``tasks/specs.py``."""

import argparse
import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets import DATASETS
from ..ops.keypoints import KeypointSchema
from ..tasks.option import ALL, CHECK, DEMO, EXPORT, INFERENCE, TEST, TRAIN, OptionGroup, option

NEVER = 100_000_000  # value of val_intervals with --trainval


class BasicOptions(OptionGroup, title="basic"):
    """Task, data and results."""

    dataset: str = option(
        "coco",
        f"{' | '.join(DATASETS)}; custom: your own data; sample, sample_*: generated, no download"
        " (default: that of the task)",
        scripts=ALL,
        recipe=True,
    )
    preset: str = option(
        "reference",
        "recipe that other options start from: reference (the original's) | fast; a given option takes precedence",
        choices=("reference", "fast"),
        new=True,
        scripts=(TRAIN, CHECK),
    )
    exp_id: str = option("default", "name of the run directory <exp_dir>/<task>/<exp_id>")
    test: bool = option(False, "validate once, write and score the results; no training", scripts=(TRAIN,))
    debug: int = option(0, "drawings: 1 results, 2 or 3 also the network's maps; 4 saved, not shown", low=0, high=4)
    demo: str = option(
        "", "image, video, folder of them, camera (webcam or a number), or address (rtsp://, http://)", scripts=(DEMO,)
    )
    save_json: bool = option(
        False, "write detections.json with what was found in each image", new=True, scripts=(DEMO,)
    )
    save_txt: bool = option(False, "write a YOLO label file per image with what was found", new=True, scripts=(DEMO,))
    save_crops: bool = option(
        False, "write the part of the image in each box, sorted by class", new=True, scripts=(DEMO,)
    )
    output_dir: str = option("", "directory for the drawings, instead of showing them", new=True, scripts=(DEMO, CHECK))
    load_model: str = option("", "checkpoint to load", recipe=True, scripts=(TRAIN, TEST, DEMO, EXPORT))
    save_init: str = option(
        "", "file for the initial weights, for --load_model on another machine", new=True, scripts=(TRAIN,)
    )
    resume: bool = option(
        False,
        "continue the run from its model_last.pth or --load_model: optimizer, epoch, learning rate; other programs:"
        " load the run's model_last.pth",
        scripts=(TRAIN, TEST, DEMO, EXPORT),
    )
    exp_dir: str = option("", "directory of the run directories; default: exp/", new=True, scripts=ALL)
    data_path: str = option(
        "",
        "directory that contains voc/, coco/, ..., or is one of them; default: data/",
        new=True,
        data=True,
        scripts=ALL,
    )
    train_annotations: str = option(
        "", "custom: training JSON file, image list or label directory", new=True, data=True, scripts=ALL
    )
    train_images: str = option("", "custom: directory of the training images", new=True, data=True, scripts=ALL)
    val_annotations: str = option(
        "", "custom: validation JSON file, image list or label directory", new=True, data=True, scripts=ALL
    )
    val_images: str = option("", "custom: directory of the validation images", new=True, data=True, scripts=ALL)
    on_bad_image: str = option(
        "auto",
        "error: abort; skip: ignore bad entries; auto: abort on bad annotations, skip unreadable images in training",
        choices=("auto", "error", "skip"),
        new=True,
        scripts=(TRAIN, TEST),
    )
    max_image_pixels: int = option(
        2**28, "pixels that an image may have by its header; larger ones cannot be used", low=1, new=True, scripts=ALL
    )
    dry_run: bool = option(False, "print the resulting configuration and exit", new=True, scripts=ALL)


class SystemOptions(OptionGroup, title="system", scripts=(TRAIN,)):
    """Devices, processes and numerical precision."""

    device: str = option(
        "auto", "auto (an accelerator if available), cpu, cuda, mps, npu, sdaa, ...", new=True, scripts=INFERENCE
    )
    gpus: list[int] = option("0", "device ids, one per process; -1: CPU", kind=int, many=True, scripts=INFERENCE)
    num_workers: int = option(4, "data loading workers per process", low=0, scripts=(TRAIN, TEST))
    not_cuda_benchmark: bool = option(False, "disable cuDNN's search for the fastest algorithms")
    seed: int = option(317, "random seed", low=0, high=2**63 - 1, recipe=True, scripts=(TRAIN, CHECK))
    amp: str = option(
        "off",
        "mixed precision in the network: off (float32) | bf16 | fp16 (not on a CPU)",
        choices=("off", "bf16", "fp16"),
        recipe=True,
        implied=True,
        new=True,
        scripts=INFERENCE,
    )
    precision: str = option(
        "fp32",
        "float32 on accelerators: fp32, or tf32: faster, 10 bits of mantissa instead of 23",
        choices=("fp32", "tf32"),
        recipe=True,
        implied=True,
        new=True,
        scripts=(TRAIN, TEST),
    )
    compile: bool = option(
        False, "compile the network (torch.compile); takes a minute, and a C++ compiler on a CPU", new=True
    )
    sync_bn: bool = option(
        False, "synchronize batch statistics across processes (accelerators only)", recipe=True, new=True
    )
    dist_timeout: float = option(
        600,
        "seconds to wait for an unresponsive process before aborting",
        kind=float,
        low=1,
        new=True,
        scripts=(TRAIN, TEST),
    )
    prepare_only: bool = option(False, "check the options, prepare dataset and weights, and exit", new=True)


class LogOptions(OptionGroup, title="log", scripts=(TRAIN,)):
    """Output, logs and checkpoints."""

    print_iter: int = option(
        0, "n > 0: print a line every n iterations instead of the progress bar", low=0, scripts=(TRAIN, TEST)
    )
    hide_data_time: bool = option(False, "omit the times in that line")
    save_all: bool = option(False, "keep the checkpoint of every validation: model_<epoch>.pth")
    save_minutes: float = option(
        30, "minutes between checkpoints within an epoch; 0: only at its end", kind=float, low=0, new=True
    )
    loggers: list[str] = option(
        "", "experiment trackers, comma-separated: wandb | mlflow; TensorBoard is used if it is installed", new=True
    )
    metric: str = option(
        "loss",
        "what selects model_best.pth: loss or one of its terms, or a score (mAP, AP, ...); default: the dataset's "
        "main score",
    )
    vis_thresh: float = option(0.3, "score threshold of drawn detections", low=0, high=1, scripts=(TEST, DEMO))
    debugger_theme: str = option("white", "colors of the drawings", choices=("white", "black"), scripts=INFERENCE)


class ModelOptions(OptionGroup, title="model", scripts=(TRAIN, TEST, DEMO, EXPORT)):
    """The network."""

    arch: str = option(
        "dla_34",
        "res_18 ... res_152, resdcn_18 ... resdcn_152, dla_34, dlav0_34, hourglass, lite, timm:NAME",
        recipe=True,
    )
    head_conv: int = option(
        -1, "channels of the heads; 0: no 3x3 convolution; -1: default of the network", low=-1, recipe=True
    )
    down_ratio: int = option(4, "output stride; all networks here have 4")
    pretrained: str = option(
        "",
        "backbone weights: imagenet, a file, or none; default: imagenet for real data",
        recipe=True,
        new=True,
        scripts=(TRAIN,),
    )


class InputOptions(OptionGroup, title="input", scripts=ALL):
    """The size of the network's input."""

    input_res: int = option(-1, "height and width; -1: default of the dataset", low=-1)
    input_h: int = option(-1, "height, overrides input_res", low=-1, recipe=True)
    input_w: int = option(-1, "width, overrides input_res", low=-1, recipe=True)


class TrainingOptions(OptionGroup, title="training", scripts=(TRAIN,)):
    """Optimization."""

    lr: float = option(
        1.25e-4, "learning rate for the whole batch; 1.25e-4 is meant for 32 images", above=0, recipe=True
    )
    lr_step: list[int] = option(
        "90,120", "epochs after which the learning rate is divided by 10", kind=int, many=True, recipe=True
    )
    num_epochs: int = option(140, "last epoch", low=1, recipe=True)
    batch_size: int = option(32, "images per batch, over all processes", low=1, recipe=True, scripts=(TRAIN, TEST))
    accumulate: int = option(
        1,
        "number of micro-batches per process for gradient accumulation; does not change the update",
        low=1,
        recipe=True,
        implied=True,
        new=True,
    )
    ema: float = option(
        0,
        "validate and keep the exponential moving average of the weights with this decay, such as 0.999; 0: off",
        kind=float,
        low=0,
        high=0.999999,
        new=True,
    )
    optimizer: str = option(
        "adam",
        "adam | adamw | sgd (Nesterov momentum 0.9)",
        choices=("adam", "adamw", "sgd"),
        recipe=True,
        implied=True,
        new=True,
    )
    weight_decay: float = option(
        0,
        "weight decay, not of biases and normalization layers; decoupled with adamw, part of the gradient otherwise",
        kind=float,
        low=0,
        recipe=True,
        implied=True,
        new=True,
    )
    lr_schedule: str = option(
        "step",
        "learning rate schedule: step (--lr_step) | cosine (to 1 % of --lr at the last epoch)",
        choices=("step", "cosine"),
        recipe=True,
        implied=True,
        new=True,
    )
    warmup_iters: int = option(
        0, "updates over which the learning rate rises linearly", low=0, recipe=True, implied=True, new=True
    )
    clip_grad: float = option(
        0,
        "greatest norm of the gradient, larger ones are scaled down; 0: off",
        kind=float,
        low=0,
        recipe=True,
        implied=True,
        new=True,
    )
    freeze: str = option(
        "none",
        "for fine-tuning: parts that are not trained: none | backbone | N, its first N stages",
        recipe=True,
        implied=True,
        new=True,
    )
    patience: int = option(
        0, "early stopping: end after this many validations without a better --metric; 0: off", low=0, new=True
    )
    master_batch_size: int = option(-1, "share of the first process; -1: equal shares", low=-1, scripts=(TRAIN, TEST))
    num_iters: int = option(
        -1,
        "iterations per epoch of training, images of validations and tests; -1: the whole dataset",
        low=-1,
        recipe=True,
        scripts=(TRAIN, TEST),
    )
    on_nan: str = option(
        "stop", "on a non-finite loss: stop the run, or skip the update", choices=("stop", "skip"), new=True
    )
    val_intervals: int = option(5, "validate every n epochs; 0 or below: never", scripts=(TRAIN, CHECK))
    trainval: bool = option(
        False, "main.py: train without validation; test.py: use the test split", scripts=(TRAIN, TEST, CHECK)
    )


class TestingOptions(OptionGroup, title="testing", scripts=(TEST, DEMO)):
    """Detection."""

    flip_test: bool = option(False, "average with the horizontally flipped image")
    test_scales: list[float] = option("1", "test-time scales, comma-separated", kind=float, many=True)
    nms: bool = option(False, "apply soft-NMS also at a single scale", scripts=INFERENCE)
    keep_discarded: bool = option(
        False, "soft-NMS leaves copies in place of discarded boxes, as in the reference", new=True, scripts=INFERENCE
    )
    K: int = option(
        100,
        "peaks per image; above 100 ctdet keeps as many detections; exdet: 40 of each kind",
        low=1,
        scripts=(TRAIN, TEST, DEMO, EXPORT),
    )
    not_prefetch_test: bool = option(False, "read images in the main process", scripts=(TEST,))
    rounded_results: bool = option(
        False, "coco: write and score results with two decimals, as the reference does", new=True, scripts=(TEST,)
    )
    fix_res: bool = option(False, "test at the training resolution (the default)", scripts=INFERENCE)
    keep_res: bool = option(False, "test at the size of each image", scripts=INFERENCE)


class ExportOptions(OptionGroup, title="export", scripts=(EXPORT,)):
    """Exported files."""

    output: str = option(
        "",
        "file to write: .onnx, .xml (OpenVINO, with a .bin), .engine (TensorRT), .pt2 (torch.export), .ts"
        " (TorchScript), or .safetensors (weights)",
        new=True,
    )
    format: str = option(
        "",
        "file format, if the extension of --output does not determine it",
        choices=("onnx", "openvino", "tensorrt", "pt2", "torchscript", "safetensors"),
        new=True,
    )
    with_decode: bool = option(False, "output detections (--K of them) instead of the network's maps", new=True)
    plain_deform_conv: bool = option(False, "onnx: deformable convolutions without the operator DeformConv", new=True)
    opset: int = option(19, "onnx: operator set version; DeformConv needs 19", low=18, new=True)
    int8: bool = option(
        False,
        "onnx, openvino: int8 weights and activations; implies --verify val without --verify, see --max_ap_drop",
        new=True,
    )
    calibration: str = option(
        "train", "--int8: images that give the ranges: a split of --dataset, an image, or a folder", new=True
    )
    calibration_images: int = option(100, "--int8: number of images, evenly spaced in --calibration", low=1, new=True)
    verify: str = option(
        "",
        "compare detections with PyTorch's on a split of --dataset (train, val, test) or a folder; a file beyond"
        " tolerance is not kept",
        new=True,
    )
    benchmark: bool = option(False, "measure the latency of the exported file and of PyTorch on the CPU", new=True)
    threads: int = option(1, "CPU threads for --verify and --benchmark", low=1, new=True)
    max_ap_drop: float = option(
        0.02, "AP that the exported file may lose on the split of --verify", kind=float, low=0, high=1, new=True
    )


class AugmentationOptions(OptionGroup, title="augmentation", scripts=(TRAIN, CHECK)):
    """Data augmentation."""

    not_rand_crop: bool = option(False, "jitter position and scale instead of random crops", recipe=True)
    shift: float = option(
        0.1, "standard deviation of the position jitter, as a fraction of the image size", low=0, recipe=True
    )
    scale: float = option(0.4, "standard deviation of the scale jitter", low=0, high=1, recipe=True)
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1, recipe=True)
    no_color_aug: bool = option(False, "disable color jitter", recipe=True)
    repeat_threshold: float = option(
        0,
        "repeat images whose classes occur in less than this share of the images (repeat factor sampling); 0: off",
        kind=float,
        low=0,
        high=1,
        recipe=True,
        implied=True,
        new=True,
        scripts=(TRAIN,),
    )


class LossOptions(OptionGroup, title="loss", scripts=(TRAIN,)):
    """Losses that several tasks share."""

    mse_loss: bool = option(
        False,
        "mean squared error on heatmaps instead of the focal loss",
        recipe=True,
        scripts=(TRAIN, TEST, DEMO, EXPORT),
    )
    hm_gauss: int = option(
        2, "standard deviation of the heatmap Gaussians with --mse_loss", low=1, recipe=True, new=True
    )
    reg_loss: str = option("l1", "regression loss: l1 | sl1 (smooth)", choices=("l1", "sl1"), recipe=True)
    hm_weight: float = option(1, "weight of the center heatmap", kind=float, low=0, recipe=True)
    off_weight: float = option(1, "weight of the offsets", kind=float, low=0, recipe=True)
    wh_weight: float = option(0.1, "weight of the size", low=0, recipe=True)
    box_loss: str = option(
        "l1",
        "l1: sizes and offsets apart | giou | diou | ciou: IoU loss of the decoded box in their place",
        choices=("l1", "giou", "diou", "ciou"),
        recipe=True,
        implied=True,
        new=True,
        scripts=(TRAIN, CHECK),
    )
    box_samples: str = option(
        "center",
        "cells supervised by an IoU loss: center | gaussian (all cells of an object's Gaussian, as in TTFNet)",
        choices=("center", "gaussian"),
        recipe=True,
        implied=True,
        new=True,
        scripts=(TRAIN, CHECK),
    )
    box_weight: float = option(5, "weight of the IoU loss", kind=float, low=0, recipe=True, implied=True, new=True)


class SharedOptions(OptionGroup, title="shared by tasks"):
    """Heads and thresholds that several tasks share."""

    not_reg_offset: bool = option(False, "no offset head", recipe=True, scripts=(TRAIN, TEST, DEMO, EXPORT))
    center_thresh: float = option(
        0.1, "exdet: score threshold of the centers; also of detections drawn by --debug", low=0, high=1
    )
    eval_oracle_hm: bool = option(False, "replace hm by the ground truth, for error analysis", scripts=(TRAIN,))


GROUPS: tuple[type[OptionGroup], ...] = (
    *(BasicOptions, SystemOptions, LogOptions, ModelOptions, InputOptions, TrainingOptions),
    *(TestingOptions, ExportOptions, AugmentationOptions, LossOptions, SharedOptions),
)
GENERAL = {declared.name: declared for group in GROUPS for declared in group.declared}
# Where the annotations and images of --dataset custom are, if not where they are looked for.
CUSTOM_OPTIONS = ("train_annotations", "val_annotations", "train_images", "val_images")


class Options(
    BasicOptions,
    SystemOptions,
    LogOptions,
    ModelOptions,
    InputOptions,
    TrainingOptions,
    TestingOptions,
    ExportOptions,
    AugmentationOptions,
    LossOptions,
    SharedOptions,
):
    """The options of a run: all that are declared, and what follows from them. They do not change after parsing.

    Attributes:
        task: name of the task.
        given: names of the options that were given on the command line.
        gpus_str: ``--gpus`` as it was given; ``gpus`` are logical ids from 0.
        root_dir, data_dir, save_dir, debug_dir: directories. ``save_dir`` is the run directory.
        chunk_sizes: images per device.
        pad, num_stacks: of the architecture, see ``models.Architecture``.
        reg_offset: whether there is an offset head. Tasks derive further ones.
        heads: head name to channels, in the order of the reference.
        annotations: task whose annotations are read.
        class_names, category_ids, num_classes, mean, std, max_objs, main_score: of the dataset; ``mean`` and ``std``
            are (1, 1, 3) float32.
        keypoints: joints of the dataset's objects, of tasks that predict any.
        output_h, output_w, output_res: size of the network's output.
        picture_info: metadata (such as the calibration) for images that do not come from a dataset.
    """

    task: str
    given: list[str]
    gpus_str: str
    root_dir: str
    data_dir: str
    save_dir: str
    debug_dir: str
    chunk_sizes: list[int]
    pad: int
    num_stacks: int
    reg_offset: bool
    heads: dict[str, int]
    annotations: str
    class_names: list[str]
    category_ids: list[int | str]
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    max_objs: int
    main_score: str
    keypoints: KeypointSchema
    output_h: int
    output_w: int
    output_res: int
    picture_info: dict[str, Any]

    if TYPE_CHECKING:
        # The options of the tasks, see tasks/specs.py.
        def __getattr__(self, name: str) -> Any: ...

    @property
    def flip_idx(self) -> list[list[int]]:
        """Return the pairs of joints that a flip exchanges, under the reference's name."""
        return [list(pair) for pair in self.keypoints.flip_pairs]

    def replace(self, **changes: Any) -> "Options":
        """Return a copy with other values."""
        changed = copy.copy(self)
        vars(changed).update(changes)
        return changed


class Draft(Options):
    """Options that are still being derived."""

    def finished(self) -> Options:
        """Return the options."""
        return Options(**vars(self))

    @classmethod
    def of(cls, opt: argparse.Namespace) -> "Draft":
        """Return a draft with the values of finished options."""
        return cls(**vars(opt))
