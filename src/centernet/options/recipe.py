"""The recipe of a run: the options that runs must share for their loss curves to be comparable."""

import os
from pathlib import Path
from typing import Any

from ..datasets import get_dataset
from ..tasks import get_spec
from ..tasks.option import Option
from .table import GENERAL, Options


def recipe(opt: Options) -> dict[str, Any]:
    """Return the options that affect the loss curve."""
    values: dict[str, Any] = {"task": opt.task, "heads": opt.heads}
    for option in _recipe_options(opt.task):
        value = getattr(opt, option.name)
        if not (option.implied and value == option.default):
            values[option.name] = value
    if not get_dataset(opt.dataset).class_names:
        values["dataset"] = f"{opt.dataset}/{Path(opt.data_dir).resolve().name}"  # one custom dataset is not another
    if opt.resume:
        values["load_model"] = ""  # the file that a run is resumed from is not what it started from
    for name in ("load_model", "pretrained"):
        values[name] = os.path.basename(values[name])  # the directory may differ between machines
    return values


def implied_values(task: str) -> dict[str, Any]:
    """Return the values of the options that a recipe leaves out because they have them."""
    return {option.name: option.default for option in _recipe_options(task) if option.implied}


def _recipe_options(task: str) -> list[Option]:
    return [option for option in (*GENERAL.values(), *get_spec(task).options) if option.recipe]
