"""Read loss curves and run logs: ``train_log.csv``, ``val_log.csv``, tables, and the text logs of other programs."""

import csv
import json
import math
import re
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from ..errors import UserError

MOST_ITERATIONS = 10_000_000  # of an epoch: a log that has more was not written by a training
LOSS_NAMES = ("loss", "train_loss", "total_loss")
IDENTITY_KEYS = ("task", "dataset", "arch", "input_h", "input_w", "batch_size")
FORMATS = (
    "a table with a column loss, train_loss or total_loss, one number a line, a log of lines 'train: [1][0/924] ... "
    "|loss 2.3456 |', or a log with one 'loss: 2.34' or 'loss=2.34' an iteration"
)

_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\w|[.,]\d)"
_PRINTED_AVERAGE = re.compile(
    rf"train:\s*\[(\d+)\]\[(\d+)/(\d+)\](?:(?!train:|val:).)*?\|\s*loss\s+({_NUMBER})", re.IGNORECASE
)
_TEXT_LOSS = re.compile(
    rf"(?<![\w./-])(?<!avg )(?<!average )(?<!mean )(?<!best )({'|'.join(LOSS_NAMES)})['\"]?\s*[:=]\s*({_NUMBER})",
    re.IGNORECASE,
)
_OTHER_PHASE = re.compile(r"\b(?:val|valid|validation|eval|evaluation|test)\b", re.IGNORECASE)
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Curve:
    """The loss of every training iteration, ``loss`` (n,) float64, with what is known of the run that made it.

    ``info`` is the run's ``opt.json`` or the reference's JSON; empty when there is none.
    """

    path: Path
    loss: np.ndarray
    info: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> dict | None:
        return self.info.get("recipe")


@dataclass
class RunLog:
    """The logs of one run.

    Attributes:
        folder: the run folder.
        train: ``train_log.csv`` by column, each (iterations,) float64: epoch, iteration, losses, lr, images/s.
        val: ``val_log.csv`` by column, each (validations,) float64; NaN where a row has no number. Empty without one.
        info: ``opt.json``; empty without one.
    """

    folder: Path
    train: dict[str, np.ndarray]
    val: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def losses(self) -> list[str]:
        """The names of the loss and its parts."""
        return [name for name in self.train if name not in ("epoch", "iteration", "lr", "images/s")]

    @property
    def scores(self) -> list[str]:
        """The names of the scores of validations, the main one first, those of single classes left out."""
        others = {"epoch", "time", *self.losses}
        names = [name for name in self.val if name not in others and "/" not in name]
        main = self.info.get("options", {}).get("main_score")
        return sorted(names, key=lambda name: name != main)

    @property
    def epochs(self) -> np.ndarray:
        """(iterations,) how many epochs were done after each iteration, with the part of the running one."""
        first = {epoch: i for i, epoch in reversed(list(enumerate(self.train["epoch"].tolist())))}
        start = np.array([first[epoch] for epoch in self.train["epoch"].tolist()])
        counts = np.bincount(self.train["epoch"].astype(int))
        length = np.maximum(counts[self.train["epoch"].astype(int)], counts.max())  # the last may not be complete yet
        return self.train["epoch"] - 1 + (np.arange(len(start)) - start + 1) / length


def read_run(path: Path) -> RunLog:
    """The logs of a run folder, or of the folder of a ``train_log.csv``.

    Raises:
        UserError: there is none, or it is no log of this project.
    """
    folder = path.parent if path.is_file() else path
    log = folder / "train_log.csv"
    if not log.is_file():
        raise UserError(f"{path}: is no run folder, there is no {log.name} in it")
    columns, rows = split_table(read_text(log), log)
    if not is_own_log(columns):
        raise UserError(f"{log}: its columns are not those of a training's log ({', '.join(columns[:9])})")
    rows = drop_repeated(rows, log)
    if not rows:
        raise UserError(f"{log}: has no iterations yet")
    train, val = _table_numbers(columns, rows, log), {}
    if (folder / "val_log.csv").is_file():
        path = folder / "val_log.csv"
        columns, rows = split_table(read_text(path), path)
        if columns[:1] != ["epoch"]:
            raise UserError(f"{path}: its first column is not epoch")
        val = _table_numbers(columns, rows, path)
    info = read_json(folder / "opt.json") if (folder / "opt.json").is_file() else {}
    return RunLog(folder, train, val, info)


