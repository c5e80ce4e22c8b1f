"""Look at detections: ``python src/demo.py ctdet --demo image|folder|video|webcam --load_model FILE``."""

from centernet import cli

if __name__ == "__main__":
    cli.demo()  # parses the command line before the imports below, which take seconds, and does not return

from collections import Counter
from pathlib import Path

import cv2

from centernet.detector import TIMES, Detector, create_detector, prepare
from centernet.engine import processes as engine_processes
from centernet.errors import UserError
from centernet.evaluation.results import dropped_note
from centernet.options import Options
from centernet.video import VideoWriter, ahead, frame_rate, frames, open_video
from centernet.visualization import has_display, show_or_save

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mov", ".avi", ".mkv"}
ESCAPE = 27


def main(opt: Options) -> None:
    """Detect in what ``--demo`` names, and show or save it, until it ends or Esc is pressed."""
    opt = opt.replace(debug=max(opt.debug, 1))
    moving = opt.demo == "webcam" or Path(opt.demo).suffix.lower() in VIDEOS
    source = open_video(opt.demo, opt.max_image_pixels) if moving else images(opt.demo)
    processes = engine_processes.start(opt)
    if processes.count > 1:
        raise UserError("demo.py runs in one process; start it without torchrun")
    detector = create_detector(opt, processes.device)
    engine_processes.tune_malloc(processes.device)
    folder = opt.output_dir or str(Path(opt.save_dir) / "demo")
    show = not opt.output_dir and opt.debug < 4
    (watch if moving else look)(detector, source, folder, show)


def look(detector: Detector, files: list[tuple[str, Path]], folder: str, show: bool) -> None:
    """Detect in image files, and show each until a key is pressed, or save it in ``folder``."""
    count = 0
    for name, path in files:
        found = detector.run(path)
        print_times(found)
        count += 1
        if show_or_save(found["images"], folder, f"{name}_", show) == ESCAPE:
            break
    print(f"{count} image(s)" + ("" if show and has_display() else f", saved in {folder}"))


def watch(detector: Detector, capture: cv2.VideoCapture, folder: str, show: bool) -> None:
    """Detect in a moving image, and show it, or save it as a video in ``folder``.

    Frames are read and cut ahead of the network, and written behind it.
    """
    opt = detector.opt
    show = show and has_display()
    count = 0
    with VideoWriter(folder, f"{Path(opt.demo).stem}_", frame_rate(capture)) as writer:
        for frame in ahead(prepare(frame, detector.task) for frame in frames(capture)):
            found = detector.run(frame)
            print_times(found)
            count += 1
            if show:
                if show_or_save(found["images"], folder, f"{count:06d}_", show, delay=1) == ESCAPE:
                    break
            else:
                writer.write(found["images"])
    print(f"{count} frame(s)" + "".join(f", saved in {path}" for path in writer.paths.values()))


def print_times(found: dict) -> None:
    """Print a line with the seconds of each stage, and a warning for detections that are not finite."""
    if "dropped" in found:
        print(dropped_note(found["dropped"]))
    print("".join(f"{stage} {found[stage]:.3f}s |" for stage in TIMES), flush=True)


def images(path: str) -> list[tuple[str, Path]]:
    """Name and path of an image, or of all images in a folder, sorted. Raises UserError when there is none."""
    if not path:
        raise UserError("--demo: needs an image, a folder of images, a video, or the word webcam")
    if not Path(path).exists():
        raise UserError(f"--demo {path}: there is no such file or folder")
    if not Path(path).is_dir():
        return [(Path(path).stem, Path(path))]
    paths = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in IMAGES)
    if not paths:
        raise UserError(f"--demo {path}: no images in this folder ({', '.join(sorted(IMAGES))})")
    stems = Counter(file.stem for file in paths)
    return [(file.stem if stems[file.stem] == 1 else file.name, file) for file in paths]
