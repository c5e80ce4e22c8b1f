"""Prepare files that datasets need as a transaction: complete or repeated, by one process at a time.

Needs the standard library only.
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ..utils.files import file_lock, reason, write_text


def prepare_once(folder: Path, name: str, is_complete: Callable[[], bool], make: Callable[[bool], None]) -> bool:
    """Run ``make`` unless everything that it makes exists.

    Of several processes, on any machines that share the folder, one runs it and the others wait. A marker file exists
    from its beginning to its end: after an interruption the next process runs it again. Where the file system has no
    locks, several processes may run it at once; ``make`` therefore has to write every file atomically and under a
    unique temporary name (``utils.files``).

    Args:
        folder: the folder of the lock and the marker; made if needed.
        name: the preparation's name, part of the names of lock and marker.
        is_complete: whether all that is needed exists.
        make: makes what is missing; its argument is whether files of an interrupted preparation may exist, which have
            to be replaced.

    Returns:
        Whether ``make`` was run.

    Raises:
        UserError: something cannot be written, and any error of ``make``.
    """
    marker, lock = folder / f".{name}.incomplete", folder / f".{name}.lock"

    def is_done() -> bool:
        return is_complete() and not marker.exists()

    if is_done():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(lock):
            if is_done():  # by the process that held the lock
                return False
            interrupted = marker.exists()
            write_text(marker, f"The preparation {name} of this folder is running, or was interrupted.\n")
            make(interrupted)
            marker.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from error
    return True
