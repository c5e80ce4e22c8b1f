"""Start of a loader worker process."""

import signal
import sys

import cv2
import torch

GRACE_PERIOD = 20  # seconds after SIGTERM until a worker ends


def start_worker(worker: int) -> None:
    """Initialize a loader worker (``worker_init_fn``): one thread, no reaction to the run's signals."""
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

    SIGTERM is also how Python ends a worker, so it takes effect after a grace period.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_PERIOD))