def read_text(path: Path) -> str:
    """Text of a file without terminal codes, line ends as ``\\n``. UserError when it cannot be read or is no text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected {FORMATS}") from error
    if b"\0" in data:
        raise UserError(f"{path}: is a binary file; expected {FORMATS}")
    text = data.decode("utf-8-sig", errors="replace")
    text = _TERMINAL_CODE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UserError(f"{path}: is empty; expected {FORMATS}")
    return text


def read_json(path: Path) -> dict:
    """The JSON object in a run's ``opt.json`` or beside a reference. UserError when it is none."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(info, dict) or not isinstance(info.get("recipe", {}), dict):
        raise UserError(
            f"{path}: expected a JSON object whose 'recipe' is an object (it describes the curve beside it)"
        )
    return info


def split_table(text: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a comma, semicolon, tab or whitespace separated table. UserError for ragged rows."""
    lines = text.split("\n")
    header = next(line for line in lines if line.strip())
    delimiter = next((mark for mark in "\t,;" if mark in header), None)
    if delimiter is None:
        cells = [line.lstrip("#").split() for line in lines]
    else:
        try:
            cells = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise UserError(f"{path}: cannot be read as a table ({error})") from error
    numbered = [(number, row) for number, row in enumerate(cells, 1) if any(cell.strip() for cell in row)]
    columns = [name.strip().lstrip("#").strip() for name in numbered[0][1]] if numbered else []
    for number, row in numbered[1:]:
        if len(row) != len(columns):
            raise UserError(f"{path}: row {number} has {len(row)} columns, the header has {len(columns)}")
    return columns, [row for _, row in numbered[1:]]


def is_own_log(columns: list[str]) -> bool:
    """Whether these are the columns of a ``train_log.csv``."""
    return columns[:3] == ["epoch", "iteration", "loss"] and columns[-2:] == ["lr", "images/s"]


def drop_repeated(rows: list[list[str]], path: Path) -> list[list[str]]:
    """Rows of a ``train_log.csv`` as iterations 1, 2, 3, ...: a resumed run's later lines replace its earlier ones."""
    kept: list[list[str]] = []
    for row in rows:
        try:
            iteration = int(row[1])
        except ValueError:
            raise UserError(f"{path}: '{row[1]}' in column iteration is not a whole number") from None
        if not 1 <= iteration <= len(kept) + 1:
            raise UserError(f"{path}: iteration {iteration} follows {len(kept)}; expected iterations 1, 2, 3, ...")
        del kept[iteration - 1 :]
        kept.append(row)
    return kept


def read_loss(path: Path) -> tuple[np.ndarray, list[str]]:
    """Loss of every iteration (n,) float64 in a file of any format in ``FORMATS``, and notes on how it was read.

    NaN and infinity are kept. UserError, naming the file and what was expected, for everything else.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    printed = [match for line in lines for match in _PRINTED_AVERAGE.finditer(line)]
    if printed:
        return _undo_averages(printed, path)
    header, _ = split_table(lines[0], path)
    if any(name.lower() in LOSS_NAMES for name in header) and not any(_is_number(name) for name in header):
        return _read_column(text, path)
    if _is_number(lines[0]):
        return _numbers(lines, path), []
    return _read_text_log(lines, path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(texts: list[str], path: Path) -> np.ndarray:
    for number, text in enumerate(texts, 1):
        if not _is_number(text):
            raise UserError(f"{path}: '{text[:40]}' as loss number {number} is not a number; expected {FORMATS}")
    if not texts:
        raise UserError(f"{path}: has a header and no iterations")
    return np.array([float(text) for text in texts], dtype=np.float64)


def _read_column(text: str, path: Path) -> tuple[np.ndarray, list[str]]:
    columns, rows = split_table(text, path)
    notes = []
    if is_own_log(columns):
        kept = drop_repeated(rows, path)
        if len(kept) < len(rows):
            notes.append(f"{path} repeats iterations (a resumed run): the later lines count")
        rows = kept
    names = [name.lower() for name in columns]
    found = [name for name in names if name in LOSS_NAMES]
    name = "loss" if "loss" in found else found[0]
    if found.count(name) > 1 or (name != "loss" and len(found) > 1):
        raise UserError(f"{path}: several columns could be the loss ({', '.join(found)}); expected one of them")
    index = names.index(name)
    return _numbers([row[index].strip() for row in rows], path), notes


def _undo_averages(printed: list[re.Match], path: Path) -> tuple[np.ndarray, list[str]]:
    """Iterations' losses from printed averages over the epoch so far; each interval's iterations get its mean."""
    lines: list[tuple[int, int, int, float]] = []
    for match in printed:
        epoch, iteration, total = (int(match[group]) for group in (1, 2, 3))
        if max(iteration, total) > MOST_ITERATIONS:
            raise UserError(f"{path}: '{match[0][:60]}' has more iterations than an epoch can have")
        while lines and lines[-1][:2] >= (epoch, iteration):  # printed twice, or a resumed run
            lines.pop()
        lines.append((epoch, iteration, total, float(match[4])))
    epochs = [(epoch, list(group)) for epoch, group in groupby(lines, key=lambda line: line[0])]
    numbers = [epoch for epoch, _ in epochs]
    if numbers != list(range(1, len(numbers) + 1)):
        raise UserError(
            f"{path}: its lines 'train: [epoch][...]' are of epochs {str(numbers[:9])[1:-1]}; expected 1, 2, 3, ..."
        )
    intervals = [after[1] - before[1] for _, group in epochs for before, after in pairwise(group)]
    step = max(intervals) if intervals else None
    losses: list[float] = []
    for epoch, group in epochs:
        done, done_sum, mean = 0, 0.0, 0.0
        total = group[0][2]
        for _, iteration, _, average in group:
            mean = (average * (iteration + 1) - done_sum) / (iteration + 1 - done)
            losses += [mean] * (iteration + 1 - done)
            done, done_sum = iteration + 1, average * (iteration + 1)
        left = total - done
        if step is None or left < step:
            losses += [mean] * left
        elif epoch != numbers[-1]:  # a last epoch may end early: the run was stopped or still runs
            raise UserError(f"{path}: lines are missing: epoch {epoch} ends at iteration {done} of {total}")
    every = f"every {step} iterations" if step else "once an epoch"
    note = f"{path} prints averages over the epoch {every}: undone, each iteration has the mean of its interval"
    return np.array(losses, dtype=np.float64), [note]


def _read_text_log(lines: list[str], path: Path) -> tuple[np.ndarray, list[str]]:
    names: set[str] = set()
    losses: list[str] = []
    for line in lines:
        if _OTHER_PHASE.search(line):
            continue
        found = _TEXT_LOSS.findall(line)
        if len(found) > 1:
            raise UserError(f"{path}: '{line[:60]}' has several losses; expected {FORMATS}")
        names.update(name.lower() for name, _ in found)
        losses += [number for _, number in found]
    if not losses:
        raise UserError(f"{path}: no loss found; expected {FORMATS}")
    if len(names) > 1:
        raise UserError(f"{path}: several losses in turn ({', '.join(sorted(names))}); expected one of them")
    note = f"{path} is read as text: each of its {len(losses)} lines with '{names.pop()}' counts as one iteration"
    return _numbers(losses, path), [note]


def read_curve(path: Path) -> Curve:
    """Curve of a run folder or of a file, with the recipe beside it where there is one.

    The recipe is in ``opt.json`` for a ``train_log.csv`` and in the JSON of the same name for any other file.
    UserError for a missing or unreadable file.
    """
    if path.is_dir():
        if not (path / "train_log.csv").is_file():
            raise UserError(f"{path}: is a folder without train_log.csv; expected a run folder or a csv or log file")
        path = path / "train_log.csv"
    if not path.exists():
        raise UserError(f"{path}: there is no such file; expected a run folder or a csv or log file")
    loss, notes = read_loss(path)
    info_path = path.with_name("opt.json") if path.name == "train_log.csv" else path.with_suffix(".json")
    info = read_json(info_path) if info_path.is_file() and info_path != path else {}
    return Curve(path, loss, info, notes)


def run_name(curve: Curve) -> str:
    """What to call a curve: its run folder, or its file."""
    return curve.path.resolve().parent.name if curve.path.name == "train_log.csv" else curve.path.stem


def _table_numbers(columns: list[str], rows: list[list[str]], path: Path) -> dict[str, np.ndarray]:
    try:
        table = np.array([[float(cell) if cell else math.nan for cell in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: a cell is no number ({error})") from None
    return dict(zip(columns, table.reshape(len(rows), len(columns)).T, strict=True))
