"""Video input and output: frames are read ahead of the network and written behind it, each in a thread of its own."""

import contextlib
import os
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from .conversion.paths import IMAGE_SUFFIXES
from .errors import UserError
from .utils.files import atomic_path, is_disk_full, write_errors
from .utils.images import MAX_PIXELS

T = TypeVar("T")
AHEAD = 4  # frames that wait for the network, and images that wait to be written
RATE = 25.0  # frames/s where the source does not specify it
NO_RATE = 1000  # frames/s that FFmpeg gives for files of milliseconds without a rate, such as recordings of browsers
MAX_DAMAGED = 100  # successive frames that cannot be decoded, after which a file is taken to have ended
COMPLETE = 0.9  # of the frames, or of the duration, that a file states
END = object()
SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".flv", ".3gp", ".ogv", ".mjpg", ".mjpeg", ".gif"),
}
KNOWN = SUFFIXES | set(IMAGE_SUFFIXES)
STREAM = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        path: the file, or what names a camera or a stream.
        name: unique among the sources, for file names of the output.
        is_video: whether it has frames.
    """

    path: str
    name: str
    is_video: bool


def is_stream(source: str) -> bool:
    """Return whether a source is a camera (``webcam``, or a number that is not a file) or an address."""
    if STREAM.match(source) or source == "webcam":
        return True
    return re.fullmatch(r"\d{1,3}", source, re.ASCII) is not None and not Path(source).exists()


def is_video_file(path: Path) -> bool:
    """Return whether a file is a video, by its suffix, or because OpenCV reads it as a video and not as an image."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file() or path.suffix.lower() in IMAGE_SUFFIXES or cv2.haveImageReader(str(path)):
        return False
    with _opened(str(path)) as capture:
        return capture.isOpened() and capture.read()[0]


def name_of(source: str) -> str:
    """Return a file name stem for the output of a source."""
    if STREAM.match(source):
        source = re.sub(r"[?#].*", "", STREAM.sub("", source).rpartition("@")[2])
        return (
            re.sub(r"[^\w.-]+", "_", Path(source).stem if "/" in source.rstrip("/") else source).strip("_.") or "stream"
        )
    return f"camera{source}" if is_stream(source) and source != "webcam" else Path(source).stem


def without_login(source: str) -> str:
    """Return a source for messages: an address without user name and password."""
    return re.sub(r"//[^/]*@", "//", source) if STREAM.match(source) else source


def find_sources(demo: str) -> list[Source]:
    """Return the image, video, camera or stream that ``--demo`` names, or the files of a folder, sorted.

    Raises UserError when there is none.
    """
    if not demo:
        raise UserError("--demo: needs an image, a folder, a video, a camera (webcam or a number), or an address")
    if is_stream(demo):
        return [Source(demo, name_of(demo), True)]
    path = Path(demo)
    if not path.exists():
        raise UserError(f"--demo {demo}: no such file or folder")
    if not path.is_dir():
        return [Source(demo, path.stem, is_video_file(path))]
    paths = sorted(path for path in path.iterdir() if _is_known(path))
    if not paths:
        inside = "; subfolders are not read" if unread_folders(demo) else ""
        raise UserError(f"--demo {demo}: no images or videos in this folder ({', '.join(sorted(KNOWN))}){inside}")
    stems = Counter(file.stem for file in paths)
    numbered = {re.sub(r"_\d{6,}$", "", stem) for stem in stems if re.search(r"_\d{6,}$", stem)}  # as frames are

    def source(file: Path) -> Source:
        is_video = file.suffix.lower() in SUFFIXES
        is_unique = stems[file.stem] == 1 and not (is_video and file.stem in numbered)
        return Source(str(file), file.stem if is_unique else file.name, is_video)

    return [source(file) for file in paths]


def unread_folders(demo: str) -> int:
    """Return how many subfolders of a folder have images or videos, which ``find_sources`` leaves out."""
    folders = [path for path in Path(demo).iterdir() if path.is_dir()] if Path(demo).is_dir() else []
    return sum(any(map(_is_known, folder.iterdir())) for folder in folders if os.access(folder, os.R_OK | os.X_OK))


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in KNOWN and path.is_file()


