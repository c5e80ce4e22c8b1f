"""The declaration of a command line option."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

TRAIN, TEST, DEMO, EXPORT, CHECK = "main.py", "test.py", "demo.py", "export.py", "check_data.py"
ALL = (TRAIN, TEST, DEMO, EXPORT, CHECK)
INFERENCE = (TRAIN, TEST, DEMO)  # main.py validates


@dataclass(frozen=True)
class Option:
    """``--name`` of the command line.

    Attributes:
        name: without dashes; unique among all options of all tasks.
        help: short description. The default is appended by ``--help``.
        default: False declares a flag.
        kind: type of the value: float, int or str.
        low, high: inclusive bounds of a number.
        above: exclusive lower bound of a number.
        choices: allowed values of a string; empty: any.
        many: the value is a comma-separated list of ``kind``.
        recipe: the option affects the loss curve, so runs that differ in it are not compared.
        implied: a recipe option that is left out of the recipe at its default, because recordings made before the
            option existed do not name it.
        data: the option identifies the data, so a checkpoint stores it for later tests.
        scripts: programs that read it.
        new: the reference implementation does not have it, so no abbreviation that is valid there may select it.
    """

    name: str
    help: str
    default: Any = False
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    choices: tuple[str, ...] = ()
    many: bool = False
    recipe: bool = False
    implied: bool = False
    data: bool = False
    scripts: tuple[str, ...] = INFERENCE
    new: bool = False

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Add the option to an argument group of a parser."""
        text = self.help.replace("%", "%%")
        if self.default is False:
            group.add_argument(f"--{self.name}", action="store_true", help=text)
            return
        if self.default not in ("", -1) and "default" not in text:
            text += f" (default: {self.default})"
        more: dict[str, Any] = {"choices": self.choices} if self.choices else {"metavar": self._metavar()}
        group.add_argument(f"--{self.name}", default=self.default, type=self._parse(), help=text, **more)

    def _metavar(self) -> str:
        return "LIST" if self.many else {int: "N", float: "X"}.get(self.kind, "TEXT")

    def _parse(self) -> Callable[[str], Any]:
        if self.many:
            return _list_of(self.kind)
        return str if self.kind is str else _number(self.kind, self.low, self.high, self.above)


def loss_weight(name: str, of: str) -> Option:
    """Declare the weight of a loss term."""
    return Option(name, f"weight of {of}", 1, low=0, recipe=True, scripts=(TRAIN,))


def oracle(name: str) -> Option:
    """Declare ``--eval_oracle_<name>``, which replaces a head by its ground truth, in the loss, too."""
    return Option(f"eval_oracle_{name}", f"replace {name} by the ground truth, for error analysis", scripts=(TRAIN,))


def option(default: Any, help: str, **details: Any) -> Any:
    """Declare an option as an annotated class attribute of an :class:`OptionGroup`, which gives it its name.

    ``kind`` is the type of ``default`` unless it is given. Returns Any for the benefit of the annotation, as
    ``dataclasses.field`` does.
    """
    kind = details.pop("kind", str if isinstance(default, (bool, str)) else type(default))
    details.setdefault("scripts", ())
    return Option("", help, default, kind, **details)


class OptionGroup(argparse.Namespace):
    """A section of ``--help``. Subclasses declare its options as annotated attributes, see :func:`option`.

    ``scripts`` of the class statement are those of the options that do not name their own.
    """

    title: ClassVar[str] = ""
    declared: ClassVar[tuple[Option, ...]] = ()

    def __init_subclass__(cls, title: str = "", scripts: tuple[str, ...] = INFERENCE) -> None:
        super().__init_subclass__()
        found = {name: value for name, value in vars(cls).items() if isinstance(value, Option)}
        for name in found:
            delattr(cls, name)  # the values of a run are attributes of the instance
        cls.title = title
        cls.declared = tuple(
            replace(value, name=name, scripts=value.scripts or scripts) for name, value in found.items()
        )


def _number(kind: type, low: float, high: float, above: float) -> Callable[[str], Any]:
    """Return an argument type: a finite number with low <= number <= high and number > above."""

    what = {int: "an integer", float: "a number"}[kind]
    if math.isfinite(low) and math.isfinite(high):
        what += f" from {low} to {high}" if kind is int else f" from {low:g} to {high:g}"
    elif math.isfinite(low):
        what += f" of at least {low:g}"
    elif math.isfinite(above):
        what += f" above {above:g}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and value > above and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"expected {what}, not '{text}'")
        return value

    return parse


def _list_of(kind: type) -> Callable[[str], str]:
    """Return an argument type: comma-separated numbers. They stay text until the options are derived."""

    def parse(text: str) -> str:
        try:
            for part in text.split(",") if text else []:
                kind(part)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected comma-separated numbers, not '{text}'") from None
        return text

    return parse
