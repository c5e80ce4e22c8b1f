"""Loader worker processes: the resources they need, and their initialization."""

import multiprocessing
import signal
import sys
from multiprocessing.connection import Listener

import cv2
import torch

from ..errors import UserError
from ..utils import environment

FILES, FILES_PER_WORKER = 12, 3  # open files that workers take in the main process
MANY_FILES = 1024  # a limit of open files that is enough for any number of tensors being sent
WORKER_PATIENCE = 20  # seconds until SIGTERM ends a worker whose main process does not


def check_worker_resources(num_workers: int) -> None:
    """Raise UserError if the system lacks shared memory, open files or sockets for loader workers."""
    limit = environment.open_file_limit()
    needed = environment.open_files() + FILES + FILES_PER_WORKER * num_workers
    if needed > limit:
        raise UserError(
            f"--num_workers {num_workers}: loader processes need about {needed} open files, but the limit is {limit}; "
            "raise it (ulimit -n 1024), or use fewer (0 needs none)"
        )
    _use_few_files()
    try:
        multiprocessing.get_context().Lock()
        torch.UntypedStorage._new_shared(1, device="cpu")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--num_workers {num_workers}: loader processes need shared memory, which is not available "
            f"({str(error).splitlines()[0]}); mount /dev/shm (for a container: --shm-size), or use --num_workers 0"
        ) from error
    try:
        # A worker that cannot open its own drops its batches, and the main process would wait forever.
        Listener().close()
    except OSError as error:
        raise UserError(
            f"--num_workers {num_workers}: loader processes need sockets in the folder of temporary files, which "
            f"cannot be made ({error}); set TMPDIR to a short path such as /tmp, or use --num_workers 0"
        ) from error


def _use_few_files() -> None:
    """Share tensors by name if the limit of open files is low; by default each tensor being sent takes an open file."""
    if environment.open_file_limit() < MANY_FILES:
        torch.multiprocessing.set_sharing_strategy("file_system")


def init_worker(worker: int) -> None:
    """Initialize a loader worker (``worker_init_fn``): one thread, no reaction to the run's signals."""
    _use_few_files()
    # The workers share the cores; threads of OpenCV and PyTorch would only compete with them.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    ignore_signals()
    # If the main process is killed, the thread that sends tensors to it would print a traceback over the launcher's
    # report.
    show = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, (ConnectionError, EOFError)) else show(kind, error, trace)
    )


def ignore_signals() -> None:
    """Ignore signals sent to the process group; the main process decides when to stop.

    Python ends its last workers by SIGTERM, so that signal takes effect after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_PATIENCE))
