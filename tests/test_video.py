"""Video: reading ahead, and writing in the background."""

import os
import re
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.small_disk import in_small_file_system, needs_mount

from centernet.errors import UserError
from centernet.video import AHEAD, RATE, VideoWriter, ahead, frame_count, frame_rate, frames, open_video


def make_video(path, count=3, size=(64, 48), rate=5):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, size)
    assert writer.isOpened()
    for k in range(count):
        writer.write(np.full((size[1], size[0], 3), 60 * (k % 4), np.uint8))
    writer.release()
    return str(path)


def read_video(path) -> list[np.ndarray]:
    return list(frames(cv2.VideoCapture(str(path))))


def background_threads() -> int:
    return threading.active_count()


# Reading


def test_frames_come_in_order_and_the_source_is_closed(tmp_path):
    capture = open_video(make_video(tmp_path / "a.avi"))
    assert frame_rate(capture) == 5
    found = list(frames(capture))
    assert [frame.shape for frame in found] == [(48, 64, 3)] * 3
    assert [round(frame.mean() / 60) for frame in found] == [0, 1, 2]
    assert not capture.isOpened()


def test_a_source_that_knows_no_rate():
    class Silent:
        def get(self, _):
            return 0.0

    assert frame_rate(Silent()) == RATE


def test_a_recording_of_a_browser_has_no_rate(tmp_path):
    """Their unit of time is the millisecond, which FFmpeg gives as the rate, and as the number of frames."""
    capture = open_video(make_video(tmp_path / "a.avi", count=30, rate=1000))
    assert capture.get(cv2.CAP_PROP_FPS) == 1000
    assert frame_rate(capture) == RATE and frame_count(capture) is None
    assert len(list(frames(capture, pytest.fail))) == 30


def test_frames_that_cannot_be_decoded_are_left_out(tmp_path):
    path = Path(make_video(tmp_path / "a.avi", count=30))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    notes = []
    count = len(list(frames(open_video(str(path)), notes.append)))
    assert 20 < count < 30 and notes == [f"only {count} of 30 frames could be read"]


def test_a_file_that_ends_early(tmp_path):
    path = Path(make_video(tmp_path / "a.avi", count=30))
    path.write_bytes(path.read_bytes()[:6000])
    notes = []
    count = len(list(frames(open_video(str(path)), notes.append)))
    assert 0 < count < 15 and notes == [f"only {count} of 30 frames could be read"]


class Recorded:
    """A source that states 60 frames in a second, and ends after 20 of them."""

    def __init__(self, seconds_per_frame):
        self.seconds_per_frame, self.reads = seconds_per_frame, 0

    def get(self, name):
        milliseconds = 1000 * self.reads * self.seconds_per_frame
        return {cv2.CAP_PROP_FRAME_COUNT: 60, cv2.CAP_PROP_FPS: 60, cv2.CAP_PROP_POS_MSEC: milliseconds}[name]

    def read(self):
        self.reads += 1
        return self.reads <= 20, np.zeros((4, 4, 3), np.uint8)

    def release(self):
        pass


def test_a_variable_rate_is_no_early_end():
    """FFmpeg computes the number of frames from the duration and the highest rate."""
    assert len(list(frames(Recorded(1 / 20), pytest.fail))) == 20
    notes = []
    assert len(list(frames(Recorded(1 / 60), notes.append))) == 20 and len(notes) == 1


@pytest.mark.parametrize(("name", "message"), [("no.avi", "no such file"), ("text.avi", "this video cannot be read")])
def test_no_video(tmp_path, name, message):
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(UserError, match=f"^--demo .*{name}: {message}$"):
        open_video(str(tmp_path / name))


# Reading ahead


@pytest.mark.parametrize("count", [0, 1, AHEAD, 50])
def test_ahead_keeps_the_order(count):
    before = background_threads()
    assert list(ahead(range(count))) == list(range(count))
    assert background_threads() == before


def test_ahead_is_made_in_another_thread():
    makers = set(ahead(threading.get_ident() for _ in range(3)))
    assert len(makers) == 1 and threading.get_ident() not in makers


def test_ahead_is_not_too_far_ahead():
    made = []

    def source():
        for k in range(100):
            made.append(k)
            yield k

    reader = ahead(source())
    for k in range(3):
        assert next(reader) == k
        end = time.monotonic() + 5
        while len(made) < k + 2 + AHEAD and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
        # Those that were consumed, those in the queue, and the one waiting for space.
        assert len(made) == k + 2 + AHEAD
    reader.close()


def test_what_goes_wrong_is_raised_after_what_went_well():
    def source():
        yield 1
        yield 2
        raise UserError("the third is broken")

    found = []
    before = background_threads()
    with pytest.raises(UserError, match="the third is broken"):
        for item in ahead(source()):
            found.append(item)
    assert found == [1, 2]
    assert background_threads() == before


def test_what_cannot_be_iterated_is_raised():
    with pytest.raises(TypeError):
        next(ahead(5))


def test_an_early_stop_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield np.zeros(3)
        finally:
            closed.set()

    before = background_threads()
    reader = ahead(source())
    next(reader)
    assert background_threads() == before + 1
    reader.close()
    assert closed.is_set() and background_threads() == before


def test_an_early_stop_closes_the_video(tmp_path):
    capture = open_video(make_video(tmp_path / "a.avi", count=20))
    reader = ahead(frame * 2 for frame in frames(capture))
    next(reader)
    reader.close()
    assert not capture.isOpened()


