"""Look at detections: ``python src/demo.py ctdet --demo picture|folder|video|webcam --load_model FILE``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from centernet.detector import TIMES, create_detector
from centernet.engine import processes as engine_processes
from centernet.errors import UserError
from centernet.opts import opts
from centernet.visualization import show_or_save

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mov", ".avi", ".mkv"}
ESCAPE = 27


def main(parser: opts, opt) -> None:
    """Detect in what ``--demo`` names, and show or save it, until it ends or Esc is pressed."""
    opt.debug = max(opt.debug, 1)
    moving = opt.demo == "webcam" or Path(opt.demo).suffix.lower() in VIDEOS
    inputs = frames(opt.demo) if moving else pictures(opt.demo)
    processes = engine_processes.start(opt)
    for note in parser.notes(opt, "demo.py"):
        print(note)
    if processes.count > 1:
        raise UserError("demo.py runs in one process; start it without torchrun")
    detector = create_detector(opt, processes.device)
    folder = opt.output_dir or str(Path(opt.save_dir) / "demo")
    show = not opt.output_dir and opt.debug < 4
    count = 0
    for name, picture in inputs:
        found = detector.run(picture)
        print("".join(f"{stage} {found[stage]:.3f}s |" for stage in TIMES), flush=True)
        # A moving picture goes on by itself, a still one waits for a key.
        key = show_or_save(found["pictures"], folder, f"{name}_", show, delay=int(moving))
        count += 1
        if key == ESCAPE:
            break
    print(f"{count} picture(s)" + ("" if show else f", saved in {folder}"))


def pictures(path: str) -> list[tuple[str, Path]]:
    """Name and path of a picture, or of all pictures in a folder, sorted. Raises UserError when there is none."""
    if not path:
        raise UserError("--demo: needs a picture, a folder of pictures, a video, or the word webcam")
    if not Path(path).exists():
        raise UserError(f"--demo {path}: there is no such file or folder")
    if not Path(path).is_dir():
        return [(Path(path).stem, Path(path))]
    paths = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in PICTURES)
    if not paths:
        raise UserError(f"--demo {path}: no pictures in this folder ({', '.join(sorted(PICTURES))})")
    stems = Counter(file.stem for file in paths)
    return [(file.stem if stems[file.stem] == 1 else file.name, file) for file in paths]


def frames(source: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and (H, W, 3) uint8 of each frame of a video file or of the first camera (``webcam``).

    Raises UserError, before any frame is asked for, when it cannot be opened.
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

    def read() -> Iterator[tuple[str, np.ndarray]]:
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            number += 1
            yield f"{Path(source).stem}_{number:06d}", frame
        capture.release()

    return read()


if __name__ == "__main__":
    engine_processes.run_script(main, opts())
