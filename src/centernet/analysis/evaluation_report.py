"""Report why a detector has its scores: ``report_<dataset>_<split>.json``."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..utils.files import write_json
from ..utils.text import print_line


def finish_evaluation_report(path: Path, dataset, results: dict, scores: dict[str, float]) -> None:
    """Write the report of a test and print its path.

    A failure is printed and does not raise: the scores must not be lost because of the report.
    """
    try:
        print_line(f"report: {write_evaluation_report(path, dataset, results, scores)}")
    except Exception as error:  # of any library that draws or reads
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print_line(f"warning: no report ({text})")


def write_evaluation_report(path: Path, dataset, results: dict, scores: dict[str, float]) -> Path:
    """Write the numbers of a report as JSON.

    Args:
        path: file with the suffix ``.json``.
        dataset: the dataset (``datasets.base.CocoStyleDataset``).
        results: ``{image id: {class from 1: rows}}``, detections in its images.
        scores: those of ``dataset.evaluate(results)``.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written, or the annotations lack what the analysis needs.
    """
    write_json(path, describe(dataset, results, scores), allow_nan=False)
    return path


def describe(dataset, results: dict, scores: dict[str, float]) -> dict[str, Any]:
    """Return the content of the JSON file: what was tested, ``scores``, and the values of ``dataset.analyze``."""
    opt = dataset.opt
    analysis = dataset.analyze(results)
    names = dict(zip(dataset.image_ids, dataset.file_names, strict=True))
    files = [str(names[image_id]) for image_id in names if image_id in results]
    for case in (*analysis["worst"]["missed"], *analysis["worst"]["false_alarms"]):
        case["image"] = files[case["image"]]
    return {
        "task": opt.task,
        "dataset": opt.dataset,
        "split": dataset.split,
        "images": len(files),
        "checkpoint": str(opt.load_model),
        "options": {name: getattr(opt, name) for name in opt.given if hasattr(opt, name)},
        "scores": {name: value for name, value in scores.items() if value == value},  # not NaN: no such score
        "analysis": analysis,
    }
