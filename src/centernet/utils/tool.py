"""Error handling of command-line tools."""

import functools
import sys
from collections.abc import Callable, Sequence

from ..errors import UserError
from .text import make_streams_tolerant, print_line

Main = Callable[[Sequence[str] | None], int | None]


def tool(main: Main) -> Callable[..., int]:
    """Decorate ``main(argv)`` of a tool: a ``UserError`` becomes one line on standard error and exit status 2.

    The result takes ``argv`` (None: the arguments of the process) and returns the exit status: that of ``main``, 0
    where it returns None.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        make_streams_tolerant()
        try:
            return main(argv) or 0
        except UserError as error:
            print_line(f"error: {error}", file=sys.stderr)
            return 2

    return run
