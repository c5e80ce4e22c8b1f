"""Read the loss curve out of the console output of training programs.

Understood are lines of the original CenterNet (averages over the epoch so far), of DLLogger (text and JSON), of Keras
and Lightning progress bars, ``Iter[12] step_train_loss 0.12``, ``Iteration 12/200 - Loss: 1.23``, and in general one
``loss: 2.34`` or ``loss=2.34`` per line. Every expression below is bounded, so a log is read in linear time.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError

MAX_ITERATIONS = 10_000_000  # of a training
NEAR = 500  # characters around a loss in which its epoch, iteration and rank are looked for
MAX_RECORDS = 3_000_000  # losses printed in a log of text
LOSS_NAMES = ("loss", "train_loss", "total_loss")
DLLOGGER_NAMES = ("train.loss", "train_loss", "loss", "total_loss")

# A number of at most 40 digits on each side of the point. Every alternative starts with another character, so that a
# failing match gives back one character at a time.
_NUMBER = (
    r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?(?:e[-+]?\d{1,4})?|\.\d{1,40}(?:e[-+]?\d{1,4})?|nan|inf(?:inity)?)(?!\w|[.,]\d)"
)
_AVERAGE = re.compile(
    rf"train:\s{{0,8}}\[(\d{{1,9}})\]\[(\d{{1,9}})/(\d{{1,9}})\](?:(?!train:|val:).)*?\|\s{{0,8}}loss\s{{1,8}}({_NUMBER})",
    re.IGNORECASE,
)
_LOSS = re.compile(
    r"(?<![\w./-])(?<!avg )(?<!average )(?<!mean )(?<!best )"
    r"(?:(train[._]loss|total_loss|loss)['\"]?\s{0,8}[:=]\s{0,8}|(step_train_loss)['\"]?\s{0,8}[:=\s]\s{0,8})"
    rf"({_NUMBER})",
    re.IGNORECASE,
)
_LOSS_WORD = re.compile("loss", re.IGNORECASE)
_BEFORE_LOSS = (len("step_train_"), len("train_"), 0)  # characters of _LOSS before the word, longest first
_OTHER_PHASE = re.compile(r"\b(?:val|valid|validation|eval|evaluation|test)\b", re.IGNORECASE)
_ITERATION = re.compile(
    r"(?<![a-z])(?:iter|iteration|step)\s{0,4}[\[:=#]?\s{0,4}(\d{1,9})(?![\d.])(?:\s{0,2}/\s{0,2}(\d{1,9}))?"
    r"|\[(\d{1,9})/(\d{1,9})\]"
    r"|(?<![\d/.])(\d{1,9})/(\d{1,9})\s{0,4}\[",
    re.IGNORECASE,
)
_EPOCH = re.compile(r"(?<![a-z])epoch\s{0,4}[\[:=#]?\s{0,4}(\d{1,9})(?![\d.])", re.IGNORECASE)
_RANK = re.compile(r"(?<![a-z_])rank\s{0,4}[:=]?\s{0,4}(\d{1,6})(?!\d)", re.IGNORECASE)
_KERAS_BAR = re.compile(r"(?<![\d/.])(\d{1,9})/(\d{1,9})\s{1,4}(?:\[[=>.]{1,200}\]|\u2501{1,200})")
_KERAS_EPOCH = re.compile(r"\s*Epoch (\d{1,9})/\d{1,9}\s*")


def _too_many(path: Path) -> UserError:
    return UserError(f"{path}: has more than {MAX_ITERATIONS} iterations; expected the log of one training")


class Reading(NamedTuple):
    """The losses of a log.

    Attributes:
        loss: (n,) float64.
        first: iteration of ``loss[0]``.
        notes: how they were read.
        printed: the iterations of the lines, where not every iteration has one; None where each has.
    """

    loss: np.ndarray
    first: int
    notes: list[str]
    printed: np.ndarray | None = None


class Records:
    """Losses of a log in the order of its lines, with what the lines state about their position.

    ``epoch``, ``iteration``, ``total`` (iterations per epoch) and ``rank`` are -1 where a line does not state them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch, self.iteration, self.total, self.rank = (array("q") for _ in range(4))
        self.loss = array("d")

    def add(self, loss: float, epoch: int = -1, iteration: int = -1, total: int = -1, rank: int = -1) -> None:
        if len(self.loss) >= MAX_RECORDS:
            raise UserError(f"{self.path}: prints more than {MAX_RECORDS} losses; expected the log of one training")
        if max(iteration, total) > MAX_ITERATIONS:
            raise _too_many(self.path)
        self.loss.append(loss)
        for column, value in ((self.epoch, epoch), (self.iteration, iteration), (self.total, total), (self.rank, rank)):
            column.append(value)

    def __len__(self) -> int:
        return len(self.loss)

    def rows(self) -> Iterable[tuple[int, int, int, float]]:
        return zip(self.epoch, self.iteration, self.total, self.loss, strict=True)

    def of_one_rank(self) -> tuple["Records", list[str]]:
        """Return the records of the lowest rank, and a note where there are several ranks."""
        ranks = sorted(set(self.rank) - {-1})
        if len(ranks) < 2:
            return self, []
        kept = Records(self.path)
        for (epoch, iteration, total, loss), rank in zip(self.rows(), self.rank, strict=True):
            if rank in (-1, ranks[0]):
                kept.add(loss, epoch, iteration, total, rank)
        return kept, [f"{self.path} has the losses of {len(ranks)} ranks: those of rank {ranks[0]} are read"]


