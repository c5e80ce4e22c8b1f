"""Moving images: frames are read ahead of the network and written behind it, each in a thread of its own."""

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from .datasets.images import MAX_PIXELS
from .errors import UserError

T = TypeVar("T")
AHEAD = 4  # frames that wait for the network, and images that wait to be written
RATE = 25.0  # frames a second where the source does not tell
END = object()


def open_video(source: str, max_pixels: int = MAX_PIXELS) -> cv2.VideoCapture:
    """Open a video file, or the first camera for ``webcam``.

    Raises UserError when it cannot be opened, or its frames have more than ``max_pixels`` pixels
    (``--max_image_pixels``), which is checked before a frame is decoded.
    """
    camera = source == "webcam"
    if not camera and not Path(source).is_file():
        raise UserError(f"--demo {source}: there is no such file")
    # OpenCV warns of every reader that does not fit; where the level is set differs between its versions 4 and 5.
    set_log_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    set_log_level(0)
    capture = cv2.VideoCapture(0 if camera else source)
    if not capture.isOpened():
        raise UserError(f"--demo {source}: " + ("no camera was found" if camera else "this video cannot be read"))
    width, height = (round(capture.get(name)) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > max_pixels:
        capture.release()
        raise UserError(
            f"--demo {source}: its frames are {width} x {height}, more than the {max_pixels} pixels of "
            "--max_image_pixels"
        )
    return capture


def frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames, (H, W, 3) uint8, until there are no more; then the source is closed."""
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield frame
    finally:
        capture.release()


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames a second."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 1 <= rate <= 1000 else RATE


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, made by a thread that is at most ``AHEAD`` of them ahead.

    What goes wrong in the making is raised here. When this is not iterated to its end, the thread ends with it.
    """
    waiting: queue.Queue = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        source = None
        try:
            source = iter(items)
            for item in source:
                if not put((item, None)):
                    break
            else:
                put((END, None))
        except BaseException as error:  # told to whoever waits
            put((END, error))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


class VideoWriter:
    """Writes images of several names, one video a name: ``<folder>/<prefix><name>.mp4``.

    Used in a ``with`` block; at its end everything is written. Raises UserError when a file cannot be written.

    Attributes:
        paths: the files that were begun, by name.
    """

    def __init__(self, folder: str | Path, prefix: str, rate: float) -> None:
        self.folder, self.prefix, self.rate = Path(folder), prefix, rate
        self.paths: dict[str, Path] = {}
        self._writers: dict[str, tuple[cv2.VideoWriter, tuple[int, int]]] = {}
        self._waiting: queue.Queue = queue.Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "VideoWriter":
        self._thread.start()
        return self

    def write(self, images: Mapping[str, np.ndarray]) -> None:
        """The next frame of each video, (H, W, 3) uint8."""
        if self._error is not None:
            raise self._error
        self._waiting.put(images)

    def __exit__(self, kind, error, trace) -> None:
        self._waiting.put(None)
        self._thread.join()
        for writer, _ in self._writers.values():
            writer.release()
        if error is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (images := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    for name, image in images.items():
                        self._write(name, image)
                except Exception as error:  # raised by the next write or at the end
                    self._error = error

    def _write(self, name: str, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        if name not in self._writers:
            path = self.folder / f"{self.prefix}{name}.mp4"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")  # OpenCV does not say why it cannot
            except OSError as error:
                raise UserError(f"cannot write video {path}: {error.strerror}") from error
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, (width, height))
            if not writer.isOpened():
                path.unlink(missing_ok=True)
                raise UserError(f"cannot write video {path}: this OpenCV has no encoder for it")
            self._writers[name], self.paths[name] = (writer, (width, height)), path
        writer, size = self._writers[name]
        writer.write(image if (width, height) == size else cv2.resize(image, size))
