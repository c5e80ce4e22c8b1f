"""The reference's library interface, so that programs written for it run:

    sys.path.insert(0, "PATH/src/lib")
    from detectors.detector_factory import detector_factory
    from opts import opts

    opt = opts().init("ctdet --load_model FILE".split(" "))
    detector = detector_factory[opt.task](opt)
    results = detector.run("image.jpg")["results"]

New programs use ``centernet`` (docs/INFERENCE.md).
"""

from typing import Any

import opts  # noqa: F401 (makes the package centernet available)

from centernet.detector import create_detector
from centernet.options import Options
from centernet.tasks import TASKS
from centernet.visualization import show_or_save


class BaseDetector:
    """The detector of a task, with the reference's arguments and result types.

    Attributes:
        opt: options, completed by the checkpoint.
        model: the network.
        pause: whether windows of ``--debug`` wait for a key.
    """

    task = ""

    def __init__(self, opt: Options) -> None:
        if self.task and opt.task != self.task:
            raise ValueError(f"{type(self).__name__} is for the task {self.task}, not {opt.task}")
        self.detector = create_detector(opt)
        self.opt, self.model, self.pause = self.detector.opt, self.detector.model, True

    def run(self, image_or_path_or_tensor: Any, meta: Any = None) -> dict[str, Any]:
        """Detect in an image.

        Args:
            image_or_path_or_tensor: an array (H, W, 3) uint8 in BGR order, a path, or the dict of
                ``centernet.detector.prepare``.
            meta: metadata of the image: a dict, or for ddd its camera matrix ``calib`` (3, 4).

        Returns:
            ``results``, ``{class id from 1: rows}`` with rows as in the reference, (n, 5) float32 for ctdet, lists of
            numbers for multi_pose; and the seconds of each stage: ``tot``, ``load``, ``pre``, ``net``, ``dec``,
            ``post``, ``merge``.
        """
        info = meta if meta is None or isinstance(meta, dict) else {"calib": meta}
        found = self.detector.run(image_or_path_or_tensor, info)
        drawings = found.pop("images", {})
        if drawings:
            show = self.opt.debug < 4
            show_or_save(drawings, self.opt.debug_dir, "", show=show, delay=0 if self.pause else 1)
        if self.opt.task == "multi_pose":
            found["results"] = {cls: rows.tolist() for cls, rows in found["results"].items()}
        return found


detector_factory = {
    name: type(f"{name.title().replace('_', '')}Detector", (BaseDetector,), {"task": name}) for name in TASKS
}
