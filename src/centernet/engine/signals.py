"""Signals: SIGTERM, SIGINT and SIGHUP stop a training after a checkpoint, SIGUSR1 writes a checkpoint."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from ..utils import environment, streams
from ..utils.text import print_line

# Requests to stop. SIGPIPE stands for a standard output that was closed; as a signal it is ignored, as Python has it.
STOP = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE") if hasattr(signal, name))
ECHO = 5.0  # seconds in which a launcher passes on a signal that a scheduler has sent to all processes anyway
SAVE = getattr(signal, "SIGUSR1", None)  # Windows has none
_hosted = False  # whether the process belongs to another program, such as a notebook


class ShutdownRequested(BaseException):
    """Raised when a signal stops the run. Not an ``Exception``, so that generic handlers do not swallow it.

    Attributes:
        status: the exit status, 128 plus the number of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + number


def run_hosted(action: Callable[[], None]) -> None:
    """Train in the process of another program, such as a notebook, which must not end with the training.

    A signal ends ``action``, after a checkpoint, with the exception that Python programs expect: KeyboardInterrupt or
    SystemExit. A second SIGINT raises KeyboardInterrupt at once.
    """
    global _hosted
    before, _hosted = _hosted, True
    try:
        action()
        return
    except ShutdownRequested as stopped:
        text, status = str(stopped), stopped.status
    finally:
        _hosted = before
    # Raised here, because a notebook keeps an exception, and with its context the loader processes of the training.
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt(text)
    print_line(text)
    raise SystemExit(status)


class ShutdownHandler:
    """Records what signals have requested.

    Attributes:
        stop: number of the signal that requests the end of the run after a checkpoint, 0 for none.
        save: whether a checkpoint is requested.
        deferring: if true, the first signal is recorded and handled at the next safe point; otherwise it stops the run
            immediately, as the second one does in any case (of processes of a launcher: not within ``ECHO`` seconds).
    """

    def __init__(self) -> None:
        self.stop, self.save, self.deferring = 0, False, False
        self._stopped = 0.0  # when

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Receive signals until the block exits. A request to stop that is ignored, as by ``nohup``, stays ignored.

        In another thread than the main one, which alone can receive them, nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = {number: self._on_stop for number in STOP if number.name != "SIGPIPE"} | (
            {SAVE: self._on_save} if SAVE else {}
        )
        before = {number: signal.getsignal(number) for number in wanted}
        closed = streams.on_closed
        for number, ours in wanted.items():
            if before[number] not in (signal.SIG_IGN, None) or number == SAVE:  # SAVE is ignored until here
                signal.signal(number, ours)
        streams.on_closed = self._on_closed
        try:
            yield
        finally:
            streams.on_closed = closed
            for number, handler in before.items():
                if handler is not None:  # None: not set by Python, so not replaced here either
                    signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the first signal until the block exits, then raise ShutdownRequested if it has not been handled."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
        if self.stop:
            self._end()

    def _end(self) -> None:
        name = signal.Signals(self.stop).name
        raise ShutdownRequested(self.stop, f"stopped by {name}; --resume continues from the last checkpoint")

    def _on_stop(self, number: int, frame) -> None:
        number = signal.Signals(number)
        # A launcher may pass on another signal than the one it received; only the same one counts as the second.
        if self.stop == number:
            if _hosted and number == signal.SIGINT:
                raise KeyboardInterrupt("SIGINT for the second time: stopped without a checkpoint")
            if environment.is_launched() and time.monotonic() - self._stopped < ECHO:
                return
            with contextlib.suppress(OSError):
                os.write(2, f"{number.name} for the second time: stopped without a checkpoint\n".encode())
            os._exit(128 + number)
        self.stop, self._stopped = number, time.monotonic()
        if not self.deferring:
            self._end()

    def _on_closed(self) -> None:
        if self.stop == 0:
            self._on_stop(signal.SIGPIPE, None)

    def _on_save(self, number: int, frame) -> None:
        self.save = True
