"""Find files by their names in annotations, which may have been made on another machine."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".jpe", ".jfif", ".jp2", ".dib", ".gif", ".avif", ".pbm", ".pgm", ".ppm", ".pnm", ".sr", ".ras"),
)
# Folders of systems and tools, in addition to those whose name begins with a period.
HIDDEN_NAMES = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden: ``.ipynb_checkpoints``, ``._a.jpg``, ``__MACOSX``."""
    return name.startswith(".") or name.lower() in HIDDEN_NAMES


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk(folder: Path, hidden: list[Path] | None = None) -> Iterator[Path]:
    """Yield the files below ``folder`` in sorted order; linked folders are followed, once each.

    Args:
        folder: where to start; it may be hidden itself.
        hidden: gets the files that are hidden or in hidden folders, which are not yielded.
    """
    seen = set()

    def visit(path: str, inside_hidden: bool) -> Iterator[Path]:
        real = os.path.realpath(path)
        if real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            return
        for entry in entries:
            is_hidden_entry = inside_hidden or is_hidden(entry.name)
            if is_hidden_entry and hidden is None:
                continue
            if entry.is_dir():
                yield from visit(entry.path, is_hidden_entry)
            elif is_hidden_entry:
                hidden.append(Path(entry.path))  # type: ignore[union-attr]
            else:
                yield Path(entry.path)

    yield from visit(str(folder), False)


def folders(root: Path) -> list[Path]:
    """Return the folders in ``root`` in sorted order, without hidden ones."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:  # which knows folders without a call for each of many images
        return sorted(root / entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def has_images(folder: Path) -> bool:
    """Return whether there is an image in ``folder`` or below it."""
    return any(is_image_name(path.name) for path in walk(folder))


def plain_parts(text: str) -> list[str]:
    """Return the parts of a path as written on any system, without drive, root and ``..``.

    ``C:\\set\\images\\a.png``, ``/set/images/a.png`` and ``../set/images/a.png`` are all set, images, a.png.
    """
    plain = re.sub(r"^([A-Za-z]:|file://)", "", text.strip().replace("\\", "/"))
    parts = posixpath.normpath(plain).split("/") if plain else []
    return [part for part in parts if part not in ("", ".", "..")]


def spelling_key(name: str) -> str:
    """Return what the spellings of a file name have in common: Unicode forms, and extensions in any case."""
    stem, suffix = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem) + suffix.lower()


def readings(text: str) -> list[str]:
    """Return a path as written, and what it stands for as a URL: without query and escapes.

    Label Studio serves ``set/a b.jpg`` as ``/data/local-files/?d=set/a%20b.jpg``.
    """
    path = text.partition("/local-files/?d=")[2] or text
    if "://" in path:
        path = path.partition("?")[0]
    return list(dict.fromkeys([text, path, unquote(path).replace("\0", "")]))


class PathFinder:
    """Finds the files of one dataset by paths that may come from another machine.

    A path is resolved as written, then with leading folders removed one by one, below each of ``bases``. The last
    resort are other spellings of names, provided that only one fits.
    """

    def __init__(self, bases: Sequence[Path]) -> None:
        self.bases = list(dict.fromkeys(bases))
        self._listings: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, list[str]]] = {}

    def find(self, text: str, other_spellings: bool = True) -> Path | None:
        """Return the file or folder that ``text`` names, or None.

        It lies below one of the bases, unless ``text`` is an absolute path that exists on this machine. With
        ``other_spellings``, file systems that know a name in another spelling (upper and lower case) and names of the
        same ``spelling_key`` come last.
        """
        text = text.strip()
        if not text or "\0" in text:
            return None
        absolute = Path(text).expanduser() if text.startswith("~") else Path(text)
        if absolute.is_absolute() and self._exists(absolute):
            return absolute
        if "\\" in text and not is_outside(text):  # it may also be a character of a name
            for base in self.bases:
                if self._exists(base / text):
                    return base / text
        places = [
            (base, parts[k:])
            for parts in map(plain_parts, readings(text))
            for k in range(len(parts))
            for base in self.bases
        ]
        candidates = [base.joinpath(*parts) for base, parts in places]
        found = next((path for path in candidates if self._exists(path)), None)
        if found is None and other_spellings:
            found = next((path for path in candidates if len(path.name) < 256 and os.path.exists(path)), None)
        if found is None and other_spellings:
            similar = next(filter(None, (self.similar(base, parts) for base, parts in places)), [])
            found = similar[0] if len(similar) == 1 else None
        return found

    def similar(self, base: Path, parts: Sequence[str]) -> list[Path]:
        """Return the paths below ``base`` whose parts have the ``spelling_key`` of ``parts``."""
        found = [base]
        for part in parts:
            key = spelling_key(part)
            found = [folder / name for folder in found for name in self._by_spelling(folder).get(key, ())]
        return found

    def _exists(self, path: Path) -> bool:
        return path.name in self._list(path.parent)

    def _list(self, folder: Path) -> set[str]:
        """Return the names in a folder, which is listed once: many files are looked for in few of them."""
        key = str(folder)
        if key not in self._listings:
            try:
                self._listings[key] = set(os.listdir(key))
            except (OSError, ValueError):
                self._listings[key] = set()
        return self._listings[key]

    def _by_spelling(self, folder: Path) -> dict[str, list[str]]:
        key = str(folder)
        if key not in self._spellings:
            self._spellings[key] = {}
            for name in sorted(self._list(folder)):
                self._spellings[key].setdefault(spelling_key(name), []).append(name)
        return self._spellings[key]


def is_outside(text: str) -> bool:
    """Return whether a path points outside of its folder, or is absolute on any system."""
    return ".." in re.split(r"[/\\]", text) or re.match(r"[/\\~]|[A-Za-z]:[/\\]", text) is not None


def counterpart(path: Path, names: Sequence[str], others: Sequence[str]) -> Path | None:
    """Return ``path`` with its last folder called one of ``names`` replaced by one of ``others``, if that exists."""
    parts = list(path.parts)
    for k in range(len(parts) - 1, -1, -1):
        if parts[k] in names:
            found = (Path(*parts[:k], other, *parts[k + 1 :]) for other in others)
            return next((candidate for candidate in found if candidate.exists()), None)
    return None
