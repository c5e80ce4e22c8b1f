"""Findings of a level of the check, printed and stored."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..utils.text import print_line

MAX_ROWS = 12  # of a table on the terminal; the files have all


@dataclass
class Finding:
    """A deviation of the device.

    Attributes:
        operator: the operator, such as ``convolution_backward``, or what else is named.
        where: path of the module, ``loss``, ``optimizer``; empty if it does not matter.
        direction: the pass: ``forward``, ``backward: input``, ``backward: weight``, ``optimizer``, ...
        text: the deviation in one sentence.
        hint: what to do, such as the switch to set.
    """

    operator: str
    where: str
    direction: str
    text: str
    hint: str = ""


@dataclass
class Level:
    """The result of one level.

    Attributes:
        name: as in ``--levels``.
        title: one line for the heading.
        columns: headings of the table.
        rows: cells as printed, the most important first.
        findings: deviations, the most important first.
        notes: what is worth knowing and not a deviation.
        seconds: duration.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return not self.findings

    def print(self) -> None:
        """Print the table, shortened, and the findings."""
        print_line("")
        print_line(f"{self.name}: {self.title} ({self.seconds:.1f} s)")
        shown = self.rows[:MAX_ROWS]
        widths = [max(len(cell) for cell in column) for column in zip(self.columns, *shown, strict=True)]
        for row in [self.columns, *shown] if shown else []:
            print_line("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if len(self.rows) > MAX_ROWS:
            print_line(f"  ... {len(self.rows) - MAX_ROWS} more rows")
        for note in self.notes:
            print_line(f"  note: {note}")
        for finding in self.findings:
            print_line(f"  DEVIATION: {finding.text}" + (f" [{finding.hint}]" if finding.hint else ""))
        if self.sound:
            print_line("  sound")


@dataclass
class Report:
    """All levels of a check, and what was checked."""

    device: str
    command: str
    setup: dict[str, Any]
    levels: list[Level] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return all(level.sound for level in self.levels)

    def to_json(self) -> str:
        """``device_check.json``."""
        content = {"sound": self.sound, **asdict(self)}
        for level, stored in zip(self.levels, content["levels"], strict=True):
            stored["sound"] = level.sound
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, path: Path) -> "Report":
        """Read what ``to_json`` has written."""
        content = json.loads(path.read_text(encoding="utf-8"))
        levels = []
        for stored in content.pop("levels"):
            stored.pop("sound")
            stored["findings"] = [Finding(**finding) for finding in stored["findings"]]
            levels.append(Level(**stored))
        content.pop("sound")
        return cls(**content, levels=levels)


def number(value: float) -> str:
    """Format a number of a table with three digits."""
    if math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{value:.2e}" if value and not 0.01 <= abs(value) < 1000 else f"{value:.3g}"
