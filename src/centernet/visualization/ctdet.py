"""Drawings of object detection: boxes and labels."""

import numpy as np

from .base import Visualizer


class CtdetVisualizer(Visualizer):
    """Drawings of ``tasks.ctdet``."""

    def draw_dets(self, image: np.ndarray, dets: np.ndarray, scores: bool = True) -> np.ndarray:
        """Draw detections (n, 6) in output pixels on the network's input."""
        return self.boxes(image, self.to_input(dets, slice(0, 4)), self.opt.center_thresh, scores)
