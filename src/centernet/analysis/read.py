"""Read loss curves and run logs: ``train_log.csv``, ``val_log.csv``, tables, event files and logs of other programs.

Files are read line by line, in linear time and with bounded memory for any content.
"""

import csv
import importlib.util
import io
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..utils.files import read_json
from .text_logs import LOSS_NAMES, MAX_ITERATIONS, Reading, in_step_order, read_text_log

MAX_LINE = 1_000_000  # characters
MAX_JSON = 32 << 20  # bytes
MAX_NUMBER = 80  # characters of a number
ITERATION_NAMES = ("iteration", "iter", "global_step", "step")  # columns of other programs' tables
EVENT_FILES = "events.out.tfevents.*"
EVENT_TAGS = ("train.loss", "train/loss", "loss/train", "loss", "train_loss", "total_loss", "train_loss_step")
FORMATS = (
    "a table with a column loss, train_loss or total_loss, one number per line, a log of lines 'train: [1][0/924] ... "
    "|loss 2.3456 |', or a log with one 'loss: 2.34' or 'loss=2.34' per iteration"
)
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]{0,32}[A-Za-z]")


@dataclass
class Curve:
    """The loss of every training iteration, with the description of the run that made it.

    Attributes:
        path: file that was read.
        loss: (n,) float64.
        info: the run's ``opt.json`` or the JSON file of a reference; empty without one.
        notes: how the file was read, where that is not obvious.
        first: iteration of ``loss[0]``; above 1 for a run that was resumed without its earlier log.
        printed: the iterations whose losses are known, where they are not all; each stands for those since the last.
    """

    path: Path
    loss: np.ndarray
    info: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    first: int = 1
    printed: np.ndarray | None = None

    @property
    def recipe(self) -> dict | None:
        return self.info.get("recipe") or None

    @property
    def last(self) -> int:
        """Iteration of ``loss[-1]``."""
        return self.first + len(self.loss) - 1

    @property
    def name(self) -> str:
        """Name of the run directory, or of the file."""
        return self.path.resolve().parent.name if self.path.name == "train_log.csv" else self.path.stem

    def loss_from(self, first: int, last: int) -> np.ndarray:
        """Return the losses of iterations ``first`` to ``last``, both included."""
        return self.loss[first - self.first : last - self.first + 1]

    def held(self, printed: np.ndarray, first: int, last: int) -> np.ndarray:
        """Return the losses of iterations ``first`` to ``last`` as a log has them that lists ``printed`` ones only."""
        places = np.searchsorted(printed, np.arange(first, last + 1)).clip(max=len(printed) - 1)
        return self.loss[(printed[places] - self.first).clip(0, len(self.loss) - 1)]


@dataclass
class RunLog:
    """The logs of one run.

    Attributes:
        folder: the run directory.
        train: ``train_log.csv`` by column, each (iterations,) float64: epoch, iteration, losses, lr, images/s.
        val: ``val_log.csv`` by column, each (validations,) float64; NaN where a row has no number. Empty without one.
        info: ``opt.json``; empty without one.
        notes: what could not be read.
    """

    folder: Path
    train: dict[str, np.ndarray]
    val: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def first(self) -> int:
        """Return the first iteration of the log; above 1 for a run that was resumed without its earlier log."""
        return int(self.train["iteration"][0])

    @property
    def losses(self) -> list[str]:
        """Return the names of the loss and its terms."""
        return [name for name in self.train if name not in ("epoch", "iteration", "lr", "images/s")]

    @property
    def scores(self) -> list[str]:
        """Return the names of the scores of validations, the main one first, without those of single classes."""
        others = {"epoch", "time", *self.losses}
        names = [name for name in self.val if name not in others and "/" not in name]
        main = self.info.get("options", {}).get("main_score")
        return sorted(names, key=lambda name: name != main)

    @property
    def epochs(self) -> np.ndarray:
        """Return the epochs completed after each iteration, including fractions, (iterations,) float64."""
        epoch = self.train["epoch"]
        _, start, place, counts = np.unique(epoch, return_index=True, return_inverse=True, return_counts=True)
        length = np.maximum(counts, counts.max())  # the last epoch may not be complete
        skipped = np.zeros(len(counts), dtype=np.int64)
        if self.first > 1:
            skipped[0] = length[0] - counts[0]  # iterations of the first epoch that are not in the log
        return epoch - 1 + (np.arange(len(epoch)) - start[place] + skipped[place] + 1) / length[place]


