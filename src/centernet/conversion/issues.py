"""Problems in annotations: one type for the loader, which raises, and for check_data.py, which counts.

Needs the standard library only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

# Severities. An error stops the start, or with --on_bad_image skip excludes what it concerns.
ERROR = "error"
LEFT_OUT = "left out"  # not used, and harmless as long as something remains
NOTE = "note"  # used, though perhaps not as intended

MAX_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class Issue:
    """One problem.

    Attributes:
        severity: ``ERROR``, ``LEFT_OUT`` or ``NOTE``.
        kind: what is wrong, as a plural that a number can follow: "boxes without area".
        path: the file or folder that it is in.
        text: where exactly, and why: "annotation 3 of 'a.jpg' has no bbox".
    """

    severity: str
    kind: str
    path: Path
    text: str

    @property
    def line(self) -> str:
        """Return the issue as one line."""
        return f"{self.path}: {self.text}"


Report = Callable[[Issue], None]


def raise_error(issue: Issue) -> None:
    """Raise UserError on the first error; accept everything else."""
    if issue.severity == ERROR:
        raise UserError(issue.line)


def ignore_issue(issue: Issue) -> None:
    """Skip silently (already reported, or reported later)."""


def report_elsewhere(report: Report, path: Path, found: Sequence[tuple[str, Path]]) -> None:
    """Report pairs of a file name that annotations state and the image that is used for it."""
    if found:
        text = f"{len(found)} image(s), such as {short(found[0][0])}, which is {found[0][1]}"
        report(Issue(NOTE, "file names that were found elsewhere", path, text))


class IssueLog:
    """Collects issues by severity and kind.

    Attributes:
        issues: {severity: {kind: [issue, ...]}} in the order of their first occurrence.
    """

    def __init__(self, raise_errors: bool, advice: str = "") -> None:
        """Set what happens on an error: raise UserError with ``advice`` appended, or collect it."""
        self.raise_errors, self.advice = raise_errors, advice
        self.issues: dict[str, dict[str, list[Issue]]] = {ERROR: {}, LEFT_OUT: {}, NOTE: {}}

    def __call__(self, issue: Issue) -> None:
        if issue.severity == ERROR and self.raise_errors:
            raise UserError(issue.line + self.advice)
        self.issues[issue.severity].setdefault(issue.kind, []).append(issue)

    def count(self, *severities: str) -> int:
        """Return the number of issues of these severities."""
        return sum(len(found) for severity in severities for found in self.issues[severity].values())

    def lines(self) -> list[str]:
        """Return a line for each kind: severity, number, and the first issue."""
        lines = []
        for severity, kinds in self.issues.items():
            reason = "--on_bad_image skip: " if severity == ERROR else ""
            left_out = "" if severity == NOTE else ", left out"
            for kind, found in kinds.items():
                lines.append(f"note: {reason}{kind}{left_out}: {len(found)}, the first: {found[0].line}")
        return lines


def short(value) -> str:
    """Return a value as text of bounded length for a message."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