def read_text_log(lines: Iterable[str], path: Path, formats: str) -> Reading:
    """Read the losses of all training iterations from the lines of a log.

    Args:
        lines: lines of the file.
        path: its path, for messages.
        formats: the formats that are understood, for messages.

    Raises:
        UserError: no loss is found, or it is ambiguous which losses are meant.
    """
    averages, keras, dllogger, plain = (Records(path) for _ in range(4))
    names: set[str] = set()
    several = ""
    keras_epoch = 1
    for line in lines:
        if "poch " in line and (match := _KERAS_EPOCH.fullmatch(line)):
            keras_epoch = int(match[1])
        if "loss" not in line and "Loss" not in line and "LOSS" not in line:
            continue
        found = False
        for match in _AVERAGE.finditer(line) if "rain:" in line or "RAIN:" in line else ():
            averages.add(float(match[4]), int(match[1]), int(match[2]), int(match[3]))
            found = True
        if found or len(averages) or _read_dllogger(line, dllogger):
            continue
        lower = line.lower()
        if ("val" in lower or "test" in lower) and _OTHER_PHASE.search(line):
            continue
        first, second = _first_two(_losses(line))
        if first is None:
            continue
        if second is not None:
            several = several or line.strip()[:60]
        elif (bar := _keras_bar(line, first.start())) and int(bar[1]):
            keras.add(float(first[3]), keras_epoch, int(bar[1]) - 1, int(bar[2]))
        else:
            names.add((first[1] or first[2]).lower())
            plain.add(float(first[3]), *_position(line[max(first.start() - NEAR, 0) : first.end() + NEAR]))
    if len(averages):
        return _undo_averages(averages)
    if len(keras):
        return _undo_averages(keras)
    if len(dllogger):
        return _in_order(dllogger, "DLLogger's losses")
    if several:
        raise UserError(f"{path}: '{several}' has several losses; expected {formats}")
    if not len(plain):
        raise UserError(f"{path}: no loss found; expected {formats}")
    if len(names) > 1:
        raise UserError(f"{path}: several losses in turn ({', '.join(sorted(names))}); expected one of them")
    return _in_order(plain, f"'{names.pop()}'")


def _losses(line: str) -> Iterator[re.Match]:
    """Yield the matches of ``_LOSS``, which is tried only where the word is: most of a line is something else."""
    end = 0
    for word in _LOSS_WORD.finditer(line):
        starts = [word.start() - length for length in _BEFORE_LOSS]
        match = next(filter(None, (_LOSS.match(line, start) for start in starts if start >= end)), None)
        if match is not None:
            end = match.end()
            yield match


def _first_two(matches: Iterator[re.Match]) -> tuple[re.Match | None, re.Match | None]:
    return next(matches, None), next(matches, None)


def _keras_bar(line: str, loss: int) -> re.Match | None:
    """Return the progress bar of Keras before ``- loss:``, which starts at character ``loss`` of the line."""
    before = line[max(loss - NEAR, 0) : loss]
    return _KERAS_BAR.search(before) if before.endswith(" - ") else None


def _position(line: str) -> tuple[int, int, int, int]:
    """Return the epoch, iteration, iterations per epoch and rank that a line states, -1 for what it does not."""
    iteration = total = -1
    lower = line.lower()  # the expressions below are slower than a look for the words they begin with
    if "iter" in lower or "step" in lower or "[" in line or "/" in line:
        if match := _ITERATION.search(line):
            iteration, total = ([int(group) for group in match.groups() if group is not None] + [-1])[:2]
    epoch = _EPOCH.search(line) if "epoch" in lower else None
    rank = _RANK.search(line) if "rank" in lower else None
    return int(epoch[1]) if epoch else -1, iteration, total, int(rank[1]) if rank else -1