def distinct_names(folders: list[Path]) -> list[str]:
    """Return the names of folders, with as many of the folders above as tell those of the same name apart.

    Raises:
        UserError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    twice = next((folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is given twice; name each run once")
    lengths = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-length:]) for path, length in zip(paths, lengths, strict=True)]
        counts = Counter(names)
        if all(count == 1 for count in counts.values()):
            return names
        lengths = [length + (counts[name] > 1) for length, name in zip(lengths, names, strict=True)]


# Files


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a text file without terminal codes, with ``\n`` at the end of all but an unfinished last one.

    Lines end with ``\n``, ``\r`` or ``\r\n``; the encoding is UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UserError: the file cannot be read, is empty, is not text, or has a line of more than ``MAX_LINE`` characters.
    """
    empty = True
    try:
        with path.open("rb") as file:
            utf16 = file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
            text = io.TextIOWrapper(file, "utf-16" if utf16 else "utf-8-sig", errors="replace")
            while line := text.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise UserError(f"{path}: has a line of more than {MAX_LINE} characters; expected {FORMATS}")
                if "\0" in line:
                    raise UserError(f"{path}: is a binary file; expected {FORMATS}")
                if "\x1b" in line:
                    line = _TERMINAL_CODE.sub("", line)
                empty = empty and not line.strip()
                yield line
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected {FORMATS}") from error
    if empty:
        raise UserError(f"{path}: is empty; expected {FORMATS}")


def read_info(path: Path) -> dict:
    """Read the JSON object in a run's ``opt.json`` or next to a reference.

    Raises:
        UserError: it cannot be read, or a part that is used here has another type than a run writes.
    """
    if path.is_file() and path.stat().st_size > MAX_JSON:
        raise UserError(f"{path}: is larger than {MAX_JSON >> 20} MiB; expected the description of a run")
    info = _without_surrogates(read_json(path))
    if not isinstance(info, dict):
        raise UserError(f"{path}: expected a JSON object (it describes the curve next to it)")
    for name in ("recipe", "options", "versions"):
        info[name] = info.get(name) or {}
        if not isinstance(info[name], dict):
            raise UserError(f"{path}: expected a JSON object whose '{name}' is an object")
    return info


def _without_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which JSON can express and no file can hold, in all strings of a JSON value."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def to_number(text: str) -> float | None:
    """Return the number that an ASCII text of at most ``MAX_NUMBER`` characters holds, NaN and infinity included."""
    if len(text) > MAX_NUMBER or not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


# Tables


def split_row(line: str) -> list[str]:
    """Return the cells of one line, which may be the header of a table."""
    return next(read_rows([line], Path(), delimiter_of(line)))[1]


def delimiter_of(header: str) -> str | None:
    """Return the delimiter of a table: tab, comma or semicolon; None for whitespace."""
    return next((mark for mark in "\t,;" if mark in header), None)


