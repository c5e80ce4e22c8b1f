"""KITTI's text files of the object benchmark: label files, result files, camera files.

Needs the standard library only, so that data can be prepared before anything is installed.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from centernet.errors import UserError
from centernet.utils import files

CLASS_NAMES = ("Pedestrian", "Car", "Cyclist", "Van", "Truck", "Person_sitting", "Tram", "Misc", "DontCare")
_BY_LOWER_CASE = {name.lower(): name for name in CLASS_NAMES}

LABEL_FIELDS = 15  # type, truncated, occluded, alpha, bbox 4, dimensions 3, location 3, rotation_y
DECIMALS = 2  # of the numbers in the reference's result files, the score's too
NO_ALPHA = -10.0  # stands for an unknown observation angle


class LabelLine(NamedTuple):
    """One line of a label or result file; lengths in meters, angles in radians, box in 0-based pixels.

    ``numbers`` are the 12 from alpha to rotation_y: alpha, x1, y1, x2, y2, height, width, length, x, y, z, rotation_y.
    ``score`` is NaN in a label file.
    """

    name: str
    truncated: float
    occluded: int
    numbers: tuple[float, ...]
    score: float
    line: int


def read_text(path: str | Path, what: str) -> list[str]:
    """Return the lines of a text file. Raises UserError naming the file and ``what`` it should be if unreadable."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except OSError as error:
        raise UserError(f"{path}: this {what} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this {what} is not a text file") from None


def read_label_lines(path: str | Path, with_scores: bool = False) -> list[LabelLine]:
    """Read a label file of KITTI (15 fields per line) or, ``with_scores``, a result file (16 fields).

    Empty lines are skipped. Class names are matched without regard to case, as by KITTI's evaluation. Raises UserError
    naming file and line for a line with another number of fields, an unknown class, a field that is not a finite
    number, an occlusion that is not an integer, and in a label file a box that ends before it begins.
    """
    what, fields = ("result file", LABEL_FIELDS + 1) if with_scores else ("label file", LABEL_FIELDS)
    lines = []
    for number, text in enumerate(read_text(path, what), start=1):
        parts = text.split()
        if parts:
            try:
                lines.append(_label_line(parts, fields, number))
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not a line of a KITTI {what}: {error}") from None
    return lines


def _label_line(parts: list[str], fields: int, line: int) -> LabelLine:
    if len(parts) != fields:
        raise ValueError(f"it has {len(parts)} fields instead of {fields}")
    name = _BY_LOWER_CASE.get(parts[0].lower())
    if name is None:
        raise ValueError(f"{parts[0][:40]!r} is none of the classes {', '.join(CLASS_NAMES)}")
    try:
        values = [float(part) for part in parts[1:]]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        bad = next(part for part in parts[1:] if not _is_finite(part))
        raise ValueError(f"{bad[:40]!r} (field {parts.index(bad, 1) + 1}) is not a finite number")
    if values[1] != int(values[1]):
        raise ValueError(f"the occlusion {parts[2][:40]!r} (field 3) is not an integer")
    if fields == LABEL_FIELDS and (values[5] < values[3] or values[6] < values[4]):
        raise ValueError(f"its box ends before it begins: {' '.join(parts[4:8])}")
    score = values[14] if fields > LABEL_FIELDS else math.nan
    return LabelLine(name, values[0], int(values[1]), tuple(values[2:14]), score, line)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_calib(path: str | Path) -> list[list[float]]:
    """Return the matrix P2 (3 rows of 4) of a camera file: from camera coordinates in meters to pixels of the left
    color camera.

    Raises UserError if the file cannot be read, has no line ``P2:``, that line does not have 12 finite numbers, or its
    focal lengths are not above zero.
    """
    for number, text in enumerate(read_text(path, "camera file"), start=1):
        key, _, rest = text.partition(":")
        if key.strip() != "P2":
            continue
        parts = rest.split()
        if len(parts) != 12 or not all(map(_is_finite, parts)):
            raise UserError(f"{path}: line {number}: P2 has to be 12 finite numbers, it has {len(parts)} fields")
        return _camera([float(part) for part in parts], f"{path}: line {number}", "P2")
    raise UserError(f"{path}: it has no line P2, which is the matrix of the left color camera")


