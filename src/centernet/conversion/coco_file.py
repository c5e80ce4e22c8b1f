"""COCO-style annotation files: read them, and check their ids and names.

Needs the standard library only.
"""

import contextlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..errors import UserError
from .issues import ERROR, NOTE, Issue, Report, raise_error, short

MAX_NAME_LENGTH = 4096  # characters of an image's file name
PARTS = ("images", "annotations", "categories")


def is_id(value) -> bool:
    """Return whether a value can be an id: an integer or a string."""
    return isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())


def are_ids(values: Sequence) -> bool:
    """Return whether all values can be ids."""
    return {*map(type, values)} <= {int, str} or all(map(is_id, values))


def name_problem(name) -> str | None:
    """Return what is wrong with the file name of an image, or None if it can be one inside the image folder."""
    if not isinstance(name, str) or not name:
        return f"has the file_name {short(name)}, which is not a string"
    if len(name) > MAX_NAME_LENGTH or "\0" in name:
        return f"has a file_name that no file can have, {len(name)} characters: {short(name)}"
    if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|[A-Za-z]:[/\\]", name):
        return f"has the file_name {short(name)}, which points outside the image folder"
    return None


def read_annotation_file(path: Path, report: Report = raise_error, annotated: bool = True) -> dict:
    """Read a COCO-style JSON file whose images and annotations are objects; others are reported.

    Without ``annotated`` the file may lack annotations, as those of test sets do (``image_info_*.json``).

    Raises:
        UserError: the file is missing, is not JSON, or lacks a part.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such annotation file; see docs/DATA.md")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    except MemoryError as error:
        raise UserError(f"{path}: too large for the memory of this machine") from error
    if not annotated and isinstance(content, dict):
        content.setdefault("annotations", [])
    for part in PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: not a COCO-style annotation file, it has no list '{part}'")
    if not content["images"]:
        raise UserError(f"{path}: it lists no images")
    for part in ("images", "annotations"):
        if {*map(type, content[part])} <= {dict}:
            continue
        for k, entry in enumerate(content[part], start=1):
            if not isinstance(entry, dict):
                text = f"{part[:-1]} number {k} is malformed, not an object with fields: {short(entry)}"
                report(Issue(ERROR, f"{part} that are not objects", path, text))
        content[part] = [entry for entry in content[part] if isinstance(entry, dict)]
    return content


def match_ids(path: Path, annotations: list[dict], field: str, known: Collection, report: Report) -> list[dict]:
    """Return the annotations with ids in the form of ``known`` where one is a number and the other a string.

    7, 7.0, "7" and "007" are one id, unless ``known`` has two of them. What is changed is reported as a note.
    """
    with contextlib.suppress(TypeError):  # of something that is not an id
        if {annotation.get(field) for annotation in annotations} <= set(known):
            return annotations
    forms: dict[str, list] = {}
    for value in known:
        forms.setdefault(canonical_id(value), []).append(value)

    def matched(annotation: dict) -> dict:
        value = annotation.get(field)
        if not is_id(value) or value in known or len(form := forms.get(canonical_id(value), [])) != 1:
            return annotation
        text = f"annotation {short(annotation.get('id'))} has the {field} {short(value)}, used as {short(form[0])}"
        report(Issue(NOTE, "ids that are a number in one place and a string in another", path, text))
        return {**annotation, field: form[0]}

    return [matched(annotation) for annotation in annotations]


def canonical_id(value) -> str:
    """Return the text that all forms of an id have in common: 7, 7.0, "7" and "007"."""
    text = value.strip() if isinstance(value, str) else str(int(value))
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text
