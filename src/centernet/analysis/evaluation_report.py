"""Report why a detector has its scores: ``report_<dataset>_<split>.html``, and its numbers as JSON."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..evaluation.analysis import BACKGROUND
from ..evaluation.results import format_score
from ..utils.files import write_json
from ..utils.text import print_line
from .evaluation_images import draw_false_alarm, draw_missed, score_curves
from .pages import write_page

MAX_FIGURES = 16  # of missed objects, and of false alarms
MAX_MATRIX = 24  # classes in the confusion matrix of the page
MAX_SCORES = 30  # in the table that is open at first
SIZES = {"AP_small": "small", "AP_medium": "medium", "AP_large": "large"}
# By evaluation.analysis.ERRORS.
MEANINGS = {
    "classification": "the box fits an object of another class",
    "localization": "the class is right, the box overlaps the object too little",
    "both": "the class is wrong and the box overlaps too little",
    "duplicate": "the object has already been found by a better detection",
    "background": "there is no object",
    "missed": "objects that no detection finds, not even with a wrong class or box",
}


def finish_evaluation_report(path: Path, dataset, results: dict, scores: dict[str, float]) -> None:
    """Write the report of a test and print its path.

    A failure is printed and does not raise: the scores must not be lost because of the report.
    """
    try:
        write_evaluation_report(path, dataset, results, scores)
        print_line(f"report: {path}")
    except Exception as error:  # of any library that draws or reads
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print_line(f"warning: no report ({text})")


def write_evaluation_report(path: Path, dataset, results: dict, scores: dict[str, float]) -> None:
    """Write a page about detections, and next to it a JSON file with its numbers.

    Args:
        path: of the page; the other file has the suffix ``.json`` instead.
        dataset: the dataset (``datasets.base.CocoStyleDataset``).
        results: ``{image id: {class from 1: rows}}``, detections in its images.
        scores: those of ``dataset.evaluate(results)``.

    Raises:
        UserError: a file cannot be written, or the annotations lack what the analysis needs.
    """
    report = describe(dataset, results, scores)
    write_json(path.with_suffix(".json"), report, allow_nan=False)
    analysis = report["analysis"]
    write_page(
        path,
        "evaluation.html",
        curves=score_curves(analysis),
        name=f"{report['dataset']} {report['split']}",
        checkpoint=_short_path(report["checkpoint"]),
        json_file=path.with_suffix(".json").name,
        report=report,
        analysis=analysis,
        tiles=_tiles(report),
        scores={name: format_score(value) for name, value in report["scores"].items() if name[:3] != "AP/"},
        max_scores=MAX_SCORES,
        sizes=SIZES,
        matrix=_matrix(analysis["confusion"]),
        errors=[{"name": name, "meaning": text} for name, text in MEANINGS.items()],
        missed=_missed(dataset, results, analysis),
        false_alarms=_false_alarms(dataset, results, analysis),
    )


def describe(dataset, results: dict, scores: dict[str, float]) -> dict[str, Any]:
    """Return the content of the JSON file: what was tested, ``scores``, and the values of ``dataset.analyze``."""
    opt = dataset.opt
    analysis = dataset.analyze(results)
    names = dict(zip(dataset.image_ids, dataset.file_names, strict=True))
    images = [(image_id, str(name)) for image_id, name in names.items() if image_id in results]
    for case in (*analysis["worst"]["missed"], *analysis["worst"]["false_alarms"]):
        case["image_id"], case["image"] = images[case["image"]]
    return {
        "task": opt.task,
        "dataset": opt.dataset,
        "split": dataset.split,
        "images": len(images),
        "checkpoint": str(opt.load_model),
        "options": {name: getattr(opt, name) for name in opt.given if hasattr(opt, name)},
        "scores": {name: value for name, value in scores.items() if value == value},  # not NaN: no such score
        "analysis": analysis,
    }


# Content of the page


def _short_path(checkpoint: str) -> str:
    """Return the name of a file and of its folder."""
    path = Path(checkpoint).resolve()
    return f"{path.parent.name}/{path.name}"


def _tiles(report: dict) -> list[tuple[str, str]]:
    """Return the main numbers and their labels."""
    analysis = report["analysis"]
    boxes, best = analysis["scores"], analysis["best"]
    tiles = [(value, f"{name}, main score") for name, value in list(report["scores"].items())[:1]]
    tiles += [(boxes["AP"], "AP of boxes, IoU 0.50 to 0.95"), (boxes["AP50"], "AP50"), (boxes["AP75"], "AP75")]
    tiles += [(boxes[name], f"AP of {size} objects") for name, size in SIZES.items()]
    if best is not None:
        tiles.append((best["f1"], f"best F1, at a score of {best['threshold']:.2f}"))
    return [("-" if value is None else format_score(value), label) for value, label in tiles]


def _matrix(confusion: dict) -> dict[str, Any]:
    """Return the confusion matrix as rows, of many classes those that are confused most.

    A cell has its count and, for its color, its share of the row.
    """
    counts, labels = np.array(confusion["matrix"]), confusion["labels"]
    classes = len(labels) - 1
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    chosen = np.sort(np.argsort(-wrong[:classes], kind="stable")[:MAX_MATRIX])
    shown = [*chosen.tolist(), classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        {"name": labels[row], "cells": [(int(counts[row, column]), float(shares[row, column])) for column in shown]}
        for row in shown
    ]
    return {"labels": [labels[k] for k in shown], "rows": rows, "left_out": classes - len(chosen)}


def _missed(dataset, results: dict, analysis: dict) -> list[dict[str, Any]]:
    """Return the figures of the worst missed objects."""
    threshold, figures = analysis["confusion"]["threshold"], []
    for case in analysis["worst"]["missed"][:MAX_FIGURES]:
        index, result = dataset.image_ids.index(case["image_id"]), results[case["image_id"]]
        nearest = f"{case['taken_for']}, IoU {case['overlap']:.2f}" if case["overlap"] >= BACKGROUND else "nothing"
        width, height = (case["box"][k + 2] - case["box"][k] for k in (0, 1))
        drawings = draw_missed(dataset, index, result, case["box"], threshold)
        figures.append({**case, **drawings, "text": f"{width:.0f} × {height:.0f} pixels; found there: {nearest}"})
    return figures


def _false_alarms(dataset, results: dict, analysis: dict) -> list[dict[str, Any]]:
    """Return the figures of the worst false alarms."""
    figures = []
    for case in analysis["worst"]["false_alarms"][:MAX_FIGURES]:
        index, result = dataset.image_ids.index(case["image_id"]), results[case["image_id"]]
        cls = list(dataset.class_names).index(case["class"])
        drawings = draw_false_alarm(dataset, index, result, cls, case["box"], case["score"])
        near = f" of {case['true_class']}, IoU {case['overlap']:.2f}" if case["true_class"] else ""
        figures.append({**case, **drawings, "text": f"{case['error']}{near}"})
    return figures
