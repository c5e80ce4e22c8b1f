"""Scalars and images for TensorBoard, where the package ``tensorboard`` is installed."""

import importlib.util
from pathlib import Path

from ..analysis.images import prediction_and_truth
from ..utils.text import print_line

IMAGES = 4  # of each validation


def open_board(folder: Path):
    """Return a writer of event files in ``folder``, or None if TensorBoard is not installed, or not usable."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder))
    except OSError:
        raise
    except Exception as error:  # packages that do not fit each other; nobody has asked for TensorBoard
        report_failure(error)
        return None


def report_failure(error: Exception) -> None:
    """Print that TensorBoard gets nothing more, which must not end a training."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    print_line(f"warning: TensorBoard cannot be used ({lines[0]}); nothing more is written for it")


def write_epoch(board, epoch: int, train: dict[str, float], val: dict[str, float] | None, dataset, results) -> None:
    """Write the averages of an epoch as ``train_<name>`` and ``val_<name>``, as the reference does, and a few images.

    ``results`` of the validation, ``{image id: {class from 1: rows}}``, and the ground truth are drawn for the first
    images of the dataset, the same in each epoch.
    """
    for phase, values in (("train", train), ("val", val or {})):
        for name, value in values.items():
            board.add_scalar(f"{phase}_{name}", value, epoch)
    shown = [k for k, image_id in enumerate(dataset.image_ids) if image_id in results] if val and dataset else []
    for k in shown[:IMAGES]:
        images = prediction_and_truth(dataset, k, results[dataset.image_ids[k]])
        for kind, image in zip(("detections", "truth"), images, strict=True):
            tag = f"{dataset.file_names[k]}/{kind}"
            board.add_image(tag, image[:, :, ::-1].copy(), epoch, dataformats="HWC")
    board.flush()
