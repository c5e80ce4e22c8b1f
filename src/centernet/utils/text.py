"""Text from files, directories and other programs, made safe for a terminal or a log.

Class names, file names and messages of libraries may hold escape sequences, bells, line breaks and characters that the
terminal's encoding lacks. ``printable`` turns such a text into one line, and ``print_line`` prints one.
"""

import os
import re
import sys
from typing import TextIO

from . import streams

# Control characters, marks that change the direction of text, line and paragraph separators, and lone surrogates.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(value: object) -> str:
    """Return ``value`` as one line of text without control characters; those are written as escapes such as ``\\x1b``.

    A path that Python could not decode, because the locale's encoding is not UTF-8, is decoded as UTF-8 if it can be.
    """
    text = str(value)
    if not _UNPRINTABLE.search(text):
        return text
    if re.search("[\udc80-\udcff]", text):
        text = _decoded_path(text)
    return _UNPRINTABLE.sub(_escape, text)


def print_line(*values: object, file: TextIO | None = None) -> None:
    """Print ``values`` as exactly one line to ``file`` (standard output by default), and flush it.

    Characters that the encoding of the file lacks are written as escapes.
    """
    file = sys.stdout if file is None else file
    text = " ".join(map(printable, values))
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def print_lines(text: str, file: TextIO | None = None) -> None:
    """Print a text of several lines, such as a table, each as by ``print_line``."""
    for line in text.split("\n"):
        print_line(line, file=file)


def make_streams_tolerant() -> None:
    """Make standard output and error escape characters that their encoding lacks, instead of failing.

    Output whose reader is gone (``... | head``) ends the process quietly, or as a training has set it.
    """
    streams.guard()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _escape(match: re.Match) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _decoded_path(text: str) -> str:
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text
