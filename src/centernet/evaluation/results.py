"""Detections before they are written or scored: values that are not finite, and result files in COCO's form.

A comparison with NaN is false, so a scorer may take a box of NaN for a perfect one. Detections that are not finite are
therefore dropped and counted before anything is written or scored, and result files with such numbers are refused.
"""

import math
from collections.abc import Container, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..utils import files

FIELDS = ("bbox", "category_id", "image_id", "score")
MAX_SHOWN = 80  # characters of a value in a message


def drop_non_finite(results: Mapping[Hashable, Mapping[int, Any]]) -> tuple[dict, int]:
    """Return ``{image id: {class: rows}}`` without rows that have NaN or infinity, and the number of rows dropped.

    Images and classes stay, and what is left keeps its order. The argument is not modified.
    """
    kept, dropped = {}, 0
    for image_id, classes in results.items():
        kept[image_id] = {cls: finite_rows(rows) for cls, rows in classes.items()}
        dropped += sum(len(rows) - len(kept[image_id][cls]) for cls, rows in classes.items())
    return kept, dropped


def finite_rows(rows: Any) -> np.ndarray:
    """Return the rows of an array (n, columns), or of a list of rows, that are finite."""
    rows = np.asarray(rows)
    if not rows.size:
        return rows
    finite = np.isfinite(rows).all(axis=1)
    return rows if finite.all() else rows[finite]


def dropped_note(dropped: int) -> str:
    """Return the warning for detections that ``drop_non_finite`` has dropped."""
    return (
        f"warning: {dropped} detection(s) with NaN or infinity were dropped; the network's output is not finite, so "
        "check its weights"
    )


def format_score(value: float) -> str:
    """Return a score with four decimals, or ``-`` for one that does not exist: NaN, or -1 as pycocotools has it."""
    return f"{value:.4f}" if score_exists(value) else "-"


def score_exists(value: float) -> bool:
    """Return whether a score exists: without ground truth of its kind it is NaN, or -1 as pycocotools has it."""
    return not math.isnan(value) and value != -1


def find_results(path: str | Path) -> Path:
    """Return a result file: ``path`` itself, or of a folder the newest ``results.json`` or ``results_*.json``.

    A missing ``results.json`` stands for its folder, because tests write ``results_<dataset>_<split>.json``.

    Raises:
        UserError: the folder holds none.
    """
    path = Path(path)
    if path.name == "results.json" and not path.exists() and path.parent.is_dir():
        path = path.parent
    if not path.is_dir():
        return path
    found = [*path.glob("results.json"), *path.glob("results_*.json")]
    if not found:
        raise UserError(f"{path}: holds neither results.json nor results_*.json")
    return max(found, key=lambda file: file.stat().st_mtime)


def read_results(path: str | Path) -> list[dict]:
    """Read a list of detections in COCO's form (``results.json``) and check every entry (``check_entries``).

    Raises:
        UserError: naming the file, if it cannot be read or is not such a list.
    """
    path = Path(path)
    results = files.read_json(path)
    if isinstance(results, list) and results and isinstance(results[0], list):
        raise UserError(f"{path}: results of a VOC test; use src/tools/reval.py")
    if not isinstance(results, list) or not all(isinstance(r, dict) and r.keys() >= {*FIELDS} for r in results):
        raise UserError(f"{path}: not a list of detections with {', '.join(FIELDS)}")
    check_entries(results, str(path))
    return results


def check_entries(entries: Sequence[Mapping], where: str = "results", joints: bool = False) -> None:
    """Check that detections in COCO's form have ids that can be ids, and finite numbers.

    Args:
        entries: mappings with ``FIELDS``, and perhaps ``keypoints`` and ``extreme_points``.
        where: starts the message.
        joints: each must have ``keypoints``.

    Raises:
        UserError: naming the first entry that is wrong, and what is wrong with it.
    """
    for k, entry in enumerate(entries, start=1):
        problem = _problem(entry, joints)
        if problem is not None:
            raise UserError(f"{where}: detection number {k} {problem}")


def check_ids(
    entries: Sequence[Mapping], image_ids: Container, category_ids: Container, where: str = "results"
) -> None:
    """Check that detections belong to images and categories of the annotations.

    Raises:
        UserError: naming the first id that is unknown, and how many detections have such an id.
    """
    for field, what, known in (("image_id", "image", image_ids), ("category_id", "category", category_ids)):
        unknown = [entry[field] for entry in entries if entry[field] not in known]
        if unknown:
            raise UserError(
                f"{where} have {what} {_short(unknown[0])}, which the annotation file does not have "
                f"({len(unknown)} detections with an unknown {field})"
            )


def _problem(entry: Mapping, joints: bool) -> str | None:
    for field in ("image_id", "category_id"):
        value = entry[field]
        if not isinstance(value, (int, str, float, np.integer)) or isinstance(value, bool):
            return f"has the {field} {_short(value)}, which is neither a number nor a string"
    for field, length in (("bbox", 4), ("keypoints", None), ("extreme_points", None)):
        values = entry.get(field)
        if values is None and not (field == "bbox" or (field == "keypoints" and joints)):
            continue
        if not isinstance(values, (list, tuple, np.ndarray)) or (length is not None and len(values) != length):
            numbers = "numbers" if length is None else f"{length} numbers"
            return f"has no {field} of {numbers}: {_short(values)}"
        if not all(map(_is_finite, values)):
            return f"has the {field} {_short(list(values))}, which is not finite numbers"
    if not _is_finite(entry["score"]):
        return f"has the score {_short(entry['score'])}, which is not a finite number"
    if not math.isfinite(entry["bbox"][2] * entry["bbox"][3]):
        return f"has the bbox {_short(list(entry['bbox']))}, whose area is not finite"
    return None


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, (bool, str)) and math.isfinite(value)
    except (TypeError, OverflowError):  # no number; an integer too large for a float
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
