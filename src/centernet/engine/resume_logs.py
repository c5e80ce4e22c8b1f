"""Logs of earlier starts, cut back to the checkpoint that a run resumes from. Files may have been edited or damaged."""

import csv
import re
from pathlib import Path

_COUNT = re.compile(r"\d{1,15}", re.ASCII)
_EPOCH = re.compile(r": epoch: (\d{1,9}) \|", re.ASCII)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, none if it does not exist. Bytes that are not UTF-8 become lone surrogates.

    Raises OSError when the file cannot be read.
    """
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def kept_losses(lines: list[str], header: list[str], iteration: int) -> tuple[list[list[str]], str | None]:
    """Return the rows of ``train_log.csv`` up to an iteration.

    Args:
        lines: of the file.
        header: the columns that this run writes: epoch, iteration, ...
        iteration: the last one to keep.

    Returns:
        The unbroken block of rows that ends with ``iteration``, since a log must not have gaps; and why earlier lines
        are not in it, or None if it begins with the first line of the file.
    """
    if not lines:
        return [], None
    if _cells(lines[0]) != header:
        return [], "line 1 does not have the columns of this run"
    kept: list[list[str]] = []
    number, problem = len(lines), None
    while number > 1 and not kept:  # later lines are of iterations that are repeated, or were cut off by a kill
        row = _numbers(lines[number - 1], len(header))
        if row is not None and int(row[1]) == iteration:
            kept.append(row)
        number -= 1
    if not kept:
        return [], f"it has no line of iteration {iteration}" if len(lines) > 1 else None
    while number > 1:
        row = _numbers(lines[number - 1], len(header))
        if row is None or int(row[1]) != int(kept[-1][1]) - 1 or not 1 <= int(row[0]) <= int(kept[-1][0]):
            problem = f"line {number} is not that of iteration {int(kept[-1][1]) - 1}"
            break
        kept.append(row)
        number -= 1
    return kept[::-1], problem


def _numbers(line: str, width: int) -> list[str] | None:
    """Return the cells of a row of epoch, iteration and numbers, or None if it is not one."""
    row = _cells(line)
    if row is None or len(row) != width or not all(_COUNT.fullmatch(cell) for cell in row[:2]):
        return None
    return row if all(_is_number(cell) for cell in row[2:]) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return len(text) < 40


def kept_scores(lines: list[str], epoch: int) -> tuple[list[list[str]], str | None]:
    """Return header and rows of ``val_log.csv`` up to an epoch, and why lines were left out, or None.

    Classes without objects have empty cells.
    """
    header, *rows = [_cells(line) for line in lines] or [None]
    if header is None or header[:1] != ["epoch"] or len(set(header)) < len(header):
        return [], "line 1 is not a header that begins with epoch" if lines else None
    kept, problem, last, before = [header], None, 0, 0
    for number, row in enumerate(rows, start=2):
        is_right = (
            row is not None
            and len(row) == len(header)
            and _COUNT.fullmatch(row[0]) is not None
            and all(not cell or _is_number(cell) for cell in row[1:])
        )
        if not is_right or row is None:
            problem = problem or f"line {number} is not one of an epoch and numbers"
            continue
        current = int(row[0])
        if current < before:
            problem = problem or f"line {number} is of epoch {current}, the line before of epoch {before}"
        before = current
        if last < current <= epoch:
            kept.append(row)
            last = current
    return kept if len(kept) > 1 else [], problem


def _cells(line: str) -> list[str] | None:
    try:
        (row,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError):
        return None
    return row if row and not re.search("[\ud800-\udfff]", line) else None


def kept_epochs(lines: list[str], epoch: int) -> list[str]:
    """Return the lines of a ``log.txt`` up to an epoch."""
    found = ((line, _EPOCH.search(line)) for line in lines)
    return [line for line, match in found if match and int(match[1]) <= epoch]
