"""The exception for errors that the user can fix."""

from .utils.text import printable


class UserError(Exception):
    """An error that the user can fix. Its text is one line that names the cause and the remedy.

    The scripts print it as ``error: <text>``, and the installed commands as ``centernet-train: error: <text>``, and
    exit with status 2, without a traceback. Line breaks, escape sequences and other control characters, which file and
    class names may contain, are escaped.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if text.startswith("Caught UserError in "):  # PyTorch wraps an error of a loader process in its traceback
            text = text.rpartition("UserError: ")[2].strip()
        super().__init__(printable(text))
