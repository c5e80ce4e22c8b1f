"""Turn a finished run into a reference curve for loss.py: exp/reference/NAME.csv and NAME.json.

    python src/tools/make_reference.py exp/ctdet/my_run pascal_resdcn18_512

loss.py selects the reference for runs with the same task, dataset, network, input size and batch size.
"""

import argparse
import csv
import io
import json
import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.analysis.read import read_finished_run
from centernet.errors import UserError
from centernet.options import ROOT
from centernet.utils.files import write_errors, write_text
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import error_line


def make_reference(folder: Path, name: str, exp_dir: Path, force: bool = False) -> tuple[Path, Path]:
    """Write ``NAME.csv`` and ``NAME.json`` into ``exp_dir``/reference and return their paths.

    Raises:
        UserError: the run is not fit to be a reference, or the files exist or cannot be written.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"'{name}' is not a reference name; expected letters, digits, '_', '-' and '.'")
    target = exp_dir / "reference"
    csv_path, json_path = target / f"{name}.csv", target / f"{name}.json"
    for path in (csv_path, json_path):
        if path.exists() and not force:
            raise UserError(f"{path}: exists; --force overwrites it")
    columns, rows, info = read_finished_run(folder)
    made = datetime.fromtimestamp((folder / "train_log.csv").stat().st_mtime, timezone.utc)
    about = {
        "date": made.isoformat(timespec="seconds"),
        "command": without_paths(info.get("command")),
        "commit": info.get("git"),
        "versions": info.get("versions"),
        "device": info.get("device"),
        "processes": info.get("processes"),
        "iterations": len(rows),
        "recipe": info["recipe"],
    }
    with write_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(csv_path, text.getvalue())
    write_text(json_path, json.dumps(about, indent=2) + "\n")
    return csv_path, json_path


def without_paths(command: str | None) -> str | None:
    """Return a command line without the options that name directories of the machine it ran on."""
    if not isinstance(command, str):
        return None
    try:
        words = iter(shlex.split(command))
    except ValueError:  # an edited file
        return None
    kept = []
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in ("--exp_dir", "--data_path"):
            kept.append(word)
        elif not equals:
            next(words, None)
    return shlex.join(kept)


def main(argv: list[str] | None = None) -> int:
    """Make the reference, print what was written and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="directory exp/<task>/<exp_id> of a finished run")
    parser.add_argument("name", metavar="NAME", help="name of the reference")
    parser.add_argument("--force", action="store_true", help="overwrite a reference of that name")
    parser.add_argument("--exp_dir", type=Path, default=ROOT / "exp", help="folder of the runs; default: %(default)s")
    args = parser.parse_args(argv)
    try:
        csv_path, json_path = make_reference(args.run, args.name, args.exp_dir, args.force)
    except UserError as error:
        print(error_line(error, "make_reference.py"), file=sys.stderr)
        return 2
    about = json.loads(json_path.read_text(encoding="utf-8"))
    print(f"Wrote {csv_path}: {about['iterations']} iterations")
    print(f"Wrote {json_path}: commit {about['commit']}, {about['processes']} processes, {about['device']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
