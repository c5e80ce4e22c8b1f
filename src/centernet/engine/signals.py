"""Signals: SIGTERM and SIGINT end a training with a checkpoint, SIGUSR1 writes one."""

import contextlib
import os
import signal
from collections.abc import Iterator

STOP = (signal.SIGTERM, signal.SIGINT)
SAVE = getattr(signal, "SIGUSR1", None)  # Windows has none


class ShutdownRequested(BaseException):
    """A signal has ended the run. Not an ``Exception``, so that nothing takes it for a failure.

    Attributes:
        status: the exit status, 128 and the number of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + number


class ShutdownHandler:
    """What signals have asked for.

    Attributes:
        stop: number of the signal that wants the run to end after a checkpoint, 0 for none.
        save: a checkpoint is wanted.
        patient: a first signal only leaves its wish, because somebody looks for it. Otherwise it ends the run at once,
            as the second one does in any case.
    """

    def __init__(self) -> None:
        self.stop, self.save, self.patient = 0, False, False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals within a ``with``."""
        handlers = dict.fromkeys(STOP, self._on_stop) | ({SAVE: self._on_save} if SAVE else {})
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within a ``with`` a first signal leaves its wish; one that nobody has seen to ends the run after it."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False
        if self.stop:
            self._end()

    def _end(self) -> None:
        name = signal.Signals(self.stop).name
        raise ShutdownRequested(self.stop, f"stopped by {name}; --resume goes on from the last checkpoint")

    def _on_stop(self, number: int, frame) -> None:
        # A launcher may pass on another signal than the one it received; only the same one counts as impatience.
        if self.stop == number:
            os.write(2, f"{signal.Signals(number).name} for the second time: stopped without a checkpoint\n".encode())
            os._exit(128 + number)
        self.stop = number
        if not self.patient:
            self._end()

    def _on_save(self, number: int, frame) -> None:
        self.save = True


def ignore_signals_in_worker() -> None:
    """How a loader process takes the signals that the whole run receives: it works on until its run ends.

    SIGTERM is also how Python rids itself of a loader process in the end, so it takes effect after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if SAVE:
        signal.signal(SAVE, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(20))
