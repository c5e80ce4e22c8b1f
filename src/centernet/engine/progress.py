"""Progress display: one line that fits the terminal, or periodic plain lines without a terminal."""

import os
import sys
import time
from datetime import timedelta

from progress import Progress as TerminalProgress

from ..options import Options

LOG_SECONDS = 30.0  # between plain lines where standard error is not a terminal
REFRESH_SECONDS = 0.1  # between updates of the line in a terminal


class StatusLine(TerminalProgress):
    """A line in the terminal (standard error) that is updated in place, or a plain line every 30 seconds without one.

    Attributes:
        title: the beginning of the line.
        done: number of steps that were done before this start.
        after: steps of the run that follow after these ``max`` steps; None: do not show a remaining time of the run.
    """

    def __init__(self, title: str, length: int, done: int = 0, after: int | None = None) -> None:
        stream = type(self).file  # what standard error was when the package was imported
        if stream is None or getattr(stream, "closed", False):
            stream = sys.stderr
        super().__init__(max=max(length, 1), file=stream)
        self.title, self.done, self.after = title, done, after
        self.index = done
        self._started = self._shown = time.monotonic()

    def is_tty(self) -> bool:
        """Return whether the line goes to a terminal; streams that a program puts in its place may not say so."""
        return bool(getattr(self.file, "isatty", bool)())

    def show(self, count: int, per_step: int, loss: float | None = None, label: str = "epoch") -> None:
        """Update the line: ``count`` steps of ``per_step`` images are done."""
        self.index, now, terminal = count, time.monotonic(), self.is_tty()
        due = now - self._shown >= (REFRESH_SECONDS if terminal else LOG_SECONDS)
        if not due and not (terminal and count in (self.done + 1, self.max)):
            return
        self._shown = now
        seconds = (now - self._started) / max(count - self.done, 1)
        text = self.text(count, seconds, per_step / max(seconds, 1e-9), loss, label)
        if terminal:
            print("\r\x1b[K" + text[: self._width() - 1], end="", file=self.file, flush=True)
        else:
            print(text, flush=True)

    def text(self, count: int, seconds: float, speed: float, loss: float | None, label: str) -> str:
        """Return the line; ``seconds`` is the time per step, from which the remaining times follow."""
        parts = [self.title, f"{count}/{self.max}"]
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        parts += [f"{speed:.{0 if speed >= 10 else 1}f} img/s", f"{label} {_clock(seconds * (self.max - count))}"]
        if self.after is not None:
            parts.append(f"run {_clock(seconds * (self.max - count + self.after))}")
        return "  ".join(part for part in parts if part)

    def clear(self) -> None:
        """Blank the line, so that something else can be printed."""
        if self.is_tty():
            print("\r\x1b[K", end="", file=self.file, flush=True)

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.file.fileno()).columns or 80
        except OSError:
            return 80


class Progress:
    """The progress of an epoch: a status line, or with ``--print_iter`` lines in the reference's format."""

    def __init__(
        self, opt: Options, phase: str, epoch: int, length: int, batch_size: int, active: bool, done: int = 0
    ) -> None:
        self.opt, self.phase, self.epoch, self.length, self.active = opt, phase, epoch, length, active
        self.done, self.batch_size = done, batch_size
        title = f"epoch {epoch}/{opt.num_epochs}" + ("" if phase == "train" else f"  {phase}")
        after = (opt.num_epochs - epoch) * length if phase == "train" else None
        self.line = StatusLine(title, length, done, after) if active and opt.print_iter == 0 else None
        self.last_tick = time.perf_counter()
        self.data = self.data_sum = self.total = 0.0

    def data_ready(self) -> None:
        """Note that the next batch is on the device."""
        self.data = time.perf_counter() - self.last_tick
        self.data_sum += self.data

    def step(self, i: int, averages: dict[str, float]) -> None:
        """Show that iteration ``i`` (from 0) is done; ``averages`` are those of the losses so far."""
        now = time.perf_counter()
        self.total += now - self.last_tick
        self.last_tick = now
        if self.line is not None:
            self.line.show(i + 1, self.batch_size, averages.get("loss"))
        elif self.active and i % self.opt.print_iter == 0:
            print(f"{self.opt.task}/{self.opt.exp_id}| {self._reference_text(i, averages)}", flush=True)

    def _reference_text(self, i: int, averages: dict[str, float]) -> str:
        count = i + 1 - self.done
        data, net = self.data_sum / count, self.total / count
        elapsed, left = timedelta(seconds=int(self.total)), timedelta(seconds=int(net * (self.length - i - 1)))
        text = f"{self.phase}: [{self.epoch}][{i}/{self.length}]|Tot: {elapsed} |ETA: {left} "
        text += "".join(f"|{name} {value:.4f} " for name, value in averages.items())
        if not self.opt.hide_data_time:
            text += f"|Data {self.data:.3f}s({data:.3f}s) |Net {net:.3f}s"
        return text

    def clear(self) -> None:
        """Make room for another line of output."""
        if self.line is not None:
            self.line.clear()

    def finish(self) -> None:
        """End the line."""
        if self.line is not None:
            self.line.finish()


def _clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