# Writing


def test_videos_of_several_names(tmp_path):
    folder = tmp_path / "new" / "folder"
    before = background_threads()
    with VideoWriter(folder, "clip_", 5) as writer:
        for k in range(6):
            small, large = np.full((48, 64, 3), 40 * k, np.uint8), np.full((96, 128, 3), 255 - 40 * k, np.uint8)
            writer.write({"small": small, "large_1.0": large})
    assert background_threads() == before
    assert writer.paths == {"small": folder / "clip_small.mp4", "large_1.0": folder / "clip_large_1.0.mp4"}
    assert sorted(path.name for path in folder.iterdir()) == ["clip_large_1.0.mp4", "clip_small.mp4"]
    small, large = (read_video(path) for path in writer.paths.values())
    assert [frame.shape for frame in small] == [(48, 64, 3)] * 6 and [f.shape for f in large] == [(96, 128, 3)] * 6
    np.testing.assert_allclose([frame.mean() for frame in small], [40 * k for k in range(6)], atol=6)
    np.testing.assert_allclose([frame.mean() for frame in large], [255 - 40 * k for k in range(6)], atol=6)
    assert cv2.VideoCapture(str(folder / "clip_small.mp4")).get(cv2.CAP_PROP_FPS) == 5


def test_an_image_of_another_size_is_fitted(tmp_path):
    with VideoWriter(tmp_path, "", 5) as writer:
        for shape in ((48, 64, 3), (96, 128, 3)):
            writer.write({"a": np.full(shape, 100, np.uint8)})
    assert [frame.shape for frame in read_video(tmp_path / "a.mp4")] == [(48, 64, 3)] * 2


def test_nothing_to_write(tmp_path):
    with VideoWriter(tmp_path / "none", "", 5) as writer:
        pass
    assert writer.paths == {} and not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = background_threads()
    writer = VideoWriter(tmp_path / "file", "clip_", 5)
    with pytest.raises(UserError, match=r"file/clip_a\.mp4: cannot be written") as caught, writer:
        writer.write({"a": np.zeros((48, 64, 3), np.uint8)})
    assert "\n" not in str(caught.value)
    assert background_threads() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user to whom folders can be closed")
def test_a_folder_without_the_right_to_write(tmp_path):
    tmp_path.chmod(0o500)
    try:
        writer = VideoWriter(tmp_path, "", 5)
        with pytest.raises(UserError, match=r"a\.mp4: cannot be written \(Permission denied\)"), writer:
            writer.write({"a": np.zeros((48, 64, 3), np.uint8)})
    finally:
        tmp_path.chmod(0o700)


def test_an_error_of_the_writer_is_raised_by_a_later_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    image = np.zeros((48, 64, 3), np.uint8)
    written = 0
    with pytest.raises(UserError, match="cannot be written"), VideoWriter(tmp_path / "file", "", 5) as writer:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            writer.write({"a": image})
            written += 1
            time.sleep(0.01)
        raise AssertionError("no write complained")
    assert written >= 1


def test_an_error_of_the_reader_is_not_hidden_by_one_of_the_writer(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KeyError), VideoWriter(tmp_path / "file", "", 5) as writer:
        writer.write({"a": np.zeros((48, 64, 3), np.uint8)})
        raise KeyError
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path, "", 5) as writer:
        writer.write({"a": np.zeros((48, 64, 3), np.uint8)})
        raise ZeroDivisionError
    assert len(read_video(tmp_path / "a.mp4")) == 1  # what was there is written all the same


# Whole files


def test_a_video_gets_its_name_when_it_is_complete(tmp_path):
    path, image = tmp_path / "a.mp4", np.zeros((48, 64, 3), np.uint8)
    path.write_text("earlier")
    with VideoWriter(tmp_path, "", 5) as writer:
        for _ in range(AHEAD + 3):
            writer.write({"a": image})
        assert path.read_text() == "earlier"
    assert len(read_video(path)) == AHEAD + 3 and list(tmp_path.iterdir()) == [path]


def test_a_video_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    """OpenCV's writer reports nothing."""
    path = tmp_path / "a.mp4"
    path.write_text("earlier")

    class Writer:
        def isOpened(self):
            return True

        def write(self, image):
            pass

        def release(self):
            pass

        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, *arguments):
            pass

    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    expected = r"a\.mp4: no frame of the video could be written$"
    with pytest.raises(UserError, match=expected), VideoWriter(tmp_path, "", 5) as writer:
        writer.write({"a": np.zeros((48, 64, 3), np.uint8)})
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import numpy as np
from centernet.errors import UserError
from centernet.video import VideoWriter
rng = np.random.default_rng(0)
try:
    with VideoWriter(".", "", 5) as writer:
        for _ in range(40):
            writer.write({"a": rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)})
except UserError as error:
    print(error)
"""


@needs_mount
def test_a_video_on_a_full_disk_is_an_error(tmp_path):
    done = in_small_file_system(FULL_DISK, tmp_path, 100)
    assert done.returncode == 0, done.stderr
    message, *left = done.stdout.splitlines()
    assert re.fullmatch(
        r"a\.mp4: (no frame of the video|only \d+ of 40 frames) could be written \(disk full\)", message
    )
    assert left in ([], ["a.mp4"])
