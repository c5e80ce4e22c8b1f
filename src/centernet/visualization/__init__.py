"""Drawings for ``--debug``, demo, reports and check_data: one visualizer per task, and the primitives they share."""

from ..tasks.base import Task
from .base import Visualizer
from .canvas import Canvas, draw_boxes
from .ctdet import CtdetVisualizer
from .ddd import DddVisualizer
from .drawing import (
    blend,
    class_colors,
    has_display,
    heat_map_image,
    overlay_heat_map,
    restore_image,
    show_or_save,
)
from .exdet import ExdetVisualizer
from .multi_pose import MultiPoseVisualizer

__all__ = [
    "Canvas",
    "Visualizer",
    "blend",
    "build_visualizer",
    "class_colors",
    "draw_boxes",
    "has_display",
    "heat_map_image",
    "overlay_heat_map",
    "restore_image",
    "show_or_save",
]

VISUALIZERS: dict[str, type[Visualizer]] = {
    "ctdet": CtdetVisualizer,
    "multi_pose": MultiPoseVisualizer,
    "exdet": ExdetVisualizer,
    "ddd": DddVisualizer,
}


def build_visualizer(task: Task) -> Visualizer:
    """Return the visualizer of a task; tasks without one of their own are drawn as boxes."""
    return VISUALIZERS.get(task.name, Visualizer)(task)
