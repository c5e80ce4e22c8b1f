"""Score a detector: ``python src/test.py ctdet --load_model FILE ...``; in several processes through ``torchrun``."""

from centernet import cli

if __name__ == "__main__":
    cli.test()  # parses the command line before the imports below, which take seconds, and does not return

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np

from centernet.analysis.evaluation_report import finish_evaluation_report
from centernet.datasets.base import CocoStyleDataset
from centernet.datasets.loader import SkippedImages, no_detections
from centernet.detector import TIMES, Detector, batches, create_detector, prefetch
from centernet.engine import processes, setup
from centernet.engine.progress import StatusLine
from centernet.errors import UserError
from centernet.evaluation.results import dropped_note, format_score
from centernet.options import Options, process_shares
from centernet.utils.files import read_json, write_errors
from centernet.utils.text import print_line, print_lines
from centernet.visualization import show_or_save


def main(opt: Options) -> dict[str, float]:
    """Detect in all images of the dataset, score the detections, and report why they have their scores.

    Writes ``results_<dataset>_<split>.json`` and ``report_<dataset>_<split>.html`` into the output folder.

    Returns the scores by name, on the first process only.
    """
    env = processes.start(opt)
    detector = create_detector(opt, env.device, log=env.print)
    opt = detector.opt
    batch_size = batch_size_of(opt, env.world_size)
    setup.prepare_dataset(opt, env)
    dataset = setup.open_split(detector.task, "val" if not opt.trainval else "test", env)
    if opt.trainval and dataset.annotation_file == dataset.find_annotations(dataset.folder, "val"):
        raise UserError(f"--trainval: the dataset {opt.dataset} has no test split; without it the val split is tested")
    processes.tune_malloc(env.device)
    folder = output_folder(opt) if env.is_main else None
    count = min(opt.num_iters, len(dataset)) if opt.num_iters >= 0 else len(dataset)
    of_all = f"the first {count} of " if count < len(dataset) else ""
    env.print(
        f"{opt.task}/{run_name(opt)}: {opt.arch} on {opt.dataset}, {of_all}{len(dataset)} images at "
        f"{'their own size' if opt.keep_res else f'{opt.input_w} x {opt.input_h}'}, scales "
        f"{', '.join(f'{scale:g}' for scale in opt.test_scales)}{', flip test' if opt.flip_test else ''}, "
        f"{env.world_size} process(es) on {env.device.type}"
    )
    which = f"{opt.dataset}_{dataset.split}"
    if folder is not None and (before := images_of_report(folder / f"report_{which}.json")) > count:
        print_line(f"note: replaces the results of {before} images in {folder} by those of {count}")
    indices = list(range(count))[env.rank :: env.world_size]
    results, sums, skipped = detect(detector, dataset, indices, batch_size, env.is_main)
    parts = env.gather((results, sums, skipped.indices))
    if folder is None or parts is None:
        return {}
    found = {image_id: rows for part, _, _ in parts for image_id, rows in part.items()}
    results = {image_id: found[image_id] for image_id in dataset.image_ids[:count]}  # in the order of the dataset
    dataset.rounded_results = opt.rounded_results
    if count < len(dataset):
        dataset.scored_images = results
    path = dataset.save_results(results, folder / f"results_{which}.json")
    means = {name: sum(sums[name] for _, sums, _ in parts) / count for name in TIMES}
    dropped = round(sum(sums["dropped"] for _, sums, _ in parts))
    if dropped:
        print(dropped_note(dropped))
    print("seconds per image: " + " |".join(f"{name} {value:.4f}" for name, value in means.items()))
    scores = dataset.evaluate(results)
    if dataset.tables:
        print_lines(dataset.tables)
    for name, value in scores.items():
        print_line(f"{name} {format_score(value)}")
    if not scores:
        print(f"{dataset.annotation_file}: no annotations to score against; results are for the evaluation server")
    print(f"results: {path}")
    if opt.debug:
        print(f"drawings: {opt.debug_dir}")
    all_skipped = [index for _, _, part in parts for index in part]
    text = skipped.report("scored as if nothing was found", all_skipped, folder / f"skipped_images_{which}.txt")
    if text is not None:
        print(text)
    if scores:
        finish_evaluation_report(folder / f"report_{which}.html", dataset, results, scores)
    return scores


def run_name(opt: Options) -> str:
    """Return the name of what is tested: ``--exp_id`` if given, otherwise that of the checkpoint.

    A checkpoint that training has written (``model_best.pth``, ...) is named by its folder, another one by its file.
    """
    if "exp_id" in opt.given or not opt.load_model:
        return opt.exp_id
    path = Path(opt.load_model).resolve()
    return path.parent.name if path.name.startswith("model_") else path.stem


