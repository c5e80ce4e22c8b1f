"""Score a detector: ``python src/test.py ctdet --load_model FILE ...``; in several processes through ``torchrun``."""

import argparse
from pathlib import Path

import torch
from progress.bar import Bar

from centernet.datasets import get_dataset
from centernet.datasets.base import CocoStyleDataset
from centernet.detector import TIMES, Detector, create_detector, paths, prefetch
from centernet.engine import processes as engine_processes
from centernet.engine.run_folder import RunFolder
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import get_task
from centernet.visualization import show_or_save


def main(parser: opts, opt) -> None:
    """Detect in all pictures of the data set, write ``results.json`` into the run folder, and score it."""
    processes = engine_processes.start(opt)
    say = processes.print
    for note in parser.notes(opt, "test.py"):
        say(note)
    torch.backends.cudnn.allow_tf32 = False  # scores are those of float32 networks on every device
    detector = create_detector(opt, processes.device, log=say)
    opt = detector.opt

    dataset = get_dataset(opt.dataset)
    folder = dataset.locate(Path(opt.data_dir))
    processes.one_first(lambda: dataset.prepare(folder, log=say))
    pictures = dataset(folder, "val" if not opt.trainval else "test", get_task(opt.task))
    if opt.trainval and pictures.annotation_file == pictures.find_annotations(folder, "val"):
        raise UserError(f"--trainval: the data set {opt.dataset} has no test split; without it the val split is tested")
    run = None
    if processes.is_main:
        # As a test it leaves the options of a training in the same folder alone.
        run = RunFolder(argparse.Namespace(**{**vars(opt), "test": True}), processes, ())
    say(
        f"{opt.task}/{opt.exp_id}: {opt.arch} on {opt.dataset}, {len(pictures)} pictures at "
        f"{'their own size' if opt.keep_res else f'{opt.input_w} x {opt.input_h}'}, scales "
        f"{', '.join(f'{scale:g}' for scale in opt.test_scales)}{', flip test' if opt.flip_test else ''}, "
        f"{processes.count} process(es) on {processes.device.type}"
    )

    indices = list(range(len(pictures)))[processes.rank :: processes.count]
    results, sums = detect(detector, pictures, indices, processes.is_main)
    parts = processes.gather((results, sums))
    if run is None:
        return
    found = {image_id: rows for part, _ in parts for image_id, rows in part.items()}
    results = {image_id: found[image_id] for image_id in pictures.image_ids}  # in order, however they were dealt
    path = run.path / "results.json"
    pictures.rounded_results = opt.rounded_results
    pictures.save_results(results, path)
    means = {name: sum(sums[name] for _, sums in parts) / len(pictures) for name in TIMES}
    print("seconds a picture: " + " |".join(f"{name} {value:.4f}" for name, value in means.items()))
    for name, value in pictures.evaluate(results).items():
        print(f"{name} {value:.4f}")
    print(f"results: {path}")


def detect(
    detector: Detector, dataset: CocoStyleDataset, indices: list[int], active: bool
) -> tuple[dict[int, dict], dict[str, float]]:
    """Run the detector over the pictures ``indices`` of a data set.

    Returns ``{image id: {class from 1: rows}}``, and the seconds of each stage added up over the pictures. ``active``
    says whether this process shows its progress.
    """
    opt = detector.opt
    prefetched = not opt.not_prefetch_test
    inputs = prefetch(dataset, indices, opt) if prefetched else paths(dataset, indices)
    bar = Bar(opt.exp_id, max=max(len(indices), 1), check_tty=True) if active else None
    results, sums = {}, dict.fromkeys(TIMES, 0.0)
    for i, (image_id, picture) in enumerate(inputs):
        found = detector.run(picture)
        results[image_id] = found["results"]
        for name in TIMES:
            sums[name] += found[name]
        if opt.debug > 0:
            show_or_save(found["pictures"], opt.debug_dir, f"{image_id}_", show=opt.debug < 4)
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
    return results, sums


if __name__ == "__main__":
    engine_processes.run_script(main, opts())
