"""How a task declares an option of its own."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """``--name`` of the command line.

    Attributes:
        name: without dashes; no other task and no option of ``opts.py`` has it.
        help: what it is, in a few words.
        default: False makes it a flag.
        kind: type of the value: float, int or str.
        low, high: what a number may be, both included.
        choices: what a text may be, if not anything.
        recipe: it changes the loss curve, so that runs that differ in it are not compared. One of the name
            ``*_weight`` is then the weight of a part of the loss, which 0 switches off.
        data: it says which data are meant, so that a checkpoint keeps it for its test.
        scripts: those that look at it, if not all of main.py, test.py and demo.py do.
        new: the reference does not have it, so that no abbreviation of the reference may come to mean it.
    """

    name: str
    help: str
    default: float | str | bool = False
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    recipe: bool = False
    data: bool = False
    scripts: tuple[str, ...] = ("main.py", "test.py", "demo.py")
    new: bool = False


def loss_weight(name: str, of: str) -> Option:
    """The weight of a part of the loss."""
    return Option(name, f"weight of {of}", 1, low=0, recipe=True)


def oracle(name: str) -> Option:
    """``--eval_oracle_<name>``, which ``with_oracle`` looks at."""
    return Option(f"eval_oracle_{name}", f"use the ground truth for {name}, to take errors apart")
