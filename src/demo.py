"""Detect in images and videos: ``python src/demo.py ctdet --demo image|folder|video|webcam --load_model FILE``."""

from centernet import cli

if __name__ == "__main__":
    cli.demo()  # parses the command line before the imports below, which take seconds, and does not return

import contextlib
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from centernet import found
from centernet.detector import TIMES, Detector, create_detector, prepare
from centernet.engine import processes
from centernet.engine.signals import STOP, ShutdownRequested
from centernet.errors import UserError
from centernet.evaluation.results import dropped_note
from centernet.options import Options
from centernet.utils import files
from centernet.utils.images import read_image
from centernet.utils.text import print_line
from centernet.video import (
    Source,
    VideoWriter,
    ahead,
    find_sources,
    frame_count,
    frame_rate,
    frames,
    is_stream,
    open_video,
    unread_folders,
    without_login,
)
from centernet.visualization import has_display, show_or_save

ESCAPE = 27


def main(opt: Options) -> None:
    """Detect in what ``--demo`` names, and show or save it, until it ends or Esc is pressed."""
    opt = opt.replace(debug=max(opt.debug, 1))
    sources = find_sources(opt.demo)
    if count := unread_folders(opt.demo):
        print_line(f"note: --demo {opt.demo}: the images and videos in {count} subfolder(s) are not read")
    first = open_video(opt.demo, opt.max_image_pixels) if len(sources) == 1 and sources[0].is_video else None
    env = processes.start(opt)
    if env.world_size > 1:
        raise UserError("demo.py runs in one process; start it without torchrun")
    detector = create_detector(opt, env.device)
    processes.tune_malloc(env.device)
    with StopSignals() as signals:
        demo = Demo(detector, output_folder(opt), show=not opt.output_dir and opt.debug < 4, signals=signals)
        demo.make_folder()
        try:
            demo.run(sources, first)
        finally:
            demo.finish()


def output_folder(opt: Options) -> Path:
    """Return where drawings go: ``--output_dir``, else ``demo`` in the run directory, by default that of the model."""
    if opt.output_dir:
        return Path(opt.output_dir)
    run = Path(opt.save_dir) if "exp_id" in opt.given or not opt.load_model else Path(opt.load_model).parent
    return run / "demo"


