"""The list of tasks. ``base.py`` describes their interface, ``specs.py`` their options and heads."""

from typing import TYPE_CHECKING

from ..errors import UserError
from ..registry import Registry
from .specs import SPECS, TaskSpec

if TYPE_CHECKING:
    from ..options.table import Options
    from .base import Task

# One line per task: its name and where its class is, which is imported on first use.
TASKS: "Registry[type[Task]]" = Registry(
    {
        "ctdet": "centernet.tasks.ctdet:Ctdet",
        "multi_pose": "centernet.tasks.multi_pose:MultiPose",
        "exdet": "centernet.tasks.exdet:Exdet",
        "ddd": "centernet.tasks.ddd:Ddd",
    }
)


def get_task(name: str) -> "type[Task]":
    """Return the class of a task; raise UserError for an unknown name."""
    if name not in TASKS:
        raise UserError(f"task {name}: no such task; choose from {', '.join(TASKS)}")
    return TASKS[name]


def get_spec(name: str) -> type[TaskSpec]:
    """Return the specification of a task; raise UserError for an unknown name.

    A task that is not listed in ``specs.SPECS`` is its own specification.
    """
    return SPECS[name] if name in SPECS else get_task(name)


def all_specs() -> dict[str, type[TaskSpec]]:
    """Return the specifications of all tasks by name."""
    return {name: get_spec(name) for name in TASKS}


def build_task(opt: "Options") -> "Task":
    """Return the task of finished options."""
    return get_task(opt.task)(opt)