def open_video(source: str, max_pixels: int = MAX_PIXELS) -> cv2.VideoCapture:
    """Open a video file, a camera by its number (``webcam`` is the first), or a stream by its address.

    Raises:
        UserError: it cannot be opened, or its frames have more than ``max_pixels`` pixels (``--max_image_pixels``),
            which is checked before a frame is decoded.
    """
    shown = without_login(source)
    kind = "stream" if STREAM.match(source) else "camera" if is_stream(source) else "video"
    if kind == "video" and not Path(source).is_file():
        raise UserError(f"--demo {shown}: no such file")
    _silence_opencv()
    capture = cv2.VideoCapture((int(source) if source != "webcam" else 0) if kind == "camera" else source)
    if not capture.isOpened():
        problem = {"camera": "no camera was found", "stream": "this stream cannot be opened"}
        raise UserError(f"--demo {shown}: {problem.get(kind, 'this video cannot be read')}")
    width, height = (round(capture.get(name)) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > max_pixels:
        capture.release()
        raise UserError(
            f"--demo {shown}: its frames are {width} x {height}, more than the {max_pixels} pixels of "
            "--max_image_pixels"
        )
    return capture


@contextlib.contextmanager
def _opened(source: str) -> Iterator[cv2.VideoCapture]:
    _silence_opencv()
    capture = cv2.VideoCapture(source)
    try:
        yield capture
    finally:
        capture.release()


def _silence_opencv() -> None:
    """Suppress OpenCV's and FFmpeg's warnings about every reader that does not fit."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet; it is read when the first video is opened
    # The function has another place in OpenCV 5.
    set_log_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
    set_log_level(0)


def frames(capture: cv2.VideoCapture, log: Callable[[str], object] = lambda text: None) -> Iterator[np.ndarray]:
    """Yield the frames, (H, W, 3) uint8, and close the source after the last one.

    Frames of a file that cannot be decoded are left out. ``log`` is called at the end if frames are missing.
    """
    total, rate = frame_count(capture) or 0, frame_rate(capture)
    count = reads = failures = lost = 0
    seconds = 0.0
    try:
        while True:
            available, frame = capture.read()
            reads += 1
            if available:
                count, lost, failures = count + 1, lost + failures, 0
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield frame
            elif reads >= total or (failures := failures + 1) > MAX_DAMAGED:
                break
        # A file with a variable rate may state too many frames: its duration has to fall short, too.
        if lost or max(count, seconds * rate) < COMPLETE * total:
            log(f"only {count} of {total} frames could be read")
    finally:
        capture.release()


def frame_count(capture: cv2.VideoCapture) -> int | None:
    """Return the number of frames, None where the source does not specify it."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return round(count) if 1 <= count < 1e9 and capture.get(cv2.CAP_PROP_FPS) < NO_RATE else None


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Return the number of frames per second."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 1 <= rate < NO_RATE else RATE


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items, made by a thread that is at most ``AHEAD`` of them ahead.

    An exception of the thread is raised here. The thread ends if the iteration is abandoned.
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
        except BaseException as error:  # raised by the consumer
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
    """Writes images of several names, one video per name: ``<folder>/<prefix><name>.mp4``.

    Use it in a ``with`` block; at its end, also after an exception, the videos are completed and get their names, so
    that a file of that name is always a whole video.

    Raises:
        UserError: a file cannot be written, or what was written cannot be read.

    Attributes:
        paths: the files that were begun, by name.
    """

    def __init__(self, folder: str | Path, prefix: str, rate: float) -> None:
        self.folder, self.prefix, self.rate = Path(folder), prefix, rate
        self.paths: dict[str, Path] = {}
        self._videos: dict[str, _Video] = {}
        self._waiting: queue.Queue = queue.Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "VideoWriter":
        self._thread.start()
        return self

    def write(self, images: Mapping[str, np.ndarray]) -> None:
        """Write the next frame of each video, (H, W, 3) uint8."""
        if self._error is not None:
            raise self._error
        self._waiting.put(images)

    def __exit__(self, kind, error, trace) -> None:
        self._waiting.put(None)
        self._thread.join()
        for video in self._videos.values():
            try:
                video.finish()
            except UserError as problem:
                self._error = self._error or problem
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
        if name not in self._videos:
            path = self.folder / f"{self.prefix}{name}.mp4"
            with write_errors(path):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._videos[name] = _Video(path, self.rate, (image.shape[1], image.shape[0]))
            self.paths[name] = path
        self._videos[name].write(image)


class _Video:
    """A video that is being written under a temporary name."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self.path, self.size, self.count = path, size, 0
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(path))
            self._temporary.write_bytes(b"")  # OpenCV does not report why it cannot
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not self._writer.isOpened():
                raise UserError(f"{path}: cannot be written (this OpenCV has no encoder for it)")
            self._stack = stack.pop_all()

    def write(self, image: np.ndarray) -> None:
        same = (image.shape[1], image.shape[0]) == self.size
        self._writer.write(image if same else cv2.resize(image, self.size))
        self.count += 1

    def finish(self) -> None:
        """Complete the file, and give it its name if it can be read. Raises UserError if frames are missing in it."""
        why = ""
        with self._stack:
            self._writer.release()
            with _opened(str(self._temporary)) as capture:
                readable = frame_count(capture) if capture.isOpened() and capture.read()[0] else 0
            if is_disk_full(self.path.parent):  # which OpenCV does not report
                why = " (disk full)"
            if not readable:
                raise UserError(f"{self.path}: no frame of the video could be written{why}")
        if readable < self.count:
            raise UserError(f"{self.path}: only {readable} of {self.count} frames could be written{why}")
