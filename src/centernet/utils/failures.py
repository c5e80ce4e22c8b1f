"""Errors with an external cause: a killed process, or a lack of memory, file handles or disk space."""

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import UserError
from .files import inaccessible

# How PyTorch reports DataLoader workers that are gone, and unavailable shared memory.
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid.*(exited unexpectedly|killed by signal: [\w ]+)|unable to \w+ .*(shared memory|file <).*"
)
SHARED_MEMORY = re.compile(r"bus error|shared memory|unable to|No space left", re.IGNORECASE)
MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory|failed to allocate|insufficient "
    r"memory|bad_alloc",
    re.IGNORECASE,
)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
OPEN_FILES = "too many open files: raise the limit (ulimit -n 1024), or use fewer --num_workers"
SMALLER = "use a smaller --batch_size or --input_res, --accumulate, or fewer --num_workers"


def explain(error: BaseException) -> str | None:
    """Return one line about an error whose cause is known; None for any other, such as a defect of the program."""
    for link in _chain(error):
        text = " ".join(str(link).split())
        if isinstance(link, RuntimeError) and (lost := LOST_WORKER.search(text)):
            return _lost_worker(text, lost[0])
        if _is_unreadable_batch(link):
            return _lost_worker(text, "its batches can no longer be read")
        if isinstance(error, UserError):
            continue  # its message is sufficient, unless it wraps an external cause
        system = link if isinstance(link, OSError) else OSError()
        code = system.errno
        if code in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
            return OPEN_FILES
        if isinstance(link, torch.OutOfMemoryError):
            return f"the device is out of memory ({text.partition('. GPU')[0][:120].rstrip('.')}); {SMALLER}"
        if isinstance(link, MemoryError) or code == errno.ENOMEM or _is_library_error(link) and MEMORY.search(text):
            return f"out of memory ({text[:120]}); {SMALLER}" if text else f"out of memory; {SMALLER}"
        if code == errno.EAGAIN or "can't start new thread" in text:
            return "the system refuses another process or thread (ulimit -u); use fewer --num_workers"
        if code in DISK:
            return f"{system.filename or 'a file'} could not be written: {system.strerror}"
        if line := inaccessible(system):
            return line
    return None


def _lost_worker(text: str, event: str) -> str:
    reason = "shared memory ran out" if SHARED_MEMORY.search(text) else "it was killed, mostly for too little memory"
    if "Too many open files" in text:
        return OPEN_FILES
    return (
        f"--num_workers: a loader process has ended ({event[:100]}): {reason}; use fewer (0 "
        "needs none), or give the machine more memory, a container a larger /dev/shm (--shm-size)"
    )


def _is_unreadable_batch(error: BaseException) -> bool:
    """Return whether an error arose because the loader process that holds a batch was gone before it was fetched.

    PyTorch then raises the error of the connection, unless the signal that the process has ended arrives earlier.
    """
    if not isinstance(error, (EOFError, ConnectionError, FileNotFoundError)):
        return False
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    # The thread that pins memory raises its errors again, with the traceback in their text.
    return any(Path(name).name == "resource_sharer.py" for name in frames) or "resource_sharer.py" in str(error)


def _is_library_error(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("cv2")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes.

    PyTorch raises the end of a loader process wherever the reading process happens to be, for instance while it writes
    a checkpoint, whose writer takes the error for its own.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
