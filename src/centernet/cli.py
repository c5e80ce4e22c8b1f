"""Start of the programs: the command line is parsed before PyTorch is imported, which takes seconds.

Also the commands of an installed package: ``centernet-train`` is ``src/main.py``, ``centernet-loss`` is ``loss.py``,
``centernet-check-data`` is ``src/tools/check_data.py``, and so on.
"""

import importlib.util
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from .options import OptionParser, Options
from .utils import environment
from .utils.text import make_streams_tolerant

HERE = Path(__file__).resolve().parent
# In a wheel the scripts are in the package; in a checkout, and after pip install -e, they are in src/.
INSTALLED = (HERE / "scripts" / "main.py").is_file()
FOLDER = HERE / "scripts" if INSTALLED else HERE.parent
LOSS = FOLDER / "root" / "loss.py" if INSTALLED else HERE.parents[1] / "loss.py"


def train() -> None:
    """Run ``centernet-train``, src/main.py."""
    run("main")


def test() -> None:
    """Run ``centernet-test``, src/test.py."""
    run("test")


def demo() -> None:
    """Run ``centernet-demo``, src/demo.py."""
    run("demo")


def export() -> None:
    """Run ``centernet-export``, src/export.py."""
    run("export")


def run_tool(path: Path) -> None:
    """Run ``main()`` of a tool, which parses its own command line, and exit with its status."""
    make_streams_tolerant()
    sys.path.insert(0, str(path.parent))  # tools may import each other
    raise SystemExit(load(path).main())


loss = partial(run_tool, LOSS)
report = partial(run_tool, FOLDER / "tools" / "make_report.py")
certify = partial(run_tool, FOLDER / "tools" / "certify.py")
check_data = partial(run_tool, FOLDER / "tools" / "check_data.py")
coco_overlap = partial(run_tool, FOLDER / "tools" / "calc_coco_overlap.py")
convert_for_reference = partial(run_tool, FOLDER / "tools" / "convert_for_reference.py")
check_device = partial(run_tool, FOLDER / "tools" / "check_device.py")
convert_hourglass = partial(run_tool, FOLDER / "tools" / "convert_hourglass_weight.py")
convert_kitti = partial(run_tool, FOLDER / "tools" / "convert_kitti_to_coco.py")
convert_voc = partial(run_tool, FOLDER / "tools" / "convert_voc.py")
eval_coco = partial(run_tool, FOLDER / "tools" / "eval_coco.py")
eval_coco_hp = partial(run_tool, FOLDER / "tools" / "eval_coco_hp.py")
eval_kitti = partial(run_tool, FOLDER / "tools" / "eval_kitti.py")
extreme_points = partial(run_tool, FOLDER / "tools" / "gen_coco_extreme_points.py")
make_reference = partial(run_tool, FOLDER / "tools" / "make_reference.py")
make_library = partial(run_tool, FOLDER / "tools" / "make_reference_library.py")
merge_voc = partial(run_tool, FOLDER / "tools" / "merge_pascal_json.py")
plot_log = partial(run_tool, FOLDER / "tools" / "plot_log.py")
reval = partial(run_tool, FOLDER / "tools" / "reval.py")
draw_results = partial(run_tool, FOLDER / "tools" / "vis_pred.py")


def run(script: str) -> None:
    """Parse the command line and run ``main(opt)`` of a script. Raises SystemExit at the end."""
    if script == "main" and hasattr(signal, "SIGUSR1"):
        # It requests a checkpoint, of which there is none until the training begins, and would end the process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        _run(script)
    except KeyboardInterrupt:  # during the imports
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(script: str) -> None:
    environment.die_with_launcher()  # long before the processes join: the imports take seconds
    make_streams_tolerant()
    # More loader workers than cores are the user's choice; PyTorch would print two warnings of 400 characters.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    opt = options_of(script)
    if script == "main":
        environment.share_cores()
    if script == "main" and len(opt.gpus) > 1:
        from .engine.launch import start_per_device

        run_main(lambda opt: start_per_device(opt, str(FOLDER / "main.py")), opt)
    run_main(load(FOLDER / f"{script}.py").main, opt)
    raise SystemExit(0)


def run_main(main: Callable[[Options], None], opt: Options) -> None:
    """Run ``main(opt)`` and end with one line and a status where it fails (``engine.processes.run_script``)."""
    from .engine.processes import run_script

    run_script(main, opt)


def options_of(script: str, args: Sequence[str] | str = "") -> Options:
    """Return the options of a command line (of the process, unless given), and print notes about those without effect.

    With ``--dry_run`` the configuration is printed and the process ends.
    """
    parser = OptionParser(f"{script}.py")
    opt = parser.parse(args)
    if os.environ.get("RANK", "0") == "0":
        print("".join(f"{note}\n" for note in parser.notes(opt)), end="", flush=True)
        if opt.dry_run:
            print("\n".join(f"{name}: {value}" for name, value in sorted(vars(opt).items())))
    if opt.dry_run:
        raise SystemExit(0)
    return opt


def load(path: Path) -> ModuleType:
    """Import a script by its path."""
    specification = importlib.util.spec_from_file_location(f"centernet_{path.stem}", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module
