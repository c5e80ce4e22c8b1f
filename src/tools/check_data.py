"""Check a dataset before training: python src/tools/check_data.py ctdet --dataset custom --data_path DIR

Takes the options of main.py. Prints problems and statistics, and writes grids of training samples as the network
sees them into --output_dir (the run folder's check_data/ by default). Status 0: no problem, 1: problems,
2: there is nothing to check.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.cli import options_of
from centernet.datasets import get_dataset
from centernet.errors import UserError
from centernet.options import NEVER
from centernet.tasks import build_task
from centernet.utils.text import make_streams_tolerant, print_line
from centernet.utils.tool import error_line

SAMPLES = 16  # images of a grid


def main(argv: list[str] | None = None) -> int:
    """Check the dataset that the options name; returns the exit status."""
    make_streams_tolerant()
    opt = options_of("check_data", sys.argv[1:] if argv is None else argv)

    from centernet.datasets.check import check_split, sample_grids  # imports PyTorch, which takes seconds
    from centernet.visualization import build_visualizer, show_or_save

    try:
        dataset = get_dataset(opt.dataset)
        dataset.prepare(dataset.locate(Path(opt.data_dir)))
        splits = ["train", "val"] if 0 < opt.val_intervals < NEVER else ["train"]
        task = build_task(opt)
        reports = [check_split(task, split, read_with_bar) for split in splits]
    except UserError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    for report in reports[1:]:
        report.compare(reports[0])
    for report in reports:
        for line in report.lines():
            print_line(line)
    problems = sum(report.problems for report in reports)
    folder = opt.output_dir or str(Path(opt.save_dir) / "check_data")
    try:
        grids = sample_grids(task, build_visualizer(task), SAMPLES)
    except UserError as error:
        grids = {}
        problems += not problems  # it may be one of those above
        print_line(f"no training samples: {error}")
    try:
        show_or_save(grids, folder, "samples_", show=False)
    except UserError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    for name in grids:
        print(f"training samples: {Path(folder) / f'samples_{name}.png'}")
    print(f"{problems} problem(s)" if problems else "no problems")
    return 1 if problems else 0


def read_with_bar(images, count: int):
    """Yield the images and show a progress bar."""
    from progress.bar import Bar

    bar = Bar("reading images", max=max(count, 1), check_tty=True, file=sys.stderr)
    for image in images:
        yield image
        bar.next()
    bar.finish()


if __name__ == "__main__":
    sys.exit(main())