def images_of_report(path: Path) -> int:
    """Return how many images an earlier test has scored, by the JSON file of its report; 0: there is none."""
    try:
        return int(read_json(path)["images"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0


def output_folder(opt: Options) -> Path:
    """Return the folder of the results: that of the checkpoint, with ``--exp_id`` the run directory.

    The run directory is also taken where the checkpoint's folder cannot be written. Raises UserError if neither can.
    """
    folder = Path(opt.load_model).parent
    if "exp_id" not in opt.given and os.access(folder, os.W_OK):
        return folder
    folder = Path(opt.save_dir)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def batch_size_of(opt: Options, processes: int) -> int:
    """Return how many images go through the network together: one, unless ``--batch_size`` is given.

    Raises UserError where reading images one by one contradicts other options.
    """
    batch_size = max(process_shares(opt, processes)) if "batch_size" in opt.given else 1
    if batch_size > 1 and opt.not_prefetch_test:
        raise UserError("--batch_size: with --not_prefetch_test images are read and tested one by one; leave one out")
    if opt.on_bad_image == "skip" and opt.not_prefetch_test:
        raise UserError("--on_bad_image skip: not with --not_prefetch_test; leave one out")
    return batch_size


def detect(
    detector: Detector, dataset: CocoStyleDataset, indices: list[int], batch_size: int, active: bool
) -> tuple[dict[int | str, dict], dict[str, float], SkippedImages]:
    """Run the detector on images of a dataset.

    Args:
        detector: the detector.
        dataset: where the images come from.
        indices: which images.
        batch_size: images of one size that go through the network together.
        active: whether this process shows its progress.

    Returns:
        ``{image id: {class id from 1: rows}}``; the seconds of each stage, summed over the images; and the images that
        could not be used.
    """
    opt = detector.opt
    prefetched = not opt.not_prefetch_test
    if prefetched:
        inputs = batches(prefetch(dataset, indices, detector.task), batch_size)
    else:
        inputs = read_one_by_one(dataset, indices)
    progress = DetectionProgress(opt, len(indices), active)
    skipped = SkippedImages(dataset)
    results: dict[int | str, dict] = {}
    for batch in inputs:
        image_ids, images, *infos = zip(*batch, strict=True)
        for image_id, image, found in zip(image_ids, images, detector.run(images, *infos), strict=True):
            results[image_id] = found["results"]
            if prefetched and image["skipped"]:
                results[image_id] = no_detections(found["results"])
                skipped.indices.append(dataset.image_ids.index(image_id))
            if opt.debug > 0:
                found["images"].update(ground_truth_images(detector, dataset, image_id))
                name = str(image_id).replace("/", "_")  # ids of custom data may be paths
                show_or_save(found["images"], opt.debug_dir, f"{name}_", show=opt.debug < 4)
            progress.step(found)
    progress.finish()
    return results, progress.sums, skipped


class DetectionProgress:
    """A status line, or with ``--print_iter`` lines in the reference's format.

    Attributes:
        sums: seconds of each stage, summed over the images; and ``dropped``, how many detections were not finite.
    """

    def __init__(self, opt: Options, length: int, active: bool) -> None:
        self.opt, self.length, self.active = opt, length, active
        self.sums, self.count, self.started = dict.fromkeys((*TIMES, "dropped"), 0.0), 0, time.perf_counter()
        self.line = StatusLine(run_name(opt), length) if active and opt.print_iter == 0 else None

    def step(self, times: dict[str, float]) -> None:
        """Add an image, whose stages took ``times``."""
        for name in self.sums:
            self.sums[name] += times.get(name, 0)
        i, self.count = self.count, self.count + 1
        if self.line is not None:
            self.line.show(self.count, 1, label="left")
        elif self.active and i % self.opt.print_iter == 0:
            print(f"{run_name(self.opt)}| {self._reference_text(i, times)}", flush=True)

    def _reference_text(self, i: int, times: dict[str, float]) -> str:
        elapsed = time.perf_counter() - self.started
        left = elapsed / (i + 1) * (self.length - i - 1)
        total, eta = (timedelta(seconds=int(seconds)) for seconds in (elapsed, left))
        text = f"[{i}/{self.length}]|Tot: {total} |ETA: {eta} "
        for name in TIMES:
            mean = self.sums[name] / (i + 1)
            one_by_one = self.opt.not_prefetch_test
            text += f"|{name} {mean:.3f} " if one_by_one else f"|{name} {times[name]:.3f}s ({mean:.3f}s) "
        return text

    def finish(self) -> None:
        """End the line."""
        if self.line is not None:
            self.line.finish()


def read_one_by_one(dataset: CocoStyleDataset, indices: list[int]) -> Iterator[list[tuple]]:
    """Yield image id, reading function and metadata of each image, for a detector that reads images itself."""
    for index in indices:
        yield [(dataset.image_ids[index], partial(dataset.read_image, index), dataset.picture_info(index))]


def ground_truth_images(detector: Detector, dataset: CocoStyleDataset, image_id: int | str) -> dict[str, np.ndarray]:
    """Return drawings of an image's annotated objects, for comparison with the detections."""
    index = dataset.image_ids.index(image_id)
    return detector.visualizer.ground_truth_images(dataset.read_image(index), dataset.read_objects(index))