def read_rows(lines: Iterable[str], path: Path, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and cells of the rows of a table that are not blank, the header first.

    A last row that was cut off, because the program that writes it was interrupted, is left out.

    Raises:
        UserError: a row has another number of cells than the header, or is not a row.
    """
    latest = ""

    def remembered() -> Iterator[str]:
        nonlocal latest
        for line in lines:
            latest = line
            yield line

    rows: Iterable[list[str]]
    if delimiter is None:
        rows = (line.lstrip("#").split() for line in remembered())
    else:
        rows = csv.reader(remembered(), delimiter=delimiter, skipinitialspace=True)
    width = 0
    try:
        for number, row in enumerate(rows, 1):
            if not any(cell.strip() for cell in row):
                continue
            if not width:
                width = len(row)
                row = [name.strip().lstrip("#").strip() for name in row]
            elif len(row) != width:
                if len(row) < width and not latest.endswith("\n"):
                    return
                raise UserError(f"{path}: row {number} has {len(row)} columns, the header has {width}")
            yield number, row
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error


class Table:
    """A table that is read row by row.

    Attributes:
        columns: names of the columns.
        rows: iterator over the rows; each may be taken once.
    """

    def __init__(self, lines: Iterable[str], path: Path) -> None:
        lines = iter(lines)
        blank: list[str] = []
        header = ""
        for header in lines:
            if header.strip():
                break
            blank.append("\n")
        numbered = read_rows(chain(blank, [header], lines), path, delimiter_of(header))
        _, self.columns = next(numbered, (0, []))
        self.path = path
        self.rows = (row for _, row in numbered)


def is_own_log(columns: list[str]) -> bool:
    """Return whether these are the columns of a ``train_log.csv``."""
    return columns[:3] == ["epoch", "iteration", "loss"] and columns[-2:] == ["lr", "images/s"]


class IterationOrder:
    """Order of the rows of a ``train_log.csv``: consecutive iterations, where later rows replace those they repeat.

    Attributes:
        first: iteration of the first row that counts.
        count: rows that count so far.
        repeated: whether rows were replaced, as those of a resumed run replace others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = 1
        self.count = 0
        self.repeated = False

    def place(self, text: str) -> int:
        """Return how many of the rows so far come before the iteration that ``text`` names; the others are replaced.

        Raises:
            UserError: it is not an iteration, or iterations are missing before it.
        """
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise UserError(f"{self.path}: '{text[:40]}' in column iteration is not an integer")
        iteration = int(text)
        if iteration < 1 or self.count and iteration > self.first + self.count:
            last = self.first + self.count - 1 if self.count else 0
            raise UserError(f"{self.path}: iteration {iteration} follows {last}; expected consecutive iterations")
        if iteration > MAX_ITERATIONS:
            raise UserError(f"{self.path}: iteration {iteration} is above {MAX_ITERATIONS}")
        if not self.count or iteration < self.first:
            self.repeated = self.count > 0
            self.first, self.count = iteration, 0
        place = iteration - self.first
        self.repeated |= place < self.count
        self.count = place + 1
        return place


def own_rows(table: Table) -> tuple[list[list[str]], int]:
    """Return the rows of a ``train_log.csv`` that count, as text, and the iteration of the first."""
    order = IterationOrder(table.path)
    kept: list[list[str]] = []
    for row in table.rows:
        place = order.place(row[1].strip())
        del kept[place:]
        kept.append(row)
    return kept, order.first


# Loss curves


def read_loss(path: Path) -> Curve:
    """Read the loss of every iteration from a file of one of the ``FORMATS``. NaN and infinity are kept.

    Raises:
        UserError: the file cannot be used; the message names it and what was expected.
    """
    lines = read_lines(path)
    begin = []
    for line in lines:
        begin.append(line)
        if line.strip():
            break
    head, second = begin[-1], next(lines, "")
    lines = chain(begin, [second] if second else [], lines)
    if _is_table_with_loss(head, second):
        return _read_column(Table(lines, path))
    if to_number(head.strip()) is not None:
        losses = _losses((line.strip() for line in lines if line.strip()), path)
        return Curve(path, losses)
    return _as_curve(path, read_text_log(lines, path, FORMATS))


def _is_table_with_loss(head: str, second: str) -> bool:
    try:
        header = split_row(head)
    except (UserError, StopIteration):
        return False
    if not any(name.lower() in LOSS_NAMES for name in header) or any(to_number(name) is not None for name in header):
        return False
    # A sentence with the word loss is not a header.
    return delimiter_of(head) is not None or not second.strip() or len(second.split()) == len(header)


def _as_curve(path: Path, reading: Reading) -> Curve:
    if reading.first > 1:
        reading.notes.append(f"{path} starts at iteration {reading.first}")
    return Curve(path, reading.loss, notes=reading.notes, first=reading.first, printed=reading.printed)


def _losses(texts: Iterable[str], path: Path) -> np.ndarray:
    losses = array("d")
    for text in texts:
        value = to_number(text)
        if value is None:
            raise UserError(
                f"{path}: '{text[:40]}' as loss number {len(losses) + 1} is not a number; expected {FORMATS}"
            )
        losses.append(value)
        if len(losses) > MAX_ITERATIONS:
            raise UserError(f"{path}: has more than {MAX_ITERATIONS} iterations; expected the log of one training")
    if not losses:
        raise UserError(f"{path}: has a header and no iterations")
    return np.array(losses, dtype=np.float64)


def _read_column(table: Table) -> Curve:
    path, names = table.path, [name.lower() for name in table.columns]
    if is_own_log(table.columns):
        train, order = _read_columns(table, ["loss"])
        notes = [f"{path} repeats iterations (a resumed run): the later lines count"] if order.repeated else []
        return _as_curve(path, Reading(train["loss"], order.first, notes))
    found = [name for name in names if name in LOSS_NAMES]
    name = "loss" if "loss" in found else found[0]
    if found.count(name) > 1 or (name != "loss" and len(found) > 1):
        raise UserError(f"{path}: several columns could be the loss ({', '.join(found)}); expected one of them")
    index = names.index(name)
    counters = [names.index(counter) for counter in ITERATION_NAMES if counter in names]
    if not counters:
        return Curve(path, _losses((row[index].strip() for row in table.rows), path))
    epoch = names.index("epoch") if "epoch" in names else None
    return _as_curve(path, in_step_order(_positions(table, index, counters[0], epoch), f"column '{name}'", path))


def _positions(table: Table, loss: int, counter: int, epoch: int | None) -> Iterator[tuple[int, float, int]]:
    """Yield iteration, loss and epoch (-1 without one) of the rows that have a loss; others are of validations."""
    before = math.inf
    falling = rising = False
    for row in table.rows:
        text = row[loss].strip()
        if not text:
            continue
        value = to_number(text)
        if value is None:
            raise UserError(f"{table.path}: '{text[:40]}' as the loss is not a number; expected {FORMATS}")
        number = to_number(row[counter].strip())
        if number is None or not 0 <= number <= MAX_ITERATIONS or number % 1:
            cell = row[counter].strip()[:40]
            raise UserError(f"{table.path}: '{cell}' in column {table.columns[counter]} is not an iteration")
        iteration = int(number)
        # Some programs write epochs as fractions, which say nothing that their iterations do not.
        number = None if epoch is None else to_number(row[epoch].strip())
        is_count = number is not None and 0 <= number <= MAX_ITERATIONS and not number % 1
        falling, rising = falling or iteration < before < math.inf, rising or iteration > before
        before = iteration
        yield iteration, value, int(number or 0) if is_count else -1
    if falling and not rising:
        raise UserError(f"{table.path}: its iterations count down; expected them in the order of the training")
    if before == math.inf:
        raise UserError(f"{table.path}: has a header and no iterations")


def _read_columns(table: Table, names: list[str]) -> tuple[dict[str, np.ndarray], IterationOrder]:
    """Read columns of a ``train_log.csv`` as float64, each iteration once."""
    order = IterationOrder(table.path)
    indices = [table.columns.index(name) for name in names]
    values = [array("d") for _ in names]
    for row in table.rows:
        place = order.place(row[1].strip())
        for name, index, column in zip(names, indices, values, strict=True):
            if place < len(column):
                del column[place:]
            number = to_number(row[index].strip())
            if number is None:
                raise UserError(
                    f"{table.path}: '{row[index][:40]}' as {name} of iteration {row[1].strip()} is not a number"
                )
            column.append(number)
    if not order.count:
        raise UserError(f"{table.path}: has a header and no iterations")
    return {name: np.array(column) for name, column in zip(names, values, strict=True)}, order


def read_events(path: Path) -> Curve:
    """Read the training loss in a TensorBoard event file.

    Raises:
        UserError: the package ``tensorboard`` is not installed, or the file has no loss per iteration.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(f"{path}: reading event files needs tensorboard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    try:
        events.Reload()
        tags = events.Tags()["scalars"]
        tensors = events.Tags()["tensors"]
    except Exception as error:  # damaged files end in errors of many kinds
        raise UserError(f"{path}: cannot be read as a TensorBoard event file ({type(error).__name__})") from error
    tag = next((tag for tag in EVENT_TAGS if tag in tags or tag in tensors), None)
    if tag is None:
        raise UserError(
            f"{path}: none of its tags is the training loss; found {', '.join([*tags, *tensors][:20]) or 'none'}, "
            f"expected one of {', '.join(EVENT_TAGS)}"
        )
    if tag in tags:
        points = [(event.step, event.value, -1) for event in events.Scalars(tag)]
    else:
        from tensorboard.util.tensor_util import make_ndarray

        points = [(event.step, float(make_ndarray(event.tensor_proto)), -1) for event in events.Tensors(tag)]
    return _as_curve(path, in_step_order(points, f"'{tag}'", path))


def read_curve(path: Path) -> Curve:
    """Read the curve of a run directory or a file, with the description next to it.

    The description is in ``opt.json`` for a ``train_log.csv`` and in the JSON file of the same name for other files.

    Raises:
        UserError: the file is missing or cannot be used.
    """
    if path.is_dir():
        path = _log_in(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a run folder or a csv or log file")
    curve = read_events(path) if path.match(EVENT_FILES) else read_loss(path)
    info_path = path.with_name("opt.json") if path.name == "train_log.csv" else path.with_suffix(".json")
    if info_path.is_file() and info_path != path:
        curve.info = read_info(info_path)
    return curve


def _log_in(folder: Path) -> Path:
    """Return the log in a run directory or the newest event file of a log directory of TensorBoard."""
    if (folder / "train_log.csv").is_file():
        return folder / "train_log.csv"
    events = sorted(folder.glob(EVENT_FILES))
    if not events:
        raise UserError(f"{folder}: is a folder without train_log.csv; expected a run folder or a csv or log file")
    return events[-1]


# Runs


def read_run(path: Path) -> RunLog:
    """Read the logs of a run directory, or of the directory of a ``train_log.csv``.

    A ``val_log.csv`` or ``opt.json`` that cannot be used is left out and noted.

    Raises:
        UserError: there is no ``train_log.csv``, or it cannot be used.
    """
    folder = path.parent if path.is_file() else path
    log = folder / "train_log.csv"
    if not log.is_file():
        raise UserError(f"{path}: is not a run folder, it has no {log.name}")
    run = RunLog(folder, read_train_log(log))
    if run.first > 1:
        run.notes.append(f"{log} starts at iteration {run.first}")
    try:
        if (folder / "val_log.csv").is_file():
            run.val = read_val_log(folder / "val_log.csv")
    except UserError as error:
        run.notes.append(f"left out: {error}")
    try:
        if (folder / "opt.json").is_file():
            run.info = read_info(folder / "opt.json")
    except UserError as error:
        run.notes.append(f"left out: {error}")
    return run


def read_train_log(path: Path) -> dict[str, np.ndarray]:
    """Read ``train_log.csv`` by column, each (iterations,) float64, each iteration once."""
    table = Table(read_lines(path), path)
    if not is_own_log(table.columns):
        columns = ", ".join(table.columns[:9])
        raise UserError(f"{path}: expected the columns epoch,iteration,loss,...,lr,images/s, found {columns[:200]}")
    if len(set(table.columns)) < len(table.columns):
        raise UserError(f"{path}: has two columns of the same name")
    train, _ = _read_columns(table, table.columns)
    epochs = train["epoch"]
    if not _are_epochs(epochs) or (np.diff(epochs) < 0).any():
        raise UserError(f"{path}: column epoch does not count epochs from 1 upwards")
    return train


def read_val_log(path: Path) -> dict[str, np.ndarray]:
    """Read ``val_log.csv`` by column, each (validations,) float64; NaN for an empty cell."""
    table = Table(read_lines(path), path)
    if table.columns[:1] != ["epoch"] or len(set(table.columns)) < len(table.columns):
        raise UserError(f"{path}: expected different columns of which the first is epoch")
    values = [array("d") for _ in table.columns]
    for row in table.rows:
        for column, cell in zip(values, row, strict=True):
            number = to_number(cell.strip()) if cell.strip() else math.nan
            if number is None:
                raise UserError(f"{path}: '{cell[:40]}' is not a number")
            column.append(number)
    val = {name: np.array(column) for name, column in zip(table.columns, values, strict=True)}
    if not _are_epochs(val["epoch"]):
        raise UserError(f"{path}: column epoch does not count epochs from 1 upwards")
    return val if len(val["epoch"]) else {}


def _are_epochs(values: np.ndarray) -> bool:
    return bool(((values >= 1) & (values <= MAX_ITERATIONS) & (values == np.floor(values))).all())


def read_finished_run(folder: Path) -> tuple[list[str], list[list[str]], dict]:
    """Read a finished run as text: columns and rows of ``train_log.csv``, and ``opt.json``.

    Raises:
        UserError: the run is not finished, does not start at iteration 1, has numbers that are not finite, or lacks
            its recipe.
    """
    log = folder / "train_log.csv"
    info = read_info(folder / "opt.json")
    if not info.get("recipe"):
        raise UserError(f"{folder / 'opt.json'}: has no recipe")
    table = Table(read_lines(log), log)
    columns = table.columns
    if not is_own_log(columns):
        raise UserError(f"{log}: expected the columns epoch,iteration,loss,...,lr,images/s, found {','.join(columns)}")
    rows, first = own_rows(table)
    if first > 1:
        raise UserError(f"{log}: starts at iteration {first}; a reference needs every iteration")
    for row in rows:
        for name, text in zip(columns[:-1], row, strict=False):  # the last is the throughput: not part of the curve
            number = to_number(text.strip())
            if number is None or not math.isfinite(number):
                raise UserError(
                    f"{log}: {name} is '{text[:40]}' at iteration {row[1]}; a reference needs finite numbers"
                )
    _check_finished(rows, info, log)
    return columns, rows, info


def _check_finished(rows: list[list[str]], info: dict, log: Path) -> None:
    """Raise UserError unless the last epoch is the ``num_epochs``-th and as long as the first."""
    if not rows:
        raise UserError(f"{log}: has a header and no iterations")
    epochs = [row[0] for row in rows]
    planned = info.get("options", {}).get("num_epochs")
    if isinstance(planned, int) and float(epochs[-1]) < planned:
        raise UserError(f"{log}: ends in epoch {epochs[-1]} of {planned}; a reference needs a finished run")
    first, last = epochs.count(epochs[0]), epochs.count(epochs[-1])
    if last < first:
        raise UserError(f"{log}: its last epoch has {last} of {first} iterations; a reference needs a finished run")