def _read_dllogger(line: str, records: Records) -> bool:
    """Add the loss of a line of DLLogger's JSON format, and return whether the line is one."""
    if not line.startswith("DLLL "):
        return False
    try:
        entry = json.loads(line[5:])
    except (ValueError, RecursionError):
        return True
    data = entry.get("data") if isinstance(entry, dict) else None
    if not isinstance(data, dict) or entry.get("type", "LOG") != "LOG":
        return True
    value = next((data[name] for name in DLLOGGER_NAMES if name in data), None)
    try:
        loss = float(value) if isinstance(value, (int, float, str)) and len(str(value)) < 80 else None
    except (ValueError, OverflowError):
        loss = None
    step = entry.get("step")
    steps = step if isinstance(step, list) else [step]
    if loss is None or not all(type(part) is int and 0 <= part <= MAX_ITERATIONS for part in steps):
        return True
    epoch, iteration = ([-1, -1, *steps][-2:]) if len(steps) < 3 else (-1, -1)
    text = str(data.get("rank", ""))
    rank = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else -1
    if len(steps) < 3:  # a third number counts within a validation
        records.add(loss, epoch, iteration, -1, rank)
    return True


def in_step_order(points: Iterable[tuple[int, float, int]], name: str, path: Path) -> Reading:
    """Place losses, given as iteration, loss and epoch (-1 if it is not known), by iteration."""
    records = Records(path)
    for step, loss, epoch in points:
        if step < 0:
            raise UserError(f"{path}: has a loss at iteration {step}")
        records.add(loss, epoch, step)
    return _in_order(records, name)


def _in_order(records: Records, name: str) -> Reading:
    """Place losses by the iterations that their lines state; lines of a resumed run replace those they repeat."""
    path = records.path
    records, notes = records.of_one_rank()
    if min(records.iteration) < 0:
        notes.append(f"{path} is read as text: each of its {len(records)} lines with {name} counts as one iteration")
        return Reading(np.array(records.loss, dtype=np.float64), 1, notes)
    kept = _Placed(counts_from_zero=min(records.iteration) == 0)
    for epoch, iteration, total, loss in records.rows():
        done = iteration + kept.counts_from_zero
        while kept.epoch and kept.epoch[-1] > epoch >= 0:
            kept.drop_last()
        offset = _epoch_offset(epoch, done, total, kept, path)
        while kept.position and kept.position[-1] >= offset + done:
            kept.drop_last()
        if offset + done > MAX_ITERATIONS:
            raise _too_many(path)
        kept.add(offset + done, loss, epoch, offset, done, total)
    if kept.assumed:
        notes.append(
            f"{path} does not state how many iterations an epoch has: by the printed ones, "
            f"{', '.join(map(str, sorted(kept.assumed)[:4]))}"
        )
    if kept.dropped:
        notes.append(
            f"{path} repeats iterations (a resumed run, or a count that starts again in each epoch, which its lines do "
            f"not name): the later lines count, {kept.dropped} of {len(records)} are left out"
        )
    return _spread(np.array(kept.position), np.array(kept.loss, dtype=np.float64), name, path, notes)


class _Placed:
    """Losses with their iteration ``position``: ``done`` iterations of ``total`` after the ``offset`` of an epoch.

    Attributes:
        counts_from_zero: whether the first iteration is called 0.
        dropped: number of losses that later ones have replaced.
        assumed: lengths of epochs that follow from the printed iterations alone.
    """

    def __init__(self, counts_from_zero: bool) -> None:
        self.position, self.epoch, self.offset, self.done, self.total = (array("q") for _ in range(5))
        self.loss = array("d")
        self._columns: tuple[array, ...] = (self.position, self.loss, self.epoch, self.offset, self.done, self.total)
        self.counts_from_zero, self.dropped = counts_from_zero, 0
        self.assumed: set[int] = set()

    def add(self, *values) -> None:
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)

    def drop_last(self) -> None:
        self.dropped += 1
        for column in self._columns:
            column.pop()

    def epoch_length(self, path: Path) -> int:
        """Return how many iterations the epoch of the last loss has.

        Without a total it is taken as a multiple of the printed interval, as which most programs choose it.

        Raises:
            UserError: the lines leave it open.
        """
        last, total = self.done[-1], self.total[-1]
        if total > 0:
            return max(total, last)
        same = len(self.done) > 1 and self.offset[-2] == self.offset[-1]
        if not same and self.counts_from_zero:
            raise UserError(
                f"{path}: has one line per epoch, of its first iteration, and does not state how many iterations an "
                "epoch has; print more often"
            )
        step = last - self.done[-2] if same else 1
        length = last - 1 + step if self.counts_from_zero else last
        if step > 1:
            self.assumed.add(length)
        return length


