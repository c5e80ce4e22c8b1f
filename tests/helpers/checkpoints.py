"""Checkpoints of random weights."""

import torch

from centernet.models import create_model, save_model
from centernet.options import model_metadata
from centernet.opts import opts as parser


def checkpoint(folder, task, *more):
    """A network of random weights with its metadata, as the training leaves it."""
    opt = parser().parse([task, "--arch", "res_18", "--input_res", "64", *more])
    torch.manual_seed(0)
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    path = folder / f"{task}.pth"
    save_model(path, 1, model, extra={"model": model_metadata(opt)})
    return path