def read_camera(path: str | Path) -> list[list[float]]:
    """Return the matrix (3 rows of 4) of any camera: from a camera file of KITTI, or from plain numbers.

    Those are 12, the matrix itself, or 9, the matrix without its last column, which is zero then; separated by blanks,
    commas or line ends. Raises UserError as ``read_calib`` does, and for other numbers.
    """
    text = "\n".join(read_text(path, "camera file"))
    if ":" in text:
        return read_calib(path)
    parts = text.replace(",", " ").split()
    if len(parts) not in (9, 12) or not all(map(_is_finite, parts)):
        raise UserError(
            f"{path}: neither a camera file of KITTI with a line 'P2:', nor the 12 or 9 finite numbers of a 3 x 4 or "
            f"3 x 3 matrix"
        )
    values = [float(part) for part in parts]
    if len(parts) == 9:
        values = [*values[:3], 0.0, *values[3:6], 0.0, *values[6:], 0.0]
    if values[8:11] != [0, 0, 1]:
        raise UserError(f"{path}: the last row of the camera's matrix has to begin with 0 0 1")
    return _camera(values, str(path), "the matrix")


def _camera(values: list[float], where: str, name: str) -> list[list[float]]:
    if values[0] <= 0 or values[5] <= 0:
        lengths = f"{values[0]:g} and {values[5]:g}"
        raise UserError(f"{where}: the focal lengths in {name} are {lengths}; they have to be above 0")
    return [values[0:4], values[4:8], values[8:12]]


def result_text(rows: Mapping[int, Sequence], class_names: Sequence[str]) -> str:
    """Return the result file of one image as the reference writes it (``save_results`` of its KITTI dataset).

    ``rows`` is ``{class from 1: rows of 13 numbers}``: alpha, x1, y1, x2, y2, height, width, length, x, y, z,
    rotation_y, score. A line is the class, ``0.0 0`` for truncation and occlusion, and the 13 numbers with two
    decimals; classes in the order of ``rows``. Rows that are not finite are left out. Raises UserError for other rows.
    """
    lines = []
    for category, of_class in rows.items():
        for row in of_class:
            if len(row) != 13:
                raise UserError(f"a detection of KITTI has 13 numbers, not {len(row)}")
            values = [float(value) for value in row]
            if all(map(math.isfinite, values)):
                numbers = " ".join(f"{value:.{DECIMALS}f}" for value in values)
                lines.append(f"{class_names[category - 1]} 0.0 0 {numbers}\n")
    return "".join(lines)


def image_name(image_id: int | str) -> str:
    """Return the name of an image's files without extension: six digits."""
    return f"{int(image_id):06d}"


def write_results(results: Mapping[Any, Mapping[int, Any]], folder: str | Path, class_names: Sequence[str]) -> None:
    """Write ``{image id: {class from 1: rows}}`` as ``folder/000007.txt`` and so on, empty files included.

    Raises UserError if the folder cannot be written.
    """
    folder = Path(folder)
    with files.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for image_id, rows in results.items():
        content = result_text(rows, class_names).encode()
        files.write_bytes(folder / f"{image_name(image_id)}.txt", content, sync=False)


def read_image_names(path: str | Path) -> list[str]:
    """Return the names in an image set (``ImageSets_3dop/val.txt``), which has one per line.

    A name is digits, as many as the files of KITTI have (six). Raises UserError for other names and repeated ones.
    """
    names: list[str] = []
    seen = set()
    for number, text in enumerate(read_text(path, "image set"), start=1):
        name = text.strip()
        if not name:
            continue
        if not (name.isascii() and name.isdigit()):
            raise UserError(f"{path}: line {number}: {name[:40]!r} is not the name of a KITTI image (000007)")
        if name in seen:
            raise UserError(f"{path}: line {number}: the image {name} is named twice")
        seen.add(name)
        names.append(name)
    return names
