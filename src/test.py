"""Score a detector: ``python src/test.py ctdet --load_model FILE ...``; in several processes through ``torchrun``."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from progress.bar import Bar

from centernet.datasets import get_dataset, read_dataset
from centernet.datasets.base import CocoStyleDataset
from centernet.datasets.loader import SkippedImages, explain_dataloader_crash, no_detections
from centernet.detector import TIMES, Detector, batches, create_detector, prefetch
from centernet.engine import processes as engine_processes
from centernet.engine.precision import set_precision
from centernet.engine.run_directory import RunDirectory
from centernet.errors import UserError
from centernet.options import process_shares
from centernet.opts import opts
from centernet.visualization import show_or_save


@explain_dataloader_crash()
def main(parser: opts, opt) -> None:
    """Detect in all images of the dataset, write ``results.json`` into the run folder, and score it."""
    processes = engine_processes.start(opt)
    say = processes.print
    for note in parser.notes(opt, "test.py"):
        say(note)
    set_precision(opt.precision)
    detector = create_detector(opt, processes.device, log=say)
    opt = detector.opt

    dataset = get_dataset(opt.dataset)
    processes.local_main_process_first(lambda: dataset.prepare(dataset.locate(Path(opt.data_dir)), log=say))
    images = read_dataset(opt, "val" if not opt.trainval else "test", processes)
    if opt.trainval and images.annotation_file == images.find_annotations(images.folder, "val"):
        raise UserError(f"--trainval: the dataset {opt.dataset} has no test split; without it the val split is tested")
    images.check_images_exist()
    for note in images.notes:
        say(note)
    engine_processes.tune_malloc(processes.device)
    run = None
    if processes.is_main:
        # As a test it leaves the options of a training in the same folder alone.
        run = RunDirectory(argparse.Namespace(**{**vars(opt), "test": True}), processes, ())
    say(
        f"{opt.task}/{opt.exp_id}: {opt.arch} on {opt.dataset}, {len(images)} images at "
        f"{'their own size' if opt.keep_res else f'{opt.input_w} x {opt.input_h}'}, scales "
        f"{', '.join(f'{scale:g}' for scale in opt.test_scales)}{', flip test' if opt.flip_test else ''}, "
        f"{processes.count} process(es) on {processes.device.type}"
    )

    indices = list(range(len(images)))[processes.rank :: processes.count]
    # The default of --batch_size is one for training.
    batch_size = max(process_shares(opt, processes.count)) if "batch_size" in opt.given else 1
    if batch_size > 1 and opt.not_prefetch_test:
        raise UserError("--batch_size: with --not_prefetch_test images are read and tested one by one; leave one out")
    if opt.on_bad_image == "skip" and opt.not_prefetch_test:
        raise UserError("--on_bad_image skip: not with --not_prefetch_test; leave one out")
    results, sums, skipped = detect(detector, images, indices, batch_size, processes.is_main)
    parts = processes.gather((results, sums, skipped.indices))
    if run is None:
        return
    found = {image_id: rows for part, _, _ in parts for image_id, rows in part.items()}
    results = {image_id: found[image_id] for image_id in images.image_ids}  # in order, however they were dealt
    images.rounded_results = opt.rounded_results
    path = images.save_results(results, run.path / "results.json")
    means = {name: sum(sums[name] for _, sums, _ in parts) / len(images) for name in TIMES}
    print("seconds an image: " + " |".join(f"{name} {value:.4f}" for name, value in means.items()))
    for name, value in images.evaluate(results).items():
        print(f"{name} {value:.4f}")
    print(f"results: {path}")
    named = run.path / "skipped_images.txt"
    text = skipped.report("scored as if nothing was found", [index for _, _, part in parts for index in part], named)
    if text is not None:
        print(text)


def detect(
    detector: Detector, dataset: CocoStyleDataset, indices: list[int], batch_size: int, active: bool
) -> tuple[dict[int, dict], dict[str, float], SkippedImages]:
    """Run the detector over the images ``indices`` of a dataset.

    ``batch_size`` images of one size go through the network together. ``active`` says whether this process shows its
    progress. Returns ``{image id: {class from 1: rows}}``, the seconds of each stage added up over the images, and
    what could not be used.
    """
    opt = detector.opt
    prefetched = not opt.not_prefetch_test
    inputs = batches(prefetch(dataset, indices, opt), batch_size) if prefetched else read_one_by_one(dataset, indices)
    bar = Bar(opt.exp_id, max=max(len(indices), 1), check_tty=True) if active else None
    skipped = SkippedImages(dataset)
    results, sums = {}, dict.fromkeys(TIMES, 0.0)
    for batch in inputs:
        image_ids, images, *infos = zip(*batch, strict=True)
        for image_id, image, found in zip(image_ids, images, detector.run(images, *infos), strict=True):
            i = len(results)
            results[image_id] = found["results"]
            if prefetched and image["skipped"]:
                results[image_id] = no_detections(found["results"])
                skipped.indices.append(dataset.image_ids.index(image_id))
            for name in TIMES:
                sums[name] += found[name]
            if opt.debug > 0:
                found["images"].update(ground_truth_images(detector, dataset, image_id))
                name = str(image_id).replace("/", "_")  # own data may have paths for ids
                show_or_save(found["images"], opt.debug_dir, f"{name}_", show=opt.debug < 4)
            if bar is not None:
                text = f"[{i}/{len(indices)}]|Tot: {bar.elapsed_td} |ETA: {bar.eta_td} "
                for name in TIMES:
                    mean = sums[name] / (i + 1)
                    text += f"|{name} {found[name]:.3f}s ({mean:.3f}s) " if prefetched else f"|{name} {mean:.3f} "
                if opt.print_iter == 0:
                    bar.suffix = text.replace("%", "%%")
                    bar.next()
                elif i % opt.print_iter == 0:
                    print(f"{opt.exp_id}| {text}", flush=True)
    if bar is not None and opt.print_iter == 0:
        bar.finish()
    return results, sums, skipped


def read_one_by_one(dataset: CocoStyleDataset, indices: list[int]) -> Iterator[list[tuple]]:
    """(image id, how to read it, what the task needs besides) of each image, for a detector that reads it itself."""
    for index in indices:
        yield [(dataset.image_ids[index], partial(dataset.read_image, index), dataset.picture_info(index))]


def ground_truth_images(detector: Detector, dataset: CocoStyleDataset, image_id: int | str) -> dict[str, np.ndarray]:
    """The image with its objects, to be looked at beside the detections."""
    index = dataset.image_ids.index(image_id)
    return detector.task.ground_truth_images(dataset.read_image(index), dataset.read_objects(index), detector.opt)


if __name__ == "__main__":
    engine_processes.run_script(main, opts())
