"""Images and annotations, samples and batches. Importing this package does not import PyTorch."""

from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..registry import Registry, resolve

if TYPE_CHECKING:
    from .base import CocoStyleDataset, DatasetTask

# One line per dataset: its name and where its class is, which is imported on first use.
DATASETS: "Registry[type[CocoStyleDataset]]" = Registry(
    {
        "coco": "centernet.datasets.coco:COCO",
        "pascal": "centernet.datasets.pascal:PascalVOC",
        "custom": "centernet.datasets.custom:Custom",
        "sample": "centernet.datasets.synthetic.shapes:SyntheticShapes",
        "coco_hp": "centernet.datasets.coco_hp:COCOHP",
        "sample_hp": "centernet.datasets.synthetic.poses:SyntheticPoses",
        "sample_ex": "centernet.datasets.synthetic.polygons:SyntheticPolygons",
        "kitti": "centernet.datasets.kitti:KITTI",
        "sample_ddd": "centernet.datasets.synthetic.streets:SyntheticStreets",
    }
)


def get_dataset(name: str) -> "type[CocoStyleDataset]":
    """Return the class of a dataset; raise UserError for an unknown name."""
    if name not in DATASETS:
        raise UserError(f"--dataset {name}: unknown dataset; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def read_dataset(task: "DatasetTask", split: str, processes) -> "CocoStyleDataset":
    """Read a split of ``--dataset`` for a task, in one process of each node (``engine.processes.Distributed``)."""
    dataset = processes.load_once_per_node(lambda: get_dataset(task.opt.dataset)(task, split))
    dataset.task = task  # instead of a copy from another process
    return dataset


def __getattr__(name: str) -> Any:
    if name == "build_sample":  # needs PyTorch
        return resolve("centernet.datasets.replay:build_sample")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
