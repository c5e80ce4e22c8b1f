"""Turn a finished run into a reference curve for loss.py: exp/reference/NAME.csv and NAME.json.

python src/tools/make_reference.py exp/ctdet/my_run pascal_resdcn18_512
"""

import argparse
import csv
import json
import math
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from centernet.analysis import read  # noqa: E402
from centernet.errors import UserError  # noqa: E402


def read_run(folder: Path) -> tuple[list[str], list[list[str]], dict]:
    """Columns, rows (iterations 1, 2, 3, ...) and ``opt.json`` of a run folder.

    UserError when the run is unfinished, not finite or does not say what made it.
    """
    log = folder / "train_log.csv"
    info = read.read_json(folder / "opt.json")
    if not info.get("recipe"):
        raise UserError(f"{folder / 'opt.json'}: has no recipe")
    columns, rows = read.split_table(read.read_text(log), log)
    if not read.is_own_log(columns):
        raise UserError(f"{log}: expected the columns epoch,iteration,loss,...,lr,images/s, found {','.join(columns)}")
    rows = read.drop_repeated(rows, log)
    for row in rows:
        for name, text in zip(columns[:-1], row, strict=False):  # the last is the speed: no part of the curve
            if not _is_finite(text):
                raise UserError(f"{log}: {name} is '{text}' at iteration {row[1]}; a reference needs finite numbers")
    check_finished(rows, info, log)
    return columns, rows, info


def check_finished(rows: list[list[str]], info: dict, log: Path) -> None:
    """UserError unless the last epoch is the ``num_epochs``-th and as long as the first."""
    if not rows:
        raise UserError(f"{log}: has a header and no iterations")
    epochs = [row[0] for row in rows]
    options = info.get("options")
    planned = options.get("num_epochs") if isinstance(options, dict) else None
    if isinstance(planned, int) and float(epochs[-1]) < planned:
        raise UserError(f"{log}: ends in epoch {epochs[-1]} of {planned}; a reference needs a finished run")
    first, last = epochs.count(epochs[0]), epochs.count(epochs[-1])
    if last < first:
        raise UserError(f"{log}: its last epoch has {last} of {first} iterations; a reference needs a finished run")


def make_reference(folder: Path, name: str, exp_dir: Path, force: bool = False) -> tuple[Path, Path]:
    """Write ``NAME.csv`` and ``NAME.json`` into ``exp_dir``/reference and return their paths."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"'{name}' is no reference name: expected letters, digits, '_', '-' and '.'")
    target = exp_dir / "reference"
    csv_path, json_path = target / f"{name}.csv", target / f"{name}.json"
    for path in (csv_path, json_path):
        if path.exists() and not force:
            raise UserError(f"{path}: exists; --force overwrites it")
    columns, rows, info = read_run(folder)
    made = datetime.fromtimestamp((folder / "train_log.csv").stat().st_mtime, timezone.utc)
    about = {
        "date": made.isoformat(timespec="seconds"),
        "command": info.get("command"),
        "commit": info.get("git"),
        "versions": info.get("versions"),
        "device": info.get("device"),
        "processes": info.get("processes"),
        "iterations": len(rows),
        "recipe": info["recipe"],
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
        with csv_path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        json_path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    return csv_path, json_path


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def main(argv: list[str] | None = None) -> int:
    """Make the reference, print what was written and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="make_reference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="exp/<task>/<exp_id> of a finished run")
    parser.add_argument("name", metavar="NAME", help="name of the reference")
    parser.add_argument("--force", action="store_true", help="overwrite a reference of that name")
    parser.add_argument("--exp_dir", type=Path, default=ROOT / "exp", help="folder of the runs; default: %(default)s")
    args = parser.parse_args(argv)
    try:
        csv_path, json_path = make_reference(args.run, args.name, args.exp_dir, args.force)
    except UserError as error:
        print(f"make_reference.py: error: {error}", file=sys.stderr)
        return 2
    about = json.loads(json_path.read_text(encoding="utf-8"))
    print(f"Wrote {csv_path}: {about['iterations']} iterations")
    print(f"Wrote {json_path}: commit {about['commit']}, {about['processes']} processes, {about['device']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
