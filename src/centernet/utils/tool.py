"""Error handling of command-line tools."""

import functools
import os
import sys
from collections.abc import Callable, Sequence

from ..errors import UserError
from .files import inaccessible
from .text import make_streams_tolerant, print_line

Main = Callable[[Sequence[str] | None], int | None]


def command_name(script: str = "") -> str:
    """Return the name of the installed command that this process was started as, otherwise ``script``."""
    name = os.path.basename(sys.argv[0])
    return name if name.startswith("centernet-") else script


def error_line(error: object, script: str = "") -> str:
    """Return the line that reports an error of the user.

    It begins with the name of the installed command (``centernet-demo: error: ...``), or with ``script`` unless it is
    empty.
    """
    name = command_name(script)
    return f"{name}: error: {error}" if name else f"error: {error}"


def tool(main: Main) -> Callable[..., int]:
    """Decorate ``main(argv)`` of a tool: a ``UserError`` becomes one line on standard error and exit status 2.

    Ctrl-C becomes the line "interrupted" and status 130. The result takes ``argv`` (None: the arguments of the process)
    and returns the exit status: that of ``main``, 0 where it returns None.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        make_streams_tolerant()
        try:
            return main(argv) or 0
        except UserError as error:
            print_line(error_line(error), file=sys.stderr)
            return 2
        except OSError as error:
            if not (line := inaccessible(error)):
                raise
            print_line(error_line(line), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print_line("interrupted", file=sys.stderr)
            return 130

    return run
