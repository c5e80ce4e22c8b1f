"""Standard output and error that tolerate a closed pipe (``... | head``)."""

import atexit
import contextlib
import io
import os
import sys
from collections.abc import Callable

STATUS = 128 + 13  # as of a process that was ended by SIGPIPE


class OutputClosed(SystemExit):
    """Raised by a print when standard output is closed. If not handled, it ends the process quietly."""

    def __init__(self) -> None:
        super().__init__(STATUS)


def _raise() -> None:
    raise OutputClosed


# Called once when a write to standard output fails because its reader is gone; a training sets another function.
on_closed: Callable[[], None] = _raise


class _Guarded:
    """A text stream whose output is discarded once its pipe is closed."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Discard buffered and later output, also at the file descriptor level, where libraries print."""
        number = self._stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
        if number == 1:
            on_closed()


def guard() -> None:
    """Guard the streams of this process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start: files must not get its number
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                if stream.fileno() == number:
                    setattr(sys, name, _Guarded(stream))


@atexit.register
def _finish() -> None:
    """Suppress errors of the final flush."""
    global on_closed
    on_closed = lambda: None  # noqa: E731
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Guarded):
            stream.flush()