class StopSignals:
    """Ends its ``with`` block at SIGINT, SIGTERM or SIGHUP, so that videos and results found so far are completed.

    A signal that is ignored, as by ``nohup``, stays ignored.
    """

    def __init__(self) -> None:
        self.stopped: ShutdownRequested | None = None
        self.waits = False

    def __enter__(self) -> "StopSignals":
        self.previous = {
            number: signal.signal(number, self._stop)
            for number in STOP
            if number.name != "SIGPIPE" and signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """Complete the block before a signal ends anything: a frame is counted and saved, or neither."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.stopped is not None:
            raise self.stopped

    def _stop(self, number: int, frame: object) -> None:
        message = f"stopped by {signal.Signals(number).name}; what was found so far is saved"
        self.stopped = ShutdownRequested(number, message)
        if not self.waits:
            raise self.stopped


class UnreadableSource(Exception):
    """An image or video cannot be read; others may be."""


class Demo:
    """Detects in sources, shows or saves drawings, and counts.

    Attributes:
        folder: where drawings, results and crops go.
        show: show drawings in a window, if there is a display.
        window: whether that is done.
        signals: what may end the process.
    """

    def __init__(self, detector: Detector, folder: Path, show: bool, signals: StopSignals) -> None:
        self.detector, self.opt, self.folder, self.show, self.signals = detector, detector.opt, folder, show, signals
        self.window = show and has_display()
        self.images = self.frames = self.failed = 0
        self.saves = False
        self.entries: list[dict] = []
        self.classes: Counter = Counter()
        self.seconds = dict.fromkeys(TIMES, 0.0)

    def make_folder(self) -> None:
        """Make the folder, if something will be written. Raises UserError if it cannot be made."""
        if not self.window or self.opt.save_json or self.opt.save_txt or self.opt.save_crops:
            with files.write_errors(f"--output_dir {self.folder}" if self.opt.output_dir else self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, sources: list[Source], capture: cv2.VideoCapture | None = None) -> None:
        """Detect in all sources. One of several that cannot be read is reported and counted.

        ``capture``: the video of the only source, if it is open already.
        """
        for number, source in enumerate(sources, start=1):
            place = f"{'video' if source.is_video else 'image'} {number}/{len(sources)}"
            title = f"{place} {source.name if is_stream(source.path) else Path(source.path).name}"
            started = time.perf_counter()
            try:
                opened = capture or self._open(source)
                if isinstance(opened, np.ndarray):
                    pressed = self.look(source, opened, title, time.perf_counter() - started)
                else:
                    pressed = self.watch(source, opened, title)
            except UnreadableSource as error:
                if len(sources) == 1:
                    raise UserError(error) from error
                self.failed += 1
                print_line(f"{place}: {str(error).removeprefix('--demo ')}")
                continue
            if pressed == ESCAPE:
                break
        if self.failed and not self.images and not self.frames:
            raise UserError(f"--demo {self.opt.demo}: none of its {self.failed} files can be read")

    def _open(self, source: Source) -> np.ndarray | cv2.VideoCapture:
        try:
            return (open_video if source.is_video else read_image)(source.path, self.opt.max_image_pixels)
        except UserError as error:
            raise UnreadableSource(str(error)) from error

    def look(self, source: Source, image: np.ndarray, title: str, seconds: float) -> int:
        """Detect in an image, and show it until a key is pressed, or save it. Returns the key, -1 for none."""
        answer = self.detector.run(image)
        answer["load"] += seconds
        answer["tot"] += seconds
        with self.signals.after():
            self.images += 1
            self._record(answer, image, source, source.name, title)
            if not self.window:
                return self._show_or_save(answer, source.name)
        return self._show_or_save(answer, source.name)

    def watch(self, source: Source, capture: cv2.VideoCapture, title: str) -> int:
        """Detect in a video, and show it, or save it as a video. Returns the last key pressed, -1 for none.

        Frames are read and prepared ahead of the network, and written behind it.
        """
        number = 0
        notes: list[str] = []
        total, prefix = frame_count(capture), f"{source.name}_"
        with VideoWriter(self.folder, prefix, frame_rate(capture)) as writer:
            images = ahead(prepare(frame, self.detector.task) for frame in frames(capture, notes.append))
            for number, prepared in enumerate(images, start=1):
                answer = self.detector.run(prepared)
                where = f"{title} frame {number}/{total}" if total else f"{title} frame {number}"
                name = f"{prefix}{number:06d}"
                with self.signals.after():
                    self.frames += 1
                    self._record(answer, np.asarray(prepared["image"]), source, name, where, number)
                    if not self.window:
                        writer.write(answer["images"])
                        self.saves = True
                if self.window and self._show_or_save(answer, name, delay=1) == ESCAPE:
                    return ESCAPE
        if number == 0:
            raise UnreadableSource(f"--demo {without_login(source.path)}: no frame of this video can be read")
        for note in notes:
            print_line(f"warning: {title}: {note}")
        return -1

    def _record(
        self, answer: dict, image: np.ndarray, source: Source, name: str, title: str, frame: int | None = None
    ) -> None:
        """Print and count the detections of an image, and save them for ``--save_json``, ``_txt`` and ``_crops``."""
        detections = found.detections_above(answer["results"], self.detector.task, self.opt)
        names = [one.name for one in detections]
        self.classes.update(names)
        for stage in TIMES:
            self.seconds[stage] += answer[stage]
        if "dropped" in answer:
            print_line(dropped_note(answer["dropped"]))
        print_line(f"{title}: {found.summary(names)}  {1000 * answer['tot']:.0f} ms")
        size = image.shape[1], image.shape[0]
        if self.opt.save_json:
            self.entries.append(found.json_entry(source.path, size, detections, frame))
        if self.opt.save_txt:
            self._write(Path("labels") / f"{name}.txt", found.yolo_lines(size, detections).encode())
        if self.opt.save_crops:
            for number, one in enumerate(detections, start=1):
                part = found.crop(image, one)
                if part is not None:
                    path = Path("crops") / (re.sub(r"[^\w .-]", "_", one.name) or "_") / f"{name}_{number}.jpg"
                    self._write(path, cv2.imencode(".jpg", part)[1].tobytes())

    def _show_or_save(self, answer: dict, name: str, delay: int = 0) -> int:
        key = show_or_save(answer["images"], str(self.folder), f"{name}_", self.show, delay)
        self.saves |= not self.window
        return key

    def _write(self, path: Path, content: bytes) -> None:
        path = self.folder / path
        with files.write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content, sync=False)
        self.saves = True

    def finish(self) -> None:
        """Write the results of ``--save_json``, and print totals."""
        count = self.images + self.frames
        if count == 0:
            return
        if self.opt.save_json:
            self._write(Path("detections.json"), json.dumps(self.entries).encode())
        counts = [f"{self.images} image(s)"] if self.images or not self.frames else []
        counts += [f"{self.frames} frame(s)"] if self.frames else []
        failed = f"; {self.failed} file(s) could not be read" if self.failed else ""
        print_line(f"found: {found.summary(self.classes)}{failed}")
        print_line("seconds per image: " + " |".join(f"{name} {self.seconds[name] / count:.4f}" for name in TIMES))
        print_line(" and ".join(counts) + (f", saved in {self.folder}" if self.saves else ""))