def _epoch_offset(epoch: int, done: int, total: int, kept: _Placed, path: Path) -> int:
    """Return the number of iterations before the epoch of a line, given the lines before it.

    Zero where iterations are counted over the whole training.
    """
    if not kept.position:
        return (epoch - 1) * total if epoch > 1 and total >= done else 0
    offset, last_done, last_total = kept.offset[-1], kept.done[-1], kept.total[-1]
    starts_again = done <= last_done
    if epoch > kept.epoch[-1] >= 0 and starts_again:
        if epoch > kept.epoch[-1] + 1:
            raise UserError(f"{path}: epoch {epoch} follows epoch {kept.epoch[-1]}; expected every epoch")
        return offset + kept.epoch_length(path)
    if epoch < 0 and starts_again and last_done >= last_total > 0:
        return offset + last_total
    return offset


def _spread(positions: np.ndarray, losses: np.ndarray, name: str, path: Path, notes: list[str]) -> Reading:
    """Give each iteration the loss of the interval that a line closes."""
    gaps = np.diff(positions)
    step = 1
    if len(gaps):
        values, counts = np.unique(gaps, return_counts=True)
        step = int(values[counts.argmax()])
        wide = np.flatnonzero(gaps >= max(2 * step, 2))
        if wide.size:
            before, after = positions[wide[0] : wide[0] + 2]
            raise UserError(f"{path}: iterations {before + 1} to {after - 1} are missing")
    first = max(int(positions[0]) - step + 1, 1)
    if step > 1:
        notes.append(f"{path}: {name} is printed every {step} iterations: each iteration has the loss of its interval")
    printed = positions if len(positions) < positions[-1] - first + 1 else None
    return Reading(np.repeat(losses, np.diff(positions, prepend=first - 1)), first, notes, printed)


def _undo_averages(records: Records) -> Reading:
    """Recover losses from averages over the epoch so far; the iterations of each interval get its mean."""
    path = records.path
    lines: list[tuple[int, int, int, float]] = []
    for line in records.rows():
        while lines and lines[-1][:2] >= line[:2]:  # printed twice, or a resumed run
            lines.pop()
        lines.append(line)
    starts = [0, *(k for k in range(1, len(lines)) if lines[k][0] != lines[k - 1][0]), len(lines)]
    numbers = [lines[start][0] for start in starts[:-1]]
    if numbers[0] < 1 or any(after != before + 1 for before, after in pairwise(numbers)):
        shown = ", ".join(map(str, numbers[:9]))
        raise UserError(f"{path}: its training lines are of epochs {shown}; expected consecutive epochs from 1")
    step = max((b[1] - a[1] for a, b in pairwise(lines) if a[0] == b[0]), default=None)
    losses: list[np.ndarray] = []
    first = 1 + (numbers[0] - 1) * lines[0][2]
    size = filled = 0
    for begin, end in pairwise(starts):
        epoch, _, total, _ = lines[begin]
        done, done_sum, mean = 0, 0.0, 0.0
        for _, iteration, _, average in lines[begin:end]:
            mean = (average * (iteration + 1) - done_sum) / (iteration + 1 - done)
            losses.append(np.full(iteration + 1 - done, mean))
            done, done_sum = iteration + 1, average * (iteration + 1)
        left = total - done
        if step is None and left > done:
            if len(numbers) > 1:  # a single line may be the beginning of a log
                raise UserError(
                    f"{path}: prints one average per epoch, of its first {done} of {total} iterations: the losses of "
                    "the others are not in it; print more often (--print_iter)"
                )
        elif step is None or left < step:
            losses.append(np.full(max(left, 0), mean))
            filled = max(filled, left)
        elif epoch != numbers[-1]:  # the last epoch may end early: the run was stopped or is still running
            raise UserError(f"{path}: lines are missing: epoch {epoch} ends at iteration {done} of {total}")
        size += max(done, total)
        if first + size > MAX_ITERATIONS:
            raise _too_many(path)
    every = f"every {step} iterations" if step else "once per epoch"
    note = f"{path} prints averages over the epoch {every}: undone, each iteration has the mean of its interval"
    if filled:
        note += f", and the last {filled} of an epoch, which no line covers, that of the one before"
    return Reading(np.concatenate(losses), first, [note])
